//! A client's request, whatever its transport: refused (an unknown path with 404), answered here, or accepted and kept
//! for a shard.

use std::{
    future::pending,
    net::IpAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    header::{ACCEPT, ALLOW, CONNECTION, HeaderValue, UPGRADE},
    service::Service,
};
use wire::{Compression, SHARED_WINDOW_BITS, centrifuge, centrifuge::Disconnect, deflate, header::has_token, sse};

use crate::{
    account::Charge,
    channel::{Format, Resumed, resume},
    component,
    delivery::{
        ClientSource, Connected, End,
        shard::{Accepted, Due},
    },
    entry::{
        EntryContext,
        admission::{self, ChannelQuery, declines_compression, raw_starts},
        centrifuge::CentrifugeSession,
        context::Entrance,
        history, origins,
        pieces::Pieces,
        refusal::Refusal,
        upgrade::Upgrade,
        waiting::Young,
    },
    fair_pool::{FairPlace, Most, Sharer},
    host_header,
    routes::Route,
    serve::health,
    sync::Mutex,
    tenant::Tenant,
    usage::Received,
};

/// How long a request waits for a place, if its handshake's time is long enough for an answer behind that, and how
/// often it looks for one.
const WAIT: Duration = Duration::from_secs(1);
const LOOK_AGAIN: Duration = Duration::from_millis(25);
/// Preflights of one connection. Browsers remember their answers.
const PREFLIGHTS: usize = 8;

/// Serves one connection's request. If the handshake succeeds, it keeps the client for the listener to hand over.
pub struct Handshake(pub Arc<Attempt>);

/// One connection's handshake.
pub struct Attempt {
    pub context: Arc<EntryContext>,
    pub peer: IpAddr,
    accepted: Mutex<Option<Accepted>>,
    /// Whether the shard writes the answer. Nothing more may be written here then.
    answered_by_shard: AtomicBool,
    /// Its place among those that have just begun. `None`: something holds it, or did.
    young: Mutex<Option<Young>>,
    /// Its place among the handshakes. `None`: its address has enough.
    place: Mutex<Option<FairPlace<Sharer>>>,
    /// Whether the request has arrived.
    requested: AtomicBool,
    preflights: AtomicUsize,
    /// Whether a request has come that is answered here.
    answers: AtomicBool,
    /// The places of a request that reads a channel: its tenant's and its address's. They are held until the answer is
    /// sent.
    read_places: Mutex<Option<[FairPlace<Sharer>; 2]>>,
    /// What the answer takes of the tenant's account, held as long.
    charge: Mutex<Option<Charge>>,
}

type HttpResponse = Response<Full<Bytes>>;

impl Service<Request<Incoming>> for Handshake {
    type Response = Response<Pieces>;
    type Error = std::convert::Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        let attempt = Arc::clone(&self.0);
        attempt.requested.store(true, Ordering::Relaxed);
        attempt.answers.store(!request.headers().contains_key(UPGRADE), Ordering::Relaxed);
        Box::pin(async move {
            let checked = host_header::check_host(&mut request);
            Ok(Pieces::of(match (health(&request), checked) {
                (Some(mut healthy), _) => {
                    healthy.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                    healthy
                }
                (None, Ok(())) => attempt.answer(&request).await,
                (None, Err(error)) => {
                    let refusal = Refusal::new(StatusCode::BAD_REQUEST, "bad_request", &error.to_string());
                    attempt.refused(&refusal, refusal.response())
                }
            }))
        })
    }
}

impl Attempt {
    pub fn new(context: Arc<EntryContext>, peer: IpAddr, place: Option<FairPlace<Sharer>>, young: Young) -> Self {
        Self {
            context,
            peer,
            accepted: Mutex::new(None),
            answered_by_shard: AtomicBool::new(false),
            young: Mutex::new(Some(young)),
            place: Mutex::new(place),
            requested: AtomicBool::new(false),
            preflights: AtomicUsize::new(0),
            answers: AtomicBool::new(false),
            read_places: Mutex::default(),
            charge: Mutex::default(),
        }
    }

    /// Lets another begin: something holds this one.
    pub fn grow_up(&self) {
        drop(self.young.lock().take());
    }

