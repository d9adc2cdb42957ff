//! Upstreams: a partner's WebSocket, held once whatever the number of clients, and opened again after a pause when it
//! is lost.
//!
//! In come the partner's messages, out go publications: straight to channel `main`, or through the tenant's filter. One
//! task owns the connection. It lives as long as the relay, and opens another connection when one is lost. An upstream
//! on demand is connected only while the tenant has clients. What arrives faster than a filter takes it waits in a
//! queue bounded in bytes, and behind that in the partner's socket, or is dropped, as the manifest says. All upstreams
//! are read on one thread, in turns (`turn`).

use std::{future::pending, pin::pin, sync::Arc, time::Duration};

use config::UpstreamConfig;
use tokio::{
    sync::Semaphore,
    time::{Instant, sleep_until},
};
use tracing::error_span;

use crate::{
    account::Account,
    backoff::Backoff,
    dial::{Dialer, Lookups},
    log_lines::LogLines,
    metrics::UpstreamMetrics,
    shutdown::Stop,
    usage::Usage,
};

mod burst;
mod connect;
mod data_timeout;
mod failure;
mod files;
mod filter_queue;
mod handle;
mod handshake;
mod on_demand;
mod pause;
mod refusal;
mod request;
mod session;
mod sink;
mod socket;
mod state;
mod turn;
mod waiting;

pub use crate::upstream::{
    connect::Connector,
    filter_queue::{FilterEvent, FilterInbox, Opening, QueueParts, filter_queue},
    handle::{Handle, Line, MAX_OUTBOUND, OutboundFrame, SendError, SendOptions},
    on_demand::Need,
    request::{Credentials, DialAttempt, MadeCredentials},
    sink::{ChannelSink, Sink},
    state::{State, Status, millis_until},
};
use crate::upstream::{
    connect::{Dialing, NotOpened},
    files::FilesDigest,
    pause::{PAUSES, Pause},
    session::{Lost, Session},
};

/// A partner that asks for more than this is worth a line of the log.
const LONG_PAUSE: Duration = Duration::from_secs(3600);
/// After a connection that was up for this long, the next failure is a first one.
const HEALTHY: Duration = Duration::from_secs(60);

/// One upstream and what its messages go through.
pub struct Upstream {
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
    /// One permit to read a socket, for the one of the tenant's upstreams whose turn it is.
    pub read_turn: Arc<Semaphore>,
    /// The tenant's use of what all share.
    pub usage: Arc<Usage>,
    pub log: UpstreamLog,
}

/// An upstream's lines of the log, within the tenant's limit.
#[derive(Clone)]
pub struct UpstreamLog {
    pub tenant: Arc<str>,
    pub upstream: Arc<str>,
    pub lines: Arc<LogLines>,
}

impl UpstreamLog {
    /// Writes a line with the names of tenant and upstream. They are put around each line, because the task would enter
    /// and leave them at each message.
    fn say(&self, line: impl FnOnce()) {
        if self.lines.take() {
            // At the level of errors, so that no choice of level takes the names away from a line.
            error_span!("upstream", tenant.name = %self.tenant, upstream.name = %self.upstream).in_scope(line);
        }
    }
}

/// How a connection ended.
enum Ended {
    /// It could not be opened.
    NotOpened(NotOpened),
    /// It was lost after this time.
    Lost(Duration, Lost),
    /// Nobody needs it any more, after this time.
    Unneeded(Duration),
    /// The relay stops.
    Stopped,
}

impl Upstream {
    /// Keeps the upstream connected while it is needed, until told to stop.
    pub async fn run(mut self, connector: Connector, mut stop: Stop) {
        let handle = Arc::clone(&self.handle);
        self.keep_connected(&connector, &mut stop).await;
        handle.ended();
    }

