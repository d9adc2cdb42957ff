//! When clients' connections end by themselves.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Instant,
};

use crate::delivery::ClientId;

/// Why a connection ends at its time.
#[derive(Clone, Debug)]
pub enum Due {
    /// It has not said who it is.
    Stale,
    /// A channel that it was given has come to a gap.
    Gap(Arc<str>),
    /// The tenant's code gave it so long.
    Expired,
}

/// One deadline a client, of the few that have one.
#[derive(Default)]
pub struct Deadlines {
    of: HashMap<ClientId, (Instant, Due)>,
    order: BTreeSet<(Instant, ClientId)>,
}

impl Deadlines {
    /// In the place of the client's last one.
    pub fn set(&mut self, id: ClientId, at: Instant, due: Due) {
        self.clear(id);
        self.of.insert(id, (at, due));
        self.order.insert((at, id));
    }

    /// The client is to be told of a gap; the first one that it is told of stands for all.
    pub fn gap(&mut self, id: ClientId, at: Instant, channel: Arc<str>) {
        if !matches!(self.of.get(&id), Some((_, Due::Gap(_)))) {
            self.set(id, at, Due::Gap(channel));
        }
    }

    /// The tenant's code lets the client stay until then, or for good; a gap that it is to be told of stands.
    pub fn renew(&mut self, id: ClientId, until: Option<Instant>) {
        match (self.of.get(&id), until) {
            (Some((_, Due::Gap(_))), _) => {}
            (_, Some(at)) => self.set(id, at, Due::Expired),
            (_, None) => self.clear(id),
        }
    }

    pub fn clear(&mut self, id: ClientId) {
        if let Some((at, _)) = self.of.remove(&id) {
            self.order.remove(&(at, id));
        }
    }

    /// Takes out the first of those that have come.
    pub fn next(&mut self, now: Instant) -> Option<(ClientId, Due)> {
        let (at, id) = *self.order.first().filter(|(at, _)| *at <= now)?;
        self.order.remove(&(at, id));
        self.of.remove(&id).map(|(_, due)| (id, due))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_last_one_set_counts() {
        let (mut deadlines, now, second) = (Deadlines::default(), Instant::now(), Duration::from_secs(1));
        let [one, other] = ["a0", "b0"].map(|id| format!("{id:0>32}").parse::<ClientId>().unwrap());
        deadlines.set(one, now + second, Due::Stale);
        deadlines.set(other, now + second, Due::Stale);
        deadlines.clear(other);
        deadlines.gap(other, now + 3 * second, "a".into());
        deadlines.gap(other, now + 9 * second, "b".into());
        deadlines.renew(other, None);
        deadlines.renew(one, Some(now + 3 * second));
        assert!(deadlines.next(now + 2 * second).is_none());
        assert!(matches!(deadlines.next(now + 3 * second), Some((id, Due::Expired)) if id == one));
        assert!(matches!(deadlines.next(now + 4 * second), Some((id, Due::Gap(_))) if id == other));
        assert!(deadlines.next(now + 4 * second).is_none());
        assert!(deadlines.of.is_empty() && deadlines.order.is_empty());
    }
}
