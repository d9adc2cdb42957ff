//! A client in a shard's table.

use std::{
    collections::VecDeque,
    io,
    io::{ErrorKind, IoSlice, Write},
    sync::Arc,
};

use mio::net::TcpStream;
use wire::{Position, message::Assembly};

use crate::{
    channel::{Format, Since},
    delivery::{
        BudgetShare, Connected,
        shard::{
            cursor::{Cursor, Cursors},
            pending::{Piece, Preface, Rest},
            view::View,
        },
    },
};

/// Chunks in one write: after a stall, many small ones.
const MAX_SLICES: usize = 32;
/// Bytes written to one client before the others have their turn.
pub const TURN_BYTES: usize = 1 << 20;

/// States of a row, as bits.
pub mod flag {
    /// Not at the end of every log: waiting for its socket, or for its next turn.
    pub const BEHIND: u8 = 1;
    /// The socket's writability is watched.
    pub const ARMED: u8 = 1 << 1;
    /// Pinged and yet to answer.
    pub const PINGED: u8 = 1 << 2;
    /// A close frame is queued or sent; nothing else follows it.
    pub const CLOSING: u8 = 1 << 3;
    /// The client has sent its close frame.
    pub const PEER_CLOSED: u8 = 1 << 4;
    /// The client compresses messages, and takes compressed ones.
    pub const DEFLATES: u8 = 1 << 5;
}

/// An idle client is these bytes and a socket.
pub struct Row {
    pub socket: TcpStream,
    pub client: Connected,
    pub cursors: Cursors,
    /// What few clients need at a time.
    pub extra: Option<Box<Extra>>,
    /// Milliseconds on the shard's clock: behind, the last progress; pinged, the ping; else when the time to the next
    /// ping began.
    pub touched: u32,
    pub flags: u8,
    /// How it gets publications.
    pub format: Format,
    /// The cursor being written when the row fell behind: only its frame may be half sent.
    pub current: u16,
}

/// What only some rows have.
#[derive(Default)]
pub struct Extra {
    /// What is left of a half-sent frame that something else must follow.
    pub rest: Option<Rest>,
    /// Bytes to send after that: whole frames, replies and control frames.
    pub out: Vec<u8>,
    /// How much of `out` is sent.
    pub sent: usize,
    /// Snapshots to send after that and before the cursors go on; only the first may have begun.
    pub prefaces: VecDeque<Preface>,
    /// How many bytes of control frames were put into `out`.
    pub controls: usize,
    /// What the replies in `out` have of the tenant's budget.
    pub share: Option<BudgetShare>,
    /// Received, and not a whole frame yet.
    pub partial: Vec<u8>,
    pub assembly: Assembly,
    /// When a closing row is dropped, answered or not. Milliseconds on the shard's clock.
    pub close_by: u32,
    /// Of an event stream of several channels: what it has of each, in the order of its cursors. Each of its events names
    /// them all, so that it may resume behind any. `None`: less than the first snapshot.
    pub positions: Box<[Option<Position>]>,
}

impl Extra {
    fn is_empty(&self) -> bool {
        self.rest.is_none()
            && self.prefaces.is_empty()
            && self.out.is_empty()
            && self.partial.is_empty()
            && self.assembly.is_empty()
            && self.positions.is_empty()
    }
}

/// How far writing came.
#[derive(Debug, PartialEq, Eq)]
pub enum WriteOutcome {
    /// All there is.
    Done,
    /// The socket takes no more for now.
    Blocked,
    /// There is more, but the others wait.
    Turn,
    /// There is a gap, behind which the client must be asked anew for the channel.
    Gap,
    /// The socket is broken.
    Gone,
}

