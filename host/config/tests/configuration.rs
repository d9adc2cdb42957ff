//! `docs/CONFIGURATION.md` against the code: the same keys in the same tables, with the same ranges and defaults.
//!
//! The document's tables are read, and files are made of them for the code to judge. With an unknown key it lists the
//! keys that it knows, with a value out of range it names the range, and a default written out changes nothing.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
};

use config::{Invalid, MySqlUrl};

/// A key that no table has, and that is near to none.
const UNKNOWN: &str = "zzzzzzzzzzzz";

/// One key of the document.
struct Row {
    key: String,
    kind: String,
    /// A TOML value.
    default: Option<String>,
    /// As the code says it.
    range: Option<String>,
}

/// One table of a file.
struct Section {
    file: String,
    /// Its header in TOML, in brackets; empty at the top level.
    header: String,
    rows: Vec<Row>,
}

fn sections() -> Vec<Section> {
    let document = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/CONFIGURATION.md");
    let document = fs::read_to_string(document).unwrap();
    let mut sections: Vec<Section> = Vec::new();
    let mut is_open = false;
    for line in document.lines() {
        if line.starts_with("## ") || line.starts_with("### ") {
            let title = line.trim_start_matches("## ");
            let titled = title.split_once(": ").filter(|(file, _)| ["relay.toml", "tenant.toml"].contains(file));
            is_open = titled.is_some();
            if let Some((file, table)) = titled {
                let header =
                    if table == "top level" { String::new() } else { table.replace("NAME", "x").replace("PATH", "/x") };
                sections.push(Section { file: file.into(), header, rows: Vec::new() });
            }
        } else if let Some(row) = line.strip_prefix("| `").filter(|_| is_open) {
            let cells: Vec<&str> = row.split(" | ").collect();
            let code = |cell: &str| {
                let inside = cell.strip_prefix('`')?.strip_suffix('`')?;
                (!inside.contains('`')).then(|| inside.to_owned())
            };
            let range = cells.get(3).map(|cell| cell.trim_end_matches(" |").replace(['`', '"'], ""));
            let row = Row {
                key: cells[0].trim_end_matches('`').into(),
                kind: cells[1].into(),
                default: code(cells[2]),
                range: range.filter(|range| range.contains(" to ")),
            };
            sections.last_mut().unwrap().rows.push(row);
        }
    }
    assert!(sections.len() > 20, "the document has its sections");
    sections
}

/// A relay.toml, its tenants' folder with one tenant in it, and what the tenant needs; removed after the test.
struct Files(PathBuf);

impl Files {
    fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("edge-relay-configuration-{}-{number}", std::process::id()));
        fs::create_dir_all(folder.join("tenants/t/x")).unwrap();
        fs::write(folder.join("tenants/t/a.wasm"), "").unwrap();
        Self(folder)
    }

    /// What the code makes of both files: the whole configuration, or its problems.
    fn load(&self, relay: &str, tenant: &str) -> Result<String, String> {
        fs::write(self.0.join("relay.toml"), relay).unwrap();
        fs::write(self.0.join("tenants/t/tenant.toml"), tenant).unwrap();
        let loaded =
            config::load(&self.0.join("relay.toml"), |_| Ok(MySqlUrl { has_database: true, has_password: false }));
        // A tenant's mistakes count too.
        let loaded = loaded.and_then(|config| Invalid::strictly(&config).map_or(Ok(config), Err));
        // The numbers of opened files are no configuration.
        let without_descriptors = |config: String| {
            let mut parts = config.split("fd: ");
            let first = parts.next().unwrap_or_default().to_owned();
            parts.fold(first, |shown, part| shown + part.trim_start_matches(|digit: char| digit.is_ascii_digit()))
        };
        loaded.map(|config| without_descriptors(format!("{config:?}"))).map_err(|invalid| invalid.to_string())
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        _ = fs::remove_dir_all(&self.0);
    }
}

impl Section {
    /// Both files, with these lines in this table and what it requires beside them.
    fn files(&self, lines: &str) -> (String, String) {
        let required = |keys: &[(&str, &str)]| -> String {
            let missing = keys.iter().filter(|(key, _)| !lines.starts_with(&format!("{key} =")));
            missing.map(|(key, value)| format!("{key} = {value}\n")).collect()
        };
        let table = |required: String| format!("{}\n{required}{lines}\n", self.header);
        let upstream = "[[upstream]]\nname = \"u\"\nurl = \"wss://h\"\n";
        let (relay, tenant) = ("tenants = \"tenants\"\n", "name = \"t\"\n");
        let proxy = "proxy = \"http://p\"\n";
        match (&*self.file, &*self.header) {
            ("relay.toml", "") => {
                // They need the proxy.
                let proxy = if lines.starts_with("no-proxy") || lines.starts_with("proxy-") { proxy } else { "" };
                (format!("{}{proxy}{lines}\n", required(&[("tenants", "\"tenants\"")])), tenant.into())
            }
            ("relay.toml", "[proxy-credentials]") => (format!("{relay}{proxy}{}", table(String::new())), tenant.into()),
            ("relay.toml", _) => (format!("{relay}{}", table(String::new())), tenant.into()),
            (_, "") => (relay.into(), format!("{}{lines}\n", required(&[("name", "\"t\"")]))),
            (_, "[[upstream]]") => {
                let mut keys = vec![("name", "\"u\""), ("url", "\"ws://h\"")];
                // It needs the other.
                if lines.starts_with("linger") {
                    keys.push(("connect", "\"on-demand\""));
                }
                (relay.into(), format!("{tenant}{}", table(required(&keys))))
            }
            (_, header) if header.starts_with("[upstream.") => {
                (relay.into(), format!("{tenant}{upstream}{}", table(String::new())))
            }
            (_, "[components.api]") => {
                (relay.into(), format!("{tenant}{}", table(required(&[("file", "\"a.wasm\"")]))))
            }
            (_, "[[schedule]]") => {
                let keys = required(&[("name", "\"s\""), ("every", "\"1m\"")]);
                (relay.into(), format!("{tenant}[components]\njob = \"a.wasm\"\n{}", table(keys)))
            }
            (_, "[grants.folders.\"/x\"]") => {
                (relay.into(), format!("{tenant}{}", table(required(&[("path", "\"x\"")]))))
            }
            _ => (relay.into(), format!("{tenant}{}", table(String::new()))),
        }
    }

