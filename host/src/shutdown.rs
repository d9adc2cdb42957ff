//! Stopping: the first signal asks, the second one forces.

use std::io;

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

/// Tells tasks to stop once its [`Trigger`] is pulled or dropped.
#[derive(Clone)]
pub struct Stop(watch::Receiver<bool>);

/// Stops all tasks that have its [`Stop`].
pub struct Trigger(watch::Sender<bool>);

pub fn stop() -> (Trigger, Stop) {
    let (sender, receiver) = watch::channel(false);
    (Trigger(sender), Stop(receiver))
}

impl Trigger {
    pub fn pull(&self) {
        self.0.send_replace(true);
    }
}

impl Stop {
    pub fn is_set(&self) -> bool {
        *self.0.borrow() || self.0.has_changed().is_err()
    }

    /// Returns when it is time to stop.
    pub async fn wait(&mut self) {
        // An error means the trigger is gone: that too is time to stop.
        let _ = self.0.wait_for(|stop| *stop).await;
    }
}

/// Pulls the trigger at the first SIGTERM or SIGINT; the next one ends the process at once, whatever it is doing, with
/// the shell's code for a death by that signal.
pub fn on_signals(trigger: Trigger) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let guard = runtime.enter();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    drop(guard);
    // A thread of its own: at shutdown the others wait for clients and guests.
    let waiting = move || {
        let mut next = || {
            runtime.block_on(async {
                tokio::select! {
                    _ = terminate.recv() => 128 + 15,
                    _ = interrupt.recv() => 128 + 2,
                }
            })
        };
        next();
        tracing::info!("stopping; a second signal ends the process at once");
        trigger.pull();
        std::process::exit(next())
    };
    std::thread::Builder::new().name("signals".into()).spawn(waiting)?;
    Ok(())
}
