//! Upstreams: a partner's WebSocket, held once whatever the number of clients, and opened again after a pause when it
//! is lost.
//!
//! In come the partner's messages, out go publications: straight to channel `main`, or through the tenant's filter. One
//! task owns the connection. It lives as long as the relay, and opens another connection when one is lost. An upstream
//! on demand is connected only while the tenant has clients. What arrives faster than a filter takes it waits in a
//! queue bounded in bytes, and behind that in the partner's socket.

use std::{future::pending, sync::Arc, time::Duration};

use config::UpstreamConfig;
use tokio::{
    sync::{Semaphore, mpsc},
    time::Instant,
};
use tracing::{Span, error_span};
use wire::Frame;

use crate::{
    account::Account,
    backoff::Backoff,
    channel::{Channels, MAIN, Publication},
    dial::{Dialer, Lookups},
    metrics::UpstreamMetrics,
    shutdown::Stop,
};

mod connect;
mod failure;
mod files;
pub mod filter_queue;
mod handle;
mod handshake;
mod on_demand;
mod pause;
mod refusal;
mod request;
mod session;
mod socket;

pub use filter_queue::{FilterEvent, FilterQueue, QueueRoom};

pub use crate::upstream::{
    connect::Connector,
    handle::{Handle, MAX_OUTBOUND, OutboundFrame, SendError, Trouble},
    on_demand::Need,
    request::{Credentials, DialAttempt, MadeCredentials},
    session::Lost,
};
use crate::upstream::{
    connect::{Dialing, NotOpened},
    files::FilesDigest,
    pause::{PAUSES, Pause},
    session::Session,
};

/// Frames from components that wait to be sent.
const OUTBOUND_FRAMES: usize = 256;

/// A partner that asks for more than this is worth a line of the log.
const LONG_PAUSE: Duration = Duration::from_secs(3600);
/// After a connection that was up for this long, the next failure is a first one.
const HEALTHY: Duration = Duration::from_secs(60);

/// One upstream and what its messages go through.
pub struct Upstream {
    pub tenant: Arc<str>,
    pub config: UpstreamConfig,
    pub sink: Sink,
    pub metrics: Arc<UpstreamMetrics>,
    pub handle: Arc<Handle>,
    pub need: Need,
    /// The tenant's, for what is read and not whole yet.
    pub account: Arc<Account>,
    pub dialer: Arc<Dialer>,
    pub lookups: Arc<Lookups>,
    /// Makes credentials for each connection. `None`: the manifest has all of them.
    pub credentials: Option<Arc<dyn Credentials>>,
    /// One permit to read its files.
    pub reading: Arc<Semaphore>,
}

/// Where messages go.
pub enum Sink {
    /// To channel `main`, unchanged, from the upstream of this name.
    Channel(Arc<Channels>, Arc<str>),
    Filter(FilterQueue),
}

/// What components want sent on one connection. What is left at its end is dropped.
struct Outbound {
    sender: mpsc::Sender<OutboundFrame>,
    frames: mpsc::Receiver<OutboundFrame>,
}

/// How a connection ended.
enum Ended {
    /// It could not be opened.
    NotOpened(NotOpened),
    /// It was lost after this time.
    Lost(Duration, String),
    /// Nobody needs it any more, after this time.
    Unneeded(Duration),
    /// The relay stops.
    Stopped,
}

impl Upstream {
    /// Keeps the upstream connected while it is needed, until told to stop.
    pub async fn run(mut self, connector: Connector, mut stop: Stop) {
        let mut backoff = Backoff::new(PAUSES);
        let mut attempts = Attempts::default();
        while !stop.is_set() {
            tokio::select! {
                () = self.need.begins() => {}
                () = stop.wait() => return,
            }
            let ended = self.connection(&connector, &mut attempts, &mut stop).await;
            if stop.is_set() {
                return;
            }
            let (reason, pause, files) = match ended {
                Ended::Stopped => return,
                Ended::Unneeded(healthy) => {
                    reset_if_healthy(&mut backoff, healthy);
                    self.span().in_scope(|| tracing::info!("upstream rests"));
                    continue;
                }
                Ended::Lost(healthy, reason) => {
                    reset_if_healthy(&mut backoff, healthy);
                    let pause = Pause::after_loss(&mut backoff);
                    let retry_ms = pause.time.as_millis();
                    self.span().in_scope(|| tracing::warn!(error = %reason, retry_ms, "upstream lost, reconnecting"));
                    (reason, pause, None)
                }
                Ended::NotOpened(NotOpened { error, files }) => {
                    let pause = Pause::after(&error, &mut backoff);
                    let retry_ms = pause.time.as_millis();
                    self.span().in_scope(|| {
                        tracing::warn!(%error, retry_ms, "upstream not connected, trying again");
                        if error.retry_after().is_some_and(|after| after > LONG_PAUSE) {
                            tracing::warn!(retry_ms, "the partner asks to be left alone for more than an hour");
                        }
                    });
                    (error.to_string(), pause, Some(files.digest()))
                }
            };
            let made_with = Made { files, version: attempts.version };
            self.pause(reason, &pause, made_with, &mut stop).await;
        }
    }

    /// Waits before the next connection. A client that comes now waits too: the partner is in no better state for it.
    async fn pause(&self, why: String, pause: &Pause, Made { files, version }: Made, stop: &mut Stop) {
        self.handle.set_trouble(Some(Trouble { why, until: Instant::now() + pause.time }));
        let other_files = async {
            match files {
                Some(files) => files.change(&self.config, &self.reading).await,
                None => pending().await,
            }
        };
        let other_code = async {
            match &self.credentials {
                Some(credentials) => credentials.changed(version).await,
                None => pending().await,
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause.time) => {}
            () = other_files, if pause.ends_with_credentials => self.connects_anew("a secret file has changed"),
            () = other_code, if pause.ends_with_credentials => self.connects_anew("the dial component has changed"),
            () = stop.wait() => {}
        }
    }

