//! The folder of tenants. It has a folder for each tenant, with a manifest in it.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    Bounds, TenantConfig,
    document::{Problem, Problems, Value, quote},
    file::read_file,
    manifest,
    manifest::Claims,
    names::Claim,
};

/// The manifest's name in each tenant's folder.
const MANIFEST: &str = "tenant.toml";

/// The folder that has the tenants' folders.
#[derive(Clone, Debug)]
pub struct TenantsFolder {
    pub path: PathBuf,
    pub bounds: Arc<Bounds>,
}

/// The tenants read so far, and what was wrong with the others.
#[derive(Default)]
pub(super) struct Tenants {
    pub(super) configs: Vec<TenantConfig>,
    pub(super) problems: Vec<Problem>,
}

impl TenantsFolder {
    /// The folder that relay.toml names. A relative path starts beside the file `relay`.
    pub(super) fn read(value: &Value<'_>, relay: &Path, bounds: Bounds) -> Option<Self> {
        let path = relay.parent().unwrap_or(Path::new("")).join(value.str()?);
        Some(Self { path, bounds: Arc::new(bounds) })
    }

    /// Reads every tenant. Problems with the folder itself are reported at the `value` that names it.
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

    /// Reads the tenant of a folder. If the folder has no manifest, it is read as a folder of tenants. Secrets come
    /// from the process's environment. Returns the tenants without mistakes, and the mistakes of the others.
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

    /// The tenants' folders, sorted by name. Hidden folders are left out.
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
    /// By host. An empty one stands for any.
    paths: BTreeMap<String, BTreeMap<String, PathBuf>>,
}

impl Claimed {
    /// Records the name, and the path on each host, that the tenant of `file` claims. Returns a problem for each that
    /// another tenant has already.
    fn by(&mut self, claims: Claims, file: &Path) -> Vec<Problem> {
        let Claims { name, path, hosts } = claims;
        let mut problems = Vec::new();
        if let Some(Claim { value, line }) = name {
            match self.names.get(&value) {
                Some(first) => {
                    problems.push(claimed(&format!("{} is also the name", quote(&value)), "name", first, line, file));
                }
                None => drop(self.names.insert(value, file.into())),
            }
        }
        let Some(path) = path else { return problems };
        let any = [Claim { value: String::new(), line: path.line }];
        let (key, hosts) = if hosts.is_empty() { ("path", &any[..]) } else { ("hosts", &hosts[..]) };
        for host in hosts {
            let paths = self.paths.entry(host.value.clone()).or_default();
            let shown = format!("{}{}", host.value, path.value);
            match meeting(paths, &path.value) {
                Some((other, first)) => {
                    let is = if *other == path.value {
                        format!("{} is also the path", quote(&shown))
                    } else {
                        format!("{} overlaps {other:?}, which is the path", quote(&shown))
                    };
                    problems.push(claimed(&is, key, first, host.line, file));
                }
                None => drop(paths.insert(path.value.clone(), file.into())),
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
    let beneath = || paths.range(format!("{path}/")..).next().filter(|(other, _)| meet(other, path));
    paths.get_key_value(path).or(above).or_else(beneath)
}

/// Whether two paths overlap: they are the same, or one is beneath the other. Only `/` overlaps no other path: its
/// tenant has all that no other tenant claims.
pub fn meet(one: &str, other: &str) -> bool {
    let beneath =
        |path: &str, other: &str| other != "/" && path.strip_prefix(other).is_some_and(|rest| rest.starts_with('/'));
    one == other || beneath(one, other) || beneath(other, one)
}
