//! Which clients a tenant lets in, and to which channels. For plain WebSockets and event streams, where the request
//! says everything.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use form_urlencoded::parse;
use hyper::{
    Request, StatusCode, Uri,
    body::Incoming,
    header::{AUTHORIZATION, HeaderValue},
};
use percent_encoding::percent_decode_str;
use wire::{Compression, MAX_CHANNELS, Position, sse};

use crate::{
    channel::{Channel, MAIN, Refused, Start},
    component,
    component::Handler,
    delivery::{Recipient, shard::Due},
    entry::{
        EntryContext, Proxies,
        refusal::{Refusal, channel_message},
        remove_claims,
    },
    metrics::Blame,
    routes::Route,
    tenant::Tenant,
};

/// How many times as many clients as the host has room for a tenant may have: one that takes all it can leaves a
/// seventeenth of the room to other tenants.
const CLIENTS_SHARE: usize = 16;

/// Most characters of a guest's subprotocol in the log.
const SHOWN: usize = 80;

/// A client that is let in.
pub struct Admitted {
    /// `None`: the tenant has no handler.
    pub recipient: Option<Arc<dyn Recipient>>,
    pub channels: Vec<Arc<Channel>>,
    /// The subprotocol that the tenant's handler has chosen for its WebSocket.
    pub subprotocol: Option<String>,
    /// When its connection ends. `None`: it may stay.
    pub deadline: Option<(Instant, Due)>,
}

impl EntryContext {
    /// Refuses a client if the host or the tenant has no room for it.
    pub fn check_room(&self, tenant: &Tenant) -> Result<(), Refusal> {
        if self.total.load(Ordering::Relaxed) >= self.max_clients {
            return Err(Refusal::unavailable("full", "the relay has as many clients as it takes"));
        }
        // Who has few clients is served before those who have many.
        let free = self.max_clients.saturating_sub(self.total.load(Ordering::Relaxed));
        let is_alone = self.routes.count() <= 1;
        if !is_alone && tenant.client_limits.count() >= CLIENTS_SHARE.saturating_mul(free) {
            tenant.metrics.limited("clients", 1);
            return Err(Refusal::unavailable("full", "the relay keeps its last room for tenants with fewer clients"));
        }
        if tenant.client_limits.is_full() {
            tenant.metrics.limited("clients", 1);
            return Err(Refusal::unavailable("clients", "the tenant has as many clients as it takes"));
        }
        Ok(())
    }

    /// Lets a client in. It follows the channels it wants, or the channels that the tenant's handler gives it.
    pub async fn admit(
        &self,
        Route { tenant, handler, .. }: &Route,
        request: impl FnOnce() -> component::ConnectRequest,
        wanted: BTreeSet<String>,
        compression: Option<Compression>,
    ) -> Result<Admitted, Refusal> {
        let Some(handler) = handler else {
            let channels = follow_all(tenant, or_main(tenant, wanted)?, Refusal::channel).await?;
            return Ok(Admitted { recipient: None, channels, subprotocol: None, deadline: None });
        };
        let admission =
            handler.connect(tenant.next_client_id(), request(), compression).await.map_err(Refusal::by_handler)?;
        let channels = match admission.channels {
            Some(given) => follow_given(tenant, handler, given).await?,
            None => {
                let wanted = or_main(tenant, wanted)?;
                for name in &wanted {
                    let allowed = handler.subscribe(&admission.session, name.clone(), None).await;
                    allowed.map_err(Refusal::by_handler)?;
                }
                follow_all(tenant, wanted, Refusal::channel).await?
            }
        };
        // Checked again: other clients may have come while the handler was asked.
        self.check_room(tenant)?;
        let deadline =
            admission.lease.map(|seconds| (Instant::now() + Duration::from_secs(seconds.into()), Due::Expired));
        let (session, subprotocol) = (admission.session, admission.subprotocol);
        Ok(Admitted { recipient: Some(Arc::new(session)), channels, subprotocol, deadline })
    }
}

/// The channels that a handler gives a client.
pub async fn follow_given(
    tenant: &Tenant,
    handler: &Handler,
    names: Vec<String>,
) -> Result<Vec<Arc<Channel>>, Refusal> {
    let names: BTreeSet<String> = names.into_iter().collect();
    if names.len() > MAX_CHANNELS {
        return Err(wrong_channels(handler, &format!("{} channels are more than {MAX_CHANNELS}", names.len())));
    }
    let refusal = |why, name: &str| match why {
        // The client has not named the channel, so the answer does not name it either.
        Refused::Channels(_) => Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "channel", &why.to_string()),
        _ => wrong_channels(handler, &channel_message(why, name)),
    };
    follow_all(tenant, names, refusal).await
}

/// The channels with these names. The first that cannot be followed leads to a refusal.
async fn follow_all(
    tenant: &Tenant,
    names: BTreeSet<String>,
    refusal: impl Fn(Refused, &str) -> Refusal,
) -> Result<Vec<Arc<Channel>>, Refusal> {
    let mut channels = Vec::with_capacity(names.len());
    for name in &names {
        channels.push(tenant.channels.follow(name).await.map_err(|why| refusal(why, name))?);
    }
    Ok(channels)
}

/// Refuses a client to which the handler gave channels that it cannot follow. The client has done nothing wrong. What
/// the handler named goes to the log only.
fn wrong_channels(handler: &Handler, why: &str) -> Refusal {
    handler.metrics.failed(Blame::GuestBroke, "channels");
    handler.guest().log(|| {
        tracing::warn!(field = "channels", error = why, "a handler gave a client channels that it cannot follow");
    });
    let message = "the tenant's code gives it channels that cannot be";
    Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "handler", message)
}

