//! `[grants]` of a tenant's manifest, held against what the operator allows.

use std::{collections::BTreeSet, path::PathBuf};

use toml::de::DeValue;

use crate::{
    document::{Table, Value},
    grants::{Grants, Secret},
    secrets::{Secrets, Source},
};

mod folders;
mod http;

/// Most bytes of a variable's or a secret's name.
const MAX_NAME_BYTES: usize = 255;

/// Most entries of each kind: opening an instance goes through all of them.
const MAX_ENTRIES: usize = 256;

/// Reads the section. No secret may have the name of one of the `settings`. No guest may change the files in `code`,
/// which have their links followed.
pub(super) fn grants(
    mut table: Table<'_>,
    secrets: &Secrets<'_>,
    settings: &[(String, String)],
    code: &[&PathBuf],
) -> Grants {
    let mut grants = Grants {
        folders: folders::folders(bounded_entries(table.section("folders")), secrets, code),
        ..Grants::default()
    };
    let listed = table.take("http").and_then(|value| value.array("an array of hosts in quotes"));
    if let Some(value) = listed.iter().flatten().nth(MAX_ENTRIES) {
        value.problem(format!(
            "lists too many hosts; write at most {MAX_ENTRIES}, a network or *.example.com for several"
        ));
    }
    let listed = listed.iter().flatten().take(MAX_ENTRIES);
    grants.http = listed.filter_map(|value| http::destination(value, secrets)).collect();
    for (name, value) in bounded_entries(table.section("environment")) {
        if is_name(&name, &value, "a variable's name")
            && let Some(value) = variable(value, secrets, &mut grants.files)
        {
            grants.environment.push((name, value));
        }
    }
    let taken: BTreeSet<_> = settings.iter().map(|(name, _)| name.as_str()).collect();
    for (name, value) in bounded_entries(table.section("secrets")) {
        if taken.contains(name.as_str()) {
            value.problem("is the name of a setting too; rename one: guests read both through wasi:config");
        } else if is_name(&name, &value, "a secret's name") {
            let place = value.place.clone();
            if value.value.is_str() {
                place.problem(
                    "would be a secret in the manifest; write { env = \"MARKET__KEY\" } or { file = \"key\" }",
                );
            } else if let Some(secret) = secret(value, secrets, &mut grants.files) {
                grants.secrets.push((name, secret));
            }
        }
    }
    table.finish();
    grants
}

/// A table's entries, cut after [`MAX_ENTRIES`].
fn bounded_entries<'d>(table: Table<'d>) -> Vec<(String, Value<'d>)> {
    let place = table.place.clone();
    let mut entries: Vec<_> = table.entries().collect();
    if entries.len() > MAX_ENTRIES {
        place.problem(format!("has too many entries; write at most {MAX_ENTRIES}"));
        entries.truncate(MAX_ENTRIES);
    }
    entries
}

fn is_name(name: &str, value: &Value<'_>, what: &str) -> bool {
    let valid = (1..=MAX_NAME_BYTES).contains(&name.len()) && !name.contains(|c: char| c == '=' || c.is_control());
    if !valid {
        let rule = format!("write 1 to {MAX_NAME_BYTES} bytes without '=' and control characters");
        value.problem(format!("is not {what}; {rule}"));
    }
    valid
}

/// A variable of a guest's environment: its value as written, or the place of a secret.
fn variable(value: Value<'_>, secrets: &Secrets<'_>, files: &mut Vec<PathBuf>) -> Option<Secret> {
    match &value.value {
        DeValue::String(text) if text.contains('\0') => {
            value.problem("has a NUL character in it; remove it");
            None
        }
        DeValue::String(text) => Some(Secret::from(&**text)),
        _ => secret(value, secrets, files),
    }
}

/// A value from the host's environment or from a file. Problems do not repeat the value.
fn secret(value: Value<'_>, secrets: &Secrets<'_>, files: &mut Vec<PathBuf>) -> Option<Secret> {
    match Source::read(value, "{ env = \"VARIABLE\" } or { file = \"PATH\" }")? {
        Source::Env(variable) => secrets.variable(&variable),
        Source::File(file) => {
            let (secret, path) = secrets.file(&file)?;
            files.push(path);
            Some(secret)
        }
    }
}

#[cfg(test)]
#[path = "grants/tests.rs"]
mod tests;
