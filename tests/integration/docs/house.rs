//! The floors of the house: no module imports one of a floor above its own.
//!
//! The table "Never imports" of ARCHITECTURE.md says which floors there are. A module may import the modules of the rows
//! above its own and nothing else of the host; a row's second column names crates that its modules never import. A row
//! such as `component/load` is about a part of a module, and what it imports of that module.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// The repository.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .find(|folder| folder.join("ARCHITECTURE.md").is_file())
        .unwrap()
        .into()
}

/// One row of the table.
struct Floor {
    modules: Vec<String>,
    never: Vec<String>,
}

fn floors(document: &str) -> Vec<Floor> {
    let section = document.split("\n## Never imports\n").nth(1).unwrap().split("\n## ").next().unwrap();
    let names = |cell: &str| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect();
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    let floors: Vec<Floor> = rows
        .map(|row| {
            let cells: Vec<&str> = row.split('|').collect();
            Floor { modules: names(cells[1]), never: names(cells[2]) }
        })
        .collect();
    assert!(floors.len() > 5, "the table has its rows");
    floors
}

/// The sources of a module or a crate, tests left out, each with its path.
fn sources(at: &Path) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let file = at.with_extension("rs");
    if file.is_file() {
        found.push(file);
    }
    let mut folders = vec![at.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            let is_test = path.file_stem().is_some_and(|name| name == "tests" || name == "model");
            match path.extension() {
                _ if is_test => {}
                None if path.is_dir() => folders.push(path),
                Some(extension) if extension == "rs" => found.push(path),
                _ => {}
            }
        }
    }
    found.into_iter().map(|path| (path.clone(), code(&fs::read_to_string(path).unwrap()))).collect()
}

/// A source without its comments and its tests.
fn code(source: &str) -> String {
    let before_tests = source.split("#[cfg(test)]\nmod tests {").next().unwrap();
    let before_tests = before_tests.split("#[cfg(test)]\n#[allow").next().unwrap();
    // A `//` that no space comes before is part of an address in a string.
    let lines = before_tests.lines().map(|line| if line.starts_with("//") { "" } else { line });
    lines.map(|line| line.split_once(" //").map_or(line, |(code, _)| code)).collect::<Vec<_>>().join("\n")
}

/// The paths that follow `PREFIX` in a source, braces written out: after `crate::`, the line
/// `use crate::{channel::{Log, Chunk}, api}` has `channel::Log`, `channel::Chunk` and `api`.
fn paths(prefix: &str, source: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (at, _) in source.match_indices(prefix) {
        expand(String::new(), &source[at + prefix.len()..], &mut found);
    }
    found
}

/// Adds the path that `rest` begins with, or each path of a group in braces. Returns what follows.
fn expand<'s>(mut path: String, mut rest: &'s str, found: &mut BTreeSet<String>) -> &'s str {
    loop {
        if let Some(group) = rest.strip_prefix('{') {
            rest = group.trim_start();
            while !rest.is_empty() && !rest.starts_with('}') {
                let next = expand(path.clone(), rest, found);
                rest = if next.len() < rest.len() { next } else { &rest[1..] }.trim_start();
            }
            return rest.strip_prefix('}').unwrap_or_default();
        }
        let end = rest.find(|character: char| !character.is_alphanumeric() && character != '_').unwrap_or(rest.len());
        path += &rest[..end];
        rest = &rest[end..];
        match rest.strip_prefix("::") {
            Some(more) => (path, rest) = (path + "::", more),
            None => {
                found.insert(path);
                return rest;
            }
        }
    }
}

/// Whether a source names a path that begins with this crate.
fn imports_crate(name: &str, source: &str) -> bool {
    let path = format!("{name}::");
    source.match_indices(&path).any(|(at, _)| {
        let before = source[..at].chars().next_back();
        !before.is_some_and(|before| before.is_alphanumeric() || matches!(before, '_' | ':'))
    })
}

fn breaches(root: &Path, floors: &[Floor]) -> Vec<String> {
    let mut breaches = BTreeSet::new();
    let ranked = floors.iter().enumerate();
    let rank: BTreeMap<&str, usize> =
        ranked.flat_map(|(rank, floor)| floor.modules.iter().map(move |name| (&**name, rank))).collect();
    for (own, floor) in floors.iter().enumerate() {
        for module in &floor.modules {
            let is_crate = root.join("host").join(module).join("Cargo.toml").is_file();
            let at =
                if is_crate { root.join("host").join(module).join("src") } else { root.join("host/src").join(module) };
            let sources = sources(&at);
            assert!(!sources.is_empty(), "{module} of the table is no module");
            let inside = Inside::new(root, module);
            for (path, source) in sources {
                let path = path.strip_prefix(root).unwrap().display();
                for import in if is_crate { BTreeSet::new() } else { paths("crate::", &source) } {
                    let (name, is_above) = match &inside {
                        // Parts that are one idea share a row, and may import each other.
                        Some(inside) => (inside.part(&import), own + 1),
                        None => (import.split("::").next().map(str::to_owned), own),
                    };
                    let Some(name) = name.filter(|name| name != module) else { continue };
                    if rank.get(&*name).is_some_and(|rank| *rank >= is_above) {
                        breaches.insert(format!("{path} imports {name}"));
                    }
                }
                let never = floor.never.iter().filter(|name| imports_crate(name, &source));
                breaches.extend(never.map(|name| format!("{path} imports the crate {name}")));
            }
        }
    }
    breaches.into_iter().collect()
}

/// The module that a part belongs to, with the parts that its exports come from.
struct Inside<'m> {
    module: &'m str,
    exports: BTreeMap<String, String>,
}

