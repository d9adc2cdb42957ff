//! The end of a connection, RFC 6455 sections 5.5.1 and 7.

use support::{
    partner::{CLOSE, PING, Partner},
    relay::Relay,
    tenant::Folder,
};

/// Each frame of the relay but pings, to the end of the connection.
async fn frames(peer: &mut support::partner::RawPeer) -> Vec<(u8, Vec<u8>)> {
    let mut frames = Vec::new();
    while let Some(frame) = peer.next_frame().await {
        if frame.0 != PING {
            frames.push(frame);
        }
    }
    frames
}

#[tokio::test]
async fn a_partners_close_frame_is_answered_with_its_code_before_the_fin() {
    let mut partner = Partner::start().await;
    let relay = Relay::serve(Folder::new("").tenant("t", &partner.url(), "")).await;
    let mut client = relay.client("/t").await;
    let code = |code: u16| code.to_be_bytes().to_vec();
    for (payload, answer) in
        [([&code(1001)[..], b"maintenance"].concat(), code(1001)), (code(4001), code(4001)), (Vec::new(), Vec::new())]
    {
        let mut peer = partner.arrival().await.request().await;
        peer.agree(&[]).await;
        // What came before in the same packet is still passed on.
        let mut bytes = vec![0x81, 4];
        bytes.extend_from_slice(b"last");
        bytes.extend([CLOSE, u8::try_from(payload.len()).unwrap()]);
        bytes.extend_from_slice(&payload);
        peer.write(&bytes).await;
        assert_eq!(frames(&mut peer).await, [(CLOSE, answer)]);
        assert_eq!(client.text().await, "last");
    }
}

#[tokio::test]
async fn an_upstream_that_is_taken_away_says_so() {
    let mut partner = Partner::start().await;
    let relay = Relay::serve(Folder::new("").tenant("t", &partner.url(), "")).await;
    let mut peer = partner.arrival().await.request().await;
    peer.agree(&[]).await;
    relay.folder().write("tenants/t/tenant.toml", "name = \"t\"\n");
    relay.signal(rustix::process::Signal::HUP);
    let (first, payload) = peer.next_frame().await.unwrap();
    assert_eq!((first, payload), (CLOSE, 1001_u16.to_be_bytes().to_vec()));
}
