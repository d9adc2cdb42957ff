//! The folder of tenants: a folder each, with a manifest in it.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    Bounds, TenantConfig,
    manifest::{self, Claims},
    relay::read_file,
    units::Claim,
    walk::{Problem, Problems, Value, quote},
};

/// The file each tenant's folder has.
const MANIFEST: &str = "tenant.toml";

/// Where tenants are.
#[derive(Clone, Debug)]
pub struct TenantsFolder {
    pub path: PathBuf,
    pub bounds: Arc<Bounds>,
}

/// The tenants read so far, and what was wrong with the others.
#[derive(Default)]
pub struct Tenants {
    pub configs: Vec<TenantConfig>,
    pub problems: Vec<Problem>,
}

impl TenantsFolder {
    /// The folder that relay.toml names: beside the file `relay`, if it is not absolute.
    pub(super) fn read(value: &Value<'_>, relay: &Path, bounds: Bounds) -> Option<Self> {
        let path = relay.parent().unwrap_or(Path::new("")).join(value.str()?);
        Some(Self { path, bounds: Arc::new(bounds) })
    }

    /// Reads every tenant; problems with the folder itself are of the `value` that names it.
    pub(super) fn all(&self, value: &Value<'_>, secrets: &dyn Fn(&str) -> Option<String>) -> Tenants {
        let folders = match self.folders() {
            Ok(folders) => folders,
            Err(error) => {
                let name = quote(value.value.as_str().unwrap_or_default());
                value.problem(format!("{name} cannot be read ({error}); name the tenants' folder"));
                return Tenants::default();
            }
        };
        if folders.is_empty() {
            let name = quote(value.value.as_str().unwrap_or_default());
            value.problem(format!("{name} has no tenants; make a folder in it with a {MANIFEST}"));
        }
        read(&folders, &self.bounds, secrets)
    }

    /// Reads the tenant of a folder, or, if it has no manifest, the tenants of a folder of tenants, with secrets from the
    /// process's environment: those that nothing is wrong with, and what is wrong with the others.
    pub fn at(path: &Path, bounds: &Bounds) -> (Vec<TenantConfig>, Problems) {
        let problem = |message| {
            let problem = Problem { file: path.into(), line: None, key: String::new(), message };
            (Vec::new(), Problems(vec![problem]))
        };
        let folders = if Self::manifest(path).exists() {
            vec![path.to_owned()]
        } else {
            match folders(path) {
                Ok(folders) => folders,
                Err(error) => return problem(format!("cannot be read ({error}); name a tenant's folder")),
            }
        };
        if folders.is_empty() {
            return problem(format!("has no tenants; make a folder in it with a {MANIFEST}"));
        }
        let Tenants { configs, problems } = read(&folders, bounds, &|variable| std::env::var(variable).ok());
        (configs, Problems(problems))
    }

    /// Reads the tenant of a folder, with secrets from the process's environment.
    pub fn tenant(&self, folder: &Path) -> Result<TenantConfig, Problems> {
        let secrets = |variable: &str| std::env::var(variable).ok();
        let Tenants { mut configs, problems } = read(&[folder.to_owned()], &self.bounds, &secrets);
        configs.pop().filter(|_| problems.is_empty()).ok_or(Problems(problems))
    }

    /// The tenants' folders: those that are not hidden, by name.
    pub fn folders(&self) -> io::Result<Vec<PathBuf>> {
        folders(&self.path)
    }

    /// The manifest of the tenant in a folder.
    pub fn manifest(folder: &Path) -> PathBuf {
        folder.join(MANIFEST)
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

fn read(folders: &[PathBuf], bounds: &Bounds, secrets: &dyn Fn(&str) -> Option<String>) -> Tenants {
    let mut tenants = Tenants::default();
    let mut claimed = Claimed::default();
    for folder in folders {
        let file = TenantsFolder::manifest(folder);
        if !file.exists() {
            let message = format!("is missing; write it, or move {} away", folder.display());
            tenants.problems.push(Problem { file, line: None, key: String::new(), message });
            continue;
        }
        let text = match read_file(&file) {
            Ok(text) => text,
            Err(problem) => {
                tenants.problems.push(problem);
                continue;
            }
        };
        let (claims, config) = manifest::read(&text, &file, bounds, secrets);
        match config {
            Ok(config) => tenants.configs.push(config),
            Err(Problems(problems)) => tenants.problems.extend(problems),
        }
        tenants.problems.extend(claimed.by(claims, &file));
    }
    tenants
}

/// What tenants have claimed for themselves alone, and in which file.
#[derive(Default)]
struct Claimed {
    names: BTreeMap<String, PathBuf>,
    paths: BTreeMap<String, PathBuf>,
}

impl Claimed {
    /// Records that the tenant of `file` claims a name and a path, on each of its hosts; problems if others already have.
    fn by(&mut self, claims: Claims, file: &Path) -> Vec<Problem> {
        let Claims { name, path, hosts } = claims;
        let mut problems = Vec::new();
        problems.extend(name.and_then(|name| claim("name", name, file, &mut self.names)));
        if let Some(path) = path {
            if hosts.is_empty() {
                problems.extend(claim("path", path, file, &mut self.paths));
            } else {
                let on = |host: Claim| Claim { value: format!("{}{}", host.value, path.value), line: host.line };
                problems.extend(hosts.into_iter().filter_map(|host| claim("host", on(host), file, &mut self.paths)));
            }
        }
        problems
    }
}

fn claim(key: &str, claim: Claim, file: &Path, claimed: &mut BTreeMap<String, PathBuf>) -> Option<Problem> {
    let Claim { value, line } = claim;
    if let Some(first) = claimed.get(&value) {
        let message = format!("{} is also the {key} in {}; give each tenant its own", quote(&value), first.display());
        return Some(Problem { file: file.into(), line, key: key.into(), message });
    }
    claimed.insert(value, file.into());
    None
}
