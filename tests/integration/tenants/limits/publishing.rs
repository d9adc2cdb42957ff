//! How much components may publish, on how many channels, and how much they may write to the log.

use std::time::Duration;

use serde_json::Value;
use support::{
    client::Client, guests, partner::Partner, probe::Probe, raw::request, relay::Relay, tenant::Folder, until,
};
use tokio_tungstenite::tungstenite::Message;

use crate::{
    entry::handshakes::refusal,
    tenants::limits::{Manifest, ask, handled, refusals, refusals_reach},
};

#[tokio::test]
async fn channels_are_limited_and_clients_make_at_most_half_of_them() {
    let mut partner = Partner::start().await;
    let limits = "[limits]\nchannels = 4";
    let folder = Folder::new("").filtered("t", &partner.url(), guests::probe(), limits);
    let mut manifest = Manifest::of(&folder, "t");
    let relay = Relay::serve(folder).await;
    let mut probe = Probe::new(&relay, &mut partner, "t").await;
    let mut others = vec![relay.client("/t?channel=mine").await];
    // The client is told over every transport.
    for request in
        [request(relay.clients, "/t?channel=more"), "GET /t/sse?channel=more HTTP/1.1\r\nHost: a\r\n\r\n".into()]
    {
        let (status, _, code, message) = refusal(&relay, &request).await;
        assert_eq!((status, code.as_str()), (503, "channel"));
        assert!(message.contains("as many channels as it may, 4,"), "{message}");
    }
    let mut sdk = Client::connect(&relay.url("/t/connection/websocket")).await;
    sdk.send(Message::text("{\"id\":1,\"connect\":{}}\n{\"id\":2,\"subscribe\":{\"channel\":\"more\"}}")).await;
    let mut reply = async || serde_json::from_str::<Value>(&sdk.text().await).unwrap();
    assert_eq!(reply().await["id"], 1);
    assert_eq!(reply().await["error"]["code"], 106);
    assert_eq!(refusals(&relay, "channels").await, 3.0);
    // The component may make the other half of the channels, and is told too.
    for name in ["a", "b"] {
        assert_eq!(probe.ask(&format!("publish {name} x")).await, "Ok(())");
        others.push(relay.client(&format!("/t?channel={name}")).await);
    }
    let answer = probe.ask("publish c x").await;
    assert!(answer.starts_with("Err") && answer.contains("as many channels as it may, 4,"), "{answer}");
    assert_eq!(refusals(&relay, "channels").await, 4.0);
    assert_eq!(relay.metric("edge_relay_publications_refused_total", &[("reason", "channels")]).await, 1.0);
    manifest.change(&relay, "channels = 4", "channels = 10", "applied", 1.0).await;
    assert_eq!(probe.ask("publish c x").await, "Ok(())");
}

#[tokio::test]
async fn a_publication_is_so_large_whether_it_is_published_or_returned() {
    let relay = handled("publication = \"1KiB\"").await;
    let mut client = relay.client("/t?channel=news").await;
    client.send(Message::text("publish-large news 1024")).await;
    assert!(matches!(client.message().await, Message::Binary(data) if data.len() == 1024));
    client.send(Message::text("publish-large news 1028\npublish news after")).await;
    assert_eq!(client.text().await, "after", "it alone is refused");
    relay.logged(&["WARN", "tenant.name=t", "publications refused", "at most 1024 bytes"]).await;
    assert_eq!(refusals(&relay, "publication").await, 1.0);
    assert_eq!(relay.metric("edge_relay_publications_refused_total", &[("reason", "size")]).await, 1.0);

    let mut partner = Partner::start().await;
    let limits = "[limits]\npublication = \"1KiB\"";
    let relay = Relay::serve(Folder::new("").filtered("t", &partner.url(), guests::probe(), limits)).await;
    let mut probe = Probe::new(&relay, &mut partner, "t").await;
    assert_eq!(probe.ask(&format!("publish news {}", "x".repeat(1024))).await, "Ok(())");
    let answer = probe.ask(&format!("publish news {}", "x".repeat(1025))).await;
    assert!(answer.contains("1 refused, the first because a publication has at most 1024 bytes"), "{answer}");
    assert_eq!(refusals(&relay, "publication").await, 1.0);
}

#[tokio::test]
async fn what_an_upstream_without_a_filter_brings_is_no_components_publication() {
    let mut partner = Partner::start().await;
    let limits = "[limits]\npublication = 1\npublications-per-second = 1";
    let relay = Relay::serve(Folder::new("").tenant("t", &partner.url(), limits)).await;
    let mut client = relay.client("/t").await;
    let mut peer = partner.accept().await;
    for nth in 10..20 {
        peer.text(nth.to_string()).await;
        assert_eq!(client.text().await, nth.to_string());
    }
}

