//! HTTP requests that guests send through `wasi:http/outgoing-handler`. A guest reaches only the hosts that its
//! manifest grants, and a request ends with the call that sent it.
//!
//! A request comes with its body still being written, and its answer goes back with its body still arriving. The
//! request's host is checked against the grants ([`target`]). Then its name is looked up, and each address is
//! checked, too. The connection goes to the addresses that were checked, so that a second answer of a name server
//! changes nothing. Redirects are left to the guest, whose next request is checked like any other. Each request has a
//! connection of its own ([`exchange`]).
//!
//! wasmtime runs each request as a task on the guests' runtime. The task ends when the guest drops the answer, or the
//! instance goes. A request that the guest keeps ends with the call, see [`OutboundRequests::end_call`].

use std::{sync::Arc, time::Duration};

use http_body_util::BodyExt as _;
use hyper::{Method, Request, Response};
use tokio::time::timeout;
use wasmtime::component::Linker;
use wasmtime_wasi_http::{
    Error, RequestOptions, Result, WasiBody, WasiHttpCtx, WasiHttpCtxView, WasiHttpHooks, WasiHttpView,
};

use crate::{
    component::run::{
        host::{Guest, Host},
        output::line,
    },
    dial::ServerHost,
    shutdown::{Stop, Trigger, stop},
    tls,
    usage::{Direction, Metered},
};

mod body;
mod exchange;
mod failure;
mod parts;
mod target;

use crate::component::imports::outbound::{failure::RequestFailure, target::Denied};

/// Longest time for the look-up, the connection and TLS together. A guest may ask for less.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait for the head of the answer, and between two parts of its body. A guest may ask for less. Usually its
/// call's deadline comes first.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(600);

/// Most bytes that a body's stream takes at a time, for requests and answers.
const BODY_CHUNK: usize = 64 << 10;
/// How many such pieces may wait for the connection, besides the one that is being written.
const BODY_CHUNKS: usize = 1;

/// Most bytes of the header fields behind one handle, counting about 32 extra for each name and each value. wasmtime
/// traps above this. The fields of an API request, at most 64 KiB and a hundred of them, must fit: otherwise a client
/// could break a guest that forwards its fields.
const MAX_FIELDS: usize = 72 << 10;

/// What an instance keeps for `wasi:http`.
pub struct OutboundHttp {
    requests: OutboundRequests,
    context: WasiHttpCtx,
}

impl OutboundHttp {
    pub fn new(guest: &Guest) -> Self {
        let mut context = WasiHttpCtx::new();
        context.set_field_size_limit(MAX_FIELDS);
        Self { requests: OutboundRequests::new(guest), context }
    }
}

pub const PROVIDED: &[(&str, &str)] = &[("wasi:http/", "0.2.")];
pub const GRANTED: &[(&str, &str)] = &[("wasi:http/outgoing-handler", "grants.http")];

/// Puts its functions into the linker.
pub fn link(linker: &mut Linker<Host>) -> wasmtime::Result<()> {
    wasmtime_wasi_http::p2::add_only_http_to_linker_async(linker)?;
    parts::bound(linker)
}

impl WasiHttpView for Host {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        let OutboundHttp { requests, context } = &mut self.capabilities.outbound;
        WasiHttpCtxView { hooks: requests, table: &mut self.table, ctx: context }
    }
}

impl Host {
    /// The requests of the instance's call.
    pub fn outbound(&mut self) -> &mut OutboundRequests {
        &mut self.capabilities.outbound.requests
    }
}

/// Sends a guest's requests, each within a call.
pub struct OutboundRequests {
    guest: Guest,
    /// Ends the requests of the current call. `None`: there is no call, for instance while the instance is made.
    call: Option<(Trigger, Stop)>,
}

/// Drives a connection to its end.
type Transmitted = Box<dyn Future<Output = Result<(), Error>> + Send>;
type SendResult = Result<(Response<WasiBody>, Transmitted)>;

impl OutboundRequests {
    pub fn new(guest: &Guest) -> Self {
        Self { guest: guest.clone(), call: None }
    }

    pub fn begin_call(&mut self) {
        self.call = Some(stop());
    }

    /// Ends the call's requests. No request outlives its call: requests under way are cut, and answers that have
    /// arrived cannot be read any more.
    pub fn end_call(&mut self) {
        self.call = None;
    }
}

