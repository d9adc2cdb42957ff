//! How much each client may send.

use std::time::{Duration, Instant};

use serde_json::Value;
use support::{client::Client, guests, relay::Relay, tenant::Folder, until};
use tokio_tungstenite::tungstenite::{Message, protocol::frame::coding::CloseCode};

use crate::tenants::limits::{Manifest, ask, handled, refusals};

const DROPPED: &str = "edge_relay_client_messages_dropped_total";
const MESSAGES: &str = r#"{"error":{"code":111,"dropped":1,"message":"too many messages a second"}}"#;
const BYTES: &str = r#"{"error":{"code":111,"dropped":1,"message":"too many bytes a second"}}"#;

/// The most that a rate may have let through since then.
fn most(rate: usize, since: Instant) -> usize {
    rate + rate * (since.elapsed() + Duration::from_secs(1)).as_secs() as usize
}

#[tokio::test]
async fn a_clients_messages_per_second_are_limited() {
    const SENT: usize = 100;
    let folder = Folder::new("").handled("t", guests::handler(), "[limits]\nclient-messages-per-second = 5");
    let mut manifest = Manifest::of(&folder, "t");
    let relay = Relay::serve(folder).await;
    let began = Instant::now();
    let (mut client, mut other) = (relay.client("/t").await, relay.client("/t").await);
    for _ in 0..SENT {
        client.send(Message::text("reply served")).await;
    }
    let (mut served, mut lost, mut errors) = (0, 0, Vec::new());
    while served + lost < SENT {
        match client.text().await {
            answer if answer == "served" => served += 1,
            answer => {
                let error: Value = serde_json::from_str(&answer).unwrap();
                lost += error["error"]["dropped"].as_u64().unwrap() as usize;
                errors.push(answer);
            }
        }
    }
    // The first is told at once, the others once a second.
    assert_eq!(errors[0], MESSAGES);
    assert!(errors.len() <= 2 + began.elapsed().as_secs() as usize, "{errors:?}");
    client.has_no_more().await;
    assert!((5..=most(5, began)).contains(&served), "{served}");
    let dropped = (SENT - served) as f64;
    assert_eq!(relay.metric(DROPPED, &[("tenant", "t"), ("reason", "messages")]).await, dropped);
    assert_eq!(refusals(&relay, "client-messages-per-second").await, dropped);
    // Each client has a limit of its own, and its tokens come back with time.
    assert_eq!(ask(&mut other, "reply undisturbed").await, "undisturbed");
    until("an answer", async || {
        let answer = ask(&mut client, "reply served").await;
        if answer == "served" { Ok(()) } else { Err(answer) }
    })
    .await;
    // A changed limit holds for connected clients too.
    manifest.change(&relay, "second = 5", "second = 1000", "applied", 1.0).await;
    for _ in 0..SENT {
        assert_eq!(ask(&mut client, "reply served").await, "served");
    }
}

#[tokio::test]
async fn each_command_of_the_centrifuge_protocol_counts_and_has_its_error() {
    const RATE: usize = 60;
    const SENT: usize = 100;
    let relay = handled(&format!("client-messages-per-second = {RATE}")).await;
    let began = Instant::now();
    let mut client = Client::connect(&relay.url("/t/connection/websocket")).await;
    let command = |id: usize| format!("{{\"id\":{id},\"rpc\":{{\"method\":\"result\",\"data\":\"served\"}}}}\n");
    let commands: String = (2..2 + SENT).map(command).collect();
    client.send(Message::text(format!("{{\"id\":1,\"connect\":{{}}}}\n{}", commands.trim_end()))).await;
    let mut replies: Vec<Value> = Vec::new();
    while replies.len() <= SENT {
        replies.extend(client.text().await.split('\n').map(|reply| serde_json::from_str(reply).unwrap()));
    }
    let served = replies.iter().filter(|reply| reply.get("rpc").is_some()).count();
    let errors: Vec<_> = replies.iter().filter(|reply| reply.get("error").is_some()).collect();
    // The command `connect` was one of them.
    assert!((RATE - 1..=most(RATE, began)).contains(&served), "{served}");
    assert_eq!(errors.len(), SENT - served);
    assert!(errors.iter().all(|reply| reply["error"]["code"] == 111 && reply["id"].as_u64() > Some(1)), "{errors:?}");
    assert_eq!(relay.metric(DROPPED, &[("reason", "messages")]).await, errors.len() as f64);
    assert_eq!(refusals(&relay, "client-messages-per-second").await, errors.len() as f64);
    assert_eq!(relay.metric("edge_relay_clients", &[]).await, 1.0, "the client stays");
    // More than as many again are answered to nobody.
    client.send(Message::text((0..2 * SENT).map(command).collect::<String>().trim_end())).await;
    let (_, code) = client.rest().await;
    assert_eq!(code, Some(CloseCode::from(3013)));
    relay.clients_closed("too_many", 1.0).await;
}

#[tokio::test]
async fn a_clients_bytes_per_second_are_limited() {
    let relay = handled("client-bytes-per-second = \"1KiB\"").await;
    let mut client = relay.client("/t").await;
    let mut other = relay.client("/t").await;
    let large = |said: &str| format!("reply {said}\n{}", "x".repeat(60_000));
    // One message larger than a second's share may pass. The next ones wait for a minute.
    assert_eq!(ask(&mut client, &large("served")).await, "served");
    assert!(client.text().await.starts_with("not a command"));
    for times in [1.0, 2.0] {
        assert_eq!(ask(&mut client, "reply late").await, BYTES);
        assert_eq!(relay.metric(DROPPED, &[("tenant", "t"), ("reason", "bytes")]).await, times);
        assert_eq!(refusals(&relay, "client-bytes-per-second").await, times);
    }
    assert_eq!(ask(&mut other, "reply undisturbed").await, "undisturbed");
    // A frame over the limit is not read, so there is no id to answer to.
    let mut sdk = Client::connect(&relay.url("/t/connection/websocket")).await;
    sdk.send(Message::text("{\"id\":1,\"connect\":{}}")).await;
    assert!(sdk.text().await.contains("\"connect\""));
    for _ in 0..2 {
        sdk.send(Message::text(format!("{{\"send\":{{\"data\":\"{}\"}}}}", "x".repeat(2000)))).await;
    }
    let (_, code) = sdk.rest().await;
    assert_eq!(code, Some(CloseCode::from(3013)));
    relay.clients_closed("too_many", 1.0).await;
    assert_eq!(refusals(&relay, "client-bytes-per-second").await, 3.0);
}

#[tokio::test]
async fn what_waits_and_what_is_too_large_is_counted_by_its_limit() {
    let relay = handled("client-queue = 1\nclient-message = \"1KiB\"\nclient-backlog = \"64KiB\"").await;
    let (mut client, mut other) = (relay.client("/t").await, relay.client("/t").await);
    client.send(Message::text("hold key")).await;
    client.settle().await;
    relay.metric_is("edge_relay_guest_queue", &[("role", "client")], 0.0).await;
    client.send(Message::text("reply waits")).await;
    assert!(ask(&mut client, "reply over").await.contains("too many messages wait"));
    assert_eq!(refusals(&relay, "client-queue").await, 1.0);
    assert_eq!(ask(&mut other, "set key x\nreply released").await, "released");
    other.send(Message::text("flood 1 70000")).await;
    other.rest().await;
    assert_eq!(refusals(&relay, "client-backlog").await, 1.0);
    client.send(Message::binary(vec![1; 1025])).await;
    assert_eq!(client.rest().await.1, Some(CloseCode::Size));
    assert_eq!(refusals(&relay, "client-message").await, 1.0);
}
