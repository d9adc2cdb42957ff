//! The capabilities that the host gives to guests, one module for each.
//!
//! A capability's module has its functions, its entry in the linker, and what it keeps for each instance. To add one,
//! write a module and add a line to the table below. The crate `config` reads what a manifest grants.

use wasmtime::{Result, component::Linker};

use crate::component::{Guest, run::host::Host};

pub mod channels;
pub mod keyvalue;
mod logging;
pub mod outbound;
mod records;
mod settings;
mod upstreams;

/// The table of capabilities. A line names a module, and the type of what it keeps for each instance, if it keeps
/// anything.
///
/// Each module has a function `link`, which puts its functions into the linker. Each such type has a function `new`,
/// which makes it for a guest.
macro_rules! capabilities {
    ($($module:ident $(: $state:ident)?,)*) => {
        /// Everything that the capabilities keep for one instance.
        pub struct Capabilities {
            $($(pub $module: $module::$state,)?)*
        }

        impl Capabilities {
            pub fn new(guest: &Guest) -> Self {
                Self { $($($module: $module::$state::new(guest),)?)* }
            }
        }

        /// Puts the functions of all capabilities into the linker.
        pub fn link(linker: &mut Linker<Host>) -> Result<()> {
            $($module::link(linker)?;)*
            Ok(())
        }
    };
}

capabilities! {
    channels,
    keyvalue,
    logging,
    outbound: OutboundHttp,
    records: PendingRecords,
    settings: Settings,
    upstreams,
}
