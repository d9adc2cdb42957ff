//! The threads that guests run on, apart from every socket.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    task::{Context, Waker},
    time::Duration,
};

use rustix::process::setpriority_process;
use tokio::{
    runtime::{Handle, Runtime},
    task::{JoinHandle, JoinSet},
};
use tokio_util::task::TaskTracker;

use crate::tenant::guest_threads;

/// The niceness of the guests' threads; the relay's other threads have 0. On a core that both need, a busy guest gets a
/// third of what the others get; on a free core it gets everything.
const NICE: i32 = 5;

/// The threads guests run on, and what runs there.
pub struct Guests {
    runtime: Runtime,
    /// The workers of filters and jobs.
    workers: JoinSet<()>,
    /// The calls of client handlers and APIs.
    tasks: Tasks,
}

/// Spawns what clients ask for: short tasks. The guests' runtime waits for its own when it ends.
#[derive(Clone)]
pub struct Tasks {
    runtime: Handle,
    tracker: TaskTracker,
}

impl Tasks {
    /// Spawns on this runtime.
    pub fn on(runtime: &Handle) -> Self {
        Self { runtime: runtime.clone(), tracker: TaskTracker::new() }
    }

    pub fn spawn<T: Send + 'static>(&self, task: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
        self.tracker.spawn_on(task, &self.runtime)
    }

    /// Does a task here, as far as it has nothing to wait for, and spawns the rest of it.
    pub fn begin(&self, task: impl Future<Output = ()> + Send + 'static) {
        let _entered = self.runtime.enter();
        let mut task = Box::pin(task);
        let mut poll = || task.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        // A panic ends the task alone, as it does on the runtime, and is printed.
        if catch_unwind(AssertUnwindSafe(&mut poll)).is_ok_and(|polled| polled.is_pending()) {
            self.spawn(task);
        }
    }
}

impl Guests {
    /// Starts as many threads as there are cores, so that a guest that is busy for its whole deadline leaves room for
    /// others.
    pub fn start() -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(guest_threads())
            // So that what comes from sockets waits for one call at most.
            .global_queue_interval(1)
            .thread_name("guest")
            // So that sockets and upstreams come before guests. It may fail: then they share the cores as equals.
            .on_thread_start(|| {
                let _ = setpriority_process(None, NICE);
            })
            .enable_time()
            // For guests' requests. Their sockets live where they are polled, and the other threads are busy.
            .enable_io()
            .build()?;
        let tasks = Tasks { runtime: runtime.handle().clone(), tracker: TaskTracker::new() };
        Ok(Self { runtime, workers: JoinSet::new(), tasks })
    }

    pub fn tasks(&self) -> Tasks {
        self.tasks.clone()
    }

    /// Runs the worker of a filter or of a schedule to its end. Then drops `end`.
    pub fn start_worker(&mut self, worker: impl Future<Output = ()> + Send + 'static, end: impl Send + 'static) {
        self.forget_finished();
        let worker = async move {
            worker.await;
            drop(end);
        };
        self.workers.spawn_on(worker, self.runtime.handle());
    }

    /// Forgets the workers of tenants that have gone.
    fn forget_finished(&mut self) {
        while self.workers.try_join_next().is_some() {}
    }

    /// Waits for filters and jobs to finish what they have. They have been told to stop, or their queues have been
    /// dropped.
    pub async fn finish(&mut self, timeout: Duration) {
        let finished = async { while self.workers.join_next().await.is_some() {} };
        if tokio::time::timeout(timeout, finished).await.is_err() {
            tracing::warn!(guests = self.workers.len(), "guests cut off at shutdown");
        }
    }

    /// Waits for the calls that clients asked for; the last of them are about their leaving. Then ends what is left.
    pub async fn shutdown(self, timeout: Duration) {
        self.tasks.tracker.close();
        if tokio::time::timeout(timeout, self.tasks.tracker.wait()).await.is_err() {
            tracing::warn!(calls = self.tasks.tracker.len(), "calls of guests cut off at shutdown");
        }
        self.runtime.shutdown_background();
    }
}
