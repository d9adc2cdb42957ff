//! Writes to clients: new chunks to all who follow a channel, the rest to those who were behind, and what the channel's
//! policy `slow` says to those who fell off its log.
//!
//! If there is much to write, the rest goes out in turns, tenant by tenant and client by client. A tenant that has
//! sent as many bytes as it may has none for a while, and its channels' logs keep what its clients have not got.

use std::{sync::Arc, time::Instant};

use config::Slow;
use mio::Interest;
use wire::sse;

use crate::{
    channel::{Format, Since},
    delivery::{
        end::End,
        shard::{
            Shard, index,
            pending::Piece,
            ready::Conflated,
            row::{Row, Sent, WriteOutcome, flag},
            turns::{Lap, Tenant, Turn},
            view::Subscriber,
        },
    },
    usage::Direction,
};

/// Bytes that a tenant's new chunks may put into sockets at once. Small messages reach 256 clients with that.
const FAN_OUT_BYTES: usize = 1 << 20;
/// Bytes that a write counts as at least: the system call takes some microseconds.
const LEAST_WRITE: usize = 4 << 10;
/// How many times as long it takes to compress a byte.
const COMPRESSING: usize = 32;

/// Most bytes of control frames that are queued for a client that takes none. Past this, pongs are left out: by RFC
/// 6455 section 5.5.3 the latest answer stands for all.
const MAX_QUEUED: usize = 4 << 10;

/// Most bytes that may wait for an event stream when it has another gap to be told of. A stream that skips again and
/// again gets there, and is closed.
const MAX_SKIP_BACKLOG: usize = 256 << 10;

/// The rest of a frame is copied out of its chunk if the chunk is more than this many times larger.
const SMALL_PART: usize = 8;

impl Shard {
    /// Takes in a channel's new chunks, and writes them to every client that can take them.
    pub(super) fn fan_out(&mut self, view_slot: usize) {
        let Some(view) = self.views.get_mut(view_slot) else { return };
        view.absorb(&self.reader);
        let oldest = view.log.oldest_seq();
        // All of its clients are one tenant's.
        let Some(first) = view.subscribers.first().and_then(|first| self.rows.get(first.slot as usize)) else { return };
        let usage = Arc::clone(&first.client.client_limits().usage);
        let tenant = Tenant::of(first.client.client_limits());
        let began = Instant::now();
        let room = usage.room_to_send(began);
        // What its other channels have had of this turn of the shard.
        let written = self.fanned_out.entry(tenant).or_default();
        let mut sent = Sent::default();
        let (mut held, mut lagged, mut gaps, mut gone) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut full = Vec::new();
        for &Subscriber { slot, nth } in &view.subscribers {
            let Some(row) = self.rows.get_mut(slot as usize) else { continue };
            let Some(cursor) = row.cursors.as_slice().get(usize::from(nth)) else { continue };
            if cursor.since().is_some() {
                // The cursor is off the log. It goes on when its socket has room.
            } else if cursor.seq < oldest {
                lagged.push((slot as usize, nth));
            } else if row.is(flag::BEHIND) {
                // It goes on from where it is.
            } else if sent.bytes >= room || *written >= FAN_OUT_BYTES {
                row.current = nth;
                held.push((slot as usize, WriteOutcome::Turn));
            } else {
                let before = sent;
                let outcome = row.advance(nth, view, self.now, &mut sent);
                *written += (sent.bytes - before.bytes).max(LEAST_WRITE);
                *written += COMPRESSING * (sent.compressed - before.compressed);
                match outcome {
                    WriteOutcome::Done => {}
                    // A row is charged for its copies before the next has its turn.
                    WriteOutcome::Blocked | WriteOutcome::Turn if !row.settle() => {
                        row.extra = None;
                        full.push(slot as usize);
                    }
                    outcome @ (WriteOutcome::Blocked | WriteOutcome::Turn | WriteOutcome::Encoding) => {
                        row.current = nth;
                        held.push((slot as usize, outcome));
                    }
                    WriteOutcome::Gap => gaps.push((slot as usize, nth)),
                    WriteOutcome::Gone => gone.push(slot as usize),
                }
            }
        }
        view.channel.metrics.deliveries.inc_by(sent.publications);
        usage.sent(sent.bytes, began);
        usage.worked(began.elapsed());
        for (slot, outcome) in held {
            self.hold(slot, &outcome);
            if outcome == WriteOutcome::Encoding {
                self.order_chunk(slot);
            }
        }
        for (slot, nth) in lagged {
            self.lagged(slot, nth, view_slot);
        }
        for (slot, nth) in gaps {
            self.interrupt(slot, nth);
        }
        for slot in gone {
            self.remove(slot, "io");
        }
        for slot in full {
            self.remove(slot, "memory");
        }
        if let Some(view) = self.views.get_mut(view_slot) {
            view.evicted = Vec::new();
        }
    }

