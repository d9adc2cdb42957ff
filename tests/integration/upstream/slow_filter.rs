//! Filters that are slower than their partner.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use support::{
    guests,
    partner::{PING, PONG, Partner, RawPeer},
    relay::Relay,
    tenant::Folder,
    until, within,
};

use crate::upstream::states::{is, shown};

const SECOND: Duration = Duration::from_secs(1);
/// Pings of the partner that are answered while the filter is slow.
const PINGS: usize = 5;

/// A tenant whose filter takes this many milliseconds for each call. `limits` are lines of its manifest.
async fn relay(partner: &Partner, sleep: u32, keys: &str, limits: &str) -> Relay {
    let more = format!("[limits]\nfilter-call = \"30s\"\n{limits}[settings]\nsleep = {sleep}\n");
    let folder = Folder::new("shutdown-timeout = \"2s\"").filtered("t", &partner.url(), guests::told(), &more);
    let manifest = std::fs::read_to_string(folder.path("tenants/t/tenant.toml")).unwrap();
    folder.write("tenants/t/tenant.toml", manifest.replacen("[components]", &format!("{keys}\n[components]"), 1));
    Relay::serve(folder).await
}

async fn accept(partner: &mut Partner) -> RawPeer {
    let mut peer = partner.arrival().await.request().await;
    peer.agree(&[]).await;
    peer
}

/// Whether `/readyz` names the filter as what is slow.
fn is_slow(shown: &serde_json::Value) -> bool {
    shown["reason"].as_str().is_some_and(|reason| reason.contains("the filter is slower than the partner"))
}

/// Text frames with these numbers.
fn numbered(numbers: std::ops::Range<usize>) -> Vec<u8> {
    numbers.flat_map(|nth| [&[0x81, 6], format!("{nth:06}").as_bytes()].concat()).collect()
}

/// Waits for a pong with this payload.
async fn ponged(peer: &mut RawPeer, payload: &[u8]) {
    loop {
        match peer.next_frame().await {
            Some((PONG, answer)) if answer == payload => return,
            Some((PING | 0x81, _)) => {}
            other => panic!("{other:?}"),
        }
    }
}

/// Answers the relay's pings to the end of the connection.
async fn answer_pings(peer: &mut RawPeer) {
    while let Some((first, payload)) = peer.next_frame().await {
        if first == PING {
            peer.frame(PONG, &payload).await;
        }
    }
}

#[tokio::test]
async fn pings_are_answered_while_the_filter_is_at_work() {
    let mut partner = Partner::start().await;
    let relay = relay(&partner, 900, "", "").await;
    let mut peer = accept(&mut partner).await;
    assert_eq!(peer.next_text().await, "open 1 ConnectionReason::New");
    let began = Instant::now();
    for nth in 0..PINGS {
        // Far more bursts than the filter gets to meanwhile.
        peer.write(&numbered(nth * 10_000..(nth + 1) * 10_000)).await;
        peer.frame(PING, &[b'0' + u8::try_from(nth).unwrap()]).await;
        ponged(&mut peer, &[b'0' + u8::try_from(nth).unwrap()]).await;
    }
    // Its messages alone take more than three minutes of calls.
    assert!(began.elapsed() < 20 * SECOND, "{:?}", began.elapsed());
    assert_eq!(shown(&relay).await["state"], "live");
    let waiting = relay.metric("edge_relay_guest_queue", &[("role", "filter")]).await;
    assert!(waiting > 40_000.0, "{waiting} messages wait");
}

