//! API components: `wasi:http/incoming-handler@0.2`, one call of an instance per request.
//!
//! In comes a request whose body is still arriving, out goes the guest's answer, whose body may still be made. Limits
//! say how many requests may wait for an instance, and for how long. The call has a deadline from its beginning to the
//! end of the answer's body. A call that fails before it has answered becomes an error. One that fails after that cuts
//! the answer off.

use std::{
    future::poll_fn,
    sync::{
        Arc, MutexGuard, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    task::Poll,
};

use arc_swap::ArcSwap;
use hyper::{Request, Response};
use tokio::{sync::oneshot, time::timeout};
use wasmtime::{
    Result, Store,
    component::{Instance, InstancePre},
};
use wasmtime_wasi_http::{
    WasiHttpView,
    p2::{
        bindings::{
            Proxy, ProxyPre,
            http::types::{ErrorCode, Scheme},
        },
        body::HyperOutgoingBody,
    },
};

use crate::{
    component::{
        Guest, RoleKind, Tasks,
        roles::api::body::{Download, Making, Upload},
        run::{
            call::Broken,
            host::Host,
            instance::{Role, RoleCode},
            pool::Pool,
        },
    },
    metrics::{Blame, GuestMetrics},
    sync::Mutex,
    usage::{Direction, Metered},
};

pub mod body;

impl Role for Proxy {
    const KIND: RoleKind = RoleKind::Api;

    fn find(store: &mut Store<Host>, instance: &Instance) -> Result<Self> {
        Self::new(store, instance)
    }

    fn check(pre: &InstancePre<Host>) -> Result<()> {
        ProxyPre::new(pre.clone()).map(drop)
    }
}

pub type ApiCode = RoleCode<Proxy>;

/// A tenant's API.
pub struct Api {
    metrics: Arc<GuestMetrics>,
    /// The instances that the next request gets one of.
    pool: ArcSwap<Pool<Proxy>>,
    /// Counts the requests that wait for an instance.
    waiting: AtomicUsize,
    tasks: Tasks,
}

/// Why a request has no answer from the guest.
#[derive(Debug, thiserror::Error)]
pub enum NoAnswer {
    #[error("too many requests wait for the tenant's API")]
    Busy,
    #[error("the tenant's memory is full")]
    Full,
    #[error("the relay has no memory for the request")]
    HostFull,
    #[error("the request's body is larger than the tenant's API takes")]
    TooLarge,
    /// The guest gave an error instead of an answer.
    #[error("the tenant's API failed")]
    Refused,
    #[error("the tenant's API broke")]
    Broke,
    #[error("the tenant's API did not answer in time")]
    Late,
    #[error("the relay is shutting down")]
    Gone,
}

impl Api {
    /// Each instance serves up to `reuse` calls.
    pub fn new(code: Arc<ApiCode>, guest: Guest, reuse: u32, tasks: Tasks) -> Arc<Self> {
        let metrics = Arc::clone(&guest.metrics);
        let pool = ArcSwap::new(pool(code, guest, reuse));
        Arc::new(Self { metrics, pool, waiting: AtomicUsize::new(0), tasks })
    }

    /// Has the next request answered by this code. Requests that are under way, or wait for an instance, are answered
    /// by the code before.
    pub fn swap(&self, code: Arc<ApiCode>, guest: Guest, reuse: u32) {
        let resting = self.pool.swap(pool(code, guest, reuse)).retire();
        self.tasks.spawn(async move { drop(resting) });
    }

    /// Drops instances that have been idle for a while. Returns how many.
    pub fn rest(&self) -> usize {
        let resting = self.pool.load().rest();
        let count = resting.len();
        if count > 0 {
            self.tasks.spawn(async move { drop(resting) });
        }
        count
    }

    /// Returns the largest body of a request, in bytes.
    pub fn max_body(&self) -> usize {
        self.pool.load().guest.version.limits.api_body
    }

    /// Counts a request that a limit refuses.
    pub fn limited(&self, limit: &'static str) {
        self.pool.load().guest.tenant.metrics.limited(limit, 1);
    }

    /// Has the guest answer a request. The call goes on even if nobody waits for the answer any more.
    pub async fn call(self: &Arc<Self>, request: Request<Upload>) -> Result<Response<Metered<Download>>, NoAnswer> {
        let (answer, answered) = oneshot::channel();
        let answer = ResponseSlot { waited_for: Arc::new(Mutex::new(Some(answer))), upload: request.body().clone() };
        let api = Arc::clone(self);
        let usage = Arc::clone(&self.pool.load().guest.tenant.usage);
        self.tasks.spawn(async move {
            let upload = request.body().clone();
            api.serve(request, answer).await;
            // The connection needs the body's end, even if the guest has not read it.
            upload.drain().await;
        });
        let answer = answered.await.unwrap_or(Err(NoAnswer::Gone))?;
        Ok(answer.map(|body| Metered::new(body, &usage, Direction::Out)))
    }

    async fn serve(&self, request: Request<Upload>, answer: ResponseSlot) {
        let metrics = &self.metrics;
        let pool = self.pool.load_full();
        let deadline = pool.guest.version.limits.api_call;
        let usage = Arc::clone(&pool.guest.tenant.usage);
        let slot = {
            let Some(_waiting) = self.wait(pool.guest.version.limits.api_queue) else {
                return self.busy(&answer, "api-queue");
            };
            tokio::select! {
                slot = timeout(deadline, Arc::clone(&pool).slot()) => match slot {
                    Ok(slot) => slot,
                    Err(_) => return self.busy(&answer, "api-instances"),
                },
                () = answer.unwanted() => return,
            }
        };
        if answer.is_unwanted() {
            return;
        }
        let called = slot.call(deadline, async |store, proxy| {
            let ending = Ending::default();
            let (to_guest, making, metrics) = (answer.clone(), Arc::clone(&ending.0), Arc::clone(metrics));
            let http = store.data_mut();
            let request = request.map(|body| Metered::new(body, &usage, Direction::In));
            let request = http.http().new_incoming_request(Scheme::Http, request)?;
            let give = move |made| to_guest.give(made, &making, &metrics);
            let out = http.http().new_response_outparam_from_callback(give)?;
            proxy.wasi_http_incoming_handler().call_handle(store, request, out).await?;
            Ok(ending.end())
        });
        let failure = match called.await {
            Ok(whole) if answer.is_given() => {
                if !whole {
                    metrics.failed(Blame::GuestBroke, "half_answer");
                    pool.guest.log(|| tracing::warn!("an API returned before the end of its answer's body"));
                    metrics.lost.inc();
                }
                return;
            }
            Ok(_) => {
                metrics.failed(Blame::GuestBroke, "no_answer");
                pool.guest.log(|| tracing::warn!("an API returned without an answer"));
                NoAnswer::Broke
            }
            Err(Broken::Deadline(..)) => NoAnswer::Late,
            Err(Broken::Memory | Broken::Mappings) => NoAnswer::Full,
            Err(Broken::HostMemory) => NoAnswer::HostFull,
            Err(_) => NoAnswer::Broke,
        };
        metrics.lost.inc();
        answer.fail(failure);
    }

    /// Counts a request as waiting. `None`: too many wait already.
    fn wait(&self, most: usize) -> Option<WaitingRequest<'_>> {
        let waiting = WaitingRequest(self);
        self.metrics.queue.inc();
        (self.waiting.fetch_add(1, Ordering::Relaxed) < most).then_some(waiting)
    }

    fn busy(&self, answer: &ResponseSlot, limit: &'static str) {
        self.metrics.failed(Blame::HostFailed, "busy");
        self.limited(limit);
        self.metrics.lost.inc();
        answer.fail(NoAnswer::Busy);
    }
}