impl Row {
    /// Takes what is left of a snapshot's frame that is half sent in front of whatever else is to be sent.
    pub fn finish_preface(&mut self) {
        let Some(extra) = &mut self.extra else { return };
        if extra.rest.is_some() {
            return;
        }
        let Some(preface) = extra.prefaces.front_mut() else { return };
        let Some(range) = preface.chunk.get_encoded(self.format).and_then(|chunk| chunk.rest(preface.range.start))
        else {
            return;
        };
        preface.range.start = range.end;
        // Copied: the snapshot is large, and others may have a newer one.
        let rest = Rest { piece: Piece::Shared(Arc::clone(&preface.chunk), self.format), range };
        extra.rest = Some(rest.copied());
        self.client.client_limits().metrics.deliveries.inc();
    }

    /// Leaves out what a client has not got yet of a view's snapshot, but for the frame that is half sent; returns what it
    /// has then. `None`: there is no snapshot under way.
    pub fn cut_preface(&mut self, view: u32) -> Option<Since> {
        self.finish_preface();
        let extra = self.extra.as_mut()?;
        let index = extra.prefaces.iter().position(|preface| preface.view == view)?;
        let Preface { since, chunk, range, .. } = extra.prefaces.remove(index)?;
        // Before its first own frame are those that the client had already.
        let begun = chunk.get_encoded(self.format).and_then(|chunk| chunk.begun(range.start)).unwrap_or(0);
        Some(match since {
            Since::Offset(had) => Since::Offset(begun.max(had)),
            Since::Nothing if begun > 0 => Since::Offset(begun),
            Since::Nothing => since,
        })
    }

    pub fn is_centrifuge(&self) -> bool {
        matches!(self.format, Format::Centrifuge | Format::CentrifugeDeflated)
    }

    pub fn is(&self, flags: u8) -> bool {
        self.flags & flags != 0
    }

    pub fn extra(&mut self) -> &mut Extra {
        self.extra.get_or_insert_default()
    }

    /// Bytes that wait before the cursors go on.
    pub fn queued(&self) -> usize {
        self.extra.as_ref().map_or(0, |extra| extra.out.len() - extra.sent)
    }

    /// Puts whole frames behind what waits.
    pub fn queue(&mut self, bytes: Vec<u8>) {
        let extra = self.extra();
        if extra.out.is_empty() {
            extra.out = bytes;
            return;
        }
        if extra.sent > extra.out.len() / 2 {
            extra.out.drain(..extra.sent);
            extra.sent = 0;
        }
        extra.out.extend_from_slice(&bytes);
        if let Some(share) = &mut extra.share {
            share.shrink_to(extra.out.len());
        }
    }

    /// Gives back what an idle row needs no more.
    pub fn tidy(&mut self) {
        if !self.is(flag::CLOSING) && self.extra.as_ref().is_some_and(|extra| extra.is_empty()) {
            self.extra = None;
        }
    }

    /// Writes what is queued before the cursors: the rest of a frame, `out`, snapshots.
    pub fn flush(&mut self, now: u32) -> WriteOutcome {
        let behind = self.is(flag::BEHIND);
        let Some(extra) = &mut self.extra else { return WriteOutcome::Done };
        let deliveries = &self.client.client_limits().metrics.deliveries;
        let mut turn = TURN_BYTES;
        loop {
            if !extra.positions.is_empty() && extra.out.is_empty() {
                extra.compose_snapshot(self.cursors.as_slice(), deliveries);
            }
            let bytes = match (&extra.rest, extra.prefaces.front()) {
                (Some(rest), _) => rest.bytes(),
                (None, Some(preface)) if extra.out.is_empty() => preface.bytes(self.format),
                (None, _) => extra.out.get(extra.sent..).unwrap_or_default(),
            };
            if turn == 0 && !bytes.is_empty() {
                return WriteOutcome::Turn;
            }
            let written = match bytes {
                [] => 0,
                bytes => match self.socket.write(bytes) {
                    Ok(0) => return WriteOutcome::Gone,
                    Ok(written) => written,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => return WriteOutcome::Blocked,
                    Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                    Err(_) => return WriteOutcome::Gone,
                },
            };
            turn = turn.saturating_sub(written);
            if behind {
                self.touched = now;
            }
            let all = written == bytes.len();
            if let Some(rest) = &mut extra.rest {
                // It has been counted.
                rest.range.start += written;
                if all {
                    extra.rest = None;
                }
            } else if !extra.out.is_empty() {
                extra.sent += written;
                if all {
                    (extra.out, extra.sent, extra.controls, extra.share) = (Vec::new(), 0, 0, None);
                }
            } else if let Some(preface) = extra.prefaces.front_mut() {
                let (from, to) = (preface.range.start, preface.range.start + written);
                let completed = preface.chunk.get_encoded(self.format).map_or(0, |chunk| chunk.completed(from, to));
                deliveries.inc_by(completed as u64);
                preface.range.start = to;
                if all {
                    extra.prefaces.pop_front();
                }
            } else {
                return WriteOutcome::Done;
            }
        }
    }

