//! Carries out the commands of a Centrifuge client, one after another, most of them away from its shard, which answers
//! `connect` and `subscribe`. If no handler is asked, the shard's thread carries out a short command itself.
//!
//! The shard puts the client's messages into an inbox, which one task at a time empties. A message is one command or
//! more. The tenant's handler is asked as for any client; `on-connect` is called when the client sends `connect`. The
//! session sends steps back to the shard. Only the shard knows what the client follows, and from where on, so the shard
//! writes the replies that say so.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::{Notify, oneshot};
use wire::{
    Compression, Frame, Kind, Page, Position,
    centrifuge::{Command, Disconnect, Error, Recover, Request, decode, reply},
    encode, frame,
};

use crate::{
    channel::{Channel, Refused, Start},
    component,
    component::{Handler, Meaning, NotLetIn, SessionGuard, Tasks},
    delivery::{
        BudgetShare, ClientId, End, Follow, Inbox, InboxEvent, LaterRecipient, LimitReached, NotifyBy, Pings,
        Recipient, Step, StepList,
    },
    sync::Mutex,
    tenant::Tenant,
};

mod connect;

/// Most publications in one answer about a channel's history.
const MAX_HISTORY: usize = 1000;
/// How long a client may stay after its lease, to refresh it: SDKs begin a refresh when the lease is over.
const REFRESH_GRACE: Duration = Duration::from_secs(25);
/// Bytes of a command that the shard's thread itself carries out, if nobody's code is asked.
const SHORT: usize = 256;
/// Most commands in one frame.
const MAX_COMMANDS: usize = 1000;
/// Bytes of replies that are collected before the session waits for the shard to take them.
const MAX_UNSENT_REPLIES: usize = 64 << 10;

/// One client's session.
pub struct CentrifugeSession {
    pub id: ClientId,
    tenant: Arc<Tenant>,
    /// `None`: the tenant has no handler.
    handled: Option<Box<Handled>>,
    compression: Option<Compression>,
    tasks: Tasks,
    inbox: Inbox,
    /// Whether it has sent `connect` and was let in.
    connected: AtomicBool,
    /// Its pings. They begin when the client knows that it is let in.
    pings: Pings,
    /// Why its connection ends, once it does. Commands that are not carried out yet are dropped then.
    reason: OnceLock<&'static str>,
}

/// What the session of a tenant with a handler has besides.
struct Handled {
    handler: Arc<Handler>,
    /// The client's HTTP request, kept for the handler until the client sends `connect`.
    request: Mutex<Option<Box<component::ConnectRequest>>>,
    /// Notified when the client leaves.
    left: Notify,
    /// The session that the handler knows the client by, once it is let in.
    session: OnceLock<SessionGuard>,
}

/// Why a command is not carried out.
enum CommandRefusal {
    /// The client is told, and stays connected.
    Error(u32, String),
    /// The connection ends.
    End(End),
}

impl From<Error> for CommandRefusal {
    fn from(error: Error) -> Self {
        Self::Error(error.code(), error.message().to_owned())
    }
}

impl Recipient for CentrifugeSession {
    fn id(&self) -> ClientId {
        self.id
    }

    fn message(self: Arc<Self>, kind: Kind, payload: &[u8]) -> Result<(), LimitReached> {
        let client_limits = &self.tenant.client_limits;
        if self.inbox.message(kind, payload, &client_limits.send_limits, &client_limits.budget)? {
            // One command takes no longer than to wake another thread for it. Who compresses, and who sends several,
            // waits for others.
            let is_one = payload.len() <= SHORT && !payload.contains(&b'\n');
            if is_one && self.handled.is_none() && self.compression.is_none() {
                self.tasks.begin(Arc::clone(&self).serve(true));
            } else {
                self.tasks.spawn(Arc::clone(&self).serve(false));
            }
        }
        Ok(())
    }

