//! Event streams of several channels.
//!
//! Each event's `id` names what its client has of all its channels. So the events of these rows alone are put together
//! for each client, from the events that all share.

use std::sync::Arc;

use prometheus_client::metrics::counter::Counter;
use wire::{Position, sse};

use crate::{
    channel::Format,
    delivery::shard::{
        cursor::Cursor,
        row::{Extra, Row, Sent, TURN_BYTES, WriteOutcome},
        view::View,
    },
};

/// How many bytes of events are put together at a time.
const COMPOSED_BYTES: usize = 64 << 10;

impl Extra {
    /// Appends an event to `out`, with an `id` that says what the client has once it gets the event.
    fn compose(&mut self, nth: usize, event: &[u8], reached: Position) {
        if let Some(position) = self.positions.get_mut(nth) {
            *position = Some(reached);
        }
        sse::with_id(event, self.positions.iter().flatten(), &mut self.out);
    }

    /// Appends events of the snapshots that come before the cursors, until enough bytes wait.
    pub fn compose_snapshot(&mut self, cursors: &[Cursor], deliveries: &Counter) {
        while self.out.len() < COMPOSED_BYTES
            && let Some(preface) = self.prefaces.front_mut()
        {
            let chunk = Arc::clone(&preface.chunk);
            let encoded = chunk.get_encoded(Format::Sse);
            let next = encoded.and_then(|encoded| Some((encoded, encoded.next(preface.range.start)?)));
            let Some((encoded, (end, reached))) = next else {
                self.prefaces.pop_front();
                continue;
            };
            let event = encoded.bytes().get(preface.range.start..end).unwrap_or_default();
            preface.range.start = end;
            let view = preface.view;
            let nth = cursors.iter().position(|cursor| cursor.view == view).unwrap_or(usize::MAX);
            self.compose(nth, event, reached);
            deliveries.inc();
        }
    }
}

impl Row {
    /// Does what [`Row::advance`] does, for such a row. Its events go out through `out`, whole ones only.
    pub fn advance_composed(&mut self, nth: u16, view: &View, now: u32, sent: &mut Sent) -> WriteOutcome {
        for _ in 0..TURN_BYTES / COMPOSED_BYTES {
            match self.flush(now, sent) {
                WriteOutcome::Done => {}
                outcome => return outcome,
            }
            let Self { cursors, extra, .. } = self;
            let cursor = cursors.as_mut_slice().get_mut(usize::from(nth));
            let Some((cursor, extra)) = cursor.zip(extra.as_mut()) else { return WriteOutcome::Done };
            if cursor.seq >= view.log.next_seq() {
                return WriteOutcome::Done;
            }
            for chunk in view.log.from(cursor.seq) {
                if chunk.is_work(Format::Sse) {
                    if extra.out.is_empty() {
                        return WriteOutcome::Encoding;
                    }
                    break;
                }
                let encoded = chunk.encoded(Format::Sse, &view.channel);
                while extra.out.len() < COMPOSED_BYTES
                    && let Some((end, reached)) = encoded.next(cursor.position as usize)
                {
                    let event = encoded.bytes().get(cursor.position as usize..end).unwrap_or_default();
                    extra.compose(usize::from(nth), event, reached);
                    sent.publications += u64::from(!chunk.is_gap());
                    cursor.enter(chunk.seq, end);
                }
                if extra.out.len() >= COMPOSED_BYTES {
                    break;
                }
                cursor.enter(chunk.seq + 1, 0);
            }
        }
        match self.flush(now, sent) {
            WriteOutcome::Done => WriteOutcome::Turn,
            outcome => outcome,
        }
    }
}
