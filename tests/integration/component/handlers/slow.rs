//! Clients that read slowly: replies, publications and subscriptions that meet while a frame is half sent.

use support::{
    client::Client,
    raw::{BINARY, FIN, Frame, Raw, TEXT, frame},
    relay::Relay,
};

use super::{ask, relay};

/// A frame larger than the sockets' buffers.
const LARGE: usize = 8 << 20;

fn large(size: usize) -> Vec<u8> {
    (0..size as u32 / 4).flat_map(u32::to_be_bytes).collect()
}

fn text(text: &str) -> Frame {
    Frame { first: FIN | TEXT, payload: text.as_bytes().to_vec() }
}

/// Sends commands, and waits until this many batches of replies to them are at the client's socket.
///
/// Call it once in a test, with all commands. While the client takes nothing, its kernel may drop the acknowledgements
/// of what it sent, together with the data that carry them. Then the kernel holds back what the client sends next.
async fn told(relay: &Relay, client: &mut Raw, commands: &[&str], batches: u32) {
    let before = relay.metric("edge_relay_client_replies_total", &[]).await;
    let frames: Vec<u8> = commands.iter().flat_map(|command| frame(FIN | TEXT, command.as_bytes())).collect();
    client.send(&frames).await;
    relay.metric_reaches("edge_relay_client_replies_total", &[], before + f64::from(batches)).await;
}

/// Returns a slow client of these channels, and a client that publishes. The slow one has got half of a large frame of
/// channel `large`.
async fn half_sent(relay: &Relay, query: &str) -> (Raw, Client) {
    let mut slow = Raw::narrow(relay.clients, &format!("/t?{query}")).await;
    slow.send(&frame(FIN | TEXT, b"reply in")).await;
    assert_eq!(slow.frame().await.unwrap(), text("in"));
    let mut publisher = relay.client("/t?channels=").await;
    assert_eq!(ask(&mut publisher, &format!("publish-large large {LARGE}\nreply out")).await, "out");
    assert_eq!(slow.begun().await, LARGE);
    (slow, publisher)
}

#[tokio::test]
async fn a_reply_comes_behind_the_frame_that_is_half_sent_and_before_the_next() {
    let relay = relay("").await;
    let (mut slow, mut publisher) = half_sent(&relay, "channel=large&channel=other").await;
    assert_eq!(ask(&mut publisher, "publish large next\npublish other next\nreply out").await, "out");
    told(&relay, &mut slow, &["reply between", "reply then"], 2).await;
    assert!(slow.payload(LARGE).await == large(LARGE));
    assert_eq!(slow.frame().await.unwrap(), text("between"));
    assert_eq!(slow.frame().await.unwrap(), text("then"));
    assert_eq!(slow.frame().await.unwrap(), text("next"));
    assert_eq!(slow.frame().await.unwrap(), text("next"));
    slow.send(&frame(FIN | TEXT, b"reply last")).await;
    assert_eq!(slow.frame().await.unwrap(), text("last"));
}

#[tokio::test]
async fn a_channel_left_in_the_middle_of_its_frame_ends_with_that_frame() {
    for query in ["channel=large", "channel=large&channel=other", "channel=a&channel=large&channel=other"] {
        let relay = relay("").await;
        let (mut slow, mut publisher) = half_sent(&relay, query).await;
        told(&relay, &mut slow, &["unsubscribe large\nsubscribe other\nreply left"], 1).await;
        assert_eq!(ask(&mut publisher, "subscribers large").await, "0");
        let said = "publish large never\npublish other next\nreply out";
        assert_eq!(ask(&mut publisher, said).await, "out");
        assert!(slow.payload(LARGE).await == large(LARGE), "{query}");
        assert_eq!(slow.frame().await.unwrap(), text("left"), "{query}");
        assert_eq!(slow.frame().await.unwrap(), text("next"), "{query}");
        slow.send(&frame(FIN | TEXT, b"reply last")).await;
        assert_eq!(slow.frame().await.unwrap(), text("last"), "{query}");
    }
}

