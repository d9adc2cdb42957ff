//! Connections to MySQL, a few at a time, each kept for the next who needs one.
//!
//! The driver's own pool waits for the server before it gives a connection's place to another. Here a statement that
//! does not end in time takes its connection with it, and its place is free at once, however silent the server is.

use std::{
    io::ErrorKind,
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::FutureExt;
use mysql_async::{Conn, Error, Opts, Row, prelude::Queryable};
use tokio::{
    runtime::Handle,
    sync::{Semaphore, SemaphorePermit},
    time::{sleep, timeout, timeout_at},
};

use crate::sync::Mutex;

/// How old a connection may become, unless its URL says so (`abs_conn_ttl`). So it follows a server that has moved.
const GREATEST_AGE: Duration = Duration::from_secs(300);
/// How long a connection is kept that nobody uses: firewalls on the way drop such connections silently.
const GREATEST_REST: Duration = Duration::from_secs(60);
/// A connection that has rested this long is asked whether it still stands: a server's `wait_timeout` may be a second.
const ASK_AFTER: Duration = Duration::from_millis(500);
/// How long it has for its answer, if another has just been silent, and to be closed.
const PING_DEADLINE: Duration = Duration::from_secs(1);
const SILENT_PING_DEADLINE: Duration = Duration::from_millis(250);
const CLOSE_DEADLINE: Duration = Duration::from_secs(1);
/// How many late statements are ended at once, and how long that may take.
const ENDS: usize = 2;
const END_DEADLINE: Duration = Duration::from_secs(5);
/// MySQL's errors ER_CON_COUNT_ERROR, ER_TOO_MANY_USER_CONNECTIONS, and ER_USER_LIMIT_REACHED.
const TOO_MANY: [u16; 3] = [1040, 1203, 1226];
/// How often it is tried again to connect where there are too many connections, and after what pause.
const TRIES: u32 = 10;
const TRY_AGAIN: Duration = Duration::from_millis(20);

pub struct Connections {
    known: Mutex<Known>,
    places: Semaphore,
    /// Places of those that end statements whose caller waits no more.
    ends: Arc<Semaphore>,
}

struct Known {
    opts: Opts,
    /// Connections of an older one are closed when they are given back.
    generation: u64,
    idle: Vec<Idle>,
    /// When a connection was last found silent. Others that were used before may be as silent.
    silent: Option<Instant>,
}

struct Idle {
    connection: Conn,
    opened: Instant,
    used: Instant,
}

impl Known {
    fn greatest_age(&self) -> Duration {
        self.opts.pool_opts().abs_conn_ttl().unwrap_or(GREATEST_AGE)
    }
}

impl Idle {
    fn is_too_old(&self, greatest_age: Duration) -> bool {
        self.used.elapsed() >= GREATEST_REST || self.opened.elapsed() >= greatest_age
    }
}

/// A connection that is in use. It is kept for others when this is dropped, unless something went wrong with it.
pub struct Lent<'c> {
    all: &'c Connections,
    connection: Option<Conn>,
    opened: Instant,
    generation: u64,
    _place: Option<SemaphorePermit<'c>>,
}

impl Connections {
    /// `most`: how many there are at once, besides those that [need no place](Self::take_extra).
    pub fn new(opts: Opts, most: usize) -> Self {
        let known = Known { opts, generation: 0, idle: Vec::new(), silent: None };
        Self { known: Mutex::new(known), places: Semaphore::new(most), ends: Arc::new(Semaphore::new(ENDS)) }
    }

    /// Has what begins from now on connect anew: the address may be another server's. What is under way goes on.
    pub fn forget(&self) {
        let forgotten = {
            let mut known = self.known.lock();
            known.generation += 1;
            std::mem::take(&mut known.idle)
        };
        forgotten.into_iter().for_each(|idle| close(idle.connection));
    }

