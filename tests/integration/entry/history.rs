//! The past of a channel: read over HTTP, and resumed from without gaps or repetitions.

use std::time::Duration;

use serde_json::Value;
use support::{
    client::Client,
    guests,
    http::Http,
    partner::{Partner, Peer},
    probe::Probe,
    relay::Relay,
    tenant::Folder,
    until,
};

/// Serves a tenant without code. What the partner sends is published on channel `main`.
async fn passing(more: &str) -> (Relay, Partner, Peer) {
    let mut partner = Partner::start().await;
    let relay = Relay::serve(Folder::new("").tenant("t", &partner.url(), more)).await;
    let peer = partner.accept().await;
    (relay, partner, peer)
}

async fn get(relay: &Relay, path: &str) -> Value {
    let answer = Http::connect(relay.clients).await.get(path).await;
    assert_eq!(answer.status(), 200, "{answer:?}");
    answer.json()
}

/// Reads channel `main` with this query.
async fn read(relay: &Relay, query: &str) -> Value {
    get(relay, &format!("/t/channels/main{query}")).await
}

fn texts(page: &Value) -> Vec<String> {
    let publications = page["publications"].as_array().unwrap();
    publications.iter().map(|publication| publication["data"].as_str().unwrap().to_owned()).collect()
}

/// Sends these numbers as texts, and waits until they are published.
async fn send(relay: &Relay, peer: &mut Peer, numbers: std::ops::RangeInclusive<u32>) {
    let last = numbers.end().to_string();
    for number in numbers {
        peer.text(number.to_string()).await;
    }
    until("the last publication", async || {
        let newest = texts(&read(relay, "?limit=1").await);
        if newest == [last.as_str()] { Ok(()) } else { Err(format!("{newest:?}")) }
    })
    .await;
}

/// Connects a client with this query. Returns the relay's refusal.
async fn refused(relay: &Relay, query: &str) -> String {
    match Client::try_connect(&relay.url(&format!("/t{query}"))).await {
        Err(tokio_tungstenite::tungstenite::Error::Http(response)) => {
            let body = String::from_utf8(response.body().clone().unwrap_or_default()).unwrap();
            format!("{} {body}", response.status().as_u16())
        }
        Err(error) => panic!("{error}"),
        Ok(_) => "let in".to_owned(),
    }
}

#[tokio::test]
async fn the_past_is_read_in_pages() {
    let (relay, _partner, mut peer) = passing("").await;
    send(&relay, &mut peer, 1..=5).await;
    let all = read(&relay, "").await;
    assert_eq!(texts(&all), ["1", "2", "3", "4", "5"]);
    assert_eq!(all["offset"], 5);
    assert_eq!(all["publications"][4]["offset"], 5);
    assert!(all.get("recovered").is_none());
    let epoch = all["epoch"].as_str().unwrap();
    let page = read(&relay, &format!("?since={epoch}:2&limit=2")).await;
    assert_eq!(
        (texts(&page), &page["recovered"], &page["offset"]),
        (vec!["3".into(), "4".into()], &true.into(), &5.into())
    );
    let rest = read(&relay, &format!("?since={epoch}:5")).await;
    assert_eq!((texts(&rest).len(), &rest["recovered"]), (0, &true.into()));
    for elsewhere in [format!("{epoch}:6"), "0000000000000000:2".to_owned()] {
        let page = read(&relay, &format!("?since={elsewhere}")).await;
        assert_eq!((texts(&page).len(), &page["recovered"]), (0, &false.into()), "{elsewhere}");
    }
    for (wrong, code) in
        [("?since=5", "position"), ("?since=x:y", "position"), ("?limit=0", "parameter"), ("?limit=1001", "parameter")]
    {
        let answer = Http::connect(relay.clients).await.get(&format!("/t/channels/main{wrong}")).await;
        assert_eq!(answer.envelope(), (400, code.to_owned()));
    }
    let answer = Http::connect(relay.clients).await.post("/t/channels/main", "").await;
    assert_eq!(answer.envelope(), (405, "method".to_owned()));
}

