//! The filter: one warm instance per upstream, fed in order.
//!
//! In come the upstream's frames through a queue bounded in bytes, out go publications to the tenant's channels. What
//! has queued up goes in as one call. A call that breaks loses its batch, which is counted; a fresh instance takes the
//! next. While fresh instances keep breaking there is a growing pause before each, and what arrives meanwhile is lost
//! and counted too: the partner is not made to wait for code that does not work. One that follows demand is told of
//! channels between its frames (`demand`).

use std::{
    future::pending,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::{OwnedSemaphorePermit, mpsc};
use wasmtime::{
    Result, Store,
    component::{Instance, InstancePre},
};
use wire::Frame;

use crate::{
    component::{
        Live, RoleKind,
        bindings::{
            demand::{FilterDemandComponent, FilterDemandComponentPre},
            edge_relay::tenant::types::{FrameParam, Publication as GuestPublication},
            filter::{FilterComponent, FilterComponentPre},
        },
        imports::channels::{from_guest, publish_all, to_guest},
        load::inspect,
        run::{
            host::Host,
            instance::{Role, RoleCode},
            warm::Warm,
        },
    },
    upstream::{FilterEvent, FilterQueue, filter_queue::signed},
};

mod demand;

use crate::component::roles::filter::demand::Following;

/// Frames of one call.
const BATCH_FRAMES: usize = 256;
/// Payload bytes of one call, unless a single burst has more.
const BATCH_BYTES: usize = 256 << 10;

/// The functions of a filter.
pub struct Filter {
    own: FilterComponent,
    /// Of one that follows demand.
    demand: Option<FilterDemandComponent>,
}

impl Role for Filter {
    const KIND: RoleKind = RoleKind::Filter;

    fn find(store: &mut Store<Host>, instance: &Instance) -> Result<Self> {
        let follows = instance.get_export_index(&mut *store, None, inspect::FILTER_DEMAND).is_some();
        let demand = follows.then(|| FilterDemandComponent::new(&mut *store, instance)).transpose()?;
        Ok(Self { own: FilterComponent::new(store, instance)?, demand })
    }

    fn check(pre: &InstancePre<Host>) -> Result<()> {
        if pre.component().get_export_index(None, inspect::FILTER_DEMAND).is_some() {
            FilterDemandComponentPre::new(pre.clone())?;
        }
        FilterComponentPre::new(pre.clone()).map(drop)
    }
}

pub type FilterCode = RoleCode<Filter>;
pub type LiveFilter = Live<Filter>;

/// A queue, and the worker to run on the guests' runtime; it ends when the queue is dropped and empty.
pub fn worker(live: Arc<LiveFilter>) -> (FilterQueue, impl Future<Output = ()>) {
    let (queue, queued) = FilterQueue::new(live.version().guest.metrics.queue.clone());
    let worker = Worker { filter: Warm::new(Arc::clone(&live)), following: None, connection: None };
    (queue, worker.run(live, queued))
}

struct Worker {
    filter: Warm<Filter>,
    /// If it follows demand.
    following: Option<Following>,
    /// The way to the connection, from when it is opened to its end.
    connection: Option<mpsc::Sender<Frame>>,
}

impl Worker {
    async fn run(mut self, live: Arc<LiveFilter>, mut queued: mpsc::Receiver<FilterEvent>) {
        let mut held = None;
        loop {
            self.update();
            self.tell().await;
            let idle_at = self.idle_at();
            let event = match held.take() {
                Some(event) => Some(event),
                None => tokio::select! {
                    event = queued.recv() => event,
                    () = self.news() => continue,
                    // New code that follows demand is told of the active channels, even if no frame comes.
                    () = live.swapped() => continue,
                    () = idle(idle_at) => {
                        self.filter.rest();
                        continue;
                    }
                },
            };
            match event {
                Some(FilterEvent::Open(answer, outbound)) => {
                    let frames = self.on_open().await;
                    let opened = frames.is_some();
                    // A connection that is gone by now needs no answer.
                    if answer.send(frames).is_ok() && opened {
                        self.following.iter_mut().for_each(|following| following.begin(&outbound));
                        self.connection = Some(outbound);
                    }
                }
                Some(FilterEvent::Frames(first, room)) => held = self.batch(first, room, &mut queued).await,
                Some(FilterEvent::Close(reason)) => {
                    self.following.iter_mut().for_each(Following::end);
                    self.connection = None;
                    self.lost();
                    if let Some(publications) = self.on_close(&reason).await {
                        publish_all(self.filter.guest(), publications).await;
                    }
                }
                None => return,
            }
        }
    }

    /// Whether the filter follows demand may change with its code: one that begins to is told of all channels that are
    /// active, one that goes on knows them.
    fn update(&mut self) {
        let version = self.filter.update();
        if version.code.follows_demand && self.following.is_none() {
            let mut following = Following::new(version.guest.tenant.channels.demand.follow());
            self.connection.iter().for_each(|outbound| following.begin(outbound));
            self.following = Some(following);
        } else if !version.code.follows_demand {
            self.following = None;
        }
    }

    fn deadline(&self) -> Duration {
        self.filter.guest().version.limits.filter_call
    }

    /// When the instance is to go: while there is a connection it stays, however little comes.
    fn idle_at(&self) -> Option<Instant> {
        self.filter.idle_at().filter(|_| self.connection.is_none())
    }

    /// Gathers what has queued up behind a burst and calls the filter once; returns an event that was something else.
    async fn batch(
        &mut self,
        mut batch: Vec<Frame>,
        mut room: OwnedSemaphorePermit,
        queued: &mut mpsc::Receiver<FilterEvent>,
    ) -> Option<FilterEvent> {
        let mut bytes: usize = batch.iter().map(|frame| frame.bytes.len()).sum();
        let mut held = None;
        while batch.len() < BATCH_FRAMES && bytes < BATCH_BYTES && held.is_none() {
            match queued.try_recv() {
                Ok(FilterEvent::Frames(more, permit)) if batch.len() + more.len() <= BATCH_FRAMES => {
                    bytes += more.iter().map(|frame| frame.bytes.len()).sum::<usize>();
                    batch.extend(more);
                    room.merge(permit);
                }
                Ok(other) => held = Some(other),
                Err(_) => break,
            }
        }
        self.filter.guest().metrics.queue.dec_by(signed(batch.len()));
        match self.on_frames(&batch).await {
            Some(publications) => publish_all(self.filter.guest(), publications).await,
            None => {
                self.filter.guest().metrics.lost.inc_by(batch.len() as u64);
                self.lost();
            }
        }
        held
    }

    /// What the filter publishes from now on does not follow what it has published without a gap.
    fn lost(&self) {
        let guest = self.filter.guest();
        guest.tenant.channels.lost(&guest.name);
    }

    /// Waits out a pause: a connection without its subscription is of no use.
    async fn on_open(&mut self) -> Option<Vec<Frame>> {
        self.filter.pause().await;
        let upstream = Arc::clone(&self.filter.guest().name);
        let frames = self.filter.call(self.deadline(), async |store: &mut Store<Host>, filter: &Filter| {
            let made = filter.own.edge_relay_tenant_filter().call_on_open(&mut *store, &upstream).await?;
            Ok(made)
        });
        frames.await.map(|frames| frames.into_iter().map(from_guest).collect())
    }

    async fn on_frames(&mut self, frames: &[Frame]) -> Option<Vec<GuestPublication>> {
        let upstream = Arc::clone(&self.filter.guest().name);
        let frames: Vec<FrameParam<'_>> = frames.iter().map(to_guest).collect();
        let made = self.filter.call(self.deadline(), async |store: &mut Store<Host>, filter: &Filter| {
            let made = filter.own.edge_relay_tenant_filter().call_on_frames(&mut *store, &upstream, &frames).await?;
            Ok(made)
        });
        made.await
    }

    /// Waits out a pause: a loss is told once, and clients may depend on it.
    async fn on_close(&mut self, reason: &str) -> Option<Vec<GuestPublication>> {
        self.filter.pause().await;
        let upstream = Arc::clone(&self.filter.guest().name);
        let made = self.filter.call(self.deadline(), async |store: &mut Store<Host>, filter: &Filter| {
            let made = filter.own.edge_relay_tenant_filter().call_on_close(&mut *store, &upstream, reason).await?;
            Ok(made)
        });
        made.await
    }
}

/// Returns at that time.
async fn idle(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => pending().await,
    }
}
