//! A relay with a hostile tenant and a neighbour that must not notice, and what the neighbour's clients see.

use std::{convert::Infallible, future::pending, net::SocketAddr, time::Duration};

use rustix::process::Signal;
use support::{
    client::Client,
    crowd::Crowd,
    guests,
    partner::{Partner, Peer},
    relay::Relay,
    tenant::Folder,
    until,
};
use tokio::{
    sync::{Mutex, MutexGuard},
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tokio_tungstenite::tungstenite::Message;

/// How many clients the neighbour has.
const CLIENTS: usize = 400;
/// Time between two of the neighbour's messages.
const PACE: Duration = Duration::from_millis(12);
/// The bytes of a message, such as `00000000 neighbour`.
const PAYLOAD: usize = 18;
/// How long latencies are measured at a time.
const WINDOW: Duration = Duration::from_secs(1);
/// How often a window with the attack is compared with one or both around it. A machine that does something else for a
/// moment spoils one or two of them. A relay that makes the neighbour wait spoils all.
const ROUNDS: usize = 5;
/// How many times larger the 99th percentile may become.
const WITHIN: u32 = 2;

/// Time between two batches of clients of the hostile tenant. Without it the test would measure what these clients cost
/// on the same cores, not what the tenant's code does.
pub const BETWEEN: Duration = Duration::from_millis(10);
/// Largest peak of the relay's memory. A tenant here has at most eight instances of 64 MiB.
const MEMORY: usize = 768 << 20;

/// One scene runs at a time.
static TURN: Mutex<()> = Mutex::const_new(());

pub struct Scene {
    pub relay: Relay,
    /// The partner of the hostile tenant.
    pub partner: Option<Partner>,
    crowd: Crowd,
    peer: Peer,
    _turn: MutexGuard<'static, ()>,
}

impl Scene {
    /// Starts a relay whose hostile tenant has this code. `more` follows the name and the upstream in its manifest.
    pub async fn new(code: &[u8], more: &str) -> Self {
        Self::with(more, |folder| folder.write("tenants/hostile/bomb.wasm", code)).await
    }

    /// Starts such a relay. The caller writes the hostile tenant's files.
    pub async fn with(more: &str, files: impl FnOnce(&Folder)) -> Self {
        let turn = TURN.lock().await;
        let (partner, mut neighbours) = (Partner::start().await, Partner::start().await);
        // There are no pings: they would come between the messages that clients compare.
        let folder = Folder::new("ping-interval = \"1h\"\ncompile-time = \"10s\"")
            .tenant("hostile", &partner.url(), more)
            .filtered("neighbour", &neighbours.url(), guests::hostile(), "[settings]\nmode = \"echo\"");
        files(&folder);
        let relay = Relay::serve(folder).await;
        let peer = neighbours.accept().await;
        let crowd = Crowd::connect(relay.clients, "/neighbour?channel=out", CLIENTS, PAYLOAD);
        Self { relay, partner: Some(partner), crowd, peer, _turn: turn }
    }

    /// Checks that the neighbour's latencies stay within bounds while the attack is repeated, and that it loses
    /// nothing.
    pub async fn undisturbed(&mut self, attack: impl AsyncFnMut()) {
        self.undisturbed_by(async |_| {}, attack, async |_| {}).await;
    }

    /// Checks the same, with something to do before each attack and after it.
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
            // The higher of the two values without the attack counts. If the first one is high enough, the second need
            // not be measured.
            let mut without = before;
            if during > WITHIN * before {
                without = without.max(self.p99(pending()).await);
            }
            seen.push(format!("{during:.1?} to {without:.1?}"));
            if during <= WITHIN * without {
                eprintln!("99th percentile during the attack to that without: {}", seen.join("; "));
                return self.nothing_is_lost().await;
            }
        }
        panic!("99th percentile during the attack to that without, each time over {WITHIN} times: {seen:?}");
    }

    /// Checks that the relay's memory stays within what this many tenants may have, and that the neighbour loses
    /// nothing. `total`: what each may have. Prints the memory, and the neighbour's latencies before the attack and
    /// during it.
    pub async fn memory_within(&mut self, total: usize, tenants: usize, attack: impl Future<Output = ()>) {
        let idle = self.relay.resident_memory();
        let before = self.latencies(sleep(WINDOW)).await;
        // Some attacks are refused at once.
        let during = self
            .latencies(async {
                let ((), ()) = tokio::join!(attack, sleep(WINDOW));
            })
            .await;
        let peak = self.relay.peak_memory();
        let shown = |[p50, p99]: [Duration; 2]| format!("p50 {p50:.1?}, p99 {p99:.1?}");
        let (idle_mib, peak_mib) = (idle >> 20, peak >> 20);
        eprintln!(
            "memory {idle_mib} MiB before, {peak_mib} MiB at most; {} before, {} during",
            shown(before),
            shown(during)
        );
        let most = idle + tenants * total * 11 / 10;
        assert!(peak <= most, "{peak_mib} MiB; at most {} MiB", most >> 20);
        self.nothing_is_lost().await;
    }

    /// The 50th and the 99th percentile of the neighbour's latencies while `meanwhile` runs.
    async fn latencies(&mut self, meanwhile: impl Future<Output = ()>) -> [Duration; 2] {
        let Self { crowd, peer, .. } = self;
        let mut pace = interval(PACE);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let send = async {
            loop {
                pace.tick().await;
                send(crowd, peer).await;
            }
        };
        let mut latencies = crowd
            .latencies(async {
                tokio::select! {
                    () = meanwhile => {}
                    never = send => never,
                }
            })
            .await;
        latencies.sort_unstable();
        assert!(latencies.len() > CLIENTS, "there were hardly any deliveries");
        [50, 99].map(|percent| latencies[latencies.len() * percent / 100])
    }

    /// The 99th percentile of the neighbour's latencies in one window, during which `meanwhile` runs.
    async fn p99(&mut self, meanwhile: impl Future<Output = Infallible>) -> Duration {
        let window = async {
            tokio::select! {
                () = sleep(WINDOW) => {}
                never = meanwhile => match never {},
            }
        };
        let [_, p99] = self.latencies(window).await;
        p99
    }

    /// Checks that what is sent after the attack arrives too.
    async fn nothing_is_lost(&mut self) {
        send(&self.crowd, &mut self.peer).await;
        let sent = self.crowd.number();
        // This number is taken and never sent: every message before it must have come.
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

    /// Checks that calls of the hostile tenant broke, for this reason if one is given.
    pub async fn broke(&self, role: &str, reason: Option<&str>) {
        broke(&self.relay, role, reason).await;
    }

    /// Checks that the relay's memory stays within what one hostile tenant may take, and some more.
    pub fn memory_is_bounded(&self) {
        let peak = self.relay.peak_memory();
        assert!(peak < MEMORY, "{} MiB", peak >> 20);
    }
}