#[tokio::test]
async fn a_client_resumes_without_a_gap_and_gets_nothing_twice() {
    let (relay, _partner, mut peer) = passing("").await;
    // A client follows the channel already, so the shard has a part of its log.
    send(&relay, &mut peer, 1..=3).await;
    let mut live = relay.client("/t").await;
    send(&relay, &mut peer, 4..=6).await;
    let epoch = read(&relay, "").await["epoch"].as_str().unwrap().to_owned();
    for offset in 0..=6 {
        let mut client = relay.client(&format!("/t?since={epoch}:{offset}")).await;
        for number in offset + 1..=6 {
            assert_eq!(client.text().await, number.to_string(), "since {offset}");
        }
        client.has_no_more().await;
    }
    let mut client = relay.client(&format!("/t?channel=main&since={epoch}:1")).await;
    send(&relay, &mut peer, 7..=9).await;
    for number in 2..=9 {
        assert_eq!(client.text().await, number.to_string());
    }
    for number in 4..=9 {
        assert_eq!(live.text().await, number.to_string());
    }
    client.has_no_more().await;
    for (query, said) in [
        (format!("?since={epoch}:10"), "410"),
        ("?since=0123456789abcdef:1".to_owned(), "not_recovered"),
        ("?since=soon".to_owned(), "400"),
        (format!("?channel=a&channel=b&since={epoch}:1"), "one channel"),
    ] {
        let answer = refused(&relay, &query).await;
        assert!(answer.contains(said), "{query}: {answer}");
    }
}

#[tokio::test]
async fn a_lost_upstream_begins_a_new_epoch() {
    let (relay, mut partner, mut peer) = passing("").await;
    send(&relay, &mut peer, 1..=3).await;
    let epoch = read(&relay, "").await["epoch"].as_str().unwrap().to_owned();
    let mut live = relay.client("/t").await;
    peer.reset();
    let mut peer = partner.accept().await;
    relay.metric_is("edge_relay_epochs_total", &[("tenant", "t")], 1.0).await;
    let page = read(&relay, &format!("?since={epoch}:3")).await;
    assert_eq!(page["recovered"], false, "{page}");
    assert!(refused(&relay, &format!("?since={epoch}:3")).await.contains("410"));
    let page = read(&relay, "").await;
    assert_eq!((texts(&page).len(), &page["offset"]), (0, &3.into()), "nothing from before the loss: {page}");
    let now = page["epoch"].as_str().unwrap();
    assert_ne!(now, epoch);
    send(&relay, &mut peer, 4..=5).await;
    assert_eq!(texts(&read(&relay, &format!("?since={now}:3")).await), ["4", "5"]);
    let mut client = relay.client(&format!("/t?since={now}:4")).await;
    assert_eq!((client.text().await, live.text().await, live.text().await), ("5".into(), "4".into(), "5".into()));
}

#[tokio::test]
async fn a_batch_that_a_filter_loses_begins_a_new_epoch_where_it_publishes() {
    let mut partner = Partner::start().await;
    let folder = Folder::new("").filtered(
        "t",
        &partner.url(),
        guests::hostile(),
        "[settings]\nmode = \"trap-on\"\nmatch = \"poison\"",
    );
    let relay = Relay::serve(folder).await;
    let mut peer = partner.accept().await;
    let mut out = relay.client("/t?channel=out").await;
    peer.text("well").await;
    assert_eq!(out.text().await, "well");
    peer.text("poison").await;
    relay.metric_is("edge_relay_epochs_total", &[("tenant", "t")], 1.0).await;
}

