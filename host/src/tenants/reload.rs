//! Tenants that come, change and go while the host runs.
//!
//! What the watch has found is read, loaded and tried beside everything else, one task a tenant, and then taken into
//! service in one step of this task. What does not pass is refused with its reason, and what ran before runs on.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use config::{TenantConfig, TenantsFolder, meet};
use tokio::{
    sync::Semaphore,
    task::{JoinSet, spawn_blocking},
    time::{Instant, MissedTickBehavior, interval},
};

use crate::{
    component::{Engine, EngineSource, Guests, Tasks},
    shutdown::Stop,
    store::Store,
    tenants::{
        Records, TenantCode, Tenants, keep, trial,
        watch::{Fingerprint, FolderChange, Outcome, Watch},
    },
};

/// Between two looks for instances that nobody needs.
const REST: Duration = Duration::from_secs(1);
/// Tenants whose code is loaded and tried at once. More than may compile: those whose code is there need not wait for those that do.
/// Each takes a thread, of which others need some too.
const LOADS: usize = 8;

/// A tenant that may be taken into service, or why not.
type Checked = Result<(TenantConfig, TenantCode), String>;

/// Why a tenant is not taken into service.
enum Refusal {
    /// It claims what another has.
    Conflict(String),
    Wrong(String),
}

impl From<String> for Refusal {
    fn from(why: String) -> Self {
        Self::Wrong(why)
    }
}

/// A tenant that has changed.
struct Candidate {
    folder: PathBuf,
    /// From before it was loaded.
    fingerprint: Fingerprint,
    /// The files that its manifest names, if it could be read.
    files: Option<Vec<PathBuf>>,
    checked: Checked,
}

/// What checking a changed tenant takes.
struct Workshop {
    tenants: TenantsFolder,
    engine: Arc<Engine>,
    tasks: Tasks,
    /// Of how many are loaded and tried at once.
    loads: Arc<Semaphore>,
}

impl Tenants {
    /// Follows what happens in the tenants' folder, if they have one, until told to stop.
    pub async fn run(&mut self, mut watch: Option<Watch>, mut engine: EngineSource, mut stop: Stop) {
        let folder = watch.as_ref().map(|watch| watch.folder().clone());
        let loads = Arc::new(Semaphore::new(LOADS));
        let (places, mut crowded) = (Arc::clone(&self.places), Instant::now());
        let mut candidates = JoinSet::new();
        let mut rest = interval(REST);
        rest.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.wait() => return,
                changes = next(watch.as_mut()) => for change in changes {
                    match change {
                        FolderChange::Gone(folder) => {
                            self.remove(&folder);
                            self.publish();
                            watch.iter_mut().for_each(Watch::retry);
                        }
                        FolderChange::Changed(changed, fingerprint) => match self.workshop(&mut engine) {
                            Ok((engine, tasks)) => {
                                // Changes come of a folder.
                                let Some(tenants) = folder.clone() else { continue };
                                let workshop = Workshop { tenants, engine, tasks, loads: Arc::clone(&loads) };
                                candidates.spawn(workshop.prepare(changed, fingerprint));
                            }
                            Err(error) => {
                                self.refuse(&changed, format!("it cannot be checked: {error}"));
                                watch.iter_mut().for_each(|watch| watch.settled(&changed, fingerprint.clone(), None, Outcome::Refused));
                            }
                        },
                    }
                },
                Some(candidate) = candidates.join_next() => {
                    let Ok(candidate) = candidate else { continue };
                    let Candidate { folder, fingerprint, files, checked } = candidate;
                    let taken = match checked {
                        Ok((config, code)) => self.take(config, code).await,
                        Err(why) => Err(Refusal::Wrong(why)),
                    };
                    let outcome = match taken {
                        Ok(()) => Outcome::Taken,
                        Err(Refusal::Conflict(why)) => {
                            self.refuse(&folder, why);
                            Outcome::Conflict
                        }
                        Err(Refusal::Wrong(why)) => {
                            self.refuse(&folder, why);
                            Outcome::Refused
                        }
                    };
                    // Changes come of a watch.
                    let Some(watch) = &mut watch else { continue };
                    watch.settled(&folder, fingerprint, files, outcome);
                    if outcome == Outcome::Taken {
                        watch.retry();
                    }
                }
                _ = rest.tick() => {
                    self.rest();
                    self.tell();
                }
                () = places.crowded(crowded) => {
                    crowded = Instant::now();
                    self.rest();
                }
            }
        }
    }

    /// What checking takes: made when it is first needed.
    fn workshop(&mut self, engine: &mut EngineSource) -> Result<(Arc<Engine>, Tasks), String> {
        let engine = Arc::clone(engine.get().map_err(|error| format!("{error:#}"))?);
        let guests = match &self.guests {
            Some(guests) => guests,
            None => self.guests.insert(Guests::start().map_err(|error| error.to_string())?),
        };
        Ok((engine, guests.tasks()))
    }

    /// Takes what has passed all checks into service, unless others have what it claims.
    async fn take(&mut self, config: TenantConfig, code: TenantCode) -> Result<(), Refusal> {
        if let Some(other) = self.running.values().find_map(|other| conflict(&config, &other.config)) {
            return Err(Refusal::Conflict(other));
        }
        if code.keeps_records() && self.store.open.is_none() {
            self.open_store(&config).await?;
        }
        let (name, folder) = (Arc::clone(&config.name), config.folder.clone());
        let is_new = !self.running.contains_key(&folder);
        self.apply(config, &code).map_err(|error| error.to_string())?;
        self.publish();
        if let Some(running) = self.running.get(&folder) {
            *running.tenant.refused() = None;
        }
        self.metrics.swapped(&name, true);
        tracing::info!(tenant.name = %name, "{}", if is_new { "tenant taken into service" } else { "tenant swapped" });
        Ok(())
    }

    async fn open_store(&mut self, config: &TenantConfig) -> Result<(), String> {
        let Records { config: Some(store), .. } = &self.store else { return Ok(()) };
        let (store, metrics) = (store.clone(), Arc::clone(&self.metrics));
        let keep = self.keep().into_iter().chain(keep(config)).collect();
        let opened = spawn_blocking(move || Store::open(store, keep, metrics)).await;
        let opened = opened.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
        self.store.open = Some(opened);
        Ok(())
    }

    /// What runs goes on.
    fn refuse(&mut self, folder: &Path, why: String) {
        let running = self.running.get(folder);
        let name: Arc<str> = match running {
            Some(running) => Arc::clone(&running.tenant.name),
            None => folder.file_name().unwrap_or_default().to_string_lossy().into(),
        };
        self.metrics.swapped(&name, false);
        let goes_on = if running.is_some() { "the version before runs on" } else { "it is not in service" };
        tracing::error!(tenant.name = %name, folder = %folder.display(), error = %why, "tenant refused; {goes_on}");
        if let Some(running) = running {
            *running.tenant.refused() = Some(why);
        }
    }
}

