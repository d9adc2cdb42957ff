//! Disks that fill up: the host's, and MySQL's.

use rustix::process::Signal;
use support::{appends::Appends, database::Server, disk::Disk, on_each_server, relay::Relay};

use super::{drained, outbox_empty, serve};

#[tokio::test]
async fn while_the_hosts_disk_is_full_rows_are_refused_and_none_is_lost() {
    let Some(disk) = Disk::small(32 << 20) else { return };
    let folder = Appends::folder();
    folder.append("relay.toml", &format!("[store]\nfile = \"{}\"\n", disk.path("records.sqlite").display()));
    let relay = Relay::serve(folder).await;
    let append = async |relay: &Relay, first: usize| {
        relay.api_get(&format!("/t/append?to=log&first={first}&rows=1&bytes=900000")).await.1
    };
    for first in 0..3 {
        assert_eq!(append(&relay, first).await, "1");
    }
    disk.fill();
    for first in 3..6 {
        let answer = append(&relay, first).await;
        assert!(answer.contains("Full") && answer.contains("disk"), "{answer}");
    }
    assert_eq!(relay.metric("edge_relay_records_refused_total", &[("reason", "full")]).await, 3.0);
    relay.logged(&["ERROR", "records cannot be written", "full"]).await;
    assert_eq!(relay.api_get("/t/records?of=log&count=9").await.1, "2 1 0");
    disk.free();
    assert_eq!(append(&relay, 6).await, "1");
    disk.fill();
    // The host is killed on a full disk, and starts on it.
    let relay = Relay::serve(relay.end_with(Signal::KILL).await).await;
    assert_eq!(relay.api_get("/t/records?of=log&count=9").await.1, "6 2 1 0");
    assert!(append(&relay, 7).await.contains("Full"));
    disk.free();
    assert_eq!(append(&relay, 8).await, "1");
    assert_eq!(relay.api_get("/t/records?of=log&count=9").await.1, "8 6 2 1 0");
}

async fn while_mysqls_disk_is_full_rows_wait_and_then_go_on(server: Server) {
    let Some(disk) = Disk::small(server.size() + (10 << 20)) else { return };
    let Some(database) = server.start_on(&disk, &[]).await else { return };
    let relay = serve(Appends::folder_to_mysql(), &database.url()).await;
    let mut http = relay.http().await;
    let mut appended = 0;
    let mut append = async || {
        let answer = http.get(&format!("/t/append?to=log&first={appended}&rows=1000&bytes=200")).await;
        assert_eq!(answer.body, "1000");
        appended += 1000;
        appended
    };
    append().await;
    drained(&relay, &database, 1000).await;
    disk.fill();
    // MySQL's files have some room left.
    while relay.metric("edge_relay_records_drain_failures_total", &[]).await == 0.0 {
        assert!(append().await < 500_000, "{}", relay.log());
    }
    relay.logged(&["WARN", "records stay in the outbox", "full"]).await;
    let appended = append().await;
    disk.free();
    outbox_empty(&relay).await;
    drained(&relay, &database, appended).await;
    assert_eq!(relay.metric("edge_relay_records_dead_letters_total", &[]).await, 0.0);
}

on_each_server!(while_mysqls_disk_is_full_rows_wait_and_then_go_on,);
