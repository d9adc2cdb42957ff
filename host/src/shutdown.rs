//! Stopping: the first signal asks, a later one forces.

use std::{
    io,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

/// The shell's codes for a death by SIGTERM and by SIGINT.
const TERMINATED: i32 = 128 + 15;
const INTERRUPTED: i32 = 128 + 2;

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

/// What signals do: see [`on_signals`].
pub struct Signals(Arc<OnceLock<Duration>>);

impl Signals {
    /// From now on the first signal asks, and no longer ends the process at once. `notice`: how long SIGTERM leaves to
    /// those who are to notice first.
    pub fn serve(&self, notice: Duration) {
        // It is called once.
        let _ = self.0.set(notice);
    }
}

/// Watches SIGTERM and SIGINT. Until [`Signals::serve`] there is nothing to be told, and either ends the process.
///
/// Then SIGTERM pulls `leave` and, after the notice, `stop`. A signal meanwhile ends the notice, and SIGINT has none.
/// Once `stop` is pulled, the next one ends the process at once, whatever it is doing, with the shell's code for a
/// death by that signal.
pub fn on_signals(leave: Trigger, stop: Trigger) -> io::Result<Signals> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let guard = runtime.enter();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    drop(guard);
    let serving = Arc::new(OnceLock::new());
    let notice: Arc<OnceLock<Duration>> = Arc::clone(&serving);
    // A thread of its own: at shutdown the others wait for clients and guests.
    let waiting = async move {
        let mut next = async || {
            tokio::select! {
                _ = terminate.recv() => TERMINATED,
                _ = interrupt.recv() => INTERRUPTED,
            }
        };
        let first = next().await;
        let Some(notice) = notice.get() else { std::process::exit(0) };
        leave.pull();
        if first == TERMINATED && !notice.is_zero() {
            tracing::info!(notice_s = notice.as_secs_f64(), "not ready any more; stopping after the notice");
            tokio::select! {
                () = tokio::time::sleep(*notice) => {}
                _ = next() => {}
            }
        }
        tracing::info!("stopping; another signal ends the process at once");
        stop.pull();
        std::process::exit(next().await)
    };
    std::thread::Builder::new().name("signals".into()).spawn(move || runtime.block_on(waiting))?;
    Ok(Signals(serving))
}

/// Watches them for a command that has nobody to give notice to.
pub fn without_notice(stop: Trigger) -> io::Result<()> {
    let (leave, _) = self::stop();
    on_signals(leave, stop)?.serve(Duration::ZERO);
    Ok(())
}

/// The time in which a host ends, which all that it has to end share.
#[derive(Clone, Copy)]
pub struct Ending {
    began: Instant,
    timeout: Duration,
}

impl Ending {
    /// The parts of the time after which requests to the API, then upstreams and filters, then clients are cut off.
    pub const API: f64 = 0.3;
    pub const TENANTS: f64 = 0.5;
    pub const CLIENTS: f64 = 0.8;

    pub fn begin(timeout: Duration) -> Self {
        Self { began: Instant::now(), timeout }
    }

    /// When a part of the time is over.
    pub fn at(&self, part: f64) -> Instant {
        self.began + self.timeout.mul_f64(part)
    }

    /// How much is left of a part of the time.
    pub fn left(&self, part: f64) -> Duration {
        self.at(part).saturating_duration_since(Instant::now())
    }
}