    /// Commands that are not carried out yet are dropped.
    fn note_leaving(&self, reason: &'static str) {
        // An earlier reason stands.
        let _ = self.reason.set(reason);
        let Some(handled) = &self.handled else { return };
        handled.left.notify_one();
        if let Some(session) = handled.session.get() {
            session.note_leaving(reason);
        }
    }

    fn pings(&self) -> Option<&Pings> {
        Some(&self.pings)
    }
}

impl CentrifugeSession {
    /// A session, made when the client's shard has it. `handler`: the tenant's, if it has one, and what it will be asked.
    pub fn later(
        id: ClientId,
        tenant: &Arc<Tenant>,
        handler: Option<(Arc<Handler>, component::ConnectRequest)>,
        compression: Option<Compression>,
        tasks: Tasks,
    ) -> LaterRecipient {
        let tenant = Arc::clone(tenant);
        let handler = handler.map(|(handler, request)| (handler, Box::new(request)));
        let make = Box::new(move || {
            let handled = handler.map(|(handler, request)| {
                let request = Mutex::new(Some(request));
                Box::new(Handled { handler, request, left: Notify::new(), session: OnceLock::new() })
            });
            Arc::new(Self {
                id,
                tenant,
                compression,
                tasks: handled.as_ref().map_or(tasks, |handled| handled.handler.tasks().clone()),
                handled,
                inbox: Inbox::default(),
                connected: AtomicBool::new(false),
                pings: Pings::default(),
                reason: OnceLock::new(),
            }) as Arc<dyn Recipient>
        });
        LaterRecipient { id, make }
    }

    /// Carries out what is in the inbox. `has_turn`: its first message came in the tenant's turn of being read, which
    /// is long enough for it.
    async fn serve(self: Arc<Self>, mut has_turn: bool) {
        while let Some(event) = self.inbox.next() {
            // The message's share of the budget is given back when its steps are done.
            let InboxEvent::Message(frame, share) = event else { continue };
            if let Err(end) = self.handle(&frame, share, std::mem::take(&mut has_turn)).await {
                // Set now, since the shard notes it only when it takes this step.
                let _ = self.reason.set(end.reason());
                self.send_steps(vec![Step::Close(end)], None);
            }
        }
    }

    /// The handler, and the session that it knows the client by. `None`: there is no handler, or the client is not let
    /// in.
    fn handler_session(&self) -> Option<(&Arc<Handler>, &SessionGuard)> {
        let handled = self.handled.as_ref()?;
        Some((&handled.handler, handled.session.get()?))
    }

    fn send_steps(&self, steps: Vec<Step>, share: Option<BudgetShare>) {
        if !steps.is_empty() {
            self.tenant.shards.take_steps(self.id, &self.tenant.client_limits, steps, share);
        }
    }

    /// Hands the steps over, and waits until the shard has taken them or the client is gone.
    async fn send_and_wait(&self, steps: &mut StepList) {
        let (done, is_done) = oneshot::channel();
        steps.push(Step::ReportDone(done));
        self.send_steps(steps.take(), None);
        // An error means that they never will be.
        let _ = is_done.await;
    }

    /// `share`: the message's of the budget.
    async fn handle(&self, message: &Frame, share: BudgetShare, has_turn: bool) -> Result<(), End> {
        let bad = |why: String| End::Centrifuge(Disconnect::BadRequest, why);
        let text = str::from_utf8(&message.bytes).ok().filter(|_| message.kind == Kind::Text);
        let Some(text) = text else { return Err(bad("commands are JSON, as text".into())) };
        if text.bytes().filter(|byte| *byte == b'\n').count() >= MAX_COMMANDS {
            return Err(bad(format!("one frame has at most {MAX_COMMANDS} commands")));
        }
        let commands = decode(text).map_err(|malformed| bad(malformed.to_string()))?;
        let mut steps = StepList::new(&self.tenant.client_limits.budget);
        for Command { id, request } in commands {
            if self.reason.get().is_some() {
                return Ok(());
            }
            match self.perform(id, request, &mut steps).await {
                Ok(()) => {}
                Err(CommandRefusal::Error(code, message)) => {
                    self.write_reply(&mut steps, |out| reply::error(id, code, &message, out))
                }
                Err(CommandRefusal::End(end)) => {
                    self.send_steps(steps.take(), Some(share));
                    return Err(end);
                }
            }
            if steps.replies().len() >= MAX_UNSENT_REPLIES {
                self.send_and_wait(&mut steps).await;
            }
            // Other sessions run on this thread, too, and those of one tenant have their turns.
            if !has_turn {
                self.tenant.command_turn.begin().await;
            }
        }
        self.send_steps(steps.take(), Some(share));
        Ok(())
    }

