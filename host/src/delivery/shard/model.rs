//! Tests shard, log, snapshot and policies against a naive reference. Sockets have small buffers, and clients read as
//! they please.

use std::{
    collections::HashMap,
    os::{fd::OwnedFd, unix::net::UnixStream},
};

use config::{ChannelRule, Slow, TenantLimits};
use mio::Events;
use proptest::prelude::*;
use rustix::net::sockopt::set_socket_send_buffer_size;
use wire::{Frame, Kind, Position, frame};

use crate::{
    account::Account,
    channel::{Channels, Publication, Resumed, resume},
    delivery::{
        ClientSources, queue,
        shard::{row::flag, *},
    },
    metrics::{Metrics, TenantMetrics},
    usage::Usage,
};

mod client;

use crate::delivery::shard::model::client::{Client, Received, payload_of};

const CHANNELS: [&str; 2] = ["a", "b"];
/// Bytes of each log: room for a dozen publications.
const LOG_BYTES: usize = 6 << 10;
/// Size of the sockets' send buffers. The kernel raises it to the least that it allows.
const BUFFER: usize = 1;
const KEYS: u8 = 6;

#[derive(Clone, Debug)]
enum ModelStep {
    /// A burst. For each publication: its channel, its key, whether it removes the key, its payload's length.
    Publish(Vec<(usize, Option<u8>, bool, usize)>),
    /// A client connects to these channels, in this format.
    Connect(Vec<usize>, Format),
    /// A client connects with the position that another client has reached in a channel.
    Resume {
        client: usize,
        channel: usize,
    },
    /// A client reads at most this many bytes.
    Read {
        client: usize,
        bytes: usize,
    },
    Leave(usize),
    /// A client is sent a reply of this many bytes.
    Reply {
        client: usize,
        bytes: usize,
    },
    /// A client follows another channel.
    Follow {
        client: usize,
        channel: usize,
    },
    LoseUpstream,
    /// The shard has its turn.
    Turn,
}

fn steps() -> impl Strategy<Value = Vec<ModelStep>> {
    let channel = 0..CHANNELS.len();
    let key = proptest::option::weighted(0.8, 0..KEYS);
    let publication = (channel.clone(), key, proptest::bool::weighted(0.1), 0..2000_usize);
    let publication =
        publication.prop_map(|(channel, key, remove, length)| (channel, key, remove && key.is_some(), length));
    let format = prop_oneof![Just(Format::Raw), Just(Format::Sse), Just(Format::Centrifuge)];
    let step = prop_oneof![
        8 => proptest::collection::vec(publication, 1..12).prop_map(ModelStep::Publish),
        2 => (proptest::sample::subsequence(vec![0, 1], 1..=2), format)
            .prop_map(|(channels, format)| ModelStep::Connect(channels, format)),
        1 => (0..8_usize, channel.clone()).prop_map(|(client, channel)| ModelStep::Resume { client, channel }),
        6 => (0..8_usize, 1..20_000_usize).prop_map(|(client, bytes)| ModelStep::Read { client, bytes }),
        1 => (0..8_usize).prop_map(ModelStep::Leave),
        2 => (0..8_usize, 0..20_000_usize).prop_map(|(client, bytes)| ModelStep::Reply { client, bytes }),
        1 => (0..8_usize, channel).prop_map(|(client, channel)| ModelStep::Follow { client, channel }),
        1 => Just(ModelStep::LoseUpstream),
        6 => Just(ModelStep::Turn),
    ];
    proptest::collection::vec(step, 1..80)
}

/// A publication as the reference knows it. Its payload begins with its number.
#[derive(Clone)]
struct Published {
    channel: usize,
    key: Option<u8>,
    remove: bool,
    offset: u64,
    epoch: usize,
    length: usize,
}

struct World {
    shard: Shard,
    events: Events,
    channels: Channels,
    metrics: Arc<TenantMetrics>,
    upstream: Arc<str>,
    published: Vec<Published>,
    offsets: [u64; 2],
    epoch: [usize; 2],
    clients: Vec<Client>,
    policy: Slow,
}

/// Has steps taken with a client, in as many turns as it needs.
fn take_steps(shard: &mut Shard, client: ClientId, client_limits: &Arc<ClientLimits>, steps: Vec<queue::Step>) {
    let steps = Steps { client, client_limits: Arc::clone(client_limits), steps: steps.into_iter(), _share: None };
    shard.take_task(Task::Steps(steps), &Turn::new());
    while !shard.to_do.is_empty() {
        shard.task_turns();
    }
}

