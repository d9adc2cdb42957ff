//! Clients that are all cut off at once and all reconnect at once.
//!
//! `bench herd ADDRESS/PATH --clients N --window N --messages N [--history PATH]`
//!
//! Prints `connected`, then `received` once all clients have the feed's first messages. After a line on standard input
//! it cuts every connection and prints `cut`. While the feed plays as many messages again, every client reconnects.
//! With `--history` each resumes from a position of its own: some had read all of the first messages, some none, and
//! each must get exactly the rest. No client waits for another; only a client that was refused tries again later. Then
//! it prints `returned`, with a report. The sockets stay open to the end.
//!
//! `bench crowd ADDRESS/PATH --clients N [--door DOOR]`
//!
//! Clients that were not there before and all connect at once. It prints `entered`, with the same report.

use std::time::{Duration, Instant};

use mio::{Events, Poll};

use super::{
    connect::{self, Client, Denied, Target},
    door::Door,
    histogram::Histogram,
    order::Order,
    position::Position,
    receive::{self, Receiver},
    report::Returned,
    wait,
};
use crate::{
    arguments::Arguments,
    failure::{Context, Failure},
};

const EVENTS: usize = 1024;
/// How often to look for clients whose next step is due.
const TICK: Duration = Duration::from_millis(10);
/// An attempt without an answer is given up after this long.
const PATIENCE: Duration = Duration::from_secs(10);
/// A client that was not answered tries again after this pause, which may be up to twice as long.
const PAUSE: Duration = Duration::from_millis(500);
/// A client that is not back by then does not come back.
const END: Duration = Duration::from_secs(60);
/// How long to look for messages that come twice.
const AFTER: Duration = Duration::from_millis(200);

pub fn run(mut arguments: Arguments) -> Result<(), Failure> {
    let count = arguments.option("--clients")?.unwrap_or(1);
    let window = arguments.option("--window")?.unwrap_or(1);
    let messages: u32 = arguments.option("--messages")?.unwrap_or(1);
    let history: Option<String> = arguments.option("--history")?;
    let target = Target::new(&arguments.word::<String>("an address with a path")?)?;
    arguments.end()?;

    let begin = history.map(|path| Position::ask(target.address, &path)).transpose()?;
    let mut poll = Poll::new().context("epoll")?;
    let (mut clients, connected) = connect::connect(&mut poll, &target, count, window)?;
    println!("connected {connected}");
    println!("received {}", receive::receive(&mut poll, &mut clients, Receiver::new(messages))?.0);
    wait()?;
    let cut = Instant::now();
    drop(clients);
    println!("cut");
    let mut herd = Herd::new(&target, count, messages, begin.as_ref(), cut)?;
    println!("returned {}", herd.come_back()?);
    wait()
}

pub fn crowd(mut arguments: Arguments) -> Result<(), Failure> {
    let count = arguments.option("--clients")?.unwrap_or(1);
    let door: Door = arguments.option("--door")?.unwrap_or_default();
    let target = Target::new(&arguments.word::<String>("an address with a path")?)?.with_door(door);
    arguments.end()?;

    let mut herd = Herd::new(&target, count, 0, None, Instant::now())?;
    println!("entered {}", herd.come_back()?);
    wait()
}

struct Herd<'t> {
    target: &'t Target,
    /// Messages of both parts together.
    messages: u32,
    resumes: bool,
    poll: Poll,
    clients: Vec<Returner>,
    receiver: Receiver,
    cut: Instant,
    /// Times since the cut, in nanoseconds.
    times: Histogram,
    returned: Returned,
}

struct Returner {
    request: String,
    /// The number of the first message that the client has not got.
    next: u32,
    state: State,
    attempts: u32,
}

enum State {
    /// Tries to connect at this time.
    Away(Instant),
    /// Has tried, and gives up at this time.
    Trying(Client, Instant),
    /// Is back, but lacks messages.
    Behind(Client),
    Done(Client),
}

impl<'t> Herd<'t> {
    fn new(
        target: &'t Target,
        count: usize,
        messages: u32,
        begin: Option<&Position>,
        cut: Instant,
    ) -> Result<Self, Failure> {
        let clients = (0..).take(count).map(|nth: u32| {
            // The clients have had from none of the first part's messages to all of them.
            let next = if begin.is_some() { nth % (messages + 1) } else { 0 };
            let request = begin.map_or_else(|| target.request(), |begin| target.request_since(&begin.after(next)));
            Returner { request, next, state: State::Away(cut), attempts: 0 }
        });
        Ok(Self {
            target,
            messages: messages * 2,
            resumes: begin.is_some(),
            poll: Poll::new().context("epoll")?,
            clients: clients.collect(),
            receiver: Receiver::new(messages * 2),
            cut,
            times: Histogram::new(),
            returned: Returned::default(),
        })
    }

