//! The clock that makes busy guests yield.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    thread,
    thread::JoinHandle,
    time::Duration,
};

/// How long a guest runs before it yields to others on its thread.
const TICK: Duration = Duration::from_millis(1);
/// Ticks without a call after which the clock rests: an idle relay is not woken a thousand times a second.
const REST_AFTER: u32 = 100;

/// A thread that advances the engine's epoch while calls are under way.
pub struct Ticker {
    state: Arc<TickerState>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct TickerState {
    calls: AtomicUsize,
    resting: AtomicBool,
    stop: AtomicBool,
}

impl Ticker {
    pub fn start(engine: wasmtime::Engine) -> io::Result<Self> {
        let state = Arc::new(TickerState::default());
        let shared = Arc::clone(&state);
        let thread = thread::Builder::new().name("epoch".into()).spawn(move || shared.run(&engine))?;
        Ok(Self { state, thread: Some(thread) })
    }

    /// Advances the epoch at least until the guard is dropped.
    pub fn calling(&self) -> Calling<'_> {
        self.state.calls.fetch_add(1, SeqCst);
        if self.state.resting.load(SeqCst)
            && let Some(thread) = &self.thread
        {
            thread.thread().unpark();
        }
        Calling(&self.state)
    }
}

/// A call under way.
pub struct Calling<'a>(&'a TickerState);

impl Drop for Calling<'_> {
    fn drop(&mut self) {
        self.0.calls.fetch_sub(1, SeqCst);
    }
}

impl TickerState {
    fn run(&self, engine: &wasmtime::Engine) {
        let mut idle = 0;
        while !self.stop.load(SeqCst) {
            if self.calls.load(SeqCst) > 0 {
                idle = 0;
            } else if idle < REST_AFTER {
                idle += 1;
            } else {
                self.resting.store(true, SeqCst);
                // A call that began before `resting` was set has not seen it, so look again.
                if self.calls.load(SeqCst) == 0 && !self.stop.load(SeqCst) {
                    thread::park();
                }
                self.resting.store(false, SeqCst);
                idle = 0;
            }
            thread::sleep(TICK);
            engine.increment_epoch();
        }
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.state.stop.store(true, SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // The thread returns nothing, and a panic in it has been printed.
            let _ = thread.join();
        }
    }
}
