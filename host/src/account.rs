//! A tenant's account of the host's memory.
//!
//! Each part of the host charges here what it is about to keep for a tenant. A part may have a limit of its own; all of
//! them together stay within the tenant's `memory-total`. When another part needs room, the tenant's logs let go of
//! chunks first. A charge that does not fit is refused and counted, and the caller says what that means: a call fails,
//! a client is closed, a message waits.
//!
//! A charge is a number of bytes: exact for buffers, and never less than the truth for what can only be estimated.
//! Some bytes cannot be refused any more and are added even over the total: chunks in a format that a client needs, for
//! which the logs let go, and code that is loaded, which was checked against the total before.

use std::{
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicI64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use config::TenantLimits;
use prometheus_client::metrics::gauge::Gauge;
use tokio::time::sleep;

use crate::{metrics::TenantMetrics, sync::Mutex};

/// The limit's key in the manifest.
pub const LIMIT: &str = "memory-total";

/// The logs begin to let go when this part of the total is left: what they drop is free only when its readers have let
/// go of it, too.
const RESERVE: usize = 16;
/// Times that a caller who can wait asks again while readers let go of dropped chunks, and the pause between them.
const PATIENCE: u32 = 50;
const PAUSE: Duration = Duration::from_millis(1);
/// Shortest time between two lines of the log that say that a tenant's memory is full.
const TELL_INTERVAL: Duration = Duration::from_secs(60);
/// The logs may let go for a tenth of the time, and not again before readers have had a moment to let go, too.
const RELIEF_SHARE: u32 = 10;
const RELIEF_PAUSE: Duration = Duration::from_millis(2);

/// What memory is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Linear memories and tables of instances.
    Guests,
    /// The host's side of instances.
    Instances,
    /// Compiled code and what the host knows of it.
    Code,
    /// Chunks in channels' logs, in every format, and snapshots.
    Logs,
    /// Chunks that their logs have dropped, and that clients still hold.
    Pinned,
    /// Messages that wait for components, what components want done, and replies.
    Queues,
    /// Messages that are not whole yet, and what else waits for clients' sockets.
    Sockets,
    /// Keys and values of components.
    State,
    /// Listings of folders that components have open.
    Listings,
}

impl Part {
    pub const ALL: [Self; 9] = [
        Self::Guests,
        Self::Instances,
        Self::Code,
        Self::Logs,
        Self::Pinned,
        Self::Queues,
        Self::Sockets,
        Self::State,
        Self::Listings,
    ];

    /// The value of the metric's label `part`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Guests => "guests",
            Self::Instances => "instances",
            Self::Code => "code",
            Self::Logs => "logs",
            Self::Pinned => "pinned",
            Self::Queues => "queues",
            Self::Sockets => "sockets",
            Self::State => "state",
            Self::Listings => "listings",
        }
    }
}

/// What can let go of memory when the tenant needs it elsewhere.
pub trait Reserve: Send + Sync {
    /// Lets go of chunks until the account has `bytes` bytes more, or nothing is left to let go.
    fn let_go(&self, bytes: usize);
}

/// One tenant's account.
pub struct Account {
    /// Bytes of all parts.
    used: AtomicUsize,
    parts: [PartBytes; Part::ALL.len()],
    max: AtomicUsize,
    max_logs: AtomicUsize,
    metrics: Arc<TenantMetrics>,
    reserve: OnceLock<Weak<dyn Reserve>>,
    /// When the logs may let go again.
    next_relief: Mutex<Option<Instant>>,
    last_told: Mutex<Option<Instant>>,
}

/// The bytes of one part, and the metric that shows them. The metric outlives a tenant that comes again.
struct PartBytes {
    bytes: AtomicI64,
    shown: Gauge,
}

impl PartBytes {
    fn add(&self, bytes: i64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.shown.inc_by(bytes);
    }
}

impl Account {
    pub fn new(limits: &TenantLimits, metrics: Arc<TenantMetrics>) -> Arc<Self> {
        Arc::new(Self {
            used: AtomicUsize::new(0),
            parts: Part::ALL.map(|part| PartBytes { bytes: AtomicI64::new(0), shown: metrics.memory(part.name()) }),
            max: AtomicUsize::new(limits.memory_total),
            max_logs: AtomicUsize::new(limits.logs),
            metrics,
            reserve: OnceLock::new(),
            next_relief: Mutex::default(),
            last_told: Mutex::default(),
        })
    }

    /// An account of a tenant that says nothing of its limits.
    #[cfg(test)]
    pub fn of_test() -> Arc<Self> {
        let metrics = Arc::new(crate::metrics::Metrics::new()).tenant(&"t".into());
        Self::new(&TenantLimits::default(), Arc::new(metrics))
    }

    /// Lets the logs let go at once, however long they took the last time.
    #[cfg(test)]
    pub fn end_relief_pause(&self) {
        *self.next_relief.lock() = None;
    }

