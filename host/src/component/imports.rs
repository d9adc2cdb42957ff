//! The capabilities that the host gives to guests, one module for each.
//!
//! A capability's module has its functions, its entry in the linker, the interfaces that it provides, and what it keeps
//! for each instance. To add one, write a module and add a line to the table below. The crate `config` reads what a
//! manifest grants.

use wasmtime::{Result, component::Linker};

use crate::component::{Guest, run::host::Host};

pub mod channels;
mod files;
pub mod keyvalue;
mod logging;
pub mod outbound;
pub mod records;
mod settings;
mod upstreams;
mod waits;
pub mod wasi;

/// The table of capabilities. A line names a module, and the type of what it keeps for each instance, if it keeps
/// anything.
///
/// Each module has a function `link`, which puts its functions into the linker, and the tables `PROVIDED` and `GRANTED`,
/// of which the second may be empty. Each such type has a function `new`, which makes it for a guest.
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

        /// The imports that the host gives: how their names begin, and how the versions that fit begin (the part after
        /// `@`).
        pub const PROVIDED: &[&[(&str, &str)]] = &[$($module::PROVIDED),*];

        /// Imports that show what a manifest has to grant: how their names begin, and the manifest's keys for that.
        pub const GRANTED: &[&[(&str, &str)]] = &[$($module::GRANTED),*];

        /// Puts the functions of all capabilities into the linker.
        pub fn link(linker: &mut Linker<Host>) -> Result<()> {
            $($module::link(linker)?;)*
            Ok(())
        }
    };
}

capabilities! {
    wasi,
    channels,
    keyvalue,
    logging,
    outbound: OutboundHttp,
    records: PendingRecords,
    settings: Settings,
    upstreams,
}
