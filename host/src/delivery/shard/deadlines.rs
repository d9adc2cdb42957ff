//! When connections end by themselves, and why.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Instant,
};

use crate::delivery::{ClientId, shard::KEPT_ROOM};

/// Why a connection ends at its deadline.
#[derive(Clone, Debug)]
pub enum Due {
    /// The client has not sent its first command.
    Stale,
    /// A channel that the tenant's code gave it has come to a gap.
    Gap(Arc<str>),
    /// The time that the tenant's code gave it is over.
    Expired,
}

/// The deadlines of the few clients that have one. No client has two.
#[derive(Default)]
pub struct Deadlines {
    by_client: HashMap<ClientId, (Instant, Due)>,
    by_time: BTreeSet<(Instant, ClientId)>,
}

impl Deadlines {
    /// Sets a client's deadline, in the place of an earlier one.
    pub fn set(&mut self, id: ClientId, at: Instant, due: Due) {
        self.clear(id);
        self.by_client.insert(id, (at, due));
        self.by_time.insert((at, id));
    }

    /// Sets the time at which a client is told of a gap. One gap stands for all: the first that is set.
    pub fn gap(&mut self, id: ClientId, at: Instant, channel: Arc<str>) {
        if !matches!(self.by_client.get(&id), Some((_, Due::Gap(_)))) {
            self.set(id, at, Due::Gap(channel));
        }
    }

    /// Lets a client stay until a time, or for good, as the tenant's code says. A gap that it is to be told of stands.
    pub fn renew(&mut self, id: ClientId, until: Option<Instant>) {
        match (self.by_client.get(&id), until) {
            (Some((_, Due::Gap(_))), _) => {}
            (_, Some(at)) => self.set(id, at, Due::Expired),
            (_, None) => self.clear(id),
        }
    }

    pub fn clear(&mut self, id: ClientId) {
        if let Some((at, _)) = self.by_client.remove(&id) {
            self.by_time.remove(&(at, id));
        }
    }

    /// Gives back the room that a herd's deadlines have taken.
    pub fn tidy(&mut self) {
        let most = KEPT_ROOM.max(2 * self.by_client.len());
        if self.by_client.capacity() > 4 * most {
            self.by_client.shrink_to(most);
        }
    }

    /// Takes out the earliest deadline, if its time has come.
    pub fn pop_due(&mut self, now: Instant) -> Option<(ClientId, Due)> {
        let (at, id) = *self.by_time.first().filter(|(at, _)| *at <= now)?;
        self.by_time.remove(&(at, id));
        self.by_client.remove(&id).map(|(_, due)| (id, due))
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
        assert!(deadlines.pop_due(now + 2 * second).is_none());
        assert!(matches!(deadlines.pop_due(now + 3 * second), Some((id, Due::Expired)) if id == one));
        assert!(matches!(deadlines.pop_due(now + 4 * second), Some((id, Due::Gap(_))) if id == other));
        assert!(deadlines.pop_due(now + 4 * second).is_none());
        assert!(deadlines.by_client.is_empty() && deadlines.by_time.is_empty());
    }

    #[test]
    fn a_herds_room_is_given_back_and_the_others_stay() {
        let (mut deadlines, now) = (Deadlines::default(), Instant::now());
        let ids: Vec<_> = (0..10_000).map(|_| ClientId::new(0)).collect();
        ids.iter().for_each(|id| deadlines.set(*id, now, Due::Stale));
        deadlines.tidy();
        assert!(deadlines.by_client.capacity() >= ids.len());
        ids.iter().skip(1).for_each(|id| deadlines.clear(*id));
        deadlines.tidy();
        assert!(deadlines.by_client.capacity() <= 4 * KEPT_ROOM);
        assert!(matches!(deadlines.pop_due(now), Some((id, Due::Stale)) if id == ids[0]));
    }
}
