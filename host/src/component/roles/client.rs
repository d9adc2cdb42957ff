//! The client handler: what a tenant answers to its clients.
//!
//! In come requests to be let in, which wait for their answer, and clients' messages, which do not. Each client has a
//! [`ClientSession`] whose inbox one task at a time empties. So a client's messages are handled in order, while other
//! clients' messages go to other instances. Out go steps to the client's shard, publications, and frames to upstreams.
//!
//! A limit bounds the messages in each inbox. Another bounds the bytes of all inboxes of a tenant and of the replies on
//! their way. A message over them is refused, and the client is told. A call that fails loses its message, and the
//! client is told.

use std::{ops::RangeInclusive, sync::Arc, time::Instant};

use arc_swap::ArcSwap;
use tokio::sync::oneshot;
use wasmtime::{
    Store,
    component::{Instance, InstancePre},
};
use wire::{Compression, Frame};

use crate::{
    component::{
        Guest, RoleKind, Tasks,
        bindings::{
            client::{
                ClientComponent, ClientComponentPre,
                exports::edge_relay::tenant::client_handler::{
                    Acceptance, Action, Client, Kind, Refusal as GuestRefusal, Request as GuestRequest,
                    Transport as GuestTransport,
                },
            },
            lease::{ClientLeaseComponent, ClientLeaseComponentPre},
        },
        imports::channels::to_guest,
        load::inspect,
        run::{
            call::Broken,
            host::Host,
            instance::{Role, RoleCode},
            pool::{Pool, Slot},
        },
    },
    delivery::{BudgetShare, ClientId, Step},
    metrics::{Blame, GuestMetrics},
    tenant::Tenant,
};

mod actions;
mod session;

use crate::component::roles::client::actions::ReplyMode;
pub use crate::component::roles::client::session::{ClientSession, SessionGuard};

/// The functions of a client handler.
pub struct ClientHandler {
    own: ClientComponent,
    /// `None`: it sets no time for clients to stay.
    lease: Option<ClientLeaseComponent>,
}

impl Role for ClientHandler {
    const KIND: RoleKind = RoleKind::Client;

    fn find(store: &mut Store<Host>, instance: &Instance) -> wasmtime::Result<Self> {
        let leases = instance.get_export_index(&mut *store, None, inspect::CLIENT_LEASE).is_some();
        let lease = leases.then(|| ClientLeaseComponent::new(&mut *store, instance)).transpose()?;
        Ok(Self { own: ClientComponent::new(store, instance)?, lease })
    }

    fn check(pre: &InstancePre<Host>) -> wasmtime::Result<()> {
        if pre.component().get_export_index(None, inspect::CLIENT_LEASE).is_some() {
            ClientLeaseComponentPre::new(pre.clone())?;
        }
        ClientComponentPre::new(pre.clone()).map(drop)
    }
}

pub type ClientCode = RoleCode<ClientHandler>;

/// The calls that an instance serves before a fresh one takes its place.
const REUSE: u32 = 100_000;

/// The statuses with which a client may be refused (RFC 9110, 15.5 and 15.6). Others are answered as 403.
const REFUSALS: RangeInclusive<u16> = 400..=599;
/// The status for a client whose token is refused (RFC 9110, 15.5.2).
const UNAUTHORIZED: u16 = 401;

/// A tenant's handler for all its clients.
pub struct Handler {
    tenant: Arc<Tenant>,
    pub metrics: Arc<GuestMetrics>,
    /// The version that the next call gets.
    active: ArcSwap<ActivePool>,
    tasks: Tasks,
}

/// One version of the code.
struct ActivePool {
    pool: Arc<Pool<ClientHandler>>,
    /// Whether it sets a time for clients to stay.
    leases: bool,
}

/// A client that asks to be let in.
pub struct ConnectRequest {
    pub path: String,
    pub query: String,
    pub headers: Vec<(String, String)>,
    pub client_ip: String,
    pub transport: Transport,
    pub token: Option<String>,
    /// JSON.
    pub data: Option<String>,
}

/// The protocol by which a client comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    WebSocket,
    Sse,
    Centrifuge,
}