    /// Marks a row as behind. It goes on when its socket has room, or in its next turn.
    fn hold(&mut self, slot: usize, outcome: &WriteOutcome) {
        let Some(row) = self.rows.get_mut(slot) else { return };
        if !row.is(flag::BEHIND) {
            row.flags = (row.flags | flag::BEHIND) & !flag::PINGED;
            row.timer_start = self.now;
        }
        // What waits for a client is its tenant's. If that does not fit, the client goes: it does not take what it is
        // sent.
        if !row.settle() {
            return self.remove(slot, "memory");
        }
        if *outcome == WriteOutcome::Encoding {
            // It goes on when that is done.
        } else if *outcome == WriteOutcome::Turn {
            self.to_write.push(Tenant::of(row.client.client_limits()), slot);
        } else if !row.is(flag::ARMED) {
            row.flags |= flag::ARMED;
            self.watch(slot, Interest::READABLE | Interest::WRITABLE);
        }
    }

    /// Does what the channel's policy says with a cursor that has fallen off the end of its log.
    fn lagged(&mut self, slot: usize, nth: u16, view_slot: usize) {
        let Some(view) = self.views.get(view_slot) else { return };
        let policy = view.channel.slow();
        let name = Arc::clone(&view.channel.name);
        let metrics = Arc::clone(&view.channel.metrics);
        if policy == Slow::Close {
            metrics.lagged("close");
            return self.close(slot, &End::Lagged(name));
        }
        metrics.lagged(if policy == Slow::Skip { "skip" } else { "conflate" });
        let Some(row) = self.rows.get_mut(slot) else { return };
        let format = row.format;
        // The client was still being sent a snapshot while the log went on.
        let cut = row.cut_preface(index(view_slot));
        let Some(cursor) = row.cursors.as_slice().get(usize::from(nth)) else { return };
        let has = cut.unwrap_or_else(|| Since::Offset(view.last_offset_of(cursor, format)));
        let (newest, position) = view.newest(format).unwrap_or((view.log.next_seq(), 0));
        let gap = view.gap_before(cursor, newest);
        if row.current == nth {
            self.finish_frame(slot);
        }
        if policy == Slow::Skip && gap && !self.continues_after_gap(slot, nth) {
            return;
        }
        let Some(row) = self.rows.get_mut(slot) else { return };
        let Some(cursor) = row.cursors.as_mut_slice().get_mut(usize::from(nth)) else { return };
        match policy {
            Slow::Skip => {
                cursor.enter(newest, position);
                if format == Format::Sse && row.queued() > MAX_SKIP_BACKLOG {
                    return self.close(slot, &End::Lagged(name));
                }
                if format == Format::Sse {
                    let mut out = Vec::new();
                    sse::gap(&name, None, &mut out);
                    row.queue(out);
                }
            }
            _ => cursor.leave(has),
        }
        match self.rows.get(slot) {
            Some(row) if row.is(flag::BEHIND) => self.settle(slot),
            _ => self.hold(slot, &WriteOutcome::Turn),
        }
    }

