//! Jobs: a component called at the times of the tenant's `[[schedule]]`.
//!
//! In come ticks of the monotonic clock, out go publications. Each schedule has a task on the guests' runtime with a
//! warm instance of its own, so its calls never overlap. A tick that comes while the call before it still runs is left
//! out and counted. The next one is on time, however long calls take.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use config::ScheduleConfig;
use prometheus_client::metrics::counter::Counter;
use tokio::time::{Instant, sleep_until};
use wasmtime::{
    Result, Store,
    component::{Instance, InstancePre},
};

use crate::{
    component::{
        Live, RoleKind,
        bindings::job::{JobComponent, JobComponentPre},
        imports::channels::{Leftover, extent, publish_all},
        run::{
            host::Host,
            instance::{Role, RoleCode},
            warm::Warm,
        },
    },
    shutdown::Stop,
};

impl Role for JobComponent {
    const KIND: RoleKind = RoleKind::Job;

    fn find(store: &mut Store<Host>, instance: &Instance) -> Result<Self> {
        Self::new(store, instance)
    }

    fn check(pre: &InstancePre<Host>) -> Result<()> {
        JobComponentPre::new(pre.clone()).map(drop)
    }
}

pub type JobCode = RoleCode<JobComponent>;
pub type LiveJob = Live<JobComponent>;

/// One schedule of a job.
pub struct Job {
    pub live: Arc<LiveJob>,
    pub schedule: ScheduleConfig,
    /// Counts ticks left out.
    pub missed: Counter,
}

impl Job {
    /// Calls the job at its times until told to stop. A call under way is finished. If it takes the place of another
    /// schedule, it first waits for the end of that (`before`).
    pub async fn run(self, before: Option<Stop>, mut stop: Stop) {
        if let Some(mut before) = before {
            before.wait().await;
        }
        let Self { live, schedule, missed } = self;
        let mut job = Warm::new(live);
        let started = (Instant::now(), SystemTime::now());
        let mut after = schedule.after;
        loop {
            let due = started.0 + after;
            let idle_at = job.idle_at().map(Instant::from_std).filter(|at| *at < due);
            tokio::select! {
                () = sleep_until(idle_at.unwrap_or(due)) => {}
                () = stop.wait() => return,
            }
            if idle_at.is_some() {
                job.rest();
                continue;
            }
            let deadline = job.update().guest.version.limits.job_call;
            let scheduled_at = millis(started.1 + after);
            let made = job.call(deadline, async |store: &mut Store<Host>, job: &JobComponent| {
                job.edge_relay_tenant_job().call_on_schedule(store, &schedule.name, scheduled_at).await
            });
            match made.await {
                Some(made) => {
                    let (guest, until) = (job.guest(), job.until(deadline));
                    let leftover = Leftover::new(guest, extent(&made), until);
                    leftover.work(publish_all(guest, made, &leftover)).await;
                }
                None => drop(job.guest().metrics.lost.inc()),
            }
            let (next, passed) = next_tick(after, schedule.every, started.0.elapsed());
            missed.inc_by(passed);
            after = next;
        }
    }
}

/// Returns the next tick after the one at `last`, and how many in between were missed. All times count from the start.
fn next_tick(last: Duration, every: Duration, now: Duration) -> (Duration, u64) {
    let late = now.saturating_sub(last).as_nanos() / every.as_nanos().max(1);
    let missed = u32::try_from(late).unwrap_or(u32::MAX);
    (last + every * missed + every, u64::from(missed))
}

fn millis(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_keep_their_times_whatever_calls_take() {
        let seconds = Duration::from_secs_f64;
        assert_eq!(next_tick(seconds(5.0), seconds(2.0), seconds(5.1)), (seconds(7.0), 0));
        assert_eq!(next_tick(seconds(5.0), seconds(2.0), seconds(6.9)), (seconds(7.0), 0));
        assert_eq!(next_tick(seconds(5.0), seconds(2.0), seconds(7.1)), (seconds(9.0), 1));
        assert_eq!(next_tick(seconds(5.0), seconds(2.0), seconds(11.5)), (seconds(13.0), 3));
    }
}