    /// Gives its places back: it has ended.
    pub fn leave(&self) {
        self.grow_up();
        *self.place.lock() = None;
        *self.read_places.lock() = None;
        *self.charge.lock() = None;
    }

    /// Keeps what the answer takes of the tenant's account until it is sent.
    pub fn keep_charge(&self, charge: Charge) {
        *self.charge.lock() = Some(charge);
    }

    pub fn has_requested(&self) -> bool {
        self.requested.load(Ordering::Relaxed)
    }

    /// Whether the client's shard writes the answer.
    pub fn is_answered_by_shard(&self) -> bool {
        self.answered_by_shard.load(Ordering::Relaxed)
    }

    /// Answers a preflight. The request that it is about may come over the same connection, as the first one that
    /// counts.
    pub async fn preflight(&self, tenant: &Tenant, request: &Request<Incoming>) -> HttpResponse {
        tenant.handshake_turn.begin().await;
        tenant.usage.let_in(Received::MESSAGE).await;
        let mut answer = origins::preflight(tenant, request.headers());
        if self.preflights.fetch_add(1, Ordering::Relaxed) + 1 >= PREFLIGHTS {
            answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        self.answers.store(false, Ordering::Relaxed);
        self.requested.store(false, Ordering::Relaxed);
        answer
    }

    /// Whether all that has come were preflights.
    pub fn had_preflights(&self) -> bool {
        self.has_had_preflights() && !self.has_requested()
    }

    pub fn has_had_preflights(&self) -> bool {
        self.preflights.load(Ordering::Relaxed) > 0
    }

    /// Whether a request waits for its answer, so that its client may have ended its own side. One that is to open a
    /// WebSocket or a stream may not.
    pub fn answers(&self) -> bool {
        self.answers.load(Ordering::Relaxed)
    }

    /// Takes the client, if it was let in.
    pub fn accepted(&self) -> Option<Accepted> {
        self.accepted.lock().take()
    }

    /// Takes places to read a channel of a tenant. `false`: too many requests have one.
    pub fn take_read_places(&self, tenant: &Tenant) -> bool {
        let most = Most::Own(tenant.version().limits.channel_reads);
        let own = self.context.reads.take(Sharer::Tenant(Arc::clone(&tenant.name)), most);
        if own.is_none() {
            tenant.metrics.limited("channel-reads", 1);
        }
        // One client could read channels of many tenants.
        let most = self.context.most_of(self.peer);
        let places = own.zip(self.context.readers.take(Sharer::address(self.peer), most));
        let is_taken = places.is_some();
        *self.read_places.lock() = places.map(|(own, address)| [own, address]);
        is_taken
    }

    /// Makes the handshake's place its tenant's, which is known now, and waits for the tenant's turn. `Err`: the tenant
    /// has too many, and something holds them.
    pub async fn take_tenants_place(&self, tenant: &Tenant) -> Result<(), Refusal> {
        let most = Most::Own(tenant.version().limits.handshakes);
        let sharer = Sharer::Tenant(Arc::clone(&tenant.name));
        let own = self.place.lock().take();
        let place = match own {
            Some(own) => own.pass_to(sharer.clone(), most, 0),
            None => self.context.handshakes.take(sharer.clone(), most),
        };
        let place = match place {
            None => {
                self.grow_up();
                self.wait_for_place(&sharer, most).await
            }
            place => place,
        };
        if place.is_none() {
            tenant.metrics.limited("handshakes", 1);
            return Err(Refusal::unavailable("crowded", "too many clients are connecting at once"));
        }
        *self.place.lock() = place;
        tenant.handshake_turn.begin().await;
        // What it may wait for now is the tenant's.
        self.grow_up();
        tenant.usage.let_in(Received::MESSAGE).await;
        Ok(())
    }

    /// Waits for a place. Handshakes that nothing holds end sooner. Not all can wait: those who are told to come again
    /// have connections, too.
    async fn wait_for_place(&self, sharer: &Sharer, most: Most) -> Option<FairPlace<Sharer>> {
        let _waiting = self.context.waiting.take(sharer.clone(), Most::Own(usize::MAX))?;
        let began = Instant::now();
        while began.elapsed() < WAIT.min(self.context.handshake_timeout / 2) {
            tokio::time::sleep(LOOK_AGAIN).await;
            if let Some(place) = self.context.handshakes.take(sharer.clone(), most) {
                return Some(place);
            }
        }
        None
    }

    async fn answer(&self, request: &Request<Incoming>) -> HttpResponse {
        let Some((route, entrance)) = self.context.find(request) else {
            let refusal = Refusal::new(StatusCode::NOT_FOUND, "not_found", "no tenant answers at this path");
            return self.refused(&refusal, refusal.response());
        };
        tracing::debug!(
            tenant.name = %route.tenant.name,
            client.address = %self.address(request),
            client.entrance = ?entrance,
            "client comes"
        );
        let accepted = match entrance {
            Entrance::Channel { name, snapshot } => {
                let reading = history::ReadRequest { route: &route, channel: name, snapshot };
                return history::answer(self, request, &reading).await;
            }
            Entrance::Sse => return self.events(&route, request).await,
            Entrance::Raw => self.accept_raw(&route, request).await,
            Entrance::Centrifuge => self.accept_centrifuge(&route, request).await,
        };
        match accepted {
            Ok((upgrade, accepted)) => {
                self.keep(accepted);
                upgrade.response()
            }
            Err(refusal) => self.refused(&refusal, refusal.response()),
        }
    }

    /// Lets in a client of a plain WebSocket.
    async fn accept_raw(&self, route: &Route, request: &Request<Incoming>) -> Result<(Upgrade, Accepted), Refusal> {
        let source = self.take_source(route, request).await?;
        let mut upgrade = Upgrade::check(request)?;
        origins::check(&route.tenant, request.headers())?;
        // A bad query is refused before the handler is asked for anything.
        let ChannelQuery { names, after, .. } = ChannelQuery::read(request.uri())?;
        let uncompressed = declines_compression(request.uri())?;
        let compression = negotiate_compression(&route.tenant, request, uncompressed, &mut upgrade);
        let connect_request = || self.connect_request(request, component::Transport::WebSocket);
        if route.handler.is_none() {
            upgrade.choose_subprotocol(route, request.headers(), None)?;
        }
        let admitted = self.context.admit(route, connect_request, names, compression).await?;
        if route.handler.is_some() {
            upgrade.choose_subprotocol(route, request.headers(), admitted.subprotocol.as_deref())?;
        }
        let accepted = Accepted {
            channels: raw_starts(admitted.channels, &after)?,
            format: if takes_shared_encoding(compression) { Format::Deflated } else { Format::Raw },
            deflates: compression.is_some(),
            deadline: admitted.deadline,
            ..Accepted::new(Connected::new(source, admitted.recipient))
        };
        Ok((upgrade, accepted))
    }

    /// Opens the connection of a client of the Centrifuge protocol. Its commands say later what it wants.
    async fn accept_centrifuge(
        &self,
        route: &Route,
        request: &Request<Incoming>,
    ) -> Result<(Upgrade, Accepted), Refusal> {
        let source = self.take_source(route, request).await?;
        let mut upgrade = Upgrade::check(request)?;
        origins::check(&route.tenant, request.headers())?;
        let uncompressed = declines_compression(request.uri())?;
        let compression = negotiate_compression(&route.tenant, request, uncompressed, &mut upgrade);
        let protocol = centrifuge::Protocol::of(request);
        upgrade.protocol = protocol.name();
        let ask = |handler| (Arc::clone(handler), self.connect_request(request, component::Transport::Centrifuge));
        let session = CentrifugeSession::later(
            route.tenant.next_client_id(),
            &route.tenant,
            route.handler.as_ref().map(ask),
            compression,
            self.context.commands.clone(),
        );
        let no_json = || End::Centrifuge(Disconnect::NotAvailable, Disconnect::NotAvailable.reason().into());
        let accepted = Accepted {
            format: if takes_shared_encoding(compression) { Format::CentrifugeDeflated } else { Format::Centrifuge },
            deflates: compression.is_some(),
            deadline: Some((Instant::now() + self.context.handshake_timeout, Due::Stale)),
            close_at_once: (!protocol.is_json()).then(no_json),
            recipient: Some(session),
            ..Accepted::new(Connected::new(source, None))
        };
        Ok((upgrade, accepted))
    }

    /// Serves an event stream.
    async fn events(&self, route: &Route, request: &Request<Incoming>) -> HttpResponse {
        if request.method() == Method::OPTIONS {
            return self.preflight(&route.tenant, request).await;
        }
        self.answers.store(false, Ordering::Relaxed);
        match self.accept_events(route, request).await {
            Ok(accepted) => {
                self.keep(accepted);
                self.answered_by_shard.store(true, Ordering::Relaxed);
                // This never ends. The listener takes the connection and drops this future.
                pending().await
            }
            Err(refusal) => {
                let is_event_source = has_token(request.headers(), &ACCEPT, sse::CONTENT_TYPE);
                let answer = if is_event_source { refusal.event_stream() } else { refusal.response() };
                let mut answer = self.refused(&refusal, answer);
                answer.headers_mut().extend(origins::cors(&route.tenant, request.headers()));
                answer
            }
        }
    }

    async fn accept_events(&self, route: &Route, request: &Request<Incoming>) -> Result<Accepted, Refusal> {
        let source = self.take_source(route, request).await?;
        if request.method() != Method::GET {
            let refusal =
                Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "method", "an event stream is requested with GET");
            return Err(refusal.with(ALLOW, "GET"));
        }
        origins::check(&route.tenant, request.headers())?;
        let ChannelQuery { names, after, last_event_id, .. } = ChannelQuery::read(request.uri())?;
        let connect_request = || self.connect_request(request, component::Transport::Sse);
        let admitted = self.context.admit(route, connect_request, names, None).await?;
        let after = (!after.is_empty()).then_some(after);
        // Some clients repeat the URL that they first came with, and add where they are now.
        let after: Vec<_> =
            [sse::last_event_id(request.headers()), last_event_id, after].into_iter().flatten().collect();
        let Resumed { channels, gaps } = resume(admitted.channels, &after);
        let first_bytes = sse::head(origins::cors(&route.tenant, request.headers()));
        let connected = Connected::new(source, admitted.recipient);
        let deadline = admitted.deadline;
        Ok(Accepted { channels, first_bytes, gaps, deadline, format: Format::Sse, ..Accepted::new(connected) })
    }

