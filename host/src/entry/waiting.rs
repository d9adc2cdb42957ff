//! Connections whose handshakes have not begun, those of each address in turn. They cost a socket each, and nothing
//! else.

use std::{
    collections::{HashMap, VecDeque},
    net::{IpAddr, SocketAddr, TcpStream},
    sync::Arc,
};

use tokio::sync::Notify;

use crate::fair_pool::{FairPlace, SHARE, Sharer, network};

/// An accepted connection, and whom it comes from.
pub type Connection = (TcpStream, SocketAddr);

#[derive(Default)]
pub struct Waiting {
    lines: HashMap<IpAddr, VecDeque<Connection>>,
    turns: VecDeque<IpAddr>,
    count: usize,
}

impl Waiting {
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Whether one more of this address may wait, if this many may in all. One address leaves room to others, unless it
    /// stands for many.
    pub fn has_room(&self, address: IpAddr, most: usize, stands_for_many: bool) -> bool {
        let own = self.lines.get(&network(address)).map_or(0, VecDeque::len);
        let free = most.saturating_sub(self.count);
        free > 0 && (stands_for_many || own < SHARE.saturating_mul(free))
    }

    pub fn push(&mut self, connection: Connection) {
        let address = network(connection.1.ip());
        let line = self.lines.entry(address).or_insert_with(|| {
            self.turns.push_back(address);
            VecDeque::new()
        });
        line.push_back(connection);
        self.count += 1;
    }

    /// Takes the connection that has waited longest, of the next address that `may` have one now.
    pub fn next<T>(&mut self, mut may: impl FnMut(IpAddr) -> Option<T>) -> Option<(Connection, T)> {
        for _ in 0..self.turns.len() {
            let address = self.turns.pop_front()?;
            let line = self.lines.get_mut(&address)?;
            let Some(allowed) = may(line.front()?.1.ip()) else {
                self.turns.push_back(address);
                continue;
            };
            let connection = line.pop_front()?;
            if line.is_empty() {
                self.lines.remove(&address);
            } else {
                self.turns.push_back(address);
            }
            self.count -= 1;
            return Some((connection, allowed));
        }
        None
    }
}

/// The place of a handshake that has just begun. It is given back once something holds the handshake.
pub struct Young {
    place: Option<FairPlace<Sharer>>,
    given_back: Arc<Notify>,
}

impl Young {
    pub fn new(place: FairPlace<Sharer>, given_back: &Arc<Notify>) -> Self {
        Self { place: Some(place), given_back: Arc::clone(given_back) }
    }
}

impl Drop for Young {
    fn drop(&mut self) {
        self.place = None;
        self.given_back.notify_one();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn addresses_have_turns_and_one_leaves_room_to_others() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let connection = |address: &str| {
            let socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            (socket, SocketAddr::new(address.parse().unwrap(), 1))
        };
        let (many, one): (IpAddr, IpAddr) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        let mut waiting = Waiting::default();
        let mut count = 0;
        while waiting.has_room(many, 10, false) {
            waiting.push(connection("192.0.2.1"));
            count += 1;
        }
        assert_eq!(count, 8);
        assert!(waiting.has_room(many, 10, true) && waiting.has_room(one, 10, false));
        waiting.push(connection("192.0.2.2"));
        let mut from = |may: &dyn Fn(IpAddr) -> bool| {
            let next = waiting.next(|address| may(address).then_some(()));
            next.map(|((_, peer), ())| peer.ip())
        };
        assert_eq!([from(&|_| true), from(&|_| true), from(&|_| true)], [Some(many), Some(one), Some(many)]);
        assert_eq!(from(&|address| address != many), None);
        let rest = std::iter::from_fn(|| from(&|_| true)).count();
        assert_eq!((rest, waiting.is_empty(), waiting.lines.len(), waiting.turns.len()), (6, true, 0, 0));
    }
}
