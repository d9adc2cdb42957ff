//! `wasi:config`: the manifest's settings, and the secrets that it grants.

use std::collections::BTreeSet;

use wasmtime::component::{HasSelf, Linker};

use crate::{
    component::{
        Guest,
        bindings::wasi::config::store::{self, Error},
        imports::channels::shortened,
        run::host::Host,
    },
    tenant::TenantVersion,
};

/// Most names that are remembered of an instance. What it asks for beyond them is not logged.
const MAX_MISSED: usize = 100;

/// What an instance has asked for in vain, by name. It asks for the same in each call.
pub struct Settings {
    missed: BTreeSet<Box<str>>,
}

impl Settings {
    pub fn new(_: &Guest) -> Self {
        Self { missed: BTreeSet::new() }
    }
}

pub const PROVIDED: &[(&str, &str)] = &[("wasi:config/store", "0.2.0-rc.1")];
pub const GRANTED: &[(&str, &str)] = &[("wasi:config/", "settings, grants.secrets")];

/// Puts its functions into the linker.
pub fn link(linker: &mut Linker<Host>) -> wasmtime::Result<()> {
    store::add_to_linker::<Host, HasSelf<Host>>(linker, |host| host)
}

/// The settings and the granted secrets. No two have the same name.
fn values(version: &TenantVersion) -> impl Iterator<Item = (&str, &str)> {
    let settings = version.settings.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    let secrets = version.grants.secrets.iter().map(|(name, secret)| (name.as_str(), secret.reveal()));
    settings.chain(secrets)
}

impl Host {
    /// Logs, once for each name and version of the tenant, that a guest asks for what it does not have.
    fn log_missed(&mut self, name: String) {
        let name = shortened(name);
        let missed = &self.capabilities.settings.missed;
        if missed.len() >= MAX_MISSED || missed.contains(name.as_str()) {
            return;
        }
        let guest = self.guest();
        if guest.tenant.missed_settings.is_news(&guest.version, &name, "missing") {
            let write = || tracing::info!(setting.name = name, "a component asks for a setting that is not there");
            guest.span().in_scope(write);
        }
        self.capabilities.settings.missed.insert(name.into_boxed_str());
    }
}

impl store::Host for Host {
    fn get(&mut self, key: String) -> Result<Option<String>, Error> {
        let value = values(self.version()).find(|(name, _)| *name == key).map(|(_, value)| value.to_owned());
        if value.is_none() {
            self.log_missed(key);
        }
        Ok(value)
    }

    fn get_all(&mut self) -> Result<Vec<(String, String)>, Error> {
        Ok(values(self.version()).map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
    }
}
