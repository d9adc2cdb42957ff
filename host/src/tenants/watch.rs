//! The tenants' folder, looked at: what has come, changed and gone.
//!
//! A tenant's manifest and the files that it names are told apart by device, inode, size and times. A change counts once
//! it has stood from one look to the next, so that nothing is read half written; at SIGHUP all that is other than what runs
//! counts at once, what was refused included. What was refused is looked at again when its folder changes too: a file that its
//! manifest names may have come.

use std::{
    collections::BTreeMap,
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use config::{TenantConfig, TenantsFolder};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    task::{JoinHandle, spawn_blocking},
    time::{Instant, Interval, MissedTickBehavior, interval_at},
};

/// Between two looks: a thousand tenants take some milliseconds.
const INTERVAL: Duration = Duration::from_secs(1);

/// The state of a tenant's files; those that are not there count too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fingerprint {
    /// Of the folder itself: what comes into it may be what a refused manifest waits for.
    folder: Option<FileState>,
    manifest: Option<FileState>,
    /// Those that the manifest names.
    files: Vec<Option<FileState>>,
}

/// Of one file. What keeps its time of writing, as copies may, has another time of change.
#[derive(Clone, Debug, PartialEq, Eq)]
struct FileState {
    device: u64,
    inode: u64,
    size: u64,
    written: (i64, i64),
    changed: (i64, i64),
}

/// What a look has found.
#[derive(Debug, PartialEq, Eq)]
pub enum FolderChange {
    /// A tenant is there that was not, or is another.
    Changed(PathBuf, Fingerprint),
    Gone(PathBuf),
}

/// How a change has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Taken,
    Refused,
    /// Refused for what another tenant has.
    Conflict,
}

pub struct Watch {
    folder: TenantsFolder,
    hangup: Signal,
    looks: Interval,
    /// SIGHUP has come, and no look since.
    at_once: bool,
    /// A look under way: it outlives whoever waited for it.
    looking: Option<JoinHandle<io::Result<Found>>>,
    known: BTreeMap<PathBuf, Known>,
}

type Found = BTreeMap<PathBuf, Fingerprint>;

/// What is known of a tenant's folder.
#[derive(Clone, Default)]
struct Known {
    /// The files that its manifest names.
    files: Vec<PathBuf>,
    /// Of what was last taken into service, or refused.
    settled: Option<Fingerprint>,
    refused: bool,
    /// It was refused for what another tenant has.
    conflicts: bool,
    /// As it was found at the last look, if that was something new.
    seen: Option<Fingerprint>,
    /// It is looked into now.
    busy: bool,
    missing: bool,
}

impl Watch {
    /// Of tenants that are about to run. Their manifests have been read, their code has not: what is written while it is
    /// loaded is a change.
    pub fn new(folder: TenantsFolder, tenants: &[TenantConfig]) -> io::Result<Self> {
        let known = tenants.iter().map(|config| {
            let files = config.files();
            let settled = Some(Fingerprint::of(&config.folder, &files));
            (config.folder.clone(), Known { files, settled, ..Known::default() })
        });
        let mut looks = interval_at(Instant::now() + INTERVAL, INTERVAL);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let hangup = signal(SignalKind::hangup())?;
        Ok(Self { folder, hangup, looks, at_once: false, looking: None, known: known.collect() })
    }

    pub fn folder(&self) -> &TenantsFolder {
        &self.folder
    }

    /// Waits for the next look and tells what it has found. Cancelled, it goes on where it was.
    pub async fn next(&mut self) -> Vec<FolderChange> {
        let looking = match &mut self.looking {
            Some(looking) => looking,
            None => {
                tokio::select! {
                    _ = self.looks.tick() => {}
                    Some(()) = self.hangup.recv() => self.at_once = true,
                }
                let (folder, known) = (self.folder.clone(), self.known.clone());
                self.looking.insert(spawn_blocking(move || look(&folder, &known)))
            }
        };
        let looked = looking.await;
        self.looking = None;
        let at_once = std::mem::take(&mut self.at_once);
        match looked {
            Ok(Ok(found)) => self.compare(found, at_once),
            Ok(Err(error)) => {
                tracing::warn!(folder = %self.folder.path.display(), %error, "the tenants' folder cannot be read");
                Vec::new()
            }
            // The runtime is going down.
            Err(_) => Vec::new(),
        }
    }

