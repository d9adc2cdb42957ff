//! Filters that trap, hang, use too much memory or write too much: what that costs them, and that it costs other
//! tenants nothing.

use support::{
    client::Client,
    guests,
    partner::{Partner, Peer},
    relay::Relay,
    tenant::Folder,
};
use tokio::time::{Duration, Instant};

const UPSTREAM: [(&str, &str); 2] = [("tenant", "hostile"), ("upstream", "feed")];
const FILTER: [(&str, &str); 3] = [("tenant", "hostile"), ("role", "filter"), ("name", "feed")];

/// A relay with the hostile filter for one tenant, and another tenant that must not notice.
struct Scene {
    relay: Relay,
    partner: Partner,
    client: Client,
    neighbour: Neighbour,
}

struct Neighbour {
    peer: Peer,
    client: Client,
}

impl Scene {
    async fn new(settings: &str, limits: &str) -> Self {
        let (partner, mut quiet) = (Partner::start().await, Partner::start().await);
        let more = format!("[settings]\n{settings}\n[limits]\n{limits}");
        let folder = Folder::new("").filtered("hostile", &partner.url(), guests::hostile(), &more).filtered(
            "quiet",
            &quiet.url(),
            guests::hostile(),
            "[settings]\nmode = \"echo\"",
        );
        let relay = Relay::serve(folder).await;
        let client = relay.client("/hostile?channel=out").await;
        let neighbour = Neighbour { peer: quiet.accept().await, client: relay.client("/quiet?channel=out").await };
        Self { relay, partner, client, neighbour }
    }

    async fn lost(&self, messages: f64) {
        self.relay.metric_reaches("edge_relay_guest_lost_total", &FILTER, messages).await;
    }

    async fn failures(&self, reason: &str) -> f64 {
        let [tenant, role, name] = FILTER;
        let labels = [tenant, role, name, ("blame", "guest_broke"), ("reason", reason)];
        self.relay.metric("edge_relay_guest_failures_total", &labels).await
    }
}

impl Neighbour {
    /// Checks that the tenant's messages still pass, through its own instance of the same code.
    async fn is_served(&mut self) {
        self.peer.text("undisturbed").await;
        assert_eq!(self.client.text().await, "undisturbed");
    }
}

#[tokio::test]
async fn a_trap_costs_its_batch_and_a_fresh_instance_takes_the_next() {
    let mut scene = Scene::new("mode = \"trap-on\"\nmatch = \"poison\"", "").await;
    let mut peer = scene.partner.accept().await;
    for round in 1..=2 {
        peer.text("before").await;
        assert_eq!(scene.client.text().await, "before");
        peer.text("poison").await;
        scene.lost(f64::from(round)).await;
        peer.text("after").await;
        assert_eq!(scene.client.text().await, "after");
    }
    scene.client.has_no_more().await;
    assert_eq!(scene.failures("trap").await, 2.0);
    assert_eq!(scene.relay.metric("edge_relay_guest_lost_total", &[]).await, 2.0);
    scene.relay.logged(&["WARN", "tenant.name=hostile", "guest.name=feed", "unreachable"]).await;
    assert_eq!(scene.partner.connections(), 1, "the socket outlives the instance");
    scene.neighbour.is_served().await;
}

#[tokio::test]
async fn a_trap_on_every_message_backs_off() {
    const MESSAGES: u32 = 60;
    let mut scene = Scene::new("mode = \"trap\"", "").await;
    let mut peer = scene.partner.accept().await;
    // Sent one at a time, so that each is a batch of its own.
    for sent in 1..=MESSAGES {
        peer.text("x").await;
        scene.lost(f64::from(sent)).await;
    }
    let traps = scene.failures("trap").await;
    assert!((2.0..f64::from(MESSAGES) / 2.0).contains(&traps), "{traps} instances for {MESSAGES} messages");
    scene.client.has_no_more().await;
    scene.neighbour.is_served().await;
    assert_eq!(scene.relay.metric("edge_relay_upstream_messages_total", &UPSTREAM).await, f64::from(MESSAGES));
    assert_eq!(scene.partner.connections(), 1);
}

#[tokio::test]
async fn a_loop_is_cut_at_the_deadline_and_nobody_waits_for_it() {
    let mut scene = Scene::new("mode = \"loop-on\"\nmatch = \"spin\"", "filter-call = \"2s\"").await;
    let mut peer = scene.partner.accept().await;
    peer.text("spin").await;
    scene.relay.metric_reaches("edge_relay_upstream_messages_total", &UPSTREAM, 1.0).await;
    let began = Instant::now();
    scene.neighbour.is_served().await;
    scene.relay.client("/hostile?channel=out").await;
    assert!(began.elapsed() < Duration::from_millis(1_900), "{:?}", began.elapsed());
    assert_eq!(scene.failures("deadline").await, 0.0);

    scene.lost(1.0).await;
    assert_eq!(scene.failures("deadline").await, 1.0);
    let line = scene.relay.logged(&["WARN", "tenant.name=hostile", "guest.name=feed", "2000 ms in "]).await;
    assert!(line.contains("hostile::loop_for_ever"), "{line}");
    peer.text("after").await;
    assert_eq!(scene.client.text().await, "after");
}

#[tokio::test]
async fn a_loop_on_every_message_leaves_the_host_whole() {
    let mut scene = Scene::new("mode = \"loop\"", "filter-call = \"100ms\"").await;
    let mut peer = scene.partner.accept().await;
    for sent in 1..=4 {
        peer.text("x").await;
        scene.lost(f64::from(sent)).await;
        scene.neighbour.is_served().await;
    }
    assert!(scene.failures("deadline").await >= 2.0);
    scene.client.has_no_more().await;
}

#[tokio::test]
async fn memory_beyond_the_limit_is_a_trap() {
    let mut scene = Scene::new("mode = \"memory\"", "memory = \"16MiB\"").await;
    let mut peer = scene.partner.accept().await;
    for sent in 1..=3 {
        peer.text("x").await;
        scene.lost(f64::from(sent)).await;
    }
    assert!(scene.failures("trap").await >= 2.0);
    scene.neighbour.is_served().await;
}

#[tokio::test]
async fn a_channel_name_of_a_mebibyte_is_refused_and_counted() {
    let mut scene = Scene::new("mode = \"huge-channel\"", "").await;
    let mut peer = scene.partner.accept().await;
    peer.text("beside it").await;
    // The call's other publications go out nevertheless.
    assert_eq!(scene.client.text().await, "beside it");
    let refused = [("tenant", "hostile"), ("reason", "channel_name")];
    scene.relay.metric_reaches("edge_relay_publications_refused_total", &refused, 1.0).await;
    assert_eq!(scene.failures("trap").await, 0.0);
    scene.neighbour.is_served().await;
    scene.relay.logged(&["WARN", "tenant.name=hostile", "publications refused", "field=channel"]).await;
    assert!(scene.relay.log().len() < 64 << 10, "the name is in the log");
}

#[tokio::test]
async fn a_trap_in_on_open_ends_the_connection_and_it_is_tried_again() {
    let mut scene = Scene::new("mode = \"trap-open\"", "").await;
    for attempt in 1..=2 {
        let mut peer = scene.partner.accept().await;
        peer.ended().await;
        scene.relay.upstream_failed("filter", f64::from(attempt)).await;
    }
    scene.neighbour.is_served().await;
}
