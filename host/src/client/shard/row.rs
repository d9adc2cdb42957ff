//! A client in a shard's table.

use std::{
    collections::VecDeque,
    io::{self, ErrorKind, IoSlice, Write},
    ops::Range,
    sync::Arc,
};

use mio::net::TcpStream;

use crate::{
    channel::{Chunk, Log, Since},
    client::{Connected, Share, message::Assembly},
};

use super::cursor::{Cursor, Cursors};

/// Chunks in one write: after a stall, many small ones.
const MAX_SLICES: usize = 32;
/// Bytes written to one client before the others have their turn.
const TURN_BYTES: usize = 1 << 20;

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
    /// The cursor being written when the row fell behind: only its frame may be half sent.
    pub current: u16,
}

/// What only some rows have.
#[derive(Default)]
pub struct Extra {
    /// What is left of a half-sent frame that something else must follow.
    pub rest: Option<Rest>,
    /// Snapshots to send after that; only the first may have begun.
    pub prefaces: VecDeque<Preface>,
    /// Bytes to send after that and before the cursors go on: whole frames, replies and control frames.
    pub out: Vec<u8>,
    /// How much of `out` is sent.
    pub sent: usize,
    /// How many bytes of control frames were put into `out`.
    pub controls: usize,
    /// What the replies in `out` have of the tenant's budget.
    pub share: Option<Share>,
    /// Received, and not a whole frame yet.
    pub partial: Vec<u8>,
    pub assembly: Assembly,
    /// When a closing row is dropped, answered or not. Milliseconds on the shard's clock.
    pub close_by: u32,
}

/// A part of a chunk, to be sent to its end.
pub struct Rest {
    pub chunk: Arc<Chunk>,
    pub range: Range<usize>,
}

/// A snapshot that one of the row's cursors follows.
pub struct Preface {
    /// That cursor's.
    pub view: u32,
    /// What the client had before.
    pub since: Since,
    pub rest: Rest,
}

impl Extra {
    fn is_empty(&self) -> bool {
        self.rest.is_none()
            && self.prefaces.is_empty()
            && self.out.is_empty()
            && self.partial.is_empty()
            && self.assembly.is_empty()
    }
}

/// How far writing came.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// All there is.
    Done,
    /// The socket takes no more for now.
    Blocked,
    /// There is more, but the others wait.
    Turn,
    /// The socket is broken.
    Gone,
}

impl Row {
    /// Leaves out what a client has not got yet of a view's snapshot, but for the frame that is half sent; returns what it
    /// has then. `None`: there is no snapshot under way.
    pub fn cut_preface(&mut self, view: u32) -> Option<Since> {
        let extra = self.extra.as_mut()?;
        let index = extra.prefaces.iter().position(|preface| preface.view == view)?;
        let Preface { since, rest: Rest { chunk, range }, .. } = extra.prefaces.remove(index)?;
        // Before its first own frame are those that the client had already.
        let begun = chunk.begun(range.start).unwrap_or(0);
        if let Some(frame) = chunk.rest_of_frame(range.start) {
            // Copied: the snapshot is large, and others may have a newer one.
            let (part, length) = (chunk.part(frame.clone()), frame.len());
            extra.rest = Some(Rest { chunk: Arc::new(part), range: 0..length });
        }
        Some(match since {
            Since::Offset(had) => Since::Offset(begun.max(had)),
            Since::Nothing if begun > 0 => Since::Offset(begun),
            Since::Nothing => since,
        })
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

    /// Writes what is queued before the cursors: the rest of a frame, what of `out` has begun, snapshots, the rest of `out`.
    pub fn flush(&mut self, now: u32) -> Step {
        let behind = self.is(flag::BEHIND);
        let Some(extra) = &mut self.extra else { return Step::Done };
        let mut turn = TURN_BYTES;
        loop {
            let half_sent = extra.rest.is_some();
            let before = match (&mut extra.rest, extra.prefaces.front_mut()) {
                (Some(rest), _) => Some(rest),
                (None, Some(preface)) if extra.sent == 0 => Some(&mut preface.rest),
                (None, _) => None,
            };
            let bytes = match &before {
                Some(Rest { chunk, range }) => chunk.bytes().get(range.clone()).unwrap_or_default(),
                None => extra.out.get(extra.sent..).unwrap_or_default(),
            };
            if turn == 0 && !bytes.is_empty() {
                return Step::Turn;
            }
            let written = match bytes {
                [] => 0,
                bytes => match self.socket.write(bytes) {
                    Ok(0) => return Step::Gone,
                    Ok(written) => written,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => return Step::Blocked,
                    Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                    Err(_) => return Step::Gone,
                },
            };
            turn = turn.saturating_sub(written);
            if behind {
                self.touched = now;
            }
            let all = written == bytes.len();
            match before {
                Some(Rest { chunk, range }) => {
                    // A half-sent frame has been counted, and its chunk may be a copy that has no index.
                    if !half_sent {
                        let completed = chunk.completed(range.start, range.start + written);
                        self.client.terms().metrics.deliveries.inc_by(completed as u64);
                    }
                    range.start += written;
                    if all && extra.rest.take().is_none() {
                        extra.prefaces.pop_front();
                    }
                }
                None if all => {
                    (extra.out, extra.sent, extra.controls, extra.share) = (Vec::new(), 0, 0, None);
                    if extra.prefaces.is_empty() {
                        return Step::Done;
                    }
                }
                None => extra.sent += written,
            }
        }
    }

    /// Writes from a cursor that is on its log to the end of that, and counts the publications that were completed.
    pub fn advance(&mut self, nth: u16, log: &Log, now: u32, delivered: &mut u64) -> Step {
        let behind = self.is(flag::BEHIND);
        let Some(cursor) = self.cursors.as_mut_slice().get_mut(usize::from(nth)) else { return Step::Done };
        let mut turn = TURN_BYTES;
        while cursor.seq < log.next_seq() {
            let (offered, result) = write(&mut self.socket, cursor, log);
            match result {
                Ok(0) => return Step::Gone,
                Ok(written) => {
                    cursor.step(written, log, delivered);
                    if behind {
                        self.touched = now;
                    }
                    if written < offered {
                        return Step::Blocked;
                    }
                    turn = turn.saturating_sub(written);
                    if turn == 0 && cursor.seq < log.next_seq() {
                        return Step::Turn;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Step::Blocked,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Step::Gone,
            }
        }
        Step::Done
    }
}

/// One write from a cursor on: how many bytes were offered, and what the socket said.
fn write(socket: &mut TcpStream, cursor: &Cursor, log: &Log) -> (usize, io::Result<usize>) {
    let mut chunks = log.from(cursor.seq);
    let first = chunks.next().and_then(|chunk| chunk.bytes().get(cursor.position as usize..)).unwrap_or_default();
    let Some(second) = chunks.next() else { return (first.len(), socket.write(first)) };
    let mut slices = [IoSlice::new(&[]); MAX_SLICES];
    let mut offered = 0;
    let mut used = 0;
    let rest = [first, second.bytes()].into_iter().chain(chunks.map(|chunk| chunk.bytes()));
    for (slot, bytes) in slices.iter_mut().zip(rest) {
        *slot = IoSlice::new(bytes);
        offered += bytes.len();
        used += 1;
        if offered >= TURN_BYTES {
            break;
        }
    }
    (offered, socket.write_vectored(slices.get(..used).unwrap_or_default()))
}