impl World {
    fn new(policy: Slow) -> Self {
        let hour = Duration::from_secs(3600);
        let timing = Timing { ping_interval: hour, stall_timeout: hour };
        let metrics = Arc::new(Arc::new(Metrics::new()).tenant(&"t".into()));
        let rule =
            ChannelRule { pattern: "*".into(), log_bytes: LOG_BYTES, slow: Some(policy), ..ChannelRule::default() };
        let limits = TenantLimits { logs: usize::MAX / 4, memory_total: usize::MAX / 4, ..TenantLimits::default() };
        Self {
            shard: Shard::new(timing, Arc::default()).unwrap(),
            events: Events::with_capacity(64),
            channels: Channels::new(
                vec![rule],
                &limits,
                None,
                Arc::clone(&metrics),
                Account::new(&limits, Arc::clone(&metrics)),
            ),
            metrics,
            upstream: "feed".into(),
            published: Vec::new(),
            offsets: [0; 2],
            epoch: [0; 2],
            clients: Vec::new(),
            policy,
        }
    }

    fn turn(&mut self) {
        self.shard.turn(&mut self.events, &mut Vec::new(), Duration::ZERO).unwrap();
    }

    fn take(&mut self, step: ModelStep) {
        match step {
            ModelStep::Publish(burst) => self.publish(&burst),
            ModelStep::Connect(channels, format) => self.connect(channels, format, None),
            ModelStep::Resume { client, channel } => self.resume(client, channel),
            ModelStep::Read { client, bytes } => {
                if let Some(client) = self.clients.get_mut(client).filter(|client| !client.left) {
                    client.read(bytes);
                }
            }
            ModelStep::Leave(client) => {
                if let Some(client) = self.clients.get_mut(client) {
                    client.left = true;
                    drop(client.socket.shutdown(std::net::Shutdown::Both));
                }
            }
            ModelStep::Reply { client, bytes } => {
                let replies = |client: &&Client| !client.left && client.format != Format::Sse;
                if let Some(client) = self.clients.get(client).filter(replies) {
                    let mut reply = Vec::new();
                    frame::encode(frame::TEXT, &vec![b'r'; bytes], &mut reply);
                    let share = client.client_limits.budget.take(0).unwrap();
                    take_steps(
                        &mut self.shard,
                        client.id,
                        &client.client_limits,
                        vec![queue::Step::Send(reply, share)],
                    );
                }
            }
            ModelStep::Follow { client, channel } => self.follow(client, channel),
            ModelStep::LoseUpstream => {
                self.channels.lost(&self.upstream, usize::MAX);
                for (channel, epoch) in self.epoch.iter_mut().enumerate() {
                    let newest = self.published.iter().rev().find(|published| published.channel == channel);
                    if newest.is_some_and(|newest| newest.epoch == *epoch) {
                        *epoch += 1;
                    }
                }
            }
            ModelStep::Turn => self.turn(),
        }
    }

    fn publish(&mut self, burst: &[(usize, Option<u8>, bool, usize)]) {
        let mut publications = Vec::new();
        for &(channel, key, remove, length) in burst {
            let number = self.published.len();
            self.offsets[channel] += 1;
            let (offset, epoch) = (self.offsets[channel], self.epoch[channel]);
            self.published.push(Published { channel, key, remove, offset, epoch, length });
            let data = Frame { kind: Kind::Binary, bytes: payload_of(number, length).into() };
            let key = key.map(|key| key.to_string().into());
            publications.push(Publication { channel: CHANNELS[channel].into(), key, remove, data, framed: None });
        }
        let publishing = self.channels.publish(publications, Some(&self.upstream));
        let refused = futures_util::FutureExt::now_or_never(publishing).unwrap().1;
        assert_eq!(refused, []);
    }

    fn follow(&mut self, client: usize, channel: usize) {
        let Some(client) = self.clients.get_mut(client) else { return };
        if !client.left && client.format == Format::Raw && !client.channels.contains(&channel) {
            client.channels.push(channel);
            client.joined_at[channel] = self.offsets[channel];
            let open = self.channels.open(CHANNELS[channel]).unwrap();
            let follow =
                queue::Follow { channel: open, start: Start::Now, position_lost: false, given_by_tenant: true };
            let step = queue::Step::Subscribe(follow, queue::NotifyBy::Push);
            take_steps(&mut self.shard, client.id, &client.client_limits, vec![step]);
        }
    }

