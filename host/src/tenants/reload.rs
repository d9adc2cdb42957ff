//! Tenants that come, change and go while the host runs.
//!
//! Each tenant that the watch has found is read, loaded and tried in a task of its own, and then taken into service in
//! one step of this task. A tenant that does not pass is refused with its reason, and the version before runs on.

use std::{
    panic::AssertUnwindSafe,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use config::{TenantConfig, TenantsFolder};
use futures_util::FutureExt;
use tokio::{
    sync::Semaphore,
    task::{JoinSet, spawn_blocking},
    time::{Instant, MissedTickBehavior, interval},
};

use crate::{
    component::{Engine, EngineSource, Guests, Tasks},
    progress::Progress,
    shutdown::Stop,
    store::Store,
    tenant::{TenantRefused, Turns},
    tenants::{
        TenantCode, Tenants, keep,
        refusal::{Conflict, TenantRefusal},
        trial,
        watch::{Fingerprint, FolderChange, Outcome, Watch},
    },
};

/// Time between two searches for instances that nobody needs.
const REST: Duration = Duration::from_secs(1);
/// Tenants whose code is loaded and tried at once. More than may compile at once, so that tenants whose code is
/// compiled already need not wait for the others. Each takes a thread.
const LOADS: usize = 8;

/// A tenant that may be taken into service, or why it may not.
type Checked = Result<(TenantConfig, TenantCode), TenantRefusal>;

/// A tenant that has changed.
struct Candidate {
    folder: PathBuf,
    /// Taken before the tenant was loaded.
    fingerprint: Fingerprint,
    /// The files that its manifest names, if it could be read.
    files: Option<Vec<PathBuf>>,
    checked: Checked,
}

/// Where changed tenants are checked, each in a task of its own.
struct CheckTasks {
    engine: EngineSource,
    /// Limits how many are loaded and tried at once.
    loads: Arc<Semaphore>,
    /// In which trial instances are made.
    trials: Turns,
    candidates: JoinSet<Candidate>,
}

/// What the check of one changed tenant needs.
struct Check {
    tenants: TenantsFolder,
    engine: Arc<Engine>,
    tasks: Tasks,
    loads: Arc<Semaphore>,
    trials: Turns,
}

impl Tenants {
    /// Follows the changes in the tenants' folder, if there is one, until told to stop.
    pub async fn run(&mut self, mut watch: Option<Watch>, engine: EngineSource, mut stop: Stop) {
        let loads = Arc::new(Semaphore::new(LOADS));
        let mut checks = CheckTasks { engine, loads, trials: Turns::of_trials(), candidates: JoinSet::new() };
        let (places, mut crowded) = (Arc::clone(&self.host.places), Instant::now());
        let mut rest = interval(REST);
        rest.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.wait() => return,
                changes = next(watch.as_mut()) => {
                    let Some(watch) = &mut watch else { continue };
                    changes.into_iter().for_each(|change| self.follow(change, watch, &mut checks));
                }
                Some(candidate) = checks.candidates.join_next() => {
                    // It cannot be an error: nothing cancels these tasks, and they catch panics.
                    let (Ok(candidate), Some(watch)) = (candidate, &mut watch) else { continue };
                    self.settle(candidate, watch).await;
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

    /// Begins to check a tenant that has changed, or removes one that has gone.
    fn follow(&mut self, change: FolderChange, watch: &mut Watch, checks: &mut CheckTasks) {
        match change {
            FolderChange::Gone(folder) => {
                self.remove(&folder);
                self.publish();
                watch.retry();
            }
            FolderChange::Changed(folder, fingerprint) => match self.check(watch.folder(), checks) {
                Ok(check) => {
                    let checking = check.run(folder.clone(), fingerprint.clone());
                    checks.candidates.spawn(refuse_panic(checking, folder, fingerprint));
                }
                Err(error) => {
                    let outcome = self.refuse(&folder, &error);
                    watch.settled(&folder, fingerprint, None, outcome);
                }
            },
        }
    }

    /// Takes a tenant that was checked into service, or refuses it.
    async fn settle(&mut self, candidate: Candidate, watch: &mut Watch) {
        let Candidate { folder, fingerprint, files, checked } = candidate;
        let taken = match checked {
            Ok((config, code)) => self.take(config, code).await,
            Err(why) => Err(why),
        };
        let outcome = match taken {
            Ok(()) => Outcome::Taken,
            Err(why) => self.refuse(&folder, &why),
        };
        watch.settled(&folder, fingerprint, files, outcome);
        if outcome == Outcome::Taken {
            watch.retry();
        }
    }

    /// Gathers what a check needs. The engine and the guests' threads are made when they are first needed.
    fn check(&mut self, tenants: &TenantsFolder, checks: &mut CheckTasks) -> Result<Check, TenantRefusal> {
        let engine = Arc::clone(checks.engine.get()?);
        let guests = match &self.guests {
            Some(guests) => guests,
            None => self.guests.insert(Guests::start()?),
        };
        let (loads, trials) = (Arc::clone(&checks.loads), checks.trials.clone());
        Ok(Check { tenants: tenants.clone(), engine, tasks: guests.tasks(), loads, trials })
    }

    /// Takes a tenant that has passed all checks into service, unless another tenant has what it claims.
    async fn take(&mut self, config: TenantConfig, code: TenantCode) -> Result<(), TenantRefusal> {
        if let Some(conflict) = self.running.values().find_map(|other| Conflict::find(&config, &other.config)) {
            return Err(conflict.into());
        }
        if code.keeps_records() {
            self.open_store(&config).await?;
        }
        let (name, folder) = (Arc::clone(&config.name), config.folder.clone());
        let is_new = !self.running.contains_key(&folder);
        self.apply(config, &code)?;
        self.publish();
        self.host.metrics.swapped(&name, true);
        tracing::info!(tenant.name = %name, "{}", if is_new { "tenant taken into service" } else { "tenant swapped" });
        Ok(())
    }

    async fn open_store(&mut self, config: &TenantConfig) -> Result<(), TenantRefusal> {
        let Some(store) = self.records.unopened() else { return Ok(()) };
        let metrics = Arc::clone(&self.host.metrics);
        let keep = self.keep().into_iter().chain(keep(config)).collect();
        let opened = spawn_blocking(move || Store::open(store, keep, metrics)).await??;
        self.records.opened(opened);
        Ok(())
    }

    /// Refuses what is in a tenant's folder. What runs goes on.
    pub fn refuse(&mut self, folder: &Path, why: &TenantRefusal) -> Outcome {
        let running = self.running.get(folder);
        let name: Arc<str> = match running {
            Some(running) => Arc::clone(&running.tenant.name),
            None => folder.file_name().unwrap_or_default().to_string_lossy().into(),
        };
        self.host.metrics.swapped(&name, false);
        let runs = running.is_some();
        let goes_on = if runs { "the version before runs on" } else { "it is not in service" };
        let reason = why.reason();
        // A refusal that comes again and again is logged once.
        if self.refusals.reason(folder).as_deref() != Some(&reason) {
            let error = reason.replace('\n', "; ");
            tracing::error!(tenant.name = %name, folder = %folder.display(), error, "tenant refused; {goes_on}");
        }
        self.refusals.insert(folder, TenantRefused { name, runs, why: reason });
        self.count_refused();
        match why {
            TenantRefusal::Conflict(_) => Outcome::Conflict,
            why if why.may_pass() => Outcome::RefusedForNow,
            _ => Outcome::Refused,
        }
    }
}

async fn next(watch: Option<&mut Watch>) -> Vec<FolderChange> {
    match watch {
        Some(watch) => watch.next().await,
        None => std::future::pending().await,
    }
}

/// Runs the check of a changed tenant. A panic is a refusal like any other: the tenant is settled, and may change
/// again.
async fn refuse_panic(
    checking: impl Future<Output = Candidate>,
    folder: PathBuf,
    fingerprint: Fingerprint,
) -> Candidate {
    // As in the tasks that it starts: what they share with others has locks that ignore poison.
    AssertUnwindSafe(checking).catch_unwind().await.unwrap_or_else(|_| Candidate {
        folder,
        fingerprint,
        files: None,
        checked: Err(TenantRefusal::Panicked),
    })
}

impl Check {
    /// Reads a changed tenant and checks all that can be checked before it runs.
    async fn run(self, folder: PathBuf, fingerprint: Fingerprint) -> Candidate {
        let Self { tenants, engine, tasks, loads, trials } = self;
        // The semaphore is never closed.
        let permit = loads.acquire_owned().await;
        let loaded = {
            let folder = folder.clone();
            let fingerprint = fingerprint.clone();
            spawn_blocking(move || load(&tenants, &folder, fingerprint, &engine)).await
        };
        let LoadedTenant { files, code } =
            loaded.unwrap_or_else(|error| LoadedTenant { files: None, code: Err(error.into()) });
        let (files, fingerprint) = files.map_or((None, fingerprint.clone()), |(files, found)| (Some(files), found));
        let checked = match code {
            Ok((config, code)) => {
                let tried = tasks.spawn(async move {
                    trial(&config, &code, &trials).await?;
                    Ok((config, code))
                });
                tried.await.unwrap_or_else(|error| Err(error.into()))
            }
            Err(why) => Err(why),
        };
        // A thousand tenants that change at once do not have a thousand trial instances at once.
        drop(permit);
        Candidate { folder, fingerprint, files, checked }
    }
}

/// A changed tenant that has not had its trial.
struct LoadedTenant {
    /// The files that its manifest names, and the tenant's fingerprint with them, taken before the code was loaded.
    files: Option<(Vec<PathBuf>, Fingerprint)>,
    code: Checked,
}

/// Reads a tenant's manifest and loads its code.
fn load(tenants: &TenantsFolder, folder: &Path, fingerprint: Fingerprint, engine: &Arc<Engine>) -> LoadedTenant {
    let config = match tenants.tenant(folder) {
        Ok(config) => config,
        Err(problems) => return LoadedTenant { files: None, code: Err(problems.into()) },
    };
    let files = config.files();
    let fingerprint = fingerprint.naming(&files);
    let code = TenantCode::load(&config, engine, &Progress::default());
    let code = code.map(|code| (config, code)).map_err(TenantRefusal::Code);
    LoadedTenant { files: Some((files, fingerprint)), code }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_check_that_panics_is_a_refusal_of_its_folder() {
        let folder = Path::new("/tenants/t");
        let fingerprint = Fingerprint::of(folder, &[]);
        let checking = async { panic!("a mistake in the check") };
        let candidate = refuse_panic(checking, folder.to_owned(), fingerprint.clone()).await;
        assert_eq!((candidate.folder.as_path(), &candidate.fingerprint), (folder, &fingerprint));
        assert!(candidate.files.is_none());
        assert!(matches!(candidate.checked, Err(TenantRefusal::Panicked)));
    }
}
