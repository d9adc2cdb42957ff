//! The folder of tenants. It has a folder for each tenant, with a manifest in it.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    fmt, fs, io, iter,
    path::{Path, PathBuf},
    sync::Arc,
};

use percent_encoding::percent_decode_str;

use crate::{
    Bounds, TenantConfig,
    document::{Problem, Problems, Value, quote},
    file::{read_opened, unreadable},
    held::HeldFolder,
    manifest,
    manifest::Claims,
    names::Claim,
};

/// The manifest's name in each tenant's folder.
pub(crate) const MANIFEST: &str = "tenant.toml";

/// The folder that has the tenants' folders.
#[derive(Clone, Debug)]
pub struct TenantsFolder {
    pub path: PathBuf,
    pub bounds: Arc<Bounds>,
}

/// What the folders of tenants have in them.
#[derive(Default)]
pub struct Tenants {
    /// The tenants without mistakes.
    pub configs: Vec<TenantConfig>,
    pub refused: Vec<RefusedTenant>,
    pub passed_over: Vec<PassedOver>,
}

/// A tenant whose manifest has mistakes, or claims what another tenant has.
#[derive(Clone, Debug)]
pub struct RefusedTenant {
    pub folder: PathBuf,
    pub problems: Problems,
    /// Nothing is wrong with it but its claims.
    pub conflicts: bool,
}

/// A folder that is no tenant's.
#[derive(Clone, Debug)]
pub struct PassedOver {
    pub folder: PathBuf,
    pub why: String,
}

impl fmt::Display for PassedOver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is passed over: {}", self.folder.display(), self.why)
    }
}

impl Tenants {
    /// The mistakes of all refused tenants.
    pub fn problems(&self) -> impl Iterator<Item = &Problem> {
        self.refused.iter().flat_map(|refused| &refused.problems.0)
    }
}

impl TenantsFolder {
    /// The folder that relay.toml names. A relative path starts beside the file `relay`.
    pub(super) fn read(value: &Value<'_>, relay: &Path, bounds: Bounds) -> Option<Self> {
        let path = relay.parent().unwrap_or(Path::new("")).join(value.str()?);
        Some(Self { path, bounds: Arc::new(bounds) })
    }

    /// Reads every tenant. A problem with the folder itself is reported at the `value` that names it.
    pub(super) fn all(&self, value: &Value<'_>, secrets: &dyn Fn(&str) -> Option<String>) -> Tenants {
        match self.folders() {
            Ok(folders) => read(&folders, &self.bounds, secrets),
            Err(error) => {
                let name = quote(value.value.as_str().unwrap_or_default());
                value.problem(format!("{name} cannot be read ({error}); name the tenants' folder"));
                Tenants::default()
            }
        }
    }

    /// Reads the tenant of a folder. If the folder has no manifest, it is read as a folder of tenants. Secrets come
    /// from the process's environment.
    ///
    /// # Errors
    /// There is no tenant, neither sound nor refused.
    pub fn at(path: &Path, bounds: &Bounds) -> Result<Tenants, Problem> {
        let problem = |message| Problem { file: path.into(), line: None, key: String::new(), message };
        let folders = match manifest_in(path) {
            Ok(()) => vec![path.to_owned()],
            Err(_) => {
                folders(path).map_err(|error| problem(format!("cannot be read ({error}); name a tenant's folder")))?
            }
        };
        let tenants = read(&folders, bounds, &|variable| std::env::var(variable).ok());
        if tenants.configs.is_empty() && tenants.refused.is_empty() {
            return Err(problem(format!("has no tenants; make a folder in it with a {MANIFEST}")));
        }
        Ok(tenants)
    }

    /// Reads the tenant of a folder, with secrets from the process's environment.
    pub fn tenant(&self, folder: &Path) -> Result<TenantConfig, Problems> {
        let secrets = |variable: &str| std::env::var(variable).ok();
        let Tenants { configs, refused, passed_over } = read(&[folder.to_owned()], &self.bounds, &secrets);
        let passed_over = || {
            let why = passed_over.into_iter().next().map(|passed_over| passed_over.why).unwrap_or_default();
            let message = format!("{why}; write it, or move {} away", folder.display());
            Problems(vec![Problem { file: folder.into(), line: None, key: String::new(), message }])
        };
        let refused = || refused.into_iter().next().map_or_else(passed_over, |refused| refused.problems);
        configs.into_iter().next().ok_or_else(refused)
    }

