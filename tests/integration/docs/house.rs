//! The floors of the house: no module imports one of a floor above its own.
//!
//! The table "Never imports" of ARCHITECTURE.md lists the floors. A module may import the modules of the rows above its
//! own, and nothing else of the host. A row's second column names crates that its modules never import.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// The repository's folder.
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

/// Returns the sources of a module or a crate without tests, each with its path.
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

/// Returns a source without its comments and its tests.
fn code(source: &str) -> String {
    let before_tests = source.split("#[cfg(test)]\nmod tests {").next().unwrap();
    let before_tests = before_tests.split("#[cfg(test)]\n#[allow").next().unwrap();
    let lines = before_tests.lines().map(|line| line.split_once("//").map_or(line, |(code, _)| code));
    lines.collect::<Vec<_>>().join("\n")
}

/// Returns the names that follow `PREFIX::` in a source, also in braces: `crate::{channel::Log, wire}` has `channel`
/// and `wire`.
fn names_after(prefix: &str, source: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for (at, found) in source.match_indices(prefix) {
        let rest = &source[at + found.len()..];
        match rest.strip_prefix('{') {
            Some(group) => {
                let (mut depth, mut begins) = (0, true);
                for (index, character) in group.char_indices() {
                    match character {
                        '{' => depth += 1,
                        '}' if depth == 0 => break,
                        '}' => depth -= 1,
                        ',' if depth == 0 => begins = true,
                        _ if character.is_whitespace() => {}
                        _ if begins && depth == 0 => {
                            names.insert(identifier(&group[index..]));
                            begins = false;
                        }
                        _ => {}
                    }
                }
            }
            None => drop(names.insert(identifier(rest))),
        }
    }
    names
}

fn identifier(text: &str) -> String {
    text.chars().take_while(|character| character.is_alphanumeric() || *character == '_').collect()
}

/// Whether a source has a path that begins with this crate.
fn imports_crate(name: &str, source: &str) -> bool {
    let path = format!("{name}::");
    source.match_indices(&path).any(|(at, _)| {
        let before = source[..at].chars().next_back();
        !before.is_some_and(|before| before.is_alphanumeric() || matches!(before, '_' | ':'))
    })
}

fn breaches(root: &Path, floors: &[Floor]) -> Vec<String> {
    let mut breaches = Vec::new();
    let rank: BTreeMap<&str, usize> = floors
        .iter()
        .enumerate()
        .flat_map(|(rank, floor)| floor.modules.iter().map(move |name| (&**name, rank)))
        .collect();
    for (own, floor) in floors.iter().enumerate() {
        for module in &floor.modules {
            let is_crate = root.join("host").join(module).join("Cargo.toml").is_file();
            let at =
                if is_crate { root.join("host").join(module).join("src") } else { root.join("host/src").join(module) };
            let sources = sources(&at);
            assert!(!sources.is_empty(), "{module} of the table is not a module");
            for (path, source) in sources {
                let path = path.strip_prefix(root).unwrap().display();
                for name in names_after("crate::", &source) {
                    let is_above = rank.get(&*name).is_some_and(|rank| *rank >= own);
                    if !is_crate && is_above && name != *module {
                        breaches.push(format!("{path} imports {name}"));
                    }
                }
                let never = floor.never.iter().filter(|name| imports_crate(name, &source));
                breaches.extend(never.map(|name| format!("{path} imports the crate {name}")));
            }
        }
    }
    breaches
}

#[test]
fn no_module_imports_one_of_a_floor_above_its_own() {
    let root = root();
    let floors = floors(&fs::read_to_string(root.join("ARCHITECTURE.md")).unwrap());
    assert_eq!(breaches(&root, &floors), [""; 0]);
}

#[test]
fn every_module_has_its_floor() {
    let root = root();
    let floors = floors(&fs::read_to_string(root.join("ARCHITECTURE.md")).unwrap());
    let listed: BTreeSet<String> = floors.into_iter().flat_map(|floor| floor.modules).collect();
    let modules = code(&fs::read_to_string(root.join("host/src/lib.rs")).unwrap());
    let modules =
        modules.lines().filter_map(|line| line.trim_start_matches("pub ").strip_prefix("mod ")?.strip_suffix(';'));
    let crates = ["config", "toolchain", "wire"];
    assert_eq!(listed, modules.chain(crates).map(str::to_owned).collect());
}

/// Every module of the sources has a line in the code map, and every line has a module.
#[test]
fn the_code_map_has_every_module() {
    let root = root();
    let document = fs::read_to_string(root.join("ARCHITECTURE.md")).unwrap();
    let section = document.split("\n## Code map\n").nth(1).unwrap().split("\n## ").next().unwrap();
    let listed: BTreeSet<String> = section
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once("` |").map(|(path, _)| path.to_owned()))
        .collect();
    let mut there = BTreeSet::new();
    for crates in ["host/src", "host/wire/src", "host/config/src", "host/toolchain/src"] {
        for (path, _) in sources(&root.join(crates)) {
            there.insert(path.strip_prefix(&root).unwrap().strip_prefix("host").unwrap().display().to_string());
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
    fs::write(folder.join("host/src/top.rs"), "fn f() { crate::high::call() }\n").unwrap();
    let row = |module: &str, never: &[&str]| Floor {
        modules: vec![module.into()],
        never: never.iter().map(|name| (*name).into()).collect(),
    };
    let found = breaches(&folder, &[row("low", &[]), row("high", &["tokio"]), row("top", &["tokio"])]);
    fs::remove_dir_all(&folder).unwrap();
    assert_eq!(found, ["host/src/low/part.rs imports high", "host/src/high.rs imports the crate tokio"]);
}
