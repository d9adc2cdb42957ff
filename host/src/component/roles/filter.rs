//! The filter: one warm instance per upstream, which gets its messages in order.
//!
//! In come the upstream's frames through a queue bounded in bytes, out go publications to the tenant's channels. One
//! call takes what has queued up. A call that fails loses its batch, which is counted, and a fresh instance takes the
//! next. While calls keep failing, there is a growing pause before each fresh instance. What arrives meanwhile is lost
//! and counted too: the partner does not wait for code that does not work. A filter that follows demand is told of
//! channels between its frames (`demand`).

use std::{future::pending, sync::Arc, time::Instant};

use tokio::sync::mpsc;
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
    upstream::{FilterEvent, FilterQueue, OutboundFrame, QueueRoom, filter_queue::signed},
};

mod demand;

use crate::component::roles::filter::demand::Following;

/// The most frames in one call.
const BATCH_FRAMES: usize = 256;
/// The most payload bytes in one call, unless a single burst has more.
const BATCH_BYTES: usize = 256 << 10;

/// The functions of a filter.
pub struct Filter {
    own: FilterComponent,
    /// `None`: it does not follow demand.
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

/// Makes a queue, and the worker to run on the guests' runtime. The worker ends when the queue is dropped and empty.
pub fn worker(live: Arc<LiveFilter>) -> (FilterQueue, impl Future<Output = ()>) {
    let (queue, queued) =
        FilterQueue::new(live.version().guest.metrics.queue.clone(), Arc::clone(&live.version().guest.tenant.account));
    let worker = Worker { filter: Warm::new(Arc::clone(&live)), following: None, connection: None };
    (queue, worker.run(live, queued))
}

struct Worker {
    filter: Warm<Filter>,
    /// `None`: the filter does not follow demand.
    following: Option<Following>,
    /// The way to the connection while there is one.
    connection: Option<mpsc::Sender<OutboundFrame>>,
}

impl Worker {
    async fn run(mut self, live: Arc<LiveFilter>, mut queued: mpsc::Receiver<FilterEvent>) {
        let mut held = None;
        loop {
            self.update();
            self.tell_of_channels().await;
            let idle_at = self.idle_at();
            let event = match held.take() {
                Some(event) => Some(event),
                None => tokio::select! {
                    event = queued.recv() => event,
                    () = self.news() => continue,
                    // Code that begins to follow demand is told of channels even when no frame comes.
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

    /// Takes over a new version. It may begin to follow demand, and then is told of all active channels; one that
    /// followed demand before knows them.
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

    /// When the idle instance is to go. While there is a connection it stays, however little comes.
    fn idle_at(&self) -> Option<Instant> {
        self.filter.idle_at().filter(|_| self.connection.is_none())
    }

    /// Gathers the bursts that have queued up behind one and calls the filter once. Returns the event after them.
    async fn batch(
        &mut self,
        mut batch: Vec<Frame>,
        mut room: QueueRoom,
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

    /// Marks a gap between what the filter has published and what it will.
    fn lost(&self) {
        let guest = self.filter.guest();
        guest.tenant.channels.lost(&guest.name);
    }

    /// Calls `on-open`, after the pause if there is one: a connection without its subscription is of no use.
    async fn on_open(&mut self) -> Option<Vec<Frame>> {
        self.filter.pause().await;
        let frames = self.call(async |store, filter, upstream| {
            filter.own.edge_relay_tenant_filter().call_on_open(store, upstream).await
        });
        frames.await.map(|frames| frames.into_iter().map(from_guest).collect())
    }

    async fn on_frames(&mut self, frames: &[Frame]) -> Option<Vec<GuestPublication>> {
        let frames: Vec<FrameParam<'_>> = frames.iter().map(to_guest).collect();
        let made = self.call(async |store, filter, upstream| {
            filter.own.edge_relay_tenant_filter().call_on_frames(store, upstream, &frames).await
        });
        made.await
    }

    /// Calls `on-close`, after the pause if there is one: a loss is told once, and clients may depend on it.
    async fn on_close(&mut self, reason: &str) -> Option<Vec<GuestPublication>> {
        self.filter.pause().await;
        let made = self.call(async |store, filter, upstream| {
            filter.own.edge_relay_tenant_filter().call_on_close(store, upstream, reason).await
        });
        made.await
    }

    /// Calls a function of the filter, which is told its upstream's name. `None`: see [`Warm::call`].
    async fn call<T>(&mut self, call: impl AsyncFnOnce(&mut Store<Host>, &Filter, &str) -> Result<T>) -> Option<T> {
        let guest = self.filter.guest();
        let (upstream, deadline) = (Arc::clone(&guest.name), guest.version.limits.filter_call);
        self.filter.call(deadline, async |store, filter| call(store, filter, &upstream).await).await
    }
}

/// Returns at that time. `None`: never.
async fn idle(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => pending().await,
    }
}
