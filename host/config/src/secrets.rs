//! Values that a tenant's manifest takes from the host's environment and from files.

use std::{
    fs::File,
    io,
    io::Read,
    path::{Path, PathBuf},
};

use crate::{
    document::{Value, quote},
    grants::{Allowed, Secret, meet, real_path},
    held::{HeldFolder, OpenError},
    units::show_size,
};

/// Largest file with a secret in it, in bytes. Keys and certificates are smaller.
const MAX_SECRET_BYTES: u64 = 64 << 10;

/// The values of the host that one tenant may read.
pub(super) struct Secrets<'s> {
    /// `None`: its name is wrong, so that nothing can be read.
    pub(super) tenant: Option<&'s str>,
    /// The path of the tenant's own folder.
    pub(super) folder: &'s Path,
    /// The folder itself.
    pub(super) held: &'s HeldFolder,
    pub(super) allowed: &'s Allowed,
    /// Returns the value of a variable of the host's environment.
    pub(super) read: &'s dyn Fn(&str) -> Option<String>,
}

impl Secrets<'_> {
    /// The tenant's folder, links followed.
    pub(super) fn own_folder(&self) -> io::Result<PathBuf> {
        self.held.real_path()
    }

    /// Whether the tenant may have what is at a path that is not its own, with links followed. Whatever the operator
    /// lists, this is never a folder of a tenant, or one within or above it.
    pub(super) fn may_have(&self, tenant: &str, path: &Path, write: bool) -> io::Result<bool> {
        let tenants = self.folder.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if !self.allowed.has_folder(tenant, path, write) {
            return Ok(false);
        }
        let kept = [self.own_folder()?, tenants.canonicalize()?];
        Ok(!kept.into_iter().chain(linked(tenants)?).any(|kept| meet(&kept, path)))
    }

    /// An environment variable that the tenant may read: `<TENANT>__<NAME>`. `<NAME>` has no leading or double
    /// underscore, so that each variable belongs to one tenant (else `a` could read the `A__B__X` of `a--b`).
    pub(super) fn variable(&self, value: &Value<'_>) -> Option<Secret> {
        let variable = value.str()?;
        let prefix = format!("{}__", self.tenant?.to_ascii_uppercase().replace('-', "_"));
        let allowed = |rest: &str| {
            !rest.is_empty()
                && !rest.starts_with('_')
                && !rest.contains("__")
                && rest.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        };
        // A name that is not allowed is not repeated: it may be the secret itself, put in the wrong place.
        if !variable.strip_prefix(&prefix).is_some_and(allowed) {
            let rule = "letters, digits and single underscores";
            value.problem(format!(
                "a tenant reads only its own variables; name one {prefix}TOKEN or the like: {prefix} and {rule}"
            ));
            return None;
        }
        let Some(secret) = (self.read)(variable).filter(|secret| !secret.is_empty()) else {
            value.problem(format!("{variable} is not in the environment, or empty; set it where the host runs"));
            return None;
        };
        Some(Secret::from(secret.as_str()))
    }

    /// The content of a file, without the line ends after it, and the file's path. The file must be the tenant's own,
    /// or in a folder that the operator lists.
    pub(super) fn file(&self, value: &Value<'_>) -> Option<(Secret, PathBuf)> {
        let (name, tenant) = (value.str()?, self.tenant?);
        let path = self.folder.join(name);
        let opened = match self.held.file(Path::new(name)) {
            Err(OpenError::LeadsOut) => self.allowed_file(tenant, &path),
            opened => opened,
        };
        let message = match opened {
            Ok(file) => match read(file) {
                Ok(secret) => return Some((secret, path)),
                Err(error) => format!("cannot be used: {error}"),
            },
            Err(OpenError::LeadsOut) => {
                "is neither in the tenant's folder nor in one that the operator allows; put it there, or have its \
                 folder listed in relay.toml's [grants] folders"
                    .to_owned()
            }
            Err(error) => format!("cannot be read ({error}); put the secret there, for the host to read"),
        };
        value.problem(format!("{} {message}", quote(name)));
        None
    }

    /// Opens a file beneath a folder that the operator lists for this tenant.
    fn allowed_file(&self, tenant: &str, path: &Path) -> Result<File, OpenError> {
        // Where it is now. It is opened beneath the operator's folder, so it cannot lead elsewhere in the meantime.
        let real = path.canonicalize()?;
        let folder = self.allowed.folder_of(tenant, &real, false).ok_or(OpenError::LeadsOut)?;
        let name = real.strip_prefix(folder).map_err(|_| OpenError::LeadsOut)?;
        let file = HeldFolder::open(folder)?.file(name)?;
        if self.may_have(tenant, &real_path(&file)?, false)? { Ok(file) } else { Err(OpenError::LeadsOut) }
    }
}

/// The targets of the tenants' folders that are links. The others are in the folder of tenants itself.
fn linked(tenants: &Path) -> io::Result<Vec<PathBuf>> {
    let mut folders = Vec::new();
    for entry in tenants.read_dir()? {
        let entry = entry?;
        if entry.file_type()?.is_symlink() {
            // A link that leads nowhere has nothing to protect.
            folders.extend(entry.path().canonicalize().ok());
        }
    }
    Ok(folders)
}

fn read(file: File) -> io::Result<Secret> {
    let mut text = String::new();
    let read = file.take(MAX_SECRET_BYTES + 1).read_to_string(&mut text)?;
    let text = text.trim_end_matches(['\r', '\n']);
    if read as u64 > MAX_SECRET_BYTES {
        return Err(io::Error::other(format!("it is larger than {}", show_size(MAX_SECRET_BYTES))));
    }
    if text.is_empty() {
        return Err(io::Error::other("it is empty"));
    }
    Ok(Secret::from(text))
}
