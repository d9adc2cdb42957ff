//! `wasi:config`: the manifest's settings, and the secrets that it grants.

use wasmtime::component::Linker;
use wasmtime_wasi_config::{WasiConfig, WasiConfigVariables};

use crate::component::{Guest, run::host::Host};

/// The values that a guest reads through `wasi:config`.
pub struct Settings(WasiConfigVariables);

impl Settings {
    pub fn new(guest: &Guest) -> Self {
        let version = &guest.version;
        let secrets = version.grants.secrets.iter().map(|(name, secret)| (name.clone(), secret.reveal().to_owned()));
        Self(version.settings.iter().cloned().chain(secrets).collect())
    }
}

pub const PROVIDED: &[(&str, &str)] = &[("wasi:config/store", "0.2.0-rc.1")];
pub const GRANTED: &[(&str, &str)] = &[("wasi:config/", "settings, grants.secrets")];

/// Puts its functions into the linker.
pub fn link(linker: &mut Linker<Host>) -> wasmtime::Result<()> {
    wasmtime_wasi_config::add_to_linker(linker, |host: &mut Host| WasiConfig::from(&host.capabilities.settings.0))
}
