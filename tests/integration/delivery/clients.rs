//! Raw WebSocket clients: what they get, what they may send, and how they are closed when they break the rules.

use std::{cell::Cell, time::Duration};

use proptest::{
    prelude::{Strategy, any},
    strategy::ValueTree,
    test_runner::TestRunner,
};
use rustix::process::Signal;
use support::{
    guests,
    partner::Partner,
    raw::{BINARY, CLOSE, CONTINUATION, FIN, PING, PONG, Raw, TEXT, frame, header},
    relay::Relay,
    tenant::Folder,
    until, within,
};
use tokio::time::{Instant, interval};
use tokio_tungstenite::tungstenite::{Message, protocol::frame::coding::CloseCode};

async fn relay(partner: &Partner, limits: &str, more: &str) -> Relay {
    Relay::serve(Folder::new(limits).tenant("t", &partner.url(), more)).await
}

/// Waits until this many clients are left in the table.
async fn clients_left(relay: &Relay, wanted: u32) {
    until(format!("{wanted} clients left"), async || match relay.metric("edge_relay_clients", &[]).await {
        clients if clients == f64::from(wanted) => Ok(()),
        clients => Err(clients.to_string()),
    })
    .await;
}

#[tokio::test]
async fn a_client_gets_the_channels_it_asks_for() {
    let mut partner = Partner::start().await;
    let folder = Folder::new("").filtered("t", &partner.url(), guests::hostile(), "[settings]\nmode = \"echo\"");
    let relay = Relay::serve(folder).await;
    let mut out = relay.client("/t?channel=out").await;
    let mut both = relay.client("/t?channel=other&channel=out&channel=out").await;
    let mut other = relay.client("/t?channel=other").await;
    let mut default = relay.client("/t").await;
    let mut peer = partner.accept().await;
    peer.text("hello").await;
    assert_eq!(out.text().await, "hello");
    assert_eq!(both.text().await, "hello");
    for client in [&mut out, &mut both, &mut other, &mut default] {
        client.has_no_more().await;
    }
}

#[tokio::test]
async fn what_clients_send_is_counted_and_dropped() {
    let mut partner = Partner::start().await;
    let relay = relay(&partner, "", "").await;
    let mut peer = partner.accept().await;
    let mut client = relay.client("/t").await;
    client.send(Message::text("one")).await;
    client.send(Message::binary(vec![2])).await;
    client.settle().await;
    let mut raw = Raw::connect(relay.clients, "/t").await;
    // One message in three fragments, with a ping between them.
    raw.send(&frame(TEXT, b"th")).await;
    raw.send(&frame(FIN | PING, b"x")).await;
    raw.send(&[frame(CONTINUATION, b"re"), frame(FIN | CONTINUATION, b"e")].concat()).await;
    let pong = raw.frame().await.unwrap();
    assert_eq!((pong.first, pong.payload.as_slice()), (FIN | PONG, &b"x"[..]));
    relay.metric_reaches("edge_relay_client_messages_dropped_total", &[("tenant", "t")], 3.0).await;
    // None of it reaches the partner or other clients.
    peer.was_sent_nothing().await;
    client.has_no_more().await;
    assert_eq!(relay.metric("edge_relay_client_messages_dropped_total", &[]).await, 3.0);
}

#[tokio::test]
async fn a_close_is_answered() {
    let partner = Partner::start().await;
    let relay = relay(&partner, "", "").await;
    let mut client = relay.client("/t").await;
    client.send(Message::Close(None)).await;
    let (messages, code) = client.rest().await;
    assert!(messages.is_empty() && code.is_none_or(|code| code == CloseCode::Normal), "{code:?}");
    let mut raw = Raw::connect(relay.clients, "/t").await;
    raw.send(&frame(FIN | CLOSE, &[&4321_u16.to_be_bytes()[..], b"done"].concat())).await;
    assert_eq!(raw.closed().await, 4321);
    relay.clients_closed("client", 2.0).await;
}

#[tokio::test]
async fn clients_are_pinged_and_those_that_do_not_answer_are_dropped() {
    let partner = Partner::start().await;
    let relay = relay(&partner, "ping-interval = \"500ms\"", "").await;
    let mut answers = relay.client("/t").await;
    let mut silent = Raw::connect(relay.clients, "/t").await;
    let silence = async {
        assert_eq!(silent.frame().await.unwrap().first, FIN | PING);
        silent.ended().await;
    };
    // Waits for several intervals.
    tokio::join!(silence, answers.pinged(5));
    relay.clients_closed("no_pong", 1.0).await;
    answers.has_no_more().await;
    // A client leaves the table after its end was counted.
    relay.metric_is("edge_relay_clients", &[("tenant", "t")], 1.0).await;
    assert_eq!(relay.metric("edge_relay_clients_closed_total", &[]).await, 1.0);
}

