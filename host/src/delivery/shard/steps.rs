//! Carries out a tenant's steps with a client: replies, subscriptions (with recovery), the end of its connection.

use std::{sync::Arc, time::Instant};

use wire::{
    MAX_CHANNELS, Position, centrifuge,
    centrifuge::{Subscribed, Unsubscribed},
    raw,
};

use crate::{
    channel::Start,
    delivery::{
        BudgetShare, LimitReached, Step,
        end::End,
        queue::{Follow, NotifyBy},
        shard::{
            Shard,
            cursor::Cursor,
            index,
            row::{Row, Sent, flag},
            to_do::Steps,
            view::Subscriber,
        },
    },
};

/// Most bytes that may wait for a client's socket when it gets another reply. With more it is closed.
const MAX_REPLIES: usize = 4 << 20;
/// Most bytes that may wait when a client is told that its messages were dropped. One that reads slowly is told later.
const MAX_REFUSALS: usize = 4 << 10;
/// Milliseconds between two times that a client is told so.
const REFUSAL_PAUSE: u32 = 1000;
/// How many clients are told so before the others have their turn.
const TOLD_AT_ONCE: usize = 64;

impl Shard {
    /// Takes the next of a tenant's steps with one of its own clients. Returns whether there are more.
    pub(super) fn take_step(&mut self, steps: &mut Steps) -> bool {
        let Some(&slot) = self.by_id.get(&steps.client) else { return false };
        let own = |row: &Row| Arc::ptr_eq(row.client.client_limits(), &steps.client_limits) && !row.is(flag::CLOSING);
        // Any step may be the client's last.
        if !self.rows.get(slot).is_some_and(own) {
            return false;
        }
        if self.to_write.has(slot) {
            // What was published before comes first.
            let mut sent = Sent::default();
            self.go_on(slot, &mut sent);
            steps.client_limits.usage.sent(sent.bytes, Instant::now());
        }
        match steps.steps.next() {
            Some(Step::Send(bytes, share)) => self.reply(slot, bytes, share),
            Some(Step::Overflow) => self.close(slot, &End::Replies("there is no room for the replies")),
            Some(Step::Connected { id, expires_seconds, given }) => self.connected(slot, id, expires_seconds, given),
            Some(Step::Subscribe(follow, notify)) => self.subscribe(slot, &follow, notify),
            Some(Step::Unsubscribe(channel, notify)) => self.unsubscribe_from(slot, &channel, notify),
            Some(Step::Expires(at)) => self.deadlines.renew(steps.client, at),
            Some(Step::Close(end)) => self.close(slot, &end),
            // The receiver may be gone.
            Some(Step::ReportDone(done)) => drop(done.send(())),
            None => {}
        }
        !steps.steps.as_slice().is_empty()
    }

    /// Sends replies, after the queued ones and between two publications.
    fn reply(&mut self, slot: usize, bytes: Vec<u8>, share: BudgetShare) {
        let Some(row) = self.rows.get_mut(slot) else { return };
        if row.queued() > MAX_REPLIES {
            return self.close(slot, &End::Replies("the replies are not taken"));
        }
        row.client.client_limits().metrics.client_replies.inc();
        let extra = row.extra();
        match &mut extra.share {
            Some(held) => held.merge(share),
            None => extra.share = Some(share),
        }
        self.send(slot, bytes);
    }

    /// Sends an answer of the relay itself. A client that leaves too many unread is closed.
    fn answer(&mut self, slot: usize, frame: Vec<u8>) {
        match self.rows.get(slot) {
            Some(row) if row.queued() > MAX_REPLIES => self.close(slot, &End::Replies("the replies are not taken")),
            _ => self.send(slot, frame),
        }
    }

    /// Notes that a client's message was dropped. It is told so at once, but no more than once a second.
    pub(super) fn refuse(&mut self, slot: usize, limit: LimitReached) {
        let now = self.now;
        let Some(row) = self.rows.get_mut(slot) else { return };
        let extra = row.extra();
        let before = extra.refused.map_or(0, |(count, _)| count);
        extra.refused = Some((before + 1, limit));
        if extra.told_at.is_none() {
            extra.told_at = Some(now);
            self.refused.push_back((now, slot));
            self.tell_refused(slot);
        }
    }