    fn connect(&mut self, channels: Vec<usize>, format: Format, last: Option<&[Position]>) {
        let opened: Vec<_> = channels.iter().map(|channel| self.channels.open(CHANNELS[*channel]).unwrap()).collect();
        let Resumed { channels: wanted, gaps } =
            resume(opened, &last.map(<[_]>::to_vec).into_iter().collect::<Vec<_>>());
        let mut after = [None; 2];
        for (channel, (_, start)) in channels.iter().zip(&wanted) {
            if let Start::After(position) = start {
                after[*channel] = Some(position.offset);
            }
        }
        // Unix sockets, for TCP is slow with small windows. To a shard a socket is a socket.
        let (socket, served) = UnixStream::pair().unwrap();
        set_socket_send_buffer_size(&served, BUFFER).unwrap();
        socket.set_nonblocking(true).unwrap();
        served.set_nonblocking(true).unwrap();
        let served = OwnedFd::from(served).into();
        let limits = TenantLimits::default();
        let account = Account::new(&limits, Arc::clone(&self.metrics));
        let usage = Usage::of_test();
        let shares = (Arc::clone(&self.metrics), Arc::default(), Arc::default());
        let client_limits = Arc::new(ClientLimits::new(shares.0, &limits, shares.1, shares.2, account, usage));
        let source = ClientSources::new(Arc::clone(&client_limits), limits.clients_per_address)
            .source_for([127, 0, 0, 1].into());
        let client = Connected::new(source.unwrap(), None);
        let id = ClientId::new(0);
        // Registered as a client with a handler is.
        self.shard.by_id.insert(id, self.shard.rows.vacant_key());
        let asks = format == Format::Centrifuge;
        let (wanted, asked) = if asks { (Vec::new(), wanted) } else { (wanted, Vec::new()) };
        let accepted = Accepted { channels: wanted, format, gaps, ..Accepted::new(client) };
        self.shard.adopt(Newcomer { socket: served, leftover: Vec::new(), accepted });
        for (channel, start) in asked {
            let follow = queue::Follow { channel, start, position_lost: false, given_by_tenant: false };
            take_steps(
                &mut self.shard,
                id,
                &client_limits,
                vec![queue::Step::Subscribe(follow, queue::NotifyBy::Reply(1))],
            );
        }
        let (bytes, joined_at) = (Vec::new(), self.offsets);
        self.clients.push(Client { socket, bytes, channels, joined_at, after, format, left: false, id, client_limits });
    }

    /// Connects a client that has what another client has received, and resumes.
    fn resume(&mut self, client: usize, channel: usize) {
        let Some(other) = self.clients.get(client) else { return };
        if other.format == Format::Sse {
            // As a browser does it: with its last id, for all of its channels.
            let (channels, last) = (other.channels.clone(), other.last_id());
            return self.connect(channels, Format::Sse, last.as_deref());
        }
        let format = other.format;
        let newest = other.received(&self.published, false).0.iter().rev().find_map(|received| match received {
            Received::Publication(number) => {
                Some(&self.published[*number]).filter(|published| published.channel == channel)
            }
            Received::Gap(_) => None,
        });
        let Some(newest) = newest.cloned() else { return };
        let open = self.channels.open(CHANNELS[channel]).unwrap();
        let epoch = open.page(None, 1).position.epoch;
        let after = Position { epoch, offset: newest.offset };
        if newest.epoch == self.epoch[channel] && open.can_resume_after(after) {
            self.connect(vec![channel], format, Some(&[after]));
        }
    }

    /// Lets every client read to the end, then compares all of them with the reference.
    fn settle(mut self) {
        // One quiet turn is not enough: a turn without anything to read may have left a socket with room.
        let mut quiet = 0;
        while quiet < 3 {
            self.turn();
            quiet += 1;
            for client in self.clients.iter_mut().filter(|client| !client.left) {
                while client.read(1 << 16) {
                    quiet = 0;
                }
            }
        }
        for client in self.clients.iter().filter(|client| !client.left) {
            let (received, code) = client.received(&self.published, true);
            for channel in &client.channels {
                let of_channel = |received: &&Received| match received {
                    Received::Publication(number) => self.published[*number].channel == *channel,
                    Received::Gap(gap) => gap == channel,
                };
                let received: Vec<Received> = received.iter().filter(of_channel).copied().collect();
                self.check(client, *channel, &received, code);
            }
        }
    }

