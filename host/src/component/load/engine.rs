//! Loads components, once for each content: compiles or finds the code, maps it, links it.
//!
//! A file's path goes in, and what all who have the same content share comes out ([`Loaded`]). The code comes from
//! memory ([`super::library`]), from the cache on disk ([`super::cache`]) or from a child that compiles it
//! ([`super::compile`]). Loading blocks its thread for as long as a compilation takes, so it is for threads that may
//! wait.

use std::{
    fs::File,
    hash::{DefaultHasher, Hash as _, Hasher},
    io,
    marker::PhantomData,
    path::{Path, PathBuf},
    sync::Arc,
};

use config::HostLimits;
use ring::digest;
use wasmtime::{
    Config,
    component::{Component, InstancePre, Linker},
};

use crate::{
    component::{
        RoleKind,
        load::{
            cache::{Cache, Distrust},
            compile::{CompileError, Compiler},
            file,
            file::{Binary, FileError},
            inspect,
            inspect::Report,
            library::Library,
            machine::{MachineError, is_noexec},
            trusted::Trusted,
        },
        run::{
            host,
            host::Host,
            instance::{LoadedCode, Role, RoleCode},
            ticker::Ticker,
        },
        shape::{Shape, ShapeError},
    },
    metrics::{CodeMetrics, Metrics},
};

/// The SHA-256 of a component.
pub type Hash = [u8; digest::SHA256_OUTPUT_LEN];

