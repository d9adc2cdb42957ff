//! Partners that send as fast as they are read: what costs the relay much and brings nobody anything.

use support::partner::Partner;

use crate::{
    scene::{Scene, WITHOUT_RATES, is_full},
    senders::{Senders, many},
};

/// The sizes of the hostile tenant: how many upstreams it has.
const UPSTREAMS: [usize; 3] = [1, 4, 16];

/// Checks that the neighbour is undisturbed while all upstreams of the hostile tenant bring this.
async fn check(first: &[u8], flood: &[u8]) {
    let sizes = if is_full() { &UPSTREAMS[..] } else { &UPSTREAMS[2..] };
    for upstreams in sizes {
        let mut partner = Partner::start().await;
        let url = partner.url();
        // One is there already.
        let more: String =
            (1..*upstreams).map(|nth| format!("[[upstream]]\nname = \"f{nth}\"\nurl = \"{url}\"\n")).collect();
        let more = format!("{more}{WITHOUT_RATES}");
        let mut scene = Scene::with(&more, |_| {}).await;
        let mut sockets = Vec::new();
        let mut of_scene = scene.partner.take().unwrap();
        for nth in 0..*upstreams {
            let arrival = if nth == 0 { of_scene.arrival().await } else { partner.arrival().await };
            let mut peer = arrival.request().await;
            peer.agree(&[]).await;
            peer.write(first).await;
            sockets.push(peer.into_std());
        }
        eprint!("{upstreams} upstreams: ");
        Senders::start(sockets, flood).check(&mut scene).await;
        assert_eq!(scene.relay.metric("edge_relay_upstream_failures_total", &[]).await, 0.0);
    }
}

#[tokio::test]
async fn empty_fragments() {
    // A message that never ends.
    check(&[0x01, 0], &many(&[0x00, 0])).await;
}

#[tokio::test]
async fn empty_messages() {
    check(b"", &many(&[0x81, 0])).await;
}

#[tokio::test]
async fn tiny_messages() {
    check(b"", &many(&[0x81, 1, b'x'])).await;
}

#[tokio::test]
async fn messages_of_a_mebibyte() {
    let mut message = vec![0x82, 127];
    message.extend((1_u64 << 20).to_be_bytes());
    message.resize(message.len() + (1 << 20), b'x');
    check(b"", &message).await;
}

#[tokio::test]
async fn pongs_that_nobody_asked_for() {
    check(b"", &many(&[0x8A, 0])).await;
}