    /// How old a connection may become.
    pub fn greatest_age(&self) -> Duration {
        self.known.lock().greatest_age()
    }

    /// Connects like this from now on.
    pub fn change(&self, opts: Opts) {
        self.known.lock().opts = opts;
        self.forget();
    }

    /// Takes a connection as soon as there is a place for one.
    pub async fn take(&self, deadline: Instant) -> Result<Lent<'_>, Error> {
        // The semaphore is never closed.
        let place = timeout_at(deadline.into(), self.places.acquire()).await.map_err(|_| late())?.ok();
        self.lend(place, deadline).await
    }

    /// Takes one more. There is one who does so.
    pub async fn take_extra(&self, deadline: Instant) -> Result<Lent<'_>, Error> {
        self.lend(None, deadline).await
    }

    async fn lend<'c>(&'c self, place: Option<SemaphorePermit<'c>>, deadline: Instant) -> Result<Lent<'c>, Error> {
        let lent = |connection, opened, generation| Lent {
            all: self,
            connection: Some(connection),
            opened,
            generation,
            _place: place,
        };
        let mut tries = 0;
        loop {
            let (idle, opts, generation, silent, greatest_age) = {
                let mut known = self.known.lock();
                (known.idle.pop(), known.opts.clone(), known.generation, known.silent, known.greatest_age())
            };
            let Some(mut idle) = idle else {
                let opened = Instant::now();
                match within(deadline, Conn::new(opts)).await {
                    Ok(connection) => return Ok(lent(connection, opened, generation)),
                    // One that is in use may be free in a moment.
                    Err(Error::Server(server)) if TOO_MANY.contains(&server.code) && tries < TRIES => tries += 1,
                    Err(error) => return Err(error),
                }
                sleep(TRY_AGAIN).await;
                continue;
            };
            if !idle.is_too_old(greatest_age) {
                let may_be_silent = silent.is_some_and(|silent| idle.used <= silent);
                let ping = Instant::now() + if may_be_silent { SILENT_PING_DEADLINE } else { PING_DEADLINE };
                let stands = idle.used.elapsed() < ASK_AFTER && !may_be_silent
                    || within(deadline.min(ping), idle.connection.ping()).await.is_ok();
                if stands {
                    return Ok(lent(idle.connection, idle.opened, generation));
                }
            }
            close(idle.connection);
        }
    }

    /// Ends a read that nobody waits for any more, so that such reads do not pile up on the server.
    fn end_read(&self, connection: u32) {
        let (Ok(place), Ok(runtime)) = (Arc::clone(&self.ends).try_acquire_owned(), Handle::try_current()) else {
            return;
        };
        let opts = self.known.lock().opts.clone();
        runtime.spawn(async move {
            let _place = place;
            let deadline = Instant::now() + END_DEADLINE;
            let ended = async {
                let mut own = within(deadline, Conn::new(opts)).await?;
                let ended = within(deadline, end_read(&mut own, connection)).await;
                close(own);
                ended
            };
            if let Err(error) = ended.await {
                tracing::debug!(%error, "a statement that was late was not ended");
            }
        });
    }
}

impl Lent<'_> {
    /// Does something with the connection. If that fails in a way that leaves the connection in doubt, or does not end
    /// in time, the connection is closed.
    pub async fn run<T>(
        &mut self,
        deadline: Instant,
        work: impl AsyncFnOnce(&mut Conn) -> Result<T, Error>,
    ) -> Result<T, Error> {
        // It is given back only when all of it has come.
        let Some(mut connection) = self.connection.take() else {
            return Err(Error::Driver(mysql_async::DriverError::ConnectionClosed));
        };
        let done = within(deadline, work(&mut connection)).await;
        match &done {
            Err(error) if !leaves_it_usable(error) => {
                if is_late(error) {
                    self.all.known.lock().silent = Some(Instant::now());
                    // What changes something comes to its end by itself.
                    if self._place.is_some() {
                        self.all.end_read(connection.id());
                    }
                }
                close(connection);
            }
            _ => self.connection = Some(connection),
        }
        done
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        let Some(connection) = self.connection.take() else { return };
        let old: Vec<_> = {
            let known = &mut *self.all.known.lock();
            let idle = Idle { connection, opened: self.opened, used: Instant::now() };
            if known.generation == self.generation {
                known.idle.push(idle);
                let greatest_age = known.greatest_age();
                known.idle.extract_if(.., |idle| idle.is_too_old(greatest_age)).collect()
            } else {
                vec![idle]
            }
        };
        old.into_iter().for_each(|idle| close(idle.connection));
    }
}

