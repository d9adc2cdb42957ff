//! Guests: tenants' components, run where they can harm nobody.
//!
//! In come files of WebAssembly, checked and compiled once for each content (`load`). Out of compiled code come instances,
//! each with its own memory and limits, on threads apart from every socket (`run`). What the host gives them is in
//! `imports`, what they are to the host in `roles`: filter, client handler, API, job. A call has a deadline. A call that
//! traps or misses it costs that call and its instance, nothing else.

mod bindings;
pub mod build;
mod imports;
pub mod load;
mod role;
pub mod roles;
mod run;

pub use load::engine::{Engine, EngineSource, LoadError, Loaded};
pub use role::RoleKind;
pub use roles::{
    api::{
        Api, ApiCode, NoAnswer,
        body::{Download, Upload},
    },
    client::{ClientCode, ConnectRequest, Handler, Meaning, NotLetIn, SessionGuard, Transport},
    filter::{FilterCode, LiveFilter},
    job::{Job, JobCode, LiveJob},
};
pub use run::{
    call::Broken,
    host::Guest,
    instance::{Role, RoleCode},
    runtime::{Guests, Tasks},
    swap::Live,
};
