//! How clients leave: closed, gone, or silent for too long.

use std::{net::Shutdown, sync::Arc, time::Duration};

use mio::Interest;

use super::{
    Shard, TICKS,
    cursor::{Cursor, Cursors},
    millis,
    row::flag,
};
use crate::client::{frame, kernel};

/// How long a client has to answer a close frame.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

impl Shard {
    /// Sends a close frame behind whatever is half sent, and nothing more.
    pub(super) fn close(&mut self, slot: usize, code: u16, text: &str, reason: &'static str) {
        let Some(row) = self.rows.get(slot).filter(|row| !row.is(flag::CLOSING)) else { return };
        row.client.leaves(reason);
        self.finish_frame(slot);
        if let Some(row) = self.rows.get_mut(slot) {
            let views: Vec<u32> = row.cursors.as_slice().iter().map(|cursor| cursor.view).collect();
            for view in views {
                row.cut_preface(view);
            }
        }
        self.unsubscribe(slot);
        let Some(row) = self.rows.get_mut(slot) else { return };
        row.flags |= flag::CLOSING;
        // One that takes nothing has as long to begin again as any that is behind.
        let time = if row.is(flag::BEHIND) { self.timing.stall_timeout.max(CLOSE_TIMEOUT) } else { CLOSE_TIMEOUT };
        row.extra().close_by = self.now.wrapping_add(millis(time));
        self.closing.push(slot);
        self.send(slot, frame::close(code, text));
        if self.rows.get(slot).is_some_and(|row| !row.is(flag::BEHIND)) {
            self.close_sent(slot);
        }
    }

    /// The close frame is out: what the client still sends is read and dropped until it closes too, or the socket's
    /// reset could overtake the frame.
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

    /// Takes a cursor out of its view, which goes with its last subscriber.
    pub(super) fn leave_view(&mut self, cursor: &Cursor) {
        let at = cursor.view as usize;
        if let Some(view) = self.views.get_mut(at) {
            view.unsubscribe(cursor.at, &mut self.rows);
        }
        self.leave_if_empty(at);
    }

    pub(super) fn leave_if_empty(&mut self, at: usize) {
        if let Some(view) = self.views.get(at).filter(|view| view.subscribers.is_empty()) {
            view.channel.detach(&self.reader);
            self.by_channel.remove(&Arc::as_ptr(&view.channel).addr());
            self.views.remove(at);
        }
    }

    /// Drops a client; `reason` counts unless its closing has been counted.
    pub(super) fn remove(&mut self, slot: usize, reason: &'static str) {
        self.unsubscribe(slot);
        let Some(row) = self.rows.try_remove(slot) else { return };
        if row.is(flag::BEHIND) {
            kernel::drop_unsent(&row.socket);
        }
        if let Some(session) = row.client.session() {
            self.by_id.remove(&session.id);
        }
        if !row.is(flag::CLOSING) {
            row.client.leaves(reason);
        }
    }

    /// Liveness, a part of the table at a time.
    pub(super) fn sweep(&mut self) {
        for slot in std::mem::take(&mut self.closing) {
            let Some(row) = self.rows.get(slot).filter(|row| row.is(flag::CLOSING)) else { continue };
            let close_by = row.extra.as_ref().map_or(self.now, |extra| extra.close_by);
            if self.now.wrapping_sub(close_by) < u32::MAX / 2 {
                self.remove(slot, "client");
            } else {
                self.closing.push(slot);
            }
        }
        let part = self.rows.capacity() / TICKS as usize + 1;
        let end = self.swept + part;
        for slot in self.swept..end {
            self.check(slot);
        }
        self.swept = if end >= self.rows.capacity() { 0 } else { end };
    }

    fn check(&mut self, slot: usize) {
        let Some(row) = self.rows.get_mut(slot).filter(|row| !row.is(flag::CLOSING)) else { return };
        let age = self.now.wrapping_sub(row.touched);
        if row.is(flag::BEHIND) {
            if age >= millis(self.timing.stall_timeout) {
                self.remove(slot, "stalled");
            }
        } else if age >= millis(self.timing.ping_interval) {
            if row.is(flag::PINGED) {
                self.remove(slot, "no_pong");
            } else {
                row.flags |= flag::PINGED;
                row.touched = self.now;
                let mut ping = Vec::with_capacity(2);
                frame::encode(frame::PING, &[], &mut ping);
                self.control(slot, ping);
            }
        }
    }
}