impl WasiHttpHooks for OutboundRequests {
    fn p2_outgoing_body_buffer_chunks(&mut self) -> usize {
        BODY_CHUNKS
    }

    fn p2_outgoing_body_chunk_size(&mut self) -> usize {
        BODY_CHUNK
    }

    fn send_request(
        &mut self,
        request: Request<WasiBody>,
        options: Option<RequestOptions>,
        _: Transmitted,
    ) -> Box<dyn Future<Output = SendResult> + Send> {
        let outgoing = OutgoingRequest { guest: self.guest.clone(), options: options.unwrap_or_default() };
        let stop = self.call.as_ref().map(|(_, stop)| stop.clone());
        let usage = Arc::clone(&self.guest.tenant.usage);
        let request = request.map(|body| Metered::new(body, &usage, Direction::Out).boxed_unsync());
        Box::new(async move {
            let (answer, transmitted) = outgoing.run(request, stop).await?;
            Ok((answer.map(|body| Metered::new(body, &usage, Direction::In).boxed_unsync()), transmitted))
        })
    }
}

/// One request on its way to the head of its answer.
struct OutgoingRequest {
    guest: Guest,
    options: RequestOptions,
}

impl OutgoingRequest {
    async fn run(self, request: Request<WasiBody>, stop: Option<Stop>) -> SendResult {
        let mut counted = CountedRequest { guest: &self.guest, outcome: "cut_off" };
        let sent = match stop {
            Some(mut stop) => {
                let ending = stop.clone();
                tokio::select! {
                    sent = self.send(request, ending) => sent,
                    () = stop.wait() => return Err(Error::ConnectionTerminated),
                }
            }
            None => Err(RequestFailure::Denied(Denied::NoCall)),
        };
        counted.outcome = sent.as_ref().map_or_else(RequestFailure::outcome, |_| "answered");
        sent.map_err(|failure| {
            match &failure {
                RequestFailure::Denied(denied) => self.log(denied.host(), denied.reason()),
                RequestFailure::Proxy { to, status } => self.log(to, failure::by_proxy(*status)),
                RequestFailure::Limited(_) | RequestFailure::Code(_) => {}
            }
            failure.into()
        })
    }

    async fn send(
        &self,
        request: Request<WasiBody>,
        stop: Stop,
    ) -> Result<(Response<WasiBody>, Transmitted), RequestFailure> {
        let Guest { tenant, version, .. } = &self.guest;
        if request.method() == Method::CONNECT {
            return Err(RequestFailure::Code(Error::HttpRequestMethodInvalid));
        }
        let destinations = &version.grants.http;
        let server = target::server(request.uri(), destinations)?;
        let permit = tenant.outbound.begin()?;
        let connecting = async {
            // An address in the URL was listed itself.
            let allows = |address| match server.host {
                ServerHost::Name(_) => destinations.may_lead_to(address, server.port),
                ServerHost::Address(_) => true,
            };
            let opened = tenant.dialer.open(&server, &tenant.lookups, allows).await;
            let stream = opened.map_err(|error| failure::dialing(&server, error))?;
            exchange::connect(stream, &server, tls::client).await
        };
        let within = |most: Duration, asked: Option<Duration>| asked.map_or(most, |asked| asked.min(most));
        let connecting = timeout(within(CONNECT_TIMEOUT, self.options.connect_timeout), connecting).await;
        let connection = connecting.unwrap_or(Err(RequestFailure::Code(Error::ConnectionTimeout)))?;
        let times = exchange::Times {
            first: within(SILENCE_TIMEOUT, self.options.first_byte_timeout),
            between: within(SILENCE_TIMEOUT, self.options.between_bytes_timeout),
        };
        let (answer, driving) = connection.exchange(request, times, stop).await?;
        let driving = async move {
            // The request counts as under way until its connection has ended.
            let _permit = permit;
            Box::into_pin(driving).await
        };
        Ok((answer, Box::new(driving)))
    }

    /// Logs a denial, once for each host and for a bounded number of hosts, since a guest may go on asking.
    fn log(&self, host: &str, reason: &'static str) {
        let host = line(host);
        if self.guest.tenant.denied_hosts.is_news(&self.guest.version, &host, reason) {
            let write = || tracing::warn!(reason, outbound.host = host, "component's request denied");
            self.guest.span().in_scope(write);
        }
    }
}

