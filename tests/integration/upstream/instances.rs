//! What instances of a filter are told of the connection: the first one, and those that take another's place.

use support::{
    client::Client,
    guests,
    partner::{Partner, Peer},
    relay::Relay,
    tenant::Folder,
};

struct Scene {
    partner: Partner,
    relay: Relay,
    peer: Peer,
    out: Client,
}

async fn scene() -> Scene {
    let mut partner = Partner::start().await;
    let relay = Relay::serve(Folder::new("").filtered("t", &partner.url(), guests::told(), "")).await;
    let mut peer = partner.accept().await;
    assert_eq!(peer.next_text().await, "open 1 ConnectionReason::New");
    let out = relay.client("/t?channel=out").await;
    Scene { partner, relay, peer, out }
}

impl Scene {
    /// Sends a message, and checks that it comes with the number of this connection.
    async fn passes(&mut self, connection: u64) {
        self.peer.text("message").await;
        assert_eq!(self.out.text().await, format!("{connection} message"));
    }

    /// Gives the filter other settings.
    async fn swap(&self) {
        const SWAPS: &str = "edge_relay_tenant_swaps_total";
        let before = self.relay.metric(SWAPS, &[("outcome", "applied")]).await;
        self.relay.folder().append("tenants/t/tenant.toml", "[settings]\nother = \"1\"\n");
        self.relay.signal(rustix::process::Signal::HUP);
        self.relay.metric_reaches(SWAPS, &[("outcome", "applied")], before + 1.0).await;
    }
}

#[tokio::test]
async fn connections_have_numbers_in_every_call() {
    let mut scene = scene().await;
    scene.passes(1).await;
    drop(scene.peer);
    assert!(scene.out.text().await.starts_with("closed 1 "));
    scene.peer = scene.partner.accept().await;
    assert_eq!(scene.peer.next_text().await, "open 2 ConnectionReason::New");
    scene.passes(2).await;
}

#[tokio::test]
async fn an_instance_after_a_failure_is_told_that_it_takes_anothers_place() {
    let mut scene = scene().await;
    scene.passes(1).await;
    for _ in 0..3 {
        scene.peer.text("trap").await;
        assert_eq!(scene.peer.next_text().await, "open 1 ConnectionReason::Restarted");
    }
    scene.passes(1).await;
    assert_eq!(scene.partner.connections(), 1);
    assert_eq!(scene.relay.metric("edge_relay_guest_lost_total", &[]).await, 3.0);
}

#[tokio::test]
async fn an_instance_of_other_code_is_told_before_it_gets_a_message() {
    let mut scene = scene().await;
    scene.passes(1).await;
    scene.swap().await;
    // Nothing has come from the partner since.
    assert_eq!(scene.peer.next_text().await, "open 1 ConnectionReason::Swapped");
    scene.passes(1).await;
    assert_eq!(scene.relay.metric("edge_relay_guest_lost_total", &[]).await, 0.0);
}

#[tokio::test]
async fn an_instance_in_anothers_place_is_told_of_active_channels_again() {
    let mut scene = scene().await;
    let mut wanted = scene.relay.client("/t?channel=wanted.a").await;
    assert_eq!(scene.peer.next_text().await, "active wanted.a 1 ConnectionReason::New");
    scene.peer.text("trap").await;
    assert_eq!(scene.peer.next_text().await, "open 1 ConnectionReason::Restarted");
    assert_eq!(scene.peer.next_text().await, "active wanted.a 1 ConnectionReason::Restarted");
    let _other = scene.relay.client("/t?channel=wanted.b").await;
    assert_eq!(scene.peer.next_text().await, "active wanted.b 1 ConnectionReason::New");
    scene.swap().await;
    assert_eq!(scene.peer.next_text().await, "open 1 ConnectionReason::Swapped");
    let mut again = [scene.peer.next_text().await, scene.peer.next_text().await];
    again.sort();
    assert_eq!(again, ["a", "b"].map(|name| format!("active wanted.{name} 1 ConnectionReason::Swapped")));
    wanted.has_no_more().await;
    drop(wanted);
    assert_eq!(scene.peer.next_text().await, "idle wanted.a 1");
}

#[tokio::test]
async fn code_that_fails_at_every_message_has_pauses_however_much_it_is_told_before() {
    const MESSAGES: usize = 40;
    let mut scene = scene().await;
    let _wanted = scene.relay.client("/t?channel=wanted.a").await;
    assert_eq!(scene.peer.next_text().await, "active wanted.a 1 ConnectionReason::New");
    for sent in 1..=MESSAGES {
        scene.peer.text("trap").await;
        scene.relay.metric_reaches("edge_relay_guest_lost_total", &[], sent as f64).await;
    }
    let traps = scene.relay.metric("edge_relay_guest_failures_total", &[("reason", "trap")]).await;
    assert!((2.0..MESSAGES as f64 / 2.0).contains(&traps), "{traps} traps of {MESSAGES} messages");
}

#[tokio::test]
async fn other_code_after_a_failure_is_told_that_messages_were_lost() {
    let mut scene = scene().await;
    // Until the pauses after failures are longer than a swap takes.
    for sent in 1..=30 {
        scene.peer.text("trap").await;
        scene.relay.metric_reaches("edge_relay_guest_lost_total", &[], f64::from(sent)).await;
        while told(&mut scene.peer, 100).await.is_some() {}
    }
    scene.swap().await;
    // Or, if the pause was over before: a restarted instance was told before the swapped one.
    assert_eq!(told(&mut scene.peer, 10_000).await.as_deref(), Some("open 1 ConnectionReason::Restarted"));
}

/// What the partner is told within this time.
async fn told(peer: &mut Peer, millis: u64) -> Option<String> {
    tokio::time::timeout(std::time::Duration::from_millis(millis), peer.next_text()).await.ok()
}

#[tokio::test]
async fn a_filter_gets_no_message_of_a_connection_whose_on_open_failed() {
    let mut partner = Partner::start().await;
    let more = "[settings]\ntrap-open = 1\n";
    let relay = Relay::serve(Folder::new("").filtered("t", &partner.url(), guests::told(), more)).await;
    let mut out = relay.client("/t?channel=out").await;
    for number in 1..3 {
        let mut peer = partner.arrival().await.request().await;
        // What it says at once is there before the filter's answer.
        peer.switch(&support::partner::HANDSHAKE, &[0x81, 2, b'h', b'i']).await;
        peer.rest().await;
        assert!(out.text().await.starts_with(&format!("closed {number} ")));
    }
    out.has_no_more().await;
}
