//! How one client resumes several channels.

use std::sync::Arc;

use wire::Position;

use crate::channel::{Channel, Start};

/// Where a client begins in each channel that it follows.
pub struct Resumed {
    pub channels: Vec<(Arc<Channel>, Start)>,
    /// The names of the channels in which something is missing before that.
    pub gaps: Vec<Arc<str>>,
}

/// Resumes channels after the positions that a client has. It may say in several places where it is. In each channel
/// the newest position counts.
///
/// A position does not name its channel. So if one of a place is in none of the channels, every channel without a
/// position has a gap. A place all of whose positions are in none is of before, if another place has some. An empty
/// place stands for positions that cannot be read. They are in none.
pub fn resume(channels: Vec<Arc<Channel>>, after: &[Vec<Position>]) -> Resumed {
    let mut found: Vec<Position> = Vec::new();
    let start = |channel: Arc<Channel>| {
        // Each epoch belongs to one channel.
        let fitting: Vec<_> =
            after.iter().flatten().copied().filter(|position| channel.can_resume_after(*position)).collect();
        found.extend(&fitting);
        let newest = fitting.into_iter().max_by_key(|position| position.offset);
        (Arc::clone(&channel), newest.map_or_else(|| channel.start(), Start::After))
    };
    let channels: Vec<_> = channels.into_iter().map(start).collect();
    let is_found = |position: &Position| found.contains(position);
    let of_now: Vec<_> = after.iter().filter(|place| place.iter().any(is_found)).collect();
    let nothing_found = of_now.is_empty() && !after.is_empty();
    let lost = nothing_found || of_now.iter().any(|place| !place.iter().all(is_found));
    let without_position = |(channel, start): &(Arc<Channel>, Start)| {
        (!matches!(start, Start::After(_))).then(|| Arc::clone(&channel.name))
    };
    let gaps = if lost { channels.iter().filter_map(without_position).collect() } else { Vec::new() };
    Resumed { channels, gaps }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::channel::tests::{channels, on};

    #[tokio::test]
    async fn a_place_that_has_lost_a_channel_is_heard_beside_one_that_names_fewer() {
        let all = channels();
        all.publish(vec![on("a", "1"), on("a", "2"), on("b", "1")], None).await;
        let opened = || ["a", "b"].map(|name| all.open(name).unwrap()).to_vec();
        let at = |channel: usize, offset| Position { offset, ..opened()[channel].page(None, 1).position };
        let lost = Position { epoch: at(0, 1).epoch, offset: 99 };
        let gaps = |after: &[Vec<Position>]| resume(opened(), after).gaps.len();
        assert_eq!(gaps(&[]), 0);
        assert_eq!(gaps(&[vec![at(0, 2), at(1, 1)], vec![at(0, 1)]]), 0);
        assert_eq!(gaps(&[vec![at(0, 2), lost], vec![at(0, 1)]]), 1);
        assert_eq!(gaps(&[vec![at(0, 2), at(1, 1)], vec![lost]]), 0);
        assert_eq!(gaps(&[vec![lost]]), 2);
        assert_eq!(gaps(&[Vec::new()]), 2);
    }
}
