//! A channel that applies another's chunks becomes the same channel.

use bytes::Bytes;
use wire::Kind;

use super::*;
use crate::metrics::Metrics;

pub fn channels() -> Channels {
    let metrics = Arc::new(Arc::new(Metrics::new()).tenant(&"t".into()));
    Channels::new(Vec::new(), &config::TenantLimits::default(), None, metrics, Account::of_test())
}

fn publication(key: Option<&str>, remove: bool, text: &'static str) -> Publication {
    let data = Frame { kind: Kind::Text, bytes: Bytes::from_static(text.as_bytes()) };
    Publication { channel: "c".into(), key: key.map(Arc::from), remove, data, framed: None }
}

/// A publication on a channel.
pub fn on(channel: &str, text: &'static str) -> Publication {
    Publication { channel: channel.into(), ..publication(None, false, text) }
}

/// A second channel that only gets the first one's chunks has the same log, snapshot and position, even after a gap.
#[tokio::test]
async fn chunks_applied_in_another_place_make_the_same_channel() {
    let (home, edge) = (channels(), channels());
    let upstream: Arc<str> = "feed".into();
    let (from, to) = (home.open("c").unwrap(), edge.open("c").unwrap());
    home.publish(vec![publication(Some("a"), false, "a1"), publication(None, false, "n")], Some(&upstream)).await;
    home.lost(&upstream, usize::MAX);
    let burst = [("a", false, "a2"), ("b", false, "b1"), ("a", true, "")];
    home.publish(burst.map(|(key, remove, text)| publication(Some(key), remove, text)).into(), Some(&upstream)).await;
    home.publish(vec![publication(Some("c"), false, "c1")], Some(&upstream)).await;
    {
        let (here, mut there) = (from.state.lock(), to.state.lock());
        for chunk in here.log.from(0) {
            let seq = there.log.next_seq();
            let keep = there.keep(seq);
            to.apply(&mut there, chunk.copied(seq, &to.ledger), keep);
        }
    }
    let page = |channel: &Channel| {
        let page = channel.page(None, 100);
        (page.position, page.entries)
    };
    assert_eq!(page(&from), page(&to));
    assert_eq!(page(&from).1.len(), 4, "the epoch before the gap is not read");
    let latest = |channel: &Channel| channel.latest_of_keys(0, 100).entries;
    assert_eq!(latest(&from), latest(&to));
    assert_eq!(latest(&to).iter().map(|entry| entry.key.name.as_deref()).collect::<Vec<_>>(), [Some("b"), Some("c")]);
}
