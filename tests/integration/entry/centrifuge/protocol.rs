//! Commands that no SDK sends, and other clients may.

use serde_json::{Value, json};
use support::{client::Client, guests, partner::Partner, relay::Relay, tenant::Folder};
use tokio_tungstenite::tungstenite::{Message, protocol::frame::coding::CloseCode};

use super::{handled, url};

async fn connected(relay: &Relay) -> Client {
    let mut client = Client::connect(&url(relay, "?identity=ada")).await;
    client.send(Message::text(r#"{"id":1,"connect":{}}"#)).await;
    let [reply] = &replies(&client.text().await)[..] else { panic!("more than one reply") };
    assert_eq!((reply["id"].as_u64(), reply["connect"]["pong"].as_bool()), (Some(1), Some(true)), "{reply}");
    client
}

/// Returns the replies in a frame.
fn replies(frame: &str) -> Vec<Value> {
    frame.split('\n').map(|reply| serde_json::from_str(reply).unwrap()).collect()
}

/// Sends a frame. Returns its answers, which come in one or more frames.
async fn answers(client: &mut Client, frame: &str, count: usize) -> Vec<Value> {
    client.send(Message::text(frame)).await;
    let mut answers = Vec::new();
    while answers.len() < count {
        answers.extend(replies(&client.text().await));
    }
    assert_eq!(answers.len(), count, "{answers:?}");
    answers
}

#[tokio::test]
async fn a_frame_that_is_not_the_protocols_ends_the_connection() {
    let relay = handled("").await;
    for wrong in ["nonsense", "", "[1]", r#"{"id":"one"}"#, "{\"id\":2,\"ping\":{}}\nnonsense"] {
        let mut client = connected(&relay).await;
        client.send(Message::text(wrong)).await;
        let (_, code) = client.rest().await;
        assert_eq!(code, Some(CloseCode::from(3501)), "{wrong}");
    }
    let mut client = connected(&relay).await;
    client.send(Message::binary(r#"{"id":2,"ping":{}}"#)).await;
    let (messages, code) = client.rest().await;
    assert!(code.is_some() && messages.is_empty(), "{code:?} {messages:?}");
}

#[tokio::test]
async fn commands_before_the_connection_are_refused() {
    let relay = handled("").await;
    for early in [r#"{"id":1,"rpc":{"method":"result"}}"#, r#"{"send":{"data":1}}"#] {
        let mut client = Client::connect(&url(&relay, "")).await;
        client.send(Message::text(early)).await;
        assert_eq!(client.rest().await.1, Some(CloseCode::from(3501)), "{early}");
    }
}

#[tokio::test]
async fn what_is_asked_twice_or_of_nothing_is_told() {
    let relay = handled("").await;
    let mut client = connected(&relay).await;
    let subscribe = |id: u32| json!({ "id": id, "subscribe": { "channel": "a" } });
    let frame = format!("{}\n{}\n{}", subscribe(2), subscribe(3), json!({ "id": 4, "ping": {} }));
    let mut told = answers(&mut client, &frame, 3).await;
    told.sort_by_key(|answer| answer["id"].as_u64());
    assert_eq!(told[0]["subscribe"]["recoverable"], true, "{told:?}");
    assert_eq!(told[1]["error"]["code"], 105, "{told:?}");
    assert_eq!(told[2], json!({ "id": 4, "ping": {} }));
    let unknown = answers(&mut client, r#"{"id":5,"juggle":{}}"#, 1).await;
    assert_eq!(unknown[0]["error"]["code"], 104, "{unknown:?}");
    let unfollowed = answers(&mut client, r#"{"id":6,"unsubscribe":{"channel":"never"}}"#, 1).await;
    assert_eq!(unfollowed, [json!({ "id": 6, "unsubscribe": {} })]);
}

#[tokio::test]
async fn a_client_that_answers_no_ping_is_dropped() {
    let relay = handled("ping-interval = \"1s\"").await;
    let client = connected(&relay).await;
    let (messages, code) = client.rest().await;
    assert_eq!(messages.first(), Some(&Message::text("{}")));
    assert_eq!(code, Some(CloseCode::from(3012)));
}

#[tokio::test]
async fn a_client_that_never_asks_to_be_let_in_is_dropped() {
    let relay = handled("ping-interval = \"1s\"\nhandshake-timeout = \"1s\"").await;
    let client = Client::connect(&url(&relay, "")).await;
    assert_eq!(client.rest().await.1, Some(CloseCode::from(3502)));
}

#[tokio::test]
async fn a_client_whose_handler_takes_its_time_is_let_in() {
    let folder = Folder::new("handshake-timeout = \"1s\"");
    let relay = Relay::serve(folder.handled("t", guests::handler(), "[limits]\nclient-call = \"20s\"")).await;
    let mut client = Client::connect(&url(&relay, "?busy=2500")).await;
    let told = answers(&mut client, r#"{"id":1,"connect":{}}"#, 1).await;
    assert!(told[0]["connect"]["client"].is_string(), "{told:?}");
}

#[tokio::test]
async fn a_flood_of_history_delays_no_other_client() {
    let mut partner = Partner::start().await;
    let relay = Relay::serve(Folder::new("").tenant("t", &partner.url(), "")).await;
    let mut peer = partner.accept().await;
    let mut witness = relay.client("/t").await;
    let text = "x".repeat(1 << 10);
    peer.burst((0..2000).map(|_| Message::text(text.clone()))).await;
    for _ in 0..2000 {
        witness.text().await;
    }
    let mut flood = connected(&relay).await;
    let commands = vec![r#"{"id":2,"history":{"channel":"main","limit":1000}}"#; 100].join("\n");
    for _ in 0..10 {
        flood.try_send(Message::text(commands.as_str())).await;
    }
    // The thread that serves history also does the handshakes.
    for _ in 0..20 {
        drop(relay.client("/t").await);
    }
    drop(flood);
    relay.metric_is("edge_relay_clients", &[], 1.0).await;
}

#[tokio::test]
async fn too_many_commands_in_a_frame_end_the_connection() {
    let relay = handled("").await;
    let mut client = connected(&relay).await;
    client.send(Message::text("{}\n".repeat(2000))).await;
    assert_eq!(client.rest().await.1, Some(CloseCode::from(3501)));
}
