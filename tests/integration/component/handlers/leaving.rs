//! How clients leave, and what their handler is told.

use std::time::Duration;

use rustix::process::Signal;
use support::{
    client::Client,
    raw::{CLOSE, FIN, PING, Raw, TEXT, frame},
    relay::Relay,
};
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::{Message, protocol::frame::coding::CloseCode};

use super::{ERROR_100, ask, keep_busy, relay, relay_with};

/// Connects a client by hand. Returns it with its id.
async fn raw(relay: &Relay) -> (Raw, String) {
    let mut raw = Raw::connect(relay.clients, "/t").await;
    raw.send(&frame(FIN | TEXT, b"id")).await;
    let id = raw.frame_but_pings().await.unwrap().payload;
    (raw, String::from_utf8(id).unwrap())
}

/// Connects a client that is told which clients leave.
async fn watcher(relay: &Relay) -> Client {
    relay.client("/t?channels=gone").await
}

async fn left(gone: &mut Client, id: &str, reason: &str) {
    assert_eq!(gone.text().await, format!("{id} {reason}"));
}

#[tokio::test]
async fn the_handler_is_told_once_that_a_client_is_gone_and_why() {
    let relay = relay("client-message = \"1KiB\"").await;
    let mut gone = watcher(&relay).await;
    let (mut closes, id) = raw(&relay).await;
    closes.send(&frame(FIN | CLOSE, &1000_u16.to_be_bytes())).await;
    closes.ended().await;
    left(&mut gone, &id, "client").await;

    let (vanishes, id) = raw(&relay).await;
    drop(vanishes);
    left(&mut gone, &id, "client").await;

    let (mut ended, id) = raw(&relay).await;
    ended.send(&frame(FIN | TEXT, b"disconnect 4000 enough")).await;
    assert_eq!(ended.closed().await, 4000);
    drop(ended);
    left(&mut gone, &id, "handler").await;

    let (mut kicked, id) = raw(&relay).await;
    assert_eq!(ask(&mut gone, &format!("kick {id} 4000 out")).await, "Ok(())");
    assert_eq!(kicked.closed().await, 4000);
    drop(kicked);
    left(&mut gone, &id, "handler").await;

    // The client is closed twice, and closes by itself too. The first reason counts.
    let (mut hurried, id) = raw(&relay).await;
    assert_eq!(ask(&mut gone, &format!("kick {id} 4000 out\nkick {id} 4001 out")).await, "Ok(())");
    assert_eq!(gone.text().await, "Ok(())");
    hurried.try_send(&frame(FIN | CLOSE, &1000_u16.to_be_bytes())).await;
    assert_eq!(hurried.closed().await, 4000);
    drop(hurried);
    left(&mut gone, &id, "handler").await;

    for (reason, bytes) in [
        ("protocol", frame(FIN | PING, &[0; 126])),
        ("utf8", frame(FIN | TEXT, b"\xFF")),
        ("too_large", frame(FIN | TEXT, &[b'x'; 1025])),
    ] {
        let (mut breaks, id) = raw(&relay).await;
        breaks.send(&bytes).await;
        breaks.closed().await;
        drop(breaks);
        left(&mut gone, &id, reason).await;
    }
    gone.has_no_more().await;
    assert_eq!(relay.metric("edge_relay_clients", &[]).await, 1.0);
}

#[tokio::test]
async fn a_client_that_does_not_answer_has_left_too() {
    let relay = relay_with("ping-interval = \"500ms\"", "").await;
    let (_silent, id) = raw(&relay).await;
    let mut gone = watcher(&relay).await;
    left(&mut gone, &id, "no_pong").await;
    // This client answers pings while it waits.
    gone.pinged(2).await;
    gone.has_no_more().await;
    assert_eq!(relay.metric("edge_relay_clients_closed_total", &[]).await, 1.0);
}

#[tokio::test]
async fn a_client_that_takes_nothing_has_left_too() {
    let relay = relay_with("stall-timeout = \"500ms\"\nping-interval = \"1h\"", "").await;
    let mut gone = watcher(&relay).await;
    let mut stalled = Raw::narrow(relay.clients, "/t").await;
    stalled.send(&frame(FIN | TEXT, b"id\nflood 1 20000000")).await;
    let id = String::from_utf8(stalled.frame().await.unwrap().payload).unwrap();
    left(&mut gone, &id, "stalled").await;
    gone.has_no_more().await;
}

