//! The API: HTTP requests to the tenants' own components.
//!
//! hyper serves the connections on the I/O runtime. The path says which tenant a request is for, and that tenant's
//! component answers on the guests' runtime (`component::Api`). Bodies stream both ways. What goes wrong on the way is
//! answered here, in the same JSON shape as everywhere. The guest sees its own part of the path. In `x-forwarded-for`
//! it sees the client's address; what the client wrote there, or in headers of the same meaning, is removed.

use std::{
    convert::Infallible,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use http_body_util::BodyExt as _;
use hyper::{
    Request, Response, StatusCode, Uri,
    body::Incoming,
    header::{EXPECT, HeaderName, HeaderValue, RETRY_AFTER},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioTimer;
use tokio::net::{TcpListener, TcpStream};

use crate::{
    api::socket::Socket,
    component::{Api, Arrival, Download, NoAnswer, Upload},
    entry::{Proxies, remove_claims},
    fair_pool::Most,
    host_header, http_error,
    metrics::Metrics,
    routes::Routes,
    serve::{Acceptor, Connection, Connections, HalfOpen, LAST_ANSWER, NotServed, health},
    shutdown::Stop,
    sync::Mutex,
    tenant::RequestTurn,
    usage::{Metered, Received},
};

mod socket;

/// The most bytes of a request's line and headers. Above, hyper answers 431.
const MAX_REQUEST: usize = 64 << 10;
/// Seconds after which a client that found the tenant busy may try again.
const RETRY_SECONDS: HeaderValue = HeaderValue::from_static("1");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// What every connection needs to know.
pub struct ApiContext {
    pub routes: Arc<Routes>,
    pub proxies: Proxies,
    pub metrics: Arc<Metrics>,
    pub connections: Arc<Connections>,
    /// In which requests that are for no tenant are answered.
    pub strangers: RequestTurn,
    /// How long a request's headers may take, from the end of the request before. So this also limits how long a
    /// connection may be idle.
    pub idle_timeout: Duration,
    /// How long a client may leave unread what waits for it.
    pub stall_timeout: Duration,
    /// How long requests under way may take at shutdown.
    pub shutdown_timeout: Duration,
}

/// Why a request does not reach a guest, or gets no answer from it.
struct ApiRefusal {
    status: StatusCode,
    code: &'static str,
    message: String,
}

impl ApiRefusal {
    fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into() }
    }

    fn response(&self) -> Response<Metered<Download>> {
        let answer = http_error::answer(self.status, self.code, &self.message);
        let mut response = answer.map(|body| Metered::free(Download::from(body)));
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(RETRY_AFTER, RETRY_SECONDS);
        }
        response
    }
}

impl From<NoAnswer> for ApiRefusal {
    fn from(why: NoAnswer) -> Self {
        let (status, code) = match why {
            NoAnswer::Busy => (StatusCode::SERVICE_UNAVAILABLE, "busy"),
            NoAnswer::Full | NoAnswer::HostFull => (StatusCode::SERVICE_UNAVAILABLE, "memory"),
            NoAnswer::Gone => (StatusCode::SERVICE_UNAVAILABLE, "shutdown"),
            NoAnswer::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "too_large"),
            NoAnswer::Refused => (StatusCode::INTERNAL_SERVER_ERROR, "api_error"),
            NoAnswer::Broke => (StatusCode::INTERNAL_SERVER_ERROR, "api_broke"),
            NoAnswer::Late => (StatusCode::GATEWAY_TIMEOUT, "api_late"),
        };
        Self::new(status, code, why.to_string())
    }
}

/// Serves until told to stop; then requests under way may finish.
pub async fn run(listener: TcpListener, context: Arc<ApiContext>, stop: Stop) {
    let acceptor = Acceptor { listener, name: "api" };
    let admit = |address| {
        // A proxy stands for all who come through it.
        let is_proxy = context.proxies.trust(address);
        context.connections.admit(address, if is_proxy { Most::All } else { Most::Own(usize::MAX) })
    };
    let refused = |why: NotServed| context.metrics.api_refused(why.reason());
    let serve = |socket, peer, place| serve(socket, peer, place, Arc::clone(&context), stop.clone());
    let mut connections = acceptor.run(stop.clone(), admit, refused, serve).await;
    let finished = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(context.shutdown_timeout, finished).await.is_err() {
        tracing::warn!(connections = connections.len(), "API requests cut off at shutdown");
    }
}

