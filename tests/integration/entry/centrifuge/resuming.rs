//! A client whose connection was cut comes back by itself. It gets all that it missed, or learns that this is not
//! possible.

use std::fmt::Write;

use serde_json::json;
use support::{
    chaos::Chaos,
    client::Client,
    guests,
    javascript::JavaScript,
    partner::{Partner, Peer},
    probe::Probe,
    relay::Relay,
    tenant::Folder,
};
use tokio_tungstenite::tungstenite::Message;

use super::{connect, in_node, in_page, last, url};

in_node!(
    what_was_missed_comes_once_and_in_order,
    server_side_subscriptions_miss_nothing,
    many_cuts_lose_nothing,
    what_is_lost_meanwhile_is_told,
    a_subscription_is_begun_again_when_the_upstream_is_lost,
    a_connection_is_begun_again_when_the_upstream_of_the_servers_subscriptions_is_lost,
);
in_page!(
    what_was_missed_comes_once_and_in_order,
    server_side_subscriptions_miss_nothing,
    what_is_lost_meanwhile_is_told,
    a_subscription_is_begun_again_when_the_upstream_is_lost,
);

/// A relay whose tenant `t` passes on what its partner sends, and a proxy in front of it that can cut connections.
async fn feed() -> (Relay, Partner, Peer, Chaos) {
    let mut partner = Partner::start().await;
    let relay = Relay::serve(Folder::new("").tenant("t", &partner.url(), "")).await;
    let peer = partner.accept().await;
    let chaos = Chaos::start(relay.clients).await;
    (relay, partner, peer, chaos)
}

fn through(chaos: &Chaos, query: &str) -> String {
    format!("ws://{}/t/connection/websocket{query}", chaos.address)
}

/// The partner sends these numbers, one in a message, and the relay publishes them.
async fn say(relay: &Relay, peer: &mut Peer, numbers: std::ops::RangeInclusive<u32>) {
    let last = numbers.end().to_string();
    let mut witness = relay.client("/t?channel=main").await;
    peer.burst(numbers.map(|number| Message::text(number.to_string()))).await;
    while witness.text().await != last {}
}

/// Checks that the client got each of these numbers once and in order.
async fn has(sdk: &mut JavaScript, channel: &str, numbers: std::ops::RangeInclusive<u32>) {
    sdk.sees(&format!("published('{channel}').length >= {}", numbers.clone().count())).await;
    assert_eq!(sdk.value(&format!("published('{channel}')")).await, json!(numbers.collect::<Vec<_>>()));
}

async fn recovered(sdk: &mut JavaScript) -> serde_json::Value {
    last(sdk, "subscribed", "wasRecovering, recovered").await
}

async fn what_was_missed_comes_once_and_in_order(mut sdk: JavaScript) {
    let (relay, _partner, mut peer, mut chaos) = feed().await;
    say(&relay, &mut peer, 1..=10).await;
    connect(&mut sdk, &through(&chaos, ""), json!({})).await;
    sdk.value("follow('main')").await;
    say(&relay, &mut peer, 11..=20).await;
    has(&mut sdk, "main", 11..=20).await;
    chaos.refuse().await;
    chaos.cut();
    sdk.sees("client.state === 'connecting'").await;
    say(&relay, &mut peer, 21..=220).await;
    chaos.accept().await;
    has(&mut sdk, "main", 11..=220).await;
    assert_eq!(recovered(&mut sdk).await, json!([true, true]));
    say(&relay, &mut peer, 221..=230).await;
    has(&mut sdk, "main", 11..=230).await;
    let offsets = sdk.value("all('publication').map(({ offset }) => offset)").await;
    assert_eq!(offsets, json!((11..=230).collect::<Vec<_>>()));
}

async fn server_side_subscriptions_miss_nothing(mut sdk: JavaScript) {
    let relay = super::handled("").await;
    let mut chaos = Chaos::start(relay.clients).await;
    let mut publisher = relay.client("/t?channels=").await;
    let mut publish = async |numbers: std::ops::RangeInclusive<u32>| {
        let mut commands = String::new();
        numbers.for_each(|number| writeln!(commands, "publish a {number}\npublish b {number}").unwrap());
        publisher.send(Message::text(format!("{commands}reply done"))).await;
        assert_eq!(publisher.text().await, "done");
    };
    connect(&mut sdk, &through(&chaos, "?channels=a,b"), json!({})).await;
    sdk.sees("all('subscribed').length === 2").await;
    publish(1..=10).await;
    for channel in ["a", "b"] {
        has(&mut sdk, channel, 1..=10).await;
    }
    chaos.refuse().await;
    chaos.cut();
    sdk.sees("client.state === 'connecting'").await;
    publish(11..=210).await;
    chaos.accept().await;
    for channel in ["a", "b"] {
        has(&mut sdk, channel, 1..=210).await;
    }
    assert_eq!(recovered(&mut sdk).await, json!([true, true]));
}