#[tokio::test]
async fn the_next_connection_is_read_and_takes_the_place_of_what_waits() {
    let mut partner = Partner::start().await;
    let relay = relay(&partner, 400, "", "").await;
    let mut out = relay.client("/t?channel=out").await;
    let mut peer = accept(&mut partner).await;
    assert_eq!(peer.next_text().await, "open 1 ConnectionReason::New");
    peer.write(&numbered(0..50_000)).await;
    peer.frame(PING, b"read").await;
    ponged(&mut peer, b"read").await;
    drop(peer);
    let mut peer = accept(&mut partner).await;
    // It is read, although the filter has not opened it yet.
    peer.frame(PING, b"hello").await;
    ponged(&mut peer, b"hello").await;
    let waits = is(&relay, "connecting").await;
    assert!(waits["reason"].as_str().unwrap().contains("waits for the filter"), "{waits}");
    let began = Instant::now();
    peer.write(&numbered(900_000..900_001)).await;
    // Instead of 200 calls for what waits.
    assert_eq!(peer.next_text().await, "open 2 ConnectionReason::New");
    assert!(began.elapsed() < 5 * SECOND, "{:?}", began.elapsed());
    is(&relay, "live").await;
    let (mut expected, mut closed) = (0, false);
    loop {
        let text = out.text().await;
        match text.split_once(' ').unwrap() {
            ("1", number) => {
                assert_eq!((number, closed), (&*format!("{expected:06}"), false));
                expected += 1;
            }
            ("closed", _) => closed = true,
            ("2", number) => break assert_eq!((number, closed), ("900000", true)),
            _ => panic!("{text}"),
        }
    }
    let dropped = relay.metric("edge_relay_upstream_dropped_total", &[("reason", "superseded")]).await;
    assert_eq!(dropped as usize, 50_000 - expected);
    assert_eq!(relay.metric("edge_relay_epochs_total", &[("tenant", "t")]).await, 1.0, "one told gap");
    relay.logged(&["WARN", "the filter is slower than the partner", "dropped messages of a connection before"]).await;
}

#[tokio::test]
async fn what_came_before_a_close_is_filtered_while_nothing_newer_waits() {
    let mut partner = Partner::start().await;
    let relay = relay(&partner, 300, "", "").await;
    let mut out = relay.client("/t?channel=out").await;
    let mut peer = accept(&mut partner).await;
    assert_eq!(peer.next_text().await, "open 1 ConnectionReason::New");
    peer.write(&numbered(0..1_500)).await;
    peer.frame(PING, b"read").await;
    ponged(&mut peer, b"read").await;
    drop(peer);
    // It is silent.
    let _peer = accept(&mut partner).await;
    for expected in 0..1_500 {
        assert_eq!(out.text().await, format!("1 {expected:06}"));
    }
    assert!(out.text().await.starts_with("closed 1 "));
    assert_eq!(relay.metric("edge_relay_upstream_dropped_total", &[]).await, 0.0);
}

#[tokio::test]
async fn over_its_bound_the_partner_is_not_read_and_the_filter_is_named() {
    let mut partner = Partner::start().await;
    let relay = relay(&partner, 250, "idle-timeout = \"1s\"", "filter-queue = \"64KiB\"\n").await;
    let mut out = relay.client("/t?channel=out").await;
    let mut peer = accept(&mut partner).await;
    assert_eq!(peer.next_text().await, "open 1 ConnectionReason::New");
    peer.write(&numbered(0..4_000)).await;
    let waits = until("the filter named", async || {
        let shown = shown(&relay).await;
        if is_slow(&shown) { Ok(shown) } else { Err(shown.to_string()) }
    })
    .await;
    assert_eq!(waits["state"], "live");
    assert!(waits["reason"].as_str().unwrap().contains("the filter is slower than the partner"), "{waits}");
    relay.logged(&["WARN", "upstream.name=feed", "the filter is slower than the partner"]).await;
    // Longer than the idle limit: one that is not read is not silent.
    let all = async {
        for expected in 0..4_000 {
            assert_eq!(out.text().await, format!("1 {expected:06}"));
        }
    };
    tokio::select! {
        () = all => {}
        () = answer_pings(&mut peer) => panic!("the connection has ended"),
    }
    let unread = relay.metric("edge_relay_upstream_unread_seconds_total", &[("reason", "filter")]).await;
    assert!(unread > 1.0, "{unread}");
    assert_eq!(relay.metric("edge_relay_upstream_failures_total", &[]).await, 0.0);
    until("no reason any more", async || {
        let shown = shown(&relay).await;
        if shown == serde_json::json!({ "state": "live" }) { Ok(()) } else { Err(shown.to_string()) }
    })
    .await;
    assert_eq!(partner.connections(), 1);
}

