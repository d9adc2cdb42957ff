//! The filter: one warm instance per upstream, fed in order.
//!
//! In come the upstream's frames through a queue bounded in bytes, out go publications to the tenant's channels. What
//! has queued up goes in as one call. A call that breaks loses its batch, which is counted; a fresh instance takes the
//! next. While fresh instances keep breaking there is a growing pause before each, and what arrives meanwhile is lost
//! and counted too: the partner is not made to wait for code that does not work.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use wasmtime::Store;

use super::{
    Engine, Guest, LoadError,
    bindings::{
        FilterComponent, FilterComponentPre,
        edge_relay::tenant::types::{FrameParam, Publication as GuestPublication},
    },
    call::{Broken, within},
    channels::{from_guest, publish, to_guest},
    check, host,
    host::Host,
};
use crate::{channel::Frame, metrics::UpstreamMetrics};

/// Bytes that wait for a filter: enough for one message of the largest size allowed. Beyond, the upstream is not read.
const QUEUE_BYTES: usize = 64 << 20;
/// What a queued frame takes besides its payload.
const FRAME_OVERHEAD: usize = 64;
/// Bursts that wait; each has at least one frame, so the bytes bound them sooner.
const QUEUE_BURSTS: usize = 4096;
/// Frames of one call.
const BATCH_FRAMES: usize = 256;
/// Payload bytes of one call, unless a single burst has more.
const BATCH_BYTES: usize = 256 << 10;
/// Instantiating runs the guest's own start-up code.
const INSTANTIATE_DEADLINE: Duration = Duration::from_secs(10);
/// Pause before the second fresh instance in a row; it doubles up to the next.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// A filter's code, linked.
pub struct FilterCode {
    engine: Arc<Engine>,
    pre: FilterComponentPre<Host>,
}

impl FilterCode {
    /// Checks that a component is a filter that can run here.
    pub fn new(engine: &Arc<Engine>, component: &wasmtime::component::Component) -> Result<Self, LoadError> {
        let report = engine.report(component);
        if !report.roles.contains(&"filter") {
            let exports = if report.exports.is_empty() { "none".into() } else { report.exports.join(", ") };
            return Err(LoadError::Role { role: "filter", interface: check::FILTER, exports });
        }
        let pre = engine.link(component)?;
        let pre = FilterComponentPre::new(pre).map_err(|error| LoadError::Link(format!("{error:#}")))?;
        Ok(Self { engine: Arc::clone(engine), pre })
    }
}

/// What a filter is told, in order.
enum Event {
    Open(oneshot::Sender<Option<Vec<Frame>>>),
    Frames(Vec<Frame>, OwnedSemaphorePermit),
    Close(String),
}

/// An upstream's way to its filter.
pub struct FilterQueue {
    events: mpsc::Sender<Event>,
    room: Arc<Semaphore>,
}

impl FilterQueue {
    /// The frames to send first on a new connection; `None`: the filter broke.
    pub async fn open(&self) -> Option<Vec<Frame>> {
        let (answer, answered) = oneshot::channel();
        self.send(Event::Open(answer)).await;
        answered.await.ok().flatten()
    }

    /// Hands over a burst; waits while the queue is full.
    pub async fn frames(&self, burst: Vec<Frame>) {
        let bytes: usize = burst.iter().map(|frame| frame.bytes.len() + FRAME_OVERHEAD).sum();
        let permits = u32::try_from(bytes.min(QUEUE_BYTES)).unwrap_or(u32::MAX);
        // The semaphore is never closed.
        if let Ok(permit) = Arc::clone(&self.room).acquire_many_owned(permits).await {
            self.send(Event::Frames(burst, permit)).await;
        }
    }

    /// The connection is lost.
    pub async fn close(&self, reason: String) {
        self.send(Event::Close(reason)).await;
    }

    async fn send(&self, event: Event) {
        if self.events.send(event).await.is_err() {
            tracing::error!("a filter's worker is gone");
        }
    }
}

/// A queue, and the worker to run on the guests' runtime; it ends when the queue is dropped and empty.
pub fn worker(
    code: Arc<FilterCode>,
    guest: Guest,
    metrics: Arc<UpstreamMetrics>,
) -> (FilterQueue, impl Future<Output = ()>) {
    let (events, queued) = mpsc::channel(QUEUE_BURSTS);
    let worker = Worker { code, guest, metrics, instance: None, failures: 0, not_before: None };
    (FilterQueue { events, room: Arc::new(Semaphore::new(QUEUE_BYTES)) }, worker.run(queued))
}

struct Worker {
    code: Arc<FilterCode>,
    guest: Guest,
    metrics: Arc<UpstreamMetrics>,
    instance: Option<Instance>,
    /// Calls that broke since the last that did not.
    failures: u32,
    /// When the next instance may be made.
    not_before: Option<Instant>,
}

struct Instance {
    store: Store<Host>,
    filter: FilterComponent,
}

impl Worker {
    async fn run(mut self, mut queued: mpsc::Receiver<Event>) {
        let mut held = None;
        while let Some(event) = match held.take() {
            Some(event) => Some(event),
            None => queued.recv().await,
        } {
            match event {
                // A connection that is gone by now needs no answer.
                Event::Open(answer) => drop(answer.send(self.on_open().await)),
                Event::Frames(first, room) => held = self.batch(first, room, &mut queued).await,
                Event::Close(reason) => {
                    if let Some(publications) = self.on_close(&reason).await {
                        self.publish(publications).await;
                    }
                }
            }
        }
    }

