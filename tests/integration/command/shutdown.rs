//! Shutdown: clients are told, calls are finished, and a second signal ends the program at once.

use std::time::Duration;

use rustix::process::Signal;
use support::{
    guests,
    partner::Partner,
    process::{Process, command},
    raw::{CLOSE, FIN, Raw},
    relay::Relay,
    tenant::Folder,
    until,
};
use tokio::{net::TcpStream, time::Instant};
use tokio_tungstenite::tungstenite::{Message, protocol::frame::coding::CloseCode};

/// A relay whose tenant `t` has the hostile filter with these settings, and limits.
async fn hostile(partner: &Partner, host_limits: &str, settings: &str, limits: &str) -> Relay {
    let more = format!("[settings]\n{settings}\n[limits]\n{limits}");
    Relay::serve(Folder::new(host_limits).filtered("t", &partner.url(), guests::hostile(), &more)).await
}

#[tokio::test]
async fn a_signal_closes_every_client_with_1001_and_the_exit_code_is_0() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut partner = Partner::start().await;
        let mut relay = Relay::serve(Folder::new("").tenant("t", &partner.url(), "")).await;
        let mut peer = partner.accept().await;
        let mut clients = Vec::new();
        for _ in 0..10 {
            clients.push(relay.client("/t").await);
        }
        relay.signal(signal);
        for client in clients {
            let (messages, code) = client.rest().await;
            assert_eq!((messages, code), (vec![], Some(CloseCode::Away)), "{signal:?}");
        }
        assert_eq!(peer.ended().await, Some(1001), "the partner is told too");
        assert_eq!(relay.end().await.code(), Some(0), "{signal:?}");
        assert_eq!(partner.connections(), 1);
        TcpStream::connect(relay.clients).await.unwrap_err();
    }
}

#[tokio::test]
async fn handshakes_under_way_are_cut_and_clients_still_told() {
    let partner = Partner::start().await;
    // Longer than the test, so that nothing here ends by itself.
    let limits = "handshake-timeout = \"5m\"\nshutdown-timeout = \"5m\"";
    let mut relay = Relay::serve(Folder::new(limits).tenant("t", &partner.url(), "")).await;
    let mut half = Vec::new();
    for _ in 0..200 {
        let mut raw = Raw::tcp(relay.clients).await;
        raw.send(b"GET /t HTTP/1.1\r\nHost: ").await;
        half.push(raw);
    }
    // Connections are accepted in order: when these clients are in, the ones before them are too.
    let mut clients = Vec::new();
    for _ in 0..5 {
        clients.push(relay.client("/t").await);
    }
    relay.signal(Signal::TERM);
    for client in clients {
        assert_eq!(client.rest().await, (vec![], Some(CloseCode::Away)));
    }
    assert_eq!(relay.end().await.code(), Some(0));
    for raw in &mut half {
        raw.ended().await;
    }
}

#[tokio::test]
async fn pass_ends_the_same_way() {
    let partner = Partner::start().await;
    let mut relay = Relay::pass(&partner.url(), &[]).await;
    let client = relay.client("/").await;
    relay.signal(Signal::TERM);
    assert_eq!(client.rest().await.1, Some(CloseCode::Away));
    assert_eq!(relay.end().await.code(), Some(0));
}

#[tokio::test]
async fn a_call_under_way_is_finished_and_what_it_returns_goes_out() {
    let mut partner = Partner::start().await;
    let mut relay = hostile(&partner, "", "mode = \"slow\"\nbusy-ms = \"700\"", "").await;
    let client = relay.client("/t?channel=out").await;
    let mut peer = partner.accept().await;
    peer.text("in the last moment").await;
    relay.metric_reaches("edge_relay_upstream_messages_total", &[], 1.0).await;
    relay.signal(Signal::TERM);
    let (messages, code) = client.rest().await;
    assert_eq!(messages.first(), Some(&Message::text("in the last moment")));
    assert_eq!(code, Some(CloseCode::Away));
    assert_eq!(relay.end().await.code(), Some(0));
}