    /// Ends a client's subscription if that is how its protocol tells of a gap. True: the subscription goes on.
    fn continues_after_gap(&mut self, slot: usize, nth: u16) -> bool {
        if !self.rows.get(slot).is_some_and(Row::is_centrifuge) {
            return true;
        }
        self.interrupt(slot, nth);
        false
    }

    /// Takes the snapshots that a row's cursors begin with, as of now, and puts the row in line to be written.
    pub(super) fn queue_snapshots(&mut self, slot: usize) {
        let cursors = self.rows.get(slot).map_or(0, |row| row.cursors.as_slice().len());
        for nth in 0..u16::try_from(cursors).unwrap_or(u16::MAX) {
            // What it comes to makes no difference: a new client has missed nothing, and a cursor that is off its log
            // has its turn later.
            self.conflate(slot, nth);
        }
        if self.rows.get(slot).is_some_and(|row| !row.is(flag::BEHIND)) {
            self.hold(slot, &WriteOutcome::Turn);
        }
    }

    /// Writes to clients that are behind and may go on: each tenant that has any in line has its turn.
    pub(super) fn write_turns(&mut self) {
        let lap = Lap::new();
        for _ in 0..self.to_write.lines.tenants() {
            let Some(tenant) = self.to_write.lines.begin_turn() else { return };
            let (turn, mut until) = (Turn::new(), None);
            let mut has_paused = self.to_write.lines.has_paused(tenant);
            while !turn.is_over()
                && until.is_none()
                && let Some(slot) = self.to_write.next_of(tenant)
            {
                let Some(row) = self.rows.get(slot) else { continue };
                let usage = Arc::clone(&row.client.client_limits().usage);
                if std::mem::take(&mut has_paused) {
                    until = usage.wait(Direction::Out, Instant::now());
                    if until.is_some() {
                        self.to_write.put_back(tenant, slot);
                        break;
                    }
                }
                let (began, mut sent) = (turn.time(), Sent::default());
                self.go_on(slot, &mut sent);
                usage.worked(turn.time().saturating_sub(began));
                until = usage.sent(sent.bytes, Instant::now());
            }
            self.to_write.lines.end_turn(tenant, until);
            if lap.is_over() {
                return;
            }
        }
    }

    /// Puts a row that is behind in line: its socket has room.
    pub(super) fn queue_to_write(&mut self, slot: usize) {
        if let Some(row) = self.rows.get(slot).filter(|row| row.is(flag::BEHIND)) {
            self.to_write.push(Tenant::of(row.client.client_limits()), slot);
        }
    }

    /// Goes on writing to a row that is behind.
    pub(super) fn go_on(&mut self, slot: usize, sent: &mut Sent) {
        let Some(row) = self.rows.get_mut(slot).filter(|row| row.is(flag::BEHIND)) else { return };
        let mut outcome = row.flush(self.now, sent);
        let cursors = u16::try_from(row.cursors.as_slice().len()).unwrap_or(u16::MAX);
        let first = row.current;
        for turn in 0..cursors {
            if outcome != WriteOutcome::Done {
                break;
            }
            // The cursor whose frame is half sent goes first.
            let nth = (first + turn) % cursors;
            let Some(cursor) = self.rows.get(slot).and_then(|row| row.cursors.as_slice().get(usize::from(nth))) else {
                continue;
            };
            let view_slot = cursor.view as usize;
            if cursor.since().is_some() {
                match self.conflate(slot, nth) {
                    Conflated::Done => {}
                    // Its other channels wait with it.
                    Conflated::Waits => return,
                    Conflated::Lost => {
                        if let Some(view) = self.views.get(view_slot) {
                            let name = Arc::clone(&view.channel.name);
                            self.close(slot, &End::Lagged(name));
                        }
                        // The socket has room already, so no event will say so.
                        return self.hold(slot, &WriteOutcome::Turn);
                    }
                }
            }
            let Some((row, view)) = self.rows.get_mut(slot).zip(self.views.get(view_slot)) else { continue };
            outcome = row.flush(self.now, sent);
            if outcome != WriteOutcome::Done {
                break;
            }
            sent.publications = 0;
            outcome = row.advance(nth, view, self.now, sent);
            view.channel.metrics.deliveries.inc_by(sent.publications);
            if outcome == WriteOutcome::Gap {
                self.interrupt(slot, nth);
                // With one cursor gone, the others have other numbers.
                return self.hold(slot, &WriteOutcome::Turn);
            }
            if outcome != WriteOutcome::Done {
                row.current = nth;
            }
        }
        match outcome {
            WriteOutcome::Done | WriteOutcome::Gap => self.caught_up(slot),
            WriteOutcome::Gone => self.remove(slot, "io"),
            WriteOutcome::Encoding => self.order_chunk(slot),
            outcome => self.hold(slot, &outcome),
        }
    }

