//! Every limit of a client handler at work, and its metrics.

use support::{
    client::Client,
    guests,
    raw::{BINARY, FIN, PING, Raw, TEXT, frame},
    relay::Relay,
    tenant::Folder,
    until, within,
};
use tokio::time::{Duration, Instant};
use tokio_tungstenite::tungstenite::{Message, protocol::frame::coding::CloseCode};

use super::{CLIENT, ERROR_100, ERROR_111, HOLD, RELEASE, ask, failures, keep_busy, queue_is, relay};

const DROPPED: &str = "edge_relay_client_messages_dropped_total";
const QUEUE: [(&str, &str); 2] = [("tenant", "t"), ("reason", "queue")];

/// The number of dropped messages that an error tells of.
fn dropped(error: &str) -> usize {
    let error: serde_json::Value = serde_json::from_str(error).unwrap();
    assert_eq!((&error["error"]["code"], &error["error"]["message"]), (&111.into(), &"too many messages wait".into()));
    error["error"]["dropped"].as_u64().unwrap().try_into().unwrap()
}

#[tokio::test]
async fn over_the_queue_a_client_is_told_and_the_message_dropped() {
    let relay = relay("client-queue = 4\nclient-call = \"60s\"").await;
    let mut client = relay.client("/t").await;
    let mut other = relay.client("/t").await;
    keep_busy(&relay, &mut client, HOLD).await;
    for nth in 0..10 {
        client.send(Message::text(format!("reply {nth}"))).await;
    }
    // It is told of the first at once, and of the others later.
    assert_eq!(client.text().await, ERROR_111);
    let mut lost = 1;
    while lost < 6 {
        lost += dropped(&client.text().await);
    }
    assert_eq!(lost, 6);
    assert_eq!(relay.metric("edge_relay_guest_queue", &CLIENT).await, 4.0);
    // Each client has a queue of its own.
    assert_eq!(ask(&mut other, RELEASE).await, "released");
    for nth in 0..4 {
        assert_eq!(client.text().await, nth.to_string());
    }
    client.has_no_more().await;
    assert_eq!(relay.metric(DROPPED, &QUEUE).await, 6.0);
    assert_eq!(relay.metric(DROPPED, &[]).await, 6.0);
    queue_is(&relay, 0).await;
    assert_eq!(ask(&mut client, "reply again").await, "again");
}

#[tokio::test]
async fn one_client_keeps_a_mebibyte_waiting_beside_the_first() {
    let relay = relay("client-message = \"1MiB\"\nclient-call = \"60s\"").await;
    let mut client = relay.client("/t").await;
    let mut other = relay.client("/t").await;
    keep_busy(&relay, &mut client, HOLD).await;
    let command = |nth: usize| Message::text(format!("reply {nth}\n{}", "x".repeat(400 << 10)));
    for nth in 0..4 {
        client.send(command(nth)).await;
    }
    // Two of the four fit.
    assert_eq!(client.text().await, ERROR_111);
    assert_eq!(dropped(&client.text().await), 1);
    assert_eq!(ask(&mut other, RELEASE).await, "released");
    for nth in 0..2 {
        assert_eq!(client.text().await, nth.to_string());
        assert!(client.text().await.starts_with("not a command: xxx"));
    }
    assert_eq!(relay.metric(DROPPED, &QUEUE).await, 2.0);
}

#[tokio::test]
async fn all_clients_of_a_tenant_share_the_backlog_and_other_tenants_have_their_own() {
    let limits = "[limits]\nclient-backlog = \"64KiB\"\nclient-call = \"60s\"";
    let folder = Folder::new("").handled("t", guests::handler(), limits).handled("u", guests::handler(), limits);
    let relay = Relay::serve(folder).await;
    let (mut first, mut second) = (relay.client("/t").await, relay.client("/t").await);
    let mut stranger = relay.client("/u").await;
    keep_busy(&relay, &mut first, HOLD).await;
    let command = format!("reply taken\n{}", "x".repeat(40 << 10));
    first.send(Message::text(command.clone())).await;
    first.settle().await;
    // Only the client that goes over the limit is told.
    assert_eq!(ask(&mut second, &command).await, ERROR_111);
    assert_eq!(ask(&mut stranger, &command).await, "taken");
    assert_eq!(ask(&mut second, RELEASE).await, "released");
    assert_eq!(first.text().await, "taken");
    assert!(first.text().await.starts_with("not a command"));
    // Each time the room comes back.
    for _ in 0..20 {
        assert_eq!(ask(&mut second, &command).await, "taken");
        assert!(second.text().await.starts_with("not a command"));
    }
    first.has_no_more().await;
    assert_eq!(relay.metric(DROPPED, &QUEUE).await, 1.0);
}

