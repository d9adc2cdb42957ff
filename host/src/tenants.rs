//! All tenants of the host: taken into service, changed while their clients stay, removed.
//!
//! In comes a tenant's checked configuration with its code; out go its channels, upstreams, jobs and routes. What did
//! not change goes on. An upstream whose table in the manifest is the same keeps its socket, and its filter's next call
//! runs the new code. A schedule keeps its times. Clients' sockets belong to no version.

use std::{
    collections::{BTreeMap, HashSet},
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use config::{ScheduleConfig, TenantConfig};
use tokio::{
    sync::Semaphore,
    task::{JoinSet, spawn_blocking},
};

use crate::{
    component::{Api, Dial, Guest, Guests, Handler, Job, Live, LiveJob, RoleKind, roles::filter},
    memory,
    routes::{Route, Routes},
    runtime_thread::RuntimeThread,
    shutdown,
    shutdown::{Ending, Stop, Trigger},
    store::{Keep, Store},
    sync::Mutex,
    tenant::{HostResources, Refusals, Tenant, TenantVersion},
    upstream::{ChannelSink, Connector, Credentials, Need, QueueParts, Sink, Upstream, UpstreamLog, filter_queue},
};

mod code;
mod load;
mod plan;
mod records;
mod refusal;
mod reload;
mod trial;
mod upstreams;
mod watch;

pub use crate::tenants::{
    code::{CodeProblem, TenantCode, listed},
    load::load_all,
    records::Records,
    trial::trial,
    watch::Watch,
};
use crate::tenants::{
    plan::{Change, Plan},
    upstreams::{NextUpstream, RunningUpstream},
};

/// Instances that may go before the allocator gives their memory back: a hundred leave some 10 MiB with it.
const TRIM_AFTER: usize = 100;
/// Shortest time between two trims: during one, other threads cannot allocate for some milliseconds.
const TRIM_INTERVAL: Duration = Duration::from_secs(10);

/// The tenants in service.
pub struct Tenants {
    host: HostResources,
    routes: Arc<Routes>,
    connector: Connector,
    upstream_thread: RuntimeThread,
    /// `None` until a tenant has code.
    guests: Option<Guests>,
    records: Records,
    /// By folder.
    running: BTreeMap<PathBuf, RunningTenant>,
    refusals: Arc<Refusals>,
    /// Instances that have gone since memory was given back to the system, and when that was.
    rested: usize,
    trimmed: Instant,
    upstreams: JoinSet<()>,
}

/// A tenant and all that runs for it.
struct RunningTenant {
    tenant: Arc<Tenant>,
    config: TenantConfig,
    upstreams: Vec<RunningUpstream>,
    dial: Option<Arc<Dial>>,
    /// Stays for the clients that it has let in, even when the manifest no longer names one.
    handler: Option<Arc<Handler>>,
    api: Option<Arc<Api>>,
    jobs: Vec<RunningJob>,
    route: Arc<Route>,
}

/// What a tenant has from the version before.
struct Before {
    tenant: Arc<Tenant>,
    /// `None`: the tenant is new.
    config: Option<TenantConfig>,
    upstreams: Vec<RunningUpstream>,
    dial: Option<Arc<Dial>>,
    handler: Option<Arc<Handler>>,
    api: Option<Arc<Api>>,
    jobs: Vec<RunningJob>,
}

impl From<RunningTenant> for Before {
    fn from(RunningTenant { tenant, config, upstreams, dial, handler, api, jobs, .. }: RunningTenant) -> Self {
        Self { tenant, config: Some(config), upstreams, dial, handler, api, jobs }
    }
}

impl From<Arc<Tenant>> for Before {
    fn from(tenant: Arc<Tenant>) -> Self {
        Self { tenant, config: None, upstreams: Vec::new(), dial: None, handler: None, api: None, jobs: Vec::new() }
    }
}

struct RunningJob {
    schedule: ScheduleConfig,
    job: Arc<LiveJob>,
    /// Ends the job when it is dropped.
    _stop: Trigger,
    /// Set once the job has ended. A call under way is finished first.
    ended: Stop,
}

impl Tenants {
    /// `given`: the hosts that tenants may claim.
    pub fn new(
        host: HostResources,
        given: HashSet<String>,
        connector: Connector,
        records: Records,
    ) -> io::Result<Self> {
        Ok(Self {
            host,
            routes: Arc::new(Routes::new(given)),
            connector,
            upstream_thread: RuntimeThread::start("upstreams")?,
            guests: None,
            records,
            running: BTreeMap::new(),
            refusals: Arc::default(),
            rested: 0,
            trimmed: Instant::now(),
            upstreams: JoinSet::new(),
        })
    }

    pub fn routes(&self) -> &Arc<Routes> {
        &self.routes
    }

    pub fn refusals(&self) -> &Arc<Refusals> {
        &self.refusals
    }

    /// Takes a tenant, or another version of one, into service. [`Tenants::publish`] makes it known.
    pub fn apply(&mut self, config: TenantConfig, code: &TenantCode) -> io::Result<()> {
        if config.has_code() && self.guests.is_none() {
            self.guests = Some(Guests::start()?);
        }
        let before = match self.running.remove(&config.folder) {
            Some(running) if running.tenant.name == config.name => running.into(),
            other => {
                other.into_iter().for_each(|other| self.stop(other));
                Tenant::new(&config, &self.host).into()
            }
        };
        let keeps = code.keeps_records();
        let store = self.records.store().filter(|_| keeps).cloned();
        let running = self.begin(before, config, code, store);
        self.refusals.remove(&running.config.folder);
        self.running.insert(running.config.folder.clone(), running);
        Ok(())
    }

    /// Removes a tenant from service, and closes its clients.
    pub fn remove(&mut self, folder: &Path) {
        self.refusals.remove(folder);
        if let Some(running) = self.running.remove(folder) {
            tracing::info!(tenant.name = %running.tenant.name, "tenant gone");
            self.stop(running);
        }
    }

    /// Tells the API, and the task that deletes old records, which tenants run now.
    pub fn publish(&self) {
        self.routes.set(self.running.values().map(|running| Arc::clone(&running.route)));
        self.host.metrics.tenants.set(i64::try_from(self.running.len()).unwrap_or(i64::MAX));
        self.count_refused();
        if let Some(store) = self.records.store() {
            store.set_keep(self.keep());
        }
    }

    fn count_refused(&self) {
        self.host.metrics.tenants_refused.set(i64::try_from(self.refusals.count()).unwrap_or(i64::MAX));
    }

    /// How long all tenants' records are kept.
    fn keep(&self) -> Vec<Keep> {
        self.running.values().flat_map(|running| keep(&running.config)).collect()
    }

    /// Logs how many lines were left out of the log, and which tenants are held back.
    fn tell(&self) {
        let now = Instant::now();
        for RunningTenant { tenant, .. } in self.running.values() {
            tenant.log_lines.tell();
            tenant.usage.look(now);
        }
    }

    /// Drops instances that nobody has needed for a while, or whose places others wait for.
    fn rest(&mut self) {
        for running in self.running.values() {
            self.rested += running.dial.as_ref().map_or(0, |dial| dial.rest());
            self.rested += running.handler.as_ref().map_or(0, |handler| handler.rest());
            self.rested += running.api.as_ref().map_or(0, |api| api.rest());
        }
        if self.rested >= TRIM_AFTER && self.trimmed.elapsed() >= TRIM_INTERVAL {
            (self.rested, self.trimmed) = (0, Instant::now());
            // Nobody waits for it.
            drop(spawn_blocking(memory::trim));
        }
    }

    /// Ends all upstreams, then lets filters and jobs finish what they have, within this time.
    pub async fn stop_all(&mut self, timeout: Duration) {
        let deadline = Instant::now() + timeout;
        self.running.clear();
        let stopping = async { while self.upstreams.join_next().await.is_some() {} };
        // The other half is for the filters at least.
        if tokio::time::timeout(timeout / 2, stopping).await.is_err() {
            tracing::warn!("upstreams cut off at shutdown");
        }
        self.upstreams.abort_all();
        while self.upstreams.join_next().await.is_some() {}
        if let Some(guests) = &mut self.guests {
            guests.finish(deadline.saturating_duration_since(Instant::now())).await;
        }
    }

    /// Ends what is left once the clients are gone: calls about their leaving, then the store.
    pub async fn end(self, ending: Ending) {
        if let Some(guests) = self.guests {
            // The other half is for the store at least.
            guests.shutdown(ending.left(1.0) / 2).await;
        }
        if let Some(store) = self.records.into_tasks() {
            store.shutdown(ending.left(1.0)).await;
        }
    }

    /// Closes a tenant's clients. Its upstreams and jobs end with their triggers.
    fn stop(&self, running: RunningTenant) {
        self.host.shards.close_all_of(&running.tenant.client_limits);
    }

    /// Starts all that a tenant's manifest asks for, and keeps what ran before and has not changed. When this returns,
    /// everything that begins runs the new version.
    fn begin(
        &mut self,
        before: Before,
        config: TenantConfig,
        code: &TenantCode,
        store: Option<Arc<Store>>,
    ) -> RunningTenant {
        let Before { tenant, config: before, upstreams, dial, handler, api, jobs } = before;
        let plan = Plan::new(before.as_ref(), &config);
        let upstreams = NextUpstream::all(&plan, &config, &tenant, &self.host.metrics, upstreams);
        let handles = upstreams.iter().map(NextUpstream::handle).collect();
        let version = TenantVersion::new(&config, handles, store, code.charges(&tenant));
        tenant.reconfigure(&config, Arc::clone(&version));
        let metrics = Arc::clone(&self.host.metrics);
        let guest = |role: RoleKind, name: &Arc<str>| Guest {
            tenant: Arc::clone(&tenant),
            version: Arc::clone(&version),
            role,
            name: Arc::clone(name),
            metrics: metrics.guest(&tenant.name, role.name(), name),
        };
        let tasks = self.guests.as_ref().map(Guests::tasks);
        let dial = match (dial, code.dial.as_ref().map(Arc::clone), tasks.clone()) {
            (None, Some(code), Some(tasks)) => {
                Some(Dial::new(code, guest(RoleKind::Dial, &RoleKind::Dial.name().into()), tasks))
            }
            (Some(dial), Some(code), _) => {
                dial.swap(code, guest(RoleKind::Dial, &RoleKind::Dial.name().into()));
                Some(dial)
            }
            _ => None,
        };
        let begin = |next| self.upstream(next, &tenant, code, dial.as_ref(), &guest);
        let upstreams = upstreams.into_iter().map(begin).collect();
        let handler = match (handler, code.client.as_ref().map(Arc::clone), tasks.clone()) {
            (None, Some(code), Some(tasks)) => {
                Some(Handler::new(code, guest(RoleKind::Client, &RoleKind::Client.name().into()), tasks))
            }
            (Some(handler), Some(code), _) => {
                handler.swap(code, guest(RoleKind::Client, &RoleKind::Client.name().into()));
                Some(handler)
            }
            (handler, ..) => handler,
        };
        let reuse = config.api.as_ref().map(|api| api.reuse).unwrap_or_default();
        let api = match (api, code.api.as_ref().map(Arc::clone), tasks) {
            (None, Some(code), Some(tasks)) => {
                Some(Api::new(code, guest(RoleKind::Api, &RoleKind::Api.name().into()), reuse, tasks))
            }
            (Some(api), Some(code), _) => {
                api.swap(code, guest(RoleKind::Api, &RoleKind::Api.name().into()), reuse);
                Some(api)
            }
            _ => None,
        };
        let jobs = self.jobs(&plan, &config, code, jobs, &guest);
        let route = Route {
            tenant: Arc::clone(&tenant),
            handler: handler.clone().filter(|_| code.client.is_some()),
            api: api.clone(),
            hosts: config.hosts.clone(),
            path: config.path.clone(),
        };
        RunningTenant { tenant, config, upstreams, dial, handler, api, jobs, route: Arc::new(route) }
    }

    /// Keeps an upstream and gives its filter the new code, or starts one that begins when the one before it has ended.
    fn upstream(
        &mut self,
        next: NextUpstream,
        tenant: &Arc<Tenant>,
        code: &TenantCode,
        dial: Option<&Arc<Dial>>,
        guest: &impl Fn(RoleKind, &Arc<str>) -> Guest,
    ) -> RunningUpstream {
        let (config, handle, before) = match next {
            NextUpstream::Kept(kept) => {
                if let Some((filter, code)) = kept.filter.as_ref().zip(code.filter.as_ref()) {
                    filter.swap(Arc::clone(code), guest(RoleKind::Filter, &kept.config.name));
                }
                return kept;
            }
            NextUpstream::New { config, handle, before } => (config, handle, before),
        };
        let filter =
            code.filter.as_ref().map(|code| Live::new(Arc::clone(code), guest(RoleKind::Filter, &config.name)));
        // Pulled when both the upstream and its filter have dropped it.
        let (end, ended) = shutdown::stop();
        let end = Arc::new(end);
        let metrics = Arc::new(self.host.metrics.upstream(&tenant.name, &config.name));
        let log = UpstreamLog {
            tenant: Arc::clone(&tenant.name),
            upstream: Arc::clone(&config.name),
            lines: Arc::clone(&tenant.log_lines),
        };
        let sink = match (&filter, &mut self.guests) {
            (Some(filter), Some(guests)) => {
                let version = filter.version();
                let (queue, inbox) = filter_queue(QueueParts {
                    overflow: config.overflow,
                    account: Arc::clone(&tenant.account),
                    metrics: Arc::clone(&metrics),
                    log: log.clone(),
                    waiting: version.guest.metrics.queue.clone(),
                    max_bytes: version.guest.version.limits.filter_queue,
                });
                guests.start_worker(filter::work(Arc::clone(filter), inbox), Arc::clone(&end));
                Sink::Filter(queue)
            }
            _ => Sink::Channel(ChannelSink {
                channels: Arc::clone(&tenant.channels),
                upstream: Arc::clone(&config.name),
                rate: Arc::clone(&tenant.publications),
                tenant: Arc::clone(&tenant.metrics),
                metrics: Arc::clone(&metrics),
                overflow: config.overflow,
                drops: Mutex::default(),
            }),
        };
        let need = Need::new(&tenant.channels.demand, config.linger);
        let (trigger, mut stop) = shutdown::stop();
        let credentials = dial.map(|dial| -> Arc<dyn Credentials> { Arc::<Dial>::clone(dial) });
        let upstream = Upstream {
            config: config.clone(),
            sink,
            metrics,
            handle: Arc::clone(&handle),
            need,
            account: Arc::clone(&tenant.account),
            dialer: Arc::clone(&tenant.dialer),
            lookups: Arc::clone(&tenant.lookups),
            credentials,
            reading: Arc::new(Semaphore::new(1)),
            read_turn: Arc::clone(&tenant.read_turn),
            usage: Arc::clone(&tenant.usage),
            log,
        };
        let connector = self.connector.clone();
        while self.upstreams.try_join_next().is_some() {}
        let run = async move {
            if let Some(mut before) = before {
                upstream.handle.waits_for_the_one_before();
                // A partner allows few connections, so there is never one more.
                tokio::select! {
                    () = before.wait() => {}
                    () = stop.wait() => return drop(end),
                }
            }
            upstream.run(connector, stop).await;
            drop(end);
        };
        self.upstreams.spawn_on(run, self.upstream_thread.runtime());
        RunningUpstream { config, handle, filter, _stop: trigger, ended }
    }

    /// Keeps the schedules that have not changed and gives them the new code; starts the others. A schedule that takes
    /// the place of another begins when that has ended.
    fn jobs(
        &mut self,
        plan: &Plan,
        config: &TenantConfig,
        code: &TenantCode,
        mut before: Vec<RunningJob>,
        guest: &impl Fn(RoleKind, &Arc<str>) -> Guest,
    ) -> Vec<RunningJob> {
        let Some((code, guests)) = code.job.as_ref().zip(self.guests.as_mut()) else { return Vec::new() };
        let mut jobs = Vec::new();
        for schedule in &config.schedules {
            let guest = guest(RoleKind::Job, &schedule.name);
            let at = before.iter().position(|job| job.schedule.name == schedule.name);
            let before = match (plan.schedules.get(&schedule.name), at.map(|at| before.swap_remove(at))) {
                (Some(Change::Keep), Some(kept)) => {
                    kept.job.swap(Arc::clone(code), guest);
                    jobs.push(kept);
                    continue;
                }
                (_, changed) => changed.map(|changed| changed.ended),
            };
            let job = Live::new(Arc::clone(code), guest);
            let missed = self.host.metrics.missed_ticks(&config.name, RoleKind::Job.name(), &schedule.name);
            let (trigger, stop) = shutdown::stop();
            let (end, ended) = shutdown::stop();
            let worker = Job { live: Arc::clone(&job), schedule: schedule.clone(), missed }.run(before, stop);
            guests.start_worker(worker, end);
            jobs.push(RunningJob { schedule: schedule.clone(), job, _stop: trigger, ended });
        }
        jobs
    }
}

/// How long a tenant's records are kept.
pub fn keep(config: &TenantConfig) -> impl Iterator<Item = Keep> {
    config.keep.iter().map(|(pattern, age)| Keep {
        tenant: Arc::clone(&config.name),
        pattern: pattern.clone(),
        age: *age,
    })
}
