//! A client in a shard's table.

use std::{
    cell::Cell,
    collections::VecDeque,
    io,
    io::{ErrorKind, IoSlice, Write},
    sync::Arc,
};

use mio::net::TcpStream;
use wire::{Position, message::Assembly};

use crate::{
    account::{Charge, Part},
    channel::{Format, Since},
    delivery::{
        BudgetShare, Connected, LimitReached,
        shard::{
            cursor::{Cursor, Cursors},
            pending::{Piece, Preface, Rest},
            view::View,
        },
    },
};

/// Most chunks in one write. After a stall there may be many small ones.
const MAX_SLICES: usize = 32;
/// How many bytes are written to one client before the others have their turn: what the kernel takes in a tenth of a
/// millisecond.
pub const TURN_BYTES: usize = 256 << 10;

/// States of a row, as bits. There is room for no more.
pub mod flag {
    /// The client is not at the end of every log. It waits for its socket, or for its next turn.
    pub const BEHIND: u8 = 1;
    /// The socket is watched for room to write.
    pub const ARMED: u8 = 1 << 1;
    /// The client is pinged, and has not answered yet.
    pub const PINGED: u8 = 1 << 2;
    /// A close frame is queued or sent; nothing else follows it.
    pub const CLOSING: u8 = 1 << 3;
    /// The client has sent its close frame.
    pub const PEER_CLOSED: u8 = 1 << 4;
    /// The client agreed to permessage-deflate: it compresses messages, and takes compressed ones.
    pub const DEFLATES: u8 = 1 << 5;
    /// The client is in line to be read.
    pub const TO_READ: u8 = 1 << 6;
    /// The end of its stream was announced. No other event will say so.
    pub const ENDS: u8 = 1 << 7;
}

/// A client. While it is idle, it takes these bytes and a socket.
pub struct Row {
    pub socket: TcpStream,
    pub client: Connected,
    pub cursors: Cursors,
    /// What few clients need at a time.
    pub extra: Option<Box<Extra>>,
    /// A time in milliseconds on the shard's clock. If the row is behind: when it last made progress. If it is pinged:
    /// when. Else: when the wait for the next ping began.
    pub timer_start: u32,
    pub flags: u8,
    /// How the client gets publications.
    pub format: Format,
    /// The cursor that was being written when the row fell behind. Only its frame may be half sent.
    pub current: u16,
}

/// What only some rows need.
#[derive(Default)]
pub struct Extra {
    /// What is left of a half-sent frame. It is kept here when something else must follow that frame.
    pub rest: Option<Rest>,
    /// Bytes to send after `rest`: whole frames, both replies and control frames.
    pub out: Vec<u8>,
    /// How many bytes of `out` are sent.
    pub sent: usize,
    /// Snapshots to send after `out` and before the cursors go on. Only the first may be half sent.
    pub prefaces: VecDeque<Preface>,
    /// How many bytes of `out` are control frames.
    pub controls: usize,
    /// The share of the tenant's budget that the replies in `out` hold.
    pub share: Option<BudgetShare>,
    /// What the rest of this takes of the tenant's account.
    pub charge: Option<Charge>,
    /// Received bytes that are not a whole frame yet, or wait for the client's next turn.
    pub partial: Vec<u8>,
    pub assembly: Assembly,
    /// When a closing row is dropped, answered or not, in milliseconds on the shard's clock.
    pub close_by: u32,
    /// Messages of a plain client that were dropped and that it was not told of, and the limit of the last.
    pub refused: Option<(u64, LimitReached)>,
    /// When it was last told of some, in milliseconds on the shard's clock.
    pub told_at: Option<u32>,
    /// Only for an event stream of several channels: what the client has of each channel, in the order of the cursors.
    /// Each event names all of these, so that the client may resume after any event. `None`: not all of the first
    /// snapshot.
    pub positions: Box<[Option<Position>]>,
}

