//! Connections that freeze: a proxy on the way neither reads nor closes.

use std::time::{Duration, Instant};

use mysql_async::prelude::Queryable;
use support::{chaos::Chaos, database::Server, on_each_server, relay::Relay, tenant::Folder, until};

use super::{drained, serve};

/// Freezes, each of which would take places from a pool that waits for its connections: eight are gone soon.
const FREEZES: usize = 5;
/// Reads at once.
const READS: usize = 3;
/// Late reads that are ended at once.
const ENDED: usize = 2;
/// How long something takes at most that waits for nothing, beside other tests.
const SOON: Duration = Duration::from_secs(2);

/// A relay whose calls have little time.
async fn relay(url: &str) -> Relay {
    let folder = Folder::new("").api("t", "[limits]\napi-call = \"3s\"\n");
    folder.append("relay.toml", "[store]\nurl = { env = \"STORE_URL\" }\n");
    serve(folder, url).await
}

/// Reads this many times at once, and returns the answers.
async fn read(relay: &Relay, times: usize) -> Vec<String> {
    let read = || async {
        let (status, body) = relay.api_get("/t/records?of=log&count=1").await;
        assert_eq!(status, 200, "the guest answers itself: {body}");
        body
    };
    futures_util::future::join_all((0..times).map(|_| read())).await
}

async fn a_freeze_costs_each_reader_one_deadline_and_an_append_nothing(server: Server) {
    let Some(database) = server.start().await else { return };
    let chaos = Chaos::start(database.address).await;
    let relay = relay(&database.url_at(chaos.address)).await;
    assert_eq!(relay.api_get("/t/append?to=log&first=0&rows=1").await.1, "1");
    drained(&relay, &database, 1).await;
    for freeze in 1..=FREEZES {
        // Each has a connection.
        assert_eq!(read(&relay, READS).await, vec![(freeze - 1).to_string(); READS]);
        // Those are never closed, nor does anything come over them. New ones are as before.
        chaos.freeze();
        let append = async {
            let began = Instant::now();
            let path = format!("/t/append?to=log&first={freeze}&rows=1");
            (relay.api_get(&path).await, began.elapsed())
        };
        let (reads, (appended, took)) = tokio::join!(read(&relay, READS), append);
        assert!(reads.iter().any(|read| read.contains("Unavailable")), "{freeze}: {reads:?}");
        assert_eq!(appended, (200, "1".to_owned()));
        assert!(took < SOON, "an append took {took:?}");
        let began = Instant::now();
        assert_eq!(read(&relay, READS).await, vec![freeze.to_string(); READS]);
        assert!(began.elapsed() < SOON, "reads after a freeze took {:?}", began.elapsed());
        drained(&relay, &database, freeze + 1).await;
    }
}

/// A read that is late is ended on the server too, where it would go on and others would pile up behind it.
async fn a_read_that_nobody_waits_for_any_more_ends_on_the_server(server: Server) {
    let Some(database) = server.start().await else { return };
    let relay = relay(&database.url()).await;
    assert_eq!(relay.api_get("/t/append?to=log&first=0&rows=1").await.1, "1");
    drained(&relay, &database, 1).await;
    let mut other = database.connect().await.unwrap();
    other.query_drop("LOCK TABLES records WRITE").await.unwrap();
    let reads = async |wanted: usize| {
        until(format!("{wanted} reads"), async || {
            let all = database.query("SHOW PROCESSLIST").await;
            let there = all.iter().filter(|row| row.iter().any(|value| value.contains("SELECT id, at,"))).count();
            if there == wanted { Ok(()) } else { Err(there.to_string()) }
        })
        .await;
    };
    let (answers, ()) = tokio::join!(read(&relay, ENDED), reads(ENDED));
    assert!(answers.iter().all(|answer| answer.contains("Unavailable")), "{answers:?}");
    reads(0).await;
    other.query_drop("UNLOCK TABLES").await.unwrap();
    assert_eq!(read(&relay, ENDED).await, vec!["0"; ENDED]);
}

on_each_server!(
    a_freeze_costs_each_reader_one_deadline_and_an_append_nothing,
    a_read_that_nobody_waits_for_any_more_ends_on_the_server,
);
