//! Holes that a component sees, and what a publication may carry.

use support::{guests, http::Http, partner::Partner, probe::Probe, relay::Relay, tenant::Folder};

/// The epoch of a channel, and how many publications it has since it began.
async fn history(relay: &Relay, channel: &str) -> (String, usize) {
    let path = format!("/t/channels/{channel}");
    let page = Http::connect(relay.clients).await.get(&path).await.json();
    (page["epoch"].as_str().unwrap().to_owned(), page["publications"].as_array().unwrap().len())
}

async fn scene() -> (Relay, Probe) {
    scene_with("").await
}

/// `more`: more of the manifest.
async fn scene_with(more: &str) -> (Relay, Probe) {
    let mut partner = Partner::start().await;
    let more = format!("[channels.\"*\"]\nhistory = {{ size = 100 }}\n{more}");
    let relay = Relay::serve(Folder::new("").filtered("t", &partner.url(), guests::told(), &more)).await;
    let mut probe = Probe::new(&relay, &mut partner, "t").await;
    assert_eq!(probe.peer.next_text().await, "open 1 ConnectionReason::New");
    (relay, probe)
}

#[tokio::test]
async fn a_filter_ends_the_epoch_exactly_where_the_hole_is() {
    let (relay, mut probe) = scene().await;
    let mut out = relay.client("/t?channel=out").await;
    // All of these may be in one call.
    let burst = ["one", "two", "gap sequence out", "three", "gap sequence", "four", "gap sequence nowhere", "five"];
    probe.peer.burst(burst.map(tokio_tungstenite::tungstenite::Message::text)).await;
    for text in ["one", "two", "three", "four", "five"] {
        assert_eq!(out.text().await, format!("1 {text}"));
    }
    let (epoch, publications) = history(&relay, "out").await;
    assert_eq!(publications, 2, "since the last gap");
    assert_eq!(relay.metric("edge_relay_epochs_total", &[("tenant", "t")]).await, 2.0);
    relay.logged(&["INFO", "gap reported by a component", "sequence"]).await;
    // The same from a call.
    assert_eq!(probe.ask("gap-import why out").await, "Ok(())");
    let (next, publications) = history(&relay, "out").await;
    assert_ne!(next, epoch);
    assert_eq!(publications, 0);
    assert_eq!(relay.metric("edge_relay_guest_failures_total", &[]).await, 0.0);
}

#[tokio::test]
async fn components_without_an_upstream_tell_of_gaps_in_channels_that_they_name() {
    let folder = Folder::new("").api("t", "[channels.\"*\"]\nhistory = { size = 100 }");
    let relay = Relay::serve(folder).await;
    let ask = async |path: &str| relay.http().await.get(path).await.body;
    assert_eq!(ask("/t/publish?channel=a&text=x").await, "Ok(())");
    let (epoch, _) = history(&relay, "a").await;
    assert_eq!(ask("/t/gap?channel=a").await, "Ok(())");
    assert_ne!(history(&relay, "a").await.0, epoch);
    let refused = ask("/t/gap").await;
    assert!(refused.contains("name at least one"), "{refused}");
}

#[tokio::test]
async fn a_gap_over_the_rate_is_told_all_the_same() {
    let (relay, mut probe) = scene_with("[limits]\npublications-per-second = 5\n").await;
    let mut out = relay.client("/t?channel=out").await;
    let burst = ["1", "2", "3", "4", "5", "6", "gap sequence out", "7"];
    probe.peer.burst(burst.map(tokio_tungstenite::tungstenite::Message::text)).await;
    for text in ["1", "2", "3", "4", "5"] {
        assert_eq!(out.text().await, format!("1 {text}"));
    }
    relay.metric_is("edge_relay_epochs_total", &[("tenant", "t")], 1.0).await;
}

#[tokio::test]
async fn a_publication_with_an_id_is_refused_and_one_with_a_time_is_not() {
    let (relay, mut probe) = scene().await;
    let mut out = relay.client("/t?channel=out").await;
    for command in ["id 17", "at 1700000000000"] {
        probe.peer.text(command).await;
    }
    assert_eq!(out.text().await, "at 1700000000000");
    let labels = [("tenant", "t"), ("reason", "id")];
    assert_eq!(relay.metric("edge_relay_publications_refused_total", &labels).await, 1.0);
    relay.logged(&["WARN", "publications refused", "no publication with an id yet"]).await;
}
