//! The filter: one warm instance per upstream, which gets its messages in order.
//!
//! In come the upstream's frames through a queue bounded in bytes, out go publications to the tenant's channels. One
//! call takes what has queued up. A call that fails loses its batch, which is counted, and a fresh instance takes the
//! next. An instance that takes another's place is told of the connection first. While calls keep failing, there is a
//! growing pause before each fresh instance. What arrives meanwhile is lost and counted too: the partner does not wait
//! for code that does not work. A filter that follows demand is told of channels between its frames (`demand`).

use std::{future::pending, sync::Arc, time::Instant};

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
            edge_relay::tenant::types::{Connection, ConnectionReason, FrameParam, Output},
            filter::{FilterComponent, FilterComponentPre},
        },
        imports::channels::{carry_out, from_guest, lost, to_guest},
        load::inspect,
        run::{
            host::Host,
            instance::{Role, RoleCode},
            swap::RoleVersion,
            warm::Warm,
        },
    },
    upstream::{FilterEvent, FilterInbox, Line, Opening},
};

mod demand;

use crate::component::roles::filter::demand::Following;

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

/// Passes an upstream's messages to its filter, until the queue's other end is dropped and it is empty. Runs on the
/// guests' runtime.
pub async fn work(live: Arc<LiveFilter>, inbox: FilterInbox) {
    let filter = Warm::new(Arc::clone(&live));
    Worker { filter, following: None, connection: None }.run(live, inbox).await;
}

struct Worker {
    filter: Warm<Filter>,
    /// `None`: the filter does not follow demand.
    following: Option<Following>,
    /// The connection that the filter knows of.
    connection: Option<Connected>,
}

/// A connection that the filter was told of.
struct Connected {
    line: Line,
    /// The instance that was told of it, and the code that it had.
    told: u64,
    version: Arc<RoleVersion<Filter>>,
    /// Whether messages were lost with a call since then.
    has_lost: bool,
}

impl Worker {
    async fn run(mut self, live: Arc<LiveFilter>, inbox: FilterInbox) {
        loop {
            self.update(&inbox);
            self.introduce().await;
            self.tell_of_channels().await;
            let idle_at = self.idle_at();
            let event = tokio::select! {
                event = inbox.next() => event,
                () = self.news() => continue,
                // Other code is told of the connection and of channels even when no frame comes.
                () = live.swapped() => continue,
                () = idle(idle_at) => {
                    self.filter.rest();
                    continue;
                }
            };
            match event {
                Some(FilterEvent::Open(opening)) => self.open(opening).await,
                Some(FilterEvent::Frames { connection, frames, charge, .. }) => {
                    self.on_frames_of(connection, &frames).await;
                    drop(charge);
                }
                Some(FilterEvent::Gap) => self.lost().await,
                Some(FilterEvent::Close { connection, reason }) => {
                    self.following.iter_mut().for_each(Following::end);
                    self.connection = None;
                    self.lost().await;
                    if let Some(made) = self.on_close(connection, &reason).await {
                        carry_out(self.filter.guest(), made, self.until()).await;
                    }
                }
                None => return,
            }
        }
    }

    async fn open(&mut self, opening: Opening) {
        opening.begin();
        let line = opening.line.clone();
        // A connection without its subscription is of no use, so this waits for a pause to end.
        self.filter.pause().await;
        let frames = self.on_open(line.connection, ConnectionReason::New).await;
        let opened = frames.is_some();
        // One that is gone by now needs no answer. What has come on it is filtered all the same.
        let is_there = opening.answer(frames);
        if opened {
            if is_there {
                self.following.iter_mut().for_each(|following| following.begin(&line));
            }
            let (told, version) = (self.filter.serial(), self.filter.version());
            self.connection = Some(Connected { line, told, version, has_lost: false });
        }
    }

    /// Whether there is a connection that the instance was not told of.
    fn is_unknown(&self) -> bool {
        self.connection.as_ref().is_some_and(|connected| connected.told != self.filter.serial())
    }

    /// Tells an instance that takes another's place of the connection.
    async fn introduce(&mut self) {
        if !self.is_unknown() || self.filter.is_pausing() {
            return;
        }
        let Some(Connected { line, version, has_lost, .. }) = &self.connection else { return };
        let reason = match *has_lost || Arc::ptr_eq(version, &self.filter.version()) {
            true => ConnectionReason::Restarted,
            false => ConnectionReason::Swapped,
        };
        let line = line.clone();
        let Some(frames) = self.on_open(line.connection, reason).await else { return };
        let frames: Vec<_> = frames.into_iter().filter_map(|frame| self.to_send(frame)).collect();
        if let Some(following) = &mut self.following {
            following.send(frames);
            following.repeat(reason);
        } else {
            for frame in frames {
                // The connection takes frames whatever the filter does, or it ends.
                if line.frames.send(frame).await.is_err() {
                    break;
                }
            }
        }
        let (told, version) = (self.filter.serial(), self.filter.version());
        self.connection = Some(Connected { line, told, version, has_lost: false });
    }