#[tokio::test]
async fn all_components_publish_so_often_together() {
    const RATE: usize = 10;
    const MANY: usize = 1000;
    let folder = Folder::new("").handled("t", guests::handler(), "[limits]\npublications-per-second = 10");
    let folder = folder.handled("u", guests::handler(), "");
    let mut manifest = Manifest::of(&folder, "t");
    let relay = Relay::serve(folder).await;
    let began = std::time::Instant::now();
    let mut client = relay.client("/t").await;
    // The guest is told how many were refused. Few tokens have come back in the meantime.
    let answer = ask(&mut client, &format!("publish-now news {MANY}")).await;
    let refused: usize = answer.strip_prefix("Err(\"").unwrap_or_default().split(' ').next().unwrap().parse().unwrap();
    assert!(answer.contains("the tenant publishes as often as it may, 10 times a second"), "{answer}");
    let most = RATE + RATE * (began.elapsed() + Duration::from_secs(1)).as_secs() as usize;
    assert!((MANY - most..MANY).contains(&refused), "{refused}");
    let before = refusals(&relay, "publications-per-second").await;
    assert!(before >= refused as f64);
    // A call that has returned cannot be told, so the log says it.
    client.send(Message::text(format!("publish-many news {MANY}\nreply done"))).await;
    assert_eq!(client.text().await, "done");
    relay.logged(&["WARN", "tenant.name=t", "publications refused", "as often as it may"]).await;
    assert!(refusals(&relay, "publications-per-second").await >= before + (MANY - most) as f64);
    let counted = relay.metric("edge_relay_publications_refused_total", &[("tenant", "t"), ("reason", "rate")]).await;
    assert_eq!(counted, refusals(&relay, "publications-per-second").await);
    // Another tenant has a limit of its own, and the tokens come back with time.
    let mut other = relay.client("/u").await;
    assert_eq!(ask(&mut other, &format!("publish-now news {MANY}")).await, "Ok(())");
    until("a publication", async || {
        let answer = ask(&mut client, "publish-now news 1").await;
        if answer == "Ok(())" { Ok(()) } else { Err(answer) }
    })
    .await;
    manifest.change(&relay, "second = 10", "second = 1000000", "applied", 1.0).await;
    assert_eq!(ask(&mut client, &format!("publish-now news {MANY}")).await, "Ok(())");
}

#[tokio::test]
async fn log_lines_are_limited_and_those_left_out_are_counted() {
    const LINES: usize = 2000;
    let relay = handled("log-lines-per-second = 20").await;
    let mut client = relay.client("/t").await;
    assert_eq!(ask(&mut client, &format!("log-many {LINES}\nreply done")).await, "done");
    let told = relay.logged(&["WARN", "tenant.name=t", "lines left out", "most=20"]).await;
    let left_out: usize = told.split("lines=").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
    let written =
        relay.log().lines().filter(|line| line.contains("guest.name=client") && line.contains("line ")).count();
    assert!((20..LINES / 2).contains(&written), "{written}");
    assert_eq!(refusals(&relay, "log-lines-per-second").await, (LINES - written) as f64);
    assert_eq!(left_out + written, LINES, "{told}");
    // The host's lines about a guest's faults count as the tenant's too.
    for _ in 0..50 {
        client.send(Message::text("trap")).await;
    }
    for _ in 0..50 {
        assert!(client.text().await.contains("could not be handled"));
    }
    let broke = relay.log().lines().filter(|line| line.contains("component call failed")).count();
    assert!(broke < 50, "{broke}");
    assert_eq!(relay.metric("edge_relay_guest_failures_total", &[("reason", "trap")]).await, 50.0);
    until("room for a line", async || {
        assert_eq!(ask(&mut client, "log at last\nreply logged").await, "logged");
        let log = relay.log();
        if log.lines().any(|line| line.contains("at last")) { Ok(()) } else { Err(log) }
    })
    .await;
}

#[tokio::test]
async fn standard_error_is_the_log_too() {
    const LINES: usize = 500;
    let mut partner = Partner::start().await;
    let more = "[settings]\nmode = \"stderr\"\n[limits]\nlog-lines-per-second = 10";
    let relay = Relay::serve(Folder::new("").filtered("t", &partner.url(), guests::hostile(), more)).await;
    let mut client = relay.client("/t?channel=out").await;
    let mut peer = partner.accept().await;
    for nth in 0..LINES {
        peer.text(nth.to_string()).await;
    }
    while client.text().await != (LINES - 1).to_string() {}
    // Each message is logged twice: to standard error and through wasi:logging.
    refusals_reach(&relay, "log-lines-per-second", LINES as f64).await;
    relay.logged(&["WARN", "tenant.name=t", "lines left out"]).await;
}
