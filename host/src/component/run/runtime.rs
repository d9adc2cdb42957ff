//! The threads that guests run on, apart from every socket.

use std::{io, time::Duration};

use rustix::process::setpriority_process;
use tokio::{
    runtime::{Handle, Runtime},
    task::{JoinHandle, JoinSet},
};
use tokio_util::task::TaskTracker;

use crate::tenant::guest_threads;

/// Of guests' threads, where the relay's others have 0: a guest that is busy has a third of what they have of a core that they
/// need too, and all of one that they do not.
const NICE: i32 = 5;

/// The threads guests run on, and what runs there.
pub struct Guests {
    runtime: Runtime,
    /// Filters and jobs.
    workers: JoinSet<()>,
    /// Of client handlers and APIs.
    tasks: Tasks,
}

/// Where calls that clients ask for are run: short tasks on the guests' runtime, which ends after them.
#[derive(Clone)]
pub struct Tasks {
    runtime: Handle,
    tracker: TaskTracker,
}

impl Tasks {
    /// Of the runtime that this is called on.
    pub fn here() -> Self {
        Self { runtime: Handle::current(), tracker: TaskTracker::new() }
    }

    pub fn spawn<T: Send + 'static>(&self, task: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
        self.tracker.spawn_on(task, &self.runtime)
    }
}

impl Guests {
    /// As many threads as cores: a guest that is busy for its whole deadline leaves room for others.
    pub fn start() -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(guest_threads())
            // What comes from sockets waits for no more than the call before it.
            .global_queue_interval(1)
            .thread_name("guest")
            // Sockets and filters' upstreams come first, whatever guests do; without it there is no harm but theirs.
            .on_thread_start(|| {
                let _ = setpriority_process(None, NICE);
            })
            .enable_time()
            // For guests' requests: their sockets live where they are polled, and the I/O thread has the tenants' feeds.
            .enable_io()
            .build()?;
        let tasks = Tasks { runtime: runtime.handle().clone(), tracker: TaskTracker::new() };
        Ok(Self { runtime, workers: JoinSet::new(), tasks })
    }

    pub fn tasks(&self) -> Tasks {
        self.tasks.clone()
    }

    /// Runs the worker of a filter or of a schedule to its end; then lets go of `end`.
    pub fn start_worker(&mut self, worker: impl Future<Output = ()> + Send + 'static, end: impl Send + 'static) {
        self.forget_finished();
        let worker = async move {
            worker.await;
            drop(end);
        };
        self.workers.spawn_on(worker, self.runtime.handle());
    }

    /// Those of tenants that have gone.
    fn forget_finished(&mut self) {
        while self.workers.try_join_next().is_some() {}
    }

    /// Waits for filters and jobs, told to stop or their queues dropped, to finish what they have.
    pub async fn finish(&mut self, timeout: Duration) {
        let finished = async { while self.workers.join_next().await.is_some() {} };
        if tokio::time::timeout(timeout, finished).await.is_err() {
            tracing::warn!(guests = self.workers.len(), "guests cut off at shutdown");
        }
    }

    /// Waits for the calls that clients asked for, the last of which are for their leaving; then ends what is left.
    pub async fn shutdown(self, timeout: Duration) {
        self.tasks.tracker.close();
        if tokio::time::timeout(timeout, self.tasks.tracker.wait()).await.is_err() {
            tracing::warn!(calls = self.tasks.tracker.len(), "calls of guests cut off at shutdown");
        }
        self.runtime.shutdown_background();
    }
}