impl Extra {
    /// Bytes of memory that it takes, besides those of `share`.
    fn size(&self) -> usize {
        let queued = self.out.capacity().saturating_sub(self.share.as_ref().map_or(0, BudgetShare::bytes));
        let rest = self.rest.as_ref().map_or(0, Rest::size);
        size_of::<Self>()
            + rest
            + queued
            + self.partial.capacity()
            + self.assembly.capacity()
            + size_of_val(&*self.positions)
    }

    /// Whether it keeps a chunk in memory that its channel has dropped.
    pub fn pins(&self) -> bool {
        let rest = self.rest.as_ref().and_then(|rest| match &rest.piece {
            Piece::Shared(chunk, _) => Some(chunk),
            Piece::Own(_) => None,
        });
        self.prefaces.iter().map(|preface| &preface.chunk).chain(rest).any(|chunk| chunk.is_pinned())
    }

    fn is_empty(&self) -> bool {
        self.rest.is_none()
            && self.prefaces.is_empty()
            && self.out.is_empty()
            && self.partial.is_empty()
            && self.assembly.is_empty()
            && self.positions.is_empty()
            && self.told_at.is_none()
    }
}

/// What was written to clients.
#[derive(Clone, Copy, Default)]
pub struct Sent {
    /// Publications that are whole with it.
    pub publications: u64,
    pub bytes: usize,
    /// Bytes that had to be compressed for it.
    pub compressed: usize,
}

/// How far a write got.
#[derive(Debug, PartialEq, Eq)]
pub enum WriteOutcome {
    /// Everything is written.
    Done,
    /// The socket takes no more for now.
    Blocked,
    /// There is more, but other clients have their turn.
    Turn,
    /// What comes next has to be encoded first, which is too much work to be done here.
    Encoding,
    /// The log has a gap. The client must ask for the channel again to go on after it.
    Gap,
    /// The socket is broken.
    Gone,
}