    /// A change has been taken into service, or refused. `fingerprint`: from before it was loaded; `files`: those that its
    /// manifest names, if it could be read.
    pub fn settled(&mut self, folder: &Path, fingerprint: Fingerprint, files: Option<Vec<PathBuf>>, outcome: Outcome) {
        let known = self.known.entry(folder.to_owned()).or_default();
        known.files = files.unwrap_or_else(|| std::mem::take(&mut known.files));
        known.settled = Some(fingerprint);
        known.refused = outcome != Outcome::Taken;
        known.conflicts = outcome == Outcome::Conflict;
        known.seen = None;
        known.busy = false;
    }

    /// A tenant has changed or gone, and what it had may be free: those that were refused for it are looked at again.
    pub fn retry(&mut self) {
        self.known.values_mut().filter(|known| known.conflicts).for_each(|known| known.settled = None);
    }

    fn compare(&mut self, found: Found, at_once: bool) -> Vec<FolderChange> {
        let mut changes = Vec::new();
        self.known.retain(|folder, known| {
            let there = found.contains_key(folder);
            // Not at one look alone, whatever asked for it: a folder that is replaced is away for a moment.
            let gone = !there && !known.busy && known.missing;
            known.missing = !there;
            if gone {
                changes.push(FolderChange::Gone(folder.clone()));
            }
            !gone
        });
        for (folder, fingerprint) in found {
            let known = self.known.entry(folder.clone()).or_default();
            let is_new = known.is_new(&fingerprint);
            if known.busy || !(is_new || at_once && known.refused) {
                known.seen = None;
            } else if at_once || known.seen.as_ref().is_some_and(|seen| seen.is_of_same_files(&fingerprint)) {
                known.busy = true;
                known.seen = None;
                changes.push(FolderChange::Changed(folder, fingerprint));
            } else {
                known.seen = Some(fingerprint);
            }
        }
        changes
    }
}

fn look(folder: &TenantsFolder, known: &BTreeMap<PathBuf, Known>) -> io::Result<Found> {
    let fingerprint = |folder: PathBuf| {
        let files = known.get(&folder).map_or(&[][..], |known| &known.files);
        let fingerprint = Fingerprint::of(&folder, files);
        (folder, fingerprint)
    };
    Ok(folder.folders()?.into_iter().map(fingerprint).collect())
}

impl Known {
    /// A manifest may be refused for a file that is not there, and then it is not known which it names.
    fn is_new(&self, found: &Fingerprint) -> bool {
        let Some(settled) = &self.settled else { return true };
        !settled.is_of_same_files(found) || self.refused && settled.folder != found.folder
    }
}

impl Fingerprint {
    fn of(folder: &Path, files: &[PathBuf]) -> Self {
        let manifest = state(&TenantsFolder::manifest(folder));
        Self { folder: state(folder), manifest, files: Vec::new() }.naming(files)
    }

    fn is_of_same_files(&self, other: &Self) -> bool {
        (&self.manifest, &self.files) == (&other.manifest, &other.files)
    }

    /// Of the same manifest, which turns out to name these files: taken before they are loaded.
    pub fn naming(self, files: &[PathBuf]) -> Self {
        Self { files: files.iter().map(|file| state(file)).collect(), ..self }
    }
}

fn state(file: &Path) -> Option<FileState> {
    let found = file.metadata().ok()?;
    Some(FileState {
        device: found.dev(),
        inode: found.ino(),
        size: found.len(),
        written: (found.mtime(), found.mtime_nsec()),
        changed: (found.ctime(), found.ctime_nsec()),
    })
}

