//! Channels over HTTP: `GET /<tenant>/channels/<channel>` reads back, `…/snapshot` has the latest of every key.
//!
//! Both answer `{"epoch":"…","offset":7,"publications":[{"offset":7,"key":"…","data":"…"}]}`, `offset` being the
//! channel's newest; a binary payload is `base64` in the place of `data`, and a removal says `"remove":true`. With
//! `?since=EPOCH:OFFSET` come those behind it, and `recovered`: false, and none, where some are missing; `&limit=N`.
//! Allowed is what the same request for a subscription would be allowed.

use std::net::IpAddr;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode, Uri,
    body::Incoming,
    header::{ACCESS_CONTROL_ALLOW_ORIGIN, ALLOW, CONNECTION, HeaderValue, ORIGIN, VARY},
};
use serde_json::{Value, json};

use super::{
    client_address,
    handshake::{Attempt, Refusal, for_handler},
    listener::Asked,
};
use crate::{
    channel::{Entry, Kind, Page, Position},
    http_error,
    tenant::Tenant,
};

/// Publications of one answer: by default, and at most.
const LIMIT: usize = 100;
const MAX_LIMIT: usize = 1000;

/// Answers a request for a channel.
pub async fn answer(attempt: &Attempt, request: &Request<Incoming>, asked: Asked<'_>) -> Response<Full<Bytes>> {
    let tenant = &asked.route.tenant;
    let mut response = match read(attempt, request, &asked).await {
        Ok(body) => http_error::json(StatusCode::OK, &body),
        Err(refusal) => {
            attempt.door.metrics.handshake_refused(refusal.reason);
            refusal.response()
        }
    };
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    if let Some(origin) = allowed_origin(tenant, request.headers()) {
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    }
    if !tenant.cors.is_empty() {
        headers.insert(VARY, HeaderValue::from_static("Origin"));
    }
    response
}

async fn read(attempt: &Attempt, request: &Request<Incoming>, asked: &Asked<'_>) -> Result<Value, Refusal> {
    if request.method() != Method::GET {
        let refusal = Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "method", "a channel is read with GET");
        return Err(refusal.with(ALLOW, "GET"));
    }
    let (since, limit) = parameters(request.uri())?;
    let address = client_address(attempt.peer, request.headers(), &attempt.door.trusted_proxies);
    may_follow(asked, request, address).await?;
    let channel = asked.route.tenant.channels.subscribe(&asked.channel);
    let channel = channel.map_err(|why| Refusal::channel(why, &asked.channel))?;
    if asked.snapshot {
        return Ok(body(channel.latest_of_keys()));
    }
    let page = channel.page(since, limit);
    let recovered = page.recovered;
    let mut body = body(page);
    if since.is_some() {
        body["recovered"] = recovered.into();
    }
    Ok(body)
}

/// Asks the tenant's handler, if it has one, as for a client that connects and subscribes.
async fn may_follow(asked: &Asked<'_>, request: &Request<Incoming>, address: IpAddr) -> Result<(), Refusal> {
    let Some(handler) = &asked.route.handler else { return Ok(()) };
    let admission = handler.connect(for_handler(request, address)).await.map_err(Refusal::guests)?;
    let allowed = match admission.channels {
        Some(channels) if channels.contains(&asked.channel) => Ok(()),
        Some(_) => Err(Refusal::new(StatusCode::FORBIDDEN, "channel", "this client may not follow the channel")),
        None => handler.subscribe(&admission.session, asked.channel.clone()).await.map_err(Refusal::guests),
    };
    admission.session.leaves("read");
    allowed
}

fn parameters(uri: &Uri) -> Result<(Option<Position>, usize), Refusal> {
    let (mut since, mut limit) = (None, LIMIT);
    for (key, value) in form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes()) {
        match &*key {
            "since" => since = Some(Refusal::no_position(value.parse())?),
            "limit" => {
                let count = value.parse().ok().filter(|count| (1..=MAX_LIMIT).contains(count));
                let message = format!("limit is a number from 1 to {MAX_LIMIT}");
                limit = count.ok_or_else(|| Refusal::new(StatusCode::BAD_REQUEST, "limit", &message))?;
            }
            _ => {}
        }
    }
    Ok((since, limit))
}

fn body(page: Page) -> Value {
    let Page { position: Position { epoch, offset }, entries, .. } = page;
    let publications: Vec<Value> = entries.into_iter().map(publication).collect();
    json!({ "epoch": epoch.to_string(), "offset": offset, "publications": publications })
}

fn publication(Entry { offset, key, data }: Entry) -> Value {
    let mut publication = json!({ "offset": offset });
    if let Some(name) = key.name {
        publication["key"] = (*name).into();
    }
    if key.remove {
        publication["remove"] = true.into();
    }
    match (data.kind, str::from_utf8(&data.bytes)) {
        (Kind::Text, Ok(text)) => publication["data"] = text.into(),
        _ => publication["base64"] = BASE64_STANDARD.encode(&data.bytes).into(),
    }
    publication
}

/// The request's origin, if the tenant lets its pages read.
fn allowed_origin(tenant: &Tenant, headers: &HeaderMap) -> Option<HeaderValue> {
    let origin = headers.get(ORIGIN)?;
    let listed = tenant.cors.iter().any(|listed| listed == "*" || listed.as_bytes() == origin.as_bytes());
    listed.then(|| origin.clone())
}
