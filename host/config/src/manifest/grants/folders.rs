//! Folders that a manifest names: `"/data" = "data"`, `"/shared" = { path = "/srv/prices", write = true }`.

use std::{
    io,
    path::{Component, Path, PathBuf},
};

use crate::{
    document::{Value, quote},
    grants::{Folder, is_no_proc},
    secrets::Secrets,
};

pub(super) fn folders(entries: Vec<(String, Value<'_>)>, secrets: &Secrets<'_>, code: &[&PathBuf]) -> Vec<Folder> {
    entries.into_iter().filter_map(|(guest, value)| folder(guest, value, secrets, code)).collect()
}

fn folder(guest: String, value: Value<'_>, secrets: &Secrets<'_>, code: &[&PathBuf]) -> Option<Folder> {
    let named = is_guest_path(&guest);
    if !named {
        value.problem("is not a path that guests can have; write for example \"/data\", without '.', '..' or '//'");
    }
    let (path, write) = if value.value.is_str() {
        (value, false)
    } else {
        let mut table = value.table("a folder in quotes, or { path = \"data\", write = true }")?;
        let path = table.require("path", "path = \"data\"");
        let write = table.take("write").and_then(|value| value.flag()).unwrap_or(false);
        table.finish();
        (path?, write)
    };
    let text = path.str()?;
    match open(text, guest, write, secrets, code) {
        Ok(folder) => folder.filter(|_| named),
        Err(message) => {
            path.problem(format!("{} {message}", quote(text)));
            None
        }
    }
}

/// Whether a guest can have this path: it is absolute and plain.
fn is_guest_path(path: &str) -> bool {
    let plain = |part: &str| !part.is_empty() && part != "." && part != ".." && !part.contains(char::is_control);
    path.strip_prefix('/').is_some_and(|rest| rest.split('/').all(plain))
}

/// Opens a folder, then checks where it is, so that guests get the folder that was checked. `Ok(None)`: the tenant's
/// name is not known, so nothing can be checked.
fn open(
    text: &str,
    guest: String,
    write: bool,
    secrets: &Secrets<'_>,
    code: &[&PathBuf],
) -> Result<Option<Folder>, String> {
    let Some(tenant) = secrets.tenant else { return Ok(None) };
    let is_own = !Path::new(text).is_absolute();
    let inside = |part: Component<'_>| matches!(part, Component::Normal(_) | Component::CurDir);
    if is_own && !Path::new(text).components().all(inside) {
        return Err("is not within the tenant's folder; write for example \"data\"".into());
    }
    let unreadable = |error: io::Error| match is_no_proc(&error) {
        true => format!("cannot be opened: {error}"),
        false => format!("cannot be opened ({error}); make the folder, for the host to read"),
    };
    let own = secrets.own_folder().map_err(unreadable)?;
    let folder = Folder::open(&secrets.folder.join(text), guest, write).map_err(unreadable)?;
    if is_own {
        if folder.path == own {
            return Err("is the tenant's own folder, which has its manifest and its code; name one within it".into());
        }
        if !folder.path.starts_with(&own) {
            return Err("leads out of the tenant's folder; put the folder itself there".into());
        }
        if write && !secrets.allowed.write {
            return Err(
                "is not to be written: relay.toml does not say so; remove `write`, or have the operator write \
                        `write = true` in its [grants]"
                    .into(),
            );
        }
    } else if !secrets.may_have(tenant, &folder.path, write).map_err(unreadable)? {
        let to = if write { "to be written" } else { "to be read" };
        return Err(format!("is not for this tenant {to}; have the operator list it in relay.toml's [grants] folders"));
    }
    if let Some(file) = code.iter().find(|file| file.starts_with(&folder.path)) {
        let name = file.file_name().unwrap_or_default().display();
        return Err(format!("has {name} in it, which the tenant is made of; put that elsewhere"));
    }
    Ok(Some(folder))
}