#[tokio::test]
async fn a_call_that_does_not_end_is_cut_at_the_deadline() {
    let mut partner = Partner::start().await;
    let mut relay = hostile(&partner, "shutdown-timeout = \"500ms\"", "mode = \"loop\"", "filter-call = \"1m\"").await;
    let client = relay.client("/t?channel=out").await;
    let mut peer = partner.accept().await;
    peer.text("spin").await;
    relay.metric_reaches("edge_relay_upstream_messages_total", &[], 1.0).await;
    relay.signal(Signal::TERM);
    // Several times the deadline, and far less than the call may take.
    let began = Instant::now();
    assert_eq!(client.rest().await.1, Some(CloseCode::Away));
    assert_eq!(relay.end().await.code(), Some(0));
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_client_that_does_not_answer_holds_nobody_up() {
    let partner = Partner::start().await;
    let mut relay = Relay::serve(Folder::new("shutdown-timeout = \"500ms\"").tenant("t", &partner.url(), "")).await;
    let mut silent = Raw::connect(relay.clients, "/t").await;
    let _half = Raw::tcp(relay.clients).await;
    relay.signal(Signal::TERM);
    let close = silent.frame().await.unwrap();
    assert_eq!((close.first, close.close_code()), (FIN | CLOSE, 1001));
    assert_eq!(relay.end().await.code(), Some(0));
}

#[tokio::test]
async fn a_second_signal_ends_it_at_once() {
    let mut partner = Partner::start().await;
    let mut relay = hostile(&partner, "shutdown-timeout = \"10m\"", "mode = \"loop\"", "filter-call = \"1m\"").await;
    let mut peer = partner.accept().await;
    peer.text("spin").await;
    relay.metric_reaches("edge_relay_upstream_messages_total", &[], 1.0).await;
    relay.signal(Signal::TERM);
    // The relay accepts no more connections, and waits for the call.
    let clients = relay.clients;
    until("clients refused", async || match TcpStream::connect(clients).await {
        Ok(_) => Err("accepted".to_owned()),
        Err(_) => Ok(()),
    })
    .await;
    assert_eq!(relay.ended(), None);
    let began = Instant::now();
    relay.signal(Signal::TERM);
    let status = relay.end().await;
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert_eq!(status.code(), Some(128 + 15));
}

/// Whether the relay says that it is ready, and alive.
async fn health(relay: &Relay) -> (u16, u16) {
    (relay.get("/readyz").await.0, relay.get("/healthz").await.0)
}

#[tokio::test]
async fn balancers_have_notice_before_anything_ends() {
    let mut partner = Partner::start().await;
    let folder = Folder::new("shutdown-notice = \"10m\"").tenant("t", &partner.url(), "").api("a", "");
    let mut relay = Relay::serve(folder).await;
    let mut peer = partner.accept().await;
    let mut before = relay.client("/t").await;
    assert_eq!(health(&relay).await, (200, 200));
    relay.signal(Signal::TERM);
    until("a relay that is not ready", async || match relay.get("/readyz").await {
        (503, body) if body.contains("leaving") => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    assert_eq!(health(&relay).await, (503, 200));
    // All else goes on.
    let mut after = relay.client("/t").await;
    peer.text("news").await;
    for client in [&mut before, &mut after] {
        assert_eq!(client.text().await, "news");
    }
    assert_eq!(relay.api_get("/a/count").await.0, 200);
    relay.signal(Signal::TERM);
    for client in [before, after] {
        assert_eq!(client.rest().await.1, Some(CloseCode::Away));
    }
    assert_eq!(relay.end().await.code(), Some(0));
}

#[tokio::test]
async fn a_notice_ends_by_itself() {
    let partner = Partner::start().await;
    let mut relay = Relay::serve(Folder::new("shutdown-notice = \"300ms\"").tenant("t", &partner.url(), "")).await;
    let began = Instant::now();
    relay.signal(Signal::TERM);
    assert_eq!(relay.end().await.code(), Some(0));
    assert!(began.elapsed() >= Duration::from_millis(300), "{:?}", began.elapsed());
}

#[tokio::test]
async fn who_interrupts_it_or_asks_twice_does_not_wait_for_the_notice() {
    for signals in [&[Signal::INT][..], &[Signal::TERM, Signal::TERM], &[Signal::TERM, Signal::INT]] {
        let partner = Partner::start().await;
        let mut relay = Relay::serve(Folder::new("shutdown-notice = \"10m\"").tenant("t", &partner.url(), "")).await;
        let client = relay.client("/t").await;
        for (nth, signal) in signals.iter().enumerate() {
            relay.signal(*signal);
            if nth + 1 < signals.len() {
                relay.logged(&["INFO", "not ready any more"]).await;
            }
        }
        assert_eq!(client.rest().await.1, Some(CloseCode::Away), "{signals:?}");
        assert_eq!(relay.end().await.code(), Some(0), "{signals:?}");
    }
}

/// Each part of the relay would take all the time that it may have.
#[tokio::test]
async fn everything_ends_within_one_deadline() {
    const TIMEOUT: Duration = Duration::from_secs(2);
    let mut partner = Partner::start().await;
    let more = "[settings]\nmode = \"loop\"\n[limits]\nfilter-call = \"1m\"";
    let folder = Folder::new("shutdown-timeout = \"2s\"").filtered("t", &partner.url(), guests::hostile(), more);
    let folder = folder.api("a", "[limits]\napi-call = \"1h\"");
    let mut relay = Relay::serve(folder).await;
    let mut peer = partner.accept().await;
    let _silent = Raw::connect(relay.clients, "/t").await;
    peer.text("spin").await;
    let mut http = relay.http().await;
    http.request("GET", "/a/wait").await;
    relay.metric_reaches("edge_relay_upstream_messages_total", &[], 1.0).await;
    let began = Instant::now();
    relay.signal(Signal::TERM);
    assert_eq!(relay.end().await.code(), Some(0));
    // With room for a busy machine, and far from the four deadlines that it would be one after another.
    assert!(began.elapsed() < TIMEOUT * 2, "{:?}", began.elapsed());
}

#[tokio::test]
async fn clients_are_not_all_sent_away_at_once() {
    const CLIENTS: usize = 400;
    let partner = Partner::start().await;
    let relay = Relay::serve(Folder::new("").tenant("t", &partner.url(), "")).await;
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..CLIENTS {
        let mut client = Raw::connect(relay.clients, "/t").await;
        clients.spawn(async move {
            assert_eq!(client.frame().await.unwrap().close_code(), 1001);
            Instant::now()
        });
    }
    relay.metric_is("edge_relay_clients", &[], CLIENTS as f64).await;
    let signalled = Instant::now();
    relay.signal(Signal::TERM);
    let last = clients.join_all().await.into_iter().max().unwrap();
    // A millisecond for each, but for those that one shard has more than others.
    let least = Duration::from_millis(CLIENTS as u64 / 2);
    assert!(last - signalled >= least, "{:?}", last - signalled);
}

#[tokio::test]
async fn a_signal_before_it_serves_is_not_lost() {
    let partner = Partner::start().await;
    let folder = Folder::new("").tenant("t", &partner.url(), "");
    let (config, roots) = (folder.config(), folder.path("roots.pem"));
    let made = std::process::Command::new("mkfifo").arg(&roots).status().unwrap();
    assert!(made.success());
    // It waits for the roots of TLS.
    let mut command = command(&["serve", "--config", config.to_str().unwrap()]);
    command.env("SSL_CERT_FILE", roots);
    let mut process = Process::spawn(command);
    until("a process that watches signals", async || {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", process.id())).unwrap();
        let name = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        let names: Vec<_> = tasks.filter_map(Result::ok).map(name).collect();
        if names.iter().any(|name| name.trim() == "signals") { Ok(()) } else { Err(format!("{names:?}")) }
    })
    .await;
    process.signal(Signal::TERM);
    assert_eq!(process.end().await.code(), Some(0), "{}", process.log());
}