    /// Sets what lets go first. It is set once.
    pub fn set_reserve(&self, reserve: Weak<dyn Reserve>) {
        // There is one for each tenant.
        let _ = self.reserve.set(reserve);
    }

    /// Changes the limits. What is charged already stays.
    pub fn set(&self, limits: &TenantLimits) {
        self.max.store(limits.memory_total, Ordering::Relaxed);
        self.max_logs.store(limits.logs, Ordering::Relaxed);
    }

    /// Bytes of a part now.
    pub fn bytes(&self, part: Part) -> usize {
        // While two threads move the same bytes a part may be less than nothing for a moment.
        self.part(part).map_or(0, |part| usize::try_from(part.bytes.load(Ordering::Relaxed)).unwrap_or(0))
    }

    /// Bytes of all parts now.
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Bytes that the logs may have.
    pub fn max_logs(&self) -> usize {
        self.max_logs.load(Ordering::Relaxed)
    }

    /// Bytes by which the logs have more than they may, or the account more than its total.
    pub fn logs_excess(&self) -> usize {
        self.bytes(Part::Logs).saturating_sub(self.max_logs()).max(self.excess(0))
    }

    /// Bytes that would be over the total with `more` bytes more.
    pub fn excess(&self, more: usize) -> usize {
        (self.used.load(Ordering::Relaxed) + more).saturating_sub(self.max.load(Ordering::Relaxed))
    }

    /// Whether so little is left that what others hold has to go.
    pub fn is_nearly_full(&self) -> bool {
        self.excess(self.max.load(Ordering::Relaxed) / RESERVE) > 0
    }

    /// Charges bytes if they fit. A refusal is counted.
    pub fn charge(&self, part: Part, bytes: usize) -> bool {
        self.try_charge(part, bytes) || self.refuse(part, bytes)
    }

    /// Does the same for a caller who can wait until readers have let go of chunks that the logs have dropped.
    pub async fn charge_patiently(&self, part: Part, bytes: usize) -> bool {
        for _ in 0..PATIENCE {
            if self.try_charge(part, bytes) {
                return true;
            }
            if self.bytes(Part::Pinned) < self.excess(bytes) {
                break;
            }
            sleep(PAUSE).await;
        }
        self.charge(part, bytes)
    }

    /// Charges bytes that are taken already, whether they fit or not.
    pub fn add(&self, part: Part, bytes: usize) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
        self.count(part, signed(bytes));
    }

    pub fn give_back(&self, part: Part, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
        self.count(part, -signed(bytes));
    }

    /// Moves bytes from the logs to what clients still hold of them.
    pub fn pin(&self, bytes: usize) {
        self.count(Part::Logs, -signed(bytes));
        self.count(Part::Pinned, signed(bytes));
    }

    /// Has the logs let go of what is over a limit, unless that cannot be enough, or they have just done so.
    pub fn relieve(&self, excess: usize) {
        if excess == 0 || excess > self.bytes(Part::Logs) {
            return;
        }
        let Some(reserve) = self.reserve.get().and_then(Weak::upgrade) else { return };
        let began = Instant::now();
        {
            let mut next = self.next_relief.lock();
            if next.is_some_and(|next| began < next) {
                return;
            }
            // Nobody else begins meanwhile.
            *next = Some(began + TELL_INTERVAL);
        }
        reserve.let_go(excess);
        let ended = Instant::now();
        *self.next_relief.lock() = Some(ended + RELIEF_PAUSE.max((ended - began) * RELIEF_SHARE));
    }

    fn try_charge(&self, part: Part, bytes: usize) -> bool {
        // Added before it is known whether they fit: two callers must not both take the last bytes.
        self.used.fetch_add(bytes, Ordering::Relaxed);
        match self.excess(0) {
            // Early, so that there is room by the time that it is needed. Logs of the reserve's size may stay.
            0 => {
                let reserve = self.max.load(Ordering::Relaxed) / RESERVE;
                self.relieve(self.excess(reserve).min(self.bytes(Part::Logs).saturating_sub(reserve)));
            }
            over => self.relieve(over),
        }
        let fits = self.excess(0) == 0;
        if fits {
            self.count(part, signed(bytes));
        } else {
            self.used.fetch_sub(bytes, Ordering::Relaxed);
        }
        fits
    }

    /// Counts a refusal, and says so in the log now and then.
    fn refuse(&self, part: Part, bytes: usize) -> bool {
        self.metrics.limited(LIMIT, 1);
        let mut told = self.last_told.lock();
        if told.is_none_or(|at| at.elapsed() >= TELL_INTERVAL) {
            *told = Some(Instant::now());
            let (used, most) = (self.used.load(Ordering::Relaxed), self.max.load(Ordering::Relaxed));
            let (tenant, part) = (self.metrics.tenant_name(), part.name());
            tracing::warn!(tenant.name = %tenant, part, bytes, used, most, "the tenant's memory is full");
        }
        false
    }

    fn count(&self, part: Part, bytes: i64) {
        if let Some(part) = self.part(part) {
            part.add(bytes);
        }
    }

    fn part(&self, part: Part) -> Option<&PartBytes> {
        self.parts.get(part as usize)
    }
}

