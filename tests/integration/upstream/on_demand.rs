//! Upstreams that are connected on demand, and filters that learn which channels have subscribers.

use std::{collections::BTreeSet, time::Duration};

use rustix::process::Signal;
use serde_json::json;
use support::{
    client::Client,
    guests,
    http::Http,
    partner::{Partner, Peer},
    relay::Relay,
    tenant::Folder,
    until,
};
use tokio::time::{Instant, sleep};

/// How long a channel has no subscriber before a filter is told. The relay has the same constant.
const QUIET: Duration = Duration::from_secs(2);
/// How often a test is repeated on a machine that is too busy to do something within a second or two.
const ROUNDS: usize = 20;

/// A relay of one tenant `t` without a filter, whose upstream is on demand with this linger.
async fn on_demand(partner: &Partner, linger: &str) -> Relay {
    let upstream = format!("connect = \"on-demand\"\nlinger = \"{linger}\"");
    Relay::serve(Folder::new("").tenant("t", &partner.url(), &upstream)).await
}

/// A relay whose filter tells its upstream about channels. `upstream` and `more` go into the manifest.
async fn following(partner: &Partner, upstream: &str, more: &str) -> Relay {
    let manifest = format!("{upstream}\n[components]\nfilter = \"filter.wasm\"\n{more}");
    let folder = Folder::new("").tenant("t", &partner.url(), &manifest);
    folder.copy(guests::demand(), "tenants/t/filter.wasm");
    Relay::serve(folder).await
}

/// Lets a client leave, and waits until the relay has only the others.
async fn leaves(relay: &Relay, client: Client, others: f64) {
    drop(client);
    relay.metric_is("edge_relay_clients", &[], others).await;
}

/// Waits until `/readyz` shows these states of the upstreams.
async fn shows(relay: &Relay, upstreams: &serde_json::Value) {
    until(format!("{upstreams} at /readyz"), async || match relay.states().await {
        states if states["t"]["upstreams"] == *upstreams => Ok(()),
        states => Err(states.to_string()),
    })
    .await;
}

/// Returns the next texts that the relay sends, sorted.
async fn texts(peer: &mut Peer, count: usize) -> Vec<String> {
    let mut texts = Vec::new();
    for _ in 0..count {
        texts.push(peer.next_text().await);
    }
    texts.sort();
    texts
}

/// Checks that the partner's messages reach the client.
async fn passes(peer: &mut Peer, client: &mut Client, text: &str) {
    peer.text(text).await;
    assert_eq!(client.text().await, text);
}

#[tokio::test]
async fn the_first_client_opens_it_and_does_not_wait() {
    let mut partner = Partner::start().await;
    let relay = on_demand(&partner, "1h").await;
    shows(&relay, &json!({ "feed": "resting" })).await;
    assert_eq!(relay.metric("edge_relay_upstream_connections_total", &[]).await, 0.0);

    let mut first = relay.client("/t").await;
    // The client is let in before the partner has answered.
    let arrival = partner.arrival().await;
    let mut second = relay.client("/t").await;
    shows(&relay, &json!({ "feed": "connecting" })).await;
    let mut peer = arrival.upgrade(None).await;
    passes(&mut peer, &mut first, "to all").await;
    assert_eq!(second.text().await, "to all");
    shows(&relay, &json!({ "feed": "live" })).await;
    assert_eq!(partner.connections(), 1);
    assert_eq!(relay.metric("edge_relay_upstream_failures_total", &[]).await, 0.0);
}

#[tokio::test]
async fn it_closes_in_peace_after_the_last_client_and_opens_with_the_next() {
    let mut partner = Partner::start().await;
    let relay = following(&partner, "connect = \"on-demand\"\nlinger = \"1s\"", "").await;
    let others = [relay.client("/t?channel=out").await, relay.client("/t?channel=out").await];
    let mut peer = partner.accept().await;
    assert_eq!(texts(&mut peer, 2).await, ["feed: active out", "open "]);
    let [one, other] = others;
    leaves(&relay, one, 1.0).await;
    let left = Instant::now();
    drop(other);
    assert_eq!(peer.ended().await, Some(1000));
    assert!(left.elapsed() >= Duration::from_secs(1), "{:?}", left.elapsed());
    relay.metric_is("edge_relay_upstream_rests_total", &[("tenant", "t"), ("upstream", "feed")], 1.0).await;
    shows(&relay, &json!({ "feed": "resting" })).await;
    relay.logged(&["INFO", "tenant.name=t", "upstream rests"]).await;
    assert_eq!(relay.metric("edge_relay_upstream_state", &[("state", "live")]).await, 0.0);

    let mut client = relay.client("/t?channel=out").await;
    let mut peer = partner.accept().await;
    // The filter's on-close was told the reason.
    assert_eq!(peer.next_text().await, "open no client needs it");
    assert_eq!(peer.next_text().await, "feed: active out");
    passes(&mut peer, &mut client, "again").await;
    assert_eq!(relay.metric("edge_relay_upstream_failures_total", &[]).await, 0.0);
}

