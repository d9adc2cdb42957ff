//! Compiling and linking: once for the host, once per component.

use std::{io, path::Path};

use wasmtime::{
    Config,
    component::{Component, InstancePre, Linker},
};

use super::{
    check::{self, Report},
    host::{self, Host},
    ticker::Ticker,
};

/// Largest `.wasm` accepted, in bytes: a Python component has 18 MB.
const MAX_SIZE: u64 = 64 << 20;

/// Why a component cannot be used. The tenant's developer reads it.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("cannot be read: {0}")]
    Read(#[from] io::Error),
    #[error("has {0} bytes; the most accepted is {MAX_SIZE}")]
    Size(u64),
    #[error("is not WebAssembly")]
    NotWasm,
    #[error("is a core module, not a component; make one with `edge-relay component build`")]
    CoreModule,
    #[error("does not compile: {0}")]
    Compile(String),
    #[error("has not the role of {role}: it does not export {interface}; its exports are: {exports}")]
    Role { role: &'static str, interface: &'static str, exports: String },
    #[error("imports what the host does not give: {0}")]
    Imports(String),
    #[error("imports do not fit: {0}")]
    Link(String),
}

/// Compiles components and knows what the host gives them.
pub struct Engine {
    wasmtime: wasmtime::Engine,
    linker: Linker<Host>,
    pub(super) ticker: Ticker,
}

impl Engine {
    pub fn new() -> wasmtime::Result<Self> {
        let mut config = Config::new();
        config.epoch_interruption(true);
        config.wasm_component_model(true);
        let wasmtime = wasmtime::Engine::new(&config)?;
        let linker = host::linker(&wasmtime)?;
        let ticker = Ticker::start(wasmtime.clone())?;
        Ok(Self { wasmtime, linker, ticker })
    }

    pub(super) fn wasmtime(&self) -> &wasmtime::Engine {
        &self.wasmtime
    }

    /// Reads and compiles a component.
    pub fn load(&self, path: &Path) -> Result<Component, LoadError> {
        let size = path.metadata()?.len();
        if size > MAX_SIZE {
            return Err(LoadError::Size(size));
        }
        self.compile(&std::fs::read(path)?)
    }

    pub fn compile(&self, bytes: &[u8]) -> Result<Component, LoadError> {
        // The binary format's preamble: magic, version, layer.
        match bytes.get(..8) {
            Some([0, b'a', b's', b'm', 1, 0, 0, 0]) => return Err(LoadError::CoreModule),
            Some([0, b'a', b's', b'm', ..]) => {}
            _ => return Err(LoadError::NotWasm),
        }
        Component::from_binary(&self.wasmtime, bytes).map_err(|error| LoadError::Compile(format!("{error:#}")))
    }

    /// What a component offers and needs.
    pub fn report(&self, component: &Component) -> Report {
        check::report(&self.wasmtime, component)
    }

    /// Resolves every import, or says which the host does not give.
    pub fn link(&self, component: &Component) -> Result<InstancePre<Host>, LoadError> {
        let report = self.report(component);
        if !report.missing.is_empty() {
            return Err(LoadError::Imports(report.missing.join(", ")));
        }
        self.linker.instantiate_pre(component).map_err(|error| LoadError::Link(format!("{error:#}")))
    }
}
