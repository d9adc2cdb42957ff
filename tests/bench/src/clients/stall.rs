//! Clients that do not read while messages are played, and what they find when they read again.

use mio::Poll;

use super::{
    connect::Client,
    receive::{self, Receiver},
    report::Stalled,
};
use crate::failure::Failure;

/// The close code for a client that is too slow: try again later (IANA's registry of close codes).
const TRY_AGAIN_LATER: u16 = 1013;

/// Makes `count` clients, spread evenly over all, stop reading.
pub fn stall(clients: &mut [Client], count: usize) {
    let total = clients.len();
    for (nth, client) in clients.iter_mut().enumerate() {
        // The nth client is one of them if it brings their share to the next whole number.
        client.reads = (nth + 1) * count / total == nth * count / total;
    }
}

/// Makes these clients read again, and no others.
pub fn read_again(poll: &mut Poll, clients: &mut [Client], messages: u32) -> Result<Stalled, Failure> {
    for client in clients.iter_mut() {
        client.reads = !client.reads;
    }
    let (received, _) = receive::receive(poll, clients, Receiver::new(messages))?;
    let mut stalled = Stalled { mistakes: received.again + received.late, ..Stalled::default() };
    for client in clients.iter().filter(|client| client.reads) {
        *match (client.close_code, client.closed, client.order.missed(messages)) {
            (Some(TRY_AGAIN_LATER), ..) => &mut stalled.told,
            (Some(_), ..) | (None, true, _) => &mut stalled.cut,
            (None, false, 0) => &mut stalled.complete,
            (None, false, _) => &mut stalled.skipped,
        } += 1;
    }
    Ok(stalled)
}
