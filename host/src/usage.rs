//! What a tenant uses of what all share: the processors, and the bytes and messages that go through the relay.
//!
//! Who receives or sends something for a tenant notes it here when it is done, and is told until when the tenant is
//! over a rate. Until then it reads no more, or writes no more: nothing is dropped, and the other side waits. So one
//! turn may go over a rate, and the next one waits longer for it.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use config::TenantLimits;
use prometheus_client::metrics::counter::Counter;
use tokio::time::{Sleep, sleep_until};

mod body;

pub use crate::usage::body::{Direction, Metered};
use crate::{
    metrics::{FloatCounter, TenantMetrics},
    rate::Rate,
    sync::Mutex,
};

/// Time that the figures for operators look back, at least.
const WINDOW: Duration = Duration::from_secs(10);
/// How long somebody waits before it is asked again whether more may be received or sent: a raised limit holds soon.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// Shortest time between two lines of the log that say that a tenant is held back.
const TELL_INTERVAL: Duration = Duration::from_secs(60);

/// One tenant's use.
pub struct Usage {
    messages: Flow,
    control_frames: Flow,
    bytes_in: Flow,
    bytes_out: Flow,
    /// Bytes in both directions.
    bytes: [Counter; 2],
    metrics: Arc<TenantMetrics>,
    looks: Mutex<Looks>,
}

/// What has been received for a tenant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Received {
    pub messages: usize,
    /// Frames that are no message's last: pings, pongs, and fragments.
    pub control_frames: usize,
    pub bytes: usize,
}

impl Received {
    /// One message, whose bytes are counted elsewhere or not at all: a request.
    pub const MESSAGE: Self = Self { messages: 1, control_frames: 0, bytes: 0 };
    /// Something of each kind.
    pub const ANY: Self = Self { messages: 1, control_frames: 1, bytes: 1 };
}

/// What a tenant has used lately.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Recent {
    /// 1.0 is one processor.
    pub processors: f64,
    pub bytes_per_second: f64,
}

/// One thing that a rate bounds.
struct Flow {
    /// The limit's key in the manifest.
    limit: &'static str,
    rate: Rate,
    throttled: FloatCounter,
    /// Until when the tenant was held back last.
    until: Mutex<Option<Instant>>,
}

/// What was seen when somebody last looked.
#[derive(Default)]
struct Looks {
    marks: [Option<Mark>; 2],
    /// When the log last said that the tenant is held back, and for how long it had been.
    told: Option<Instant>,
    throttled: [f64; 4],
}

#[derive(Clone, Copy)]
struct Mark {
    at: Instant,
    processor: f64,
    bytes: u64,
}

impl Usage {
    pub fn new(limits: &TenantLimits, metrics: Arc<TenantMetrics>) -> Arc<Self> {
        let flow =
            |limit| Flow { limit, rate: Rate::new(0), throttled: metrics.throttled(limit), until: Mutex::default() };
        let usage = Self {
            messages: flow("messages-per-second"),
            control_frames: flow("control-frames-per-second"),
            bytes_in: flow("bytes-in-per-second"),
            bytes_out: flow("bytes-out-per-second"),
            bytes: ["in", "out"].map(|direction| metrics.bytes(direction)),
            metrics,
            looks: Mutex::default(),
        };
        usage.set(limits);
        Arc::new(usage)
    }

    /// The use of a tenant that says nothing of its limits.
    #[cfg(test)]
    pub fn of_test() -> Arc<Self> {
        let metrics = Arc::new(crate::metrics::Metrics::new()).tenant(&"t".into());
        Self::new(&TenantLimits::default(), Arc::new(metrics))
    }

    /// Changes the rates, from now on.
    pub fn set(&self, limits: &TenantLimits) {
        self.messages.rate.set(limits.messages_per_second);
        self.control_frames.rate.set(limits.control_frames_per_second);
        self.bytes_in.rate.set(limits.bytes_in_per_second);
        self.bytes_out.rate.set(limits.bytes_out_per_second);
    }

    /// Notes that a processor has worked for the tenant.
    pub fn worked(&self, time: Duration) {
        self.metrics.processor_seconds.inc_by(time.as_secs_f64());
    }

    /// Notes what was received. Returns when to ask whether more [may be](Self::wait_to_receive). `None`: it may.
    pub fn received(&self, received: Received, now: Instant) -> Option<Instant> {
        let [bytes_in, _] = &self.bytes;
        bytes_in.inc_by(received.bytes as u64);
        self.flows_in(received).filter_map(|(flow, count)| flow.take(count, now)).max()
    }