fn pool(code: Arc<ApiCode>, guest: Guest, reuse: u32) -> Arc<Pool<Proxy>> {
    let instances = guest.version.limits.api_instances;
    Pool::new(code, guest, instances, reuse)
}

/// Counts a request as waiting for an instance until it is dropped.
struct WaitingRequest<'a>(&'a Api);

impl Drop for WaitingRequest<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
        self.0.metrics.queue.dec();
    }
}

/// Ends the answer's body when the call ends, however that happens, and before the guest's store is dropped.
#[derive(Default)]
struct Ending(Arc<OnceLock<Making>>);

impl Ending {
    /// Ends the body. Returns whether it is whole; without a body it is.
    fn end(&self) -> bool {
        self.0.get().is_none_or(Making::end)
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        self.end();
    }
}

type Answered = Result<Response<Download>, NoAnswer>;

/// The place for the one answer to a request.
#[derive(Clone)]
struct ResponseSlot {
    waited_for: Arc<Mutex<Option<oneshot::Sender<Answered>>>>,
    upload: Upload,
}

impl ResponseSlot {
    /// Gives the guest's answer. If the request's body was too large, the host answers instead.
    fn give(
        &self,
        made: Result<Response<HyperOutgoingBody>, ErrorCode>,
        making: &OnceLock<Making>,
        metrics: &GuestMetrics,
    ) {
        let made = match made {
            _ if self.upload.is_too_large() => Err(NoAnswer::TooLarge),
            Ok(response) => Ok(response.map(|body| {
                let (download, made) = Download::made(body);
                // A guest can give one answer only.
                let _ = making.set(made);
                download
            })),
            Err(_) => {
                metrics.failed(Blame::GuestSaidNo, "error");
                Err(NoAnswer::Refused)
            }
        };
        self.send(made);
    }

    fn fail(&self, why: NoAnswer) {
        self.send(Err(if self.upload.is_too_large() { NoAnswer::TooLarge } else { why }));
    }

    fn send(&self, answer: Answered) {
        if let Some(sender) = self.waited_for().take() {
            // A client that is gone gets no answer.
            drop(sender.send(answer));
        }
    }

    fn is_given(&self) -> bool {
        self.waited_for().is_none()
    }

    fn is_unwanted(&self) -> bool {
        self.waited_for().as_ref().is_none_or(oneshot::Sender::is_closed)
    }

    /// Returns when nobody waits for the answer any more.
    async fn unwanted(&self) {
        poll_fn(|context| match self.waited_for().as_mut() {
            Some(sender) => sender.poll_closed(context),
            None => Poll::Ready(()),
        })
        .await;
    }

    fn waited_for(&self) -> MutexGuard<'_, Option<oneshot::Sender<Answered>>> {
        self.waited_for.lock()
    }
}
