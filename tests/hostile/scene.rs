//! A relay with a hostile tenant, a neighbour that must not notice, and an honest tenant to compare with.

use std::{
    convert::Infallible,
    fs,
    future::pending,
    net::SocketAddr,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use support::{client::Client, guests, partner::Partner, relay::Relay, tenant::Folder};
use tokio::{
    sync::{Mutex, MutexGuard},
    time::{sleep, timeout},
};
use tokio_tungstenite::tungstenite::Message;

use crate::{
    honest::Honest,
    neighbour::{KINDS, Neighbour},
};

/// How long one side of a pair is measured, and how many pairs there are. In the short form only as many as it takes
/// until most of them are within the bound, and two at least.
const SHORT: (Duration, usize) = (Duration::from_millis(150), 7);
const ENOUGH: usize = 2;
const FULL: (Duration, usize) = (Duration::from_secs(3), 7);
/// How long the attack goes on at first, at least.
const FIRST: Duration = Duration::from_millis(600);
/// How many times larger the 99th percentile may be beside the attack than beside the honest tenant: the median of all
/// pairs.
const WITHIN: f64 = 2.0;
/// In the short form a percentile is hardly more than the longest of a few. A longer one than this is looked at.
const NOISE: Duration = Duration::from_millis(8);
/// In the full form: the most that it may be at all.
const MOST: Duration = Duration::from_millis(20);
/// How many times as much of the processor the honest tenant may have used in the full form.
const MORE: f64 = 1.35;
/// How near the honest tenant's use of the processor comes to the attack's before the pairs begin.
const NEAR: f64 = 0.2;

/// Limits under which turns alone protect the neighbour: the tenant may send as much as it can.
pub const WITHOUT_RATES: &str = "[limits]\nmessages-per-second = 100000000\ncontrol-frames-per-second = 100000000\n\
    bytes-in-per-second = \"1024GiB\"\n";

/// What follows the name and the upstream in the neighbour's manifest.
pub const NEIGHBOUR: &str = "idle-timeout = \"1h\"\n[components]\napi = \"api.wasm\"";

/// Time between two batches of clients of the hostile tenant. Without it the test would measure what these clients cost
/// on the same cores, not what the tenant's code does.
pub const BETWEEN: Duration = Duration::from_millis(10);
/// Largest peak of the relay's memory. A tenant here has at most eight instances of 64 MiB.
const MEMORY: usize = 768 << 20;
/// Messages a second of the honest tenant meanwhile: about half of what a shard's thread can do, as built for tests.
const BUSY: f64 = 330.0;
/// How long the neighbour is watched beside an attack on memory, at least.
const WINDOW: Duration = Duration::from_secs(1);

/// How much of a processor a relay uses that has nothing to do but for the neighbour, how long it is looked at, and how
/// long it is waited for: some attacks have no end.
const QUIET: f64 = 0.4;
const LOOK: Duration = Duration::from_millis(50);
const UNTIL_QUIET: Duration = Duration::from_millis(400);

/// One scene runs at a time.
static TURN: Mutex<()> = Mutex::const_new(());

pub struct Scene {
    // Their threads end before the relay does.
    neighbour: Neighbour,
    honest: Honest,
    /// The partner of the hostile tenant.
    pub partner: Option<Partner>,
    pub relay: Relay,
    _turn: MutexGuard<'static, ()>,
}

/// What was measured in one window.
struct Window {
    /// The median of each kind.
    p50: [Duration; 3],
    /// The 99th percentile of each kind.
    p99: [Duration; 3],
    /// How much of a processor the relay has used.
    used: f64,
}

/// How many times larger a kind's percentile is beside the attack.
fn ratio(honest: &Window, attack: &Window, kind: usize) -> f64 {
    let noise = if is_full() { Duration::ZERO } else { NOISE };
    attack.p99[kind].as_secs_f64() / honest.p99[kind].max(noise).as_secs_f64()
}

/// Whether the variable `HOSTILE` asks for the full form: `HOSTILE=full`.
pub fn is_full() -> bool {
    std::env::var("HOSTILE").is_ok_and(|form| form == "full")
}

impl Scene {
    /// Starts a relay whose hostile tenant has this code. `more` follows the name and the upstream in its manifest.
    pub async fn new(code: &[u8], more: &str) -> Self {
        Self::with(more, |folder| folder.write("tenants/hostile/bomb.wasm", code)).await
    }

    /// Starts such a relay. The caller writes the hostile tenant's files.
    pub async fn with(more: &str, files: impl FnOnce(&Folder)) -> Self {
        Self::within("", more, files).await
    }

    /// Starts such a relay with more limits of its own.
    pub async fn within(limits: &str, more: &str, files: impl FnOnce(&Folder)) -> Self {
        Self::start("/neighbour/count", limits, more, files).await
    }

    /// Starts such a relay. The neighbour's API is asked to append a record each time.
    pub async fn with_records(more: &str, files: impl FnOnce(&Folder)) -> Self {
        Self::start("/neighbour/append?to=c&rows=1&bytes=100", "", more, files).await
    }

    async fn start(path: &'static str, limits: &str, more: &str, files: impl FnOnce(&Folder)) -> Self {
        let turn = TURN.lock().await;
        let [partner, mut neighbours, mut honest] =
            [Partner::start().await, Partner::start().await, Partner::start().await];
        // There are no pings: they would come between the messages that clients compare.
        let folder = Folder::new(&format!("ping-interval = \"1h\"\ncompile-time = \"10s\"\n{limits}"))
            .tenant("hostile", &partner.url(), more)
            .tenant("neighbour", &neighbours.url(), NEIGHBOUR)
            .tenant("honest", &honest.url(), "idle-timeout = \"1h\"");
        folder.copy(guests::api(), "tenants/neighbour/api.wasm");
        files(&folder);
        let relay = Relay::serve(folder).await;
        let mut upstreams = Vec::new();
        for partner in [&mut neighbours, &mut honest] {
            let mut peer = partner.arrival().await.request().await;
            peer.agree(&[]).await;
            upstreams.push(peer.into_std());
        }
        let honest = Honest::start(relay.clients, upstreams.pop().unwrap());
        let neighbour = Neighbour::start(&relay, upstreams.pop().unwrap(), path);
        Self { relay, partner: Some(partner), neighbour, honest, _turn: turn }
    }

    /// Checks that the neighbour's latencies stay within bounds while the attack is repeated, and that it loses
    /// nothing.
    pub async fn undisturbed(&mut self, attack: impl AsyncFnMut()) {
        self.undisturbed_by(async |_| {}, attack, async |_| {}).await;
    }

    /// Checks the same, with something to do before each attack and after it.
    ///
    /// In turns the honest tenant works, and the attack goes on, with as much of the processor.
    pub async fn undisturbed_by(
        &mut self,
        mut begin: impl AsyncFnMut(&Relay),
        mut attack: impl AsyncFnMut(),
        mut end: impl AsyncFnMut(&Relay),
    ) {
        let (window, pairs) = if is_full() { FULL } else { SHORT };
        let mut attacked = async |scene: &Self, window| {
            begin(&scene.relay).await;
            let attacks = async {
                loop {
                    attack().await;
                }
            };
            let seen = scene.window(window, attacks).await;
            end(&scene.relay).await;
            // What is left of it is not the honest tenant's.
            quiet(&scene.relay).await;
            seen
        };
        // Long enough for calls to break: they have 200 ms.
        let wanted = attacked(self, window.max(FIRST)).await.used;
        for _ in 0..if is_full() { 4 } else { 1 } {
            let used = self.beside_honest(window / 2).await.used;
            if (used / wanted - 1.0).abs() < NEAR {
                break;
            }
            self.honest.adjust(used, wanted);
        }
        let (mut seen, mut fine) = (Vec::new(), 0);
        for _ in 0..pairs {
            let honest = self.beside_honest(window).await;
            let attack = attacked(self, window).await;
            self.honest.adjust(honest.used, attack.used);
            let is_fine = (0..KINDS.len()).all(|kind| ratio(&honest, &attack, kind) <= WITHIN);
            seen.push((honest, attack));
            fine += usize::from(is_fine);
            if fine >= ENOUGH && 2 * fine > seen.len() && !is_full() {
                break;
            }
        }
        let median = |mut values: Vec<f64>| {
            values.sort_by(f64::total_cmp);
            values[values.len() / 2]
        };
        let used = |of: fn(&(Window, Window)) -> f64| median(seen.iter().map(of).collect());
        let times = used(|pair| pair.0.used) / used(|pair| pair.1.used);
        assert!(!is_full() || times < MORE, "the honest tenant has used {times:.2} times as much");
        eprintln!("processors used: {:.2} and {:.2} by the attack", used(|pair| pair.0.used), used(|pair| pair.1.used));
        let mut wrong = Vec::new();
        for (kind, (name, _)) in KINDS.iter().enumerate() {
            let times = |of: fn(&(Window, Window)) -> [Duration; 3]| {
                median(seen.iter().map(|pair| of(pair)[kind].as_secs_f64() * 1000.0).collect())
            };
            let (before, during) = (times(|pair| pair.0.p99), times(|pair| pair.1.p99));
            let ratio = median(seen.iter().map(|(honest, attack)| ratio(honest, attack, kind)).collect());
            let shown = format!("{name}: p99 {before:.1} ms and {during:.1} ms beside the attack, ratio {ratio:.2}");
            eprintln!("    {shown}; p50 {:.1} and {:.1}", times(|pair| pair.0.p50), times(|pair| pair.1.p50));
            if ratio > WITHIN || is_full() && during > MOST.as_secs_f64() * 1000.0 {
                wrong.push(shown);
            }
        }
        assert!(wrong.is_empty(), "over {WITHIN} times, or over {MOST:?} in the full form: {wrong:#?}");
        self.nothing_is_lost().await;
    }

    async fn beside_honest(&self, window: Duration) -> Window {
        self.honest.works(true);
        let seen = self.window(window, pending()).await;
        self.honest.works(false);
        seen
    }

    /// Measures while `meanwhile` runs.
    async fn window(&self, window: Duration, meanwhile: impl Future<Output = Infallible>) -> Window {
        // What was going on before has its end.
        sleep(Duration::from_millis(20)).await;
        let (from, used) = (Instant::now(), processor_time(&self.relay));
        tokio::select! {
            () = sleep(window) => {}
            never = meanwhile => match never {},
        }
        let (to, used) = (Instant::now(), processor_time(&self.relay) - used);
        let times = self.neighbour.samples(from, to).map(|mut times| {
            times.sort_unstable();
            times
        });
        // One that took the whole window left no room for another.
        let percentile = |percent| {
            let of = |times: &Vec<Duration>| times.get(times.len() * percent / 100).copied().unwrap_or(window);
            times.each_ref().map(of)
        };
        Window { p50: percentile(50), p99: percentile(99), used: used / (to - from).as_secs_f64() }
    }

    /// Checks that the relay's memory stays within what this many tenants may have, and that the neighbour loses
    /// nothing. `total`: what each may have. Prints the memory, and the neighbour's latencies before the attack and
    /// during it.
    pub async fn memory_within(&mut self, total: usize, tenants: usize, attack: impl Future<Output = ()>) {
        let idle = self.relay.resident_memory();
        // The shard has something to do.
        self.honest.works_at(BUSY);
        let before = self.window(WINDOW, pending()).await.p99;
        let from = Instant::now();
        // Some attacks are refused at once.
        let ((), ()) = tokio::join!(attack, sleep(WINDOW));
        let during = self.neighbour.samples(from, Instant::now()).map(|times| times.into_iter().max().unwrap());
        self.honest.works(false);
        let peak = self.relay.peak_memory();
        let (idle_mib, peak_mib) = (idle >> 20, peak >> 20);
        eprintln!(
            "memory {idle_mib} MiB before, {peak_mib} MiB at most; p99 {before:.1?} before, at most {during:.1?} during"
        );
        let most = idle + tenants * total * 11 / 10;
        assert!(peak <= most, "{peak_mib} MiB; at most {} MiB", most >> 20);
        self.nothing_is_lost().await;
    }

    /// Checks that the neighbour has lost nothing. Its client compares every message.
    async fn nothing_is_lost(&mut self) {
        let now = Instant::now();
        self.neighbour.samples(now, now);
        let (_, metrics) = self.relay.get("/metrics").await;
        for nothing in ["guest_failures_total", "guest_lost_total", "publications_refused_total"] {
            let wrong = metrics.lines().find(|line| {
                line.starts_with(&format!("edge_relay_{nothing}"))
                    && line.contains("tenant=\"neighbour\"")
                    && !line.ends_with(" 0")
            });
            assert_eq!(wrong, None);
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

/// Waits until what is left of an attack is done.
async fn quiet(relay: &Relay) {
    let began = Instant::now();
    while began.elapsed() < UNTIL_QUIET {
        let before = processor_time(relay);
        sleep(LOOK).await;
        if processor_time(relay) - before < QUIET * LOOK.as_secs_f64() {
            return;
        }
    }
}

/// The seconds of processors that a relay has used: user and system, in hundredths (proc_pid_stat(5)).
pub fn processor_time(relay: &Relay) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{}/stat", relay.id())).unwrap();
    let fields: Vec<_> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    [11, 12].map(|nth| fields[nth].parse::<f64>().unwrap()).iter().sum::<f64>() / 100.0
}

/// Waits until calls of the hostile tenant broke, as [`Scene::broke`] does.
pub async fn broke(relay: &Relay, role: &str, reason: Option<&str>) {
    let reason = reason.map(|reason| ("reason", reason));
    let labels = [("tenant", "hostile"), ("role", role), ("blame", "guest_broke")];
    let labels: Vec<_> = labels.into_iter().chain(reason).collect();
    relay.metric_reaches("edge_relay_guest_failures_total", &labels, 1.0).await;
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

/// Changes a tenant to a manifest in which `more` follows the name and the upstream.
pub async fn swap(relay: &Relay, tenant: &str, more: &str) {
    const SWAPS: &str = "edge_relay_tenant_swaps_total";
    let labels = [("tenant", tenant), ("outcome", "applied")];
    let before = relay.metric(SWAPS, &labels).await;
    let path = format!("tenants/{tenant}/tenant.toml");
    let manifest = fs::read_to_string(relay.folder().path(&path)).unwrap();
    let head: Vec<_> = manifest.lines().take(4).collect();
    relay.folder().write(&path, format!("{}\n{more}\n", head.join("\n")));
    relay.signal(Signal::HUP);
    relay.metric_reaches(SWAPS, &labels, before + 1.0).await;
}
