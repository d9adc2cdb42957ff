//! Reads what clients send, cuts it into messages, and answers.

use std::{
    io::{ErrorKind, Read},
    sync::atomic::Ordering,
};

use wire::{
    centrifuge,
    deflate::Inflater,
    frame,
    message::{Assembly, Incoming},
};

use crate::{
    channel::Format,
    delivery::{
        end::End,
        shard::{Shard, row::flag},
    },
};

/// Most bytes of pongs for what one read brings. If a client pings more than that, only its latest pings are answered,
/// which RFC 6455 section 5.5.3 allows.
const MAX_PONGS: usize = 2 << 10;
/// How many full buffers are read from one client before the others have their turn.
const READS_PER_TURN: usize = 4;

impl Shard {
    /// Reads what a client has sent. A short read means that there is no more, unless the end of the stream was
    /// announced.
    pub(super) fn read(&mut self, slot: usize, to_the_end: bool) {
        let mut buffer = std::mem::take(&mut self.buffer);
        let mut reads = 0;
        while let Some(row) = self.rows.get_mut(slot) {
            match row.socket.read(&mut buffer) {
                Ok(0) => self.remove(slot, "client"),
                Ok(length) => {
                    self.received(slot, buffer.get_mut(..length).unwrap_or_default());
                    reads += 1;
                    if length < buffer.len() && !to_the_end {
                        break;
                    }
                    if reads == READS_PER_TURN {
                        self.unfinished.push(slot);
                        break;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => self.remove(slot, "io"),
            }
        }
        self.buffer = buffer;
    }

    /// Takes bytes from a client. Whole frames are handled now, the rest when its frame is complete.
    pub(super) fn received(&mut self, slot: usize, bytes: &mut [u8]) {
        let Some(row) = self.rows.get_mut(slot).filter(|row| !row.is(flag::CLOSING)) else { return };
        if row.format == Format::Sse {
            // Clients of event streams are not expected to send anything.
            return;
        }
        let max_message = row.client.client_limits().max_message.load(Ordering::Relaxed);
        let mut inflater = row.is(flag::DEFLATES).then(|| self.inflater.take().unwrap_or_default());
        let (mut partial, mut assembly) = match &mut row.extra {
            Some(extra) => (std::mem::take(&mut extra.partial), std::mem::take(&mut extra.assembly)),
            None => Default::default(),
        };
        let waited = !partial.is_empty();
        let arrived = if waited {
            partial.extend_from_slice(bytes);
            partial.as_mut_slice()
        } else {
            &mut *bytes
        };
        let mut pongs = Vec::new();
        let taken = self.handle_frames(slot, arrived, max_message, &mut assembly, inflater.as_mut(), &mut pongs);
        if inflater.is_some() {
            self.inflater = inflater;
        }
        let Some(taken) = taken else { return };
        if waited {
            // The bytes stay in this buffer, for a large frame comes in many reads.
            partial.drain(..taken);
        } else {
            partial = bytes.get(taken..).unwrap_or_default().to_vec();
        }
        if !pongs.is_empty() {
            self.control(slot, pongs);
        }
        let Some(row) = self.rows.get_mut(slot).filter(|row| !row.is(flag::CLOSING)) else { return };
        if !partial.is_empty() || !assembly.is_empty() {
            let extra = row.extra();
            extra.partial = partial;
            extra.assembly = assembly;
        }
        row.tidy();
        if !row.settle() {
            self.close(slot, &End::Memory);
        }
    }

    /// Cuts bytes into frames, and handles each. Returns how many bytes the whole frames have. `None`: the client is
    /// being closed.
    fn handle_frames(
        &mut self,
        slot: usize,
        bytes: &mut [u8],
        max_message: usize,
        assembly: &mut Assembly,
        mut inflater: Option<&mut Inflater>,
        pongs: &mut Vec<u8>,
    ) -> Option<usize> {
        let mut taken = 0;
        loop {
            let rest = bytes.get_mut(taken..).unwrap_or_default();
            match assembly.next(rest, max_message, inflater.as_deref_mut()) {
                Ok(None) => return Some(taken),
                Ok(Some((event, length))) => {
                    if !self.handle(slot, &event, pongs) {
                        return None;
                    }
                    taken += length;
                }
                Err(violation) => {
                    self.close(slot, &End::Violation(violation));
                    return None;
                }
            }
        }
    }

    /// Handles one event. False: the client is being closed, so what else it sent does not count.
    fn handle(&mut self, slot: usize, event: &Incoming<'_>, pongs: &mut Vec<u8>) -> bool {
        let Some(row) = self.rows.get_mut(slot) else { return false };
        match event {
            Incoming::Message(kind, payload) => {
                let Some(recipient) = &row.client.recipient else {
                    row.client.client_limits().metrics.message_dropped("no_handler");
                    return true;
                };
                if let Some(pings) = recipient.pings() {
                    // The answer to a ping may be one of several commands in a message.
                    row.flags &= !flag::PINGED;
                    if centrifuge::is_pong(payload) {
                        return true;
                    }
                    if !pings.have_started() {
                        // The client says who it is. How long its handler takes is not its fault.
                        self.deadlines.clear(recipient.id());
                    }
                }
                if let Err(limit) = recipient.message(*kind, payload) {
                    limit.count(&row.client.client_limits().metrics);
                    if row.is_centrifuge() {
                        self.close(slot, &End::TooMany);
                    } else {
                        self.refuse(slot, limit);
                    }
                }
            }
            Incoming::Pong => row.flags &= !flag::PINGED,
            Incoming::Ping(payload) => {
                if pongs.len() >= MAX_PONGS {
                    pongs.clear();
                }
                frame::encode(frame::PONG, payload, pongs);
            }
            Incoming::Close(code) => {
                row.flags |= flag::PEER_CLOSED;
                self.close(slot, &End::Client(*code));
            }
            Incoming::Fragment => {}
        }
        self.rows.get(slot).is_some_and(|row| !row.is(flag::CLOSING))
    }
}