#[tokio::test]
async fn another_channel_left_meanwhile_does_not_cut_the_frame() {
    for query in ["channel=a&channel=large&channel=z", "channel=large&channel=z", "channel=a&channel=large"] {
        let relay = relay("").await;
        let (mut slow, mut publisher) = half_sent(&relay, query).await;
        assert_eq!(ask(&mut publisher, "publish large next\nreply out").await, "out");
        told(&relay, &mut slow, &["unsubscribe a\nunsubscribe z\nreply left"], 1).await;
        assert_eq!(ask(&mut publisher, "publish a never\npublish z never\nreply out").await, "out");
        assert!(slow.payload(LARGE).await == large(LARGE), "{query}");
        assert_eq!(slow.frame().await.unwrap(), text("left"), "{query}");
        assert_eq!(slow.frame().await.unwrap(), text("next"), "{query}");
        slow.send(&frame(FIN | TEXT, b"reply last")).await;
        assert_eq!(slow.frame().await.unwrap(), text("last"), "{query}");
    }
}

#[tokio::test]
async fn a_channel_left_and_followed_again_goes_on_from_there() {
    let relay = relay("").await;
    let (mut slow, _publisher) = half_sent(&relay, "channel=large").await;
    let commands =
        ["unsubscribe large\nreply left\npublish large never", "subscribe large\nreply back\npublish large again"];
    told(&relay, &mut slow, &commands, 2).await;
    assert!(slow.payload(LARGE).await == large(LARGE));
    for expected in ["left", "back", "again"] {
        assert_eq!(slow.frame().await.unwrap(), text(expected));
    }
}

#[tokio::test]
async fn a_disconnect_lets_the_half_sent_frame_and_the_replies_end() {
    let relay = relay("").await;
    let (mut slow, _publisher) = half_sent(&relay, "channel=large").await;
    slow.send(&frame(FIN | TEXT, b"reply goodbye\ndisconnect 4000 out")).await;
    relay.clients_closed("handler", 1.0).await;
    assert!(slow.payload(LARGE).await == large(LARGE));
    assert_eq!(slow.frame().await.unwrap(), text("goodbye"));
    assert_eq!(slow.closed().await, 4000);
}

#[tokio::test]
async fn replies_and_publications_never_cut_each_others_frames() {
    const ROUNDS: usize = 300;
    /// Several frames fill the sockets' buffers, and the size divides none of them. So frames end anywhere in the
    /// buffers.
    const SIZE: usize = 40_004;
    let relay = relay("client-queue = 1000").await;
    let mut slow = Raw::narrow(relay.clients, "/t?channel=a&channel=b&channel=c").await;
    let size = |round: usize| SIZE + 4 * round;
    let reply = |round: usize| format!("{round}-{}", "y".repeat(round * 37 % 3000));
    let said = |round: usize| {
        let channel = ["a", "b", "c"][round % 3];
        frame(FIN | TEXT, format!("publish-large {channel} {}\nreply {}", size(round), reply(round)).as_bytes())
    };
    slow.send(&(0..ROUNDS).flat_map(said).collect::<Vec<u8>>()).await;
    relay.metric_reaches("edge_relay_client_replies_total", &[], ROUNDS as f64).await;

    let (mut replies, mut publications) = (0, Vec::new());
    while replies < ROUNDS || publications.len() < ROUNDS {
        let frame = slow.frame().await.expect("a frame before the end");
        if frame.first == FIN | BINARY {
            assert!(frame.payload == large(frame.payload.len()), "publication {}", publications.len());
            publications.push((frame.payload.len() - SIZE) / 4);
        } else {
            assert_eq!(frame, text(&reply(replies)));
            replies += 1;
        }
    }
    for channel in 0..3 {
        let of_channel: Vec<_> = publications.iter().filter(|round| **round % 3 == channel).collect();
        assert!(of_channel.is_sorted() && of_channel.len() == ROUNDS / 3, "{of_channel:?}");
    }
    slow.send(&frame(FIN | TEXT, b"reply last")).await;
    assert_eq!(slow.frame().await.unwrap(), text("last"));
}
