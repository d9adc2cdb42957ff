use std::collections::BTreeSet;

use proptest::prelude::*;
use tokio::time::advance;
use wire::Kind;

use super::*;
use crate::{log_lines::LogLines, metrics::Metrics, upstream::state::State};

/// Bytes that may wait: ten frames without payload.
const MOST: usize = 10 * FRAME_OVERHEAD;

struct Scene {
    queue: FilterQueue,
    inbox: FilterInbox,
    metrics: Arc<Metrics>,
    handle: Arc<Handle>,
}

impl Scene {
    fn new(overflow: Overflow) -> Self {
        let metrics = Arc::new(Metrics::new());
        let tenant = Arc::new(metrics.tenant(&"t".into()));
        let upstream = Arc::new(metrics.upstream(&"t".into(), &"feed".into()));
        let account = Account::of_test();
        let (queue, inbox) = filter_queue(QueueParts {
            overflow,
            account: Arc::clone(&account),
            metrics: Arc::clone(&upstream),
            log: UpstreamLog {
                tenant: "t".into(),
                upstream: "feed".into(),
                lines: Arc::new(LogLines::new("t".into(), 1, tenant)),
            },
            waiting: Gauge::default(),
            max_bytes: MOST,
        });
        let handle = Arc::new(Handle::new("feed".into(), None, None, upstream, account));
        Self { queue, inbox, metrics, handle }
    }

    fn open(&self, connection: u64) {
        let line = Line::new(connection).0;
        // What it answers is of no interest.
        drop(self.queue.open(line, &self.handle, Status::new(State::Live)));
    }

    /// What the worker gets now, in short. `None`: nothing.
    fn next(&self) -> Option<String> {
        let event = futures_util::FutureExt::now_or_never(self.inbox.next())??;
        Some(match event {
            FilterEvent::Open(opening) => format!("open {}", opening.line.connection),
            FilterEvent::Frames { connection, frames, .. } => {
                let texts: Vec<_> = frames.iter().map(|frame| str::from_utf8(&frame.bytes).unwrap()).collect();
                format!("{connection}: {}", texts.join(" "))
            }
            FilterEvent::Gap => "gap".into(),
            FilterEvent::Close { connection, .. } => format!("close {connection}"),
        })
    }

    fn all(&self) -> Vec<String> {
        std::iter::from_fn(|| self.next()).collect()
    }

    fn dropped(&self, reason: &str) -> usize {
        let text = self.metrics.encode().unwrap();
        let line = text.lines().find(|line| {
            line.starts_with("edge_relay_upstream_dropped_total") && line.contains(&format!("reason=\"{reason}\""))
        });
        line.map_or(0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
    }
}

fn frames(texts: &[&str]) -> Vec<Frame> {
    texts.iter().map(|text| Frame { kind: Kind::Text, bytes: text.to_string().into() }).collect()
}

#[test]
fn events_come_in_order_and_frames_together() {
    let scene = Scene::new(Overflow::Wait);
    scene.open(1);
    for text in ["a", "b", "c"] {
        scene.queue.offer(1, &mut frames(&[text])).unwrap();
    }
    scene.queue.close(1, "gone".into());
    assert_eq!(scene.all(), ["open 1", "1: a b c", "close 1"]);
}

#[test]
fn what_came_before_a_close_is_given_out_while_nothing_newer_waits() {
    let scene = Scene::new(Overflow::Wait);
    scene.open(1);
    scene.queue.offer(1, &mut frames(&["a"])).unwrap();
    scene.queue.close(1, "gone".into());
    scene.open(2);
    assert_eq!(scene.all(), ["open 1", "1: a", "close 1", "open 2"]);
}

#[test]
fn the_next_connections_frames_take_the_place_of_what_waits_of_the_one_before() {
    let scene = Scene::new(Overflow::Wait);
    scene.open(1);
    for text in ["a", "b"] {
        scene.queue.offer(1, &mut frames(&[text])).unwrap();
    }
    scene.queue.close(1, "gone".into());
    scene.open(2);
    scene.queue.offer(2, &mut frames(&["c"])).unwrap();
    assert_eq!(scene.all(), ["open 1", "close 1", "open 2", "2: c"]);
    assert_eq!(scene.dropped("superseded"), 2);
}

#[tokio::test(start_paused = true)]
async fn a_connection_waits_ten_seconds_to_be_opened_and_so_does_another_upstream() {
    let scene = Scene::new(Overflow::Wait);
    scene.open(1);
    scene.queue.offer(1, &mut frames(&["a"])).unwrap();
    scene.queue.close(1, "gone".into());
    scene.open(2);
    assert_eq!(scene.next().unwrap(), "open 1");
    // Others that come and go do not make it wait longer.
    advance(PATIENCE / 2).await;
    scene.queue.close(2, "gone".into());
    scene.open(3);
    advance(PATIENCE / 2).await;
    assert_eq!(scene.all(), ["close 1", "open 2", "close 2", "open 3"]);
    scene.queue.offer(3, &mut frames(&["b"])).unwrap();
    scene.queue.close(3, "gone".into());
    let Scene { queue, inbox, .. } = scene;
    drop(queue);
    advance(PATIENCE).await;
    assert!(matches!(inbox.next().await, Some(FilterEvent::Close { connection: 3, .. })));
    assert!(inbox.next().await.is_none());
}

#[tokio::test]
async fn over_its_bound_it_waits_and_says_when_there_is_room() {
    let scene = Scene::new(Overflow::Wait);
    scene.queue.offer(1, &mut frames(&[""; 10])).unwrap();
    let mut more = frames(&["more"]);
    assert_eq!(scene.queue.offer(1, &mut more).err(), Some(NoRoom::Filter));
    assert_eq!(more.len(), 1, "they stay where they are");
    assert!(futures_util::FutureExt::now_or_never(scene.queue.freed()).is_none());
    scene.next().unwrap();
    scene.queue.freed().await;
    assert!(scene.queue.offer(1, &mut more).unwrap().dropped.is_none());
    assert_eq!(scene.all(), ["1: more"]);
    // A single burst may be larger than all that may wait.
    assert!(scene.queue.offer(1, &mut frames(&["x".repeat(MOST).as_str()])).is_ok());
    scene.queue.force(1, frames(&["last"]));
    assert_eq!(scene.all().concat().len(), "1:  last".len() + MOST);
}

#[test]
fn over_its_bound_it_drops_the_oldest_and_leaves_one_gap() {
    let scene = Scene::new(Overflow::Drop);
    let texts: Vec<_> = (0..25).map(|nth| nth.to_string()).collect();
    let dropped =
        texts.iter().filter(|text| scene.queue.offer(1, &mut frames(&[text])).unwrap().dropped.is_some()).count();
    let all = scene.all();
    assert_eq!(all.first().unwrap(), "gap");
    assert_eq!(all.len(), 2, "{all:?}");
    let left = all[1].split(' ').count() - 1;
    assert_eq!(scene.dropped("overflow") + left, texts.len());
    assert!(all[1].ends_with(" 23 24"), "{all:?}");
    assert!(dropped <= 5, "a drop makes room for a while: {dropped}");
}

/// What happens to a queue.
#[derive(Clone, Debug)]
enum Act {
    /// The next connection, after the one before has ended.
    Connect,
    Burst(usize),
    Take,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        1 => Just(Act::Connect),
        6 => (1_usize..6).prop_map(Act::Burst),
        4 => Just(Act::Take),
    ];
    prop::collection::vec(act, 1..80)
}

