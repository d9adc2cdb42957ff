//! Snapshots, the latest publication of every key: for new clients, and for those that could not keep up.

use std::collections::HashMap;

use serde_json::Value;
use support::{
    guests,
    http::Http,
    partner::Partner,
    probe::Probe,
    raw::{FIN, Raw, TEXT},
    relay::Relay,
    tenant::Folder,
};

/// A relay whose filter publishes what the partner says.
async fn serve(channels: &str) -> (Relay, Partner, Probe) {
    let mut partner = Partner::start().await;
    let relay = Relay::serve(Folder::new("").filtered("t", &partner.url(), guests::probe(), channels)).await;
    let probe = Probe::new(&relay, &mut partner, "t").await;
    (relay, partner, probe)
}

async fn snapshot(relay: &Relay) -> Vec<(String, String)> {
    let page: Value = Http::connect(relay.clients).await.get("/t/channels/c/snapshot").await.json();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let publications = page["publications"].as_array().unwrap();
    publications.iter().map(|publication| (text(&publication["key"]), text(&publication["data"]))).collect()
}

async fn ok(probe: &mut Probe, command: &str) {
    assert_eq!(probe.ask(command).await, "Ok(())", "{command}");
}

#[tokio::test]
async fn a_new_client_gets_the_latest_of_every_key_and_then_what_follows() {
    let (relay, mut partner, mut probe) = serve("").await;
    for command in [
        "publish-key c a 1",
        "publish-key c b 2",
        "publish c unkeyed",
        "publish-key c a 3",
        "publish-key c d 4",
        "remove c b",
    ] {
        ok(&mut probe, command).await;
    }
    assert_eq!(snapshot(&relay).await, [("a".into(), "3".into()), ("d".into(), "4".into())]);
    let page = Http::connect(relay.clients).await.get("/t/channels/c/snapshot?limit=1").await.json();
    assert_eq!((&page["publications"][0]["data"], page["publications"].as_array().unwrap().len()), (&"3".into(), 1));
    let next = format!("/t/channels/c/snapshot?after={}", page["publications"][0]["offset"]);
    assert_eq!(Http::connect(relay.clients).await.get(&next).await.json()["publications"][0]["data"], "4");
    let mut client = relay.client("/t?channel=c").await;
    assert_eq!((client.text().await, client.text().await), ("3".into(), "4".into()));
    client.has_no_more().await;
    ok(&mut probe, "publish-key c b 5").await;
    ok(&mut probe, "remove c a").await;
    assert_eq!((client.text().await, client.text().await), ("5".into(), "a is gone".into()));
    assert_eq!(snapshot(&relay).await, [("d".into(), "4".into()), ("b".into(), "5".into())]);
    // What another connection brings need not follow from what this one brought.
    probe.peer.reset();
    let _probe = Probe::new(&relay, &mut partner, "t").await;
    relay.metric_reaches("edge_relay_epochs_total", &[], 1.0).await;
    assert_eq!(snapshot(&relay).await, []);
    relay.client("/t?channel=c").await.has_no_more().await;
}

#[tokio::test]
async fn the_snapshot_and_what_follows_are_without_a_gap_whenever_a_client_comes() {
    const KEYS: usize = 20;
    let (relay, _partner, mut probe) = serve("").await;
    let mut clients = Vec::new();
    for round in 0..60 {
        ok(&mut probe, &format!("rounds c {} {} {KEYS} 30", 2 * round, 2 * round + 2)).await;
        // The client connects while the next round is published.
        probe.peer.text(format!("rounds c {} {} {KEYS} 30", 2 * round + 1, 2 * round + 2)).await;
        clients.push(relay.client("/t?channel=c").await);
        assert_eq!(probe.answer().await, "Ok(())");
    }
    ok(&mut probe, "publish c end").await;
    for mut client in clients {
        let mut latest: HashMap<String, usize> = HashMap::new();
        loop {
            let text = client.text().await;
            let Some((key, round)) = text.trim_end().split_once(' ') else { break };
            let round: usize = round.parse().unwrap();
            let before = latest.insert(key.to_owned(), round);
            assert!(before.is_none_or(|before| before <= round), "{key} went back from {before:?} to {round}");
        }
        assert_eq!(latest.len(), KEYS);
        assert!(latest.values().all(|round| *round == 119), "{latest:?}");
    }
}

/// Lets a client fall behind by more than its log and the sockets hold. Returns it with the number of the last round.
async fn left_behind(relay: &Relay, probe: &mut Probe, policy: &str) -> (Raw, usize) {
    let stalled = Raw::narrow(relay.clients, "/t?channel=c").await;
    let label = [("tenant", "t"), ("reason", policy)];
    let mut round = 0;
    while relay.metric("edge_relay_clients_lagged_total", &label).await < 1.0 {
        ok(probe, &format!("rounds c {round} {} 100 1000", round + 5)).await;
        round += 5;
        assert!(round < 2000, "{round} rounds of 100 kB, and the client is not behind");
    }
    (stalled, round - 1)
}

