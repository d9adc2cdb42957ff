//! Bytes to clients: new chunks to all who follow a channel, the rest to those who were behind.

use mio::Interest;

use super::{
    Shard,
    row::{Step, flag},
    view::Subscriber,
};

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
            let seq = row.cursors.as_slice().get(usize::from(nth)).map(|cursor| cursor.seq);
            if seq.is_some_and(|seq| seq < oldest) {
                lagged.push(slot as usize);
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
        for slot in lagged {
            self.close(slot, 1013, "fell off the end of the channel's log", "lagged");
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

    /// Goes on with a row that was behind.
    pub(super) fn resume(&mut self, slot: usize) {
        let Some(row) = self.rows.get_mut(slot).filter(|row| row.is(flag::BEHIND)) else { return };
        let mut step = row.flush(self.now);
        let cursors = u16::try_from(row.cursors.as_slice().len()).unwrap_or(u16::MAX);
        for turn in 0..cursors {
            if step != Step::Done {
                break;
            }
            // The half-sent frame first, whichever channel it is of.
            let nth = (row.current + turn) % cursors;
            let view = row.cursors.as_slice().get(usize::from(nth)).map(|cursor| cursor.view as usize);
            let Some(view) = view.and_then(|view| self.views.get(view)) else { continue };
            let mut delivered = 0;
            step = row.advance(nth, &view.log, self.now, &mut delivered);
            view.channel.metrics.deliveries.inc_by(delivered);
            if step != Step::Done {
                row.current = nth;
            }
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
        row.extra.get_or_insert_default().rest = Some((chunk, rest));
        view.channel.metrics.deliveries.inc();
    }
}