fn signed(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// Bytes of an account, given back when this is dropped.
pub struct Charge {
    account: Arc<Account>,
    part: Part,
    bytes: usize,
}

impl Charge {
    /// Charges nothing yet.
    pub fn new(account: &Arc<Account>, part: Part) -> Self {
        Self { account: Arc::clone(account), part, bytes: 0 }
    }

    /// Charges bytes. `None`: they do not fit.
    pub fn take(account: &Arc<Account>, part: Part, bytes: usize) -> Option<Self> {
        let mut charge = Self::new(account, part);
        charge.set(bytes).then_some(charge)
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Changes how many bytes it is. `false`: the growth does not fit, and nothing changes.
    pub fn set(&mut self, bytes: usize) -> bool {
        let more = bytes.saturating_sub(self.bytes);
        if more > 0 && !self.account.charge(self.part, more) {
            return false;
        }
        self.account.give_back(self.part, self.bytes.saturating_sub(bytes));
        self.bytes = bytes;
        true
    }

    /// Adds bytes, for a caller who can wait. `false`: they do not fit.
    pub async fn grow(&mut self, bytes: usize) -> bool {
        let fits = self.account.charge_patiently(self.part, bytes).await;
        self.bytes += if fits { bytes } else { 0 };
        fits
    }

    /// Takes some of its bytes out, as a charge of their own.
    pub fn split(&mut self, bytes: usize) -> Self {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        Self { account: Arc::clone(&self.account), part: self.part, bytes }
    }

    /// Adds bytes that are taken already.
    pub fn add(&mut self, bytes: usize) {
        self.account.add(self.part, bytes);
        self.bytes += bytes;
    }

    /// Adds another charge of the same part of the same account.
    pub fn merge(&mut self, mut other: Self) {
        self.bytes += std::mem::take(&mut other.bytes);
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.account.give_back(self.part, self.bytes);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    fn account(total: usize) -> Arc<Account> {
        let limits = TenantLimits { memory_total: total, ..TenantLimits::default() };
        Account::new(&limits, Arc::new(Arc::new(Metrics::new()).tenant(&"t".into())))
    }

    #[test]
    fn all_parts_share_the_total_and_what_is_given_back_is_free_again() {
        let account = account(100);
        let queue = Charge::take(&account, Part::Queues, 60).unwrap();
        assert!(Charge::take(&account, Part::State, 41).is_none());
        let mut state = Charge::take(&account, Part::State, 30).unwrap();
        assert!(!state.set(41) && state.set(40) && state.bytes() == 40);
        assert_eq!((account.bytes(Part::Queues), account.bytes(Part::State)), (60, 40));
        drop(queue);
        assert!(state.set(100));
        drop(state);
        assert!(Part::ALL.iter().all(|part| account.bytes(*part) == 0));
        assert_eq!(account.excess(100), 0);
    }

    #[test]
    fn what_is_taken_already_counts_even_over_the_total() {
        let account = account(100);
        let mut code = Charge::new(&account, Part::Code);
        code.add(150);
        assert_eq!(account.excess(0), 50);
        assert!(!account.charge(Part::Queues, 1));
        assert!(code.set(99) && account.charge(Part::Queues, 1));
    }

    /// Logs that let go of a third at a time.
    struct Logs(Weak<Account>);

    impl Reserve for Logs {
        fn let_go(&self, _: usize) {
            let account = self.0.upgrade().unwrap();
            account.give_back(Part::Logs, account.bytes(Part::Logs).min(30 << 20));
        }
    }

    #[test]
    fn logs_let_go_before_anything_is_refused() {
        let account = account(100 << 20);
        let logs: Arc<dyn Reserve> = Arc::new(Logs(Arc::downgrade(&account)));
        account.set_reserve(Arc::downgrade(&logs));
        account.add(Part::Logs, 90 << 20);
        assert!(account.charge(Part::Guests, 20 << 20));
        assert_eq!(account.bytes(Part::Logs), 60 << 20);
        // Not again at once, and not for what cannot fit in any case.
        *account.next_relief.lock() = Some(Instant::now() + TELL_INTERVAL);
        assert!(!account.charge(Part::Guests, 30 << 20));
        *account.next_relief.lock() = None;
        assert!(!account.charge(Part::Guests, 81 << 20));
        assert_eq!(account.bytes(Part::Logs), 60 << 20);
        assert!(account.charge(Part::Guests, 30 << 20));
        assert_eq!(account.bytes(Part::Logs), 30 << 20);
    }
}