/// The connection breaks at any point, also while the missed publications are on their way.
async fn many_cuts_lose_nothing(mut sdk: JavaScript) {
    let (relay, _partner, mut peer, chaos) = feed().await;
    connect(&mut sdk, &through(&chaos, ""), json!({})).await;
    sdk.value("follow('main')").await;
    for round in 0..20 {
        say(&relay, &mut peer, round * 100 + 1..=round * 100 + 100).await;
        chaos.cut();
        // Some clients are still connecting when they are cut.
        tokio::time::sleep(std::time::Duration::from_millis(u64::from(round) * 7)).await;
    }
    has(&mut sdk, "main", 1..=2000).await;
    assert_eq!(sdk.value("all('subscribed').every((each, nth) => nth === 0 || each.recovered)").await, true);
}

async fn what_is_lost_meanwhile_is_told(mut sdk: JavaScript) {
    let (relay, mut partner, mut peer, mut chaos) = feed().await;
    connect(&mut sdk, &through(&chaos, ""), json!({})).await;
    sdk.value("follow('main')").await;
    say(&relay, &mut peer, 1..=10).await;
    has(&mut sdk, "main", 1..=10).await;
    chaos.refuse().await;
    chaos.cut();
    sdk.sees("client.state === 'connecting'").await;
    drop(peer);
    let mut peer = partner.accept().await;
    say(&relay, &mut peer, 11..=15).await;
    chaos.accept().await;
    sdk.sees("all('subscribed').length === 2").await;
    assert_eq!(recovered(&mut sdk).await, json!([true, false]));
    say(&relay, &mut peer, 16..=20).await;
    sdk.sees("published('main').at(-1) === 20").await;
    assert_eq!(sdk.value("published('main').slice(10)").await, json!([16, 17, 18, 19, 20]));
}

async fn a_subscription_is_begun_again_when_the_upstream_is_lost(mut sdk: JavaScript) {
    let (relay, mut partner, mut peer, _chaos) = feed().await;
    connect(&mut sdk, &url(&relay, ""), json!({})).await;
    sdk.value("follow('main')").await;
    say(&relay, &mut peer, 1..=10).await;
    has(&mut sdk, "main", 1..=10).await;
    drop(peer);
    let mut peer = partner.accept().await;
    sdk.sees("all('subscribed').length === 2").await;
    assert_eq!(last(&mut sdk, "subscribing", "code, reason").await, json!([2500, "insufficient state"]));
    assert_eq!(recovered(&mut sdk).await, json!([true, false]));
    say(&relay, &mut peer, 11..=20).await;
    has(&mut sdk, "main", 1..=20).await;
    // The connection is still the first one.
    assert_eq!(sdk.value("all('connecting').length").await, 1);
}

async fn a_connection_is_begun_again_when_the_upstream_of_the_servers_subscriptions_is_lost(mut sdk: JavaScript) {
    let mut partner = Partner::start().await;
    let folder = Folder::new("").filtered("t", &partner.url(), guests::probe(), "client = \"client.wasm\"");
    folder.copy(guests::handler(), "tenants/t/client.wasm");
    let relay = Relay::serve(folder).await;
    let mut probe = Probe::new(&relay, &mut partner, "t").await;
    connect(&mut sdk, &url(&relay, "?channels=a"), json!({})).await;
    sdk.sees("all('subscribed').length === 1").await;
    assert_eq!(probe.ask("publish a 1").await, "Ok(())");
    has(&mut sdk, "a", 1..=1).await;
    drop(probe);
    sdk.sees("all('connected').length === 2").await;
    assert_eq!(last(&mut sdk, "connecting", "code, reason").await, json!([3010, "insufficient state"]));
    sdk.sees("all('subscribed').length === 2").await;
    assert_eq!(recovered(&mut sdk).await, json!([true, false]));
    let mut peer = partner.accept().await;
    let mut witness = Client::connect(&relay.url("/t?channel=answers")).await;
    witness.settle().await;
    peer.text("publish a 2").await;
    assert_eq!(witness.text().await, "Ok(())");
    has(&mut sdk, "a", 1..=2).await;
}