/// Why a component cannot be used. The tenant's developer reads it.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("is a core module, not a component; make one with `edge-relay component build`")]
    CoreModule,
    #[error(transparent)]
    Shape(#[from] ShapeError),
    #[error(transparent)]
    Compile(#[from] CompileError),
    #[error("has not the role of {role}: it does not export {}; its exports are: {exports}", .role.interface())]
    Role { role: RoleKind, exports: String },
    #[error(transparent)]
    Link(#[from] LinkError),
}

/// Why a component's imports cannot be resolved.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LinkError {
    #[error("imports what the host does not give: {0}")]
    Imports(String),
    #[error("imports have other types than the host gives: {0}")]
    Types(String),
}

/// A component's code, shared by all who have a file with its content.
pub struct Loaded {
    /// The size of the `.wasm`, in bytes.
    pub size: usize,
    shape: Shape,
    /// Bytes of memory that the code takes.
    bytes: usize,
    pub report: Report,
    linked: Result<InstancePre<Host>, LinkError>,
}

impl LoadedCode for Loaded {
    fn shape(&self) -> &Shape {
        &self.shape
    }

    fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Loaded {
    /// The code with every import resolved. `Err` names the imports that the host does not give.
    pub fn linked(&self) -> Result<&InstancePre<Host>, LinkError> {
        self.linked.as_ref().map_err(Clone::clone)
    }
}

/// Loads components, and links them to what the host gives.
pub struct Engine {
    wasmtime: wasmtime::Engine,
    linker: Linker<Host>,
    library: Library<Loaded>,
    /// `None`: each component is compiled when it is first needed.
    cache: Option<Cache>,
    compiler: Compiler,
    metrics: CodeMetrics,
    ticker: Arc<Ticker>,
}

/// Where a component's code came from.
#[derive(Clone, Copy)]
enum Origin {
    Cache,
    Compiler,
}

/// The settings that compiled code depends on. The child compiles with the same.
pub fn config() -> Config {
    let mut config = Config::new();
    config.epoch_interruption(true);
    config.wasm_component_model(true);
    config
}

impl Engine {
    /// `cache`: the folder for compiled code. The host starts without it if it cannot be used.
    pub fn new(limits: &HostLimits, cache: Option<&Path>, metrics: &Arc<Metrics>) -> wasmtime::Result<Self> {
        let wasmtime = wasmtime::Engine::new(&config())?;
        let linker = host::linker(&wasmtime)?;
        let ticker = Arc::new(Ticker::start(wasmtime.clone())?);
        let metrics = metrics.code();
        // An update of the standard library may change this number. Then components are compiled again, no more.
        let mut tag = DefaultHasher::new();
        (wasmtime.precompile_compatibility_hash(), env!("CARGO_PKG_VERSION")).hash(&mut tag);
        let open = |path| match Cache::open(path, tag.finish(), limits.cache_size) {
            Ok(cache) => {
                if cache.is_noexec() {
                    tracing::warn!(
                        folder = %path.display(),
                        "the cache of compiled code is on a file system that is mounted noexec: each component's code \
                         is copied into memory; mount it with exec, or have cache in relay.toml name another folder"
                    );
                }
                Some(cache)
            }
            Err(error) => {
                metrics.distrusted(error.reason());
                tracing::warn!(
                    folder = %path.display(), %error,
                    "no cache of compiled code: components are compiled at every start"
                );
                None
            }
        };
        Ok(Self {
            cache: cache.and_then(open),
            compiler: Compiler::new(limits.compile_memory as u64, limits.compile_time, cache),
            library: Library::new(),
            metrics,
            linker,
            wasmtime,
            ticker,
        })
    }

    /// Loads the component in a file, which was opened at this path.
    pub fn load(&self, path: &Path, opened: io::Result<File>) -> Result<Arc<Loaded>, LoadError> {
        let read = opened.map_err(FileError::Read).and_then(|file| file::read(&file));
        let loaded = read.map_err(LoadError::File).and_then(|(binary, bytes)| {
            if binary == Binary::CoreModule {
                return Err(LoadError::CoreModule);
            }
            let (shape, hash) = (Shape::of(&bytes)?, hash(&bytes));
            Ok(self.library.get(&hash, || self.make(path, &bytes, &hash, shape))?)
        });
        let (loaded, origin) = loaded.inspect_err(|error| {
            self.metrics.refused(match error {
                LoadError::Compile(error) => error.reason(),
                LoadError::Shape(_) => "shape",
                _ => "file",
            });
        })?;
        let counter = match origin {
            None => &self.metrics.shared,
            Some(Origin::Cache) => &self.metrics.cached,
            Some(Origin::Compiler) => &self.metrics.compiled,
        };
        counter.inc();
        Ok(loaded)
    }

    /// A loaded component's code for one role, if the component has it.
    pub fn role_code<R: Role>(&self, loaded: Arc<Loaded>) -> Result<RoleCode<R>, LoadError> {
        let report = &loaded.report;
        if !report.roles.contains(&R::KIND) {
            let exports = inspect::shown(&report.exports);
            return Err(LoadError::Role { role: R::KIND, exports });
        }
        let pre = loaded.linked()?.clone();
        R::check(&pre).map_err(|error| LinkError::Types(format!("{error:#}")))?;
        let &Report { keeps_records, follows_demand, leases, .. } = report;
        let ticker = Arc::clone(&self.ticker);
        Ok(RoleCode { pre, ticker, loaded, keeps_records, follows_demand, leases, role: PhantomData })
    }

    /// Finds the code in the cache, or compiles it.
    fn make(&self, path: &Path, bytes: &[u8], hash: &Hash, shape: Shape) -> Result<(Loaded, Origin), CompileError> {
        if let Some(component) = self.kept(path, hash)? {
            return Ok((self.link(&component, bytes.len(), shape), Origin::Cache));
        }
        tracing::info!(component = %path.display(), bytes = bytes.len(), "compiling");
        let code = self.compiler.compile(bytes, &self.metrics)?;
        if let Some(cache) = &self.cache
            && let Err(error) = cache.put(hash, &code, &self.metrics)
        {
            self.metrics.distrusted("io");
            tracing::warn!(component = %path.display(), %error, "compiled code cannot be cached");
        }
        // From the cache if possible: the system can drop pages of a file on disk when memory is short, and read them
        // again.
        let component = match self.kept(path, hash)? {
            Some(component) => component,
            None => self.map(&code)?,
        };
        Ok((self.link(&component, bytes.len(), shape), Origin::Compiler))
    }

    /// The code that the cache has, if it can be trusted. An error says that the machine lets no code run: then it
    /// would not help to compile it again.
    fn kept(&self, path: &Path, hash: &Hash) -> Result<Option<Component>, CompileError> {
        let Some(cache) = &self.cache else { return Ok(None) };
        let error = match cache.get(hash) {
            Ok(None) => return Ok(None),
            Ok(Some(code)) => match self.map(&code) {
                Ok(component) => return Ok(Some(component)),
                Err(CompileError::Unusable(why)) => Distrust::Code(why),
                Err(error) => return Err(error),
            },
            Err(error) => error,
        };
        self.metrics.distrusted(error.reason());
        tracing::warn!(component = %path.display(), %error, "cached code is not trusted; it is compiled again");
        Ok(None)
    }

    /// Maps code, or a copy of it if code may not run from where it is.
    fn map(&self, code: &Trusted) -> Result<Component, CompileError> {
        let mapped = if is_noexec(code.file()) {
            self.compiler.copy(code)?.component(&self.wasmtime)
        } else {
            code.component(&self.wasmtime)
        };
        mapped.map_err(|error| match MachineError::of(&error) {
            Some(machine) => machine.into(),
            None => CompileError::Unusable(format!("{error:#}")),
        })
    }

    /// Reads what a component imports and exports, and resolves its imports.
    fn link(&self, component: &Component, size: usize, shape: Shape) -> Loaded {
        let report = inspect::report(&self.wasmtime, component);
        let linked = if report.missing.is_empty() {
            self.linker.instantiate_pre(component).map_err(|error| LinkError::Types(format!("{error:#}")))
        } else {
            Err(LinkError::Imports(inspect::shown(&report.missing)))
        };
        let image = component.image_range();
        let bytes = image.end.addr() - image.start.addr() + shape.loaded_bytes();
        Loaded { size, shape, bytes, report, linked }
    }
}

/// The engine of a host, made when it is first needed. A host without components starts nothing of wasmtime.
pub struct EngineSource {
    limits: HostLimits,
    cache: Option<PathBuf>,
    metrics: Arc<Metrics>,
    made: Option<Arc<Engine>>,
}

/// Why there is no engine, on this machine or with these limits.
#[derive(Debug, thiserror::Error)]
#[error("{0:#}")]
pub struct EngineError(#[from] wasmtime::Error);

impl EngineSource {
    pub fn new(limits: HostLimits, cache: Option<PathBuf>, metrics: Arc<Metrics>) -> Self {
        Self { limits, cache, metrics, made: None }
    }

    pub fn get(&mut self) -> Result<&Arc<Engine>, EngineError> {
        let made = match self.made.take() {
            Some(made) => made,
            None => Arc::new(Engine::new(&self.limits, self.cache.as_deref(), &self.metrics)?),
        };
        Ok(self.made.insert(made))
    }
}

fn hash(bytes: &[u8]) -> Hash {
    let mut hash = Hash::default();
    hash.iter_mut().zip(digest::digest(&digest::SHA256, bytes).as_ref()).for_each(|(to, from)| *to = *from);
    hash
}
