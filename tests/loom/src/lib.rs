//! Models of the data that threads share, compiled with loom's locks and run in every order of the threads' steps.
//!
//! Publishers put chunks into a channel's log under its lock and tell its readers. A reader is a shard's mailbox, and a
//! shard sleeps until it is woken. If one notice is lost, a client waits for ever. No test on real threads would find
//! the one order of steps in which that happens.
#![cfg(test)]
#![allow(clippy::unwrap_used, clippy::panic)]

// The host's sources, compiled with loom's locks instead of the host's. Loom replaces the types themselves. A feature
// of the host could do that, but would make loom a dependency of the program.
mod sync {
    use loom::sync::MutexGuard;

    pub struct Mutex<T>(loom::sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub fn new(value: T) -> Self {
            Self(loom::sync::Mutex::new(value))
        }

        pub fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock().unwrap()
        }
    }
}

#[path = "../../../host/src/delivery/mailbox.rs"]
mod mailbox;
#[allow(dead_code)] // Only the part that threads share is tested.
#[path = "../../../host/src/channel/readers.rs"]
mod readers;

use std::sync::Arc;

use loom::{
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use self::{
    mailbox::Mailbox,
    readers::{Reader, Readers},
};

/// A shard's queue. `woken` stands in for epoll: it counts the wake-ups that the shard has not noticed yet.
struct Queue {
    commands: Mailbox<usize>,
    woken: AtomicUsize,
}

impl Queue {
    fn new() -> Arc<Self> {
        Arc::new(Self { commands: Mailbox::new(), woken: AtomicUsize::new(0) })
    }
}

impl Reader for Queue {
    fn new_chunks(&self, token: usize) {
        if self.commands.push(token) {
            self.woken.fetch_add(1, Ordering::SeqCst);
        }
    }
}

/// A channel: how many chunks its log has, and its readers.
type Channel = Arc<Mutex<(u64, Readers)>>;

fn publish(channel: &Channel) {
    let mut state = channel.lock().unwrap();
    let (chunks, readers) = &mut *state;
    let newest = *chunks;
    *chunks += 1;
    readers.notify(newest);
}

/// One turn of the shard, if it was woken. It takes its commands, and for each notice of a channel it takes all chunks
/// that the channel has.
fn turn(queue: &Arc<Queue>, channel: &Channel, seen: &mut u64) {
    if queue.woken.swap(0, Ordering::SeqCst) == 0 {
        return thread::yield_now();
    }
    let mut commands = Vec::new();
    queue.commands.take(&mut commands);
    for _fresh in commands {
        let mut state = channel.lock().unwrap();
        let reader: Arc<dyn Reader> = queue.clone();
        state.1.caught_up(&reader);
        assert!(state.0 >= *seen);
        *seen = state.0;
    }
}

#[test]
fn a_sleeping_shard_is_woken_for_every_chunk() {
    loom::model(|| {
        let (queue, channel) = (Queue::new(), Channel::default());
        channel.lock().unwrap().1.attach(queue.clone(), 0);
        let publishers: Vec<_> = (0..2)
            .map(|_| {
                let channel = channel.clone();
                thread::spawn(move || publish(&channel))
            })
            .collect();
        let mut seen = 0;
        // One turn while they publish, and one after that, if the shard was woken by then.
        turn(&queue, &channel, &mut seen);
        for publisher in publishers {
            publisher.join().unwrap();
        }
        turn(&queue, &channel, &mut seen);
        assert_eq!(seen, 2, "the shard sleeps, and there are chunks to read");
    });
}

#[test]
fn one_word_waits_however_many_chunks_there_are() {
    loom::model(|| {
        let (queue, channel) = (Queue::new(), Channel::default());
        channel.lock().unwrap().1.attach(queue.clone(), 0);
        let publisher = {
            let channel = channel.clone();
            thread::spawn(move || (0..2).for_each(|_| publish(&channel)))
        };
        publish(&channel);
        publisher.join().unwrap();
        let mut commands = Vec::new();
        queue.commands.take(&mut commands);
        assert_eq!(commands, [0]);
        assert_eq!(channel.lock().unwrap().1.unread(), Some(0));
    });
}

#[test]
fn what_comes_after_the_end_is_dropped_and_nothing_before_it_is() {
    loom::model(|| {
        let queue = Queue::new();
        let pusher = {
            let queue = queue.clone();
            thread::spawn(move || (0..2).for_each(|command| queue.new_chunks(command)))
        };
        let mut taken = Vec::new();
        queue.commands.take(&mut taken);
        taken.extend(queue.commands.close().unwrap());
        pusher.join().unwrap();
        // The commands that were pushed first, in their order.
        assert!(taken.iter().copied().eq(0..taken.len()), "{taken:?}");
        assert!(queue.commands.close().is_none());
    });
}
