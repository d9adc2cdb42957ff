//! What a component offers and what it needs, read from its type.

use wasmtime::component::Component;

use crate::component::RoleKind;

/// The interface that a filter also exports if it follows demand.
pub const FILTER_DEMAND: &str = "edge-relay:tenant/filter-demand@0.1.0";

/// The interface that a client handler also exports if it lets clients in for a limited time.
pub const CLIENT_LEASE: &str = "edge-relay:tenant/client-lease@0.1.0";

/// A component that imports this needs a store.
pub const RECORDS: &str = "edge-relay:tenant/records";

/// The imports that the host gives: how their names begin, and how the versions that fit begin (the part after `@`).
const PROVIDED: [(&str, &str); 14] = [
    ("wasi:io/", "0.2."),
    ("wasi:clocks/", "0.2."),
    ("wasi:random/", "0.2."),
    ("wasi:cli/", "0.2."),
    ("wasi:filesystem/", "0.2."),
    ("wasi:sockets/", "0.2."),
    ("wasi:http/", "0.2."),
    ("wasi:config/store", "0.2.0-rc.1"),
    ("wasi:logging/logging", "0.1.0-draft"),
    ("wasi:keyvalue/", "0.2.0-draft"),
    ("edge-relay:tenant/types", "0.1.0"),
    ("edge-relay:tenant/channels", "0.1.0"),
    ("edge-relay:tenant/upstreams", "0.1.0"),
    (RECORDS, "0.1.0"),
];

/// Imports that show what a manifest has to grant: how their names begin, and the manifest's keys for that.
const GRANTED: [(&str, &str); 5] = [
    ("wasi:filesystem/", "grants.folders"),
    ("wasi:http/outgoing-handler", "grants.http"),
    ("wasi:cli/environment", "grants.environment"),
    ("wasi:config/", "settings, grants.secrets"),
    ("wasi:sockets/", "sockets, which are never granted"),
];

/// What a component exports and imports.
#[derive(Debug, PartialEq, Eq)]
pub struct Report {
    pub roles: Vec<RoleKind>,
    /// It is told which channels are active.
    pub follows_demand: bool,
    /// It says how long clients may stay.
    pub leases: bool,
    pub exports: Vec<String>,
    pub imports: Vec<String>,
    /// What it may ask the manifest for, each with the imports that show it. A component need not use all that it
    /// imports: the standard libraries of languages import files and the environment in any case.
    pub grants: Vec<String>,
    /// The imports that the host does not give.
    pub missing: Vec<String>,
}

pub fn report(engine: &wasmtime::Engine, component: &Component) -> Report {
    let component = component.component_type();
    let exports: Vec<String> = component.exports(engine).map(|(name, _)| name.to_owned()).collect();
    let imports: Vec<String> = component.imports(engine).map(|(name, _)| name.to_owned()).collect();
    let has = |interface: &str| exports.iter().any(|export| export.starts_with(interface));
    let roles = RoleKind::ALL.into_iter().filter(|role| has(role.interface())).collect();
    let (follows_demand, leases) = (has(FILTER_DEMAND), has(CLIENT_LEASE));
    let missing = imports.iter().filter(|import| !is_provided(import)).cloned().collect();
    let asks = |(import, _): &&(&str, &str)| imports.iter().any(|name| name.starts_with(import));
    let shown = |(import, keys): &(&str, &str)| format!("{keys} ({})", import.trim_end_matches('/'));
    let grants = GRANTED.iter().filter(asks).map(shown).collect();
    Report { roles, follows_demand, leases, exports, imports, grants, missing }
}

fn is_provided(import: &str) -> bool {
    PROVIDED.iter().any(|(package, version)| {
        import.starts_with(package) && import.split_once('@').is_some_and(|(_, has)| has.starts_with(version))
    })
}
