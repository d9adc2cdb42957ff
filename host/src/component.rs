//! Guests: tenants' components, run where they can harm nobody.
//!
//! `load` turns `.wasm` files into compiled code: it checks and compiles each content once. `run` makes instances of
//! that code, each with its own memory and limits, on threads apart from every socket. `imports` holds what the host
//! gives to guests, `roles` what they do for it: dial, filter, client handler, API, job. `shape` counts what a component
//! is made of. Each call has a deadline. A call that traps or misses it costs that call and its instance, nothing else.

mod bindings;
pub mod build;
mod imports;
pub mod load;
mod role;
pub mod roles;
mod run;
mod shape;

pub use load::engine::{Engine, EngineError, EngineSource, LoadError};
pub use role::RoleKind;
pub use roles::{
    api::{
        Api, ApiCode, NoAnswer,
        body::{Arrival, Download, Upload},
    },
    client::{Admission, ClientCode, ConnectRequest, Handler, Meaning, NotLetIn, SessionGuard, Transport},
    dial::{Dial, DialCode},
    filter::{FilterCode, LiveFilter},
    job::{Job, JobCode, LiveJob},
};
pub use run::{
    call::Broken,
    host::Guest,
    instance::{LoadedCode, Role, RoleCode},
    runtime::{Guests, Tasks},
    swap::Live,
};