async fn serve(socket: TcpStream, peer: SocketAddr, place: Connection, context: Arc<ApiContext>, mut stop: Stop) {
    let place = Arc::new(place);
    let (held, asked) = (Arc::clone(&place), Arc::clone(&place));
    // The body of the last request. A client that leaves before all of it has come does not wait for an answer.
    let uploads: Arc<Mutex<Option<Arrival>>> = Arc::default();
    let upload = Arc::clone(&uploads);
    let has_asked = move || asked.is_busy() && upload.lock().as_ref().is_none_or(Arrival::is_over);
    let socket = HalfOpen::new(socket, has_asked);
    let socket = Socket::new(socket, context.stall_timeout, Arc::clone(&context.metrics));
    let (metrics, idle_timeout) = (Arc::clone(&context.metrics), context.idle_timeout);
    let service = service_fn(move |request| {
        let (context, place, uploads) = (Arc::clone(&context), Arc::clone(&held), Arc::clone(&uploads));
        // At once: hyper looks for the end of the connection before it asks for the answer.
        let under_way = place.begin();
        *uploads.lock() = None;
        async move {
            let answered = answer(request, peer.ip(), &context, &place, &uploads).await;
            let answer = answered.unwrap_or_else(|refusal| {
                context.metrics.api_refused(refusal.code);
                refusal.response()
            });
            // The body keeps what says that the request is under way until it has been sent.
            Ok::<_, Infallible>(answer.map(|body| {
                body.map_err(move |error| {
                    let _kept = &under_way;
                    error
                })
            }))
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(idle_timeout)
        .max_buf_size(MAX_REQUEST)
        .serve_connection(socket, service);
    tokio::pin!(connection);
    let served = tokio::select! {
        served = connection.as_mut() => served,
        () = stop.wait() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
        () = place.evicted() => {
            metrics.api_refused("idle");
            connection.as_mut().graceful_shutdown();
            match place.is_busy() {
                true => connection.await,
                // An answer may be on its way.
                false => tokio::time::timeout(LAST_ANSWER, connection).await.unwrap_or(Ok(())),
            }
        }
    };
    if let Err(error) = served {
        tracing::debug!(%error, "API connection failed");
    }
}

async fn answer(
    mut request: Request<Incoming>,
    peer: IpAddr,
    context: &ApiContext,
    place: &Connection,
    uploads: &Mutex<Option<Arrival>>,
) -> Result<Response<Metered<Download>>, ApiRefusal> {
    if let Some(answer) = health(&request) {
        context.strangers.begin().await;
        return Ok(answer.map(|body| Metered::free(Download::from(body))));
    }
    let expects = request.headers().contains_key(EXPECT);
    match context.routes.find(host_header::host_of(&request).as_deref(), request.uri().path(), |_| Some(())) {
        Some((route, ())) => {
            route.tenant.api_turn.begin().await;
            route.tenant.usage.let_in(Received::MESSAGE).await;
        }
        None => context.strangers.begin().await,
    }
    let checked = host_header::check_host(&mut request)
        .map_err(|error| ApiRefusal::new(StatusCode::BAD_REQUEST, "bad_request", error.to_string()));
    let (api, path) = match checked.and_then(|()| context.find(&request, place)) {
        Ok(found) => found,
        Err(refusal) => {
            Upload::new(request.into_body(), 0, expects).drain().await;
            return Err(refusal);
        }
    };
    let address = context.proxies.client_address(peer, request.headers());
    let mut request = request.map(|body| Upload::new(body, api.max_body(), expects));
    *uploads.lock() = Some(request.body().arrival());
    *request.uri_mut() = path;
    let headers = request.headers_mut();
    remove_claims(headers, peer, &context.proxies);
    if let Ok(address) = HeaderValue::try_from(address.to_string()) {
        headers.insert(FORWARDED_FOR, address);
    }
    let answered = if request.body().is_too_large() {
        request.body().drain().await;
        Err(NoAnswer::TooLarge)
    } else {
        api.call(request).await
    };
    if matches!(answered, Err(NoAnswer::TooLarge)) {
        api.limited("api-body");
    }
    Ok(answered?)
}

impl ApiContext {
    /// Finds the API that a request is for, and the path as its component sees it. The connection's place is its
    /// tenant's from now on.
    fn find(&self, request: &Request<Incoming>, place: &Connection) -> Result<(Arc<Api>, Uri), ApiRefusal> {
        let not_found = |message: &str| ApiRefusal::new(StatusCode::NOT_FOUND, "not_found", message);
        let found = self
            .routes
            .find(host_header::host_of(request).as_deref(), request.uri().path(), |rest| Some(rest.to_owned()));
        let Some((route, rest)) = found else { return Err(not_found("no tenant answers at this path")) };
        let Some(api) = route.api.clone() else { return Err(not_found("this tenant has no API")) };
        if !place.is_for(&route.tenant.name) {
            route.tenant.metrics.limited("api-connections", 1);
            let message = "too many of the tenant's requests are under way";
            return Err(ApiRefusal::new(StatusCode::SERVICE_UNAVAILABLE, "busy", message));
        }
        if host_header::host_of(request).is_none() {
            let message = "the request names no host; components need one";
            return Err(ApiRefusal::new(StatusCode::BAD_REQUEST, "bad_request", message));
        }
        let rest = if rest.is_empty() { "/".to_owned() } else { rest };
        let rest = match request.uri().query() {
            Some(query) => format!("{rest}?{query}"),
            None => rest,
        };
        // This does not fail, because a part of a path is a path.
        let rest = rest.parse().map_err(|_| not_found("no tenant answers at this path"))?;
        Ok((api, rest))
    }
}
