//! Reads what clients send, cuts it into messages, and answers.

use std::{
    io::{ErrorKind, Read},
    sync::{Arc, atomic::Ordering},
    time::Instant,
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
        shard::{
            Shard,
            row::{Row, flag},
            turns::{Lap, ReadTurn, Tenant},
        },
    },
    usage::Received,
};

/// Most bytes of pongs for what a client brings in one turn. If it pings more than that, only its latest pings are
/// answered, which RFC 6455 section 5.5.3 allows.
const MAX_PONGS: usize = 2 << 10;
/// Bytes of the first read of a message.
const FIRST_READ: usize = 16 << 10;
/// Bytes of an unfinished message from which on it counts as a long one.
const LONG: usize = 4 << 10;

/// What cutting bytes into frames needs of a client and of its shard.
struct Cutting<'a> {
    max_message: usize,
    assembly: &'a mut Assembly,
    inflater: Option<&'a mut Inflater>,
    pongs: &'a mut Vec<u8>,
}

impl Shard {
    /// Puts a client in line to be read. `ends`: the end of its stream is announced.
    pub(super) fn queue_to_read(&mut self, slot: usize, ends: bool) {
        let Some(row) = self.rows.get_mut(slot) else { return };
        if ends {
            row.flags |= flag::ENDS;
        }
        if !row.is(flag::TO_READ) {
            row.flags |= flag::TO_READ;
            self.to_read.push(Tenant::of(row.client.client_limits()), slot);
        }
    }

    /// Reads clients: each tenant that has any in line has its turn.
    pub(super) fn read_turns(&mut self) {
        let lap = Lap::new();
        for _ in 0..self.to_read.tenants() {
            let Some(tenant) = self.to_read.begin_turn() else { return };
            let (mut turn, mut usage, mut until) = (ReadTurn::new(), None, None);
            let has_paused = self.to_read.has_paused(tenant);
            while !turn.is_over()
                && let Some(slot) = self.to_read.next_of(tenant)
            {
                if let Some(row) = self.rows.get_mut(slot) {
                    if has_paused && usage.is_none() {
                        until = row.client.client_limits().usage.wait_to_receive(Received::ANY, Instant::now());
                        if until.is_some() {
                            self.to_read.put_back(tenant, slot);
                            break;
                        }
                    }
                    row.flags &= !flag::TO_READ;
                    usage.get_or_insert_with(|| Arc::clone(&row.client.client_limits().usage));
                    self.read(slot, &mut turn);
                }
            }
            if let Some(usage) = usage {
                usage.worked(turn.time());
                until = usage.received(turn.received, Instant::now());
            }
            self.to_read.end_turn(tenant, until);
            if lap.is_over() {
                return;
            }
        }
    }

    /// Reads once what a client has sent. A short read means that there is no more, unless the end of the stream was
    /// announced. If there is more, the client is in line again.
    fn read(&mut self, slot: usize, turn: &mut ReadTurn) {
        if self.rows.get(slot).is_some_and(|row| row.waiting() > 0) {
            // What was left of the turn before.
            self.received(slot, &mut [], turn);
        }
        // If there is still more than the turn has time for, it is in line again.
        let Some(row) = self.rows.get(slot).filter(|row| !row.is(flag::TO_READ)) else { return };
        let waiting = row.waiting();
        turn.frame(0);
        let mut buffer = std::mem::take(&mut self.buffer);
        // What a turn does not get to has to wait in memory. A long message comes faster in large parts.
        let most = if waiting < LONG { FIRST_READ } else { buffer.len() };
        while let Some(row) = self.rows.get_mut(slot) {
            match row.socket.read(buffer.get_mut(..most).unwrap_or_default()) {
                Ok(0) => {
                    self.remove(slot, "client");
                    turn.removal();
                }
                Ok(length) => {
                    let may_have_more = length == most || row.is(flag::ENDS);
                    self.received(slot, buffer.get_mut(..length).unwrap_or_default(), turn);
                    // Reading takes time, too, and what is read may be dropped.
                    turn.frame(length);
                    turn.received.bytes += length;
                    if may_have_more {
                        self.queue_to_read(slot, false);
                    }
                    break;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => {
                    self.remove(slot, "io");
                    turn.removal();
                }
            }
        }
        self.buffer = buffer;
    }

    /// Takes bytes from a client. Whole frames are handled now, the rest when its frame is complete. If the turn is
    /// over before that, the client is in line again.
    fn received(&mut self, slot: usize, bytes: &mut [u8], turn: &mut ReadTurn) {
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
        let cutting = Cutting { max_message, assembly: &mut assembly, inflater: inflater.as_mut(), pongs: &mut pongs };
        let taken = self.handle_frames(slot, arrived, cutting, turn);
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
        let is_cut_short = turn.is_over() && !partial.is_empty();
        if !partial.is_empty() || !assembly.is_empty() {
            let extra = row.extra();
            extra.partial = partial;
            extra.assembly = assembly;
        }
        row.tidy();
        if !row.settle() {
            return self.close(slot, &End::Memory);
        }
        if is_cut_short {
            self.queue_to_read(slot, false);
        }
    }

    /// Cuts bytes into frames, and handles each while the turn lasts. Returns how many bytes these have. `None`: the
    /// client is being closed.
    fn handle_frames(
        &mut self,
        slot: usize,
        bytes: &mut [u8],
        cutting: Cutting<'_>,
        turn: &mut ReadTurn,
    ) -> Option<usize> {
        let Cutting { max_message, assembly, mut inflater, pongs } = cutting;
        let mut taken = 0;
        while !turn.is_over() {
            let rest = bytes.get_mut(taken..).unwrap_or_default();
            match assembly.next(rest, max_message, inflater.as_deref_mut()) {
                Ok(None) => return Some(taken),
                Ok(Some((event, length))) => {
                    if let Incoming::Message(_, payload) = &event {
                        turn.received.messages += 1;
                        // Inflated, it is longer.
                        turn.frame(payload.len().max(length));
                        if self.rows.get(slot).is_some_and(Row::is_centrifuge) {
                            turn.command();
                        }
                    } else {
                        turn.received.control_frames += 1;
                        turn.frame(length);
                    }
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
        Some(taken)
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
                if let Err(limit) = Arc::clone(recipient).message(*kind, payload) {
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

#[cfg(test)]
mod tests;
