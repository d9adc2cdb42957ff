//! One run of one server in one scenario.

use std::{
    fmt::{self, Display},
    process::Command,
    thread,
    time::Duration,
};

use super::{
    place::Place,
    process::{Process, Usage},
    scenario::Scenario,
    server::{Kind, Server},
};
use crate::{
    clients::{Connected, Received},
    failure::{Context, Failure},
};

/// Longest wait for anything that takes moments.
pub const SOON: Duration = Duration::from_secs(20);
/// Clients give up sooner when nothing comes. This is for a server that is merely slow.
pub const LONG: Duration = Duration::from_secs(300);

pub struct Sample {
    /// What the server calls itself, with its version.
    pub version: String,
    pub resident_per_client: f64,
    pub cpu_per_handshake: f64,
    pub handshakes_per_second: f64,
    /// `None`: no messages were played.
    pub delivery: Option<Delivery>,
}

pub struct Delivery {
    pub messages: u32,
    /// The server's CPU, in µs per delivery.
    pub cpu: f64,
    /// The clients' CPU, in µs per delivery.
    pub cpu_of_clients: f64,
    pub per_second: f64,
    pub received: Received,
}

/// Whether every message came to every client once and in order.
pub fn is_exact(received: &Received) -> bool {
    let Received { missed, again, late, closed, .. } = received;
    missed + again + late + closed == 0
}

/// What went wrong in several runs. `failed` is how many failed altogether.
pub fn mistakes<'a>(received: impl Iterator<Item = &'a Received>, failed: usize) -> String {
    let mut sum = Received::default();
    for it in received {
        sum.missed += it.missed;
        sum.again += it.again;
        sum.late += it.late;
        sum.closed += it.closed;
    }
    let mut text = format!("{}, {}, {}", sum.missed, sum.again, sum.late);
    if sum.closed > 0 {
        text += &format!("; {} clients closed", sum.closed);
    }
    if failed > 0 {
        text += &format!("; {failed} runs failed");
    }
    text
}

impl Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { resident_per_client, cpu_per_handshake, handshakes_per_second, .. } = self;
        write!(f, "{resident_per_client:.0} B a client, {cpu_per_handshake:.1} µs a handshake, ")?;
        write!(f, "{handshakes_per_second:.0} handshakes/s")?;
        self.delivery.as_ref().map_or(Ok(()), |delivery| write!(f, "; {delivery}"))
    }
}

impl Display for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cpu, cpu_of_clients, per_second, received, .. } = self;
        write!(f, "{cpu:.3} µs a delivery (clients {cpu_of_clients:.3}), {per_second:.0}/s, {received}")
    }
}

pub fn take(scenario: &Scenario, kind: Kind, place: &Place) -> Result<Sample, Failure> {
    let messages = if kind.is_slow() { scenario.messages_if_slow } else { scenario.messages };
    let mut feed = place.own(&["feed"]);
    feed.args(["--messages", &messages.to_string(), "--burst", &scenario.burst.to_string()]);
    feed.args(["--pause-us", &scenario.pause.as_micros().to_string()]);
    let (server, mut feed) = start(kind, feed, place)?;
    feed.line("connected", SOON)?;

    let before = server.process.usage()?;
    let mut clients = place.own(&["clients", "--clients", &scenario.clients.to_string()]);
    clients.args(["--window", &scenario.window.to_string(), "--messages", &messages.to_string(), &server.target]);
    let clients = Process::start("clients", &clients, &place.scratch)?;
    let connected: Connected = clients.line("connected", LONG)?.parse()?;
    let after = server.process.usage()?;
    thread::sleep(scenario.settle);
    let settled = server.process.usage()?;

    let delivery = match messages {
        0 => None,
        _ => Some(deliver(messages, &mut feed, &server.process, &clients)?),
    };
    let count = scenario.clients as f64;
    Ok(Sample {
        version: server.version,
        resident_per_client: (settled.resident - before.resident) / count,
        cpu_per_handshake: (after.cpu - before.cpu) / count,
        handshakes_per_second: count / connected.seconds,
        delivery,
    })
}

pub fn start(kind: Kind, feed: Command, place: &Place) -> Result<(Server, Process), Failure> {
    start_with(kind, |address| kind.start(address, place), feed, place)
}

/// Starts the side that is connected to first: the feed, or the server if the feed publishes to it.
pub fn start_with(
    kind: Kind,
    server: impl FnOnce(&str) -> Result<Server, Failure>,
    mut feed: Command,
    place: &Place,
) -> Result<(Server, Process), Failure> {
    if kind.is_published_to() {
        let server = server("")?;
        feed.args(["--publish-to", &server.publish_to]);
        let feed = Process::start("feed", &feed, &place.scratch)?;
        return Ok((server, feed));
    }
    let feed = Process::start("feed", &feed, &place.scratch)?;
    let address = feed.line("listening", SOON)?;
    Ok((server(&address)?, feed))
}

pub fn deliver(messages: u32, feed: &mut Process, server: &Process, clients: &Process) -> Result<Delivery, Failure> {
    let (before, clients_before) = (server.usage()?, clients.usage()?);
    feed.tell()?;
    let received: Received = clients.line("received", LONG)?.parse()?;
    let (after, clients_after) = (server.usage()?, clients.usage()?);
    let deliveries = received.deliveries as f64;
    let per_delivery = |from: Usage, to: Usage| (to.cpu - from.cpu) / deliveries;
    let delivered = (received.deliveries > 0).then_some(());
    delivered.with_context(|| format!("nothing was delivered ({})", server.last_words()))?;
    Ok(Delivery {
        messages,
        cpu: per_delivery(before, after),
        cpu_of_clients: per_delivery(clients_before, clients_after),
        per_second: deliveries / received.seconds,
        received,
    })
}
