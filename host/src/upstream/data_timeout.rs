//! Whether a message is overdue, whatever else the partner sends.

use std::{future::pending, pin::Pin, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, Sleep, sleep_until},
};

use crate::upstream::handle::Expected;

/// A timer that is later than this shows that the process was stopped.
const LATE: Duration = Duration::from_secs(1);

/// When a message is expected on one connection.
pub struct DataTimeout {
    expected: watch::Receiver<Expected>,
    /// When the last one came, or the connection was opened.
    last: Instant,
    /// It is moved only when it is over: messages come more often.
    timer: Pin<Box<Sleep>>,
}

impl DataTimeout {
    pub fn new(expected: watch::Receiver<Expected>) -> Self {
        let last = Instant::now();
        Self { expected, last, timer: Box::pin(sleep_until(last)) }
    }

    /// Notes that a message has come, or that none could.
    pub fn restart(&mut self, at: Instant) {
        self.last = at;
    }

    /// Whether one is expected at all.
    pub fn is_expected(&self) -> bool {
        self.expected.borrow().within.is_some()
    }

    /// Returns when a message may be overdue, or is expected no more. It may be cancelled without loss.
    pub async fn look(&mut self) {
        loop {
            let is_expected = self.is_expected();
            tokio::select! {
                biased;
                changed = self.expected.changed() => match changed {
                    Ok(()) if !self.is_expected() => return,
                    Ok(()) => self.timer.as_mut().reset(Instant::now()),
                    // There is always a handle as long as there is a connection.
                    Err(_) => pending().await,
                },
                () = &mut self.timer, if is_expected => match self.due() {
                    Some(due) if due > Instant::now() => self.timer.as_mut().reset(due),
                    _ => return,
                },
            }
        }
    }

    /// For how long there was no message, if one is overdue. `heard`: when anything last came. If that was before one was
    /// due, and it is long due, the process was stopped: then the partner has its whole time again.
    pub fn overdue(&mut self, heard: Instant) -> Option<Duration> {
        let (now, due) = (Instant::now(), self.due()?);
        if now > due + LATE && heard < due {
            self.last = now;
            return None;
        }
        (now >= due).then(|| now - self.last)
    }

    fn due(&self) -> Option<Instant> {
        let Expected { within, since, .. } = *self.expected.borrow();
        Some(self.last.max(since) + within?)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tokio::time::{advance, timeout};

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const AN_INSTANT: Duration = Duration::from_millis(2);

    fn expected(within: Option<Duration>) -> (watch::Sender<Expected>, DataTimeout) {
        let sender = watch::Sender::new(Expected { within, since: Instant::now(), is_asked: false });
        let timeout = DataTimeout::new(sender.subscribe());
        (sender, timeout)
    }

    #[tokio::test(start_paused = true)]
    async fn it_counts_from_the_last_message_or_from_when_it_was_asked_for() {
        let began = Instant::now();
        let (sender, mut data) = expected(Some(10 * SECOND));
        timeout(9 * SECOND, data.look()).await.unwrap_err();
        data.restart(Instant::now());
        timeout(10 * SECOND - AN_INSTANT, data.look()).await.unwrap_err();
        timeout(2 * AN_INSTANT, data.look()).await.unwrap();
        assert!(data.overdue(began).unwrap() >= 10 * SECOND);
        // No message came since, but from now on there are three seconds.
        sender.send_replace(Expected { within: Some(3 * SECOND), since: Instant::now(), is_asked: true });
        timeout(3 * SECOND - AN_INSTANT, data.look()).await.unwrap_err();
        assert_eq!(data.overdue(began), None);
        timeout(2 * AN_INSTANT, data.look()).await.unwrap();
        assert!(data.overdue(began).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn none_is_expected_until_one_is() {
        let began = Instant::now();
        let (sender, mut data) = expected(None);
        timeout(1000 * SECOND, data.look()).await.unwrap_err();
        sender.send_replace(Expected { within: Some(SECOND), since: Instant::now(), is_asked: true });
        timeout(SECOND + AN_INSTANT, data.look()).await.unwrap();
        assert!(data.overdue(began).is_some());
        sender.send_replace(Expected { within: None, since: Instant::now(), is_asked: true });
        timeout(AN_INSTANT, data.look()).await.unwrap();
        assert_eq!((data.overdue(began), data.is_expected()), (None, false));
        timeout(1000 * SECOND, data.look()).await.unwrap_err();
    }

    #[tokio::test(start_paused = true)]
    async fn a_process_that_was_stopped_starts_again() {
        let began = Instant::now();
        let (_sender, mut data) = expected(Some(SECOND));
        advance(30 * SECOND).await;
        data.look().await;
        assert_eq!(data.overdue(began), None);
        timeout(SECOND - AN_INSTANT, data.look()).await.unwrap_err();
        data.look().await;
        assert!(data.overdue(began).is_some());
        // One that is busy with other things was not.
        advance(30 * SECOND).await;
        assert!(data.overdue(Instant::now()).is_some());
    }
}
