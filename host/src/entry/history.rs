//! Channels over HTTP: `GET /<tenant>/channels/<channel>` reads the log, `…/snapshot` the latest of every key.
//!
//! Both answer `{"epoch":"…","offset":7,"publications":[{"offset":7,"key":"…","data":"…"}]}`. The outer `offset` is the
//! channel's newest. A binary payload has `base64` in the place of `data`, and a removal has `"remove":true`.
//!
//! `?since=EPOCH:OFFSET` asks for the publications after a position. The answer then says whether they are all there:
//! with `"recovered":false` some are missing, and it has none. A snapshot is ordered by offset, and `?after=OFFSET`
//! asks for its next page. `limit=N` bounds the answer. A request is allowed if a subscription would be.

use std::sync::Arc;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode, Uri,
    body::Incoming,
    header::{ALLOW, CONNECTION, HeaderValue},
};
use serde::Serialize;
use wire::{Entry, Kind, Page, Position};

use crate::{
    account::{Charge, Part},
    component,
    entry::{handshake::Attempt, origins, refusal::Refusal},
    http_error,
    routes::Route,
};

/// Most publications in one answer, unless the request says otherwise.
const LIMIT: usize = 100;
/// The most that a request can ask for.
const MAX_LIMIT: usize = 1000;

/// Bytes up to which a page is written at once.
const SMALL_PAGE: usize = 16 << 10;

/// A request to read a channel.
pub struct ReadRequest<'d> {
    pub route: &'d Route,
    pub channel: String,
    /// Whether it is for the snapshot. If not, it is for the log.
    pub snapshot: bool,
}

/// Answers a request for a channel.
pub async fn answer(
    attempt: &Attempt,
    request: &Request<Incoming>,
    reading: &ReadRequest<'_>,
) -> Response<Full<Bytes>> {
    let tenant = &reading.route.tenant;
    if request.method() == Method::OPTIONS {
        return attempt.preflight(tenant, request).await;
    }
    let mut response = match read(attempt, request, reading).await {
        Ok(body) => http_error::json(StatusCode::OK, body),
        Err(refusal) => attempt.refused(&refusal, refusal.response()),
    };
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    headers.extend(origins::cors(tenant, request.headers()));
    response
}

async fn read(attempt: &Attempt, request: &Request<Incoming>, reading: &ReadRequest<'_>) -> Result<String, Refusal> {
    attempt.take_tenants_place(&reading.route.tenant).await?;
    if request.method() != Method::GET {
        let refusal = Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "method", "a channel is read with GET");
        return Err(refusal.with(ALLOW, "GET"));
    }
    origins::check(&reading.route.tenant, request.headers())?;
    let parameters = Parameters::read(request.uri())?;
    if !attempt.take_read_places(&reading.route.tenant) {
        return Err(Refusal::unavailable("busy", "too many requests read channels at once"));
    }
    may_follow(reading, || attempt.connect_request(request, component::Transport::WebSocket)).await?;
    let channel = reading.route.tenant.channels.find(&reading.channel).await;
    let Some(channel) = channel.map_err(|why| Refusal::channel(why, &reading.channel))? else {
        return Err(Refusal::new(StatusCode::NOT_FOUND, "no_channel", "nothing has been published on this channel"));
    };
    let (snapshot, metrics) = (reading.snapshot, Arc::clone(&channel.metrics));
    let page = move || match snapshot {
        true => channel.latest_of_keys(parameters.after, parameters.limit),
        false => channel.page(parameters.since, parameters.limit),
    };
    let write = |page: Page| serde_json::to_string(&PageJson::from(page));
    let first = page();
    let written = if first.size() <= SMALL_PAGE {
        write(first)
    } else {
        // Others wait for this thread. The page is made again there, so that who waits holds none.
        drop(first);
        let written = attempt.context.shards.make_page(&metrics, move || write(page()));
        written.await.ok_or_else(Refusal::shutdown)?
    };
    let written = written.map_err(|error| {
        let message = format!("the answer cannot be written: {error}");
        Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", &message)
    })?;
    let charge = Charge::take(&reading.route.tenant.account, Part::Queues, written.len());
    attempt.keep_charge(charge.ok_or_else(|| Refusal::unavailable("memory", "the tenant's memory is full"))?);
    reading.route.tenant.usage.let_out(written.len()).await;
    Ok(written)
}

/// Asks the tenant's handler, if there is one, whether a client with this request could connect and subscribe.
async fn may_follow(
    reading: &ReadRequest<'_>,
    connect_request: impl FnOnce() -> component::ConnectRequest,
) -> Result<(), Refusal> {
    let Some(handler) = &reading.route.handler else { return Ok(()) };
    let id = reading.route.tenant.next_client_id();
    let admission = handler.connect(id, connect_request(), None).await.map_err(Refusal::by_handler)?;
    let allowed = match admission.channels {
        Some(channels) if channels.contains(&reading.channel) => Ok(()),
        Some(_) => Err(Refusal::new(StatusCode::FORBIDDEN, "channel", "this client may not follow the channel")),
        None => handler.subscribe(&admission.session, reading.channel.clone(), None).await.map_err(Refusal::by_handler),
    };
    admission.session.note_leaving("read");
    allowed
}

/// What the query of a reading asks for.
struct Parameters {
    since: Option<Position>,
    /// The offset after which a snapshot's page begins.
    after: u64,
    limit: usize,
}

impl Parameters {
    fn read(uri: &Uri) -> Result<Self, Refusal> {
        let mut parameters = Self { since: None, after: 0, limit: LIMIT };
        for (key, value) in form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes()) {
            let wrong = |message: &str| Refusal::new(StatusCode::BAD_REQUEST, "parameter", message);
            match &*key {
                "since" => parameters.since = Some(Refusal::check_position(value.parse())?),
                "after" => parameters.after = value.parse().map_err(|_| wrong("after is an offset"))?,
                "limit" => {
                    let limit = value.parse().ok().filter(|limit| (1..=MAX_LIMIT).contains(limit));
                    parameters.limit =
                        limit.ok_or_else(|| wrong(&format!("limit is a number from 1 to {MAX_LIMIT}")))?;
                }
                _ => {}
            }
        }
        Ok(parameters)
    }
}

/// The answer's JSON.
#[derive(Serialize)]
struct PageJson {
    epoch: String,
    offset: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    recovered: Option<bool>,
    publications: Vec<PublicationJson>,
}

#[derive(Serialize)]
struct PublicationJson {
    offset: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    remove: bool,
    #[serde(flatten)]
    payload: PayloadJson,
}

#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
enum PayloadJson {
    Data(String),
    Base64(String),
}

impl From<Page> for PageJson {
    fn from(page: Page) -> Self {
        let Page { position: Position { epoch, offset }, entries, recovered } = page;
        let publications = entries.into_iter().map(PublicationJson::new).collect();
        Self { epoch: epoch.to_string(), offset, recovered, publications }
    }
}

impl PublicationJson {
    fn new(Entry { offset, key, data }: Entry) -> Self {
        let payload = match (data.kind, str::from_utf8(&data.bytes)) {
            (Kind::Text, Ok(text)) => PayloadJson::Data(text.to_owned()),
            _ => PayloadJson::Base64(BASE64_STANDARD.encode(&data.bytes)),
        };
        Self { offset, key: key.name.map(|name| (*name).to_owned()), remove: key.remove, payload }
    }
}