    /// Takes a reference to the source of the client's address, if the host, the tenant and the address have room for
    /// one more client.
    async fn take_source(&self, route: &Route, request: &Request<Incoming>) -> Result<Arc<ClientSource>, Refusal> {
        self.take_tenants_place(&route.tenant).await?;
        self.context.check_room(&route.tenant)?;
        let source = route.tenant.sources.source_for(self.address(request));
        source.ok_or_else(|| {
            route.tenant.metrics.limited("clients-per-address", 1);
            Refusal::too_many("clients_per_address", "the tenant takes no more clients from this address")
        })
    }

    /// The request as a handler sees it.
    pub fn connect_request(
        &self,
        request: &Request<Incoming>,
        transport: component::Transport,
    ) -> component::ConnectRequest {
        admission::connect_request(request, self.peer, &self.context.proxies, transport)
    }

    fn address(&self, request: &Request<Incoming>) -> IpAddr {
        self.context.proxies.client_address(self.peer, request.headers())
    }

    fn keep(&self, accepted: Accepted) {
        *self.accepted.lock() = Some(accepted);
    }

    /// Counts a refusal, and returns its answer.
    pub fn refused(&self, refusal: &Refusal, answer: HttpResponse) -> HttpResponse {
        self.context.metrics.handshake_refused(refusal.reason);
        answer
    }
}

/// The compression of a client's messages. `None`: the tenant has it turned off, or the client does not ask for it, or
/// declines it in its query: libraries offer it for clients that cannot.
fn negotiate_compression(
    tenant: &Tenant,
    request: &Request<Incoming>,
    uncompressed: bool,
    upgrade: &mut Upgrade,
) -> Option<Compression> {
    let above = tenant.version().compress_above.filter(|_| !uncompressed)?;
    let negotiated = deflate::negotiate(request.headers())?;
    upgrade.extensions = Some(negotiated.answer);
    Some(Compression { above, window_bits: negotiated.window_bits })
}

/// Whether a client can read the publications that are compressed once for all. A client that asked for a smaller
/// window cannot; it gets them uncompressed, as RFC 7692 section 6 allows.
fn takes_shared_encoding(compression: Option<Compression>) -> bool {
    compression.is_some_and(|compression| compression.window_bits >= SHARED_WINDOW_BITS)
}
