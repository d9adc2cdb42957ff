//! The thread that upstreams are read on, apart from accepting, handshakes, the API and admin.

use std::{io, thread, thread::JoinHandle};

use tokio::runtime::{Builder, Handle};

use crate::shutdown::{Trigger, stop};

/// A thread with a runtime of its own. It ends when this is dropped.
pub struct UpstreamThread {
    runtime: Handle,
    end: Option<Trigger>,
    thread: Option<JoinHandle<()>>,
}

impl UpstreamThread {
    pub fn start() -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (end, mut stop) = stop();
        let run = move || {
            runtime.block_on(stop.wait());
            // A look-up may still be under way.
            runtime.shutdown_background();
        };
        let thread = thread::Builder::new().name("upstreams".into()).spawn(run)?;
        Ok(Self { runtime: handle, end: Some(end), thread: Some(thread) })
    }

    /// Where upstreams are to be spawned.
    pub fn runtime(&self) -> &Handle {
        &self.runtime
    }
}

impl Drop for UpstreamThread {
    fn drop(&mut self) {
        self.end = None;
        if let Some(thread) = self.thread.take() {
            // An error means a panic, which the log has.
            let _ = thread.join();
        }
    }
}
