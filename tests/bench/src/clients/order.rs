//! Checks that one client gets every message once and in order.

use std::collections::BTreeSet;

/// The messages that have come to one client.
#[derive(Default)]
pub struct Order {
    /// One more than the highest number that has come.
    next: u32,
    /// Numbers below it that have not come.
    holes: BTreeSet<u32>,
}

/// How a message came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Came {
    InOrder,
    /// After a message with a higher number.
    Late,
    Again,
}

impl Order {
    /// The order of a client that has everything before the message with this number.
    pub fn from(next: u32) -> Self {
        Self { next, holes: BTreeSet::new() }
    }

    /// The number of the message that should come now.
    pub fn next(&self) -> u32 {
        self.next
    }

    pub fn came(&mut self, number: u32) -> Came {
        if number >= self.next {
            if number > self.next {
                self.holes.extend(self.next..number);
            }
            self.next = number.saturating_add(1);
            return Came::InOrder;
        }
        match self.holes.remove(&number) {
            true => Came::Late,
            false => Came::Again,
        }
    }

    /// How many of the first `messages` have not come.
    pub fn missed(&self, messages: u32) -> u64 {
        let holes = self.holes.range(..messages).count() as u64;
        holes + u64::from(messages.saturating_sub(self.next))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mistake_is_seen_once() {
        let mut order = Order::default();
        let came = [0, 1, 4, 3, 3, 4, 1, 5].map(|number| order.came(number));
        use Came::*;
        assert_eq!(came, [InOrder, InOrder, InOrder, Late, Again, Again, Again, InOrder]);
        assert_eq!((order.missed(6), order.missed(8), order.missed(2)), (1, 3, 0));
        assert_eq!((order.came(2), order.missed(6)), (Came::Late, 0));
        let mut order = Order::from(3);
        assert_eq!(
            (order.missed(5), order.came(2), order.came(3), order.missed(5)),
            (2, Came::Again, Came::InOrder, 1)
        );
    }
}
