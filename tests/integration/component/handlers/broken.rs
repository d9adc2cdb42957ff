//! Handlers that trap and loop: what that costs, and which clients.

use support::{client::Client, guests, raw::request, relay::Relay, tenant::Folder};
use tokio_tungstenite::tungstenite::Message;

use super::{CLIENT, ERROR_100, ask, failures, keep_busy, queue_is, relay};
use crate::entry::handshakes::refusal;

const LOST: &str = "edge_relay_guest_lost_total";

/// Returns the status and the code with which a handshake at this path is refused.
async fn refused(relay: &Relay, path: &str) -> (u16, String) {
    let (status, _, code, _) = refusal(relay, &request(relay.clients, path)).await;
    (status, code)
}

#[tokio::test]
async fn a_trap_costs_its_message() {
    let relay = relay("").await;
    let mut client = relay.client("/t").await;
    let mut other = relay.client("/t").await;
    for round in 1..=20 {
        for command in ["reply before", "trap", "reply after"] {
            client.send(Message::text(command)).await;
        }
        assert_eq!(ask(&mut other, "reply undisturbed").await, "undisturbed");
        assert_eq!(client.text().await, "before");
        assert_eq!(client.text().await, ERROR_100);
        assert_eq!(client.text().await, "after");
        assert_eq!(failures(&relay, "guest_broke", "trap").await, f64::from(round));
        assert_eq!(relay.metric(LOST, &CLIENT).await, f64::from(round));
    }
    client.has_no_more().await;
    other.has_no_more().await;
    relay.logged(&["WARN", "tenant.name=t", "guest.role=client", "unreachable"]).await;
    assert_eq!(relay.metric("edge_relay_clients_closed_total", &[]).await, 0.0);
}

#[tokio::test]
async fn what_was_asked_for_before_a_trap_is_not_done() {
    let relay = relay("").await;
    let mut client = relay.client("/t").await;
    assert_eq!(ask(&mut client, "reply one\npublish main two\ntrap\nreply three").await, ERROR_100);
    client.has_no_more().await;
}

#[tokio::test]
async fn a_loop_costs_its_message_and_no_other_clients_time() {
    let relay = relay("client-call = \"3s\"").await;
    let mut client = relay.client("/t").await;
    let mut other = relay.client("/t").await;
    keep_busy(&relay, &mut client, "loop").await;
    client.send(Message::text("reply after")).await;
    assert_eq!(ask(&mut other, "reply undisturbed").await, "undisturbed");
    relay.client("/t").await;
    assert_eq!(failures(&relay, "guest_broke", "deadline").await, 0.0);
    assert_eq!(client.text().await, ERROR_100);
    assert_eq!(client.text().await, "after");
    assert_eq!(failures(&relay, "guest_broke", "deadline").await, 1.0);
    assert_eq!(relay.metric(LOST, &CLIENT).await, 1.0);
    client.has_no_more().await;
}

#[tokio::test]
async fn a_hoard_ends_at_the_memory_limit() {
    /// Several times the limit, to leave room for everything else.
    const MOST_MEMORY: usize = 150 << 20;
    let relay = relay("memory = \"16MiB\"").await;
    let mut client = relay.client("/t").await;
    for _ in 0..10 {
        assert_eq!(ask(&mut client, "hoard").await, ERROR_100);
    }
    assert_eq!(ask(&mut client, "reply after").await, "after");
    assert_eq!(failures(&relay, "guest_broke", "trap").await, 10.0);
    let memory = relay.peak_memory();
    assert!(memory < MOST_MEMORY, "{memory} bytes");
}

#[tokio::test]
async fn a_handler_that_breaks_when_a_client_connects_answers_500_or_504() {
    let relay = relay("client-call = \"300ms\"").await;
    let cases = [
        ("/t?trap", 500, "trap", 1.0),
        ("/t?loop", 504, "deadline", 1.0),
        ("/t?channel=a&channel=trap", 500, "trap", 2.0),
        ("/t?channel=loop", 504, "deadline", 2.0),
    ];
    for (path, status, reason, times) in cases {
        assert_eq!(refused(&relay, path).await, (status, "handler".to_owned()), "{path}");
        assert_eq!(failures(&relay, "guest_broke", reason).await, times, "{path}");
    }
    let counted = [("reason", "handler")];
    assert_eq!(relay.metric("edge_relay_handshakes_refused_total", &counted).await, 4.0);
    assert_eq!(relay.metric("edge_relay_clients_accepted_total", &[]).await, 0.0);
    assert_eq!(ask(&mut relay.client("/t").await, "reply fine").await, "fine");
}

#[tokio::test]
async fn a_handler_that_loops_when_a_client_connects_keeps_nobody_out() {
    let folder = Folder::new("").handled("t", guests::handler(), "[limits]\nclient-call = \"3s\"");
    let relay = Relay::serve(folder.handled("u", guests::handler(), "")).await;
    let mut knocks = relay.client("/t?channels=knocks").await;
    let looping = refused(&relay, "/t?loop");
    let meanwhile = async {
        assert!(knocks.text().await.ends_with(" loop"));
        assert_eq!(ask(&mut relay.client("/t").await, "reply in").await, "in");
        assert_eq!(ask(&mut relay.client("/u").await, "reply in").await, "in");
        assert_eq!(failures(&relay, "guest_broke", "deadline").await, 0.0);
    };
    let (refused, ()) = tokio::join!(looping, meanwhile);
    assert_eq!(refused.0, 504);
}

#[tokio::test]
async fn a_trap_when_a_client_leaves_is_counted() {
    let relay = relay("").await;
    let mut gone = relay.client("/t?channels=gone").await;
    let fatal = relay.client("/t?identity=fatal").await;
    drop(fatal);
    let left = gone.text().await;
    assert!(left.ends_with(" client"), "{left}");
    let trap = [("role", "client"), ("reason", "trap")];
    relay.metric_reaches("edge_relay_guest_failures_total", &trap, 1.0).await;
    // No message was lost, and no other client noticed.
    assert_eq!(relay.metric(LOST, &CLIENT).await, 0.0);
    assert_eq!(ask(&mut gone, "reply fine").await, "fine");
    gone.has_no_more().await;
}

#[tokio::test]
async fn many_clients_that_break_it_at_once_leave_it_whole() {
    const CLIENTS: usize = 20;
    const MESSAGES: usize = 30;
    let relay = relay("client-call = \"50ms\"\nclient-instances = 4").await;
    let mut clients: Vec<Client> = Vec::new();
    for _ in 0..CLIENTS {
        clients.push(relay.client("/t").await);
    }
    for (nth, client) in clients.iter_mut().enumerate() {
        for message in 0..MESSAGES {
            let command = if (nth + message) % 10 == 0 { "loop" } else { "trap" };
            client.send(Message::text(command)).await;
        }
    }
    for client in &mut clients {
        for _ in 0..MESSAGES {
            assert_eq!(client.text().await, ERROR_100);
        }
    }
    let broken = (CLIENTS * MESSAGES) as f64;
    assert_eq!(relay.metric(LOST, &CLIENT).await, broken);
    let (traps, loops) =
        (failures(&relay, "guest_broke", "trap").await, failures(&relay, "guest_broke", "deadline").await);
    assert_eq!(traps + loops, broken);
    assert_eq!(loops, broken / 10.0);
    queue_is(&relay, 0).await;
    for client in &mut clients {
        assert_eq!(ask(client, "reply fine").await, "fine");
    }
    assert!(relay.metric("edge_relay_guest_instances", &CLIENT).await <= 4.0);
}