#[tokio::test]
async fn a_busy_channel_stands_for_no_answer() {
    let mut partner = Partner::start().await;
    let relay = relay(&partner, "ping-interval = \"500ms\"", "").await;
    let mut peer = partner.accept().await;
    let mut answers = relay.client("/t").await;
    let mut silent = Raw::connect(relay.clients, "/t").await;
    let done = Cell::new(false);
    // Messages come far more often than pings.
    let busy = async {
        let mut pace = interval(Duration::from_millis(100));
        let mut sent = 0;
        while !done.get() {
            pace.tick().await;
            peer.text(sent.to_string()).await;
            sent += 1;
        }
        sent
    };
    let silence = async {
        let mut pings = 0;
        while let Some(frame) = silent.frame().await {
            pings += u32::from(frame.first == FIN | PING);
        }
        assert_eq!(pings, 1);
    };
    let watched = async {
        // Waits for several intervals.
        tokio::join!(within("an end to the silent client", silence), answers.pinged(5));
        done.set(true);
    };
    let (sent, ()) = tokio::join!(busy, watched);
    relay.clients_closed("no_pong", 1.0).await;
    for nth in 0..sent {
        assert_eq!(answers.text().await, nth.to_string());
    }
    answers.has_no_more().await;
    clients_left(&relay, 1).await;
    assert_eq!(relay.metric("edge_relay_clients_closed_total", &[]).await, 1.0);
}

#[tokio::test]
async fn a_flood_of_pings_keeps_nobody_waiting() {
    const PINGS: usize = 40_000;
    let mut partner = Partner::start().await;
    let relay = relay(&partner, "", "").await;
    let mut peer = partner.accept().await;
    let mut bystander = relay.client("/t").await;
    let mut floods = Raw::connect(relay.clients, "/t").await;
    // The client does not read the answers yet.
    floods.send(&frame(FIN | PING, b"x").repeat(PINGS)).await;
    let began = Instant::now();
    peer.text("meanwhile").await;
    assert_eq!(bystander.text().await, "meanwhile");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    // The client itself is served too, and not closed for the flood.
    let (mut pong, mut message) = (false, false);
    while !(pong && message) {
        let frame = floods.frame().await.expect("an answer before the end");
        match (frame.first, frame.payload.as_slice()) {
            (first, b"x") if first == FIN | PONG => pong = true,
            (first, b"meanwhile") if first == FIN | TEXT => message = true,
            _ => panic!("{frame:?}"),
        }
    }
    floods.send(&frame(FIN | TEXT, b"still here")).await;
    relay.metric_reaches("edge_relay_client_messages_dropped_total", &[], 1.0).await;
    assert_eq!(relay.metric("edge_relay_clients_closed_total", &[]).await, 0.0);
}

#[tokio::test]
async fn clients_that_send_much_and_hang_up_are_gone_at_once() {
    const CLIENTS: usize = 16;
    /// So many messages that the system enlarges the sockets' buffers, and all of the rest fits into them.
    const FIRST: usize = 3_000;
    const REST: usize = 300;
    let partner = Partner::start().await;
    // Longer than the test, so that no client is closed for its silence.
    let relay = relay(&partner, "ping-interval = \"1h\"\nstall-timeout = \"10m\"", "").await;
    let messages = |count| frame(FIN | BINARY, &[7; 1000]).repeat(count);
    let mut raws = Vec::new();
    for _ in 0..CLIENTS {
        let mut raw = Raw::connect(relay.clients, "/t").await;
        raw.send(&messages(FIRST)).await;
        raws.push(raw);
    }
    let dropped = "edge_relay_client_messages_dropped_total";
    relay.metric_reaches(dropped, &[], (CLIENTS * FIRST) as f64).await;
    // The rest and the end arrive together while the relay is stopped.
    relay.signal(Signal::STOP);
    for raw in &mut raws {
        raw.send(&messages(REST)).await;
        raw.half_close().await;
    }
    relay.signal(Signal::CONT);
    clients_left(&relay, 0).await;
    assert_eq!(relay.metric("edge_relay_clients_closed_total", &[("reason", "client")]).await, CLIENTS as f64);
    for raw in &mut raws {
        raw.ended().await;
    }
    assert_eq!(relay.metric(dropped, &[]).await, (CLIENTS * (FIRST + REST)) as f64);
}