impl<'m> Inside<'m> {
    /// `None`: `part` is no part of another module.
    fn new(root: &Path, part: &'m str) -> Option<Self> {
        let (module, _) = part.split_once('/')?;
        let source = code(&fs::read_to_string(root.join("host/src").join(module).with_extension("rs")).unwrap());
        let exports = paths("pub use ", &source);
        let exports = exports.iter().filter_map(|path| Some((path.rsplit("::").next()?, path.split("::").next()?)));
        Some(Self { module, exports: exports.map(|(name, part)| (name.into(), part.into())).collect() })
    }

    /// The part that an imported path is of.
    fn part(&self, import: &str) -> Option<String> {
        let name = import.strip_prefix(self.module)?.strip_prefix("::")?.split("::").next()?;
        Some(format!("{}/{}", self.module, self.exports.get(name).map_or(name, String::as_str)))
    }
}

#[test]
fn no_module_imports_one_of_a_floor_above_its_own() {
    let root = root();
    let floors = floors(&fs::read_to_string(root.join("ARCHITECTURE.md")).unwrap());
    assert_eq!(breaches(&root, &floors), [""; 0]);
}

/// The modules that a file declares.
fn declared(file: &Path) -> Vec<String> {
    let source = code(&fs::read_to_string(file).unwrap());
    let modules =
        source.lines().filter_map(|line| line.trim_start_matches("pub ").strip_prefix("mod ")?.strip_suffix(';'));
    modules.map(str::to_owned).collect()
}

#[test]
fn every_module_has_its_floor() {
    let root = root();
    let floors = floors(&fs::read_to_string(root.join("ARCHITECTURE.md")).unwrap());
    let listed: BTreeSet<String> = floors.into_iter().flat_map(|floor| floor.modules).collect();
    let parts = declared(&root.join("host/src/component.rs")).into_iter().map(|part| format!("component/{part}"));
    let crates = ["config", "toolchain", "wire"].map(str::to_owned);
    assert_eq!(listed, declared(&root.join("host/src/lib.rs")).into_iter().chain(parts).chain(crates).collect());
}

/// The first sentence of a file's own comment, without links.
fn first_sentence(file: &Path) -> String {
    let source = fs::read_to_string(file).unwrap();
    let comment = source.lines().map_while(|line| line.strip_prefix("//! "));
    let comment = comment.collect::<Vec<_>>().join(" ").replace("[`", "`").replace("`]", "`");
    let ends = comment.match_indices(". ").map(|(at, _)| at);
    let ends = ends.filter(|at| comment[at + 2..].starts_with(|next: char| next.is_uppercase() || next == '`'));
    let sentence = &comment[..ends.min().unwrap_or(comment.len())];
    sentence.trim_end_matches(['.', ':']).replace('|', "\\|")
}

/// Every module of the sources has a line in the code map with its first sentence, and every line a module.
#[test]
fn the_code_map_has_every_module() {
    let root = root();
    let document = fs::read_to_string(root.join("ARCHITECTURE.md")).unwrap();
    let section = document.split("\n## Code map\n").nth(1).unwrap().split("\n## ").next().unwrap();
    let lines = section.lines().filter(|line| line.starts_with("| `"));
    let listed: BTreeSet<String> = lines.map(str::to_owned).collect();
    let mut there = BTreeSet::new();
    for crates in ["host/src", "host/wire/src", "host/config/src", "host/toolchain/src"] {
        for (path, _) in sources(&root.join(crates)) {
            let sentence = first_sentence(&path);
            let path = path.strip_prefix(root.join("host")).unwrap().display();
            there.insert(format!("| `{path}` | {sentence} |"));
        }
    }
    assert_eq!(there.symmetric_difference(&listed).collect::<Vec<_>>(), Vec::<&String>::new());
}

#[test]
fn a_breach_is_found() {
    let folder = std::env::temp_dir().join(format!("edge-relay-house-{}", std::process::id()));
    fs::create_dir_all(folder.join("host/src/low")).unwrap();
    fs::write(folder.join("host/src/low.rs"), "mod part;\nuse std::{io, fmt};\n").unwrap();
    fs::write(folder.join("host/src/low/part.rs"), "use crate::{\n    low::Own,\n    high::{Other, Third},\n};\n")
        .unwrap();
    fs::write(folder.join("host/src/high.rs"), "use crate::low;\n// use crate::top;\nuse tokio::net;\n").unwrap();
    fs::write(folder.join("host/src/top.rs"), "pub use roof::Exported;\nfn f() { crate::high::call() }\n").unwrap();
    fs::create_dir_all(folder.join("host/src/top")).unwrap();
    fs::write(folder.join("host/src/top/floor.rs"), "use crate::top::{Exported, floor::Own};\n").unwrap();
    fs::write(folder.join("host/src/top/roof.rs"), "pub struct Exported;\n").unwrap();
    let row = |module: &str, never: &[&str]| Floor {
        modules: vec![module.into()],
        never: never.iter().map(|name| (*name).into()).collect(),
    };
    let found = breaches(
        &folder,
        &[
            row("low", &[]),
            row("high", &["tokio"]),
            row("top", &["tokio"]),
            row("top/floor", &[]),
            row("top/roof", &[]),
        ],
    );
    fs::remove_dir_all(&folder).unwrap();
    assert_eq!(
        found,
        [
            "host/src/high.rs imports the crate tokio",
            "host/src/low/part.rs imports high",
            "host/src/top/floor.rs imports top/roof"
        ]
    );
}