async fn next(watch: Option<&mut Watch>) -> Vec<FolderChange> {
    match watch {
        Some(watch) => watch.next().await,
        None => std::future::pending().await,
    }
}

impl Workshop {
    /// Reads a changed tenant and checks all that can be checked before it runs.
    async fn prepare(self, folder: PathBuf, fingerprint: Fingerprint) -> Candidate {
        let Self { tenants, engine, tasks, loads } = self;
        // It is never closed.
        let permit = loads.acquire_owned().await;
        let loaded = {
            let folder = folder.clone();
            let fingerprint = fingerprint.clone();
            spawn_blocking(move || load(&tenants, &folder, fingerprint, &engine)).await
        };
        let Loaded { files, code } =
            loaded.unwrap_or_else(|error| Loaded { files: None, code: Err(error.to_string()) });
        let (files, fingerprint) = files.map_or((None, fingerprint.clone()), |(files, found)| (Some(files), found));
        let checked = match code {
            Ok((config, code)) => {
                let tried = tasks.spawn(async move {
                    trial(&config, &code).await.map(|()| (config, code)).map_err(|problems| problems.join("; "))
                });
                tried.await.unwrap_or_else(|error| Err(error.to_string()))
            }
            Err(why) => Err(why),
        };
        // A thousand tenants that change at once do not have a thousand trial instances at once.
        drop(permit);
        Candidate { folder, fingerprint, files, checked }
    }
}

/// A changed tenant that has not had its trial.
struct Loaded {
    /// Those that its manifest names, and the tenant's fingerprint as they were before the code was loaded.
    files: Option<(Vec<PathBuf>, Fingerprint)>,
    code: Result<(TenantConfig, TenantCode), String>,
}

/// Reads a tenant's manifest and loads its code.
fn load(tenants: &TenantsFolder, folder: &Path, fingerprint: Fingerprint, engine: &Arc<Engine>) -> Loaded {
    let config = match tenants.tenant(folder) {
        Ok(config) => config,
        Err(problems) => return Loaded { files: None, code: Err(problems.to_string()) },
    };
    let files = config.files();
    let fingerprint = fingerprint.naming(&files);
    let code = TenantCode::load(&config, engine).map(|code| (config, code)).map_err(|problems| problems.join("; "));
    Loaded { files: Some((files, fingerprint)), code }
}

/// What two tenants both claim.
fn conflict(new: &TenantConfig, other: &TenantConfig) -> Option<String> {
    if new.folder == other.folder {
        return None;
    }
    let there = other.folder.display();
    if new.name == other.name {
        return Some(format!("the name {} is also that of the tenant in {there}; give each its own", new.name));
    }
    let hosts_meet = match (new.hosts.is_empty(), other.hosts.is_empty()) {
        (true, true) => true,
        (false, false) => new.hosts.iter().any(|host| other.hosts.contains(host)),
        _ => false,
    };
    let paths_meet = || meet(&new.path, &other.path);
    (hosts_meet && paths_meet()).then(|| {
        format!("the path {} meets {}, that of the tenant in {there}; give each its own", new.path, other.path)
    })
}