#[tokio::test]
async fn another_client_in_time_keeps_it() {
    const LINGER: Duration = Duration::from_secs(2);
    for _ in 0..ROUNDS {
        let mut partner = Partner::start().await;
        let relay = on_demand(&partner, "2s").await;
        let client = relay.client("/t").await;
        let mut peer = partner.accept().await;
        let left = Instant::now();
        leaves(&relay, client, 0.0).await;
        let mut client = relay.client("/t").await;
        if left.elapsed() >= LINGER {
            continue;
        }
        sleep(LINGER * 2).await;
        peer.was_sent_nothing().await;
        passes(&mut peer, &mut client, "still").await;
        assert_eq!(partner.connections(), 1);
        assert_eq!(relay.metric("edge_relay_upstream_rests_total", &[]).await, 0.0);
        return;
    }
    panic!("in {ROUNDS} rounds no client came back within {LINGER:?}");
}

#[tokio::test]
async fn lost_while_nobody_needs_it_it_waits_for_the_next_client() {
    let mut partner = Partner::start().await;
    let relay = on_demand(&partner, "1h").await;
    let client = relay.client("/t").await;
    let peer = partner.accept().await;
    leaves(&relay, client, 0.0).await;
    peer.reset();
    relay.upstream_failed("reset", 1.0).await;
    shows(&relay, &json!({ "feed": "resting" })).await;
    // Three times the longest pause after a first failure.
    sleep(Duration::from_millis(1_500)).await;
    assert_eq!(partner.connections(), 1);

    let mut client = relay.client("/t").await;
    let mut peer = partner.accept().await;
    passes(&mut peer, &mut client, "again").await;
    // The upstream was lost, which does not count as resting.
    assert_eq!(relay.metric("edge_relay_upstream_rests_total", &[]).await, 0.0);
}

#[tokio::test]
async fn while_a_client_needs_it_it_is_tried_again_and_again() {
    let mut partner = Partner::start().await;
    partner.stop().await;
    let relay = on_demand(&partner, "1h").await;
    shows(&relay, &json!({ "feed": "resting" })).await;
    let mut client = relay.client("/t").await;
    relay.upstream_failed("refused", 2.0).await;
    shows(&relay, &json!({ "feed": "connecting" })).await;
    partner.resume().await;
    drop(partner.accept().await);
    let mut peer = partner.accept().await;
    passes(&mut peer, &mut client, "at last").await;
}

#[tokio::test]
async fn each_upstream_that_is_on_demand_opens_and_the_others_are_there() {
    let (mut always, mut one, mut other) = (Partner::start().await, Partner::start().await, Partner::start().await);
    let upstream = |name, partner: &Partner| {
        format!("[[upstream]]\nname = \"{name}\"\nurl = \"{}\"\nconnect = \"on-demand\"\n", partner.url())
    };
    let more = format!("connect = \"always\"\n{}{}", upstream("one", &one), upstream("other", &other));
    let relay = Relay::serve(Folder::new("").tenant("t", &always.url(), &more)).await;
    let mut there = always.accept().await;
    shows(&relay, &json!({ "feed": "live", "one": "resting", "other": "resting" })).await;
    let mut client = relay.client("/t").await;
    let (mut one, mut other) = (one.accept().await, other.accept().await);
    for peer in [&mut there, &mut one, &mut other] {
        passes(peer, &mut client, "from each").await;
    }
    shows(&relay, &json!({ "feed": "live", "one": "live", "other": "live" })).await;
}

#[tokio::test]
async fn at_the_relays_end_one_that_rests_holds_nobody_up() {
    let partner = Partner::start().await;
    let mut relay = on_demand(&partner, "1s").await;
    shows(&relay, &json!({ "feed": "resting" })).await;
    relay.signal(Signal::TERM);
    assert_eq!(relay.end().await.code(), Some(0));
    assert_eq!(partner.connections(), 0);
}