proptest! {
    /// Whatever the order of steps, every message is given out once, in order, or there is a gap where it was; and what
    /// was told of a connection comes before its end, never behind messages of the next.
    #[test]
    fn nothing_is_lost_without_a_gap(acts in acts(), drops in any::<bool>()) {
        let scene = Scene::new(if drops { Overflow::Drop } else { Overflow::Wait });
        let (mut connection, mut sent, mut held) = (1, 0_usize, Vec::new());
        let mut taken = Vec::new();
        scene.open(1);
        for act in acts {
            match act {
                Act::Connect => {
                    scene.queue.force(connection, std::mem::take(&mut held));
                    scene.queue.close(connection, String::new());
                    connection += 1;
                    scene.open(connection);
                }
                // One that is not read sends nothing.
                Act::Burst(_) if !held.is_empty() => {
                    let _ = scene.queue.offer(connection, &mut held);
                }
                Act::Burst(count) => {
                    let texts: Vec<_> = (sent..sent + count).map(|nth| nth.to_string()).collect();
                    sent += count;
                    held = frames(&texts.iter().map(String::as_str).collect::<Vec<_>>());
                    let _ = scene.queue.offer(connection, &mut held);
                }
                Act::Take => taken.extend(scene.next()),
            }
        }
        scene.queue.force(connection, held);
        taken.extend(scene.all());
        let (mut expected, mut open, mut gap) = (0, 0, false);
        let mut given = BTreeSet::new();
        for event in &taken {
            let (what, rest) = event.split_once(' ').unwrap_or((event, ""));
            match what {
                "gap" => gap = true,
                "open" => open = rest.parse().unwrap(),
                "close" => {
                    prop_assert_eq!(rest.parse::<u64>().unwrap(), open);
                    // A new epoch begins here.
                    gap = true;
                }
                of => {
                    prop_assert_eq!(of, format!("{open}:"));
                    for nth in rest.split(' ').filter(|nth| !nth.is_empty()) {
                        let nth: usize = nth.parse().unwrap();
                        prop_assert!(nth == expected || gap && nth > expected, "{nth} for {expected} in {taken:?}");
                        prop_assert!(given.insert(nth));
                        (expected, gap) = (nth + 1, false);
                    }
                }
            }
        }
        let dropped = scene.dropped("overflow") + scene.dropped("superseded");
        prop_assert_eq!(given.len() + dropped, sent);
        prop_assert!(drops || scene.dropped("overflow") == 0);
        prop_assert_eq!(open, connection);
    }
}
