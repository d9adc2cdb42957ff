//! Bytes to clients: new chunks to all who follow a channel, the rest to those who were behind.

use std::sync::Arc;

use mio::Interest;

use super::{
    Shard,
    row::{Rest, Step, flag},
    view::Subscriber,
};
use crate::{channel::Since, config::Slow};

/// Control frames queued for a client that takes none; past this, pongs are left out (RFC 6455 section 5.5.3 lets the
/// latest answer stand for all).
const MAX_QUEUED: usize = 4 << 10;

impl Shard {
    /// Takes in a channel's new chunks and writes them to all who can take them.
    pub(super) fn fan_out(&mut self, at: usize) {
        let Some(view) = self.views.get_mut(at) else { return };
        view.absorb(&self.reader);
        let oldest = view.log.oldest_seq();
        let mut delivered = 0;
        let (mut held, mut lagged, mut gone) = (Vec::new(), Vec::new(), Vec::new());
        for &Subscriber { slot, nth } in &view.subscribers {
            let Some(row) = self.rows.get_mut(slot as usize) else { continue };
            let Some(cursor) = row.cursors.as_slice().get(usize::from(nth)) else { continue };
            if cursor.since().is_some() {
                // It goes on when its socket has room.
            } else if cursor.seq < oldest {
                lagged.push((slot as usize, nth));
            } else if !row.is(flag::BEHIND) {
                match row.advance(nth, &view.log, self.now, &mut delivered) {
                    Step::Done => {}
                    step @ (Step::Blocked | Step::Turn) => {
                        row.current = nth;
                        held.push((slot as usize, step));
                    }
                    Step::Gone => gone.push(slot as usize),
                }
            }
        }
        view.channel.metrics.deliveries.inc_by(delivered);
        for (slot, step) in held {
            self.hold(slot, &step);
        }
        for (slot, nth) in lagged {
            self.lagged(slot, nth, at);
        }
        for slot in gone {
            self.remove(slot, "io");
        }
        if let Some(view) = self.views.get_mut(at) {
            view.gone = Vec::new();
        }
    }

    /// Marks a row as behind, to go on when its socket has room or when it is its turn.
    fn hold(&mut self, slot: usize, step: &Step) {
        let Some(row) = self.rows.get_mut(slot) else { return };
        if !row.is(flag::BEHIND) {
            row.flags = (row.flags | flag::BEHIND) & !flag::PINGED;
            row.touched = self.now;
        }
        if *step == Step::Turn {
            self.again.push(slot);
        } else if !row.is(flag::ARMED) {
            row.flags |= flag::ARMED;
            self.watch(slot, Interest::READABLE | Interest::WRITABLE);
        }
    }

    /// A cursor is off the end of its log: what its channel's policy says.
    fn lagged(&mut self, slot: usize, nth: u16, at: usize) {
        let Some(view) = self.views.get(at) else { return };
        let (policy, end) = (view.channel.slow(), view.log.next_seq());
        let metrics = Arc::clone(&view.channel.metrics);
        if policy == Slow::Close {
            metrics.lagged("close");
            return self.close(slot, 1013, "fell off the end of the channel's log", "lagged");
        }
        metrics.lagged(if policy == Slow::Skip { "skip" } else { "conflate" });
        let Some(row) = self.rows.get_mut(slot) else { return };
        // In the middle of a snapshot its log went on without it.
        let cut = if row.current == nth { row.cut_snapshot() } else { None };
        let Some(cursor) = row.cursors.as_slice().get(usize::from(nth)) else { return };
        let has = cut.unwrap_or_else(|| Since::Offset(view.had(cursor)));
        if row.current == nth {
            self.finish_frame(slot);
        }
        let Some(cursor) = self.rows.get_mut(slot).and_then(|row| row.cursors.as_mut_slice().get_mut(usize::from(nth)))
        else {
            return;
        };
        match policy {
            Slow::Skip => cursor.enter(end),
            _ => cursor.leave(has),
        }
        if self.rows.get(slot).is_some_and(|row| !row.is(flag::BEHIND)) {
            self.begin(slot);
        }
    }

    /// Puts a row in line for the snapshot or the history that it is to begin with.
    pub(super) fn begin(&mut self, slot: usize) {
        self.hold(slot, &Step::Turn);
    }

