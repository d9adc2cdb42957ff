//! Partners that are there and say nothing.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use support::{guests, partner::Partner, probe::Probe, relay::Relay, tenant::Folder};
use tokio::time::sleep;
use tokio_tungstenite::tungstenite::Message;

use crate::upstream::states::is;

const SECOND: Duration = Duration::from_secs(1);

/// Accepts connections, answers pings, and says nothing.
async fn stay_mute(mut partner: Partner) {
    loop {
        let mut peer = partner.accept().await;
        tokio::spawn(async move { while peer.next().await.is_some() {} });
    }
}

#[tokio::test]
async fn no_message_for_so_long_and_it_connects_anew_whatever_the_pongs_say() {
    let mut partner = Partner::start().await;
    let more = "idle-timeout = \"3s\"\ndata-timeout = \"1s\"";
    let relay = Relay::serve(Folder::new("").tenant("t", &partner.url(), more)).await;
    let mut peer = partner.accept().await;
    for _ in 0..6 {
        sleep(SECOND / 4).await;
        peer.text("data").await;
    }
    assert_eq!(partner.connections(), 1);
    let last = Instant::now();
    // It sends as many pongs as are read, and answers every ping.
    let code = loop {
        match tokio::time::timeout(SECOND / 50, peer.next()).await {
            Err(_) => drop(peer.try_send(Message::Pong("".into())).await),
            Ok(Some(Message::Close(frame))) => break frame.map(|frame| u16::from(frame.code)),
            Ok(Some(_)) => {}
            Ok(None) => break None,
        }
    };
    assert_eq!(code, Some(1000));
    assert!(last.elapsed() >= SECOND / 2, "{:?}", last.elapsed());
    relay.upstream_failed("stale", 1.0).await;
    relay.logged(&["WARN", "no message for 1."]).await;
    tokio::select! {
        _ = is(&relay, "stale") => {}
        () = stay_mute(partner) => {}
    }
}

#[tokio::test]
async fn a_flood_of_pongs_is_no_message_either() {
    let mut partner = Partner::start().await;
    let relay = Relay::serve(Folder::new("").tenant("t", &partner.url(), "data-timeout = \"1s\"")).await;
    let mut peer = partner.arrival().await.request().await;
    peer.agree(&[]).await;
    let pongs = [0x8A, 0].repeat(32 << 10);
    tokio::select! {
        () = peer.flood(&pongs) => {}
        () = relay.upstream_failed("stale", 1.0) => {}
    }
    relay.upstream_failed("stale", 1.0).await;
}

#[tokio::test]
async fn it_is_off_by_default() {
    let mut partner = Partner::start().await;
    let relay = Relay::serve(Folder::new("").tenant("t", &partner.url(), "idle-timeout = \"2s\"")).await;
    let mut peer = partner.accept().await;
    let began = Instant::now();
    while began.elapsed() < 3 * SECOND {
        assert!(matches!(peer.next().await, Some(Message::Ping(_))));
    }
    assert_eq!(partner.connections(), 1);
    is(&relay, "live").await;
}

#[tokio::test]
async fn a_component_knows_better_when_to_expect_a_message() {
    let mut partner = Partner::start().await;
    let folder = Folder::new("").filtered("t", &partner.url(), guests::told(), "");
    let relay = Relay::serve(folder).await;
    let mut probe = Probe::new(&relay, &mut partner, "t").await;
    assert_eq!(probe.peer.next_text().await, "open 1 ConnectionReason::New");
    for (within, answer) in [
        ("999", "out-of-range"),
        ("86400001", "out-of-range"),
        ("1000", "ok"),
        // The market is closed.
        ("none", "ok"),
    ] {
        assert_eq!(probe.ask(&format!("expect {within}")).await, answer);
    }
    sleep(2 * SECOND).await;
    assert_eq!(partner.connections(), 1);
    assert_eq!(probe.ask("expect 1000").await, "ok");
    relay.upstream_failed("stale", 1.0).await;
    // It holds for the next connection, too.
    let mut peer = partner.accept().await;
    assert_eq!(peer.next_text().await, "open 2 ConnectionReason::New");
    relay.upstream_failed("stale", 2.0).await;
    // What is not expected any more is not overdue.
    probe.peer = partner.accept().await;
    assert_eq!(probe.peer.next_text().await, "open 3 ConnectionReason::New");
    assert_eq!(probe.ask("expect 60000").await, "ok");
    is(&relay, "live").await;
}

/// A process that was stopped has heard nothing, so the partner is not the one to blame.
async fn sleeps(more: &str, speaks: bool) {
    let mut partner = Partner::start().await;
    let relay = Relay::serve(Folder::new("").tenant("t", &partner.url(), more)).await;
    let mut client = relay.client("/t").await;
    let mut peer = partner.accept().await;
    peer.text("before").await;
    assert_eq!(client.text().await, "before");
    relay.signal(Signal::STOP);
    sleep(5 * SECOND / 2).await;
    if speaks {
        peer.text("meanwhile").await;
    }
    sleep(5 * SECOND / 2).await;
    relay.signal(Signal::CONT);
    if speaks {
        assert_eq!(client.text().await, "meanwhile");
    }
    let began = Instant::now();
    while began.elapsed() < SECOND {
        // Answers the pings.
        peer.text("after").await;
        assert!(matches!(peer.next().await, Some(Message::Ping(_))));
    }
    assert_eq!(relay.metric("edge_relay_upstream_failures_total", &[]).await, 0.0);
    assert_eq!(partner.connections(), 1);
}

#[tokio::test]
async fn a_machine_that_slept_reads_what_is_there_before_it_calls_the_partner_idle() {
    sleeps("idle-timeout = \"1s\"", true).await;
}

#[tokio::test]
async fn a_machine_that_slept_gives_a_silent_partner_its_time() {
    sleeps("idle-timeout = \"1s\"\ndata-timeout = \"2s\"", false).await;
}
