//! Guests: tenants' components, run where they can harm nobody.
//!
//! In come bytes of WebAssembly, checked and compiled once ([`Engine`]); out of a compiled component come instances, each
//! with its own memory and limits. Guests run on a runtime of their own ([`Guests`]), apart from every socket. A call has
//! a deadline; a call that traps or misses it costs that call and its instance, nothing else.

use std::{io, sync::Arc, time::Duration};

use tokio::{runtime::Runtime, task::JoinSet};

use crate::{metrics::UpstreamMetrics, shutdown::Stop};

mod bindings;
pub mod build;
mod call;
mod channels;
pub mod check;
mod engine;
mod filter;
mod host;
mod job;
mod keyvalue;
mod output;
mod ticker;
pub mod toolchain;
mod upstreams;
mod warm;

pub use call::Broken;
pub use engine::{Engine, LoadError};
pub use filter::{FilterCode, FilterQueue};
pub use host::Guest;
pub use job::{Job, JobCode};
pub use warm::{Code, Role};

/// The threads guests run on, and what runs there.
pub struct Guests {
    runtime: Runtime,
    workers: JoinSet<()>,
}

impl Guests {
    /// As many threads as cores: a guest that is busy for its whole deadline leaves room for others.
    pub fn start() -> io::Result<Self> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(threads)
            .thread_name("guest")
            .enable_time()
            .build()?;
        Ok(Self { runtime, workers: JoinSet::new() })
    }

    /// Starts a filter for one upstream.
    pub fn filter(&mut self, code: Arc<FilterCode>, guest: Guest, metrics: Arc<UpstreamMetrics>) -> FilterQueue {
        let (queue, worker) = filter::worker(code, guest, metrics);
        self.workers.spawn_on(worker, self.runtime.handle());
        queue
    }

    /// Starts a schedule of a job.
    pub fn job(&mut self, job: Job, stop: Stop) {
        self.workers.spawn_on(job.run(stop), self.runtime.handle());
    }

    /// Waits for the workers, told to stop or their queues dropped, to finish what they have; then ends what is left.
    pub async fn shutdown(mut self, timeout: Duration) {
        let finished = async { while self.workers.join_next().await.is_some() {} };
        if tokio::time::timeout(timeout, finished).await.is_err() {
            tracing::warn!(guests = self.workers.len(), "guests cut off at shutdown");
        }
        self.runtime.shutdown_background();
    }
}