    async fn keep_connected(&mut self, connector: &Connector, stop: &mut Stop) {
        let mut backoff = Backoff::new(PAUSES);
        let mut attempts = Attempts::default();
        while !stop.is_set() {
            if !self.need.is_there() {
                self.handle.set(Status::new(State::Resting));
            }
            tokio::select! {
                () = self.need.begins() => {}
                () = stop.wait() => return,
            }
            let ended = self.connection(connector, &mut attempts, stop).await;
            if stop.is_set() {
                return;
            }
            let (reason, pause, files) = match ended {
                Ended::Stopped => return,
                Ended::Unneeded(healthy) => {
                    reset_if_healthy(&mut backoff, healthy);
                    self.log.say(|| tracing::info!("upstream rests"));
                    continue;
                }
                Ended::Lost(healthy, lost) => {
                    // Silence is no sign of health.
                    let silent = if let Lost::Stale(time) = lost { time } else { Duration::ZERO };
                    reset_if_healthy(&mut backoff, healthy.saturating_sub(silent));
                    let pause = Pause::after_loss(&mut backoff);
                    let retry_ms = pause.time.as_millis();
                    self.log.say(|| tracing::warn!(retry_ms, error = %lost, "upstream lost, reconnecting"));
                    (lost.to_string(), pause, None)
                }
                Ended::NotOpened(NotOpened { error, files }) => {
                    let pause = Pause::after(&error, &mut backoff);
                    let retry_ms = pause.time.as_millis();
                    self.log.say(|| {
                        tracing::warn!(retry_ms, %error, "upstream not connected, trying again");
                        if error.retry_after().is_some_and(|after| after > LONG_PAUSE) {
                            tracing::warn!(retry_ms, "the partner asks to be left alone for more than an hour");
                        }
                    });
                    (error.to_string(), pause, Some(files.digest()))
                }
            };
            let made_with = Made { files, version: attempts.version };
            self.pause(&reason, &pause, made_with, stop).await;
            attempts.reason = Some(reason);
        }
    }

    /// Waits before the next connection. A client that comes now waits too: the partner is in no better state for it.
    async fn pause(&mut self, why: &str, pause: &Pause, Made { files, version }: Made, stop: &mut Stop) {
        let Self { config, credentials, reading, need, handle, log, .. } = self;
        let until = Instant::now() + pause.time;
        let mut other_files = pin!(async {
            match files {
                Some(files) => files.change(config, reading).await,
                None => pending().await,
            }
        });
        let mut other_code = pin!(async {
            match credentials {
                Some(credentials) => credentials.changed(version).await,
                None => pending().await,
            }
        });
        let connects_anew = |why: &str| log.say(|| tracing::info!(why, "upstream waits no longer"));
        loop {
            handle.set(match need.is_there() {
                true => Status { until: Some(until), ..Status::because(State::Connecting, why) },
                false => Status::new(State::Resting),
            });
            tokio::select! {
                () = sleep_until(until) => return,
                () = &mut other_files, if pause.ends_with_credentials => {
                    return connects_anew("a secret file has changed");
                }
                () = &mut other_code, if pause.ends_with_credentials => {
                    return connects_anew("the dial component has changed");
                }
                () = need.changed() => {}
                () = stop.wait() => return,
            }
        }
    }

    /// Runs one connection from its opening to its end.
    async fn connection(&mut self, connector: &Connector, attempts: &mut Attempts, stop: &mut Stop) -> Ended {
        attempts.number = attempts.number.saturating_add(1);
        attempts.version = self.credentials.as_ref().map_or(0, |credentials| credentials.version());
        self.handle.set(Status { reason: attempts.reason.clone(), ..Status::new(State::Connecting) });
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
        let (number, stale) = (self.handle.next_connection(), attempts.stale);
        *attempts = Attempts { stale, ..Attempts::default() };
        self.metrics.connections.inc();
        self.log.say(|| tracing::info!("upstream connected"));
        if let Sink::Filter(_) = self.sink {
            self.handle.set(Status::because(State::Connecting, "connected, and waits for the filter's on-open"));
        }
        let since = Instant::now();
        let session = Session {
            socket,
            number,
            config: &self.config,
            sink: &self.sink,
            metrics: &self.metrics,
            handle: &self.handle,
            log: &self.log,
            read_turn: &self.read_turn,
            usage: &self.usage,
            need: &mut self.need,
            stop,
            stale: &mut attempts.stale,
        };
        let lost = session.run().await;
        let rests = matches!(lost, Lost::Unneeded);
        if rests {
            self.metrics.rests.inc();
            attempts.stale = false;
        } else {
            self.metrics.failed(lost.reason());
        }
        self.sink.close(number, lost.to_string());
        let healthy = since.elapsed();
        if rests { Ended::Unneeded(healthy) } else { Ended::Lost(healthy, lost) }
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
    /// Whether a message was overdue on the last one, and has not come since.
    stale: bool,
    /// Why there is none.
    reason: Option<String>,
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
