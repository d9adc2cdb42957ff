//! A relay with a hostile tenant and one that must not notice, and what that one's clients see.

use std::{convert::Infallible, future::pending, net::SocketAddr, time::Duration};

use rustix::process::Signal;
use tokio::{
    sync::{Mutex, MutexGuard},
    time::{Instant, MissedTickBehavior, interval, timeout},
};
use tokio_tungstenite::tungstenite::Message;

use crate::support::{
    client::Client,
    crowd::Crowd,
    guests,
    partner::{Partner, Peer},
    relay::Relay,
    tenant::Folder,
    until,
};

/// The neighbour's clients.
const CLIENTS: usize = 400;
/// Between two of its messages.
const PACE: Duration = Duration::from_millis(12);
/// `00000000 neighbour`
const PAYLOAD: usize = 18;
/// How long latencies are taken at a time.
const WINDOW: Duration = Duration::from_secs(1);
/// How often a window with the attack is compared with those around it: a machine that does something else for a moment
/// spoils one or two, a relay that lets its neighbour wait spoils all.
const ROUNDS: usize = 5;
/// What the 99th percentile may become.
const WITHIN: u32 = 2;

/// Between two batches of clients of the hostile tenant: without it what they themselves cost, on the same cores, would be
/// measured, not what its code does.
pub const BETWEEN: Duration = Duration::from_millis(10);
/// Peak of the relay's memory: eight instances of 64 MiB are the most that a tenant has here.
const MEMORY: usize = 768 << 20;

/// One scene at a time.
static TURN: Mutex<()> = Mutex::const_new(());

pub struct Scene {
    pub relay: Relay,
    /// Of the hostile tenant, `hostile`.
    pub partner: Option<Partner>,
    crowd: Crowd,
    peer: Peer,
    _turn: MutexGuard<'static, ()>,
}

impl Scene {
    /// `more`: of the hostile tenant's manifest, behind its name and its upstream.
    pub async fn new(code: &[u8], more: &str) -> Self {
        Self::with(more, |folder| folder.write("tenants/hostile/bomb.wasm", code)).await
    }

    /// The same, with its files written by the caller.
    pub async fn with(more: &str, files: impl FnOnce(&Folder)) -> Self {
        let turn = TURN.lock().await;
        let (partner, mut neighbours) = (Partner::start().await, Partner::start().await);
        // Pings would come between the messages that clients compare.
        let folder = Folder::new("ping-interval = \"1h\"\ncompile-time = \"10s\"")
            .shared_cache()
            .tenant("hostile", &partner.url(), more)
            .filtered("neighbour", &neighbours.url(), guests::hostile(), "[settings]\nmode = \"echo\"");
        files(&folder);
        let relay = Relay::serve(folder).await;
        let peer = neighbours.accept().await;
        let crowd = Crowd::connect(relay.clients, "/neighbour?channel=out", CLIENTS, PAYLOAD);
        Self { relay, partner: Some(partner), crowd, peer, _turn: turn }
    }

    /// The neighbour's latencies stay within bounds while the hostile tenant does this again and again, and nothing of it
    /// is lost.
    pub async fn undisturbed(&mut self, attack: impl AsyncFnMut()) {
        self.undisturbed_by(async |_| {}, attack, async |_| {}).await;
    }

    /// The same, with something to do before each attack and after it.
    pub async fn undisturbed_by(
        &mut self,
        mut begin: impl AsyncFnMut(&Relay),
        mut attack: impl AsyncFnMut(),
        mut end: impl AsyncFnMut(&Relay),
    ) {
        let mut seen = Vec::new();
        for _ in 0..ROUNDS {
            let before = self.p99(pending()).await;
            begin(&self.relay).await;
            let attacked = async {
                loop {
                    attack().await;
                }
            };
            let during = self.p99(attacked).await;
            end(&self.relay).await;
            let after = self.p99(pending()).await;
            seen.push(format!("{before:.1?}, {during:.1?}, {after:.1?}"));
            if during <= WITHIN * before.max(after) {
                eprintln!("99th percentile before, during and after: {}", seen.join("; "));
                return self.nothing_is_lost().await;
            }
        }
        panic!("99th percentile before, during and after, each time over {WITHIN} times: {seen:?}");
    }