    fn title(&self) -> String {
        format!("{}: {}", self.file, if self.header.is_empty() { "top level" } else { &self.header })
    }
}

/// The keys that the code knows in a table; `None`: any key will do there.
fn known(files: &Files, section: &Section) -> Option<BTreeSet<String>> {
    let (relay, tenant) = section.files(&format!("{UNKNOWN} = 1"));
    let problems = files.load(&relay, &tenant).err()?;
    let line = problems.lines().find(|line| line.contains(UNKNOWN) && line.contains("unknown key; known here: "))?;
    Some(line.rsplit_once("known here: ")?.1.split(", ").map(str::to_owned).collect())
}

#[test]
fn the_document_has_every_key_of_every_table_and_no_other() {
    let (files, sections) = (Files::new(), sections());
    let documented: BTreeMap<_, _> = sections.iter().map(|section| (section.title(), section)).collect();
    for section in &sections {
        let title = section.title();
        let Some(known) = known(&files, section) else {
            assert!(section.rows.is_empty(), "{title}: its keys are free");
            continue;
        };
        // The operator's caps are the tenant's limits.
        let rows = match &*title {
            "relay.toml: [tenant-limits]" => &documented["tenant.toml: [limits]"].rows,
            _ => &section.rows,
        };
        let keys: BTreeSet<String> = rows.iter().map(|row| row.key.clone()).collect();
        assert_eq!(keys.len(), rows.len(), "{title}: a key stands there twice");
        assert_eq!(keys, known, "{title}: the document, and the code");
    }
    // A table that is a key of another has a section of its own.
    for section in &sections {
        for row in section.rows.iter().filter(|row| row.kind.contains("table")) {
            let own = section.header.trim_matches(['[', ']']);
            let name = if own.is_empty() { row.key.clone() } else { format!("{own}.{}", row.key) };
            let has_section = sections.iter().any(|other| {
                let header = other.header.trim_matches(['[', ']']);
                other.file == section.file && (header == name || header.starts_with(&format!("{name}.")))
            });
            assert!(has_section, "{}: {} has no section", section.title(), row.key);
        }
    }
}

#[test]
fn the_document_has_every_range() {
    let (files, mut checked) = (Files::new(), 0);
    for section in &sections() {
        for row in &section.rows {
            let beyond = match &*row.kind {
                "duration" => "\"100000d\"",
                "size" => "\"8000000GiB\"",
                "count" => "9000000000000000000",
                _ => continue,
            };
            let (relay, tenant) = section.files(&format!("{} = {beyond}", row.key));
            let Err(problems) = files.load(&relay, &tenant) else {
                assert_eq!(row.range, None, "{}: {}: the code takes more", section.title(), row.key);
                continue;
            };
            let said = problems.lines().find(|line| line.contains(&format!("{}:", row.key)) && line.contains("range"));
            let said = said.unwrap_or_else(|| panic!("{}: {}: {problems}", section.title(), row.key));
            let range = said.rsplit_once("write ").unwrap().1.replace('"', "");
            assert_eq!(
                row.range.as_deref(),
                Some(&*range),
                "{}: {}: the document, and the code",
                section.title(),
                row.key
            );
            checked += 1;
        }
    }
    assert!(checked > 40, "{checked} ranges were compared");
}

#[test]
fn a_documented_default_changes_nothing() {
    let (files, mut checked) = (Files::new(), 0);
    for section in &sections() {
        for row in &section.rows {
            let Some(default) = row.default.as_ref().filter(|_| !row.kind.contains("of tables") && row.kind != "table")
            else {
                continue;
            };
            let load = |lines: &str| {
                let (relay, tenant) = section.files(lines);
                files.load(&relay, &tenant)
            };
            let with = load(&format!("{} = {default}", row.key));
            // The same table, should it need another key beside this one.
            let without = match &*row.key {
                "linger" => load("connect = \"on-demand\""),
                "no-proxy" | "proxy-resolves" => {
                    let (relay, tenant) = section.files("");
                    files.load(&format!("proxy = \"http://p\"\n{relay}"), &tenant)
                }
                _ => load(""),
            };
            let at = format!("{}: {} = {default}", section.title(), row.key);
            if section.rows.iter().all(|other| other.key == row.key || other.default.is_some() || without.is_ok()) {
                assert_eq!(with, without, "{at}");
                checked += usize::from(without.is_ok());
            }
        }
    }
    assert!(checked > 50, "{checked} defaults were compared");
}