#[tokio::test]
async fn a_client_that_falls_behind_gets_what_changed_and_then_what_follows() {
    let (relay, _partner, mut probe) = serve("[channels.c]\nlog = \"256KiB\"\n[channels.answers]").await;
    let mut reads = relay.client("/t?channel=answers").await;
    ok(&mut probe, "publish-key c never-again 7").await;
    ok(&mut probe, "publish-key c removed 7").await;
    let (mut stalled, last) = left_behind(&relay, &mut probe, "conflate").await;
    ok(&mut probe, "remove c removed").await;
    ok(&mut probe, &format!("rounds c {} {} 3 1000", last + 1, last + 2)).await;
    ok(&mut probe, "publish-key c end end").await;
    let (mut latest, mut frames) = (HashMap::new(), 0);
    loop {
        // A cut frame would end the loop here.
        let frame = stalled.frame_but_pings().await.expect("the end of the stream before its last publication");
        assert_eq!(frame.first, FIN | TEXT);
        frames += 1;
        let text = String::from_utf8(frame.payload).unwrap();
        match text.trim_end() {
            "end" => break,
            "removed is gone" => drop(latest.remove("7b")),
            "7" if latest.contains_key("7a") => drop(latest.insert("7b".to_owned(), 7)),
            "7" => drop(latest.insert("7a".to_owned(), 7)),
            text => {
                let (key, round) = text.split_once(' ').unwrap();
                let round: usize = round.parse().unwrap();
                let before = latest.insert(key.to_owned(), round);
                assert!(before.is_none_or(|before| before < round), "{key} went from {before:?} to {round}");
            }
        }
    }
    assert!(frames < last * 100, "{frames} frames for {last} rounds: no publication was left out");
    assert!(!latest.contains_key("7b"), "the client did not learn of a removal");
    let expected = |key: usize| if key < 3 { last + 1 } else { last };
    for key in 0..100 {
        assert_eq!(latest.get(&format!("k{key}")), Some(&expected(key)), "k{key}");
    }
    assert_eq!(relay.metric("edge_relay_clients_closed_total", &[]).await, 0.0);
    reads.settle().await;
}

#[tokio::test]
async fn a_client_that_falls_behind_skips_to_the_newest() {
    let (relay, _partner, mut probe) =
        serve("[channels.c]\nlog = \"256KiB\"\nslow = \"skip\"\n[channels.answers]").await;
    let (mut stalled, last) = left_behind(&relay, &mut probe, "skip").await;
    let mut rounds = Vec::new();
    // The client has skipped, though not to the end: more comes when it reads.
    loop {
        let frame = stalled.frame_but_pings().await.expect("the end of the stream before its last publication");
        let text = String::from_utf8(frame.payload).unwrap();
        let Some((_, round)) = text.trim_end().split_once(' ') else { break };
        rounds.push(round.parse::<usize>().unwrap());
        if rounds.len() == 100 {
            ok(&mut probe, "publish c end").await;
        }
    }
    assert!(rounds.is_sorted() && rounds.len() < last * 100, "{} of {}", rounds.len(), last * 100);
    assert_eq!(relay.metric("edge_relay_clients_closed_total", &[]).await, 0.0);
}

#[tokio::test]
async fn slow_clients_of_a_keyed_channel_are_closed_where_the_manifest_says_so() {
    let (relay, _partner, mut probe) =
        serve("[channels.c]\nlog = \"256KiB\"\nslow = \"close\"\n[channels.answers]").await;
    let mut stalled = Raw::narrow(relay.clients, "/t?channel=c").await;
    let mut round = 0;
    while relay.metric("edge_relay_clients_closed_total", &[("reason", "lagged")]).await < 1.0 {
        ok(&mut probe, &format!("rounds c {round} {} 100 1000", round + 5)).await;
        round += 5;
    }
    while let Some(frame) = stalled.frame_but_pings().await {
        if frame.first != FIN | TEXT {
            assert_eq!(frame.close_code(), 1013);
            return;
        }
    }
    panic!("no close frame");
}

#[tokio::test]
async fn a_channel_has_no_more_keys_than_it_may() {
    let (relay, _partner, mut probe) = serve("[channels.c]\nmax-keys = 2\n[channels.answers]").await;
    let mut client = relay.client("/t?channel=c").await;
    ok(&mut probe, "publish-key c a 1").await;
    ok(&mut probe, "publish-key c b 1").await;
    assert!(probe.ask("publish-key c d 1").await.contains("as many keys as it may"));
    ok(&mut probe, "publish-key c b 2").await;
    ok(&mut probe, "publish c unkeyed").await;
    ok(&mut probe, "remove c a").await;
    ok(&mut probe, "publish-key c d 2").await;
    for text in ["1", "1", "2", "unkeyed", "a is gone", "2"] {
        assert_eq!(client.text().await, text);
    }
    assert_eq!(snapshot(&relay).await, [("b".into(), "2".into()), ("d".into(), "2".into())]);
    assert_eq!(relay.metric("edge_relay_publications_refused_total", &[("reason", "keys")]).await, 1.0);
}

#[tokio::test]
async fn a_channel_may_give_no_snapshot() {
    let (relay, _partner, mut probe) = serve("[channels.c]\nsnapshot = false\n[channels.answers]").await;
    ok(&mut probe, "publish-key c a 1").await;
    let mut client = relay.client("/t?channel=c").await;
    ok(&mut probe, "publish-key c a 2").await;
    assert_eq!(client.text().await, "2");
}
