//! Clients that a handler lets in for a limited time.

use std::time::{Duration, Instant};

use serde_json::json;
use support::{client::Client, guests, http::Http, relay::Relay, tenant::Folder};
use tokio_tungstenite::tungstenite::{self, Message, protocol::frame::coding::CloseCode};

async fn relay() -> Relay {
    Relay::serve(Folder::new("").handled("t", guests::handler(), "")).await
}

#[tokio::test]
async fn a_plain_websocket_is_closed_when_its_time_is_over() {
    let relay = relay().await;
    let mut stays = relay.client("/t").await;
    let (begun, client) = (Instant::now(), relay.client("/t?token=for%201").await);
    assert_eq!(client.rest().await.1, Some(CloseCode::from(1008)));
    assert!(begun.elapsed() >= Duration::from_secs(1));
    relay.metric_reaches("edge_relay_clients_closed_total", &[("reason", "expired")], 1.0).await;
    stays.send(Message::text("reply still")).await;
    assert_eq!(stays.text().await, "still");
}

#[tokio::test]
async fn a_token_that_is_not_taken_lets_nobody_in() {
    let relay = relay().await;
    let (status, code) = Http::connect(relay.clients).await.get("/t/sse?token=not%20yours").await.envelope();
    assert_eq!((status, code.as_str()), (401, "rejected"));
    let refused = Client::try_connect(&relay.url("/t?token=not%20yours")).await;
    assert!(matches!(refused, Err(tungstenite::Error::Http(answer)) if answer.status() == 401));
}

#[tokio::test]
async fn a_client_of_the_centrifuge_protocol_brings_another_token() {
    let relay = relay().await;
    let mut client = Client::connect(&relay.url("/t/connection/websocket")).await;
    client.send(Message::text(r#"{"id":1,"connect":{"token":"for 1"}}"#)).await;
    let connected: serde_json::Value = serde_json::from_str(&client.text().await).unwrap();
    assert_eq!((&connected["connect"]["expires"], &connected["connect"]["ttl"]), (&json!(true), &json!(1)));
    client.send(Message::text(r#"{"id":2,"refresh":{"token":"for 100"}}"#)).await;
    let refreshed: serde_json::Value = serde_json::from_str(&client.text().await).unwrap();
    assert_eq!((&refreshed["refresh"]["expires"], &refreshed["refresh"]["ttl"]), (&json!(true), &json!(100)));
    client.send(Message::text(r#"{"id":3,"refresh":{"token":"not that one"}}"#)).await;
    assert_eq!(client.rest().await.1, Some(CloseCode::from(3500)));

    let mut client = Client::connect(&relay.url("/t/connection/websocket")).await;
    client.send(Message::text(r#"{"id":1,"connect":{"token":"not yours"}}"#)).await;
    let refused: serde_json::Value = serde_json::from_str(&client.text().await).unwrap();
    assert_eq!(refused["error"], json!({ "code": 401, "message": "yours" }));
}
