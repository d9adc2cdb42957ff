//! How clients leave: closed, gone, stalled, or without a pong for too long.

use std::{
    net::Shutdown,
    sync::Arc,
    time::{Duration, Instant},
};

use mio::Interest;
use rand::RngExt as _;
use wire::{centrifuge, centrifuge::Unsubscribed, frame, sse};

use crate::{
    account,
    channel::Format,
    delivery::{
        end::End,
        shard::{
            Shard, TICKS_PER_SWEEP,
            cursor::{Cursor, Cursors},
            deadlines::Due,
            millis,
            row::flag,
            turns::Tenant,
        },
        sockopt,
    },
};

/// How long a client has to answer a close frame.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// How much later a client is taken for silent if something of it is yet to be read.
const READ_AGAIN: Duration = Duration::from_secs(1);
/// Clients that must reconnect because of a gap are told so at random times within this.
const GAP_JITTER: Duration = Duration::from_secs(2);

impl Shard {
    /// Tells a client why its connection ends, after the frame that is half sent, and sends nothing more.
    pub(super) fn close(&mut self, slot: usize, end: &End) {
        let Some(row) = self.rows.get(slot).filter(|row| !row.is(flag::CLOSING)) else { return };
        row.client.note_leaving(end.reason());
        end.limit().into_iter().for_each(|limit| row.client.client_limits().metrics.limited(limit, 1));
        self.finish_frame(slot);
        let Some(row) = self.rows.get_mut(slot) else { return };
        let last = end.bytes(row.format);
        let views: Vec<u32> = row.cursors.as_slice().iter().map(|cursor| cursor.view).collect();
        for view in views {
            row.cut_preface(view);
        }
        self.unsubscribe(slot);
        let Some(row) = self.rows.get_mut(slot) else { return };
        row.flags |= flag::CLOSING;
        // What else it sends does not count.
        let extra = row.extra();
        (extra.partial, extra.assembly) = Default::default();
        // A client that takes no bytes has as much time as any client that is behind.
        let time = if row.is(flag::BEHIND) { self.timing.stall_timeout.max(CLOSE_TIMEOUT) } else { CLOSE_TIMEOUT };
        row.extra().close_by = self.now.wrapping_add(millis(time));
        if row.pins_too_much() {
            return self.remove(slot, end.reason());
        }
        self.closing.push(slot);
        self.send(slot, last);
        if self.rows.get(slot).is_some_and(|row| !row.is(flag::BEHIND)) {
            self.close_sent(slot);
        }
    }

    /// Waits for the client to close, now that the close frame is out. What it still sends is read and dropped: closing
    /// a socket with unread bytes resets it, and the reset could overtake the frame.
    pub(super) fn close_sent(&mut self, slot: usize) {
        let Some(row) = self.rows.get_mut(slot) else { return };
        row.extra().close_by = self.now.wrapping_add(millis(CLOSE_TIMEOUT));
        let ended = row.socket.shutdown(Shutdown::Write).is_err();
        if ended || row.is(flag::PEER_CLOSED) {
            self.remove(slot, "client");
        } else {
            self.watch(slot, Interest::READABLE);
        }
    }

    fn unsubscribe(&mut self, slot: usize) {
        let Some(row) = self.rows.get_mut(slot) else { return };
        let cursors = std::mem::replace(&mut row.cursors, Cursors::none());
        for cursor in cursors.as_slice() {
            self.leave_view(cursor);
        }
    }

    /// Removes a cursor from its view, and the view with its last subscriber.
    pub(super) fn leave_view(&mut self, cursor: &Cursor) {
        let view_slot = cursor.view as usize;
        if let Some(view) = self.views.get_mut(view_slot) {
            view.unsubscribe(cursor.subscriber_index, &mut self.rows);
        }
        self.leave_if_empty(view_slot);
    }

    pub(super) fn leave_if_empty(&mut self, view_slot: usize) {
        if let Some(view) = self.views.get(view_slot).filter(|view| view.subscribers.is_empty()) {
            view.channel.detach(&self.reader);
            self.by_channel.remove(&Arc::as_ptr(&view.channel).addr());
            self.views.remove(view_slot);
        }
    }

    /// Drops a client. Counts `reason`, unless the client was being closed: then its reason has been counted already.
    pub(super) fn remove(&mut self, slot: usize, reason: &'static str) {
        self.unsubscribe(slot);
        let Some(row) = self.rows.try_remove(slot) else { return };
        let tenant = Tenant::of(row.client.client_limits());
        if row.is(flag::TO_READ) {
            self.to_read.forget(tenant, slot);
        }
        self.to_write.forget(tenant, slot);
        for slots in self.encoding.values_mut() {
            slots.remove(&slot);
        }
        if row.is(flag::BEHIND) {
            sockopt::drop_unsent(&row.socket);
        }
        if let Some(id) = row.client.id() {
            self.by_id.remove(&id);
            self.deadlines.clear(id);
        }
        if !row.is(flag::CLOSING) {
            row.client.note_leaving(reason);
        }
    }