    fn connects_anew(&self, why: &str) {
        self.span().in_scope(|| tracing::info!(why, "upstream waits no longer"));
    }

    /// Names tenant and upstream in a line that is written within it. It is made for each line, because the task would
    /// enter and leave it at each message.
    fn span(&self) -> Span {
        // At the level of errors, so that no choice of level takes the names away from a line.
        error_span!("upstream", tenant.name = %self.tenant, upstream.name = %self.config.name)
    }

    /// Runs one connection from its opening to its end.
    async fn connection(&mut self, connector: &Connector, attempts: &mut Attempts, stop: &mut Stop) -> Ended {
        attempts.number = attempts.number.saturating_add(1);
        attempts.version = self.credentials.as_ref().map_or(0, |credentials| credentials.version());
        let dialing = Dialing {
            config: &self.config,
            dialer: &self.dialer,
            lookups: &self.lookups,
            account: &self.account,
            credentials: self.credentials.as_deref(),
            reading: &self.reading,
            number: attempts.number,
            last_status: attempts.last_status,
        };
        let connected = tokio::select! {
            connected = connector.connect(dialing) => connected,
            () = stop.wait() => return Ended::Stopped,
        };
        let socket = match connected {
            Ok(socket) => socket,
            Err(not_opened) => {
                self.metrics.failed(not_opened.error.reason());
                attempts.last_status = not_opened.error.status().or(attempts.last_status);
                return Ended::NotOpened(not_opened);
            }
        };
        *attempts = Attempts::default();
        self.metrics.connections.inc();
        self.span().in_scope(|| tracing::info!("upstream connected"));
        let since = Instant::now();
        let mut outbound = Outbound::new();
        let up = Up::new(&self.metrics, &self.handle, &outbound);
        let session = Session {
            socket,
            idle_timeout: self.config.idle_timeout,
            sink: &self.sink,
            metrics: &self.metrics,
            outbound: &mut outbound,
            need: &mut self.need,
            stop,
        };
        let lost = session.run().await;
        // From here on it takes no more frames.
        drop((up, outbound));
        let rests = matches!(lost, Lost::Unneeded);
        if rests {
            self.metrics.rests.inc();
        } else {
            self.metrics.failed(lost.reason());
        }
        let reason = lost.to_string();
        match &self.sink {
            Sink::Filter(filter) => filter.close(reason.clone()).await,
            Sink::Channel(channels, upstream) => channels.lost(upstream),
        }
        let healthy = since.elapsed();
        if rests { Ended::Unneeded(healthy) } else { Ended::Lost(healthy, reason) }
    }
}

/// What the credentials of an attempt were made of.
struct Made {
    /// `None`: there were no files to read.
    files: Option<FilesDigest>,
    /// The version of the dial component.
    version: u64,
}

/// The attempts since the last connection.
#[derive(Default)]
struct Attempts {
    number: u32,
    /// The status of the partner's last answer.
    last_status: Option<u16>,
    /// The version of the dial component that the last one was made with.
    version: u64,
}

/// Ends the row of failures if the connection was healthy.
fn reset_if_healthy(backoff: &mut Backoff, healthy: Duration) {
    if healthy >= HEALTHY {
        backoff.reset();
    }
}

impl Sink {
    /// Passes a burst on, in order. `false`: there is no memory for it.
    async fn accept(&self, burst: Vec<Frame>) -> bool {
        match self {
            Self::Channel(channels, upstream) => {
                let main: Arc<str> = MAIN.into();
                let publish = |data| Publication { channel: Arc::clone(&main), key: None, remove: false, data };
                // What is refused has been counted.
                channels.publish(burst.into_iter().map(publish).collect(), Some(upstream)).await;
                true
            }
            Self::Filter(filter) => filter.frames(burst).await,
        }
    }

    /// Returns the frames to send first on a new connection. `None`: the filter's call failed.
    ///
    /// `outbound` is for what is to be sent later.
    async fn opening(&self, outbound: &mpsc::Sender<OutboundFrame>) -> Option<Vec<Frame>> {
        match self {
            Self::Channel(..) => Some(Vec::new()),
            Self::Filter(filter) => filter.open(outbound.clone()).await,
        }
    }
}

impl Outbound {
    fn new() -> Self {
        let (sender, frames) = mpsc::channel(OUTBOUND_FRAMES);
        Self { sender, frames }
    }
}

/// Shows the upstream as connected until this is dropped.
struct Up<'a> {
    metrics: &'a UpstreamMetrics,
    handle: &'a Handle,
}

impl<'a> Up<'a> {
    fn new(metrics: &'a UpstreamMetrics, handle: &'a Handle, outbound: &Outbound) -> Self {
        metrics.up.set(1);
        handle.set_trouble(None);
        *handle.outbound() = Some(outbound.sender.clone());
        Self { metrics, handle }
    }
}

impl Drop for Up<'_> {
    fn drop(&mut self) {
        self.metrics.up.set(0);
        *self.handle.outbound() = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backoff::Pauses;

    #[test]
    fn a_connection_that_was_up_for_a_minute_ends_the_row_of_failures() {
        let mut backoff = Backoff::new(Pauses { jitter: false, ..PAUSES });
        let mut fail_after = |seconds| {
            reset_if_healthy(&mut backoff, Duration::from_secs(seconds));
            backoff.fail().as_millis()
        };
        assert_eq!([0, 59, 59].map(&mut fail_after), [500, 1000, 2000]);
        assert_eq!([60, 0].map(&mut fail_after), [500, 1000]);
    }
}