    /// Notes something that is received when it may be, and returns then.
    pub async fn let_in(&self, received: Received) {
        while let Some(until) = self.wait_to_receive(received, Instant::now()) {
            sleep_until(until.into()).await;
        }
        self.received(received, Instant::now());
    }

    /// Notes bytes that are sent when they may be, and returns then.
    pub async fn let_out(&self, bytes: usize) {
        while let Some(until) = self.wait(Direction::Out, Instant::now()) {
            sleep_until(until.into()).await;
        }
        self.sent(bytes, Instant::now());
    }

    /// Returns when to ask again whether more of what was received may be. `None`: it may.
    pub fn wait_to_receive(&self, received: Received, now: Instant) -> Option<Instant> {
        self.flows_in(received).filter_map(|(flow, _)| flow.take(0, now)).max()
    }

    /// What there was something of. Who brings nothing does not wait for those who bring too much.
    fn flows_in(&self, received: Received) -> impl Iterator<Item = (&Flow, usize)> {
        let Received { messages, control_frames, bytes } = received;
        let flows = [(&self.messages, messages), (&self.control_frames, control_frames), (&self.bytes_in, bytes)];
        flows.into_iter().filter(|(_, count)| *count > 0)
    }

    /// Notes what was sent. Returns when to ask whether more than answers [may be](Self::wait). `None`: it may.
    pub fn sent(&self, bytes: usize, now: Instant) -> Option<Instant> {
        let [_, bytes_out] = &self.bytes;
        bytes_out.inc_by(bytes as u64);
        self.bytes_out.take(bytes, now)
    }

    /// Returns when to ask again whether bytes may go in a direction. `None`: they may.
    pub fn wait(&self, direction: Direction, now: Instant) -> Option<Instant> {
        let flow = if direction == Direction::In { &self.bytes_in } else { &self.bytes_out };
        flow.take(0, now)
    }

    /// How many bytes may be sent now.
    pub fn room_to_send(&self, now: Instant) -> usize {
        self.bytes_out.rate.left(now)
    }

    /// What it has used lately.
    pub fn recent(&self) -> Recent {
        let Looks { marks: [Some(from), _], .. } = *self.looks.lock() else { return Recent::default() };
        let now = self.mark(Instant::now());
        let seconds = (now.at - from.at).as_secs_f64().max(f64::EPSILON);
        Recent {
            processors: (now.processor - from.processor) / seconds,
            bytes_per_second: (now.bytes - from.bytes) as f64 / seconds,
        }
    }

    /// Has [`Usage::recent`] begin later, and logs what held the tenant back. It is called now and then.
    pub fn look(&self, now: Instant) {
        let looks = &mut *self.looks.lock();
        let [older, newer] = &mut looks.marks;
        if newer.or(*older).is_none_or(|mark| now - mark.at >= WINDOW) {
            *older = newer.take().or(*older);
            *newer = Some(self.mark(now));
            older.get_or_insert(self.mark(now));
        }
        if looks.told.is_some_and(|told| now - told < TELL_INTERVAL) {
            return;
        }
        let flows = [&self.messages, &self.control_frames, &self.bytes_in, &self.bytes_out];
        for (flow, before) in flows.into_iter().zip(&mut looks.throttled) {
            let throttled = flow.throttled.get();
            let seconds = throttled - std::mem::replace(before, throttled);
            if seconds > 0.0 {
                looks.told = Some(now);
                let (tenant, limit, most) = (self.metrics.tenant_name(), flow.limit, flow.rate.per_second());
                tracing::warn!(tenant.name = %tenant, limit, most, seconds, "the tenant is held back by a limit");
            }
        }
    }

    fn mark(&self, at: Instant) -> Mark {
        let bytes = self.bytes.iter().map(Counter::get).sum();
        Mark { at, processor: self.metrics.processor_seconds.get(), bytes }
    }
}

impl Flow {
    /// Takes from the rate, even more than there is. Returns when to ask again, if there is nothing more.
    fn take(&self, count: usize, now: Instant) -> Option<Instant> {
        let wait = self.rate.owe(count, now);
        if wait.is_zero() {
            return None;
        }
        let until = now + wait.min(ASK_AGAIN);
        let mut last = self.until.lock();
        let from = last.unwrap_or(now).max(now);
        if from < until {
            self.throttled.inc_by((until - from).as_secs_f64());
            *last = Some(until);
        }
        Some(until)
    }
}

/// Holds back one of many things that are received or sent one after another.
#[derive(Default)]
pub struct Pause(Option<Pin<Box<Sleep>>>);

impl Pause {
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Begins, unless there is nothing to wait for.
    pub fn until(&mut self, until: Option<Instant>) {
        self.0 = until.map(|until| Box::pin(sleep_until(until.into())));
    }