#[tokio::test]
async fn a_filter_is_told_what_someone_reads() {
    let mut partner = Partner::start().await;
    let relay = following(&partner, "", "").await;
    let mut peer = partner.accept().await;
    assert_eq!(peer.next_text().await, "open ");
    peer.was_sent_nothing().await;
    let first = relay.client("/t?channel=a").await;
    assert_eq!(peer.next_text().await, "feed: active a");
    let second = relay.client("/t?channel=a").await;
    peer.was_sent_nothing().await;
    let _both = relay.client("/t?channel=b&channel=c").await;
    assert_eq!(texts(&mut peer, 2).await, ["feed: active b", "feed: active c"]);

    leaves(&relay, first, 2.0).await;
    let left = Instant::now();
    leaves(&relay, second, 1.0).await;
    assert_eq!(peer.next_text().await, "feed: idle a");
    assert!(left.elapsed() >= QUIET, "{:?}", left.elapsed());
    let _third = relay.client("/t?channel=a").await;
    assert_eq!(peer.next_text().await, "feed: active a");
    peer.was_sent_nothing().await;
}

#[tokio::test]
async fn a_client_that_comes_back_in_time_is_no_news_to_it() {
    for _ in 0..ROUNDS {
        let mut partner = Partner::start().await;
        let relay = following(&partner, "", "").await;
        let mut client = relay.client("/t?channel=a").await;
        let mut peer = partner.accept().await;
        assert_eq!(texts(&mut peer, 2).await, ["feed: active a", "open "]);
        let mut longest = Duration::ZERO;
        for _ in 0..3 {
            let left = Instant::now();
            leaves(&relay, client, 0.0).await;
            client = relay.client("/t?channel=a").await;
            longest = longest.max(left.elapsed());
        }
        if longest >= QUIET {
            continue;
        }
        sleep(QUIET * 2).await;
        peer.was_sent_nothing().await;
        return;
    }
    panic!("in {ROUNDS} rounds no client came back within {QUIET:?}");
}

/// Reads the history of channel `out` with this query.
async fn history(relay: &Relay, query: &str) -> serde_json::Value {
    Http::connect(relay.clients).await.get(&format!("/t/channels/out{query}")).await.json()
}

#[tokio::test]
async fn what_was_missed_while_a_channel_was_idle_is_no_secret() {
    let mut partner = Partner::start().await;
    let relay = following(&partner, "", "").await;
    let mut client = relay.client("/t?channel=out").await;
    let mut peer = partner.accept().await;
    assert_eq!(texts(&mut peer, 2).await, ["feed: active out", "open "]);
    passes(&mut peer, &mut client, "1").await;
    let subscribed = history(&relay, "").await["epoch"].clone();
    drop(client);
    assert_eq!(peer.next_text().await, "feed: idle out");
    let idle = history(&relay, "").await["epoch"].clone();
    assert_ne!(idle, subscribed);
    // This message was on its way when the partner was told.
    peer.text("2").await;
    let read = until("the publication", async || match history(&relay, "?limit=1").await {
        page if page["publications"][0]["data"] == "2" => Ok(page),
        page => Err(page.to_string()),
    });
    assert_eq!(read.await["epoch"], idle);

    let mut client = relay.client("/t?channel=out").await;
    assert_eq!(peer.next_text().await, "feed: active out");
    passes(&mut peer, &mut client, "4").await;
    for (epoch, offset) in [(subscribed, 1), (idle, 2)] {
        let epoch = epoch.as_str().unwrap();
        assert_eq!(history(&relay, &format!("?since={epoch}:{offset}")).await["recovered"], false);
    }
}

#[tokio::test]
async fn a_new_connection_is_told_of_every_channel_that_is_active() {
    const CLIENTS: usize = 10;
    const EACH: usize = 64;
    let mut partner = Partner::start().await;
    let relay = following(&partner, "", "").await;
    let mut clients = Vec::new();
    let mut active = BTreeSet::new();
    for client in 0..CLIENTS {
        let names: Vec<_> = (0..EACH).map(|nth| format!("{client}-{nth}")).collect();
        clients.push(relay.client(&format!("/t?channel={}", names.join("&channel="))).await);
        active.extend(names.into_iter().map(|name| format!("feed: active {name}")));
    }
    let active: Vec<_> = active.into_iter().collect();
    for ended in ["", "closed by the partner with code 1000 \"\"", "closed by the partner with code 1000 \"\""] {
        let mut peer = partner.accept().await;
        assert_eq!(peer.next_text().await, format!("open {ended}"));
        // Each channel comes once. There are more than may wait for the connection at once.
        assert!(texts(&mut peer, active.len()).await == active);
        peer.was_sent_nothing().await;
        peer.close().await;
    }
}

