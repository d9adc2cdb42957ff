//! Gives publications their positions: an offset in an epoch.
//!
//! One sequencer gives all positions of a channel, and only it can refuse a publication. Storing and serving
//! ([`Channel::apply`](crate::channel::Channel::apply)) takes publications with positions as they come, so that other
//! nodes could do this, too.

use std::sync::Arc;

use wire::{Epoch, Position};

use crate::channel::{Publication, snapshot::Snapshot};

/// Gives a channel's publications their positions.
pub struct Sequencer {
    epoch: Epoch,
    next_offset: u64,
    /// The first offset of the epoch.
    epoch_start: u64,
    /// The upstreams whose publications it has sequenced.
    upstreams: Vec<Arc<str>>,
}

/// A burst with its positions.
pub struct Sequenced {
    /// The position of the first publication. Each next one has the next offset.
    pub first: Position,
    pub publications: Vec<Publication>,
    /// How many publications were left out, because the snapshot has no room for their keys.
    pub left_out: usize,
}

impl Sequencer {
    /// `first`: the position of the next publication.
    pub fn new(first: Position) -> Self {
        Self { epoch: first.epoch, next_offset: first.offset, epoch_start: first.offset, upstreams: Vec::new() }
    }

    /// Gives a burst its positions. `upstream`: the upstream of the filter that made the publications, if a filter did.
    /// `snapshot`: the channel's, with everything applied that was sequenced before.
    pub fn sequence(
        &mut self,
        mut publications: Vec<Publication>,
        upstream: Option<&Arc<str>>,
        snapshot: &Snapshot,
    ) -> Sequenced {
        let count = publications.len();
        if !snapshot.has_room_for_all(&publications) {
            let mut has_room = snapshot.admit(&publications).into_iter();
            publications.retain(|_| has_room.next().unwrap_or(true));
        }
        if let Some(upstream) = upstream
            && !self.upstreams.contains(upstream)
        {
            self.upstreams.push(Arc::clone(upstream));
        }
        let first = Position { epoch: self.epoch, offset: self.next_offset };
        self.next_offset += publications.len() as u64;
        Sequenced { first, left_out: count - publications.len(), publications }
    }

    /// Begins a new epoch, if this one has publications of an upstream that was lost. Returns the new epoch's first
    /// position.
    pub fn lost(&mut self, upstream: &Arc<str>) -> Option<Position> {
        self.upstreams.contains(upstream).then(|| self.gap()).flatten()
    }

    /// Begins a new epoch, whoever has published in the present one.
    pub fn gap(&mut self) -> Option<Position> {
        // An epoch without publications need not end: no client has a position in it.
        if self.epoch_start == self.next_offset {
            return None;
        }
        self.epoch = new_epoch();
        self.epoch_start = self.next_offset;
        Some(Position { epoch: self.epoch, offset: self.next_offset })
    }
}

/// A new epoch, different from all before.
pub fn new_epoch() -> Epoch {
    Epoch(rand::random())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use wire::{Entry, Frame, Key, Kind};

    use super::*;

    /// Keys that may be live at once.
    const MAX_KEYS: usize = 3;

    fn publication((key, remove): (Option<u8>, bool)) -> Publication {
        let data = Frame { kind: Kind::Text, bytes: "x".into() };
        let key = key.map(|key| Arc::from(key.to_string()));
        Publication { channel: "c".into(), remove: remove && key.is_some(), key, data, framed: None }
    }

    fn entry(offset: u64, publication: &Publication) -> Entry {
        let key = Key { name: publication.key.clone(), remove: publication.remove };
        Entry { offset, key, data: publication.data.clone() }
    }

    proptest! {
        /// A burst loses the same publications that it would lose if they came one by one.
        #[test]
        fn a_burst_is_sequenced_like_its_publications_one_by_one(
            bursts in prop::collection::vec(prop::collection::vec((prop::option::of(0u8..6), any::<bool>()), 0..8), 1..12)
        ) {
            let first = Position { epoch: Epoch(1), offset: 1 };
            let (mut whole, mut single) = (Sequencer::new(first), Sequencer::new(first));
            let (mut one, mut other) = (Snapshot::new(MAX_KEYS), Snapshot::new(MAX_KEYS));
            for burst in bursts {
                let burst: Vec<_> = burst.into_iter().map(publication).collect();
                let mut expected = Vec::new();
                for publication in &burst {
                    let sequenced = single.sequence(vec![publication.clone()], None, &other);
                    for publication in &sequenced.publications {
                        other.apply(entry(sequenced.first.offset, publication));
                        expected.push((sequenced.first.offset, publication.key.clone()));
                    }
                }
                let sequenced = whole.sequence(burst, None, &one);
                let mut found = Vec::new();
                for (offset, publication) in (sequenced.first.offset..).zip(&sequenced.publications) {
                    one.apply(entry(offset, publication));
                    found.push((offset, publication.key.clone()));
                }
                prop_assert_eq!(found, expected);
            }
        }
    }
}