    /// Takes over a new version. It may begin to follow demand, and then is told of all active channels; one that
    /// followed demand before knows them.
    fn update(&mut self, inbox: &FilterInbox) {
        let version = self.filter.update();
        inbox.set_max_bytes(version.guest.version.limits.filter_queue);
        if version.code.follows_demand && self.following.is_none() {
            let mut following = Following::new(version.guest.tenant.channels.demand.follow());
            self.connection.iter().for_each(|connected| following.begin(&connected.line));
            self.following = Some(following);
        } else if !version.code.follows_demand {
            self.following = None;
        }
    }

    /// When the idle instance is to go. While there is a connection it stays, however little comes.
    fn idle_at(&self) -> Option<Instant> {
        self.filter.idle_at().filter(|_| self.connection.is_none())
    }

    /// Calls the filter once. Messages of a call that fails are lost.
    async fn on_frames_of(&mut self, connection: u64, frames: &[Frame]) {
        self.filter.update();
        self.introduce().await;
        // The filter does not know of it if its `on-open` failed.
        let is_known = self.connection.as_ref().is_some_and(|known| known.line.connection == connection);
        let made = if is_known && !self.is_unknown() { self.on_frames(connection, frames).await } else { None };
        match made {
            Some(made) => carry_out(self.filter.guest(), made, self.until()).await,
            None => {
                self.filter.guest().metrics.lost.inc_by(frames.len() as u64);
                self.connection.iter_mut().for_each(|connected| connected.has_lost = true);
                self.lost().await;
            }
        }
    }

    /// When the time of the call that has just returned is over.
    fn until(&self) -> std::time::Instant {
        self.filter.until(self.filter.guest().version.limits.filter_call)
    }

    /// Marks a gap between what the filter has published and what it will.
    async fn lost(&mut self) {
        let guest = self.filter.guest();
        lost(guest, &guest.name).await;
    }

    async fn on_open(&mut self, number: u64, reason: ConnectionReason) -> Option<Vec<Frame>> {
        let connection = Connection { number, reason };
        let frames = self.call_as(reason == ConnectionReason::New, async |store, filter, upstream| {
            filter.own.edge_relay_tenant_filter().call_on_open(store, upstream, connection).await
        });
        frames.await.map(|frames| frames.into_iter().map(from_guest).collect())
    }

    async fn on_frames(&mut self, connection: u64, frames: &[Frame]) -> Option<Vec<Output>> {
        let frames: Vec<FrameParam<'_>> = frames.iter().map(to_guest).collect();
        let made = self.call(async |store, filter, upstream| {
            filter.own.edge_relay_tenant_filter().call_on_frames(store, upstream, connection, &frames).await
        });
        made.await
    }

    /// Calls `on-close`, after the pause if there is one: a loss is told once, and clients may depend on it.
    async fn on_close(&mut self, connection: u64, reason: &str) -> Option<Vec<Output>> {
        self.filter.pause().await;
        let made = self.call(async |store, filter, upstream| {
            filter.own.edge_relay_tenant_filter().call_on_close(store, upstream, connection, reason).await
        });
        made.await
    }

    /// Calls a function of the filter, which is told its upstream's name. `None`: see [`Warm::call`].
    async fn call<T>(&mut self, call: impl AsyncFnOnce(&mut Store<Host>, &Filter, &str) -> Result<T>) -> Option<T> {
        self.call_as(true, call).await
    }

    /// The same. `counts`: whether its success shows that the code works. One that every fresh instance gets does not.
    async fn call_as<T>(
        &mut self,
        counts: bool,
        call: impl AsyncFnOnce(&mut Store<Host>, &Filter, &str) -> Result<T>,
    ) -> Option<T> {
        let guest = self.filter.guest();
        let (upstream, deadline) = (Arc::clone(&guest.name), guest.version.limits.filter_call);
        let call = async |store: &mut Store<Host>, filter: &Filter| call(store, filter, &upstream).await;
        match counts {
            true => self.filter.call(deadline, call).await,
            false => self.filter.prepare(deadline, call).await,
        }
    }
}

/// Returns at that time. `None`: never.
async fn idle(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => pending().await,
    }
}
