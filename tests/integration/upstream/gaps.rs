//! Holes that a component sees, and what a publication may carry.

use support::{guests, http::Http, partner::Partner, probe::Probe, relay::Relay, tenant::Folder};

/// The epoch of a channel, and how many publications it has since it began.
async fn history(relay: &Relay, channel: &str) -> (String, usize) {
    let path = format!("/t/channels/{channel}");
    let page = Http::connect(relay.clients).await.get(&path).await.json();
    (page["epoch"].as_str().unwrap().to_owned(), page["publications"].as_array().unwrap().len())
}

async fn scene() -> (Relay, Probe) {
    let mut partner = Partner::start().await;
    let more = "[channels.\"*\"]\nhistory = { size = 100 }";
    let relay = Relay::serve(Folder::new("").filtered("t", &partner.url(), guests::told(), more)).await;
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
    relay.logged(&["INFO", "a component tells of a gap", "sequence"]).await;
    // The same from a call, as jobs and handlers have it.
    assert_eq!(probe.ask("gap-import why out").await, "Ok(())");
    assert_ne!(history(&relay, "out").await.0, epoch);
    let refused = probe.ask("gap-import why").await;
    assert_eq!(refused, "Ok(())", "a filter's own");
    assert_eq!(relay.metric("edge_relay_guest_failures_total", &[]).await, 0.0);
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