    fn caught_up(&mut self, slot: usize) {
        let Some(row) = self.rows.get_mut(slot) else { return };
        let armed = row.is(flag::ARMED);
        row.flags &= !(flag::BEHIND | flag::ARMED);
        row.timer_start = self.now;
        row.tidy();
        if !row.settle() {
            return self.remove(slot, "memory");
        }
        if row.is(flag::CLOSING) {
            self.close_sent(slot);
        } else if armed {
            self.watch(slot, Interest::READABLE);
        }
    }

    /// Sends a control frame, or leaves it out if too many wait.
    pub(super) fn control(&mut self, slot: usize, control: Vec<u8>) {
        let Some(row) = self.rows.get_mut(slot) else { return };
        let queued = row.extra.as_ref().map_or(0, |extra| extra.controls);
        if queued + control.len() <= MAX_QUEUED {
            row.extra().controls += control.len();
            self.send(slot, control);
        }
    }

    /// Sends whole frames, after the frame that is half sent and before the next publication.
    pub(super) fn send(&mut self, slot: usize, frames: Vec<u8>) {
        self.finish_frame(slot);
        let Some(row) = self.rows.get_mut(slot) else { return };
        row.queue(frames);
        if row.is(flag::BEHIND) {
            return self.settle(slot);
        }
        let mut sent = Sent::default();
        let outcome = row.flush(self.now, &mut sent);
        row.client.client_limits().usage.sent(sent.bytes, Instant::now());
        match outcome {
            WriteOutcome::Done => row.tidy(),
            WriteOutcome::Gone => self.remove(slot, "io"),
            outcome => self.hold(slot, &outcome),
        }
    }

    /// Charges what waits for a client that is behind, or drops the client.
    fn settle(&mut self, slot: usize) {
        if self.rows.get_mut(slot).is_some_and(|row| !row.settle()) {
            self.remove(slot, "memory");
        }
    }

    /// Puts the rest of a half-sent frame in front of everything else that is to be sent, and its cursor behind that
    /// frame.
    pub(super) fn finish_frame(&mut self, slot: usize) {
        let Some(row) = self.rows.get_mut(slot).filter(|row| row.is(flag::BEHIND)) else { return };
        row.finish_preface();
        let Some(cursor) = row.cursors.as_mut_slice().get_mut(usize::from(row.current)) else { return };
        let Some(view) = self.views.get(cursor.view as usize) else { return };
        let format = row.format;
        let Some(rest) = view.rest_of_frame(cursor, format) else { return };
        if cursor.seq >= view.log.oldest_seq() {
            cursor.step(rest.range.len(), view, format, &mut 0);
        }
        // A small rest is copied, so that a stalled client does not keep a large chunk in memory.
        let small = match &rest.piece {
            Piece::Shared(chunk, _) => rest.range.len() < chunk.bytes() / SMALL_PART,
            Piece::Own(_) => false,
        };
        row.extra.get_or_insert_default().rest = Some(if small { rest.copied() } else { rest });
        view.channel.metrics.deliveries.inc();
    }
}
