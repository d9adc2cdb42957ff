//! The messages that are played, and the number of clients.

use std::time::Duration;

pub struct Scenario {
    pub name: &'static str,
    pub title: &'static str,
    pub clients: usize,
    /// Most handshakes at a time.
    pub window: usize,
    pub messages: u32,
    /// For servers that cannot keep up. The cost per delivery needs no more, and the rest would take minutes.
    pub messages_if_slow: u32,
    /// Messages that the feed sends in one write.
    pub burst: u32,
    /// From the start of one burst to the next. 0: no pause.
    pub pause: Duration,
    /// How long the connected clients are left alone before memory is read.
    pub settle: Duration,
    /// Whether a table of what connections cost is printed too.
    pub connections: bool,
}

/// This many handshakes at once keep a server busy without overflowing any server's backlog.
const WINDOW: usize = 64;
const SETTLE: Duration = Duration::from_millis(500);

pub fn played(clients: Option<usize>, seconds: u32) -> Vec<Scenario> {
    let few = clients.unwrap_or(1_000);
    let many = clients.unwrap_or(10_000);
    let flood = 2_500 * seconds;
    vec![
        Scenario {
            name: "flood",
            title: "Flood: messages without pauses",
            clients: few,
            window: WINDOW,
            messages: flood,
            messages_if_slow: flood / 40,
            burst: 64,
            pause: Duration::ZERO,
            settle: SETTLE,
            connections: false,
        },
        Scenario {
            name: "bursts",
            title: "Bursts of ten messages, 50 bursts a second",
            clients: few,
            window: WINDOW,
            messages: 500 * seconds,
            messages_if_slow: 62 * seconds,
            burst: 10,
            pause: Duration::from_millis(20),
            settle: SETTLE,
            connections: false,
        },
        Scenario {
            name: "paced",
            title: "Paced: 50 messages a second",
            clients: few,
            window: WINDOW,
            messages: 50 * seconds,
            messages_if_slow: 50 * seconds,
            burst: 1,
            pause: Duration::from_millis(20),
            settle: SETTLE,
            connections: false,
        },
        Scenario {
            name: "many",
            title: "Many: 5 messages a second, clients that came 64 at a time",
            clients: many,
            window: WINDOW,
            messages: 5 * seconds,
            messages_if_slow: 5 * seconds,
            burst: 1,
            pause: Duration::from_millis(200),
            settle: SETTLE,
            connections: true,
        },
        Scenario {
            name: "idle",
            title: "Idle: clients that came one after another",
            clients: many,
            window: 1,
            messages: 0,
            messages_if_slow: 0,
            burst: 1,
            pause: Duration::ZERO,
            settle: Duration::from_secs(3),
            connections: true,
        },
    ]
}
