//! A component's shape: how many parts it has, counted before it is compiled.
//!
//! A few bytes of a component can ask for much memory of the host: globals, segments and types cost more than they take
//! in the file, and a module can be instantiated many times. So the parts are counted, those of modules and components
//! inside it as often as they are instantiated, and held against limits far above what toolchains make. The counts also
//! give what the code and an instance take of the tenant's memory. These factors were measured by resident memory, and
//! `tests/integration/component/shapes.rs` holds them against it.

use wasmparser::{
    ComponentAlias, ComponentExternalKind, ComponentInstance, ComponentOuterAliasKind, ComponentTypeRef, Encoding,
    Instance, Parser, Payload,
};

/// Most core modules instantiated in an instance. The toolchains of some languages need a few.
pub const MAX_INSTANCES: usize = 64;
pub const MAX_TABLES: usize = 64;
pub const MAX_MEMORIES: usize = 16;

const MODULE: &str = "core module";
const COMPONENT: &str = "component";

/// The mappings of an instance without memories: its stack and the guard before that.
const MAPPINGS: usize = 4;
/// The mappings of one memory: what is used of it, its first contents, and the guards around it.
const MEMORY_MAPPINGS: usize = 5;
/// Bytes of an instance without any parts: its store, its stack, its WASI.
const INSTANCE: usize = 64 << 10;
/// Bytes of loaded code without any parts.
const LOADED: usize = 256 << 10;