    /// Looks at the liveness of a part of the table.
    pub(super) fn sweep(&mut self) {
        for slot in std::mem::take(&mut self.closing) {
            let Some(row) = self.rows.get(slot).filter(|row| row.is(flag::CLOSING)) else { continue };
            let close_by = row.extra.as_ref().map_or(self.now, |extra| extra.close_by);
            if self.now.wrapping_sub(close_by) < u32::MAX / 2 || row.pins_too_much() {
                self.remove(slot, "client");
            } else {
                self.closing.push(slot);
            }
        }
        let part = self.rows.capacity() / TICKS_PER_SWEEP as usize + 1;
        let end = self.sweep_from + part;
        for slot in self.sweep_from..end {
            self.check(slot);
        }
        self.sweep_from = if end >= self.rows.capacity() { 0 } else { end };
    }

    fn check(&mut self, slot: usize) {
        let Some(row) = self.rows.get_mut(slot).filter(|row| !row.is(flag::CLOSING)) else { return };
        let age = self.now.wrapping_sub(row.timer_start);
        // Who waits for a turn does not keep the relay waiting.
        let is_stalled = row.is(flag::BEHIND) && age >= millis(self.timing.stall_timeout);
        if is_stalled && !self.waits_for_us(slot) {
            return self.remove(slot, "stalled");
        }
        let Some(row) = self.rows.get_mut(slot) else { return };
        if row.is(flag::BEHIND) && row.pins_too_much() {
            row.client.client_limits().metrics.limited(account::LIMIT, 1);
            return self.remove(slot, "memory");
        }
        match row.client.pings() {
            Some(pings) => {
                // The client expects these pings, whatever else it gets.
                if pings.have_started() && pings.since(self.now) >= millis(self.timing.ping_interval) {
                    pings.record(self.now);
                    self.ping(slot, &centrifuge::ping());
                }
            }
            None if row.is(flag::BEHIND) || age < millis(self.timing.ping_interval) => {}
            None if row.format == Format::Sse => {
                row.timer_start = self.now;
                self.send(slot, sse::KEEP_ALIVE.to_vec());
            }
            None => {
                row.timer_start = self.now;
                let mut ping = Vec::with_capacity(2);
                frame::encode(frame::PING, &[], &mut ping);
                self.ping(slot, &ping);
            }
        }
    }

    /// Whether a row that is behind waits for its turn, or for something to be made. That is no fault of its client.
    fn waits_for_us(&self, slot: usize) -> bool {
        self.to_write.has(slot) || self.encoding.values().any(|slots| slots.contains(&slot))
    }

    /// Pings a client, or drops it if it has not answered the last ping.
    fn ping(&mut self, slot: usize, ping: &[u8]) {
        if self.rows.get(slot).is_some_and(|row| row.is(flag::BEHIND)) && self.waits_for_us(slot) {
            // It would not get the ping.
            return;
        }
        let Some(row) = self.rows.get_mut(slot) else { return };
        if row.is(flag::PINGED) && row.is(flag::TO_READ) {
            // Its answer may be among what is yet to be read.
            return;
        }
        if row.is(flag::PINGED) {
            return match row.is_centrifuge() {
                true => self.close(slot, &End::NoPong),
                false => self.remove(slot, "no_pong"),
            };
        }
        row.flags |= flag::PINGED;
        self.control(slot, ping.to_vec());
    }

    /// Ends a subscription that has come to a gap. The client is told to ask for the channel again. If it did not ask,
    /// but the tenant's code gave it the channel, it is told to reconnect.
    pub(super) fn interrupt(&mut self, slot: usize, nth: u16) {
        let Some(cursor) = self.take_cursor(slot, usize::from(nth)) else { return };
        let channel = self.views.get(cursor.view as usize).map(|view| Arc::clone(&view.channel.name));
        self.leave_view(&cursor);
        let Some((row, channel)) = self.rows.get(slot).zip(channel) else { return };
        if !cursor.given_by_tenant {
            return self.send(slot, centrifuge::unsubscribed(&channel, Unsubscribed::InsufficientState));
        }
        if let Some(id) = row.client.id() {
            // Not all at once, for all clients of the channel have this gap.
            let jitter = rand::rng().random_range(Duration::ZERO..GAP_JITTER);
            self.deadlines.gap(id, Instant::now() + jitter, channel);
        }
    }

    /// Ends the connections whose deadline has come.
    pub(super) fn end_due(&mut self, now: Instant) {
        while let Some((id, due)) = self.deadlines.pop_due(now) {
            let Some(&slot) = self.by_id.get(&id) else { continue };
            if matches!(due, Due::Stale) && self.rows.get(slot).is_some_and(|row| row.is(flag::TO_READ)) {
                // What it has said is yet to be read.
                self.deadlines.set(id, now + READ_AGAIN, due);
                continue;
            }
            let end = match due {
                Due::Stale => End::Stale,
                Due::Gap(channel) => End::Gap(channel),
                Due::Expired => End::Expired,
            };
            self.close(slot, &end);
        }
    }
}
