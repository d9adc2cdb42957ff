//! Watches the tenants' folder for tenants that come, change and go.
//!
//! A change of a manifest, or of a file that it names, shows in the file's device, inode, size or times. It counts once
//! two looks in a row have found the same, so that nothing is read half written. At SIGHUP all that differs from what
//! runs counts at once, and so does what was refused. A refused tenant also counts when its folder changes: a file that
//! its manifest names may have come.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use config::{PassedOver, RefusedTenant, TenantConfig, TenantsFolder};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    task::{JoinHandle, spawn_blocking},
    time::{Instant, Interval, MissedTickBehavior, interval_at},
};

/// Time between two checks of the folder. A check takes some milliseconds for a thousand tenants.
const INTERVAL: Duration = Duration::from_secs(1);
/// Time after which a tenant is tried again that was refused for what may pass: memory, a secret's file, a mount.
const RETRY: Duration = Duration::from_secs(60);

/// The state of a tenant's files. That a file is missing is part of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fingerprint {
    /// The folder itself: what comes into it may be what a refused manifest waits for.
    folder: Option<FileState>,
    manifest: Option<FileState>,
    /// The files that the manifest names.
    files: Vec<Option<FileState>>,
}

/// The state of one file. A copy may keep the time of writing, but gets a new time of change.
#[derive(Clone, Debug, PartialEq, Eq)]
struct FileState {
    device: u64,
    inode: u64,
    size: u64,
    written: (i64, i64),
    changed: (i64, i64),
}

/// A change that a look has found.
#[derive(Debug, PartialEq, Eq)]
pub enum FolderChange {
    /// A tenant is new, or not what it was.
    Changed(PathBuf, Fingerprint),
    Gone(PathBuf),
}

/// What became of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Taken,
    Refused,
    /// Refused for what may pass without a change of its files.
    RefusedForNow,
    /// Refused because another tenant has what it claims.
    Conflict,
}

pub struct Watch {
    folder: TenantsFolder,
    hangup: Signal,
    looks: Interval,
    /// SIGHUP has come since the last look.
    at_once: bool,
    /// A look under way. It goes on when the future that waits for it is dropped.
    looking: Option<JoinHandle<io::Result<Looked>>>,
    known: BTreeMap<PathBuf, WatchedFolder>,
    /// Folders that are no tenants', as the log has said.
    passed_over: BTreeSet<PathBuf>,
}

type Fingerprints = BTreeMap<PathBuf, Fingerprint>;

/// What is known of a tenant's folder.
#[derive(Clone, Default)]
struct WatchedFolder {
    /// The files that its manifest names.
    files: Vec<PathBuf>,
    /// The fingerprint of what was last taken into service, or refused.
    settled: Option<Fingerprint>,
    refused: bool,
    /// It is in service, in this version or an earlier one.
    runs: bool,
    /// It was refused because another tenant has what it claims.
    conflicts: bool,
    /// It was refused at this time for what may pass.
    refused_for_now: Option<Instant>,
    /// What the last look found, if it was new.
    seen: Option<Fingerprint>,
    /// It is being loaded and tried.
    busy: bool,
    missing: bool,
}

impl Watch {
    /// Watches for changes to tenants that are about to run, and to those that were refused. Their manifests have been
    /// read, their code has not, so what is written while it is loaded is a change.
    pub fn new(folder: TenantsFolder, tenants: &[TenantConfig], refused: &[RefusedTenant]) -> io::Result<Self> {
        let refused = refused.iter().map(|tenant| {
            // It is looked at once more: what it lacked may have come since, and what it claims may be free, for its
            // owner may not run.
            let known = WatchedFolder { refused: true, conflicts: tenant.conflicts, ..WatchedFolder::default() };
            (tenant.folder.clone(), known)
        });
        let known = tenants.iter().map(|config| {
            let files = config.files();
            let settled = Some(Fingerprint::of(&config.folder, &files));
            (config.folder.clone(), WatchedFolder { files, settled, runs: true, ..WatchedFolder::default() })
        });
        let mut looks = interval_at(Instant::now() + INTERVAL, INTERVAL);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let hangup = signal(SignalKind::hangup())?;
        let known = known.chain(refused).collect();
        Ok(Self { folder, hangup, looks, at_once: false, looking: None, known, passed_over: BTreeSet::new() })
    }

    /// Notes that the code of a tenant that was about to run cannot be used.
    pub fn refused(&mut self, folder: &Path) {
        if let Some(known) = self.known.get_mut(folder) {
            (known.refused, known.runs) = (true, false);
            // It is looked at once more, as the others that were refused.
            known.settled = None;
        }
    }

    pub fn folder(&self) -> &TenantsFolder {
        &self.folder
    }