    fn check(&self, client: &Client, channel: usize, received: &[Received], code: Option<u16>) {
        let publications: Vec<&Published> = received
            .iter()
            .filter_map(|received| match received {
                Received::Publication(number) => Some(&self.published[*number]),
                Received::Gap(_) => None,
            })
            .collect();
        let offsets: Vec<u64> = publications.iter().map(|published| published.offset).collect();
        assert!(offsets.is_sorted_by(|one, other| one < other), "out of order or twice: {offsets:?}");
        let from = client.after[channel].unwrap_or(client.joined_at[channel]);
        let ended = client.format == Format::Centrifuge && received.contains(&Received::Gap(channel));
        self.check_gaps(client, channel, received);
        let newest = self.offsets[channel];
        if let Some(code) = code {
            assert_eq!(code, 1013);
            assert_ne!(self.policy, Slow::Skip, "closed, though its channel's policy is to skip");
        } else if self.policy != Slow::Conflate && newest > from && !ended {
            assert_eq!(offsets.last(), Some(&newest), "the newest is missing: {offsets:?}");
        }
        // Without what may have come in the first snapshot.
        let live: Vec<u64> = offsets.iter().copied().filter(|offset| *offset > from).collect();
        match self.policy {
            Slow::Close => {
                let whole: Vec<u64> = (from + 1..).take(live.len()).collect();
                assert_eq!(live, whole, "a gap");
            }
            Slow::Skip => {}
            Slow::Conflate if code.is_none() && !ended => {
                self.check_keys(channel, &publications, client.after[channel])
            }
            Slow::Conflate => {}
        }
    }

    /// A client whose protocol can tell of gaps must be told of each one, in its place.
    fn check_gaps(&self, client: &Client, channel: usize, received: &[Received]) {
        if client.format == Format::Raw {
            return;
        }
        for pair in received.windows(2) {
            if let [Received::Publication(one), Received::Publication(other)] = pair {
                let (one, other) = (&self.published[*one], &self.published[*other]);
                assert_eq!(one.epoch, other.epoch, "a gap that was not told");
                let missed =
                    self.policy == Slow::Skip && client.format == Format::Sse && one.offset + 1 != other.offset;
                let in_snapshot = other.offset <= client.joined_at[channel];
                assert!(!missed || in_snapshot || one.offset <= client.joined_at[channel], "a skip that was not told");
            }
        }
        if client.format == Format::Centrifuge
            && let Some(gap) = received.iter().position(|received| *received == Received::Gap(channel))
        {
            assert_eq!(gap + 1, received.len(), "something follows the end of the subscription");
            let Some(Received::Publication(last)) = received.first().and(received.get(gap.wrapping_sub(1))) else {
                return;
            };
            let next = self
                .published
                .iter()
                .find(|next| next.channel == channel && next.offset == self.published[*last].offset + 1);
            let whole = self.policy != Slow::Close
                || next.is_none_or(|next| {
                    next.epoch != self.published[*last].epoch || next.offset <= client.joined_at[channel]
                });
            assert!(whole, "the subscription ends before the gap");
        }
    }

    /// The client must have the latest publication of every key.
    fn check_keys(&self, channel: usize, publications: &[&Published], after: Option<u64>) {
        let mut has: HashMap<u8, &Published> = HashMap::new();
        for published in publications {
            has.extend(published.key.map(|key| (key, *published)));
        }
        let of_epoch = |published: &&Published| published.channel == channel && published.epoch == self.epoch[channel];
        let mut latest: HashMap<u8, &Published> = HashMap::new();
        for published in self.published.iter().filter(of_epoch) {
            latest.extend(published.key.map(|key| (key, published)));
        }
        for (key, latest) in latest {
            let has = has.get(&key).map(|has| has.offset);
            // A client that never had a key need not be told that it is gone. What a resuming client had is not known
            // here.
            let untold = match after {
                None => latest.remove && has.is_none(),
                Some(after) => latest.offset <= after,
            };
            assert!(has == Some(latest.offset) || untold, "key {key}: {has:?}, and {} is the latest", latest.offset);
        }
    }
}

fn run(policy: Slow, steps: Vec<ModelStep>) {
    let mut world = World::new(policy);
    for step in steps {
        world.take(step);
    }
    world.settle();
}

#[test]
fn answers_that_are_not_taken_are_bounded() {
    let mut world = World::new(Slow::Close);
    world.connect(vec![0], Format::Centrifuge, None);
    let Client { id, client_limits, .. } = &world.clients[0];
    for _ in 0..300_000 {
        let step = queue::Step::Unsubscribe("x".into(), queue::NotifyBy::Reply(1));
        take_steps(&mut world.shard, *id, client_limits, vec![step]);
    }
    let (_, row) = world.shard.rows.iter().next().unwrap();
    assert!(row.is(flag::CLOSING) && row.queued() < 5 << 20, "{}", row.queued());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn slow_clients_are_closed_and_all_others_miss_nothing(steps in steps()) {
        run(Slow::Close, steps);
    }

    #[test]
    fn slow_clients_skip_to_the_newest(steps in steps()) {
        run(Slow::Skip, steps);
    }

    #[test]
    fn slow_clients_have_the_latest_of_every_key(steps in steps()) {
        run(Slow::Conflate, steps);
    }
}
