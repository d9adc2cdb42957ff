//! The opening handshake of a raw WebSocket client, RFC 6455 section 4.2.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use base64::prelude::{BASE64_STANDARD, Engine as _};
use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode, Uri, Version,
    body::Incoming,
    header::{
        ALLOW, AUTHORIZATION, CONNECTION, HeaderName, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY,
        SEC_WEBSOCKET_VERSION, UPGRADE,
    },
    service::Service,
};
use tokio::sync::OwnedSemaphorePermit;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use crate::{
    channel::{Channel, MAIN, Position, Refused, Start},
    client::{
        Connected, Door, MAX_CHANNELS, client_address, history,
        listener::Route,
        refusal::{Refusal, no_channel},
    },
    component::{self, Handler, Joined},
    metrics::Blame,
    tenant::Tenant,
};

/// Serves one connection's request; keeps the client if the handshake succeeds.
pub struct Handshake(pub Arc<Attempt>);

/// One connection's handshake.
pub struct Attempt {
    pub door: Arc<Door>,
    pub peer: IpAddr,
    pub accepted: Mutex<Option<Accepted>>,
    /// Too many others wait for an answer.
    crowded: bool,
    /// Whether the request has come.
    asked: AtomicBool,
    /// While it reads a channel, and until its answer is sent.
    reading: Mutex<Option<OwnedSemaphorePermit>>,
}

/// A client to be.
pub struct Accepted {
    pub client: Connected,
    pub channels: Vec<(Arc<Channel>, Start)>,
}

impl Service<Request<Incoming>> for Handshake {
    type Response = Response<Full<Bytes>>;
    type Error = std::convert::Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let attempt = Arc::clone(&self.0);
        attempt.asked.store(true, Ordering::Relaxed);
        Box::pin(async move {
            if attempt.crowded {
                attempt.door.metrics.handshake_refused("crowded");
                return Ok(Refusal::unavailable("crowded", "too many clients come at once").response());
            }
            if let Some(asked) = attempt.door.channel(request.uri().path()) {
                return Ok(history::answer(&attempt, &request, asked).await);
            }
            Ok(match attempt.accept(&request).await {
                Ok((response, accepted)) => {
                    *attempt.accepted.lock().unwrap_or_else(PoisonError::into_inner) = Some(accepted);
                    response
                }
                Err(refusal) => {
                    attempt.door.metrics.handshake_refused(refusal.reason);
                    refusal.response()
                }
            })
        })
    }
}

impl Attempt {
    pub fn new(door: Arc<Door>, peer: IpAddr, crowded: bool) -> Self {
        Self {
            door,
            peer,
            accepted: Mutex::new(None),
            crowded,
            asked: AtomicBool::new(false),
            reading: Mutex::default(),
        }
    }

    pub fn has_asked(&self) -> bool {
        self.asked.load(Ordering::Relaxed)
    }

    /// Whether there is room for one more that reads a channel.
    pub fn begins_to_read(&self) -> bool {
        let permit = Arc::clone(&self.door.reads).try_acquire_owned().ok();
        let begins = permit.is_some();
        *self.reading.lock().unwrap_or_else(PoisonError::into_inner) = permit;
        begins
    }

    async fn accept(&self, request: &Request<Incoming>) -> Result<(Response<Full<Bytes>>, Accepted), Refusal> {
        let Some(Route { tenant, handler }) = self.door.route(request.uri().path()) else {
            return Err(Refusal::new(StatusCode::NOT_FOUND, "not_found", "no tenant answers at this path"));
        };
        let accept = check(request)?;
        self.has_room()?;
        let address = client_address(self.peer, request.headers(), &self.door.trusted_proxies);
        // Before the handler is asked for anything.
        let Wanted { names, after } = Wanted::read(request.uri())?;
        let (session, channels) = match handler {
            Some(handler) => {
                let let_in = self.ask(tenant, handler, request, address, names).await?;
                // Others have come meanwhile.
                self.has_room()?;
                let_in
            }
            None => (None, find(tenant, names, Refusal::channel)?),
        };
        let channels = begin(channels, after)?;
        tracing::debug!(tenant.name = %tenant.name, client.address = %address, "client accepted");
        let mut response = Response::new(Full::default());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
        Ok((response, Accepted { client: Connected::new(Arc::clone(&tenant.terms), session), channels }))
    }

    fn has_room(&self) -> Result<(), Refusal> {
        if self.door.total.load(Ordering::Relaxed) < self.door.max_clients {
            return Ok(());
        }
        Err(Refusal::unavailable("full", "the relay has as many clients as it takes"))
    }

    /// Asks the tenant's handler whether to let the client in, and to which channels.
    async fn ask(
        &self,
        tenant: &Tenant,
        handler: &Arc<Handler>,
        request: &Request<Incoming>,
        address: IpAddr,
        wanted: BTreeSet<String>,
    ) -> Result<(Option<Joined>, Vec<Arc<Channel>>), Refusal> {
        let admission = handler.connect(for_handler(request, address)).await.map_err(Refusal::guests)?;
        let Some(channels) = admission.channels else {
            for name in &wanted {
                handler.subscribe(&admission.session, name.clone()).await.map_err(Refusal::guests)?;
            }
            return Ok((Some(admission.session), find(tenant, wanted, Refusal::channel)?));
        };
        let names: BTreeSet<String> = channels.into_iter().collect();
        if names.len() > MAX_CHANNELS {
            return Err(wrong_channels(handler, &format!("{} channels, and {MAX_CHANNELS} are the most", names.len())));
        }
        let channels = find(tenant, names, |why, name| match why {
            Refused::Channels => Refusal::channel(why, name),
            _ => wrong_channels(handler, &no_channel(why, name)),
        });
        Ok((Some(admission.session), channels?))
    }
}

