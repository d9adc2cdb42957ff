//! What a tenant does with a client: replies, subscriptions, its end.

use std::sync::Arc;

use super::{
    Shard,
    cursor::Cursor,
    index,
    row::{Row, flag},
    view::Subscriber,
};
use crate::{
    channel::{Position, Start},
    client::{
        ClientId, ErrorCode, MAX_CHANNELS, Over, Share, Step, Terms, Voice,
        centrifuge::{self, Subscribed, Unsubscribed},
        end::End,
        queue::{Follow, Told},
        raw,
    },
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
                Step::Overflow => self.close(slot, &End::Replies("there is no room for the replies")),
                Step::Connected { id, expires_seconds, given } => self.connected(slot, id, expires_seconds, given),
                Step::Subscribe(follow, told) => self.subscribe(slot, &follow, told),
                Step::Unsubscribe(channel, told) => self.unsubscribe_from(slot, &channel, told),
                Step::Expires(at) => self.deadlines.renew(client, at),
                Step::Close(end) => self.close(slot, &end),
                // Nobody may wait for it any more.
                Step::Tell(done) => drop(done.send(())),
            }
        }
    }

    /// Sends replies behind those that wait, between two publications.
    fn reply(&mut self, slot: usize, bytes: Vec<u8>, share: Share) {
        let Some(row) = self.rows.get_mut(slot) else { return };
        if row.queued() > MAX_REPLIES {
            return self.close(slot, &End::Replies("the replies are not taken"));
        }
        row.client.terms().metrics.client_replies.inc();
        let extra = row.extra();
        match &mut extra.share {
            Some(held) => held.merge(share),
            None => extra.share = Some(share),
        }
        self.send(slot, bytes);
    }

    /// Sends what the relay itself answers, unless the client takes too little of it.
    fn answer(&mut self, slot: usize, frame: Vec<u8>) {
        match self.rows.get(slot) {
            Some(row) if row.queued() > MAX_REPLIES => self.close(slot, &End::Replies("the replies are not taken")),
            _ => self.send(slot, frame),
        }
    }

    /// Tells a client that its message is not handled.
    pub(super) fn refuse(&mut self, slot: usize, over: Over) {
        if self.rows.get(slot).is_some_and(|row| row.queued() < MAX_REFUSALS) {
            let mut out = Vec::new();
            raw::error(ErrorCode::TooManyRequests as u32, over.message(), &mut out);
            self.send(slot, out);
        }
    }

    /// The tenant's code has let in a client of the Centrifuge protocol, and given it channels.
    fn connected(&mut self, slot: usize, id: u32, expires_seconds: Option<u32>, given: Vec<Follow>) {
        let Some(row) = self.rows.get(slot) else { return };
        let Voice::Centrifuge(session) = &row.client.voice else { return };
        let (session, client) = (Arc::clone(session), session.id);
        session.begin_pings(self.now);
        let mut subscribed = Vec::with_capacity(given.len());
        let mut begins = false;
        for follow in &given {
            if let Ok((position, snapshot)) = self.follow(slot, follow) {
                begins |= snapshot;
                subscribed.push((&*follow.channel.name, position));
            }
        }
        let reply = centrifuge::connected(id, client, self.timing.ping_interval, expires_seconds, &subscribed);
        self.answer(slot, reply);
        self.begin_behind(slot, begins);
    }

    /// From here on the client follows the channel.
    fn subscribe(&mut self, slot: usize, follow: &Follow, told: Told) {
        let followed = self.follow(slot, follow);
        let name = &*follow.channel.name;
        let centrifuge = self.rows.get(slot).is_some_and(|row| row.is_centrifuge());
        match (&followed, told) {
            _ if !centrifuge => {}
            (Ok((subscribed, _)), Told::Reply(id)) => self.answer(slot, centrifuge::subscribe(id, subscribed)),
            (Ok((subscribed, _)), Told::Push) => self.answer(slot, centrifuge::given(name, subscribed)),
            (Err(NotFollowed::Already), Told::Reply(id)) => self.answer(slot, centrifuge::already(id)),
            (Err(NotFollowed::Limit), Told::Reply(id)) => self.answer(slot, centrifuge::limit(id)),
            (Err(NotFollowed::Gone), Told::Reply(_)) | (Err(_), Told::Push) => {}
        }
        match followed {
            Ok((_, begins)) => self.begin_behind(slot, begins),
            Err(NotFollowed::Limit) if !matches!(told, Told::Reply(_)) => {
                let why = format!("a client follows at most {MAX_CHANNELS} channels");
                self.close(slot, &End::Channels(why));
            }
            Err(_) => {}
        }
    }

    /// Adds a cursor; returns where it begins, and whether with something that is there already.
    fn follow(&mut self, slot: usize, follow: &Follow) -> Result<(Subscribed, bool), NotFollowed> {
        let Follow { channel, start, given, .. } = follow;
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
        let at = self.view(channel);
        let subscriber = Subscriber { slot: index(slot), nth: u16::try_from(nth).unwrap_or(u16::MAX) };
        let Some(view) = self.views.get_mut(at) else { return Err(NotFollowed::Gone) };
        let mut recovered = None;
        let mut subscribed = None;
        if let Start::After(_) = start {
            subscribed = view.subscribe(index(at), subscriber, *start, format);
            recovered = Some(subscribed.is_some());
        } else if follow.lost {
            recovered = Some(false);
        }
        let subscribed = subscribed.or_else(|| view.subscribe(index(at), subscriber, Start::Now, format));
        let end = view.end;
        let behind = view.log.next_seq();
        let Some((mut cursor, begins)) = subscribed else { return Err(NotFollowed::Gone) };
        let behind = cursor.since().is_some() || cursor.seq < behind;
        cursor.given = *given;
        // What comes first must not come into the middle of a frame.
        self.finish_frame(slot);
        let Some(row) = self.rows.get_mut(slot) else { return Err(NotFollowed::Gone) };
        row.cursors.push(cursor);
        // With less than the snapshot it has nothing that it could resume behind.
        let position = begins.unwrap_or(Position { offset: 0, ..end });
        Ok((Subscribed { position, recovered }, behind))
    }

    /// What a new cursor begins with is sent when it is the row's turn.
    fn begin_behind(&mut self, slot: usize, behind: bool) {
        if behind {
            self.begin(slot);
        }
    }

    fn unsubscribe_from(&mut self, slot: usize, channel: &str, told: Told) {
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
        match told {
            _ if !centrifuge => {}
            Told::Reply(id) => self.answer(slot, centrifuge::unsubscribe(id)),
            Told::Push if followed => self.answer(slot, centrifuge::unsubscribed(channel, Unsubscribed::Server)),
            Told::Push => {}
        }
    }

    /// Takes a cursor out of its row, which has its frame finished. Its view has it still.
    pub(super) fn take_cursor(&mut self, slot: usize, nth: usize) -> Option<Cursor> {
        // After it none of the row's cursors is inside of a frame.
        self.finish_frame(slot);
        let Self { rows, views, .. } = self;
        let row = rows.get_mut(slot)?;
        let cursor = row.cursors.take(nth)?;
        row.cut_preface(cursor.view);
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
        Some(cursor)
    }
}

/// Why a client does not follow a channel.
enum NotFollowed {
    Already,
    Limit,
    /// It is no longer there.
    Gone,
}
