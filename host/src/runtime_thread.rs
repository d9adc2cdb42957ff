//! Threads that run one kind of work each, so that none holds up another.

use std::{io, thread, thread::JoinHandle};

use tokio::runtime::{Builder, Handle};

use crate::shutdown::{Trigger, stop};

/// A thread with a runtime of its own. It ends when this is dropped.
pub struct RuntimeThread {
    runtime: Handle,
    end: Option<Trigger>,
    thread: Option<JoinHandle<()>>,
}

impl RuntimeThread {
    pub fn start(name: &str) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (end, mut stop) = stop();
        let run = move || {
            runtime.block_on(stop.wait());
            // A look-up may still be under way.
            runtime.shutdown_background();
        };
        let thread = thread::Builder::new().name(name.into()).spawn(run)?;
        Ok(Self { runtime: handle, end: Some(end), thread: Some(thread) })
    }

    /// Where its work is to be spawned.
    pub fn runtime(&self) -> &Handle {
        &self.runtime
    }
}

impl Drop for RuntimeThread {
    fn drop(&mut self) {
        self.end = None;
        if let Some(thread) = self.thread.take() {
            // An error means a panic, which the log has.
            let _ = thread.join();
        }
    }
}
