//! Clients that come all at once.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use serde_json::Value;
use support::{http::Http, partner::Partner, raw::Raw, relay::Relay, tenant::Folder, until};
use tokio::{net::TcpSocket, sync::Semaphore, task::JoinSet};

use super::handshakes::raise_file_limit;

const CLIENTS: usize = 10_000;
/// Connections from one address, since an address has few ports.
const PER_ADDRESS: usize = 1000;
/// Places for handshakes, and a herd that is several times as large and served within a second or two.
const PLACES: &str = "handshakes = 256";
const HERD: usize = 1000;
/// Longer than a storm of handshakes takes on a busy machine.
const TIMEOUT: &str = "handshake-timeout = \"60s\"";

/// Connects a client, and tries again until it is let in. Counts how often it was not.
async fn connect(relay: SocketAddr, nth: usize, path: String, refused: Arc<AtomicUsize>) -> Raw {
    loop {
        let socket = TcpSocket::new_v4().unwrap();
        let own = Ipv4Addr::new(127, 7, 0, u8::try_from(nth / PER_ADDRESS).unwrap() + 1);
        socket.bind((own, 0).into()).unwrap();
        let socket = match socket.connect(relay).await {
            Ok(socket) => socket,
            // The listener's backlog is full.
            Err(_) => {
                refused.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(200)).await;
                continue;
            }
        };
        match Raw::try_upgrade(socket, relay, &path).await {
            Ok(client) => return client,
            Err(head) => {
                refused.fetch_add(1, Ordering::Relaxed);
                assert!(
                    head.is_empty() || head.starts_with("HTTP/1.1 503 ") && head.to_lowercase().contains("retry-after"),
                    "{head}"
                );
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        }
    }
}

async fn texts(client: &mut Raw, numbers: std::ops::RangeInclusive<u32>) {
    for number in numbers {
        let frame = client.frame_but_pings().await.expect("a publication before the end");
        assert_eq!(String::from_utf8(frame.payload).unwrap(), number.to_string());
    }
}

#[tokio::test]
async fn nobody_is_sent_away_where_a_herd_is_larger_than_there_are_places() {
    raise_file_limit(HERD as u64 + 2000);
    let relay = Relay::serve(Folder::new(PLACES).tenant("t", "ws://127.0.0.1:9/", "")).await;
    let (mut coming, refused) = (JoinSet::new(), Arc::<AtomicUsize>::default());
    for nth in 0..HERD {
        let (address, refused) = (relay.clients, Arc::clone(&refused));
        coming.spawn(connect(address, nth, "/t".into(), refused));
    }
    let clients = coming.join_all().await;
    assert_eq!((clients.len(), refused.load(Ordering::Relaxed)), (HERD, 0));
}

#[tokio::test]
async fn ten_thousand_come_back_at_once_and_miss_nothing() {
    raise_file_limit(CLIENTS as u64 + 2000);
    let mut partner = Partner::start().await;
    let relay = Relay::serve(Folder::new(TIMEOUT).tenant("t", &partner.url(), "")).await;
    let mut peer = partner.accept().await;
    peer.text("1").await;
    let page = until("a publication", async || {
        let page: Value = Http::connect(relay.clients).await.get("/t/channels/main").await.json();
        if page["offset"] == 1 { Ok(page) } else { Err(page.to_string()) }
    });
    let epoch = page.await["epoch"].as_str().unwrap().to_owned();
    let refused = Arc::new(AtomicUsize::new(0));
    let come = async |offset: u32, at_once: usize, numbers: std::ops::RangeInclusive<u32>| {
        let (mut coming, turns) = (JoinSet::new(), Arc::new(Semaphore::new(at_once)));
        for nth in 0..CLIENTS {
            let (path, numbers, refused) =
                (format!("/t?since={epoch}:{offset}"), numbers.clone(), Arc::clone(&refused));
            let (address, turns) = (relay.clients, Arc::clone(&turns));
            coming.spawn(async move {
                let _turn = turns.acquire().await.unwrap();
                let mut client = connect(address, nth, path, refused).await;
                texts(&mut client, numbers).await;
                client
            });
        }
        coming.join_all().await
    };
    // The first time they come in turn, a few at once.
    let clients = come(0, 64, 1..=1).await;
    assert_eq!(refused.load(Ordering::Relaxed), 0);
    relay.metric_is("edge_relay_clients", &[], CLIENTS as f64).await;
    let memory = relay.resident_memory();

    drop(clients);
    for number in 2..=21 {
        peer.text(number.to_string()).await;
    }
    relay.metric_is("edge_relay_clients", &[], 0.0).await;
    let mut clients = come(1, CLIENTS, 2..=21).await;
    peer.text("22").await;
    for client in &mut clients {
        texts(client, 22..=22).await;
    }
    assert_eq!(relay.metric("edge_relay_clients", &[]).await, CLIENTS as f64);
    // A second later the memory is as it was before, apart from the pieces that the allocator keeps of handshakes that
    // were under way at once. A handshake that stayed would be some 20 KiB.
    until("the handshakes' memory is given back", async || {
        let after = relay.resident_memory();
        if after < memory + CLIENTS * 1000 { Ok(()) } else { Err(format!("{memory} bytes before, {after} after")) }
    })
    .await;
}