    /// The folders that may be tenants', sorted by name. Hidden folders are left out.
    pub fn folders(&self) -> io::Result<Vec<PathBuf>> {
        folders(&self.path)
    }

    /// The manifest of the tenant in a folder.
    pub fn manifest(folder: &Path) -> PathBuf {
        folder.join(MANIFEST)
    }

    /// Why a folder is no tenant's. `None`: it has a manifest.
    pub fn passed_over(folder: &Path) -> Option<PassedOver> {
        manifest_in(folder).err().map(|why| PassedOver { folder: folder.into(), why })
    }
}

/// Checks that a folder has a manifest, which need not be readable. `Err` says why there is none.
fn manifest_in(folder: &Path) -> Result<(), String> {
    match TenantsFolder::manifest(folder).symlink_metadata() {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(format!("it has no {MANIFEST}")),
        Err(error) => Err(format!("it cannot be read ({error})")),
    }
}

fn folders(path: &Path) -> io::Result<Vec<PathBuf>> {
    let mut folders = Vec::new();
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        // Follows links: orchestrators mount folders as links.
        if !entry.file_name().as_encoded_bytes().starts_with(b".") && entry.path().is_dir() {
            folders.push(entry.path());
        }
    }
    folders.sort();
    Ok(folders)
}

/// Opens a tenant's folder and reads its manifest. The folder is held while it is read, so that all of the tenant's
/// files are of this folder, even if its path leads to another one meanwhile.
fn open(folder: &Path, file: &Path) -> Result<(HeldFolder, String), Problem> {
    match HeldFolder::open(folder) {
        Ok(held) => {
            let text = read_opened(file, held.file(Path::new(MANIFEST)))?;
            Ok((held, text))
        }
        Err(error) => Err(unreadable(file, &error)),
    }
}

fn read(folders: &[PathBuf], bounds: &Bounds, secrets: &dyn Fn(&str) -> Option<String>) -> Tenants {
    let mut tenants = Tenants::default();
    let mut sound = Vec::new();
    let mut refused = Vec::new();
    for folder in folders {
        if let Some(passed_over) = TenantsFolder::passed_over(folder) {
            tenants.passed_over.push(passed_over);
            continue;
        }
        let file = TenantsFolder::manifest(folder);
        let (held, text) = match open(folder, &file) {
            Ok(opened) => opened,
            Err(problem) => {
                refused.push((folder, Claims::default(), vec![problem]));
                continue;
            }
        };
        match manifest::read(&text, &file, &held, bounds, secrets) {
            (claims, Ok(config)) => sound.push((folder, claims, config)),
            (claims, Err(Problems(problems))) => refused.push((folder, claims, problems)),
        }
    }
    // What a sound tenant claims is its own before anything that a refused one claims.
    let mut claimed = Claimed::default();
    let granted: Vec<_> =
        sound.iter().map(|(_, _, config)| granted(config, sound.iter().map(|(_, _, other)| other))).collect();
    for ((folder, claims, config), granted) in sound.into_iter().zip(granted) {
        let mut problems = claimed.by(claims, &TenantsFolder::manifest(folder));
        problems.extend(granted);
        match problems {
            problems if problems.is_empty() => tenants.configs.push(config),
            problems => {
                let problems = Problems(problems);
                tenants.refused.push(RefusedTenant { folder: folder.clone(), problems, conflicts: true });
            }
        }
    }
    for (folder, claims, mut problems) in refused {
        problems.extend(claimed.by(claims, &TenantsFolder::manifest(folder)));
        let problems = Problems(problems);
        tenants.refused.push(RefusedTenant { folder: folder.clone(), problems, conflicts: false });
    }
    tenants.refused.sort_by(|one, other| one.folder.cmp(&other.folder));
    tenants
}