/// Refuses a client whose handler has chosen a subprotocol for it that it does not offer: RFC 6455 section 4.1 has it
/// drop such a connection.
pub fn wrong_subprotocol(handler: &Handler, chosen: &str) -> Refusal {
    handler.metrics.failed(Blame::GuestBroke, "subprotocol");
    handler.guest().log(|| {
        let chosen: String = chosen.chars().take(SHOWN).collect();
        let why = format!("{chosen:?} is not among what the client offers");
        tracing::warn!(field = "subprotocol", error = why, "a handler chose a subprotocol that cannot be");
    });
    let message = "the tenant's code chose a subprotocol that was not offered";
    Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "handler", message)
}

/// The request as a handler sees it, with those of its headers that it can believe.
pub fn connect_request(
    request: &Request<Incoming>,
    peer: IpAddr,
    proxies: &Proxies,
    transport: component::Transport,
) -> component::ConnectRequest {
    let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let query = request.uri().query().unwrap_or_default();
    // The case of the scheme's name does not matter (RFC 9110 section 11.1).
    let bearer = request.headers().get(AUTHORIZATION).map(text).and_then(|value| {
        let (scheme, token) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim().to_owned())
    });
    let in_query = || form_urlencoded::parse(query.as_bytes()).find(|(key, _)| key == "token");
    let mut headers = request.headers().clone();
    remove_claims(&mut headers, peer, proxies);
    component::ConnectRequest {
        path: request.uri().path().to_owned(),
        query: query.to_owned(),
        headers: headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect(),
        client_ip: proxies.client_address(peer, request.headers()).to_string(),
        transport,
        token: bearer.or_else(|| in_query().map(|(_, token)| token.into_owned())),
        data: None,
    }
}

/// What a query asks for.
#[derive(Default)]
pub struct ChannelQuery {
    /// The channels, one `channel=NAME` for each. If there are none, the client follows [`MAIN`], or what the tenant's
    /// handler gives it.
    pub names: BTreeSet<String>,
    /// Where to go on, from `since=EPOCH:OFFSET`. Positions in several channels are separated by commas.
    pub after: Vec<Position>,
    /// What an `EventSource` that cannot set headers says of the last event that it has, from `lastEventId=`.
    pub last_event_id: Option<Vec<Position>>,
}

impl ChannelQuery {
    pub fn read(uri: &Uri) -> Result<Self, Refusal> {
        let query = uri.query().unwrap_or_default();
        let mut wanted = Self::default();
        for (pair, (key, value)) in query.split('&').filter(|pair| !pair.is_empty()).zip(parse(query.as_bytes())) {
            match &*key {
                "channel" if !is_utf8(pair) => {
                    let message = "the channel's name is not percent-encoded UTF-8";
                    return Err(Refusal::new(StatusCode::BAD_REQUEST, "channel", message));
                }
                "channel" => drop(wanted.names.insert(value.into_owned())),
                "since" => wanted.after = Refusal::check_position(sse::positions(&value))?,
                "lastEventId" => wanted.last_event_id = sse::last_positions(&value),
                _ => {}
            }
            if wanted.names.len() > MAX_CHANNELS {
                let message = format!("a client follows at most {MAX_CHANNELS} channels");
                return Err(Refusal::new(StatusCode::BAD_REQUEST, "channel", &message));
            }
        }
        Ok(wanted)
    }
}

/// Whether a client wants its messages as they are: `compression=off`.
pub fn declines_compression(uri: &Uri) -> Result<bool, Refusal> {
    let query = uri.query().unwrap_or_default();
    match parse(query.as_bytes()).find(|(key, _)| key == "compression") {
        None => Ok(false),
        Some((_, value)) if value == "on" => Ok(false),
        Some((_, value)) if value == "off" => Ok(true),
        Some(_) => {
            let message = "compression is on, which is the default, or off";
            Err(Refusal::new(StatusCode::BAD_REQUEST, "parameter", message))
        }
    }
}

/// Whether what is percent-encoded is UTF-8. Else the name would become another one.
fn is_utf8(pair: &str) -> bool {
    percent_decode_str(pair).decode_utf8().is_ok()
}

/// The channels of a client that names none: [`MAIN`], unless the manifest lists others alone.
fn or_main(tenant: &Tenant, mut wanted: BTreeSet<String>) -> Result<BTreeSet<String>, Refusal> {
    if wanted.is_empty() {
        if let Some(others) = tenant.channels.listed_without_main() {
            let message = format!("name a channel, as in ?channel=NAME; this tenant has {others}");
            return Err(Refusal::new(StatusCode::BAD_REQUEST, "channel", &message));
        }
        wanted.insert(MAIN.to_owned());
    }
    Ok(wanted)
}

/// Where a client of a plain WebSocket begins in each channel. Its wire cannot tell of a gap, so a position with a gap
/// behind it is refused.
pub fn raw_starts(channels: Vec<Arc<Channel>>, after: &[Position]) -> Result<Vec<(Arc<Channel>, Start)>, Refusal> {
    let [after] = *after else {
        if after.is_empty() {
            let start = |channel: Arc<Channel>| (Arc::clone(&channel), channel.start());
            return Ok(channels.into_iter().map(start).collect());
        }
        return Err(Refusal::bad_position("since is a position in one channel: request one channel"));
    };
    match <[_; 1]>::try_from(channels) {
        Ok([channel]) if channel.can_resume_after(after) => Ok(vec![(channel, Start::After(after))]),
        Ok(_) => {
            let message = "what came after this position is not all there: begin anew, without since";
            Err(Refusal::new(StatusCode::GONE, "not_recovered", message))
        }
        Err(_) => Err(Refusal::bad_position("since is a position in one channel: request one channel")),
    }
}