/// Waits until calls of the hostile tenant broke, as [`Scene::broke`] does.
pub async fn broke(relay: &Relay, role: &str, reason: Option<&str>) {
    let reason = reason.map(|reason| ("reason", reason));
    let labels = [("tenant", "hostile"), ("role", role), ("blame", "guest_broke")];
    let labels: Vec<_> = labels.into_iter().chain(reason).collect();
    relay.metric_reaches("edge_relay_guest_failures_total", &labels, 1.0).await;
}

/// Sends the neighbour's next message.
async fn send(crowd: &Crowd, peer: &mut Peer) {
    peer.send(Message::text(format!("{:08} neighbour", crowd.number()))).await;
}

/// Connects a client to the hostile tenant and sends a message. It does not wait long for an answer.
pub async fn knock(relay: SocketAddr, path: &str) {
    const PATIENCE: Duration = Duration::from_millis(300);
    let knocking = async {
        if let Ok(mut client) = Client::try_connect(&format!("ws://{relay}{path}")).await
            && client.try_send(Message::text("hello")).await
        {
            client.settle().await;
        }
    };
    // It does not matter whether there is an answer.
    let _ = timeout(PATIENCE, knocking).await;
}

/// Changes the hostile tenant to a manifest in which `more` follows the name and the upstream.
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