    /// Waits for the next look and returns what it has found. When this is cancelled, the next call goes on where it
    /// was.
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
            Ok(Ok(Looked { found, passed_over })) => {
                self.tell_passed_over(passed_over);
                self.compare(found, at_once)
            }
            Ok(Err(error)) => {
                tracing::warn!(folder = %self.folder.path.display(), %error, "the tenants' folder cannot be read");
                Vec::new()
            }
            // The runtime is going down.
            Err(_) => Vec::new(),
        }
    }

    /// Notes what became of a change. `fingerprint` was taken before the tenant was loaded; `files` are those that its
    /// manifest names, if it could be read.
    pub fn settled(&mut self, folder: &Path, fingerprint: Fingerprint, files: Option<Vec<PathBuf>>, outcome: Outcome) {
        let known = self.known.entry(folder.to_owned()).or_default();
        known.files = files.unwrap_or_else(|| std::mem::take(&mut known.files));
        known.settled = Some(fingerprint);
        known.refused = outcome != Outcome::Taken;
        known.runs |= outcome == Outcome::Taken;
        known.conflicts = outcome == Outcome::Conflict;
        known.refused_for_now = (outcome == Outcome::RefusedForNow).then(Instant::now);
        known.seen = None;
        known.busy = false;
    }

    /// Has tenants that were refused for a conflict tried again, because a tenant has changed or gone, and what it had
    /// may be free.
    pub fn retry(&mut self) {
        self.known.values_mut().filter(|known| known.conflicts).for_each(|known| known.settled = None);
    }

    /// Logs each folder that is no tenant's, once.
    fn tell_passed_over(&mut self, passed_over: Vec<PassedOver>) {
        let there: BTreeSet<_> = passed_over.iter().map(|passed| passed.folder.clone()).collect();
        for PassedOver { folder, why } in passed_over {
            if !self.passed_over.contains(&folder) {
                tracing::info!(folder = %folder.display(), why, "a folder is passed over");
            }
        }
        self.passed_over = there;
    }

    fn compare(&mut self, found: Fingerprints, at_once: bool) -> Vec<FolderChange> {
        let mut changes = Vec::new();
        self.known.retain(|folder, known| {
            let there = found.contains_key(folder);
            // One look is not enough, because a folder that is being replaced is missing for a moment.
            let gone = !there && !known.busy && known.missing;
            known.missing = !there;
            if gone {
                changes.push(FolderChange::Gone(folder.clone()));
            }
            !gone
        });
        for (folder, fingerprint) in found {
            let known = self.known.entry(folder.clone()).or_default();
            if known.refused_for_now.is_some_and(|since| since.elapsed() >= RETRY) {
                (known.refused_for_now, known.settled) = (None, None);
            }
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

/// What one look has found.
#[derive(Default)]
struct Looked {
    found: Fingerprints,
    passed_over: Vec<PassedOver>,
}

fn look(folder: &TenantsFolder, known: &BTreeMap<PathBuf, WatchedFolder>) -> io::Result<Looked> {
    let mut looked = Looked::default();
    for folder in folder.folders()? {
        let known = known.get(&folder);
        // A tenant that runs does not go because its manifest is being replaced.
        let passed_over =
            if known.is_some_and(|known| known.runs) { None } else { TenantsFolder::passed_over(&folder) };
        match passed_over {
            Some(passed_over) => looked.passed_over.push(passed_over),
            None => {
                let files = known.map_or(&[][..], |known| &known.files);
                let fingerprint = Fingerprint::of(&folder, files);
                looked.found.insert(folder, fingerprint);
            }
        }
    }
    Ok(looked)
}

impl WatchedFolder {
    /// Whether what was found differs from what was settled. For a refused tenant the folder counts too: its manifest
    /// may be refused for a file that is missing, and then nobody knows which files it names.
    fn is_new(&self, found: &Fingerprint) -> bool {
        let Some(settled) = &self.settled else { return true };
        !settled.is_of_same_files(found) || self.refused && settled.folder != found.folder
    }
}

impl Fingerprint {
    pub fn of(folder: &Path, files: &[PathBuf]) -> Self {
        let manifest = state(&TenantsFolder::manifest(folder));
        Self { folder: state(folder), manifest, files: Vec::new() }.naming(files)
    }

    fn is_of_same_files(&self, other: &Self) -> bool {
        (&self.manifest, &self.files) == (&other.manifest, &other.files)
    }

    /// Adds the files that the manifest turned out to name, as they are before they are loaded.
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
            Watch::new(TenantsFolder { path: self.0.clone(), bounds: Arc::default() }, &[], &[]).unwrap()
        }
    }

    impl Drop for Scene {
        fn drop(&mut self) {
            _ = fs::remove_dir_all(&self.0);
        }
    }

    /// What a look finds.
    fn look(watch: &mut Watch, at_once: bool) -> Vec<FolderChange> {
        let looked = super::look(&watch.folder, &watch.known).unwrap();
        watch.compare(looked.found, at_once)
    }

    /// The change that two checks of the folder find.
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
        // A file system's clock advances only every few milliseconds.
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
