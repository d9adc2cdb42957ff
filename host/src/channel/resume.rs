//! Several channels, resumed by one client.

use std::sync::Arc;

use wire::Position;

use crate::channel::{Channel, Start};

/// Where a client goes on in the channels that it follows.
pub struct Resumed {
    pub channels: Vec<(Arc<Channel>, Start)>,
    /// The names of those channels that have a gap before that.
    pub gaps: Vec<Arc<str>>,
}

/// Goes on behind positions. If one of them is in none of the channels, every channel without a position has a gap.
pub fn resume(channels: Vec<Arc<Channel>>, after: Option<&[Position]>) -> Resumed {
    let positions = after.unwrap_or_default();
    let start = |channel: Arc<Channel>| {
        // An epoch is of one channel.
        let position = positions.iter().find(|position| channel.reaches(**position));
        let start = position.map_or_else(|| channel.start(), |position| Start::After(*position));
        (channel, start)
    };
    let channels: Vec<_> = channels.into_iter().map(start).collect();
    let anew = |(channel, start): &(Arc<Channel>, Start)| {
        (!matches!(start, Start::After(_))).then(|| Arc::clone(&channel.name))
    };
    let anew: Vec<_> = channels.iter().filter_map(anew).collect();
    // A position that cannot be read is none of theirs either.
    let lost = after.is_some_and(|positions| positions.is_empty() || channels.len() - anew.len() < positions.len());
    Resumed { channels, gaps: if lost { anew } else { Vec::new() } }
}