    /// Gathers what has queued up behind a burst and calls the filter once; returns an event that was something else.
    async fn batch(
        &mut self,
        mut batch: Vec<Frame>,
        mut room: OwnedSemaphorePermit,
        queued: &mut mpsc::Receiver<Event>,
    ) -> Option<Event> {
        let mut bytes: usize = batch.iter().map(|frame| frame.bytes.len()).sum();
        let mut held = None;
        while batch.len() < BATCH_FRAMES && bytes < BATCH_BYTES && held.is_none() {
            match queued.try_recv() {
                Ok(Event::Frames(more, permit)) if batch.len() + more.len() <= BATCH_FRAMES => {
                    bytes += more.iter().map(|frame| frame.bytes.len()).sum::<usize>();
                    batch.extend(more);
                    room.merge(permit);
                }
                Ok(other) => held = Some(other),
                Err(_) => break,
            }
        }
        match self.on_frames(&batch).await {
            Some(publications) => self.publish(publications).await,
            None => drop(self.metrics.filter_lost.inc_by(batch.len() as u64)),
        }
        held
    }

    /// Waits out a pause: a connection without its subscription is of no use.
    async fn on_open(&mut self) -> Option<Vec<Frame>> {
        self.pause().await;
        let (code, guest) = (Arc::clone(&self.code), self.guest.clone());
        let Instance { store, filter } = self.ready().await?;
        let started = Instant::now();
        let call = filter.edge_relay_tenant_filter().call_on_open(store, &guest.name);
        let answer = within(guest.deadline(), &code.engine.ticker, call).await;
        self.settle(answer, started).map(|frames| frames.into_iter().map(from_guest).collect())
    }

    async fn on_frames(&mut self, frames: &[Frame]) -> Option<Vec<GuestPublication>> {
        let (code, guest) = (Arc::clone(&self.code), self.guest.clone());
        let Instance { store, filter } = self.ready().await?;
        let frames: Vec<FrameParam<'_>> = frames.iter().map(to_guest).collect();
        let started = Instant::now();
        let call = filter.edge_relay_tenant_filter().call_on_frames(store, &guest.name, &frames);
        let answer = within(guest.deadline(), &code.engine.ticker, call).await;
        self.settle(answer, started)
    }

    /// Waits out a pause: a loss is told once, and clients may depend on it.
    async fn on_close(&mut self, reason: &str) -> Option<Vec<GuestPublication>> {
        self.pause().await;
        let (code, guest) = (Arc::clone(&self.code), self.guest.clone());
        let Instance { store, filter } = self.ready().await?;
        let started = Instant::now();
        let call = filter.edge_relay_tenant_filter().call_on_close(store, &guest.name, reason);
        let answer = within(guest.deadline(), &code.engine.ticker, call).await;
        self.settle(answer, started)
    }

    async fn pause(&mut self) {
        if let Some(at) = self.not_before {
            tokio::time::sleep_until(at.into()).await;
        }
    }

    /// The warm instance, or a fresh one; `None` while there is a pause, or if it cannot be made.
    async fn ready(&mut self) -> Option<&mut Instance> {
        if self.instance.is_none() {
            if self.not_before.is_some_and(|at| Instant::now() < at) {
                return None;
            }
            match self.instantiate().await {
                Ok(instance) => self.instance = Some(instance),
                Err(broken) => self.broke(&broken),
            }
        }
        let instance = self.instance.as_mut()?;
        // The epoch has moved on since the last call, which is no reason to yield at the first check.
        instance.store.set_epoch_deadline(1);
        Some(instance)
    }

    async fn instantiate(&mut self) -> Result<Instance, Broken> {
        let engine = &self.code.engine;
        let mut store = host::store(engine, &self.guest);
        store.set_epoch_deadline(1);
        match within(INSTANTIATE_DEADLINE, &engine.ticker, self.code.pre.instantiate_async(&mut store)).await {
            Ok(filter) => Ok(Instance { store, filter }),
            Err(Broken::Trap(why)) => Err(Broken::Instantiate(why)),
            Err(broken) => Err(broken),
        }
    }

    /// Takes note of how a call ended; a broken instance is not used again.
    fn settle<T>(&mut self, answer: Result<T, Broken>, started: Instant) -> Option<T> {
        match answer {
            Ok(value) => {
                self.failures = 0;
                self.metrics.filter_calls.inc();
                self.metrics.filter_seconds.observe(started.elapsed().as_secs_f64());
                Some(value)
            }
            Err(broken) => {
                self.instance = None;
                self.broke(&broken);
                None
            }
        }
    }

    fn broke(&mut self, broken: &Broken) {
        self.metrics.filter_failed(broken.reason());
        // The first fresh instance is made at once.
        let doubled = FIRST_PAUSE.saturating_mul(2_u32.saturating_pow(self.failures.saturating_sub(1)));
        let pause = if self.failures == 0 { Duration::ZERO } else { doubled.min(LONGEST_PAUSE) };
        self.failures = self.failures.saturating_add(1);
        self.not_before = Some(Instant::now() + pause);
        tracing::warn!(
            tenant.name = %self.guest.tenant.name,
            upstream.name = %self.guest.name,
            error = %broken,
            pause_ms = pause.as_millis(),
            "filter broke"
        );
    }

    async fn publish(&mut self, made: Vec<GuestPublication>) {
        if let Some((count, why)) = publish(&self.guest.tenant, made).await {
            tracing::warn!(
                tenant.name = %self.guest.tenant.name,
                upstream.name = %self.guest.name,
                count,
                error = %why,
                "publications of the filter refused"
            );
        }
    }
}
