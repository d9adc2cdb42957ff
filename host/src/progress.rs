//! Shows how far work has come that takes long, by a bar on a terminal.
//!
//! A file or a pipe gets no bar. There the log's lines say what is done. On a terminal these lines go above the bar.

use std::{
    convert::Infallible,
    io,
    io::{IsTerminal, StderrLock, Write},
    panic::resume_unwind,
    sync::{
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc::{RecvTimeoutError, channel},
    },
    thread,
    time::{Duration, Instant},
};

/// Time between two looks at the work. What ends sooner shows no bar.
const TICK: Duration = Duration::from_millis(250);
/// Characters between the ends of the bar. With its words it fits into 80.
const WIDTH: usize = 24;
/// Erases the terminal's line, and takes the cursor to its start.
const ERASE: &[u8] = b"\r\x1b[K";

/// Whether the bar is the terminal's last line. It changes only under the lock of standard error.
static IS_DRAWN: AtomicBool = AtomicBool::new(false);

/// Counts the steps of some work that are done.
#[derive(Default)]
pub struct Progress(AtomicUsize);

impl Progress {
    pub fn step(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// Does work that has this many steps, behind a bar if standard error is a terminal.
pub fn with_bar<T: Send>(what: &str, steps: usize, work: impl FnOnce(&Progress) -> T + Send) -> T {
    let progress = Progress::default();
    if !io::stderr().is_terminal() {
        return work(&progress);
    }
    let (working, ends) = channel::<Infallible>();
    let started = Instant::now();
    thread::scope(|scope| {
        let worker = scope.spawn(|| {
            // Dropped when the work ends, however it ends.
            let _working = working;
            work(&progress)
        });
        while let Err(RecvTimeoutError::Timeout) = ends.recv_timeout(TICK) {
            draw(&bar(what, progress.0.load(Ordering::Relaxed), steps, started.elapsed()));
        }
        drop(line());
        match worker.join() {
            Ok(result) => result,
            Err(panic) => resume_unwind(panic),
        }
    })
}

/// Standard error, for whole lines. The first takes the place of the bar, which is drawn again below it.
pub fn line() -> StderrLock<'static> {
    let mut stderr = io::stderr().lock();
    if IS_DRAWN.swap(false, Ordering::Relaxed) {
        // If this fails, nobody can be told.
        let _ = stderr.write_all(ERASE);
    }
    stderr
}

fn draw(bar: &str) {
    let mut stderr = line();
    let _ = stderr.write_all(bar.as_bytes());
    IS_DRAWN.store(true, Ordering::Relaxed);
}

fn bar(what: &str, done: usize, steps: usize, elapsed: Duration) -> String {
    let done = done.min(steps);
    let filled = WIDTH * done / steps.max(1);
    let (filled, rest) = ("#".repeat(filled), "-".repeat(WIDTH - filled));
    format!("{what} [{filled}{rest}] {done} of {steps}, {} s", elapsed.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_says_how_much_is_done() {
        let shown = |done, steps| bar("loading", done, steps, Duration::from_millis(12_900));
        assert_eq!(shown(0, 4), "loading [------------------------] 0 of 4, 12 s");
        assert_eq!(shown(1, 4), "loading [######------------------] 1 of 4, 12 s");
        assert_eq!(shown(4, 4), "loading [########################] 4 of 4, 12 s");
        assert_eq!(shown(1, 0), "loading [------------------------] 0 of 0, 12 s");
    }

    #[test]
    fn work_behind_a_bar_gives_its_result() {
        let counted = with_bar("counting", 3, |progress| {
            (0..3).for_each(|_| progress.step());
            progress.0.load(Ordering::Relaxed)
        });
        assert_eq!(counted, 3);
    }
}
