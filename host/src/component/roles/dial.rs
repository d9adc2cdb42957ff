//! Dial components: they make what a partner wants to see anew at each connection.
//!
//! In comes an attempt to connect, out go path, query and headers, or why there are none. The calls have instances of
//! their own, up to a limit. An attempt waits for one as long as a call may take, and then for the call.

use std::{future::pending, pin::Pin, sync::Arc};

use arc_swap::ArcSwap;
use config::HeaderNames;
use hyper::header::{HeaderName, HeaderValue};
use tokio::{sync::watch, time::timeout};
use tokio_util::task::AbortOnDropHandle;
use wasmtime::{
    Result, Store,
    component::{Instance, InstancePre},
};

use crate::{
    component::{
        Guest, RoleKind, Tasks,
        bindings::dial::{
            DialComponent, DialComponentPre,
            exports::edge_relay::tenant::dialer::{Attempt as GuestAttempt, Credentials as GuestCredentials},
        },
        run::{
            host::Host,
            instance::{Role, RoleCode},
            output::line,
            pool::Pool,
        },
    },
    metrics::Blame,
    upstream::{Credentials, DialAttempt, MadeCredentials},
};

/// Most instances, for upstreams that connect at the same time.
const INSTANCES: usize = 4;
/// The calls that an instance serves before a fresh one takes its place.
const REUSE: u32 = 1000;

impl Role for DialComponent {
    const KIND: RoleKind = RoleKind::Dial;

    fn find(store: &mut Store<Host>, instance: &Instance) -> Result<Self> {
        Self::new(store, instance)
    }

    fn check(pre: &InstancePre<Host>) -> Result<()> {
        DialComponentPre::new(pre.clone()).map(drop)
    }
}

pub type DialCode = RoleCode<DialComponent>;

/// A tenant's dial component.
pub struct Dial {
    /// The instances that the next call gets one of.
    pool: ArcSwap<Pool<DialComponent>>,
    /// Counts the swaps.
    version: watch::Sender<u64>,
    tasks: Tasks,
}

impl Dial {
    pub fn new(code: Arc<DialCode>, guest: Guest, tasks: Tasks) -> Arc<Self> {
        let pool = ArcSwap::new(Pool::new(code, guest, INSTANCES, REUSE));
        Arc::new(Self { pool, version: watch::Sender::new(0), tasks })
    }

    /// Has the next call run this code.
    pub fn swap(&self, code: Arc<DialCode>, guest: Guest) {
        let resting = self.pool.swap(Pool::new(code, guest, INSTANCES, REUSE)).retire();
        self.version.send_modify(|version| *version += 1);
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
}

impl Credentials for Dial {
    fn make(
        &self,
        attempt: DialAttempt,
    ) -> Pin<Box<dyn Future<Output = std::result::Result<MadeCredentials, String>> + Send>> {
        // An attempt that is given up has no use for a token.
        let made = AbortOnDropHandle::new(self.tasks.spawn(call(self.pool.load_full(), attempt)));
        // The task ends early only when the relay does.
        Box::pin(async move { made.await.unwrap_or_else(|error| Err(error.to_string())) })
    }

    fn version(&self) -> u64 {
        *self.version.borrow()
    }

    fn changed(&self, version: u64) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let mut versions = self.version.subscribe();
        Box::pin(async move {
            // There is no other version any more if the tenant has gone.
            if versions.wait_for(|now| *now != version).await.is_err() {
                pending().await
            }
        })
    }
}

async fn call(pool: Arc<Pool<DialComponent>>, attempt: DialAttempt) -> std::result::Result<MadeCredentials, String> {
    let deadline = pool.guest.version.limits.dial_call;
    let metrics = Arc::clone(&pool.guest.metrics);
    let slot = timeout(deadline, pool.slot()).await.map_err(|_| {
        metrics.failed(Blame::HostFailed, "busy");
        format!("no instance is free within {} ms", deadline.as_millis())
    })?;
    let asked = GuestAttempt {
        upstream: &attempt.upstream,
        number: attempt.number,
        url: &attempt.url,
        last_status: attempt.last_status,
    };
    let called = slot
        .call(deadline, async |store, component| component.edge_relay_tenant_dialer().call_dial(store, asked).await);
    match called.await {
        Ok(Ok(made)) => checked(made).inspect_err(|_| metrics.failed(Blame::GuestBroke, "invalid")),
        Ok(Err(why)) => {
            metrics.failed(Blame::GuestSaidNo, "error");
            Err(format!("says no: {}", line(&why)))
        }
        // The log has said the rest.
        Err(broken) => Err(broken.cause()),
    }
}

/// Checks the headers as a manifest's are checked. The URL is checked where it is put together.
fn checked(made: GuestCredentials) -> std::result::Result<MadeCredentials, String> {
    let mut names = HeaderNames::default();
    let mut headers: Vec<(HeaderName, HeaderValue)> = Vec::new();
    for (name, value) in made.headers {
        let shown = || format!("returns the header {:.64?}, which", name);
        let known = names.add(&name).map_err(|why| format!("{} {why}", shown()))?;
        let mut value = config::header_value(&value).map_err(|why| format!("{} has a value that {why}", shown()))?;
        value.set_sensitive(true);
        headers.push((known, value));
    }
    Ok(MadeCredentials { path: made.path, query: made.query, headers })
}