    /// Tells a client how many of its messages were dropped since it was told last.
    fn tell_refused(&mut self, slot: usize) {
        let Some(row) = self.rows.get_mut(slot).filter(|row| row.queued() < MAX_REFUSALS) else { return };
        let Some((count, limit)) = row.extra().refused.take() else { return };
        let mut out = Vec::new();
        raw::dropped(centrifuge::Error::TooManyRequests.code(), limit.message(), count, &mut out);
        self.send(slot, out);
    }

    /// Tells clients whose messages were dropped, once their second is over. Those that lost no more are told at once
    /// the next time.
    pub(super) fn tell_all_refused(&mut self) {
        let now = self.now;
        for _ in 0..TOLD_AT_ONCE {
            let Some(&(at, slot)) = self.refused.front() else { return };
            if now.wrapping_sub(at) < REFUSAL_PAUSE {
                return;
            }
            self.refused.pop_front();
            let Some(row) = self.rows.get_mut(slot).filter(|row| !row.is(flag::CLOSING)) else { continue };
            // The slot may have another client by now.
            let Some(extra) = row.extra.as_mut().filter(|extra| extra.told_at == Some(at)) else { continue };
            if extra.refused.is_some() {
                extra.told_at = Some(now);
                self.refused.push_back((now, slot));
                self.tell_refused(slot);
            } else {
                extra.told_at = None;
                row.tidy();
            }
        }
    }

    /// Lets in a client of the Centrifuge protocol, with the channels that the tenant's code has given it.
    fn connected(&mut self, slot: usize, id: u32, expires_seconds: Option<u32>, given: Vec<Follow>) {
        let Some(row) = self.rows.get(slot) else { return };
        let Some((client, pings)) = row.client.id().zip(row.client.pings()) else { return };
        pings.start(self.now);
        let mut subscribed = Vec::with_capacity(given.len());
        let mut begins = false;
        for follow in &given {
            if let Ok((position, snapshot)) = self.follow(slot, follow) {
                begins |= snapshot;
                subscribed.push((&*follow.channel.name, position));
            }
        }
        let reply =
            centrifuge::connected(id, &client.to_string(), self.timing.ping_interval, expires_seconds, &subscribed);
        self.answer(slot, reply);
        self.queue_if_behind(slot, begins);
    }

    /// Has the client follow a channel from here on.
    fn subscribe(&mut self, slot: usize, follow: &Follow, notify: NotifyBy) {
        let followed = self.follow(slot, follow);
        let name = &*follow.channel.name;
        let centrifuge = self.rows.get(slot).is_some_and(Row::is_centrifuge);
        match (&followed, notify) {
            _ if !centrifuge => {}
            (Ok((subscribed, _)), NotifyBy::Reply(id)) => self.answer(slot, centrifuge::subscribe(id, subscribed)),
            (Ok((subscribed, _)), NotifyBy::Push) => self.answer(slot, centrifuge::given(name, subscribed)),
            (Err(NotFollowed::Already), NotifyBy::Reply(id)) => self.answer(slot, centrifuge::already(id)),
            (Err(NotFollowed::Limit), NotifyBy::Reply(id)) => self.answer(slot, centrifuge::limit(id)),
            (Err(NotFollowed::Gone), NotifyBy::Reply(_)) | (Err(_), NotifyBy::Push) => {}
        }
        match followed {
            Ok((_, begins)) => self.queue_if_behind(slot, begins),
            Err(NotFollowed::Limit) if !matches!(notify, NotifyBy::Reply(_)) => {
                let why = format!("a client follows at most {MAX_CHANNELS} channels");
                self.close(slot, &End::Channels(why));
            }
            Err(_) => {}
        }
    }

