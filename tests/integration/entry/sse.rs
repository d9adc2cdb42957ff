//! The transport for `EventSource`: in a page, and with curl.

use std::time::Duration;

use serde_json::{Value, json};
use support::{
    browser::Browser,
    chaos::Chaos,
    guests,
    http::Http,
    partner::{Partner, Peer},
    probe::Probe,
    relay::Relay,
    script::Script,
    skip,
    tenant::Folder,
};
use tokio_tungstenite::tungstenite::Message;

use crate::docs::readme;

/// The functions that tests call in the page.
const LIBRARY: &str = include_str!("../../clients/events.js");

/// Serves a tenant that passes on what its partner sends.
async fn feed() -> (Relay, Partner, Peer) {
    let mut partner = Partner::start().await;
    let relay = Relay::serve(Folder::new("").tenant("t", &partner.url(), "")).await;
    let peer = partner.accept().await;
    (relay, partner, peer)
}

/// Opens a page that reaches the relay through a proxy, and listens there.
async fn listen(chaos: &Chaos, query: &str) -> Option<Browser> {
    let mut page = Browser::start().await?;
    // Any answer will do, as long as it has the same origin.
    page.open(&format!("http://{}/", chaos.address)).await;
    page.sees("document.readyState === 'complete'").await;
    page.value(LIBRARY).await;
    page.value(&format!("listen('/t/sse{query}')")).await;
    page.sees("source.readyState === EventSource.OPEN").await;
    Some(page)
}

/// The partner sends these numbers, one in a message, and the relay publishes them.
async fn say(relay: &Relay, peer: &mut Peer, numbers: std::ops::RangeInclusive<u32>) {
    let last = numbers.end().to_string();
    let mut witness = relay.client("/t?channel=main").await;
    peer.burst(numbers.map(|number| Message::text(number.to_string()))).await;
    while witness.text().await != last {}
}

/// Checks that the page got each of these numbers once and in order.
async fn has(page: &mut Browser, numbers: std::ops::RangeInclusive<u32>) {
    page.sees(&format!("messages().length >= {}", numbers.clone().count())).await;
    let wanted: Vec<_> = numbers.map(|number| number.to_string()).collect();
    assert_eq!(page.value("messages()").await, json!(wanted));
}

