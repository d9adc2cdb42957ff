//! A TCP connection to one of several addresses, as RFC 8305 has it ("happy eyeballs").
//!
//! The addresses are tried in turn, the families alternating. A try begins 250 ms after the one before, or as soon as
//! that has failed, and the first that succeeds ends the others. So an address that swallows packets costs a quarter of
//! a second, and not the deadline.

use std::{io, net::SocketAddr, time::Duration};

use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::{net::TcpStream, time::sleep};

/// Time between the beginnings of two tries (RFC 8305 section 5).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// Connects to the first of the addresses that accepts.
///
/// # Errors
/// All have failed; the error is the last one's. Or there is none.
pub async fn connect(addresses: &[SocketAddr]) -> io::Result<TcpStream> {
    let none = io::Error::new(io::ErrorKind::NotFound, "the name has no addresses");
    first(addresses, TcpStream::connect, none).await
}

/// The first success of `attempt` with one of the addresses. `none`: the error if there are no addresses.
pub async fn first<T, E, A: Future<Output = Result<T, E>>>(
    addresses: &[SocketAddr],
    attempt: impl Fn(SocketAddr) -> A,
    none: E,
) -> Result<T, E> {
    let mut waiting = alternating(addresses).into_iter().peekable();
    let mut tries = FuturesUnordered::new();
    let mut failed = none;
    loop {
        match waiting.next() {
            Some(address) => tries.push(attempt(address)),
            None if tries.is_empty() => return Err(failed),
            None => {}
        }
        let more = waiting.peek().is_some();
        tokio::select! {
            Some(tried) = tries.next() => match tried {
                Ok(value) => return Ok(value),
                Err(error) => failed = error,
            },
            () = sleep(ATTEMPT_DELAY), if more => {}
        }
    }
}

/// The addresses with their families in turn, beginning with that of the first. Otherwise they keep their order: the
/// resolver has sorted them (RFC 6724).
fn alternating(addresses: &[SocketAddr]) -> Vec<SocketAddr> {
    let first_is_v6 = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let (first, second): (Vec<_>, Vec<_>) =
        addresses.iter().copied().partition(|address| address.is_ipv6() == first_is_v6);
    let (mut first, mut second) = (first.into_iter(), second.into_iter());
    let mut sorted = Vec::with_capacity(addresses.len());
    loop {
        let pair = [first.next(), second.next()];
        if pair == [None, None] {
            return sorted;
        }
        sorted.extend(pair.into_iter().flatten());
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Instant;

    use tokio::net::{TcpListener, TcpSocket};

    use super::*;

    #[test]
    fn families_alternate_and_keep_their_order() {
        let parse = |all: &[&str]| all.iter().map(|address| address.parse().unwrap()).collect::<Vec<SocketAddr>>();
        let resolved = parse(&["[2001:db8::1]:1", "[2001:db8::2]:1", "192.0.2.1:1", "192.0.2.2:1", "192.0.2.3:1"]);
        let sorted = parse(&["[2001:db8::1]:1", "192.0.2.1:1", "[2001:db8::2]:1", "192.0.2.2:1", "192.0.2.3:1"]);
        assert_eq!(alternating(&resolved), sorted);
        assert_eq!(alternating(&[]), []);
    }

    /// A listener that accepts nothing more: its queue is full, so the system drops what else comes.
    async fn deaf() -> (TcpListener, Vec<TcpStream>) {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(1).unwrap();
        let address = listener.local_addr().unwrap();
        let mut queued = Vec::new();
        while let Ok(Ok(stream)) = tokio::time::timeout(Duration::from_millis(100), TcpStream::connect(address)).await {
            queued.push(stream);
        }
        (listener, queued)
    }

    #[tokio::test]
    async fn an_address_that_swallows_packets_costs_a_quarter_of_a_second_and_one_that_refuses_nothing() {
        let (deaf, _queued) = deaf().await;
        let open = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let (deaf, open) = (deaf.local_addr().unwrap(), open.local_addr().unwrap());
        let began = Instant::now();
        let connected = connect(&[closed, deaf, open]).await.unwrap();
        assert_eq!(connected.peer_addr().unwrap(), open);
        assert!(began.elapsed() >= ATTEMPT_DELAY);
        let error = connect(&[closed]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        assert_eq!(connect(&[]).await.unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