impl Row {
    /// Puts the rest of a snapshot's half-sent frame in front of everything else that is to be sent.
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
        // Copied, for the snapshot is large, and others may be at a newer one by now.
        let rest = Rest { piece: Piece::Shared(Arc::clone(&preface.chunk), self.format), range };
        extra.rest = Some(rest.copied());
        self.client.client_limits().metrics.deliveries.inc();
    }

    /// Leaves out what a client has yet to get of a view's snapshot, except for a frame that is half sent. Returns what
    /// the client then has. `None`: no snapshot is under way.
    pub fn cut_preface(&mut self, view: u32) -> Option<Since> {
        self.finish_preface();
        let extra = self.extra.as_mut()?;
        let index = extra.prefaces.iter().position(|preface| preface.view == view)?;
        let Preface { since, chunk, range, .. } = extra.prefaces.remove(index)?;
        // The chunk begins with publications that the client had before the snapshot. `begun` may be one of these.
        let begun = chunk.get_encoded(self.format).and_then(|chunk| chunk.last_begun(range.start)).unwrap_or(0);
        Some(match since {
            Since::Offset(offset) => Since::Offset(begun.max(offset)),
            Since::Nothing if begun > 0 => Since::Offset(begun),
            Since::Nothing => since,
        })
    }

    pub fn is_centrifuge(&self) -> bool {
        is_centrifuge(self.format)
    }

    pub fn is(&self, flags: u8) -> bool {
        self.flags & flags != 0
    }

    pub fn extra(&mut self) -> &mut Extra {
        self.extra.get_or_insert_default()
    }

    /// How many received bytes are not handled yet.
    pub fn waiting(&self) -> usize {
        self.extra.as_ref().map_or(0, |extra| extra.partial.len())
    }

    /// How many bytes of `out` wait.
    pub fn queued(&self) -> usize {
        self.extra.as_ref().map_or(0, |extra| extra.out.len() - extra.sent)
    }

    /// Adds whole frames after the queued ones.
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

    /// Charges what the row has besides its cursors to its tenant's account. `false`: it does not fit, and the client
    /// has to go.
    pub fn settle(&mut self) -> bool {
        let Some(extra) = &mut self.extra else { return true };
        let size = extra.size();
        let account = &self.client.client_limits().account;
        extra.charge.get_or_insert_with(|| Charge::new(account, Part::Sockets)).set(size)
    }

    /// Whether it keeps chunks in memory that its tenant needs elsewhere.
    pub fn pins_too_much(&self) -> bool {
        let pins = self.extra.as_ref().is_some_and(|extra| extra.pins());
        pins && {
            let account = &self.client.client_limits().account;
            account.bytes(Part::Pinned) > account.max_logs() || account.is_nearly_full()
        }
    }

    /// Frees what an idle row no longer needs.
    pub fn tidy(&mut self) {
        if !self.is(flag::CLOSING) && self.extra.as_ref().is_some_and(|extra| extra.is_empty()) {
            self.extra = None;
        }
    }

    /// Writes what goes before the cursors: the rest of a frame, `out`, then snapshots. Publications among it are
    /// counted here, in `sent` bytes alone.
    pub fn flush(&mut self, now: u32, sent: &mut Sent) -> WriteOutcome {
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
            sent.bytes += written;
            if behind {
                self.timer_start = now;
            }
            let all = written == bytes.len();
            if let Some(rest) = &mut extra.rest {
                // Its publication has been counted already.
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

    /// Writes from a cursor to the end of its log, and counts the publications that were completed. The cursor must not
    /// be off the log.
    pub fn advance(&mut self, nth: u16, view: &View, now: u32, sent: &mut Sent) -> WriteOutcome {
        if self.extra.as_ref().is_some_and(|extra| !extra.positions.is_empty()) {
            return self.advance_composed(nth, view, now, sent);
        }
        let (behind, format) = (self.is(flag::BEHIND), self.format);
        let Some(cursor) = self.cursors.as_mut_slice().get_mut(usize::from(nth)) else { return WriteOutcome::Done };
        let mut turn = TURN_BYTES;
        while cursor.seq < view.log.next_seq() {
            if view.log.from(cursor.seq).next().is_some_and(|chunk| chunk.is_work(format)) {
                return WriteOutcome::Encoding;
            }
            let (offered, fresh, result) = write(&mut self.socket, cursor, view, format);
            sent.compressed += fresh;
            match result {
                Ok(0) if offered == 0 && is_centrifuge(format) => return WriteOutcome::Gap,
                Ok(0) if offered > 0 => return WriteOutcome::Gone,
                Ok(written) => {
                    cursor.step(written, view, format, &mut sent.publications);
                    sent.bytes += written;
                    if behind {
                        self.timer_start = now;
                    }
                    if written < offered {
                        return WriteOutcome::Blocked;
                    }
                    turn = turn.saturating_sub(written);
                    if (turn == 0 || fresh > 0) && cursor.seq < view.log.next_seq() {
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

/// Whether this format is of the Centrifuge protocol. In that protocol a gap ends a subscription, and the client must
/// ask for the channel again.
fn is_centrifuge(format: Format) -> bool {
    matches!(format, Format::Centrifuge | Format::CentrifugeDeflated)
}

/// Makes one write, from a cursor on. Returns how many bytes were offered, how many had to be compressed for that, and
/// the socket's result. One chunk is compressed at most.
fn write(socket: &mut TcpStream, cursor: &Cursor, view: &View, format: Format) -> (usize, usize, io::Result<usize>) {
    let (stops, fresh) = (is_centrifuge(format), Cell::new(0));
    let chunks = view.log.from(cursor.seq).take_while(|chunk| {
        let is_fresh = format.is_compressed() && chunk.get_encoded(format).is_none();
        if is_fresh && fresh.get() > 0 || chunk.is_work(format) || stops && chunk.is_gap() {
            return false;
        }
        fresh.update(|bytes| if is_fresh { chunk.bytes() } else { bytes });
        true
    });
    let mut chunks = chunks.map(|chunk| chunk.encoded(format, &view.channel).bytes());
    let first = chunks.next().and_then(|bytes| bytes.get(cursor.position as usize..)).unwrap_or_default();
    let Some(second) = chunks.next() else {
        return (first.len(), fresh.get(), if first.is_empty() { Ok(0) } else { socket.write(first) });
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
    (offered, fresh.get(), if offered == 0 { Ok(0) } else { socket.write_vectored(offer) })
}