    /// The 99th percentile of the neighbour's latencies in a window in which something else happens too.
    async fn p99(&mut self, meanwhile: impl Future<Output = Infallible>) -> Duration {
        let Self { crowd, peer, .. } = self;
        let mut pace = interval(PACE);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let end = Instant::now() + WINDOW;
        let send = async {
            while Instant::now() < end {
                pace.tick().await;
                peer.send(Message::text(format!("{:08} neighbour", crowd.number()))).await;
            }
        };
        let mut latencies = crowd
            .latencies(async {
                tokio::select! {
                    () = send => {}
                    never = meanwhile => match never {},
                }
            })
            .await;
        latencies.sort_unstable();
        assert!(latencies.len() > CLIENTS, "there were next to no deliveries");
        latencies[latencies.len() * 99 / 100]
    }

    async fn nothing_is_lost(&self) {
        let sent = self.crowd.number();
        // That number is sent to nobody: all before it have come.
        until(format!("{sent} messages at every client"), async || match self.crowd.everybody_has() {
            Ok(has) if has == sent => Ok(()),
            Ok(has) => Err(format!("{has} messages")),
            Err(wrong) => panic!("{wrong}"),
        })
        .await;
        for nothing in
            ["guest_failures_total", "guest_lost_total", "clients_closed_total", "publications_refused_total"]
        {
            assert_eq!(self.relay.metric(&format!("edge_relay_{nothing}"), &[("tenant", "neighbour")]).await, 0.0);
        }
    }

    /// Calls of the hostile tenant broke for one of these reasons.
    pub async fn broke(&self, role: &str, reason: Option<&str>) {
        let reason = reason.map(|reason| ("reason", reason));
        let labels = [("tenant", "hostile"), ("role", role), ("blame", "guest_broke")];
        let labels: Vec<_> = labels.into_iter().chain(reason).collect();
        self.relay.metric_reaches("edge_relay_guest_failures_total", &labels, 1.0).await;
    }

    /// The relay's memory stays within what one hostile tenant may have, and some.
    pub fn memory_is_bounded(&self) {
        let peak = self.relay.peak_memory();
        assert!(peak < MEMORY, "{} MiB", peak >> 20);
    }
}

/// A client that asks the hostile tenant to let it in and says something, and does not wait long for an answer.
pub async fn knock(relay: SocketAddr, path: &str) {
    const PATIENCE: Duration = Duration::from_millis(300);
    let knocking = async {
        if let Ok(mut client) = Client::try_connect(&format!("ws://{relay}{path}")).await
            && client.try_send(Message::text("hello")).await
        {
            client.settle().await;
        }
    };
    // Whether it is answered is not what is asked here.
    let _ = timeout(PATIENCE, knocking).await;
}

/// Has the hostile tenant go over to a manifest with this behind its name and its upstream.
pub async fn swap(relay: &Relay, more: &str) {
    const SWAPS: &str = "edge_relay_tenant_swaps_total";
    let labels = [("tenant", "hostile"), ("outcome", "applied")];
    let before = relay.metric(SWAPS, &labels).await;
    let manifest = std::fs::read_to_string(relay.folder().path("tenants/hostile/tenant.toml")).unwrap();
    let head: Vec<_> = manifest.lines().take(4).collect();
    relay.folder().write("tenants/hostile/tenant.toml", format!("{}\n{more}\n", head.join("\n")));
    relay.signal(Signal::HUP);
    relay.metric_reaches(SWAPS, &labels, before + 1.0).await;
}
