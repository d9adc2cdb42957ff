//! Partners that refuse: how long they are left alone, where they point instead, and what the operator is told.

use std::time::{Duration, Instant};

use support::{
    certificates::Authority,
    partner::{Partner, RawPeer},
    relay::Relay,
    tenant::Folder,
    until,
};

/// A relay of one tenant, with more keys of its upstream.
async fn relay(partner: &Partner, upstream: &str) -> Relay {
    Relay::serve(Folder::new("").tenant("t", &partner.url(), upstream)).await
}

fn answer(status: &str, lines: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status}\r\n{lines}Content-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

#[tokio::test]
async fn a_partner_is_left_alone_for_as_long_as_it_asks() {
    for (status, wait, seconds) in
        [("503 Busy", "Retry-After: 2\r\n", 2), ("418 Teapot", "Retry-After: DATE\r\nDate: NOW\r\n", 3)]
    {
        let mut partner = Partner::start().await;
        let relay = relay(&partner, "").await;
        let peer = partner.arrival().await.request().await;
        let now = std::time::SystemTime::now();
        let date = httpdate::fmt_http_date(now + Duration::from_secs(2));
        let lines = wait.replace("DATE", &date).replace("NOW", &httpdate::fmt_http_date(now));
        let refused = Instant::now();
        { peer }.write(&answer(status, &lines, "")).await;
        partner.accept().await;
        assert!(refused.elapsed() >= Duration::from_secs(2), "{status}: after {:?}", refused.elapsed());
        relay.logged(&["upstream not connected", &format!("to be asked again in {seconds} s")]).await;
    }
}

#[tokio::test]
async fn more_than_an_hour_is_kept_to_and_logged() {
    let mut partner = Partner::start().await;
    let relay = relay(&partner, "").await;
    partner.arrival().await.answer(&answer("429 Too Many", "Retry-After: 7200\r\n", "")).await;
    relay.logged(&["WARN", "upstream.name=feed", "more than an hour"]).await;
    let feed = relay.ready().await["tenants"]["t"]["upstreams"]["feed"].take();
    assert!((7_190_000..=7_201_000).contains(&feed["until"].as_u64().unwrap()), "{feed}");
}

#[tokio::test]
async fn the_operator_sees_what_the_partner_says() {
    let mut partner = Partner::start().await;
    let relay = relay(&partner, "").await;
    let body = format!("<p>your plan\x1b[31m\n has ended{}", "x".repeat(300));
    partner.arrival().await.answer(&answer("403 Forbidden", "", &body)).await;
    let line = relay.logged(&["upstream not connected", "HTTP status 403"]).await;
    assert!(line.contains("<p>your plan") && line.contains(" has ended") && !line.contains('\x1b'), "{line}");
    assert!(!line.contains(&"x".repeat(181)), "200 bytes of it: {line}");
    let feed = until("the reason at /readyz", async || match relay.ready().await["tenants"]["t"]["upstreams"]["feed"]
        .take()
    {
        feed if feed["reason"].is_string() => Ok(feed),
        feed => Err(feed.to_string()),
    })
    .await;
    assert_eq!(feed["state"], "connecting");
    let error = feed["reason"].as_str().unwrap();
    assert!(error.contains("HTTP status 403") && error.contains("your plan\\u{1b}[31m\\n has ended"), "{error}");
    let _peer = partner.accept().await;
    until("no reason any more", async || match relay.ready().await["tenants"]["t"]["upstreams"]["feed"].take() {
        feed if feed == serde_json::json!({ "state": "live" }) => Ok(()),
        feed => Err(feed.to_string()),
    })
    .await;
}

/// Refuses until the pause before the next attempt is longer than eight seconds.
pub async fn long_pause(partner: &mut Partner, relay: &Relay, status: &str) {
    loop {
        partner.arrival().await.answer(&answer(status, "", "")).await;
        let feed = until("a pause", async || match relay.ready().await["tenants"]["t"]["upstreams"]["feed"].take() {
            feed if feed["until"].as_u64().is_some_and(|ms| ms > 0) => Ok(feed),
            feed => Err(feed.to_string()),
        })
        .await;
        if feed["until"].as_u64().unwrap() > 8000 {
            return;
        }
    }
}

#[tokio::test]
async fn a_changed_secret_ends_the_wait() {
    let mut partner = Partner::start().await;
    let folder = Folder::new("").tenant("t", &partner.url(), "headers = { x-key = { file = \"key\" } }");
    folder.write("tenants/t/key", "old\n");
    let relay = Relay::serve(folder).await;
    long_pause(&mut partner, &relay, "401 Unauthorized").await;
    let changed = Instant::now();
    relay.folder().write("tenants/t/key", "new\n");
    let mut peer = partner.arrival().await.request().await;
    assert!(changed.elapsed() < Duration::from_secs(8), "{:?}", changed.elapsed());
    assert_eq!(peer.header("x-key"), Some("new"));
    peer.agree(&[]).await;
    relay.logged(&["a secret file has changed"]).await;
    assert!(!relay.log().contains("x-key"));
}