    async fn perform(&self, id: u32, request: Request, steps: &mut StepList) -> Result<(), CommandRefusal> {
        let connects = matches!(request, Request::Connect { .. });
        if matches!(request, Request::Pong) {
            return Ok(());
        }
        let send_limits = &self.tenant.client_limits.send_limits;
        if let Err(limit) = self.inbox.count_message(send_limits) {
            limit.count(&self.tenant.metrics);
            // As many again are answered in a second.
            return Err(match self.inbox.count_refusal(send_limits) {
                true => Error::TooManyRequests.into(),
                false => CommandRefusal::End(End::TooMany),
            });
        }
        if connects == self.connected.load(Ordering::Relaxed) {
            let why = if connects { "the client is connected already" } else { "the first command is connect" };
            return Err(CommandRefusal::End(End::Centrifuge(Disconnect::BadRequest, why.into())));
        }
        match request {
            Request::Connect { token, data, subs } => self.connect(id, token, data, &subs, steps).await?,
            Request::Subscribe { channel, data, recover } => {
                self.check_allowed(channel.clone(), data).await?;
                let channel = self.tenant.channels.follow(&channel).await.map_err(not_followed)?;
                steps.push(Step::Subscribe(follow(channel, recover, false), NotifyBy::Reply(id)));
            }
            Request::Unsubscribe { channel } => steps.push(Step::Unsubscribe(channel, NotifyBy::Reply(id))),
            Request::Publish { channel, data } => {
                self.forward_to_handler(id, Meaning::Publish(&channel), data, steps).await?
            }
            Request::Rpc { method, data } => self.forward_to_handler(id, Meaning::Rpc(&method), data, steps).await?,
            Request::Send { data } => self.forward_to_handler(id, Meaning::Message, data, steps).await?,
            Request::History { channel, limit, since, reverse } => {
                self.check_allowed(channel.clone(), None).await?;
                let channel = self.tenant.channels.find(&channel).await.map_err(not_followed)?;
                let channel = channel.ok_or(Error::UnknownChannel)?;
                let limit = usize::try_from(limit).unwrap_or(MAX_HISTORY).min(MAX_HISTORY);
                let (compression, metrics) = (self.compression, Arc::clone(&channel.metrics));
                // Others wait for this thread. The page is made there, too, so that who waits holds none.
                let written = self.tenant.shards.make_page(&metrics, move || {
                    let page = history(&channel, limit, since, reverse)?;
                    let (mut text, mut reply) = (Vec::new(), Vec::new());
                    reply::history(id, &page, &mut text);
                    encode(compression, frame::TEXT, &text, &mut reply);
                    Ok::<_, CommandRefusal>(reply)
                });
                let reply = written.await.ok_or(Error::Internal)??;
                match steps.replies() {
                    replies if replies.is_empty() => *replies = reply,
                    replies => replies.extend(reply),
                }
            }
            Request::Refresh { token } => self.refresh(id, token, steps).await?,
            Request::NotAvailable => return Err(Error::NotAvailable.into()),
            Request::Ping => self.write_reply(steps, |out| reply::empty(id, "ping", out)),
            Request::Unknown => return Err(Error::MethodNotFound.into()),
            Request::Pong => {}
        }
        Ok(())
    }