#[tokio::test]
async fn messages_are_as_large_as_the_limit_says() {
    let relay = relay("client-message = \"1KiB\"").await;
    let mut client = relay.client("/t").await;
    client.send(Message::binary(vec![1; 1024])).await;
    assert_eq!(client.message().await, Message::binary(vec![1; 1024]));
    client.send(Message::binary(vec![1; 1025])).await;
    assert_eq!(client.rest().await, (vec![], Some(CloseCode::Size)));
    // A handler's own messages may be larger.
    let mut client = relay.client("/t").await;
    client.send(Message::text("flood 1 2000")).await;
    assert_eq!(client.message().await, Message::binary(vec![7; 2000]));
}

#[tokio::test]
async fn calls_run_at_once_in_as_many_instances_as_may_be() {
    let relay = relay("client-instances = 2\nclient-call = \"3s\"").await;
    let mut clients = Vec::new();
    for _ in 0..4 {
        clients.push(relay.client("/t").await);
    }
    let [first, second, third, fourth] = &mut clients[..] else { unreachable!() };
    keep_busy(&relay, first, "loop").await;
    assert_eq!(ask(third, "reply meanwhile").await, "meanwhile");
    keep_busy(&relay, second, "loop").await;
    // These messages are with a task, and wait for their turn.
    third.send(Message::text("reply late")).await;
    fourth.send(Message::text("reply late")).await;
    third.has_no_more().await;
    fourth.has_no_more().await;
    assert_eq!(relay.metric("edge_relay_guest_instances", &CLIENT).await, 2.0);
    assert_eq!(failures(&relay, "guest_broke", "deadline").await, 0.0);
    assert_eq!(third.text().await, "late");
    assert!(failures(&relay, "guest_broke", "deadline").await >= 1.0, "another instance has served it");
    assert_eq!(fourth.text().await, "late");
    assert_eq!(first.text().await, ERROR_100);
    assert_eq!(second.text().await, ERROR_100);
    assert!(relay.metric("edge_relay_guest_instances", &CLIENT).await <= 2.0);
}

#[tokio::test]
async fn a_call_may_take_as_long_as_the_limit_says() {
    let relay = relay("client-call = \"600ms\"").await;
    let mut client = relay.client("/t").await;
    assert_eq!(ask(&mut client, "busy 100\nreply punctual").await, "punctual");
    let began = Instant::now();
    assert_eq!(ask(&mut client, "busy 60000\nreply late").await, ERROR_100);
    assert!(began.elapsed() >= Duration::from_millis(600) && began.elapsed() < Duration::from_secs(20));
    assert_eq!(failures(&relay, "guest_broke", "deadline").await, 1.0);
}

#[tokio::test]
async fn calls_and_their_time_are_counted_when_they_return() {
    let relay = relay("").await;
    let calls = async || relay.metric("edge_relay_guest_calls_total", &CLIENT).await;
    assert_eq!(relay.metric("edge_relay_guest_instances", &CLIENT).await, 0.0);
    let mut client = relay.client("/t?channel=a&channel=b").await;
    // The handler is asked whether the client may come in, how long it may stay, and about each channel.
    assert_eq!(calls().await, 4.0);
    assert_eq!(ask(&mut client, "busy 50\nreply done").await, "done");
    assert_eq!(calls().await, 5.0);
    assert_eq!(ask(&mut client, "trap").await, ERROR_100);
    assert_eq!(calls().await, 5.0);
    assert_eq!(relay.metric("edge_relay_guest_call_seconds_count", &CLIENT).await, 5.0);
    let seconds = relay.metric("edge_relay_guest_call_seconds_sum", &CLIENT).await;
    assert!((0.05..30.0).contains(&seconds), "{seconds}");
    assert_eq!(relay.metric("edge_relay_client_replies_total", &[("tenant", "t")]).await, 2.0);
    assert_eq!(relay.metric("edge_relay_guest_instances", &CLIENT).await, 0.0);
    client.send(Message::Close(None)).await;
    relay.metric_reaches("edge_relay_guest_calls_total", &CLIENT, 6.0).await;
    assert_eq!(relay.metric("edge_relay_guest_instances", &CLIENT).await, 1.0);
}

#[tokio::test]
async fn a_client_that_sends_faster_than_it_is_served_is_told_and_nobody_else_notices() {
    const MESSAGES: usize = 20_000;
    let relay = relay("client-call = \"60s\"\nclient-messages-per-second = 100000").await;
    let mut other = relay.client("/t").await;
    let mut floods = Raw::connect(relay.clients, "/t").await;
    floods.send(&[frame(FIN | TEXT, HOLD.as_bytes()), frame(FIN | PING, b"in")].concat()).await;
    assert_eq!(floods.frame().await.unwrap().payload, b"in");
    queue_is(&relay, 0).await;
    let began = Instant::now();
    floods.send(&frame(FIN | TEXT, b"reply served").repeat(MESSAGES)).await;
    assert_eq!(ask(&mut other, "reply undisturbed").await, "undisturbed");
    relay.metric_reaches(DROPPED, &QUEUE, (MESSAGES - 128) as f64).await;
    assert_eq!(ask(&mut other, RELEASE).await, "released");
    let (mut served, mut lost, mut errors) = (0, 0, 0);
    while served + lost < MESSAGES {
        match std::str::from_utf8(&floods.frame().await.unwrap().payload).unwrap() {
            "served" => served += 1,
            error => {
                lost += dropped(error);
                errors += 1;
            }
        }
    }
    assert_eq!((served, lost), (128, MESSAGES - 128));
    assert!(errors <= 2 + began.elapsed().as_secs(), "{errors}");
    assert_eq!(relay.metric(DROPPED, &[]).await, (MESSAGES - 128) as f64);
    assert_eq!(relay.metric("edge_relay_clients_closed_total", &[]).await, 0.0);
    queue_is(&relay, 0).await;
}

