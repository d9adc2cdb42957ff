//! Values that a tenant's manifest takes from the host's environment and from files.

use std::{
    fmt,
    fs::File,
    io,
    io::Read,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    document::{Value, quote},
    grants::{Allowed, Secret, meet, real_path},
    held::{FolderId, HeldFolder, OpenError},
    units::show_size,
};

/// Largest file with a secret in it, in bytes.
const MAX_SECRET_BYTES: u64 = 64 << 10;
/// Largest file with certificates in it. A system's bundle has a quarter of that.
const MAX_PEM_BYTES: u64 = 1 << 20;

/// The values of the host that one tenant may read.
pub(super) struct Secrets<'s> {
    /// `None`: its name is wrong, so that nothing can be read.
    pub(super) tenant: Option<&'s str>,
    /// The path of the tenant's own folder.
    pub(super) folder: &'s Path,
    /// The folder itself.
    pub(super) held: &'s HeldFolder,
    pub(super) allowed: &'s Arc<Allowed>,
    /// Returns the value of a variable of the host's environment.
    pub(super) read: &'s dyn Fn(&str) -> Option<String>,
}

/// Where a value comes from: `{ env = "VARIABLE" }` or `{ file = "PATH" }`.
pub(super) enum Source<'d> {
    Env(Value<'d>),
    File(Value<'d>),
}

impl<'d> Source<'d> {
    /// Reads the table. `wanted` says what may be written.
    pub(super) fn read(value: Value<'d>, wanted: &str) -> Option<Self> {
        let place = value.place.clone();
        let mut table = value.table(wanted)?;
        let (variable, file) = (table.take("env"), table.take("file"));
        table.finish();
        match (variable, file) {
            (Some(variable), None) => Some(Self::Env(variable)),
            (None, Some(file)) => Some(Self::File(file)),
            _ => {
                place.problem("names no value, or two; write either env or file");
                None
            }
        }
    }
}

impl Secrets<'_> {
    /// The tenant's folder, links followed.
    pub(super) fn own_folder(&self) -> io::Result<PathBuf> {
        self.held.real_path()
    }

    /// Whether the tenant may have what is at a path that is not its own, with links followed. Whatever the operator
    /// lists, this is never a folder of a tenant, or one within or above it.
    pub(super) fn may_have(&self, tenant: &str, path: &Path, write: bool) -> io::Result<bool> {
        may_have(self.folder, self.held, self.allowed, tenant, path, write)
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
        self.kept_file(value).map(|(secret, file)| (secret, file.path().to_owned()))
    }

    /// The same, and the file to read again later.
    pub(super) fn kept_file(&self, value: &Value<'_>) -> Option<(Secret, SecretFile)> {
        self.kept(value, MAX_SECRET_BYTES, secret)
    }

    /// The content of a file of certificates or with a key, and the file to read again later.
    pub(super) fn kept_pem(&self, value: &Value<'_>) -> Option<(Vec<u8>, SecretFile)> {
        self.kept(value, MAX_PEM_BYTES, Ok)
    }

    fn kept<T>(
        &self,
        value: &Value<'_>,
        most: u64,
        understand: impl FnOnce(Vec<u8>) -> io::Result<T>,
    ) -> Option<(T, SecretFile)> {
        let (name, tenant) = (value.str()?, self.tenant?);
        let place = FilePlace {
            tenant: tenant.to_owned(),
            folder: self.folder.to_owned(),
            home: self.held.id().ok()?,
            most,
            path: self.folder.join(name),
            name: PathBuf::from(name),
            allowed: Arc::clone(self.allowed),
        };
        let message = match place.open(self.held) {
            Ok(file) => match read(file, most).and_then(understand) {
                Ok(content) => return Some((content, SecretFile(Arc::new(place)))),
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
}

/// A file of a tenant's that is read whenever it is needed.
#[derive(Clone)]
pub struct SecretFile(Arc<FilePlace>);

struct FilePlace {
    tenant: String,
    /// The path of the tenant's folder, and the folder that it led to.
    folder: PathBuf,
    home: FolderId,
    /// Most bytes of the file.
    most: u64,
    path: PathBuf,
    /// As the manifest names it.
    name: PathBuf,
    allowed: Arc<Allowed>,
}

impl SecretFile {
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// Its content now.
    ///
    /// # Errors
    /// Among others, the path of the tenant's folder leads to another folder by now: what is there may be somebody
    /// else's.
    pub fn read(&self) -> io::Result<Vec<u8>> {
        let held = HeldFolder::open(&self.0.folder)?;
        if held.id()? != self.0.home {
            return Err(io::Error::other("the tenant's folder was exchanged, and is not loaded yet"));
        }
        read(self.0.open(&held)?, self.0.most)
    }
}

impl PartialEq for SecretFile {
    fn eq(&self, other: &Self) -> bool {
        let place = |file: &Self| (file.0.home, file.0.most);
        (&self.0.tenant, &self.0.path) == (&other.0.tenant, &other.0.path) && place(self) == place(other)
    }
}

impl Eq for SecretFile {}

impl fmt::Debug for SecretFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SecretFile").field(&self.0.path).finish()
    }
}

impl FilePlace {
    /// Opens it in the tenant's folder, or else in one that the operator lists.
    fn open(&self, held: &HeldFolder) -> Result<File, OpenError> {
        match held.file(&self.name) {
            Err(OpenError::LeadsOut) => self.open_allowed(held),
            opened => opened,
        }
    }

    /// Opens it beneath a folder that the operator lists for this tenant.
    fn open_allowed(&self, held: &HeldFolder) -> Result<File, OpenError> {
        // Where it is now. It is opened beneath the operator's folder, so it cannot lead elsewhere in the meantime.
        let real = self.path.canonicalize()?;
        let folder = self.allowed.folder_of(&self.tenant, &real, false).ok_or(OpenError::LeadsOut)?;
        let name = real.strip_prefix(folder).map_err(|_| OpenError::LeadsOut)?;
        let file = HeldFolder::open(folder)?.file(name)?;
        let may_have = may_have(&self.folder, held, &self.allowed, &self.tenant, &real_path(&file)?, false)?;
        if may_have { Ok(file) } else { Err(OpenError::LeadsOut) }
    }
}

/// Whether a tenant may have what is at `path`, which is not its own: see [`Secrets::may_have`].
fn may_have(
    folder: &Path,
    held: &HeldFolder,
    allowed: &Allowed,
    tenant: &str,
    path: &Path,
    write: bool,
) -> io::Result<bool> {
    let tenants = folder.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !allowed.has_folder(tenant, path, write) {
        return Ok(false);
    }
    let kept = [held.real_path()?, tenants.canonicalize()?];
    Ok(!kept.into_iter().chain(linked(tenants)?).any(|kept| meet(&kept, path)))
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

fn read(file: File, most: u64) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    if file.take(most + 1).read_to_end(&mut content)? as u64 > most {
        return Err(io::Error::other(format!("it is larger than {}", show_size(most))));
    }
    Ok(content)
}

/// The secret that a file holds: its text without the line ends after it.
pub fn secret(content: Vec<u8>) -> io::Result<Secret> {
    let text = String::from_utf8(content).map_err(|_| io::Error::other("it is not UTF-8"))?;
    let text = text.trim_end_matches(['\r', '\n']);
    if text.is_empty() {
        return Err(io::Error::other("it is empty"));
    }
    Ok(Secret::from(text))
}
