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

/// Resumes channels after the positions that a client has. A position does not name its channel. So if one of them is
/// in none of the channels, every channel without a position has a gap.
pub fn resume(channels: Vec<Arc<Channel>>, after: Option<&[Position]>) -> Resumed {
    let positions = after.unwrap_or_default();
    let start = |channel: Arc<Channel>| {
        // Each epoch belongs to one channel, so at most one position fits.
        let position = positions.iter().find(|position| channel.can_resume_after(**position));
        let start = position.map_or_else(|| channel.start(), |position| Start::After(*position));
        (channel, start)
    };
    let channels: Vec<_> = channels.into_iter().map(start).collect();
    let without_position = |(channel, start): &(Arc<Channel>, Start)| {
        (!matches!(start, Start::After(_))).then(|| Arc::clone(&channel.name))
    };
    let without_position: Vec<_> = channels.iter().filter_map(without_position).collect();
    // An empty list stands for positions that cannot be read. They are in none of the channels.
    let lost = after
        .is_some_and(|positions| positions.is_empty() || channels.len() - without_position.len() < positions.len());
    Resumed { channels, gaps: if lost { without_position } else { Vec::new() } }
}