async fn epoch(relay: &Relay, channel: &str) -> String {
    let path = format!("/t/channels/{channel}?limit=1");
    let page: Value = Http::connect(relay.clients).await.get(&path).await.json();
    page["epoch"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn what_was_missed_comes_once_and_in_order() {
    let (relay, _partner, mut peer) = feed().await;
    let mut chaos = Chaos::start(relay.clients).await;
    say(&relay, &mut peer, 1..=10).await;
    let Some(mut page) = listen(&chaos, "?channel=main").await else { return };
    say(&relay, &mut peer, 11..=20).await;
    has(&mut page, 11..=20).await;
    for round in 0..3 {
        chaos.refuse().await;
        chaos.cut();
        page.sees("source.readyState === EventSource.CONNECTING").await;
        let begins = 21 + round * 200;
        say(&relay, &mut peer, begins..=begins + 199).await;
        chaos.accept().await;
        has(&mut page, 11..=begins + 199).await;
    }
    say(&relay, &mut peer, 621..=630).await;
    has(&mut page, 11..=630).await;
    let epoch = epoch(&relay, "main").await;
    let ids: Vec<_> = (11..=630).map(|offset| format!("{epoch}:{offset}")).collect();
    assert_eq!(page.value("all('message').map(({ id }) => id)").await, json!(ids));
    assert_eq!(page.value("all('gap').length").await, 0);
}

#[tokio::test]
async fn a_page_that_has_got_nothing_yet_misses_nothing() {
    let (relay, _partner, mut peer) = feed().await;
    let mut chaos = Chaos::start(relay.clients).await;
    say(&relay, &mut peer, 1..=10).await;
    let Some(mut page) = listen(&chaos, "?channel=main").await else { return };
    // The first id may come after the answer's head, and nothing in the page shows when.
    tokio::time::sleep(Duration::from_millis(500)).await;
    chaos.refuse().await;
    chaos.cut();
    page.sees("source.readyState === EventSource.CONNECTING").await;
    say(&relay, &mut peer, 11..=210).await;
    chaos.accept().await;
    has(&mut page, 11..=210).await;
    assert_eq!(page.value("all('gap').length").await, 0);
}

/// Serves a tenant whose filter takes commands, with a proxy in front of the relay.
async fn probed() -> (Relay, Partner, Probe, Chaos) {
    let mut partner = Partner::start().await;
    let relay = Relay::serve(Folder::new("").filtered("t", &partner.url(), guests::probe(), "")).await;
    let probe = Probe::new(&relay, &mut partner, "t").await;
    let chaos = Chaos::start(relay.clients).await;
    (relay, partner, probe, chaos)
}

async fn publish(probe: &mut Probe, channel: &str, numbers: std::ops::Range<u32>) {
    let count = numbers.len();
    probe.peer.burst(numbers.map(|number| Message::text(format!("publish {channel} {channel}{number}")))).await;
    for _ in 0..count {
        assert_eq!(probe.answer().await, "Ok(())");
    }
}

#[tokio::test]
async fn two_channels_share_a_stream_and_miss_nothing() {
    let (relay, _partner, mut probe, mut chaos) = probed().await;
    // In the order of the channels' names, whatever the order in the request.
    let Some(mut page) = listen(&chaos, "?channel=b&channel=a").await else { return };
    publish(&mut probe, "a", 1..11).await;
    publish(&mut probe, "b", 1..6).await;
    page.sees("messages().length === 15").await;
    let (a, b) = (epoch(&relay, "a").await, epoch(&relay, "b").await);
    assert_eq!(page.value("all('message').at(-1).id").await, format!("{a}:10,{b}:5"));
    chaos.refuse().await;
    chaos.cut();
    page.sees("source.readyState === EventSource.CONNECTING").await;
    publish(&mut probe, "a", 11..111).await;
    publish(&mut probe, "b", 6..106).await;
    chaos.accept().await;
    page.sees("messages().length >= 215").await;
    for (channel, count) in [("a", 110), ("b", 105)] {
        let wanted: Vec<_> = (1..=count).map(|number| format!("{channel}{number}")).collect();
        let got = page.value(&format!("messages().filter((text) => text.startsWith('{channel}'))")).await;
        assert_eq!(got, json!(wanted));
    }
    assert_eq!(page.value("all('message').at(-1).id").await, format!("{a}:110,{b}:105"));
    assert_eq!(page.value("all('gap').length").await, 0);
}

#[tokio::test]
async fn a_gap_is_told_while_connected() {
    let (relay, mut partner, mut peer) = feed().await;
    let chaos = Chaos::start(relay.clients).await;
    let Some(mut page) = listen(&chaos, "?channel=main").await else { return };
    say(&relay, &mut peer, 1..=10).await;
    has(&mut page, 1..=10).await;
    drop(peer);
    let mut peer = partner.accept().await;
    page.sees("all('gap').length === 1").await;
    let gap = page.value("all('gap')[0].data").await;
    assert_eq!(serde_json::from_str::<Value>(gap.as_str().unwrap()).unwrap(), json!({ "channel": "main" }));
    say(&relay, &mut peer, 11..=20).await;
    has(&mut page, 1..=20).await;
    assert_eq!(page.value("all('message').at(-1).id").await, format!("{}:20", epoch(&relay, "main").await));
    assert_eq!(page.value("[all('open').length, all('error').length]").await, json!([1, 0]));
}

#[tokio::test]
async fn a_gap_is_told_to_a_page_that_comes_back() {
    let (_relay, mut partner, mut probe, mut chaos) = probed().await;
    let Some(mut page) = listen(&chaos, "?channel=a&channel=b").await else { return };
    // The upstream publishes nothing on `b` yet, so only `a` can miss something.
    publish(&mut probe, "a", 1..11).await;
    page.sees("messages().length === 10").await;
    chaos.refuse().await;
    chaos.cut();
    page.sees("source.readyState === EventSource.CONNECTING").await;
    publish(&mut probe, "a", 11..21).await;
    drop(probe);
    let mut peer = partner.accept().await;
    chaos.accept().await;
    page.sees("all('gap').length === 1").await;
    let gap = page.value("all('gap')[0].data").await;
    assert_eq!(serde_json::from_str::<Value>(gap.as_str().unwrap()).unwrap(), json!({ "channel": "a" }));
    for command in ["publish a after", "publish b first"] {
        peer.text(command).await;
    }
    page.sees("messages().length >= 12").await;
    let mut after = page.value("messages().slice(10)").await;
    after.as_array_mut().unwrap().sort_by_key(|text| text.to_string());
    assert_eq!(after, json!(["after", "first"]));
}

#[tokio::test]
async fn payloads_arrive_as_they_were() {
    let (relay, _partner, mut peer) = feed().await;
    let chaos = Chaos::start(relay.clients).await;
    let Some(mut page) = listen(&chaos, "?channel=main").await else { return };
    let texts = [
        "",
        " led by a space",
        "two\nlines",
        "ends with one\n",
        "\n",
        ": no comment",
        "data: x",
        "\u{1F980}",
        "\u{2028}",
    ];
    peer.burst(texts.map(Message::text)).await;
    peer.send(Message::binary(vec![0, 10, 13, 255])).await;
    peer.send(Message::binary(vec![])).await;
    page.sees("all('binary').length === 2").await;
    assert_eq!(page.value("messages()").await, json!(texts));
    assert_eq!(page.value("all('binary').map(({ data }) => data)").await, json!(["AAoN/w==", ""]));
    assert_eq!(page.value("all('binary').at(-1).id").await, format!("{}:11", epoch(&relay, "main").await));
}

#[tokio::test]
async fn curl_shows_the_stream() {
    let (relay, _partner, mut peer) = feed().await;
    say(&relay, &mut peer, 1..=10).await;
    let epoch = epoch(&relay, "main").await;
    let line = readme::block("sh", "curl -N").replace("HOST:8080", &relay.clients.to_string());
    let line = line.trim().replace("market/sse?channel=prices", "t/sse?channel=main");
    let Some(mut curl) = Script::curl(&line.replacen("-N", "-N -i", 1)) else { return };
    let mut head = Vec::new();
    loop {
        let line = curl.said().await.to_lowercase();
        if line.trim().is_empty() {
            break;
        }
        head.push(line.trim().to_owned());
    }
    assert!(head[0].contains("200"), "{head:?}");
    let header = |name: &str| head.iter().find_map(|line| line.strip_prefix(&format!("{name}: "))).unwrap_or_default();
    assert_eq!(header("content-type").split(';').next(), Some("text/event-stream"), "{head:?}");
    assert!(header("cache-control").contains("no-"), "{head:?}");
    // The client's position comes before any publication.
    let mut first = [curl.said().await, curl.said().await];
    first.sort();
    assert_eq!(first, [format!("id: {epoch}:10"), "retry: 2000".to_owned()]);
    assert_eq!(curl.said().await, "");
    say(&relay, &mut peer, 11..=12).await;
    assert_eq!(block(&mut curl).await, ["data: 11".to_owned(), format!("id: {epoch}:11")]);
    assert_eq!(block(&mut curl).await, ["data: 12".to_owned(), format!("id: {epoch}:12")]);

    let resumed = line.replacen("-N", &format!("-N -H 'Last-Event-ID: {epoch}:9'"), 1);
    let mut curl = Script::curl(&resumed).unwrap();
    assert!(block(&mut curl).await.contains(&"retry: 2000".to_owned()));
    for offset in 10..=12 {
        assert_eq!(block(&mut curl).await, [format!("data: {offset}"), format!("id: {epoch}:{offset}")]);
    }
    let lost = resumed.replace(&format!("{epoch}:9"), "0000000000000000:9");
    let mut curl = Script::curl(&lost).unwrap();
    assert!(block(&mut curl).await.contains(&"retry: 2000".to_owned()));
    let gap = block(&mut curl).await;
    assert!(
        gap.contains(&"event: gap".to_owned()) && gap.contains(&r#"data: {"channel":"main"}"#.to_owned()),
        "{gap:?}"
    );
    relay.end_with(rustix::process::Signal::TERM).await;
    // The stream ends like a complete answer, and says why. The upstream has ended before.
    let rest = curl.rest().await;
    let [.., last, empty] = &rest[..] else { panic!("{rest:?}") };
    assert!(last.starts_with(": closed, 1001") && empty.is_empty(), "{rest:?}");
}

/// Returns the lines of the next event without comments, sorted.
async fn block(curl: &mut Script) -> Vec<String> {
    let mut lines = Vec::new();
    loop {
        let line = curl.said().await;
        match line.as_str() {
            "" if lines.is_empty() => {}
            "" => break,
            comment if comment.starts_with(':') => {}
            _ => lines.push(line),
        }
    }
    lines.sort();
    lines
}

#[tokio::test]
async fn refusals_are_those_of_a_handshake() {
    let Some(()) = skip::need("curl") else { return };
    let folder = Folder::new("").handled("h", guests::handler(), "");
    folder.write("tenants/t/tenant.toml", "name = \"t\"\n[channels.a]");
    let relay = Relay::serve(folder).await;
    let refused = [
        ("/t/sse?channel=b", 403, "channel"),
        ("/nobody/sse?channel=a", 404, "not_found"),
        ("/h/sse?reject=401", 401, "rejected"),
        ("/h/sse?channel=private", 451, "rejected"),
        ("/h/sse?trap", 500, "handler"),
    ];
    for (path, status, code) in refused {
        let answer = Http::connect(relay.clients).await.get(path).await;
        assert_eq!(answer.envelope(), (status, code.to_owned()), "{path}");
    }
    let line = format!("curl -i -X POST 'http://{}/t/sse?channel=a'", relay.clients);
    let answer = Script::curl(&line).unwrap().rest().await;
    assert!(answer[0].contains("405"), "{answer:?}");
}