#[tokio::test]
async fn a_reply_larger_than_the_backlog_closes_the_client() {
    let relay = relay("client-backlog = \"64KiB\"").await;
    let mut client = relay.client("/t").await;
    client.send(Message::text("flood 1 50000")).await;
    assert_eq!(client.message().await, Message::binary(vec![7; 50_000]));
    client.send(Message::text("flood 1 70000")).await;
    assert_eq!(client.rest().await, (vec![], Some(CloseCode::Again)));
    relay.clients_closed("replies", 1.0).await;
}

#[tokio::test]
async fn replies_that_are_not_taken_close_the_client_and_the_others_are_served() {
    let relay = relay("client-message = \"1KiB\"").await;
    let mut stalled = Raw::narrow(relay.clients, "/t").await;
    let mut other = relay.client("/t").await;
    // The replies of the first call wait. Those of the next one are too many.
    for _ in 0..3 {
        stalled.send(&frame(FIN | TEXT, b"flood 10 1000000")).await;
    }
    relay.clients_closed("replies", 1.0).await;
    assert_eq!(ask(&mut other, "reply undisturbed").await, "undisturbed");
    for nth in 0..10 {
        let reply = stalled.frame().await.expect("a reply before the close");
        assert!(reply.first == FIN | BINARY && reply.payload == vec![7; 1_000_000], "reply {nth}");
    }
    assert_eq!(stalled.closed().await, 1013);
    assert_eq!(relay.metric("edge_relay_clients_closed_total", &[]).await, 1.0);
}

#[tokio::test]
async fn replies_that_wait_stay_within_the_tenants_bytes() {
    const CLIENTS: usize = 40;
    const BACKLOG: usize = 64 << 20;
    /// The memory of what waits, and of what a few calls make and copy. Without the limit, 600 MB would wait.
    const MOST_MEMORY: usize = 300 << 20;
    let relay = relay("client-instances = 1\nclient-call = \"10s\"").await;
    let mut stalled = Vec::new();
    for _ in 0..CLIENTS {
        let mut raw = Raw::narrow(relay.clients, "/t").await;
        raw.send(&frame(FIN | TEXT, b"flood 30 500000")).await;
        stalled.push(raw);
    }
    relay.clients_closed("replies", (CLIENTS - BACKLOG / 15_000_000 - 5) as f64).await;
    let memory = relay.peak_memory();
    assert!(memory < MOST_MEMORY, "{memory} bytes");
    // When the clients have gone, all room is free again. What waited for any one of them would leave too little for
    // this.
    stalled.clear();
    until("room for a reply", async || {
        let mut raw = Raw::connect(relay.clients, "/t").await;
        raw.send(&frame(FIN | TEXT, b"flood 1 50000000")).await;
        match raw.frame_but_pings().await {
            Some(reply) if reply.payload.len() == 50_000_000 => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

/// Tests the sample tenant `echo` unchanged.
#[tokio::test]
async fn echo_sends_back_what_it_gets_up_to_16_mib() {
    const MOST: usize = 16 << 20;
    let folder = Folder::new("");
    folder.write("tenants/echo/tenant.toml", include_str!("../../../../components/echo/tenant.toml"));
    folder.copy(guests::echo(), "tenants/echo/echo.wasm");
    let relay = Relay::serve(folder).await;
    let mut client = relay.client("/echo").await;
    let mut sent = 0.0;
    for size in [0, 1, 125, 126, 65_535, 65_536, 1 << 20, MOST] {
        for message in [Message::text("x".repeat(size)), Message::binary(vec![0xFF; size])] {
            client.send(message.clone()).await;
            assert!(within("an echo", client.message()).await == message, "{size}");
            sent += 1.0;
        }
    }
    assert_eq!(relay.metric("edge_relay_client_replies_total", &[("tenant", "echo")]).await, sent);
    // `on-connect` and `on-subscribe` are calls too.
    assert_eq!(relay.metric("edge_relay_guest_calls_total", &[("tenant", "echo")]).await, sent + 2.0);
    let large = Client::connect(&relay.url("/echo")).await;
    assert_eq!(too_large(large, MOST + 1).await, Some(CloseCode::Size));
    client.has_no_more().await;
}

/// Sends a message of this size. Returns the code that the client is closed with.
async fn too_large(mut client: Client, size: usize) -> Option<CloseCode> {
    client.try_send(Message::binary(vec![0; size])).await;
    client.rest().await.1
}