#[tokio::test]
async fn a_refusals_body_may_come_later() {
    let mut partner = Partner::start().await;
    let relay = relay(&partner, "").await;
    let mut peer = partner.arrival().await.request().await;
    peer.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 8\r\nConnection: close\r\n\r\n").await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    peer.write(b"no plan!").await;
    drop(peer);
    relay.logged(&["HTTP status 403", "no plan!"]).await;
}

#[tokio::test]
async fn a_redirect_that_is_not_followed_may_ask_for_time() {
    let mut partner = Partner::start().await;
    let relay = relay(&partner, "").await;
    let lines = "Location: ftp://elsewhere/?key=hunter2\r\nRetry-After: 3600\r\n";
    partner.arrival().await.answer(&answer("302 Found", lines, "")).await;
    let line = relay.logged(&["upstream not connected", "asked again in 3600 s", "ftp://elsewhere/"]).await;
    assert!(!line.contains("hunter2"), "{line}");
    let feed = relay.ready().await["tenants"]["t"]["upstreams"]["feed"].take();
    assert!(feed["until"].as_u64().unwrap() > 3_590_000, "{feed}");
}

/// Answers the next connection with a redirect.
async fn redirect(partner: &mut Partner, status: &str, location: &str) -> RawPeer {
    let mut peer = partner.arrival().await.request().await;
    peer.write(&answer(status, &format!("Location: {location}\r\n"), "")).await;
    peer
}

#[tokio::test]
async fn redirects_are_followed_with_headers_to_the_same_origin_only() {
    let (mut partner, mut other) = (Partner::start().await, Partner::start().await);
    let upstream = "headers = { x-key = \"k\" }\nquery = { token = \"q\" }\nsubprotocols = [\"v1\"]";
    let _relay = relay(&partner, upstream).await;
    let first = redirect(&mut partner, "301 Moved Permanently", "/second?b").await;
    assert_eq!((first.target(), first.header("x-key")), ("/feed?key=1&token=q", Some("k")));
    let second = redirect(&mut partner, "307 Temporary Redirect", "third").await;
    assert_eq!((second.target(), second.header("x-key")), ("/second?b", Some("k")));
    let third = redirect(&mut partner, "308 Permanent Redirect", &format!("http://{}/end", other.address)).await;
    assert_eq!((third.target(), third.header("x-key")), ("/third", Some("k")));
    let mut last = other.arrival().await.request().await;
    assert_eq!((last.target(), last.header("x-key")), ("/end", None));
    assert_eq!(last.header("sec-websocket-protocol"), Some("v1"));
    last.agree(&[]).await;
    drop(last);
    // After another origin there are no headers any more, not even at home.
    redirect(&mut partner, "302 Found", &format!("ws://{}/", other.address)).await;
    redirect(&mut other, "302 Found", &format!("ws://{}/home", partner.address)).await;
    let back = partner.arrival().await.request().await;
    assert_eq!((back.target(), back.header("x-key")), ("/home", None));
}

#[tokio::test]
async fn a_fourth_redirect_is_not_followed() {
    let mut partner = Partner::start().await;
    let relay = relay(&partner, "").await;
    for _ in 0..4 {
        redirect(&mut partner, "302 Found", "/round?key=hunter2").await;
    }
    relay.upstream_failed("redirect", 1.0).await;
    let line =
        relay.logged(&["upstream not connected", "HTTP status 302", &format!("ws://{}/round", partner.address)]).await;
    assert!(!line.contains("hunter2"), "{line}");
    partner.accept().await;
    assert_eq!(partner.connections(), 5);
}

#[tokio::test]
async fn other_statuses_are_no_redirects() {
    let mut partner = Partner::start().await;
    let relay = relay(&partner, "").await;
    redirect(&mut partner, "303 See Other", "/other").await;
    relay.upstream_failed("redirect", 1.0).await;
    relay.logged(&["upstream not connected", "HTTP status 303", &format!("ws://{}/other", partner.address)]).await;
    assert_eq!(partner.arrival().await.request().await.target(), "/feed?key=1");
}

#[tokio::test]
async fn a_redirect_never_leads_out_of_tls() {
    let (mut partner, plain) = (Partner::start().await, Partner::start().await);
    let authority = Authority::generate();
    let folder = Folder::new("").tenant("t", &partner.tls_url(), "tls = { roots = \"roots.pem\" }");
    folder.write("tenants/t/roots.pem", &authority.pem);
    let relay = Relay::serve(folder).await;
    let acceptor = authority.acceptor(partner.address.ip());
    let mut peer = partner.arrival().await.request_tls(&acceptor).await;
    peer.write(&answer("302 Found", &format!("Location: ws://{}/\r\n", plain.address), "")).await;
    relay.upstream_failed("redirect", 1.0).await;
    relay.logged(&["upstream not connected", &format!("ws://{}/", plain.address), "without TLS"]).await;
    assert_eq!(plain.connections(), 0);
}