/// A problem if a tenant's folder is where another tenant's guests may read or write.
fn granted<'t>(config: &TenantConfig, mut all: impl Iterator<Item = &'t TenantConfig>) -> Option<Problem> {
    let other = all.find(|other| other.folder != config.folder && config.folder_granted_to(other).is_some())?;
    let message = format!(
        "is, with links followed, {}, where the guests of {} have a folder; move one of them away",
        config.real_folder.display(),
        other.folder.display()
    );
    Some(Problem { file: config.folder.clone(), line: None, key: String::new(), message })
}

/// What tenants have claimed for themselves alone, and in which file.
#[derive(Default)]
struct Claimed {
    names: BTreeMap<String, PathBuf>,
    /// By host; an empty one stands for any. Then by path, decoded.
    paths: BTreeMap<String, BTreeMap<String, PathBuf>>,
}

impl Claimed {
    /// Returns a problem for each thing that the tenant of `file` claims and another tenant has already. If there is
    /// none, records its name, and its path on each host.
    fn by(&mut self, claims: Claims, file: &Path) -> Vec<Problem> {
        let Claims { name, path, hosts } = claims;
        let mut problems = Vec::new();
        if let Some(Claim { value, line }) = &name
            && let Some(first) = self.names.get(value)
        {
            problems.push(claimed(&format!("{} is also the name", quote(value)), "name", first, *line, file));
        }
        let any = path.iter().map(|path| Claim { value: String::new(), line: path.line }).collect();
        let (key, hosts) = if hosts.is_empty() { ("path", any) } else { ("hosts", hosts) };
        let pairs = || hosts.iter().zip(iter::repeat(&path)).filter_map(|(host, path)| Some((host, path.as_ref()?)));
        for (host, path) in pairs() {
            let (shown, plain) = (format!("{}{}", host.value, path.value), decoded(&path.value));
            if let Some((other, first)) = self.paths.get(&host.value).and_then(|paths| meeting(paths, &plain)) {
                let is = if *other == plain {
                    format!("{} is also the path", quote(&shown))
                } else {
                    format!("{} overlaps {other:?}, which is the path", quote(&shown))
                };
                problems.push(claimed(&is, key, first, host.line, file));
            }
        }
        if problems.is_empty() {
            self.names.extend(name.map(|name| (name.value, file.into())));
            for (host, path) in pairs() {
                self.paths
                    .entry(host.value.clone())
                    .or_default()
                    .insert(decoded(&path.value).into_owned(), file.into());
            }
        }
        problems
    }
}

fn claimed(is: &str, key: &str, first: &Path, line: Option<usize>, file: &Path) -> Problem {
    let message = format!("{is} in {}; give each tenant its own", first.display());
    Problem { file: file.into(), line, key: key.into(), message }
}

/// The claimed path that overlaps `path`, if there is one: see [`meet`].
fn meeting<'p>(paths: &'p BTreeMap<String, PathBuf>, path: &str) -> Option<(&'p String, &'p PathBuf)> {
    let above = path.match_indices('/').skip(1).filter_map(|(at, _)| paths.get_key_value(path.get(..at)?)).next();
    let beneath =
        || paths.range(format!("{path}/")..).next().filter(|(other, _)| other.starts_with(&format!("{path}/")));
    paths.get_key_value(path).or(above).or_else(beneath)
}

/// A path as a proxy may decode it.
fn decoded(path: &str) -> Cow<'_, str> {
    percent_decode_str(path).decode_utf8_lossy()
}

/// Whether two paths overlap: they are the same, or one is beneath the other. Only `/` overlaps no other path: its
/// tenant has all that no other tenant claims. Paths are compared as proxies may decode them.
pub fn meet(one: &str, other: &str) -> bool {
    let [one, other] = [one, other].map(decoded);
    let beneath =
        |path: &str, other: &str| other != "/" && path.strip_prefix(other).is_some_and(|rest| rest.starts_with('/'));
    one == other || beneath(&one, &other) || beneath(&other, &one)
}