#[tokio::test]
async fn frames_have_their_turn_while_many_channels_become_active() {
    const SLOW: usize = 63;
    let mut partner = Partner::start().await;
    let relay = following(&partner, "", "[limits]\nfilter-call = \"1m\"").await;
    let mut peer = partner.accept().await;
    assert_eq!(peer.next_text().await, "open ");
    // From now on the filter is told in the order in which channels become active. Those that it finds at the beginning
    // have no order.
    let _early = relay.client("/t?channel=early").await;
    assert_eq!(peer.next_text().await, "feed: active early");
    let names: Vec<_> = (0..SLOW).map(|nth| format!("slow-{nth}")).collect();
    let mut client = relay.client(&format!("/t?channel=out&channel={}", names.join("&channel="))).await;
    assert_eq!(peer.next_text().await, "feed: active out");
    // Each call for one of the others takes a third of a second.
    passes(&mut peer, &mut client, "between them").await;
    let calls = relay.metric("edge_relay_guest_calls_total", &[("role", "filter"), ("name", "feed")]).await;
    assert!(calls < SLOW as f64, "the message came after {calls} calls");
}

#[tokio::test]
async fn a_call_that_breaks_costs_its_channel_and_not_the_upstream() {
    const FAILURES: &str = "edge_relay_guest_failures_total";
    let mut partner = Partner::start().await;
    let relay = following(&partner, "", "[limits]\nfilter-call = \"2s\"").await;
    let mut client = relay.client("/t?channel=out").await;
    let mut peer = partner.accept().await;
    assert_eq!(texts(&mut peer, 2).await, ["feed: active out", "open "]);

    let _traps = relay.client("/t?channel=trap-1&channel=trap-2&channel=trap-3&channel=well").await;
    // The filter is told about it after the others, and after the pauses that they cost.
    assert_eq!(peer.next_text().await, "feed: active well");
    assert_eq!(relay.metric(FAILURES, &[("role", "filter"), ("reason", "trap")]).await, 3.0);
    assert_eq!(relay.metric("edge_relay_guest_lost_total", &[("role", "filter")]).await, 3.0);
    passes(&mut peer, &mut client, "after the traps").await;
    let _loop = relay.client("/t?channel=loop").await;
    relay.metric_is(FAILURES, &[("role", "filter"), ("reason", "deadline")], 1.0).await;
    passes(&mut peer, &mut client, "after a deadline").await;
    let _next = relay.client("/t?channel=next").await;
    // What fresh instances are told again is not news to this filter.
    assert_eq!(peer.next_text().await, "feed: active next");
    assert_eq!(partner.connections(), 1);

    // On the next connection all of it is told again.
    peer.reset();
    let mut peer = partner.accept().await;
    let mut told = texts(&mut peer, 4).await;
    assert!(told.pop().unwrap().starts_with("open "));
    assert_eq!(told, ["feed: active next", "feed: active out", "feed: active well"]);
    relay.metric_is(FAILURES, &[("role", "filter"), ("reason", "trap")], 6.0).await;
    relay.metric_is(FAILURES, &[("role", "filter"), ("reason", "deadline")], 2.0).await;
    relay.metric_is("edge_relay_guest_lost_total", &[("role", "filter")], 8.0).await;
    // This comes after the last pause.
    let _last = relay.client("/t?channel=last").await;
    assert_eq!(peer.next_text().await, "feed: active last");
    passes(&mut peer, &mut client, "and on").await;
    assert_eq!(partner.connections(), 2);
}

#[tokio::test]
async fn many_frames_of_one_call_go_out_in_order_and_one_too_large_does_not() {
    let mut partner = Partner::start().await;
    let relay = following(&partner, "", "").await;
    let mut peer = partner.accept().await;
    assert_eq!(peer.next_text().await, "open ");
    let _many = relay.client("/t?channel=many").await;
    for nth in 0..1_000 {
        assert_eq!(peer.next_text().await, format!("many {nth}"));
    }
    let _huge = relay.client("/t?channel=huge").await;
    assert_eq!(peer.next_text().await, "beside it");
    relay.metric_is("edge_relay_guest_failures_total", &[("reason", "frame_size")], 1.0).await;
    relay.logged(&["WARN", "tenant.name=t", "too large"]).await;
    peer.was_sent_nothing().await;
}