#[tokio::test]
async fn what_a_client_has_sent_is_handled_before_it_has_left() {
    let relay = relay("client-call = \"2s\"").await;
    let mut gone = watcher(&relay).await;
    let (mut client, id) = raw(&relay).await;
    let commands = ["busy 200\npublish gone one", "publish gone two", "trap", "publish gone three"];
    let frames: Vec<u8> = commands.iter().flat_map(|command| frame(FIN | TEXT, command.as_bytes())).collect();
    client.send(&[frames, frame(FIN | CLOSE, &1000_u16.to_be_bytes())].concat()).await;
    client.ended().await;
    for expected in ["one", "two", "three"] {
        assert_eq!(gone.text().await, expected);
    }
    left(&mut gone, &id, "client").await;
    gone.has_no_more().await;
}

#[tokio::test]
async fn nothing_of_a_client_that_left_reaches_the_next() {
    let relay = relay("client-call = \"2s\"").await;
    let mut gone = watcher(&relay).await;
    let mut others = Vec::new();
    for _ in 0..20 {
        let (mut client, id) = raw(&relay).await;
        client.send(&frame(FIN | TEXT, b"busy 20\nreply for the one before\ndisconnect 4000 x")).await;
        drop(client);
        // The next client may get the same place in the table.
        let mut next = Client::connect(&relay.url("/t")).await;
        // The end of the connection and the handler's publication are on their way at the same time.
        let who = gone.text().await;
        assert!(who.starts_with(&id), "{who}");
        assert_eq!(ask(&mut next, "reply mine").await, "mine");
        others.push(next);
    }
    gone.has_no_more().await;
}

#[tokio::test]
async fn at_shutdown_clients_are_told_and_the_handler_last() {
    let mut relay = relay("").await;
    let mut ids = Vec::new();
    let mut clients = Vec::new();
    for _ in 0..10 {
        let mut client = relay.client("/t").await;
        ids.push(ask(&mut client, "id").await);
        clients.push(client);
    }
    // Calls that run or wait when the signal comes are finished.
    keep_busy(&relay, &mut clients[0], "busy 300\nlog the first\nreply late\npublish main late").await;
    clients[0].send(Message::text("log the second")).await;
    clients[0].settle().await;
    relay.signal(Signal::TERM);
    for client in clients {
        assert_eq!(client.rest().await.1, Some(CloseCode::Away));
    }
    assert_eq!(relay.end().await.code(), Some(0));
    // The relay's last lines may be read after its end.
    for id in &ids {
        relay.logged(&[&format!("{id} shutdown")]).await;
    }
    let log = relay.log();
    // The number of the line with this text. There must be one.
    let nth = |text: &str| {
        let found: Vec<_> = log.lines().enumerate().filter(|(_, line)| line.contains(text)).collect();
        assert_eq!(found.len(), 1, "{text}: {log}");
        found[0].0
    };
    for id in &ids {
        nth(&format!("{id} shutdown"));
    }
    assert!(nth("the first") < nth("the second") && nth("the second") < nth(&format!("{} shutdown", ids[0])), "{log}");
    assert!(!log.contains("cut off"), "a call was cut off");
}

#[tokio::test]
async fn at_shutdown_a_handler_that_loops_is_cut() {
    let mut relay = relay_with("shutdown-timeout = \"500ms\"", "client-call = \"1m\"").await;
    let mut client = relay.client("/t").await;
    let mut other = relay.client("/t").await;
    keep_busy(&relay, &mut client, "loop").await;
    let id = ask(&mut other, "id").await;
    relay.signal(Signal::TERM);
    let began = Instant::now();
    assert_eq!(client.rest().await.1, Some(CloseCode::Away));
    assert_eq!(other.rest().await.1, Some(CloseCode::Away));
    assert_eq!(relay.end().await.code(), Some(0));
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    relay.logged(&["gone", &format!("{id} shutdown")]).await;
    relay.logged(&["WARN", "calls of guests cut off"]).await;
}

#[tokio::test]
async fn a_call_that_breaks_after_its_client_has_left_harms_nobody() {
    let relay = relay("client-call = \"500ms\"").await;
    let mut gone = watcher(&relay).await;
    let (mut client, id) = raw(&relay).await;
    client.send(&frame(FIN | TEXT, b"loop")).await;
    drop(client);
    left(&mut gone, &id, "client").await;
    assert_eq!(ask(&mut gone, "trap").await, ERROR_100);
    assert_eq!(ask(&mut gone, "reply fine").await, "fine");
}
