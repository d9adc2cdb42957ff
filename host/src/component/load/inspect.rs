//! What a component offers and what it needs, read from its type.

use wasmtime::component::Component;

use crate::component::{
    RoleKind,
    imports::{self, records},
};

/// The interface that a filter also exports if it follows demand.
pub const FILTER_DEMAND: &str = "edge-relay:tenant/filter-demand@0.1.0";

/// The interface that a client handler also exports if it lets clients in for a limited time.
pub const CLIENT_LEASE: &str = "edge-relay:tenant/client-lease@0.1.0";

/// Most names that an error lists, and most characters of each.
const MAX_NAMES: usize = 20;
const MAX_NAME_CHARS: usize = 200;

/// What a component exports and imports.
#[derive(Debug, PartialEq, Eq)]
pub struct Report {
    pub roles: Vec<RoleKind>,
    /// It appends records or reads them, so it needs a store.
    pub keeps_records: bool,
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
    let keeps_records = imports.iter().any(|import| import.starts_with(records::INTERFACE));
    let missing = imports.iter().filter(|import| !is_provided(import)).cloned().collect();
    let asks = |(import, _): &(&str, &str)| imports.iter().any(|name| name.starts_with(import));
    let shown = |(import, keys): (&str, &str)| format!("{keys} ({})", import.trim_end_matches('/'));
    let grants = all(imports::GRANTED).filter(asks).map(shown).collect();
    Report { roles, keeps_records, follows_demand, leases, exports, imports, grants, missing }
}

fn is_provided(import: &str) -> bool {
    all(imports::PROVIDED).any(|(interface, version)| {
        import.starts_with(interface) && import.split_once('@').is_some_and(|(_, has)| has.starts_with(version))
    })
}

/// The lines of all capabilities' tables.
fn all(tables: &[&'static [(&'static str, &'static str)]]) -> impl Iterator<Item = (&'static str, &'static str)> {
    tables.iter().flat_map(|table| table.iter().copied())
}

/// Names for an error. A component may have a hundred thousand of them, and each may be as long.
pub fn shown(names: &[String]) -> String {
    let cut = |name: &String| match name.char_indices().nth(MAX_NAME_CHARS) {
        Some((end, _)) => format!("{}…", name.get(..end).unwrap_or_default()),
        None => name.clone(),
    };
    let mut shown = names.iter().take(MAX_NAMES).map(cut).collect::<Vec<_>>().join(", ");
    match names.len() {
        0 => shown.push_str("none"),
        1..=MAX_NAMES => {}
        more => shown.push_str(&format!(" and {} more", more - MAX_NAMES)),
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hundred_thousand_long_names_are_a_short_text() {
        assert_eq!(shown(&[]), "none");
        assert_eq!(shown(&["a:b/c@1.0.0".into(), "d".into()]), "a:b/c@1.0.0, d");
        let many = vec!["é".repeat(100_000); 30];
        let text = shown(&many);
        assert!(text.ends_with("… and 10 more") && text.len() < 10_000, "{}", text.len());
    }
}