#[tokio::test]
async fn breaches_of_the_protocol_are_closed_with_their_codes() {
    let mut partner = Partner::start().await;
    let relay = relay(&partner, "", "[limits]\nclient-message = \"1KiB\"").await;
    let mut peer = partner.accept().await;
    let mut bystander = relay.client("/t").await;
    let breaches: [(u16, &str, Vec<u8>); 17] = [
        (1002, "unmasked", vec![FIN | TEXT, 2, b'h', b'i']),
        (1002, "reserved bit 1", frame(FIN | 0x40 | TEXT, b"hi")),
        (1002, "reserved bit 3", frame(FIN | 0x10 | BINARY, b"hi")),
        (1002, "unknown opcode", frame(FIN | 0x3, b"")),
        (1002, "unknown control opcode", frame(FIN | 0xB, b"")),
        (1002, "ping of 126 bytes", frame(FIN | PING, &[0; 126])),
        (1002, "ping in fragments", frame(PING, b"half")),
        (1002, "continuation of nothing", frame(FIN | CONTINUATION, b"x")),
        (1002, "message inside a message", [frame(TEXT, b"a"), frame(FIN | TEXT, b"b")].concat()),
        (1002, "close code of one byte", frame(FIN | CLOSE, &[3])),
        (1002, "close code that may not be sent", frame(FIN | CLOSE, &1005_u16.to_be_bytes())),
        (1002, "length with its highest bit set", header(FIN | BINARY, 1 << 63)),
        (1007, "text that is not UTF-8", frame(FIN | TEXT, b"\xFF")),
        (1007, "text that ends in a character", [frame(TEXT, b"Z\xC3"), frame(FIN | CONTINUATION, b"")].concat()),
        (1009, "frame over the limit", frame(FIN | BINARY, &[0; 1025])),
        (1009, "header of 4 GiB", header(FIN | TEXT, 1 << 32)),
        (1009, "fragments over the limit", [frame(BINARY, &[0; 1024]), frame(CONTINUATION, b"x")].concat()),
    ];
    for (code, breach, bytes) in &breaches {
        let mut raw = Raw::connect(relay.clients, "/t").await;
        raw.send(bytes).await;
        assert_eq!(raw.closed().await, *code, "{breach}");
    }
    for (reason, times) in [("protocol", 12.0), ("utf8", 2.0), ("too_large", 3.0)] {
        relay.clients_closed(reason, times).await;
    }
    assert_eq!(relay.metric("edge_relay_client_messages_dropped_total", &[]).await, 0.0);
    // A message of the largest allowed size is not a breach.
    let mut raw = Raw::connect(relay.clients, "/t").await;
    raw.send(&[frame(FIN | BINARY, &[0; 1024]), frame(FIN | PING, b"")].concat()).await;
    assert_eq!(raw.frame().await.unwrap().first, FIN | PONG);
    assert_eq!(relay.metric("edge_relay_client_messages_dropped_total", &[]).await, 1.0);
    peer.text("still here").await;
    assert_eq!(bystander.text().await, "still here");
}

#[tokio::test]
async fn a_close_frame_half_sent_and_frames_in_single_bytes_are_waited_for() {
    let partner = Partner::start().await;
    let relay = relay(&partner, "", "").await;
    let mut raw = Raw::connect(relay.clients, "/t").await;
    let bytes =
        [frame(TEXT, "Z\u{fc}".as_bytes()), frame(FIN | CONTINUATION, b"rich"), frame(FIN | PING, b"p")].concat();
    for byte in bytes {
        raw.send(&[byte]).await;
    }
    let pong = raw.frame().await.unwrap();
    assert_eq!((pong.first, pong.payload.as_slice()), (FIN | PONG, &b"p"[..]));
    relay.metric_reaches("edge_relay_client_messages_dropped_total", &[], 1.0).await;
}

/// The garbage is random bytes, and random frames, which get further.
#[tokio::test]
async fn garbage_harms_nobody_else() {
    let mut partner = Partner::start().await;
    let relay = relay(&partner, "", "").await;
    let mut peer = partner.accept().await;
    let mut bystander = relay.client("/t").await;
    let bytes = || proptest::collection::vec(any::<u8>(), 1..300);
    let frames = proptest::collection::vec((any::<u8>(), bytes()), 1..5)
        .prop_map(|frames| frames.iter().flat_map(|(first, payload)| frame(*first, payload)).collect());
    let garbage = proptest::prop_oneof![bytes(), frames];
    let mut runner = TestRunner::default();
    for nth in 0..200 {
        let garbage: Vec<u8> = garbage.new_tree(&mut runner).unwrap().current();
        let mut raw = match nth % 4 {
            0 => Raw::tcp(relay.clients).await,
            _ => Raw::connect(relay.clients, "/t").await,
        };
        raw.try_send(&garbage).await;
    }
    peer.text("unharmed").await;
    assert_eq!(bystander.text().await, "unharmed");
    bystander.has_no_more().await;
    // All clients that hung up have left the table.
    clients_left(&relay, 1).await;
}
