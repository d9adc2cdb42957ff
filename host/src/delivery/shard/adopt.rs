//! Takes in clients whose handshake is done.

use std::sync::{Arc, atomic::Ordering};

use mio::{Interest, Token, net::TcpStream};
use wire::{Position, sse};

use crate::{
    channel::{Channel, Format, Start},
    delivery::{
        end::End,
        shard::{
            Accepted, Newcomer, Shard,
            cursor::{Cursor, Cursors},
            index,
            row::{Row, flag},
            view::Subscriber,
        },
        sockopt,
    },
};

/// Where a new client begins in the channels that it follows.
struct Beginning {
    cursors: Vec<Cursor>,
    /// What the client has of each channel, in the order of the cursors. `None`: not all of the first snapshot.
    positions: Vec<Option<Position>>,
    /// Channels in which something is missing after the position that the client came with.
    gaps: Vec<Arc<str>>,
    /// Whether there is something to be sent at once.
    behind: bool,
    /// Why the client must be closed: a position went since the handshake.
    end: Option<End>,
}

impl Shard {
    /// Makes a row for a client, and sends it its first bytes.
    pub(super) fn adopt(&mut self, newcomer: Newcomer) {
        let Newcomer { socket, leftover, accepted } = newcomer;
        let Accepted {
            mut client,
            recipient,
            channels,
            format,
            deflates,
            mut first_bytes,
            gaps,
            deadline,
            mut close_at_once,
        } = accepted;
        if self.end.is_some() {
            client.note_leaving("shutdown");
            return;
        }
        if client.client_limits().removed.load(Ordering::Relaxed) {
            close_at_once = Some(End::Tenant);
        }
        if let Some(later) = recipient {
            client.recipient = Some((later.make)());
        }
        let mut socket = TcpStream::from_std(socket);
        let slot = self.rows.vacant_key();
        if let Err(error) = self.poll.registry().register(&mut socket, Token(slot), Interest::READABLE) {
            tracing::warn!(%error, "a client's socket cannot be watched");
            client.note_leaving("io");
            return;
        }
        let Beginning { cursors, positions, gaps, behind, end } = self.follow_all(slot, &channels, format, gaps);
        if let Some(id) = client.id() {
            self.by_id.insert(id, slot);
            if let Some((at, due)) = deadline {
                self.deadlines.set(id, at, due);
            }
        }
        let flags = if deflates { flag::DEFLATES } else { 0 };
        let several = cursors.len() > 1;
        let cursors = Cursors::from(cursors);
        let mut row = Row { socket, client, cursors, extra: None, timer_start: self.now, flags, format, current: 0 };
        if format == Format::Sse {
            sockopt::give_up_after(&row.socket, self.timing.stall_timeout);
            sse::hello(&gaps, positions.iter().flatten(), &mut first_bytes);
            if several {
                row.extra().positions = positions.into();
            }
        }
        self.rows.insert(row);
        if !first_bytes.is_empty() {
            self.send(slot, first_bytes);
        }
        if let Some(end) = end.or(close_at_once) {
            self.close(slot, &end);
        } else if behind {
            self.queue_snapshots(slot);
        }
        let reads = |row: &&mut Row| !row.is(flag::CLOSING) && row.format != Format::Sse;
        if !leftover.is_empty()
            && let Some(row) = self.rows.get_mut(slot).filter(reads)
        {
            row.extra().partial = leftover;
            match row.settle() {
                true => self.queue_to_read(slot, false),
                false => self.close(slot, &End::Memory),
            }
        }
    }

    /// Makes the cursors of a client that is about to have a row in this slot. An event stream whose position is gone
    /// begins at the newest publication, with a gap.
    fn follow_all(
        &mut self,
        slot: usize,
        channels: &[(Arc<Channel>, Start)],
        format: Format,
        gaps: Vec<Arc<str>>,
    ) -> Beginning {
        let (cursors, positions) = (Vec::with_capacity(channels.len()), Vec::with_capacity(channels.len()));
        let mut beginning = Beginning { cursors, positions, gaps, behind: false, end: None };
        for (channel, start) in channels {
            let view_slot = self.view(channel);
            let Some(view) = self.views.get_mut(view_slot) else { continue };
            let nth = u16::try_from(beginning.cursors.len()).unwrap_or(u16::MAX);
            let subscriber = Subscriber { slot: index(slot), nth };
            let mut subscribed = view.subscribe(index(view_slot), subscriber, *start, format);
            if subscribed.is_none() && format == Format::Sse {
                beginning.gaps.push(Arc::clone(&channel.name));
                subscribed = view.subscribe(index(view_slot), subscriber, Start::Now, format);
            }
            match subscribed {
                Some((cursor, position)) => {
                    beginning.behind |= cursor.since().is_some() || cursor.seq < view.log.next_seq();
                    beginning.cursors.push(cursor);
                    beginning.positions.push(position);
                }
                None => {
                    // The position was still there at the handshake.
                    beginning.end = Some(End::Gap(Arc::clone(&channel.name)));
                    self.leave_if_empty(view_slot);
                }
            }
        }
        beginning
    }
}