#[tokio::test]
async fn a_partner_that_goes_meanwhile_went_because_of_the_filter() {
    let mut partner = Partner::start().await;
    let relay = relay(&partner, 500, "", "filter-queue = \"64KiB\"\n").await;
    let mut peer = accept(&mut partner).await;
    assert_eq!(peer.next_text().await, "open 1 ConnectionReason::New");
    peer.write(&numbered(0..4_000)).await;
    until("the filter named", async || {
        let shown = shown(&relay).await;
        if is_slow(&shown) { Ok(()) } else { Err(shown.to_string()) }
    })
    .await;
    // It has had no answer to its pings.
    drop(peer);
    relay.upstream_failed("slow_filter", 1.0).await;
    relay.logged(&["WARN", "upstream lost", "the filter is slower than the partner"]).await;
}

#[tokio::test]
async fn over_its_bound_the_oldest_may_be_dropped_as_a_gap() {
    let mut partner = Partner::start().await;
    let relay = relay(&partner, 300, "overflow = \"drop\"", "filter-queue = \"64KiB\"\n").await;
    let mut out = relay.client("/t?channel=out").await;
    let mut peer = accept(&mut partner).await;
    assert_eq!(peer.next_text().await, "open 1 ConnectionReason::New");
    let began = Instant::now();
    for nth in 0..20 {
        peer.write(&numbered(nth * 1_000..(nth + 1) * 1_000)).await;
        peer.frame(PING, b"read").await;
        ponged(&mut peer, b"read").await;
    }
    // The partner never waits: the calls for its messages would take 24 s.
    assert!(began.elapsed() < 12 * SECOND, "{:?}", began.elapsed());
    let shown = shown(&relay).await;
    assert!(shown["reason"].as_str().unwrap().contains("messages are dropped: the filter is slower"), "{shown}");
    let (mut last, mut got) = (0, 0_usize);
    while last < 19_999 {
        let number: usize = out.text().await.split_once(' ').unwrap().1.parse().unwrap();
        assert!(got == 0 || number > last, "{number} behind {last}");
        (last, got) = (number, got + 1);
    }
    let dropped = relay.metric("edge_relay_upstream_dropped_total", &[("reason", "overflow")]).await;
    assert_eq!(dropped as usize + got, 20_000);
    let epochs = relay.metric("edge_relay_epochs_total", &[("tenant", "t")]).await;
    // Between two calls there is at most one gap.
    let calls = relay.metric("edge_relay_guest_calls_total", &[("role", "filter")]).await;
    assert!((1.0..=calls).contains(&epochs), "{epochs} new epochs in {calls} calls");
    relay.logged(&["WARN", "messages of the upstream are dropped", "filter-queue"]).await;
}

#[tokio::test]
async fn frames_are_taken_only_while_their_connection_lives() {
    let mut partner = Partner::start().await;
    let relay = relay(&partner, 0, "", "").await;
    let mut answers = relay.client("/t?channel=answers").await;
    let mut peer = accept(&mut partner).await;
    assert_eq!(peer.next_text().await, "open 1 ConnectionReason::New");
    // The command waits for the filter, and the close frame comes behind it.
    let mut bytes = [&[0x81, 9][..], b"send gone"].concat();
    bytes.extend([0x88, 0]);
    let mut slow = vec![0x81, 8];
    slow.extend_from_slice(b"slow 500");
    peer.write(&[slow, bytes].concat()).await;
    let frames = within("the end", async {
        let mut frames = Vec::new();
        while let Some(frame) = peer.next_frame().await {
            frames.push(frame.0);
        }
        frames
    })
    .await;
    assert_eq!(frames.last(), Some(&0x88), "{frames:?}");
    assert_eq!(answers.text().await, "disconnected");
}

#[tokio::test]
async fn a_signal_to_end_is_kept_to_with_much_to_filter() {
    let mut partner = Partner::start().await;
    let mut relay = relay(&partner, 900, "", "").await;
    let mut peer = accept(&mut partner).await;
    assert_eq!(peer.next_text().await, "open 1 ConnectionReason::New");
    peer.write(&numbered(0..100_000)).await;
    peer.frame(PING, b"read").await;
    ponged(&mut peer, b"read").await;
    relay.signal(Signal::TERM);
    let began = Instant::now();
    assert_eq!(relay.end().await.code(), Some(0));
    // Its timeout is two seconds.
    assert!(began.elapsed() < 5 * SECOND / 2 + SECOND, "{:?}", began.elapsed());
}