    /// Asks the handler to renew the client's lease, with the new token that the client sent.
    async fn refresh(&self, id: u32, token: String, steps: &mut StepList) -> Result<(), CommandRefusal> {
        let renewed = match self.handler_session() {
            Some((handler, session)) => handler.renew(session, token).await,
            None => None,
        };
        let lease = match renewed.ok_or(Error::NotAvailable)? {
            Ok(lease) => lease,
            Err(NotLetIn::Refused(_, reason)) => {
                // An SDK that is told no reason connects again.
                let reason = if reason.is_empty() { Disconnect::InvalidToken.reason().into() } else { reason };
                return Err(CommandRefusal::End(End::Centrifuge(Disconnect::InvalidToken, reason)));
            }
            Err(NotLetIn::Broken(_) | NotLetIn::Gone) => return Err(Error::Internal.into()),
        };
        let client = self.id.to_string();
        self.write_reply(steps, |out| reply::refresh(id, &client, lease, out));
        steps.push(expiry_step(lease));
        Ok(())
    }

    /// Asks the tenant's handler, if it has one, whether the client may follow a channel.
    async fn check_allowed(&self, channel: String, data: Option<String>) -> Result<(), CommandRefusal> {
        if let Some(handled) = &self.handled {
            let session = handled.session.get().ok_or(Error::PermissionDenied)?;
            let allowed = handled.handler.subscribe(session, channel, data).await;
            allowed.map_err(|why| match why {
                NotLetIn::Refused(_, reason) => CommandRefusal::Error(Error::PermissionDenied.code(), reason),
                NotLetIn::Broken(_) | NotLetIn::Gone => Error::Internal.into(),
            })?;
        }
        Ok(())
    }

    /// Has the tenant's handler handle what the client sent. The handler's actions become steps of their own.
    async fn forward_to_handler(
        &self,
        id: u32,
        meaning: Meaning<'_>,
        data: String,
        steps: &mut StepList,
    ) -> Result<(), CommandRefusal> {
        let Some((handler, session)) = self.handler_session() else {
            self.tenant.metrics.message_dropped("no_handler");
            return Err(Error::NotAvailable.into());
        };
        self.send_steps(steps.take(), None);
        let frame = Frame { kind: Kind::Text, bytes: data.into() };
        if handler.handle_command(session, id, meaning, &frame).await.is_err() {
            handler.metrics.lost.inc();
            return Err(Error::Internal.into());
        }
        Ok(())
    }

    fn write_reply(&self, steps: &mut StepList, write: impl FnOnce(&mut Vec<u8>)) {
        let mut text = Vec::new();
        write(&mut text);
        encode(self.compression, frame::TEXT, &text, steps.replies());
    }
}

/// The answer to a command that names a channel which cannot be followed.
fn not_followed(why: Refused) -> CommandRefusal {
    let error = match why {
        Refused::NotAllowed => Error::UnknownChannel,
        Refused::Channels(_) => Error::LimitExceeded,
        _ => Error::BadRequest,
    };
    CommandRefusal::Error(error.code(), why.to_string())
}

/// The step that sets when the connection ends. `lease`: seconds; `None`: the client may stay.
fn expiry_step(lease: Option<u32>) -> Step {
    Step::Expires(lease.map(|seconds| Instant::now() + Duration::from_secs(seconds.into()) + REFRESH_GRACE))
}

fn follow(channel: Arc<Channel>, recover: Option<Recover>, given_by_tenant: bool) -> Follow {
    let start = recover.flatten().map_or(Start::Now, Start::After);
    Follow { channel, start, position_lost: recover == Some(None), given_by_tenant }
}

fn history(channel: &Channel, limit: usize, since: Option<Recover>, reverse: bool) -> Result<Page, CommandRefusal> {
    let since: Option<Position> = match since {
        Some(None) => return Err(Error::UnrecoverablePosition.into()),
        since => since.flatten(),
    };
    let page = if reverse { channel.page_before(since, limit) } else { channel.page_from(since, limit) };
    if page.recovered == Some(false) {
        return Err(Error::UnrecoverablePosition.into());
    }
    Ok(page)
}