/// For each part: its name, the most of it, and the bytes that one takes, in an instance and in loaded code.
macro_rules! parts {
    ($($(#[$doc:meta])* $field:ident $name:literal: $most:expr, $instance:expr, $loaded:expr;)*) => {
        /// How many parts of each kind there are.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Parts {
            $($(#[$doc])* pub $field: usize,)*
        }

        impl Parts {
            fn add(&mut self, other: &Self) {
                $(self.$field = self.$field.saturating_add(other.$field);)*
            }

            /// Finds the first kind of which there are too many.
            fn check(&self) -> Result<(), ShapeError> {
                $(if self.$field > $most {
                    return Err(ShapeError::TooMany { part: $name, found: self.$field, most: $most });
                })*
                Ok(())
            }

            fn instance_bytes(&self) -> usize {
                0 $(+ self.$field * $instance)*
            }

            fn loaded_bytes(&self) -> usize {
                0 $(+ self.$field * $loaded)*
            }
        }
    };
}

parts! {
    instances "instances of core modules": MAX_INSTANCES, 4 << 10, 0;
    memories "memories": MAX_MEMORIES, 4 << 10, 128;
    tables "tables": MAX_TABLES, 256, 128;
    globals "globals": 10_000, 32, 64;
    /// Defined and imported ones.
    functions "functions": 200_000, 32, 96;
    elements "element segments": 1_000, 64, 128;
    /// Their entries. Each takes one byte of the file at least.
    element_bytes "bytes of element segments": 1 << 20, 16, 24;
    data "data segments": 100_000, 16, 128;
    /// Types of core modules and of components.
    type_bytes "bytes of types": 512 << 10, 0, 128;
    modules "core modules": 200, 0, 8 << 10;
    components "components": 200, 256, 4 << 10;
    imports "imports": 50_000, 64, 256;
    exports "exports": 50_000, 0, 256;
    /// Names of imports and exports, with their types.
    name_bytes "bytes of imports and exports": 4 << 20, 0, 4;
    /// Functions that go from one component to another, or to the host.
    adapters "lifted and lowered functions": 5_000, 64, 512;
}

/// Why a component is not compiled. The tenant's developer reads it.
#[derive(Debug, thiserror::Error)]
pub enum ShapeError {
    #[error("has {found} {part}; the most accepted is {most}")]
    TooMany { part: &'static str, found: usize, most: usize },
    #[error("has a component within it that imports a {0}; compose it so that each component has its own")]
    Imports(&'static str),
    #[error("takes a {0} out of an instance; compose it so that each component has its own")]
    Exports(&'static str),
    #[error("does not compile: it instantiates a {0} that it does not have")]
    Missing(&'static str),
    #[error("does not compile: {0}")]
    Invalid(#[from] wasmparser::BinaryReaderError),
}

/// What a component has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shape {
    /// All that its file defines.
    pub defined: Parts,
    /// What one instance of it has.
    pub instantiated: Parts,
}

/// A component whose sections are read. Modules and components are known by what an instance of them has.
#[derive(Default)]
struct Scope {
    modules: Vec<Parts>,
    components: Vec<Parts>,
    instantiated: Parts,
}

impl Shape {
    /// Counts a component's parts, and checks that there are not too many.
    pub fn of(bytes: &[u8]) -> Result<Self, ShapeError> {
        let mut shape = Self::default();
        let mut scopes: Vec<Scope> = Vec::new();
        let mut module: Option<Parts> = None;
        for payload in Parser::new(0).parse_all(bytes) {
            let payload = payload?;
            let mut found = Parts::default();
            match &payload {
                Payload::Version { encoding: Encoding::Module, .. } => {
                    found.modules = 1;
                    module = Some(Parts { instances: 1, ..Parts::default() });
                }
                Payload::Version { encoding: Encoding::Component, .. } => {
                    found.components = 1;
                    scopes.push(Scope::default());
                }
                Payload::End(_) => match (module.take(), scopes.len()) {
                    (Some(module), _) => scopes.iter_mut().next_back().into_iter().for_each(|s| s.modules.push(module)),
                    (None, 0..=1) => {}
                    (None, _) => {
                        let whole = scopes.pop().map(|scope| scope.instantiated).unwrap_or_default();
                        scopes.iter_mut().next_back().into_iter().for_each(|scope| scope.components.push(whole));
                    }
                },
                payload => found = sections(payload),
            }
            shape.defined.add(&found);
            match (&mut module, scopes.last_mut()) {
                (Some(module), _) => module.add(&found),
                (None, Some(scope)) => scope.instantiated.add(&found),
                (None, None) => {}
            }
            if module.is_none() {
                follow(&payload, &mut scopes)?;
            }
            shape.defined.check()?;
            scopes.last().map_or(Ok(()), |scope| scope.instantiated.check())?;
        }
        shape.instantiated = scopes.pop().map(|scope| scope.instantiated).unwrap_or_default();
        Ok(shape)
    }

    /// Bytes of the host's memory that one instance takes, without its memories and tables.
    pub fn instance_bytes(&self) -> usize {
        INSTANCE + self.instantiated.instance_bytes()
    }

    /// Bytes of the host's memory that its code takes besides the machine code.
    pub fn loaded_bytes(&self) -> usize {
        LOADED + self.defined.loaded_bytes()
    }

    /// Memory mappings that one instance takes.
    pub fn mappings(&self) -> usize {
        MAPPINGS + self.instantiated.memories * MEMORY_MAPPINGS
    }
}

/// Counts what a section defines.
fn sections(payload: &Payload<'_>) -> Parts {
    let count = |count: u32| count as usize;
    match payload {
        Payload::TypeSection(types) => Parts { type_bytes: types.range().len(), ..Parts::default() },
        Payload::CoreTypeSection(types) => Parts { type_bytes: types.range().len(), ..Parts::default() },
        Payload::ComponentTypeSection(types) => Parts { type_bytes: types.range().len(), ..Parts::default() },
        Payload::ImportSection(all) => Parts {
            imports: count(all.count()),
            // Any of them may be a function.
            functions: count(all.count()),
            name_bytes: all.range().len(),
            ..Parts::default()
        },
        Payload::ComponentImportSection(all) => {
            Parts { imports: count(all.count()), name_bytes: all.range().len(), ..Parts::default() }
        }
        Payload::ExportSection(all) => {
            Parts { exports: count(all.count()), name_bytes: all.range().len(), ..Parts::default() }
        }
        Payload::ComponentExportSection(all) => {
            Parts { exports: count(all.count()), name_bytes: all.range().len(), ..Parts::default() }
        }
        Payload::InstanceSection(all) => Parts { name_bytes: all.range().len(), ..Parts::default() },
        Payload::ComponentInstanceSection(all) => Parts { name_bytes: all.range().len(), ..Parts::default() },
        Payload::ComponentAliasSection(all) => {
            Parts { imports: count(all.count()), name_bytes: all.range().len(), ..Parts::default() }
        }
        Payload::ComponentCanonicalSection(all) => Parts { adapters: count(all.count()), ..Parts::default() },
        Payload::FunctionSection(all) => Parts { functions: count(all.count()), ..Parts::default() },
        Payload::TableSection(all) => Parts { tables: count(all.count()), ..Parts::default() },
        Payload::MemorySection(all) => Parts { memories: count(all.count()), ..Parts::default() },
        Payload::GlobalSection(all) => Parts { globals: count(all.count()), ..Parts::default() },
        Payload::TagSection(all) => Parts { globals: count(all.count()), ..Parts::default() },
        Payload::ElementSection(all) => {
            Parts { elements: count(all.count()), element_bytes: all.range().len(), ..Parts::default() }
        }
        Payload::DataSection(all) => Parts { data: count(all.count()), ..Parts::default() },
        _ => Parts::default(),
    }
}

/// Follows which modules and components a component instantiates, by their indices.
fn follow(payload: &Payload<'_>, scopes: &mut [Scope]) -> Result<(), ShapeError> {
    match payload {
        Payload::ComponentImportSection(imports) => {
            for import in imports.clone() {
                match import?.ty {
                    ComponentTypeRef::Module(_) => return Err(ShapeError::Imports(MODULE)),
                    ComponentTypeRef::Component(_) => return Err(ShapeError::Imports(COMPONENT)),
                    _ => {}
                }
            }
        }
        Payload::ComponentAliasSection(aliases) => {
            for alias in aliases.clone() {
                alias_of(&alias?, scopes)?;
            }
        }
        Payload::ComponentExportSection(exports) => {
            for export in exports.clone() {
                let export = export?;
                let (Some(scope), index) = (scopes.last_mut(), export.index as usize) else { continue };
                // An export is one more name for what it exports.
                match export.kind {
                    ComponentExternalKind::Module => scope.modules.push(found(&scope.modules, index, MODULE)?),
                    ComponentExternalKind::Component => {
                        scope.components.push(found(&scope.components, index, COMPONENT)?)
                    }
                    _ => {}
                }
            }
        }
        Payload::InstanceSection(instances) => {
            for instance in instances.clone() {
                if let (Instance::Instantiate { module_index, .. }, Some(scope)) = (instance?, scopes.last_mut()) {
                    let module = found(&scope.modules, module_index as usize, MODULE)?;
                    scope.instantiated.add(&module);
                    scope.instantiated.check()?;
                }
            }
        }
        Payload::ComponentInstanceSection(instances) => {
            for instance in instances.clone() {
                if let (ComponentInstance::Instantiate { component_index, .. }, Some(scope)) =
                    (instance?, scopes.last_mut())
                {
                    let component = found(&scope.components, component_index as usize, COMPONENT)?;
                    scope.instantiated.add(&component);
                    scope.instantiated.check()?;
                }
            }
        }
        _ => {}
    }
    Ok(())
}

/// Adds what an alias names to the innermost component. What comes out of an instance may be anything that was ever put
/// into it, so modules and components do not.
fn alias_of(alias: &ComponentAlias<'_>, scopes: &mut [Scope]) -> Result<(), ShapeError> {
    let (kind, count, index) = match alias {
        ComponentAlias::Outer { kind, count, index } => (kind, *count as usize, *index as usize),
        ComponentAlias::InstanceExport { kind: ComponentExternalKind::Module, .. } => {
            return Err(ShapeError::Exports(MODULE));
        }
        ComponentAlias::InstanceExport { kind: ComponentExternalKind::Component, .. } => {
            return Err(ShapeError::Exports(COMPONENT));
        }
        _ => return Ok(()),
    };
    let outer = scopes.len().checked_sub(1 + count).and_then(|outer| scopes.get(outer));
    let (modules, components) = outer.map(|outer| (&*outer.modules, &*outer.components)).unwrap_or_default();
    match kind {
        ComponentOuterAliasKind::CoreModule => {
            let module = found(modules, index, MODULE)?;
            scopes.iter_mut().next_back().into_iter().for_each(|scope| scope.modules.push(module));
        }
        ComponentOuterAliasKind::Component => {
            let component = found(components, index, COMPONENT)?;
            scopes.iter_mut().next_back().into_iter().for_each(|scope| scope.components.push(component));
        }
        _ => {}
    }
    Ok(())
}

/// The parts at an index. No index is ever taken for an empty one.
fn found(all: &[Parts], index: usize, what: &'static str) -> Result<Parts, ShapeError> {
    all.get(index).copied().ok_or(ShapeError::Missing(what))
}