    /// Is ready when it is over.
    pub fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if let Some(sleep) = &mut self.0 {
            ready!(sleep.as_mut().poll(context));
            self.0 = None;
        }
        Poll::Ready(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tracing_subscriber::layer::{Context as LayerContext, Layer, SubscriberExt};

    use super::*;

    fn seconds(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    /// Counts the lines of the log.
    #[derive(Clone, Default)]
    struct Lines(Arc<AtomicUsize>);

    impl<S: tracing::Subscriber> Layer<S> for Lines {
        fn on_event(&self, _: &tracing::Event<'_>, _: LayerContext<'_, S>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn the_log_says_once_a_minute_by_what_a_tenant_is_held_back() {
        let (usage, start, lines) = (Usage::of_test(), Instant::now(), Lines::default());
        usage.set(&TenantLimits { messages_per_second: 10, bytes_in_per_second: 1000, ..TenantLimits::default() });
        let _kept = tracing::subscriber::set_default(tracing_subscriber::registry().with(lines.clone()));
        for second in 0..=130 {
            let now = start + seconds(f64::from(second));
            usage.received(Received { messages: 20, bytes: 2000, ..Received::default() }, now);
            usage.look(now);
        }
        assert_eq!(lines.0.load(Ordering::Relaxed), 3 * 2, "in three minutes, for two limits");
        usage.look(start + seconds(190.0));
        assert_eq!(lines.0.load(Ordering::Relaxed), 4 * 2, "what came since");
        usage.look(start + seconds(260.0));
        assert_eq!(lines.0.load(Ordering::Relaxed), 4 * 2, "nothing has held it back since");
    }

    #[test]
    fn who_takes_too_much_waits_for_it_and_so_do_the_others() {
        let (usage, start) = (Usage::of_test(), Instant::now());
        usage.set(&TenantLimits { messages_per_second: 10, bytes_in_per_second: 1000, ..TenantLimits::default() });
        let received = |messages, bytes, now| {
            usage.received(Received { messages, bytes, ..Received::default() }, now).map(|until| until - start)
        };
        assert_eq!(received(10, 0, start), None, "what a second has may come at once");
        assert_eq!(received(5, 0, start), Some(seconds(0.5)));
        assert_eq!(received(0, 10, start), None, "who brings none does not wait for them");
        assert_eq!(received(1, 0, start), Some(seconds(0.6)), "who brings one waits for all");
        assert_eq!(received(4, 3000, start + seconds(0.5)), Some(seconds(1.5)), "the longer of two, and then it asks");
        let again = Received { bytes: 1, ..Received::default() };
        let wait = |now| usage.wait_to_receive(again, now).map(|until| until - start);
        assert_eq!(wait(start + seconds(1.5)), Some(seconds(2.5)));
        assert_eq!((wait(start + seconds(2.5)), received(0, 0, start + seconds(2.5))), (None, None));
        // It was held back by messages until the end of the first second, and by bytes for two seconds.
        assert_eq!([usage.messages.throttled.get(), usage.bytes_in.throttled.get()], [1.0, 2.0]);
        // A raised limit holds when it asks next.
        assert_eq!(received(0, 9000, start + seconds(2.5)), Some(seconds(3.5)));
        usage.set(&TenantLimits::default());
        assert_eq!(wait(start + seconds(3.5)), None);
    }

    #[test]
    fn what_was_used_lately_is_known_for_the_last_ten_seconds_or_more() {
        let (usage, start) = (Usage::of_test(), Instant::now().checked_sub(seconds(25.0)).unwrap());
        assert_eq!(usage.recent(), Recent::default());
        usage.look(start);
        usage.worked(seconds(100.0));
        usage.sent(1 << 20, start);
        usage.look(start + seconds(5.0));
        usage.look(start + seconds(10.0));
        usage.worked(seconds(3.0));
        usage.received(Received { bytes: 1500, ..Received::default() }, start);
        usage.look(start + seconds(20.0));
        let Recent { processors, bytes_per_second } = usage.recent();
        assert!((0.19..0.21).contains(&processors), "{processors}");
        assert!((95.0..105.0).contains(&bytes_per_second), "{bytes_per_second}");
    }

    #[tokio::test]
    async fn a_pause_lasts_until_its_time() {
        let mut pause = Pause::default();
        let wait = async |pause: &mut Pause| std::future::poll_fn(|context| pause.poll(context)).await;
        wait(&mut pause).await;
        let until = Instant::now() + seconds(0.02);
        pause.until(Some(until));
        wait(&mut pause).await;
        assert!(Instant::now() >= until);
        wait(&mut pause).await;
    }
}
