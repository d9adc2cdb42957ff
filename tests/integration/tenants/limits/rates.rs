//! What a tenant and its clients may send and be sent per second, all together. Over it nothing is lost: the other side
//! waits.

use std::time::{Duration, Instant};

use support::{guests, http::Http, partner::Partner, relay::Relay, tenant::Folder, until};
use tokio_tungstenite::tungstenite::Message;

use crate::tenants::limits::{Manifest, ask, handled};

/// For how long a limit has held tenant `t` back.
async fn held_back(relay: &Relay, limit: &str) -> f64 {
    relay.metric("edge_relay_tenant_throttled_seconds_total", &[("tenant", "t"), ("what", limit)]).await
}

/// A relay whose tenant `t` has these limits, and its partner's end of the connection.
async fn fed(limits: &str) -> (Relay, support::partner::Peer) {
    let mut partner = Partner::start().await;
    let relay = Relay::serve(Folder::new("").tenant("t", &partner.url(), &format!("[limits]\n{limits}"))).await;
    let peer = partner.accept().await;
    (relay, peer)
}

#[tokio::test]
async fn messages_of_all_clients_together_wait_for_their_time_and_none_is_lost() {
    const EACH: usize = 300;
    let relay = handled("messages-per-second = 200\nclient-queue = 1000").await;
    let began = Instant::now();
    let mut clients = Vec::new();
    for _ in 0..3 {
        let mut client = relay.client("/t").await;
        for nth in 0..EACH {
            client.send(Message::text(format!("reply {nth}"))).await;
        }
        clients.push(client);
    }
    for client in &mut clients {
        for nth in 0..EACH {
            assert_eq!(client.text().await, nth.to_string());
        }
    }
    // A second's messages come at once, and what is read in one turn.
    let took = began.elapsed();
    assert!(took > Duration::from_secs(2), "{took:?}");
    assert!(held_back(&relay, "messages-per-second").await > 2.0);
    assert_eq!(held_back(&relay, "bytes-in-per-second").await, 0.0);
    relay.logged(&["WARN", "the tenant is held back by a limit", "limit=messages-per-second", "most=200"]).await;
}

#[tokio::test]
async fn pings_and_fragments_count_as_control_frames_without_a_handler_too() {
    let (relay, mut peer) = fed("control-frames-per-second = 100").await;
    let mut client = relay.client("/t").await;
    for _ in 0..500 {
        client.send(Message::Ping("".into())).await;
    }
    // What the partner sends is no control frame, and does not wait.
    peer.text("still there").await;
    assert_eq!(client.text().await, "still there");
    relay
        .metric_reaches(
            "edge_relay_tenant_throttled_seconds_total",
            &[("tenant", "t"), ("what", "control-frames-per-second")],
            1.0,
        )
        .await;
}

#[tokio::test]
async fn pings_of_a_partner_count_too() {
    let (relay, mut peer) = fed("control-frames-per-second = 100").await;
    for _ in 0..500 {
        peer.send(Message::Ping("".into())).await;
    }
    let labels = [("tenant", "t"), ("what", "control-frames-per-second")];
    relay.metric_reaches("edge_relay_tenant_throttled_seconds_total", &labels, 1.0).await;
    peer.text("and what comes behind").await;
    assert_eq!(relay.metric("edge_relay_upstream_failures_total", &[]).await, 0.0);
}

#[tokio::test]
async fn bytes_that_partners_send_wait_and_a_changed_limit_holds_at_once() {
    // More than a second has, and what two reads may bring beyond that.
    const MESSAGES: usize = 160;
    let mut partner = Partner::start().await;
    let folder = Folder::new("").tenant("t", &partner.url(), "[limits]\nbytes-in-per-second = \"256KiB\"").tenant(
        "u",
        &partner.url(),
        "",
    );
    let mut manifest = Manifest::of(&folder, "t");
    let relay = Relay::serve(folder).await;
    let (one, two) = (partner.accept().await, partner.accept().await);
    let mut client = relay.client("/t").await;
    let mut other = relay.client("/u").await;
    let began = Instant::now();
    for mut peer in [one, two] {
        tokio::spawn(async move {
            for nth in 0..2 * MESSAGES {
                let text = format!("{nth:08}{}", "x".repeat(8 << 10));
                if !peer.try_send(Message::text(text)).await {
                    break;
                }
            }
            peer.next().await;
        });
    }
    // The neighbour has all of its messages long before.
    for nth in 0..2 * MESSAGES {
        assert_eq!(other.text().await[..8], format!("{nth:08}"));
    }
    for nth in 0..MESSAGES {
        assert_eq!(client.text().await[..8], format!("{nth:08}"));
    }
    let took = began.elapsed();
    assert!(took > Duration::from_secs(1), "{took:?}");
    assert!(held_back(&relay, "bytes-in-per-second").await > 1.0);
    manifest.change(&relay, "\"256KiB\"", "\"64MiB\"", "applied", 1.0).await;
    let changed = Instant::now();
    for nth in MESSAGES..2 * MESSAGES {
        assert_eq!(client.text().await[..8], format!("{nth:08}"));
    }
    // At the old rate it would take five seconds, after the rest of a pause.
    let took = changed.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?}");
}