/// Ends what a connection does, if it is a read of records: the address may be another server's by now, where this is
/// somebody else's number.
async fn end_read(own: &mut Conn, connection: u32) -> Result<(), Error> {
    let all: Vec<Row> = own.query("SHOW PROCESSLIST").await?;
    let is_read = all.iter().any(|row| {
        let info = row.get_opt::<String, _>("Info").and_then(Result::ok).unwrap_or_default();
        let id = row.get_opt::<u64, _>("Id").and_then(Result::ok);
        id == Some(connection.into()) && info.contains("SELECT id, at,")
    });
    if is_read { own.query_drop(format!("KILL QUERY {connection}")).await } else { Ok(()) }
}

/// Tells the server, if there is time. The driver would wait for it without an end.
fn close(connection: Conn) {
    // Without a runtime the host ends.
    if let Ok(runtime) = Handle::try_current() {
        runtime.spawn(async move {
            if !matches!(timeout(CLOSE_DEADLINE, connection.disconnect()).await, Ok(Ok(()))) {
                tracing::debug!("a connection to MySQL was cut");
            }
        });
    }
}

/// Whether the connection may be used again after a statement that failed. A server that has become read-only, shuts
/// down, or ends the connection may be another one at the next try.
pub fn leaves_it_usable(error: &Error) -> bool {
    const MOVED: [u16; 6] = [1053, 1290, 1792, 1836, 1927, 3032];
    matches!(error, Error::Server(server) if !MOVED.contains(&server.code))
}

pub fn is_late(error: &Error) -> bool {
    matches!(error, Error::Io(mysql_async::IoError::Io(error)) if error.kind() == ErrorKind::TimedOut)
}

fn late() -> Error {
    Error::Io(std::io::Error::from(ErrorKind::TimedOut).into())
}

/// Waits for the driver until the deadline. A panic of the driver's is an error like any other.
async fn within<T>(deadline: Instant, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    // A connection that was in use when it panicked is not used again.
    match timeout_at(deadline.into(), AssertUnwindSafe(work).catch_unwind()).await {
        Ok(Ok(done)) => done,
        Ok(Err(_)) => Err(Error::Other("the driver has panicked".into())),
        Err(_) => Err(late()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_only_reads_or_ends_is_left() {
        let server = |code| {
            let (state, message) = ("HY000".into(), String::new());
            Error::Server(mysql_async::ServerError { code, state, message })
        };
        assert!([1053, 1290, 1792, 1836, 1927, 3032].into_iter().all(|code| !leaves_it_usable(&server(code))));
        assert!([1062, 1205, 1644].into_iter().all(|code| leaves_it_usable(&server(code))));
    }

    #[tokio::test]
    async fn a_panic_of_the_driver_is_an_error_and_so_is_its_silence() {
        let soon = || Instant::now() + Duration::from_millis(20);
        let error = within::<()>(soon(), async { panic!("no such plugin") }).await.unwrap_err();
        assert!(error.to_string().contains("panicked") && !leaves_it_usable(&error), "{error}");
        let error = within::<()>(soon(), std::future::pending()).await.unwrap_err();
        assert!(is_late(&error) && !leaves_it_usable(&error), "{error}");
    }
}
