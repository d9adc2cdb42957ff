//! Tells a filter that follows demand, between its frames, which channels became active or idle.
//!
//! It makes one call at a time, and none before the connection has room for what the last one returned. So the worker
//! never waits for the connection, which may be waiting for the worker to take frames.

use std::{
    collections::{HashSet, VecDeque},
    future::pending,
    iter,
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;
use wire::Frame;

use crate::{
    component::{
        bindings::edge_relay::tenant::types::{Connection, ConnectionReason},
        imports::channels::from_guest,
        roles::filter::Worker,
    },
    demand::{ChannelChange, Follower},
    metrics::Blame,
    upstream::{Line, MAX_OUTBOUND, OutboundFrame},
};

/// How long calls about channels go on before frames have their turn. The last of them may take longer.
const TURN: Duration = Duration::from_millis(2);

/// The channels that one filter follows, and its way to the connection.
pub(super) struct Following {
    follower: Follower,
    /// `None`: there is no connection.
    line: Option<Line>,
    /// Channels whose call failed on this connection. Only other code is told of them again.
    broken: HashSet<Arc<str>>,
    /// Those that other code is told of as if nobody had been.
    retried: HashSet<Arc<str>>,
    /// Why an instance is told again of what another was told.
    again: ConnectionReason,
    /// What the last call returned and the connection has not taken.
    unsent: VecDeque<OutboundFrame>,
}

impl Following {
    pub(super) fn new(follower: Follower) -> Self {
        Self {
            follower,
            line: None,
            broken: HashSet::new(),
            retried: HashSet::new(),
            again: ConnectionReason::Restarted,
            unsent: VecDeque::new(),
        }
    }

    /// Begins anew with a new connection.
    pub(super) fn begin(&mut self, line: &Line) {
        self.unsent.clear();
        self.broken.clear();
        self.retried.clear();
        self.line = Some(line.clone());
        self.follower.begin();
    }

    /// Tells an instance that takes another's place of the channels that the other was told of.
    pub(super) fn repeat(&mut self, reason: ConnectionReason) {
        self.again = reason;
        if reason == ConnectionReason::Swapped {
            self.retried = std::mem::take(&mut self.broken);
        }
        self.follower.repeat();
    }

    /// Drops the connection that is lost, and what was meant for it.
    pub(super) fn end(&mut self) {
        self.unsent.clear();
        self.line = None;
        self.follower.end();
    }

    /// Returns what the filter is to be told next, if all that it has said is on its way.
    fn next(&self) -> Option<ChannelChange> {
        let is_open = self.line.as_ref().is_some_and(|line| !line.frames.is_closed());
        let next = || iter::from_fn(|| self.follower.next()).find(|it| !it.again || !self.broken.contains(&it.channel));
        if is_open && self.unsent.is_empty() { next() } else { None }
    }

    /// Sends as much as there is room for.
    pub(super) fn send(&mut self, frames: Vec<OutboundFrame>) {
        self.unsent.extend(frames);
        while let Some(line) = &self.line
            && let Ok(place) = line.frames.try_reserve()
            && let Some(frame) = self.unsent.pop_front()
        {
            place.send(frame);
        }
    }

    /// Sends a frame that has waited, or returns when there may be something to tell. It may be cancelled without loss.
    async fn go_on(&mut self) {
        match &self.line {
            Some(line) if line.frames.is_closed() => self.end(),
            Some(line) if !self.unsent.is_empty() => {
                if let Ok(place) = line.frames.reserve().await
                    && let Some(frame) = self.unsent.pop_front()
                {
                    place.send(frame);
                }
            }
            Some(_) => self.follower.changed().await,
            None => pending().await,
        }
    }
}

impl Worker {
    /// Tells the filter of channels, if there is something to tell, for one turn.
    pub(super) async fn tell_of_channels(&mut self) {
        if self.following.is_none() || self.is_unknown() {
            return;
        }
        let began = Instant::now();
        // During a pause, changes wait until the next instance may be made.
        while !self.filter.is_pausing() && began.elapsed() < TURN {
            let Some(change) = self.following.as_ref().and_then(Following::next) else { return };
            let Some(frames) = self.on_channel(&change).await else {
                self.filter.guest().metrics.lost.inc();
                if let Some(following) = &mut self.following {
                    following.broken.insert(change.channel);
                }
                // Another instance is to be told of the connection first.
                return;
            };
            if !frames.is_empty() {
                // There may be a gap between what the partner has sent and what it sends after these frames, so mark it
                // before they are sent.
                let guest = self.filter.guest();
                guest.tenant.channels.interrupted(&change.channel, &guest.name);
            }
            let charged = frames.into_iter().filter_map(|frame| self.to_send(frame)).collect();
            if let Some(following) = &mut self.following {
                following.broken.remove(&change.channel);
                following.send(charged);
            }
        }
    }

    /// Returns when there may be something to tell. It may be cancelled without loss.
    pub(super) async fn news(&mut self) {
        if self.is_unknown() {
            return self.filter.pause().await;
        }
        match &mut self.following {
            Some(following) => {
                following.go_on().await;
                if following.unsent.is_empty() {
                    self.filter.pause().await;
                }
            }
            None => pending().await,
        }
    }

    async fn on_channel(&mut self, change: &ChannelChange) -> Option<Vec<Frame>> {
        let Some(line) = self.following.as_ref().and_then(|following| following.line.as_ref()) else {
            return Some(Vec::new());
        };
        let again =
            self.following.as_ref().filter(|following| change.again && !following.retried.contains(&change.channel));
        let again = again.map(|following| following.again);
        let connection = Connection { number: line.connection, reason: again.unwrap_or(ConnectionReason::New) };
        let frames = self.call_as(!change.again, async |store, filter, upstream| {
            // Only a filter that follows demand gets here.
            let Some(functions) = &filter.demand else { return Ok(Vec::new()) };
            let functions = functions.edge_relay_tenant_filter_demand();
            match change.active {
                true => functions.call_on_channel_active(store, upstream, connection, &change.channel).await,
                false => functions.call_on_channel_idle(store, upstream, connection.number, &change.channel).await,
            }
        });
        frames.await.map(|frames| frames.into_iter().map(from_guest).collect())
    }

    /// The frame, with its bytes on the tenant's account. `None`: it is too large, or they do not fit, and it is left
    /// out.
    pub(super) fn to_send(&self, frame: Frame) -> Option<OutboundFrame> {
        if !self.fits(&frame) {
            return None;
        }
        let guest = self.filter.guest();
        let charged = OutboundFrame::new(frame, &guest.tenant.account);
        if charged.is_none() {
            guest.metrics.failed(Blame::HostFailed, "memory");
        }
        charged
    }

    /// Whether a frame is small enough to wait for the connection.
    fn fits(&self, frame: &Frame) -> bool {
        let fits = frame.bytes.len() <= MAX_OUTBOUND;
        if !fits {
            let guest = self.filter.guest();
            guest.metrics.failed(Blame::GuestBroke, "frame_size");
            guest.log(|| tracing::warn!(bytes = frame.bytes.len(), "a frame for the upstream is too large"));
        }
        fits
    }
}