#[tokio::test]
async fn bytes_that_clients_are_sent_wait_and_the_clients_are_not_taken_for_stalled() {
    const MESSAGES: usize = 50;
    let mut partner = Partner::start().await;
    let limits = "[limits]\nbytes-out-per-second = \"256KiB\"";
    let relay = Relay::serve(Folder::new("stall-timeout = \"1s\"").tenant("t", &partner.url(), limits)).await;
    let mut peer = partner.accept().await;
    let mut clients = [relay.client("/t").await, relay.client("/t").await, relay.client("/t").await];
    let began = Instant::now();
    peer.burst((0..MESSAGES).map(|nth| Message::text(format!("{nth:08}{}", "x".repeat(10 << 10))))).await;
    for client in &mut clients {
        for nth in 0..MESSAGES {
            assert_eq!(client.text().await[..8], format!("{nth:08}"));
        }
    }
    let took = began.elapsed();
    assert!(took > Duration::from_secs(3), "1.5 MiB at 256 KiB a second, {took:?}");
    assert!(held_back(&relay, "bytes-out-per-second").await > 3.0);
    assert_eq!(relay.metric("edge_relay_clients_closed_total", &[("tenant", "t")]).await, 0.0);
}

#[tokio::test]
async fn bodies_of_requests_and_answers_count() {
    const BODY: usize = 200 << 10;
    let partner = Partner::start().await;
    for (limit, other) in
        [("bytes-in-per-second", "bytes-out-per-second"), ("bytes-out-per-second", "bytes-in-per-second")]
    {
        let limits = format!("[limits]\n{limit} = \"100KiB\"");
        let relay = Relay::serve(Folder::new("").tenant("u", &partner.url(), "").api("t", &limits)).await;
        let began = Instant::now();
        let body = "x".repeat(BODY);
        let mut http: Http = relay.http().await;
        let answer = http.post("/t/echo", &body).await;
        assert_eq!((answer.status(), answer.body.len()), (200, BODY), "{limit}");
        let took = began.elapsed();
        assert!(took > Duration::from_millis(800), "{limit}: {took:?}");
        assert!(held_back(&relay, limit).await > 0.8, "{limit}");
        assert_eq!(held_back(&relay, other).await, 0.0);
    }
}

#[tokio::test]
async fn the_operator_sees_who_uses_most_and_caps_what_a_tenant_may_ask_for() {
    let partner = Partner::start().await;
    let folder = Folder::new("").tenant("quiet", &partner.url(), "").handled("t", guests::handler(), "");
    let folder = (0..5).fold(folder, |folder, nth| folder.handled(&format!("other{nth}"), guests::handler(), ""));
    let relay = Relay::serve(folder).await;
    let mut client = relay.client("/t").await;
    let text = "x".repeat(10 << 10);
    let top = until("the tenant at the top", async || {
        for _ in 0..20 {
            assert_eq!(ask(&mut client, &format!("reply {text}")).await, text);
        }
        let (status, ready) = relay.get("/readyz?verbose").await;
        let ready: serde_json::Value = serde_json::from_str(&ready).unwrap();
        let top = ready["top"].clone();
        let first = |what: &str| top[what][0]["tenant"] == "t" && top[what][0]["uses"].as_f64() > Some(0.0);
        if status == 200 && ["processors", "memory_bytes", "bytes_per_second"].into_iter().all(first) {
            Ok(top)
        } else {
            Err(top.to_string())
        }
    })
    .await;
    assert_eq!(top["memory_bytes"].as_array().map(Vec::len), Some(5), "of six tenants whose code takes memory: {top}");
    assert!(relay.ready().await.get("top").is_none(), "only if it is asked for");
    for direction in ["in", "out"] {
        let labels = [("tenant", "t"), ("direction", direction)];
        assert!(relay.metric("edge_relay_tenant_bytes_total", &labels).await > 100_000.0);
    }
    assert!(relay.metric("edge_relay_tenant_processor_seconds_total", &[("tenant", "t")]).await > 0.0);
}