/// What a message is in the client's protocol.
#[derive(Clone, Copy, Debug)]
pub enum Meaning<'m> {
    Message,
    /// A call of this method.
    Rpc(&'m str),
    /// The wish to publish on this channel.
    Publish(&'m str),
}

/// A client that was let in.
pub struct Admission {
    pub session: SessionGuard,
    /// The channels it is to follow. `None`: those it asks for, after [`Handler::subscribe`] has allowed each.
    pub channels: Option<Vec<String>>,
    /// The subprotocol of its WebSocket. `None`: one that the manifest lists, if any.
    pub subprotocol: Option<String>,
    /// How long it may stay, in seconds. `None`: as long as it likes.
    pub lease: Option<u32>,
}

/// Why a client, or its subscription, was not let in.
#[derive(Debug)]
pub enum NotLetIn {
    /// The guest said no, with the status of the HTTP answer and a reason.
    Refused(u16, String),
    Broken(Broken),
    /// The guests' runtime is shutting down.
    Gone,
}

impl ActivePool {
    fn new(code: Arc<ClientCode>, guest: Guest) -> Arc<Self> {
        let (leases, instances) = (code.leases, guest.version.limits.client_instances);
        Arc::new(Self { pool: Pool::new(code, guest, instances, REUSE), leases })
    }
}

/// Calls the guest about a client, within the deadline of the slot's version.
async fn call<T>(
    slot: Slot<ClientHandler>,
    id: ClientId,
    identity: Option<&str>,
    call: impl AsyncFnOnce(&mut Store<Host>, &ClientHandler, Client<'_>) -> wasmtime::Result<T>,
) -> Result<T, Broken> {
    let (id, deadline) = (id.to_string(), slot.guest().version.limits.client_call);
    let called = slot.call(deadline, async |store, handler| call(store, handler, Client { id: &id, identity }).await);
    called.await
}

impl Handler {
    pub fn new(code: Arc<ClientCode>, guest: Guest, tasks: Tasks) -> Arc<Self> {
        let (tenant, metrics) = (Arc::clone(&guest.tenant), Arc::clone(&guest.metrics));
        Arc::new(Self { tenant, metrics, active: ArcSwap::new(ActivePool::new(code, guest)), tasks })
    }

    /// Has the next call run this code. Calls that are under way, or wait for an instance, are finished by the code
    /// before.
    pub fn swap(&self, code: Arc<ClientCode>, guest: Guest) {
        let resting = self.active.swap(ActivePool::new(code, guest)).pool.retire();
        self.tasks.spawn(async move { drop(resting) });
    }

    /// Drops instances that have been idle for a while. Returns how many.
    pub fn rest(&self) -> usize {
        let resting = self.active.load().pool.rest();
        let count = resting.len();
        if count > 0 {
            self.tasks.spawn(async move { drop(resting) });
        }
        count
    }

    /// Returns the guest whose version the next call gets.
    pub fn guest(&self) -> Guest {
        self.active.load().pool.guest.clone()
    }

    fn pool(&self) -> Arc<Pool<ClientHandler>> {
        Arc::clone(&self.active.load().pool)
    }

    /// Spawns its calls.
    pub fn tasks(&self) -> &Tasks {
        &self.tasks
    }

    /// Sends steps to the client's shard.
    fn take_steps(&self, client: ClientId, steps: Vec<Step>, share: Option<BudgetShare>) {
        self.tenant.shards.take_steps(client, &self.tenant.client_limits, steps, share);
    }

    /// Asks whether a client is to be let in. A client that is let in when nobody waits for the answer any more leaves
    /// at once. `compression` is for replies to it.
    pub async fn connect(
        self: &Arc<Self>,
        id: ClientId,
        request: ConnectRequest,
        compression: Option<Compression>,
    ) -> Result<Admission, NotLetIn> {
        let handler = Arc::clone(self);
        let (mut answer, answered) = oneshot::channel();
        self.tasks.spawn(async move {
            let Some(slot) = handler.slot_for(&mut answer).await else { return };
            let admitted = match handler.on_connect(slot, id, &request).await {
                Ok(accepted) => {
                    let session = ClientSession::new(id, accepted.identity, Arc::clone(&handler), compression);
                    let session = SessionGuard::new(session);
                    let lease = handler.on_renew(&session, request.token.as_deref()).await;
                    let Acceptance { channels, subprotocol, .. } = accepted;
                    lease.map(|lease| Admission { session, channels, subprotocol, lease })
                }
                Err(why) => Err(why),
            };
            drop(answer.send(admitted));
        });
        answered.await.unwrap_or(Err(NotLetIn::Gone))
    }

    /// Asks whether a client may follow a channel. `data` is JSON that the client sends with its request.
    pub async fn subscribe(
        self: &Arc<Self>,
        session: &Arc<ClientSession>,
        channel: String,
        data: Option<String>,
    ) -> Result<(), NotLetIn> {
        let (handler, session) = (Arc::clone(self), Arc::clone(session));
        let (mut answer, answered) = oneshot::channel();
        self.tasks.spawn(async move {
            let Some(slot) = handler.slot_for(&mut answer).await else { return };
            drop(answer.send(handler.on_subscribe(slot, &session, &channel, data.as_deref()).await));
        });
        answered.await.unwrap_or(Err(NotLetIn::Gone))
    }

    /// Asks how long a client may stay with a new token, in seconds. `None`: its handler sets no time.
    pub async fn renew(
        self: &Arc<Self>,
        session: &Arc<ClientSession>,
        token: String,
    ) -> Option<Result<Option<u32>, NotLetIn>> {
        if !self.active.load().leases {
            return None;
        }
        let (handler, session) = (Arc::clone(self), Arc::clone(session));
        let renewed = self.tasks.spawn(async move { handler.on_renew(&session, Some(&token)).await });
        Some(renewed.await.unwrap_or(Err(NotLetIn::Gone)))
    }

    /// Waits for an instance. `None`: nobody waits for the answer any more.
    async fn slot_for<T>(&self, answer: &mut oneshot::Sender<T>) -> Option<Slot<ClientHandler>> {
        tokio::select! {
            biased;
            () = answer.closed() => None,
            slot = self.pool().slot() => Some(slot),
        }
    }

    async fn on_connect(
        &self,
        slot: Slot<ClientHandler>,
        id: ClientId,
        request: &ConnectRequest,
    ) -> Result<Acceptance, NotLetIn> {
        let headers: Vec<_> = request.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let request = GuestRequest {
            path: &request.path,
            query: &request.query,
            headers: &headers,
            client_ip: &request.client_ip,
            transport: match request.transport {
                Transport::WebSocket => GuestTransport::Websocket,
                Transport::Sse => GuestTransport::Sse,
                Transport::Centrifuge => GuestTransport::Centrifuge,
            },
            token: request.token.as_deref(),
            claims: None,
            data: request.data.as_deref(),
        };
        let called = call(slot, id, None, async |store, handler, client| {
            handler.own.edge_relay_tenant_client_handler().call_on_connect(store, client.id, request).await
        });
        self.answer(called.await, "connect", |refused| self.refusal(refused))
    }

    async fn on_subscribe(
        &self,
        slot: Slot<ClientHandler>,
        session: &ClientSession,
        channel: &str,
        data: Option<&str>,
    ) -> Result<(), NotLetIn> {
        let called = call(slot, session.id, session.identity.as_deref(), async |store, handler, client| {
            handler.own.edge_relay_tenant_client_handler().call_on_subscribe(store, client, channel, data).await
        });
        self.answer(called.await, "subscribe", |refused| self.refusal(refused))
    }

    async fn on_renew(&self, session: &ClientSession, token: Option<&str>) -> Result<Option<u32>, NotLetIn> {
        if !self.active.load().leases {
            return Ok(None);
        }
        let slot = self.pool().slot().await;
        let called =
            call(slot, session.id, session.identity.as_deref(), async |store, handler, client| match &handler.lease {
                Some(lease) => {
                    let lease = lease.edge_relay_tenant_client_lease();
                    lease.call_renew(store, client.id, client.identity, token).await
                }
                None => Ok(Ok(None)),
            });
        self.answer(called.await, "renew", |reason| NotLetIn::Refused(UNAUTHORIZED, reason))
    }

    fn refusal(&self, GuestRefusal { status, reason }: GuestRefusal) -> NotLetIn {
        if !REFUSALS.contains(&status) {
            let write = || tracing::warn!(field = "status", status, "a refusal's status is no error's: it becomes 403");
            self.guest().log(write);
        }
        NotLetIn::Refused(status, reason)
    }

    /// What the guest has said to a question. A no is counted by what it was about.
    fn answer<T, R>(
        &self,
        called: Result<Result<T, R>, Broken>,
        question: &'static str,
        refusal: impl FnOnce(R) -> NotLetIn,
    ) -> Result<T, NotLetIn> {
        let answer = called.map_err(NotLetIn::Broken)?;
        answer.map_err(|refused| {
            self.metrics.failed(Blame::GuestSaidNo, question);
            refusal(refused)
        })
    }

    /// Returns what is to be done, and until when.
    async fn on_message(
        &self,
        session: &ClientSession,
        meaning: Meaning<'_>,
        frame: &Frame,
    ) -> Result<(Vec<Action>, Instant), Broken> {
        let kind = match meaning {
            Meaning::Message => Kind::Message,
            Meaning::Rpc(method) => Kind::Rpc(method),
            Meaning::Publish(channel) => Kind::Publish(channel),
        };
        let slot = self.pool().slot().await;
        let deadline = slot.guest().version.limits.client_call;
        let called = call(slot, session.id, session.identity.as_deref(), async |store, handler, client| {
            let until = Instant::now() + deadline;
            let handler = handler.own.edge_relay_tenant_client_handler();
            Ok((handler.call_on_message(store, client, kind, to_guest(frame)).await?, until))
        });
        called.await
    }

    /// Has the command `id` of a client of the Centrifuge protocol handled, and the actions that follow from it carried
    /// out.
    pub async fn handle_command(
        self: &Arc<Self>,
        session: &Arc<ClientSession>,
        id: u32,
        meaning: Meaning<'_>,
        frame: &Frame,
    ) -> Result<(), Broken> {
        let (made, until) = self.on_message(session, meaning, frame).await?;
        let asked = ReplyMode::Command { id, by: meaning.into() };
        actions::carry_out(self, session, asked, made, until).await;
        Ok(())
    }

    async fn on_disconnect(&self, session: &ClientSession, reason: &str) {
        let slot = self.pool().slot().await;
        let called = call(slot, session.id, session.identity.as_deref(), async |store, handler, client| {
            handler.own.edge_relay_tenant_client_handler().call_on_disconnect(store, client, reason).await
        });
        // A failed call has been counted and logged, and nobody is left to be told.
        drop(called.await);
    }
}
