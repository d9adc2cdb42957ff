//! What the host gives to guests: one module for each capability.
//!
//! A capability has its entry in the linker, what it keeps for each instance, and its functions in its own module. Adding
//! one is a module and a line in the table below. What a manifest grants of it is read in the crate `config`.

use wasmtime::{Result, component::Linker};

use crate::component::{Guest, run::host::Host};

pub mod channels;
pub mod keyvalue;
mod logging;
pub mod outbound;
mod records;
mod settings;
mod upstreams;

/// A line for each capability: its module, and the type of what it keeps for each instance, if it keeps something.
///
/// A module has `link`, which puts its functions into the linker; such a type has `new`, which makes it for a guest.
macro_rules! capabilities {
    ($($module:ident $(: $state:ident)?,)*) => {
        /// What the capabilities keep for one instance.
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
    records: Records,
    settings: Settings,
    upstreams,
}
