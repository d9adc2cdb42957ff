//! The pause after an attempt to connect that failed, and after a lost connection.
//!
//! Pauses double up to half a minute. A partner that says how long it wants to be left alone is left alone for at least
//! that long. One that refuses for a reason that time alone does not mend is asked less and less, until the
//! credentials change.

use std::time::Duration;

use crate::{
    backoff::{Backoff, Pauses},
    upstream::failure::ConnectError,
};

/// Pauses between connections. With jitter, relays that lost a partner together do not come back together.
pub const PAUSES: Pauses =
    Pauses { free: 0, first: Duration::from_millis(500), longest: Duration::from_secs(30), jitter: true };
/// The pause that they grow to while the partner refuses for a reason that time alone does not mend.
const LONGEST_AFTER_REFUSAL: Duration = Duration::from_secs(300);
/// The least part of such a pause that is waited.
const LEAST_AFTER_REFUSAL: f64 = 0.5;
/// The most that is added to what a partner asks for, so that those whom it refused together come back one by one.
const SPREAD: Duration = Duration::from_secs(1);

/// How long to wait.
#[derive(Debug)]
pub struct Pause {
    pub time: Duration,
    /// Whether other credentials end it.
    pub ends_with_credentials: bool,
}

impl Pause {
    /// After a lost connection.
    pub fn after_loss(backoff: &mut Backoff) -> Self {
        Self { time: backoff.fail(), ends_with_credentials: false }
    }

    /// After an attempt that failed.
    pub fn after(error: &ConnectError, backoff: &mut Backoff) -> Self {
        match error.retry_after() {
            Some(after) => {
                let time = after.max(backoff.fail()).saturating_add(SPREAD.mul_f64(rand::random()));
                Self { time, ends_with_credentials: false }
            }
            None if error.is_lasting() => {
                let time = backoff.fail_between(LEAST_AFTER_REFUSAL, LONGEST_AFTER_REFUSAL);
                Self { time, ends_with_credentials: true }
            }
            None => Self::after_loss(backoff),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use hyper::{Response, StatusCode, header::RETRY_AFTER};

    use super::*;
    use crate::dial::switch::PlainAnswer;

    fn refused(status: u16, retry_after: Option<&str>) -> ConnectError {
        let mut answer = Response::new(());
        *answer.status_mut() = StatusCode::from_u16(status).unwrap();
        retry_after.map(|after| answer.headers_mut().insert(RETRY_AFTER, after.parse().unwrap()));
        ConnectError::Refused(PlainAnswer { head: answer.into_parts().0, body: Vec::new() }.into())
    }

    #[test]
    fn a_partner_is_left_alone_for_as_long_as_it_asks() {
        for status in [429, 503, 418, 401] {
            let pause = Pause::after(&refused(status, Some("7200")), &mut Backoff::new(PAUSES));
            assert!((7200.0..=7201.0).contains(&pause.time.as_secs_f64()), "{status}: {pause:?}");
            assert!(!pause.ends_with_credentials, "{status}");
        }
        // It is no reason to come sooner than without.
        let mut backoff = Backoff::new(Pauses { jitter: false, ..PAUSES });
        for _ in 0..10 {
            backoff.fail();
        }
        assert!(Pause::after(&refused(429, Some("1")), &mut backoff).time >= PAUSES.longest);
    }

    #[test]
    fn credentials_that_are_refused_are_tried_less_and_less() {
        for (status, range, ends) in
            [(401, 150..=300, true), (403, 150..=300, true), (404, 150..=300, true), (500, 0..=30, false)]
        {
            for _ in 0..100 {
                let mut backoff = Backoff::new(PAUSES);
                let last = (0..20).map(|_| Pause::after(&refused(status, None), &mut backoff)).last().unwrap();
                assert!(range.contains(&last.time.as_secs()), "{status}: {last:?}");
                assert_eq!(last.ends_with_credentials, ends, "{status}");
            }
        }
    }
}