#[cfg(test)]
mod tests {
    use std::{fs, sync::Arc};

    use super::*;

    /// A tenants' folder with one tenant of a manifest; it goes with the test.
    struct Scene(PathBuf);

    impl Scene {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("edge-relay-watch-{name}-{}", std::process::id()));
            fs::create_dir_all(path.join("t")).unwrap();
            let scene = Self(path);
            scene.write("tenant.toml", "name = \"t\"");
            scene
        }

        fn tenant(&self) -> PathBuf {
            self.0.join("t")
        }

        fn write(&self, file: &str, content: &str) {
            fs::write(self.tenant().join(file), content).unwrap();
        }

        fn watch(&self) -> Watch {
            Watch::new(TenantsFolder { path: self.0.clone(), bounds: Arc::default() }, &[]).unwrap()
        }
    }

    impl Drop for Scene {
        fn drop(&mut self) {
            _ = fs::remove_dir_all(&self.0);
        }
    }

    /// What a look finds.
    fn look(watch: &mut Watch, at_once: bool) -> Vec<FolderChange> {
        let found = super::look(&watch.folder, &watch.known).unwrap();
        watch.compare(found, at_once)
    }

    /// The change that two looks find.
    fn changed(watch: &mut Watch) -> Fingerprint {
        assert_eq!(look(watch, false), []);
        match look(watch, false).pop() {
            Some(FolderChange::Changed(_, fingerprint)) => fingerprint,
            other => panic!("{other:?} is no change"),
        }
    }

    #[tokio::test]
    async fn a_folder_is_gone_when_two_looks_have_missed_it() {
        let scene = Scene::new("gone");
        let mut watch = scene.watch();
        let found = changed(&mut watch);
        watch.settled(&scene.tenant(), found, Some(Vec::new()), Outcome::Taken);
        let away = scene.0.join(".away");
        fs::rename(scene.tenant(), &away).unwrap();
        assert_eq!(look(&mut watch, true), []);
        fs::rename(&away, scene.tenant()).unwrap();
        assert_eq!(look(&mut watch, false), []);
        fs::rename(scene.tenant(), &away).unwrap();
        assert_eq!(
            (look(&mut watch, true), look(&mut watch, false)),
            (vec![], vec![FolderChange::Gone(scene.tenant())])
        );
    }

    #[tokio::test]
    async fn content_of_the_same_size_and_time_is_a_change() {
        let scene = Scene::new("same");
        let mut watch = scene.watch();
        let found = changed(&mut watch);
        watch.settled(&scene.tenant(), found, Some(Vec::new()), Outcome::Taken);
        let manifest = scene.tenant().join("tenant.toml");
        let written = manifest.metadata().unwrap().modified().unwrap();
        let before = manifest.metadata().unwrap().ctime_nsec();
        // The clock of a file system stands for some milliseconds.
        while manifest.metadata().unwrap().ctime_nsec() == before {
            scene.write("tenant.toml", "name = \"u\"");
            fs::File::options().write(true).open(&manifest).unwrap().set_modified(written).unwrap();
        }
        changed(&mut watch);
    }

    #[tokio::test]
    async fn what_is_written_while_the_code_is_loaded_is_a_change() {
        let scene = Scene::new("late");
        let mut watch = scene.watch();
        let found = changed(&mut watch);
        scene.write("filter.wasm", "one");
        // The manifest is read, then the code, over which there is written before all is settled.
        let files = vec![scene.tenant().join("filter.wasm")];
        let loaded = found.naming(&files);
        scene.write("filter.wasm", "another");
        watch.settled(&scene.tenant(), loaded, Some(files.clone()), Outcome::Taken);
        let found = changed(&mut watch);
        watch.settled(&scene.tenant(), found.naming(&files), Some(files), Outcome::Taken);
        assert_eq!((look(&mut watch, false), look(&mut watch, false)), (vec![], vec![]));
    }
}
