//! `wasi:logging`: a guest's lines in the host's log.

use wasmtime::component::{HasSelf, Linker};

use crate::component::{
    bindings::wasi::logging::{logging, logging::Level},
    run::{host::Host, output},
};

pub const PROVIDED: &[(&str, &str)] = &[("wasi:logging/logging", "0.1.0-draft")];
pub const GRANTED: &[(&str, &str)] = &[];

/// Puts its functions into the linker.
pub fn link(linker: &mut Linker<Host>) -> wasmtime::Result<()> {
    logging::add_to_linker::<Host, HasSelf<Host>>(linker, |host| host)
}

impl logging::Host for Host {
    fn log(&mut self, level: Level, context: String, message: String) {
        output::log(self.guest(), level, &context, &message);
    }
}
