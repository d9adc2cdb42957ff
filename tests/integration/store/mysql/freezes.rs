//! Connections that freeze: a proxy on the way neither reads nor closes.

use std::time::{Duration, Instant};

use support::{chaos::Chaos, database::Server, on_each_server, relay::Relay, tenant::Folder};

use super::{drained, serve};

/// Freezes, each of which would take places from a pool that waits for its connections: eight are gone soon.
const FREEZES: usize = 5;
/// Reads at once.
const READS: usize = 4;

/// A relay whose calls have little time.
async fn relay(url: &str) -> Relay {
    let folder = Folder::new("").api("t", "[limits]\napi-call = \"600ms\"\n");
    folder.append("relay.toml", "[store]\nurl = { env = \"STORE_URL\" }\n");
    serve(folder, url).await
}

async fn read(relay: &Relay) -> (u16, String, Duration) {
    let began = Instant::now();
    let (status, body) = relay.api_get("/t/records?of=log&count=1").await;
    (status, body, began.elapsed())
}

async fn a_freeze_costs_each_reader_one_deadline_and_an_append_nothing(server: Server) {
    let Some(database) = server.start().await else { return };
    let chaos = Chaos::start(database.address).await;
    let relay = relay(&database.url_at(chaos.address)).await;
    assert_eq!(relay.api_get("/t/append?to=log&first=0&rows=1").await.1, "1");
    drained(&relay, &database, 1).await;
    for freeze in 1..=FREEZES {
        let all = (0..READS).map(|_| read(&relay));
        for (status, body, _) in futures_util::future::join_all(all).await {
            assert!(status == 200 && !body.contains("Unavailable"), "{freeze}: {status} {body}");
        }
        chaos.stall();
        let all = (0..READS).map(|_| read(&relay));
        let append = async {
            let began = Instant::now();
            let path = format!("/t/append?to=log&first={freeze}&rows=1");
            (relay.api_get(&path).await, began.elapsed())
        };
        let (reads, (appended, took)) = tokio::join!(futures_util::future::join_all(all), append);
        for (status, body, took) in reads {
            // The guest is told, and answers itself.
            assert!(status == 200 && body.contains("Unavailable"), "{freeze}: {status} {body}");
            assert!(took < Duration::from_secs(3), "{took:?}");
        }
        assert_eq!(appended, (200, "1".to_owned()));
        assert!(took < Duration::from_millis(500), "an append took {took:?}");
        // What was frozen never comes back.
        chaos.cut();
        chaos.go_on();
    }
    drained(&relay, &database, FREEZES + 1).await;
    assert!(!relay.log().contains("another host"), "{}", relay.log());
}

/// Reads go on although the connections before stay frozen for ever.
async fn frozen_connections_keep_no_place(server: Server) {
    let Some(database) = server.start().await else { return };
    let chaos = Chaos::start(database.address).await;
    let relay = relay(&database.url_at(chaos.address)).await;
    assert_eq!(relay.api_get("/t/append?to=log&first=0&rows=1").await.1, "1");
    drained(&relay, &database, 1).await;
    for freeze in 1..=FREEZES {
        chaos.stall();
        let all = (0..READS).map(|_| read(&relay));
        for (status, body, _) in futures_util::future::join_all(all).await {
            assert!(status == 200 && body.contains("Unavailable"), "{freeze}: {status} {body}");
        }
        chaos.go_on();
        let (status, body, took) = read(&relay).await;
        assert_eq!((status, &body[..]), (200, "0"), "{freeze}");
        assert!(took < Duration::from_millis(500), "{took:?}");
    }
}

on_each_server!(a_freeze_costs_each_reader_one_deadline_and_an_append_nothing, frozen_connections_keep_no_place,);
