use std::{
    io::Write,
    os::{fd::OwnedFd, unix::net::UnixStream},
    sync::Arc,
    time::{Duration, Instant},
};

use config::TenantLimits;
use mio::Events;
use wire::Kind;

use super::*;
use crate::{
    account::Account,
    delivery::{
        ClientId, ClientLimits, ClientSources, Connected, LimitReached, Recipient,
        shard::{Accepted, Newcomer, Timing},
    },
    metrics::Metrics,
    sync::Mutex,
    usage::Usage,
};

/// A second and a little more, in milliseconds.
const LATER: Duration = Duration::from_millis(1100);

/// What clients have sent: their names, and the messages.
type Seen = Arc<Mutex<Vec<(char, String)>>>;

/// Takes the messages of one client, or refuses all.
struct Taker {
    id: ClientId,
    name: char,
    seen: Seen,
    refuses: bool,
}

impl Recipient for Taker {
    fn id(&self) -> ClientId {
        self.id
    }

    fn message(self: Arc<Self>, _: Kind, payload: &[u8]) -> Result<(), LimitReached> {
        self.seen.lock().push((self.name, String::from_utf8(payload.to_vec()).unwrap()));
        if self.refuses { Err(LimitReached::Messages) } else { Ok(()) }
    }

    fn note_leaving(&self, _: &'static str) {}
}

struct Scene {
    shard: Shard,
    events: Events,
    seen: Seen,
}

impl Scene {
    fn new() -> Self {
        let hour = Duration::from_secs(3600);
        let timing = Timing { ping_interval: hour, stall_timeout: hour };
        Self {
            shard: Shard::new(timing, Arc::default()).unwrap(),
            events: Events::with_capacity(64),
            seen: Seen::default(),
        }
    }

    fn turn(&mut self) {
        self.shard.turn(&mut self.events, &mut Vec::new(), Duration::ZERO).unwrap();
    }

    /// Has turns until nothing is left to be read.
    fn settle(&mut self) {
        for _ in 0..1000 {
            self.turn();
            if self.shard.to_read.is_idle() {
                return self.turn();
            }
        }
        panic!("there is always more to be read");
    }

    /// Connects a client that has sent `leftover` with its handshake. Returns its end of the socket.
    fn connect(&mut self, tenant: &Arc<ClientLimits>, name: char, leftover: Vec<u8>, refuses: bool) -> UnixStream {
        let (socket, served) = UnixStream::pair().unwrap();
        socket.set_nonblocking(true).unwrap();
        served.set_nonblocking(true).unwrap();
        let sources = ClientSources::new(Arc::clone(tenant), usize::MAX);
        let taker = Taker { id: ClientId::new(0), name, seen: Arc::clone(&self.seen), refuses };
        let client = Connected::new(sources.source_for([127, 0, 0, 1].into()).unwrap(), Some(Arc::new(taker)));
        let accepted = Accepted::new(client);
        self.shard.adopt(Newcomer { socket: OwnedFd::from(served).into(), leftover, accepted });
        socket
    }

    fn seen_of(&self, name: char) -> Vec<String> {
        self.seen.lock().iter().filter(|(of, _)| *of == name).map(|(_, message)| message.clone()).collect()
    }
}

fn tenant() -> Arc<ClientLimits> {
    let limits = TenantLimits::default();
    let metrics = Arc::new(Arc::new(Metrics::new()).tenant(&"t".into()));
    let account = Account::new(&limits, Arc::clone(&metrics));
    Arc::new(ClientLimits::new(metrics, &limits, Arc::default(), Arc::default(), account, Usage::of_test()))
}

/// Masked text messages with these numbers.
fn numbered(numbers: std::ops::Range<usize>) -> Vec<u8> {
    let mut bytes = Vec::new();
    numbers
        .for_each(|number| frame::encode_masked(frame::TEXT, number.to_string().as_bytes(), [1, 2, 3, 4], &mut bytes));
    bytes
}

fn texts(numbers: std::ops::Range<usize>) -> Vec<String> {
    numbers.map(|number| number.to_string()).collect()
}

#[test]
fn more_than_a_turn_has_is_handled_in_order_and_the_end_is_seen() {
    let (mut scene, tenant) = (Scene::new(), tenant());
    let mut client = scene.connect(&tenant, 'a', numbered(0..1000), false);
    // What came with the handshake is handled before what came later.
    client.write_all(&numbered(1000..3000)).unwrap();
    drop(client);
    scene.turn();
    assert!((1..1000).contains(&scene.seen.lock().len()), "one turn has a bound");
    scene.settle();
    assert_eq!(scene.seen_of('a'), texts(0..3000));
    assert!(scene.shard.rows.is_empty());
}

#[test]
fn one_tenants_clients_do_not_keep_anothers_waiting() {
    let (mut scene, loud, quiet) = (Scene::new(), tenant(), tenant());
    let floods: Vec<_> = (0..50).map(|_| scene.connect(&loud, 'a', numbered(0..1000), false)).collect();
    let mut client = scene.connect(&quiet, 'b', Vec::new(), false);
    client.write_all(&numbered(0..1)).unwrap();
    // If this thread has to wait, a turn may be over before the second tenant has its own.
    let mut turns = 0;
    while scene.seen_of('b').is_empty() {
        scene.turn();
        turns += 1;
        assert!(scene.seen_of('a').len() <= 256 * turns);
    }
    assert!(turns <= 10, "{turns} turns");
    scene.settle();
    assert_eq!(scene.seen_of('a').len(), 50 * 1000);
    drop(floods);
}

#[test]
fn a_slot_that_has_another_client_by_now_has_its_messages_only() {
    let (mut scene, tenant) = (Scene::new(), tenant());
    let first = scene.connect(&tenant, 'a', numbered(0..1000), false);
    scene.turn();
    let slot = scene.shard.rows.iter().next().unwrap().0;
    scene.shard.remove(slot, "io");
    let handled = scene.seen_of('a').len();
    let second = scene.connect(&tenant, 'b', numbered(0..1000), false);
    assert_eq!(scene.shard.rows.iter().next().unwrap().0, slot, "the slot is taken again");
    scene.settle();
    assert_eq!((scene.seen_of('a').len(), scene.seen_of('b')), (handled, texts(0..1000)));
    drop((first, second));
}

#[test]
fn a_client_whose_messages_are_dropped_is_told_at_once_and_then_once_a_second() {
    let (mut scene, tenant) = (Scene::new(), tenant());
    let mut client = scene.connect(&tenant, 'a', numbered(0..1000), true);
    scene.settle();
    let mut told = |scene: &mut Scene| {
        scene.turn();
        let mut bytes = vec![0; 1 << 16];
        let length = std::io::Read::read(&mut client, &mut bytes).unwrap_or(0);
        String::from_utf8_lossy(&bytes[..length]).into_owned()
    };
    let first = told(&mut scene);
    assert!(first.contains("\"dropped\":1,") && first.matches("dropped").count() == 1, "{first}");
    assert_eq!(told(&mut scene), "");
    scene.shard.started = scene.shard.started.checked_sub(LATER).unwrap();
    let second = told(&mut scene);
    assert!(second.contains("\"dropped\":999,"), "{second}");
    for _ in 0..2 {
        scene.shard.started = scene.shard.started.checked_sub(LATER).unwrap();
        assert_eq!(told(&mut scene), "");
    }
    assert!(scene.shard.refused.is_empty());
    assert!(Instant::now() > scene.shard.started);
}