/// Counts a request when it ends, even if nobody waits for it any more.
struct CountedRequest<'a> {
    guest: &'a Guest,
    outcome: &'static str,
}

impl Drop for CountedRequest<'_> {
    fn drop(&mut self) {
        self.guest.tenant.metrics.requested(self.outcome);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::{fs, path::PathBuf, sync::Arc};

    use config::{
        Bounds, TenantsFolder,
        grants::{Allowed, AllowedNetwork},
    };
    use http_body_util::{BodyExt as _, Empty};

    use super::*;
    use crate::{
        component::RoleKind,
        delivery::{Shards, Timing},
        metrics::Metrics,
        tenant::{HostPlaces, HostResources, ProcessLimits, Tenant},
    };

    /// A guest of the tenant `t` that may send requests to 127.0.0.1, port 1, where nothing listens.
    fn guest(metrics: &Arc<Metrics>) -> Guest {
        let folder = std::env::temp_dir().join(format!("edge-relay-outbound-{}", uuid::Uuid::now_v7()));
        fs::create_dir_all(&folder).unwrap();
        fs::write(TenantsFolder::manifest(&folder), "name = 't'\ngrants.http = ['127.0.0.1:1']").unwrap();
        let networks = vec![AllowedNetwork { network: "127.0.0.0/8".parse().unwrap(), tenants: Vec::new() }];
        let allowed = Arc::new(Allowed { networks, ..Allowed::default() });
        let bounds = Arc::new(Bounds { allowed, ..Bounds::default() });
        let config = TenantsFolder { path: PathBuf::new(), bounds }.tenant(&folder).unwrap();
        fs::remove_dir_all(folder).unwrap();
        let timing = Timing { ping_interval: SILENCE_TIMEOUT, stall_timeout: SILENCE_TIMEOUT };
        let shards = Arc::new(Shards::start(0, timing).unwrap());
        let (clients, places) = (Arc::default(), HostPlaces::new(1));
        let host = HostResources {
            metrics: Arc::clone(metrics),
            shards,
            clients,
            places,
            process: ProcessLimits::of_process(),
            dialer: Arc::default(),
            turns: None,
        };
        let tenant = Tenant::new(&config, &host);
        let (version, name) = (tenant.version(), Arc::from("api"));
        let metrics = metrics.guest(&tenant.name, "api", &name);
        Guest { tenant, version, role: RoleKind::Api, name, metrics }
    }

    async fn send(outbound: &mut OutboundRequests) -> Error {
        let body = Empty::new().map_err(|never| match never {}).boxed_unsync();
        let request = Request::get("http://127.0.0.1:1/").body(body).unwrap();
        Box::into_pin(outbound.send_request(request, None, Box::new(async { Ok(()) }))).await.err().unwrap()
    }

    #[tokio::test]
    async fn requests_come_with_calls_only() {
        let metrics = Arc::new(Metrics::new());
        let guest = guest(&metrics);
        let mut outbound = OutboundRequests::new(&guest);
        assert!(matches!(send(&mut outbound).await, Error::HttpRequestDenied), "while it starts");
        outbound.begin_call();
        assert!(matches!(send(&mut outbound).await, Error::ConnectionRefused));
        outbound.end_call();
        assert!(matches!(send(&mut outbound).await, Error::HttpRequestDenied), "between two calls");
        let counted = metrics.encode().unwrap();
        for (outcome, count) in [("denied", 2), ("refused", 1)] {
            let line = format!("edge_relay_outbound_requests_total{{tenant=\"t\",outcome=\"{outcome}\"}} {count}\n");
            assert!(counted.contains(&line), "{line} is not in {counted}");
        }
    }

    #[test]
    fn a_denied_host_is_news_once_a_version_and_their_number_is_bounded() {
        let guest = guest(&Arc::new(Metrics::new()));
        let Guest { tenant, version, .. } = &guest;
        assert!(
            tenant.denied_hosts.is_news(version, "a:80", "x") && !tenant.denied_hosts.is_news(version, "a:80", "x")
        );
        assert!(tenant.denied_hosts.is_news(version, "a:80", "y"));
        let news = (0..1000).filter(|nth| tenant.denied_hosts.is_news(version, &nth.to_string(), "x")).count();
        assert!((90..=100).contains(&news), "{news}");
        let another = self::guest(&Arc::new(Metrics::new())).version;
        assert!(tenant.denied_hosts.is_news(&another, "a:80", "x"));
    }
}