#[tokio::test]
async fn history_reaches_back_as_far_as_the_manifest_says() {
    let channels = "[channels.main]\nhistory = { size = 3 }";
    let (relay, _partner, mut peer) = passing(channels).await;
    send(&relay, &mut peer, 1..=5).await;
    let page = read(&relay, "").await;
    assert_eq!(texts(&page), ["3", "4", "5"]);
    let epoch = page["epoch"].as_str().unwrap();
    assert_eq!(read(&relay, &format!("?since={epoch}:1")).await["recovered"], false);
    assert_eq!(texts(&read(&relay, &format!("?since={epoch}:2")).await), ["3", "4", "5"]);
    assert!(refused(&relay, &format!("?since={epoch}:1")).await.contains("410"));
    assert_eq!(relay.client(&format!("/t?since={epoch}:2")).await.text().await, "3");

    let (relay, _partner, mut peer) = passing("[channels.main]\nhistory = { age = \"1s\" }").await;
    send(&relay, &mut peer, 1..=2).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(texts(&read(&relay, "").await), [""; 0]);
    peer.text("3").await;
    let newest = async || texts(&read(&relay, "").await).first().cloned().ok_or_else(|| "none".to_owned());
    assert_eq!(until("what is new", newest).await, "3");

    let (relay, _partner, mut peer) = passing("[channels.main]\nlog = \"1MiB\"\nhistory = { bytes = \"64KiB\" }").await;
    for nth in 0..10 {
        peer.text(format!("{nth}{}", " ".repeat(20_000))).await;
    }
    until("the last", async || {
        let page = texts(&read(&relay, "").await);
        if page.len() == 3 && page[2].starts_with('9') { Ok(()) } else { Err(format!("{} texts", page.len())) }
    })
    .await;
}

#[tokio::test]
async fn binary_payloads_and_odd_names_are_readable() {
    let mut partner = Partner::start().await;
    let relay = Relay::serve(Folder::new("").filtered("t", &partner.url(), guests::probe(), "")).await;
    let mut probe = Probe::new(&relay, &mut partner, "t").await;
    assert_eq!(probe.ask("publish a/b%c x").await, "Ok(())");
    let page = get(&relay, "/t/channels/a%2Fb%25c").await;
    assert_eq!(texts(&page), ["x"]);
    let answer = Http::connect(relay.clients).await.get("/t/channels/a/b").await;
    assert_eq!(answer.envelope(), (404, "not_found".to_owned()));
    let answer = Http::connect(relay.clients).await.get("/t/channels/%00").await;
    assert_eq!(answer.envelope(), (400, "channel".to_owned()));
    let (relay, _partner, mut peer) = passing("").await;
    peer.send(tokio_tungstenite::tungstenite::Message::binary(vec![0, 159, 146, 150])).await;
    let found = until("the publication", async || {
        let page = read(&relay, "").await;
        page["publications"].get(0).cloned().ok_or_else(|| page.to_string())
    });
    assert_eq!(found.await["base64"], "AJ+Slg==");
}

#[tokio::test]
async fn a_client_that_may_not_subscribe_may_not_read() {
    let listed = "[channels.main]";
    let (relay, _partner, _peer) = passing(listed).await;
    let answer = Http::connect(relay.clients).await.get("/t/channels/other").await;
    assert_eq!(answer.envelope(), (403, "channel".to_owned()));
    let relay = Relay::serve(Folder::new("").handled("h", guests::handler(), "")).await;
    let ask = async |path: &str| {
        let answer = Http::connect(relay.clients).await.get(path).await;
        (answer.status(), answer.body)
    };
    assert_eq!(ask("/h/channels/open").await.0, 404, "allowed, and nothing there");
    let refusal = r#"{"error":{"code":"rejected","message":"private is private"}}"#;
    assert_eq!(ask("/h/channels/private").await, (451, refusal.to_owned()));
    // The handler chooses these channels, and the client may read no others.
    assert_eq!(ask("/h/channels/a?channels=a,b").await.0, 404);
    assert_eq!(ask("/h/channels/c?channels=a,b").await.0, 403);
    assert_eq!(ask("/h/channels/open?reject=401").await.0, 401);
}