    fn come_back(&mut self) -> Result<Returned, Failure> {
        let mut events = Events::with_capacity(EVENTS);
        let mut looked = self.cut;
        let mut until = self.cut + END;
        let mut all = false;
        while Instant::now() < until {
            if looked.elapsed() >= TICK || looked == self.cut {
                looked = Instant::now();
                self.look(looked)?;
            }
            self.poll.poll(&mut events, Some(TICK)).context("epoll")?;
            for event in &events {
                self.event(event.token().0)?;
            }
            if !all && self.returned.back == self.clients.len() as u64 {
                all = true;
                until = Instant::now() + AFTER;
            }
        }
        Ok(self.report())
    }

    /// Lets the clients whose next step is due try again, or give up.
    fn look(&mut self, now: Instant) -> Result<(), Failure> {
        for (nth, returner) in self.clients.iter_mut().enumerate() {
            match &returner.state {
                State::Away(due) if *due <= now => {
                    let mut client = Client::start(&self.poll, self.target, nth)?;
                    client.order = Order::from(returner.next);
                    returner.attempts += 1;
                    returner.state = State::Trying(client, now + PATIENCE);
                }
                State::Trying(_, end) if *end <= now => {
                    self.returned.late += 1;
                    returner.state = State::Away(now + later(PAUSE, nth, returner.attempts));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn event(&mut self, nth: usize) -> Result<(), Failure> {
        let Some(returner) = self.clients.get_mut(nth) else { return Ok(()) };
        match &mut returner.state {
            State::Away(_) => return Ok(()),
            State::Trying(client, _) => match client.go_on(&returner.request) {
                Ok(false) => return Ok(()),
                Ok(true) => {
                    self.returned.handshake_seconds = self.cut.elapsed().as_secs_f64();
                    self.receiver.begin(client)?;
                }
                Err(denied) => {
                    let pause = match denied {
                        Denied::Busy(pause) => {
                            self.returned.busy += 1;
                            pause
                        }
                        Denied::Lost(_) => {
                            self.returned.lost += 1;
                            PAUSE
                        }
                        Denied::Refused(failure) => return Err(failure),
                    };
                    returner.state = State::Away(Instant::now() + later(pause, nth, returner.attempts));
                    return Ok(());
                }
            },
            State::Behind(client) | State::Done(client) => self.receiver.read(client)?,
        }
        let complete = |client: &Client| !self.resumes || client.order.missed(self.messages) == 0;
        let state = std::mem::replace(&mut returner.state, State::Away(self.cut));
        returner.state = match state {
            State::Trying(client, _) | State::Behind(client) if complete(&client) => {
                let time = self.cut.elapsed();
                self.times.add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
                self.returned.back += 1;
                self.returned.seconds = time.as_secs_f64();
                State::Done(client)
            }
            State::Trying(client, _) => State::Behind(client),
            state => state,
        };
        Ok(())
    }

    fn report(&self) -> Returned {
        let missed = |returner: &Returner| match &returner.state {
            State::Behind(client) | State::Done(client) => client.order.missed(self.messages),
            State::Away(_) | State::Trying(..) => Order::from(returner.next).missed(self.messages),
        };
        let of_all = |count: u64| if self.resumes { count } else { 0 };
        Returned {
            p50_seconds: self.times.quantile(0.5) as f64 / 1e9,
            missed: of_all(self.clients.iter().map(missed).sum()),
            again: of_all(self.receiver.again),
            out_of_order: of_all(self.receiver.late),
            closed: self.receiver.closed,
            ..self.returned
        }
    }
}

/// A pause plus up to as much again. The addition differs for each client and attempt.
fn later(pause: Duration, nth: usize, attempt: u32) -> Duration {
    // Fibonacci hashing puts neighbours far apart.
    let mixed = (nth as u64).wrapping_add(u64::from(attempt) << 32).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    pause + pause.mul_f64((mixed >> 11) as f64 / (1_u64 << 53) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_comes_again_too_early_or_with_all_the_others() {
        let pauses: Vec<_> = (0..100).map(|nth| later(PAUSE, nth, 1)).collect();
        assert!(pauses.iter().all(|pause| (PAUSE..=PAUSE * 2).contains(pause)));
        let early = pauses.iter().filter(|pause| **pause < PAUSE.mul_f64(1.5)).count();
        assert!((40..=60).contains(&early), "{early}");
    }
}