/// The channels of these names; the first that cannot be followed leads to a refusal.
fn find(
    tenant: &Tenant,
    names: BTreeSet<String>,
    refusal: impl Fn(Refused, &str) -> Refusal,
) -> Result<Vec<Arc<Channel>>, Refusal> {
    names.iter().map(|name| tenant.channels.subscribe(name).map_err(|why| refusal(why, name))).collect()
}

/// A handler has let a client in to channels that cannot be: the client has done nothing wrong.
fn wrong_channels(handler: &Handler, why: &str) -> Refusal {
    let guest = handler.guest();
    guest.metrics.failed(Blame::GuestBroke, "channels");
    tracing::warn!(tenant.name = %guest.tenant.name, error = why, "a handler's channels for a client cannot be");
    Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "handler", &format!("the tenant's code gives it {why}"))
}

/// The request as a handler sees it.
pub fn for_handler(request: &Request<Incoming>, address: IpAddr) -> component::Request {
    let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let query = request.uri().query().unwrap_or_default();
    // The scheme's name has no case (RFC 9110 section 11.1).
    let bearer = request.headers().get(AUTHORIZATION).map(text).and_then(|value| {
        let (scheme, token) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim().to_owned())
    });
    let in_query = || form_urlencoded::parse(query.as_bytes()).find(|(key, _)| key == "token");
    component::Request {
        path: request.uri().path().to_owned(),
        query: query.to_owned(),
        headers: request.headers().iter().map(|(name, value)| (name.to_string(), text(value))).collect(),
        client_ip: address.to_string(),
        token: bearer.or_else(|| in_query().map(|(_, token)| token.into_owned())),
    }
}

/// Section 4.2.1: what the request must have. Returns the value of `Sec-WebSocket-Accept`.
fn check(request: &Request<Incoming>) -> Result<HeaderValue, Refusal> {
    let headers = request.headers();
    if !has_token(headers, &UPGRADE, "websocket") {
        let message = "this path speaks WebSocket: connect with ws:// or wss://";
        return Err(Refusal::new(StatusCode::UPGRADE_REQUIRED, "not_websocket", message).with(UPGRADE, "websocket"));
    }
    if request.method() != Method::GET {
        let message = "a WebSocket handshake is a GET request";
        return Err(Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "bad_handshake", message).with(ALLOW, "GET"));
    }
    let bad = |message: &str| Refusal::new(StatusCode::BAD_REQUEST, "bad_handshake", message);
    if request.version() != Version::HTTP_11 {
        return Err(bad("a WebSocket handshake is an HTTP/1.1 request"));
    }
    if !has_token(headers, &CONNECTION, "upgrade") {
        return Err(bad("the header Connection does not say Upgrade"));
    }
    if headers.get(SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        let message = "Sec-WebSocket-Version 13 is the one spoken here";
        return Err(Refusal::new(StatusCode::UPGRADE_REQUIRED, "bad_handshake", message)
            .with(SEC_WEBSOCKET_VERSION, "13")
            .with(UPGRADE, "websocket"));
    }
    let key = headers.get(SEC_WEBSOCKET_KEY).map(HeaderValue::as_bytes).unwrap_or_default();
    if BASE64_STANDARD.decode(key).map_or(0, |nonce| nonce.len()) != 16 {
        return Err(bad("Sec-WebSocket-Key is not 16 bytes in base64"));
    }
    HeaderValue::try_from(derive_accept_key(key)).map_err(|_| bad("Sec-WebSocket-Key cannot be answered"))
}

/// Whether a header that lists tokens has this one, in any case.
fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|listed| listed.trim().eq_ignore_ascii_case(token))
}

/// What the query asks for: `?channel=…`, each channel once, and `&since=EPOCH:OFFSET`, where to go on with one.
struct Wanted {
    names: BTreeSet<String>,
    after: Option<Position>,
}

impl Wanted {
    fn read(uri: &Uri) -> Result<Self, Refusal> {
        let query = uri.query().unwrap_or_default().as_bytes();
        let mut wanted = Self { names: BTreeSet::new(), after: None };
        for (key, value) in form_urlencoded::parse(query) {
            match &*key {
                "channel" => drop(wanted.names.insert(value.into_owned())),
                "since" => wanted.after = Some(Refusal::no_position(value.parse())?),
                _ => {}
            }
            if wanted.names.len() > MAX_CHANNELS {
                let message = format!("a client follows at most {MAX_CHANNELS} channels");
                return Err(Refusal::new(StatusCode::BAD_REQUEST, "channel", &message));
            }
        }
        if wanted.names.is_empty() {
            wanted.names.insert(MAIN.to_owned());
        }
        Ok(wanted)
    }
}

/// Where the client begins in each channel.
fn begin(channels: Vec<Arc<Channel>>, after: Option<Position>) -> Result<Vec<(Arc<Channel>, Start)>, Refusal> {
    let Some(after) = after else { return Ok(channels.into_iter().map(|channel| (channel, Start::Now)).collect()) };
    match <[_; 1]>::try_from(channels) {
        Ok([channel]) if channel.reaches(after) => Ok(vec![(channel, Start::After(after))]),
        Ok(_) => {
            let message = "what came after this position is not all there: begin anew, without since";
            Err(Refusal::new(StatusCode::GONE, "not_recovered", message))
        }
        Err(_) => Err(Refusal::position("since is a position in one channel: ask for one")),
    }
}