    /// Adds a cursor. Returns where it begins, and whether there is something to be sent at once.
    fn follow(&mut self, slot: usize, follow: &Follow) -> Result<(Subscribed, bool), NotFollowed> {
        let Follow { channel, start, given_by_tenant, .. } = follow;
        let Some(row) = self.rows.get(slot) else { return Err(NotFollowed::Gone) };
        let (format, nth) = (row.format, row.cursors.as_slice().len());
        let cursors = row.cursors.as_slice();
        let follows = |view: &usize| cursors.iter().any(|cursor| cursor.view as usize == *view);
        if self.by_channel.get(&Arc::as_ptr(channel).addr()).is_some_and(follows) {
            return Err(NotFollowed::Already);
        }
        if nth >= MAX_CHANNELS {
            return Err(NotFollowed::Limit);
        }
        let view_slot = self.view(channel);
        let subscriber = Subscriber { slot: index(slot), nth: u16::try_from(nth).unwrap_or(u16::MAX) };
        let Some(view) = self.views.get_mut(view_slot) else { return Err(NotFollowed::Gone) };
        let mut recovered = None;
        let mut subscribed = None;
        if let Start::After(_) = start {
            subscribed = view.subscribe(index(view_slot), subscriber, *start, format);
            recovered = Some(subscribed.is_some());
        } else if follow.position_lost {
            recovered = Some(false);
        }
        let subscribed = subscribed.or_else(|| view.subscribe(index(view_slot), subscriber, Start::Now, format));
        let end = view.end;
        let behind = view.log.next_seq();
        let Some((mut cursor, begins)) = subscribed else { return Err(NotFollowed::Gone) };
        let behind = cursor.since().is_some() || cursor.seq < behind;
        cursor.given_by_tenant = *given_by_tenant;
        // What comes first for the new cursor must not be sent in the middle of a frame.
        self.finish_frame(slot);
        let Some(row) = self.rows.get_mut(slot) else { return Err(NotFollowed::Gone) };
        row.cursors.push(cursor);
        // Without the whole snapshot, the client has no position to resume after.
        let position = begins.unwrap_or(Position { offset: 0, ..end });
        Ok((Subscribed { position, recovered }, behind))
    }

    /// Puts the row in line if its new cursor is behind.
    fn queue_if_behind(&mut self, slot: usize, behind: bool) {
        if behind {
            self.queue_snapshots(slot);
        }
    }

    fn unsubscribe_from(&mut self, slot: usize, channel: &str, notify: NotifyBy) {
        let Self { rows, views, .. } = self;
        let Some(row) = rows.get_mut(slot) else { return };
        let centrifuge = row.is_centrifuge();
        let of_channel = |view: usize| views.get(view).is_some_and(|view| *view.channel.name == *channel);
        let nth = row.cursors.as_slice().iter().position(|cursor| of_channel(cursor.view as usize));
        let cursor = nth.and_then(|nth| self.take_cursor(slot, nth));
        let followed = cursor.is_some();
        if let Some(cursor) = cursor {
            self.leave_view(&cursor);
        }
        match notify {
            _ if !centrifuge => {}
            NotifyBy::Reply(id) => self.answer(slot, centrifuge::unsubscribe(id)),
            NotifyBy::Push if followed => self.answer(slot, centrifuge::unsubscribed(channel, Unsubscribed::Server)),
            NotifyBy::Push => {}
        }
    }

    /// Takes a cursor out of its row, after finishing its frame. The view still lists the cursor.
    pub(super) fn take_cursor(&mut self, slot: usize, nth: usize) -> Option<Cursor> {
        // After this, no cursor of the row is inside a frame.
        self.finish_frame(slot);
        let Self { rows, views, .. } = self;
        let row = rows.get_mut(slot)?;
        let cursor = row.cursors.take(nth)?;
        row.cut_preface(cursor.view);
        // The last cursor has taken its place.
        if usize::from(row.current) == row.cursors.as_slice().len() {
            row.current = u16::try_from(nth).unwrap_or(0);
        }
        if let Some(moved) = row.cursors.as_slice().get(nth)
            && let Some(subscriber) = views
                .get_mut(moved.view as usize)
                .and_then(|view| view.subscribers.get_mut(moved.subscriber_index as usize))
        {
            subscriber.nth = u16::try_from(nth).unwrap_or(u16::MAX);
        }
        Some(cursor)
    }
}

/// Why a client does not follow a channel.
enum NotFollowed {
    Already,
    Limit,
    /// The client is no longer there.
    Gone,
}