    /// Writes from a cursor that is on its log to the end of that, and counts the publications that were completed.
    pub fn advance(&mut self, nth: u16, view: &View, now: u32, delivered: &mut u64) -> WriteOutcome {
        if self.extra.as_ref().is_some_and(|extra| !extra.positions.is_empty()) {
            return self.advance_composed(nth, view, now, delivered);
        }
        let (behind, format) = (self.is(flag::BEHIND), self.format);
        let Some(cursor) = self.cursors.as_mut_slice().get_mut(usize::from(nth)) else { return WriteOutcome::Done };
        let mut turn = TURN_BYTES;
        while cursor.seq < view.log.next_seq() {
            let (offered, result) = write(&mut self.socket, cursor, view, format);
            match result {
                Ok(0) if offered == 0 && stops_at_gaps(format) => return WriteOutcome::Gap,
                Ok(0) if offered > 0 => return WriteOutcome::Gone,
                Ok(written) => {
                    cursor.step(written, view, format, delivered);
                    if behind {
                        self.touched = now;
                    }
                    if written < offered {
                        return WriteOutcome::Blocked;
                    }
                    turn = turn.saturating_sub(written);
                    if turn == 0 && cursor.seq < view.log.next_seq() {
                        return WriteOutcome::Turn;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return WriteOutcome::Blocked,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return WriteOutcome::Gone,
            }
        }
        WriteOutcome::Done
    }
}

/// Whether a client must be asked anew for the channel behind a gap: its protocol ends the subscription.
fn stops_at_gaps(format: Format) -> bool {
    matches!(format, Format::Centrifuge | Format::CentrifugeDeflated)
}

/// One write from a cursor on: how many bytes were offered, and what the socket said.
fn write(socket: &mut TcpStream, cursor: &Cursor, view: &View, format: Format) -> (usize, io::Result<usize>) {
    let stops = stops_at_gaps(format);
    let chunks = view.log.from(cursor.seq).take_while(|chunk| !(stops && chunk.is_gap()));
    let mut chunks = chunks.map(|chunk| chunk.encoded(format, &view.channel).bytes());
    let first = chunks.next().and_then(|bytes| bytes.get(cursor.position as usize..)).unwrap_or_default();
    let Some(second) = chunks.next() else {
        return (first.len(), if first.is_empty() { Ok(0) } else { socket.write(first) });
    };
    let mut slices = [IoSlice::new(&[]); MAX_SLICES];
    let mut offered = 0;
    let mut used = 0;
    for (slot, bytes) in slices.iter_mut().zip([first, second].into_iter().chain(chunks)) {
        *slot = IoSlice::new(bytes);
        offered += bytes.len();
        used += 1;
        if offered >= TURN_BYTES {
            break;
        }
    }
    let offer = slices.get(..used).unwrap_or_default();
    (offered, if offered == 0 { Ok(0) } else { socket.write_vectored(offer) })
}