    /// Puts what a client has missed of a snapshot in front of its log. `None`: that is not known any more.
    fn conflate(&mut self, slot: usize, nth: u16) -> Option<()> {
        let row = self.rows.get_mut(slot)?;
        let cursor = row.cursors.as_mut_slice().get_mut(usize::from(nth))?;
        let since = cursor.since()?;
        let view = self.views.get(cursor.view as usize)?;
        let chunk = view.channel.snapshot(since, view.log.oldest_seq())?;
        let from = match since {
            Since::Nothing => 0,
            Since::Offset(offset) => chunk.position_after(offset),
        };
        cursor.enter(chunk.seq);
        row.current = nth;
        let end = chunk.bytes().len();
        if from < end {
            row.extra().rest = Some(Rest { chunk, range: from..end, since: Some(since) });
        }
        Some(())
    }

    /// Goes on with a row that was behind.
    pub(super) fn resume(&mut self, slot: usize) {
        let Some(row) = self.rows.get_mut(slot).filter(|row| row.is(flag::BEHIND)) else { return };
        let mut step = row.flush(self.now);
        let cursors = u16::try_from(row.cursors.as_slice().len()).unwrap_or(u16::MAX);
        let first = row.current;
        for turn in 0..cursors {
            if step != Step::Done {
                break;
            }
            // The half-sent frame first, whichever channel it is of.
            let nth = (first + turn) % cursors;
            let Some(cursor) = self.rows.get(slot).and_then(|row| row.cursors.as_slice().get(usize::from(nth))) else {
                continue;
            };
            let at = cursor.view as usize;
            if cursor.since().is_some() && self.conflate(slot, nth).is_none() {
                return self.close(slot, 1013, "fell off the end of the channel's log", "lagged");
            }
            let Some((row, view)) = self.rows.get_mut(slot).zip(self.views.get(at)) else { continue };
            step = row.flush(self.now);
            if step != Step::Done {
                break;
            }
            let mut delivered = 0;
            step = row.advance(nth, &view.log, self.now, &mut delivered);
            view.channel.metrics.deliveries.inc_by(delivered);
            row.current = nth;
        }
        match step {
            Step::Done => self.caught_up(slot),
            Step::Gone => self.remove(slot, "io"),
            step => self.hold(slot, &step),
        }
    }

    fn caught_up(&mut self, slot: usize) {
        let Some(row) = self.rows.get_mut(slot) else { return };
        let armed = row.is(flag::ARMED);
        row.flags &= !(flag::BEHIND | flag::ARMED);
        row.touched = self.now;
        row.tidy();
        if row.is(flag::CLOSING) {
            self.close_sent(slot);
        } else if armed {
            self.watch(slot, Interest::READABLE);
        }
    }

    /// Sends a control frame, or leaves it out where too many wait.
    pub(super) fn control(&mut self, slot: usize, control: Vec<u8>) {
        let Some(row) = self.rows.get_mut(slot) else { return };
        let queued = row.extra.as_ref().map_or(0, |extra| extra.controls);
        if queued + control.len() <= MAX_QUEUED {
            row.extra().controls += control.len();
            self.send(slot, control);
        }
    }

    /// Sends whole frames, behind the one that is half sent and before the next publication.
    pub(super) fn send(&mut self, slot: usize, frames: Vec<u8>) {
        self.finish_frame(slot);
        let Some(row) = self.rows.get_mut(slot) else { return };
        row.queue(frames);
        if row.is(flag::BEHIND) {
            return;
        }
        match row.flush(self.now) {
            Step::Done => row.tidy(),
            Step::Gone => self.remove(slot, "io"),
            step => self.hold(slot, &step),
        }
    }

    /// Puts what is left of a half-sent frame in front of whatever else is to be sent, and its cursor behind it.
    pub(super) fn finish_frame(&mut self, slot: usize) {
        let Some(row) = self.rows.get_mut(slot).filter(|row| row.is(flag::BEHIND)) else { return };
        let Some(cursor) = row.cursors.as_mut_slice().get_mut(usize::from(row.current)) else { return };
        let Some(view) = self.views.get(cursor.view as usize) else { return };
        let Some((chunk, rest)) = view.rest_of_frame(cursor) else { return };
        if cursor.seq >= view.log.oldest_seq() {
            cursor.step(rest.len(), &view.log, &mut 0);
        }
        row.extra.get_or_insert_default().rest = Some(Rest { chunk, range: rest, since: None });
        view.channel.metrics.deliveries.inc();
    }
}
