//! What a tenant does with a client: replies, subscriptions, its end.

use std::sync::Arc;

use super::{
    Shard, index,
    row::{Row, flag},
    view::Subscriber,
};
use crate::{
    channel::{Channel, Start},
    client::{ClientId, ErrorCode, MAX_CHANNELS, Share, Step, Terms, raw},
};

/// Bytes that may wait for a client's socket when there is another reply.
const MAX_REPLIES: usize = 4 << 20;
/// The same for the error that a message of its was refused: a client that floods gets few of them.
const MAX_REFUSALS: usize = 4 << 10;

impl Shard {
    /// Takes a tenant's steps with one of its own clients.
    pub(super) fn act(&mut self, client: ClientId, terms: &Arc<Terms>, steps: Vec<Step>) {
        let Some(&slot) = self.by_id.get(&client) else { return };
        let own = |row: &Row| Arc::ptr_eq(row.client.terms(), terms) && !row.is(flag::CLOSING);
        for step in steps {
            // Any step may be its last.
            if !self.rows.get(slot).is_some_and(own) {
                return;
            }
            match step {
                Step::Send(bytes, share) => self.reply(slot, bytes, share),
                Step::Overflow => self.close(slot, 1013, "there is no room for the replies", "replies"),
                Step::Subscribe(channel) => self.subscribe(slot, &channel),
                Step::Unsubscribe(channel) => self.unsubscribe_from(slot, &channel),
                Step::Close { code, text } => self.close(slot, code, &text, "handler"),
                // Nobody may wait for it any more.
                Step::Tell(done) => drop(done.send(())),
            }
        }
    }

    /// Sends replies behind those that wait, between two publications.
    fn reply(&mut self, slot: usize, bytes: Vec<u8>, share: Share) {
        let Some(row) = self.rows.get_mut(slot) else { return };
        if row.queued() > MAX_REPLIES {
            return self.close(slot, 1013, "the replies are not taken", "replies");
        }
        row.client.terms().metrics.client_replies.inc();
        let extra = row.extra();
        match &mut extra.share {
            Some(held) => held.merge(share),
            None => extra.share = Some(share),
        }
        self.send(slot, bytes);
    }

    /// Tells a client that its message is not handled.
    pub(super) fn refuse(&mut self, slot: usize) {
        if self.rows.get(slot).is_some_and(|row| row.queued() < MAX_REFUSALS) {
            let mut out = Vec::new();
            raw::error(ErrorCode::TooManyRequests as u32, "too many messages wait: this one is dropped", &mut out);
            self.send(slot, out);
        }
    }

    /// From here on the client follows the channel.
    fn subscribe(&mut self, slot: usize, channel: &Arc<Channel>) {
        let Some(row) = self.rows.get(slot) else { return };
        let cursors = row.cursors.as_slice();
        let follows = |view: &usize| cursors.iter().any(|cursor| cursor.view as usize == *view);
        if self.by_channel.get(&Arc::as_ptr(channel).addr()).is_some_and(follows) {
            return;
        }
        let nth = cursors.len();
        if nth >= MAX_CHANNELS {
            return self.close(slot, 1008, &format!("a client follows at most {MAX_CHANNELS} channels"), "channels");
        }
        let at = self.view(channel);
        let subscriber = Subscriber { slot: index(slot), nth: u16::try_from(nth).unwrap_or(u16::MAX) };
        let cursor = self.views.get_mut(at).and_then(|view| view.subscribe(index(at), subscriber, Start::Now));
        let Some((row, cursor)) = self.rows.get_mut(slot).zip(cursor) else { return };
        let begins = cursor.since().is_some() && !row.is(flag::BEHIND);
        row.cursors.push(cursor);
        if begins {
            self.begin(slot);
        }
    }

    fn unsubscribe_from(&mut self, slot: usize, channel: &str) {
        // After it none of the row's cursors is inside of a frame.
        self.finish_frame(slot);
        let Self { rows, views, .. } = self;
        let Some(row) = rows.get_mut(slot) else { return };
        let of_channel = |view: usize| views.get(view).is_some_and(|view| *view.channel.name == *channel);
        let Some(nth) = row.cursors.as_slice().iter().position(|cursor| of_channel(cursor.view as usize)) else {
            return;
        };
        if usize::from(row.current) == nth {
            row.cut_snapshot();
        }
        let Some(cursor) = row.cursors.take(nth) else { return };
        // The last cursor has its place now.
        if usize::from(row.current) == row.cursors.as_slice().len() {
            row.current = u16::try_from(nth).unwrap_or(0);
        }
        if let Some(moved) = row.cursors.as_slice().get(nth)
            && let Some(subscriber) =
                views.get_mut(moved.view as usize).and_then(|view| view.subscribers.get_mut(moved.at as usize))
        {
            subscriber.nth = u16::try_from(nth).unwrap_or(u16::MAX);
        }
        self.leave_view(&cursor);
    }
}
