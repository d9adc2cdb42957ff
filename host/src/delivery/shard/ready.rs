//! What has to be ready before a client gets it: the snapshot in front of its cursor, and large chunks in its format. What
//! takes long is ordered from the encoder, and the client waits for it in its place.

use std::sync::Arc;

use crate::{
    channel::{Format, Since, SnapshotNow},
    delivery::{
        encoder::{Ordered, Work},
        queue::ShardCommand,
        shard::{Shard, pending::Preface, row::flag},
    },
};

/// What has become of a cursor that was off its log.
pub(super) enum Conflated {
    Done,
    /// The row waits until its snapshot is made.
    Waits,
    /// It is no longer known what the client has missed.
    Lost,
}

impl Shard {
    /// Puts a snapshot, or the part of it that a client has missed, in front of a cursor that is off its log. If that
    /// has to be made first, it is ordered.
    pub(super) fn conflate(&mut self, slot: usize, nth: u16) -> Conflated {
        self.try_to_conflate(slot, nth).unwrap_or(Conflated::Lost)
    }

    fn try_to_conflate(&mut self, slot: usize, nth: u16) -> Option<Conflated> {
        let row = self.rows.get_mut(slot)?;
        let cursor = row.cursors.as_mut_slice().get_mut(usize::from(nth))?;
        let (since, view_slot) = (cursor.since()?, cursor.view);
        let view = self.views.get(view_slot as usize)?;
        if let Since::Offset(offset) = since
            && view.gap_after(offset)
            && !matches!(row.format, Format::Raw | Format::Deflated)
        {
            // The client's protocol tells of gaps, and there is no place here to tell it of this one.
            return None;
        }
        let chunk = match view.channel.snapshot(since, view.log.oldest_seq()) {
            SnapshotNow::Ready(chunk) => chunk,
            SnapshotNow::ToMake => {
                let format = row.format;
                self.order(slot, view_slot, Work::Snapshot(since), format);
                return Some(Conflated::Waits);
            }
            SnapshotNow::Unknown => return None,
        };
        if chunk.is_work(row.format) {
            let format = row.format;
            self.order(slot, view_slot, Work::Chunk(chunk), format);
            return Some(Conflated::Waits);
        }
        let encoded = chunk.encoded(row.format, &view.channel);
        let from = match since {
            Since::Nothing => 0,
            Since::Offset(offset) => encoded.position_after(offset),
        };
        cursor.enter(chunk.seq, 0);
        let range = from..encoded.bytes().len();
        if !range.is_empty() {
            row.extra().prefaces.push_back(Preface { view: view_slot, since, chunk, range });
        }
        Some(Conflated::Done)
    }

    /// Has the chunk encoded that a row has come to.
    pub(super) fn order_chunk(&mut self, slot: usize) {
        let Some(row) = self.rows.get(slot) else { return };
        let Some(cursor) = row.cursors.as_slice().get(usize::from(row.current)) else { return };
        let Some(view) = self.views.get(cursor.view as usize) else { return };
        let (format, view_slot) = (row.format, cursor.view);
        let chunk = view.log.from(cursor.seq).find(|chunk| chunk.is_work(format)).map(Arc::clone);
        match chunk {
            Some(chunk) => self.order(slot, view_slot, Work::Chunk(chunk), format),
            // Another shard needed it, too, and it is there by now.
            None => self.wake_up(slot),
        }
    }

    /// Orders something for a row, unless another row here has done so, and has the row wait for it.
    fn order(&mut self, slot: usize, view_slot: u32, work: Work, format: Format) {
        let Some(view) = self.views.get_mut(view_slot as usize) else { return };
        let ordered = Ordered::new(&work, format);
        if !view.orders.contains(&ordered) {
            view.orders.push(Ordered::new(&work, format));
            let (channel, queue) = (Arc::clone(&view.channel), Arc::clone(&self.queue));
            self.encoder.order(&Arc::clone(&channel.metrics), move || {
                work.make(format, &channel);
                queue.push(ShardCommand::Encoded(view_slot as usize, ordered));
            });
        }
        self.encoding.entry(view_slot as usize).or_default().insert(slot);
    }

    /// Goes on with the rows that waited for something of a view to be made. Those that wait for something else of it
    /// wait again.
    pub(super) fn encoded(&mut self, view_slot: usize, ordered: &Ordered) {
        if let Some(view) = self.views.get_mut(view_slot) {
            view.orders.retain(|other| other != ordered);
        }
        for slot in self.encoding.remove(&view_slot).unwrap_or_default() {
            self.wake_up(slot);
        }
    }

    fn wake_up(&mut self, slot: usize) {
        if let Some(row) = self.rows.get_mut(slot).filter(|row| row.is(flag::BEHIND)) {
            row.timer_start = self.now;
            self.queue_to_write(slot);
        }
    }
}
