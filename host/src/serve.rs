//! Accepts connections for the listeners that run a task for each: admin, API, the demonstration's page.
//!
//! The clients' listener has a loop of its own, because it cuts silent handshakes to make room.

use std::{
    convert::Infallible,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Method, Request, Response, StatusCode, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    task::{JoinSet, yield_now},
};

use crate::{fair_pool::Most, host_header, http_error, shutdown::Stop};

mod connections;
mod half_open;

pub use crate::serve::{
    connections::{Connection, Connections},
    half_open::HalfOpen,
};

/// The pause of a listener after `accept` failed, usually for want of file descriptors.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// The most connections at once to a listener with short answers: probes, scrapers and a few browsers are few. Over it,
/// one that is idle makes room.
const SHORT_CONNECTIONS: usize = 64;
/// Connections that are accepted one after another before others have their turn.
const ACCEPTED_AT_ONCE: usize = 8;
/// How long an answer may still be on its way when its connection makes room.
pub const LAST_ANSWER: Duration = Duration::from_secs(1);
/// How long the headers of a request for a short answer may take.
const SHORT_HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// A listener, and what it accepts.
pub struct Acceptor {
    pub listener: TcpListener,
    /// Its name in the log.
    pub name: &'static str,
}

/// Why a connection was not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotServed {
    /// There were as many as there may be.
    Full,
    /// It could not be accepted.
    Accept,
}

impl NotServed {
    /// The value of a metric's label `reason`.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Accept => "accept",
        }
    }
}

impl Acceptor {
    /// Runs `connection` as a task for each connection that `admit` gives a place, which is passed on, until told to
    /// stop. Tells `refused` of each that it does not serve. Returns the connections that are still open; dropped, they
    /// end.
    pub async fn run<P, C>(
        self,
        mut stop: Stop,
        admit: impl Fn(IpAddr) -> Option<P>,
        refused: impl Fn(NotServed),
        connection: impl Fn(TcpStream, SocketAddr, P) -> C,
    ) -> JoinSet<()>
    where
        C: Future<Output = ()> + Send + 'static,
    {
        let mut connections = JoinSet::new();
        for nth in 1.. {
            if nth % ACCEPTED_AT_ONCE == 0 {
                // Those that are open have their turns in between.
                yield_now().await;
            }
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                () = stop.wait() => return connections,
            };
            while connections.try_join_next().is_some() {}
            match accepted {
                Ok((socket, peer)) => match admit(peer.ip()) {
                    Some(place) => drop(connections.spawn(connection(socket, peer, place))),
                    None => refused(NotServed::Full),
                },
                Err(error) => {
                    tracing::warn!(listener.name = self.name, %error, "a connection could not be accepted");
                    refused(NotServed::Accept);
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        connections
    }
}

/// The host's own answer to a health check, on every listener: balancers ask by HTTP/1.0, without a host, with HEAD.
/// `None`: the request is another one.
pub fn health<B>(request: &Request<B>) -> Option<Response<Full<Bytes>>> {
    if request.uri().path() != "/healthz" {
        return None;
    }
    Some(match *request.method() {
        Method::GET | Method::HEAD => {
            http_error::json(StatusCode::OK, serde_json::json!({ "status": "ok" }).to_string())
        }
        _ => http_error::only_get(),
    })
}

/// Serves answers that are short and made at once, until told to stop. `closed` is told why a connection had to make
/// room, or was not served.
pub async fn short_answers(
    listener: TcpListener,
    name: &'static str,
    stop: Stop,
    answer: impl Fn(&Request<Incoming>) -> Response<Full<Bytes>> + Send + Sync + 'static,
    closed: impl Fn(&'static str) + Send + Sync + 'static,
) {
    let (answer, closed) = (Arc::new(answer), Arc::new(closed));
    let acceptor = Acceptor { listener, name };
    let places = Connections::new(SHORT_CONNECTIONS);
    let admit = |address| places.admit(address, Most::Own(usize::MAX));
    let connection = |socket, _, place: Connection| {
        let (answer, closed, place) = (Arc::clone(&answer), Arc::clone(&closed), Arc::new(place));
        let held = Arc::clone(&place);
        let service = service_fn(move |mut request| {
            let under_way = held.begin();
            let response = match (health(&request), host_header::check_host(&mut request)) {
                (Some(healthy), _) => healthy,
                (None, Ok(())) => answer(&request),
                (None, Err(error)) => http_error::answer(StatusCode::BAD_REQUEST, "bad_request", &error.to_string()),
            };
            // The body keeps what says that the request is under way until it has been sent.
            let response = response.map(|body| {
                body.map_err(move |never| {
                    let _kept = &under_way;
                    never
                })
            });
            async { Ok::<_, Infallible>(response) }
        });
        let asked = Arc::clone(&place);
        let socket = TokioIo::new(HalfOpen::new(socket, move || asked.is_busy()));
        let served = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(SHORT_HEADER_TIMEOUT)
            .serve_connection(socket, service);
        async move {
            tokio::pin!(served);
            let served = tokio::select! {
                served = served.as_mut() => served,
                () = place.evicted() => {
                    closed("idle");
                    // An answer may be on its way.
                    served.as_mut().graceful_shutdown();
                    tokio::time::timeout(LAST_ANSWER, served).await.unwrap_or(Ok(()))
                }
            };
            if let Err(error) = served {
                tracing::debug!(listener.name = name, %error, "a connection failed");
            }
        }
    };
    // Those that are open have no answer under way.
    let refused = |why: NotServed| closed(why.reason());
    drop(acceptor.run(stop, admit, refused, connection).await);
}
