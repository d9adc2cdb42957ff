//! What the people who run MySQL do to it.

use std::time::Duration;

use support::{chaos::Chaos, database::Server, on_each_server, partner::Partner, probe::Probe};

use super::{count, drained, folder, outbox_empty, serve};

/// Bytes of a row of which eight fill a page.
const LARGE: usize = 1_000_000;

async fn a_walk_sees_rows_of_both_places_although_each_is_cut(server: Server) {
    let Some(database) = server.start().await else { return };
    let mut partner = Partner::start().await;
    let folder = folder(&partner);
    // A walk takes a while.
    folder.append("tenants/t/tenant.toml", "[limits]\nfilter-call = \"60s\"\n");
    let relay = serve(folder, &database.url()).await;
    let mut probe = Probe::new(&relay, &mut partner, "t").await;
    for _ in 0..3 {
        assert_eq!(probe.ask(&format!("append-many log 10 {LARGE}")).await, "10");
    }
    drained(&relay, &database, 30).await;
    database.read_only(true).await;
    probe.ask("append log newest").await;
    assert_eq!(probe.ask("walk log 1000").await, "31 rows, in order");
    assert_eq!(probe.ask("walk log 7").await, "31 rows, in order");
    // The newest are those of the outbox, and then of MySQL as many as fit.
    let newest = probe.ask("records log 1000").await;
    assert_eq!(newest.split(' ').map(str::len).collect::<Vec<_>>(), [&[6][..], &[LARGE; 8]].concat());
    // Rows drain while a walk goes on.
    for _ in 0..3 {
        assert_eq!(probe.ask("append-many log 100 20000").await, "100");
    }
    database.read_only(false).await;
    assert_eq!(probe.ask("walk log 7").await, "331 rows, in order");
    drained(&relay, &database, 331).await;
}

async fn a_unique_key_that_a_dba_added_loses_no_row_in_silence(server: Server) {
    let Some(database) = server.start().await else { return };
    let mut partner = Partner::start().await;
    let relay = serve(folder(&partner), &database.url()).await;
    let mut probe = Probe::new(&relay, &mut partner, "t").await;
    probe.ask("append log first").await;
    drained(&relay, &database, 1).await;
    database.query("ALTER TABLE records ADD UNIQUE KEY by_data (collection, data(100))").await;
    for text in ["same", "same", "other", "first"] {
        probe.ask(&format!("append log {text}")).await;
    }
    outbox_empty(&relay).await;
    let texts = database.query("SELECT CAST(data AS CHAR) FROM records ORDER BY id").await;
    assert_eq!(texts.concat(), ["first", "same", "other"]);
    relay.metric_is("edge_relay_records_dead_letters_total", &[], 2.0).await;
    relay.metric_is("edge_relay_records_drained_total", &[], 3.0).await;
    assert!(relay.log().contains("by_data"), "the log names the key");
}

async fn rows_follow_the_primary_to_another_server(server: Server) {
    let Some((old, new)) = server.start().await.zip(server.start().await) else { return };
    let mut partner = Partner::start().await;
    let mut before = Chaos::start(old.address).await;
    let relay = serve(folder(&partner), &old.url_at(before.address)).await;
    let mut probe = Probe::new(&relay, &mut partner, "t").await;
    probe.ask("append log first").await;
    drained(&relay, &old, 1).await;
    for _ in 0..3 {
        assert_eq!(probe.ask("records log 9").await, "first");
    }
    // The address is another server's from now on. The old one stays up, with its connections.
    before.refuse().await;
    let _after = Chaos::start_at(before.address, new.address).await;
    old.read_only(true).await;
    probe.ask("append log second").await;
    drained(&relay, &new, 1).await;
    assert_eq!(count(&old).await, 1);
    assert!(before.open() <= 1, "reads go to the new server, too");
    assert_eq!(probe.ask("records log 9").await, "second");
}

async fn a_connection_is_followed_by_another_when_it_is_old(server: Server) {
    let Some(database) = server.start().await else { return };
    let mut partner = Partner::start().await;
    let relay = serve(folder(&partner), &format!("{}?abs_conn_ttl=1", database.url())).await;
    let mut probe = Probe::new(&relay, &mut partner, "t").await;
    let mut before = Vec::new();
    for nth in 1..=3 {
        probe.ask("append log row").await;
        drained(&relay, &database, nth).await;
        assert_eq!(probe.ask("records log 9").await.split(' ').count(), nth);
        let now = database.query("SELECT id FROM information_schema.processlist WHERE user = 'relay'").await.concat();
        assert!(!now.is_empty() && now.iter().all(|id| !before.contains(id)), "{before:?}, then {now:?}");
        before = now;
        tokio::time::sleep(Duration::from_millis(1100)).await;
    }
    assert!(!relay.log().contains("WARN"), "{}", relay.log());
}

on_each_server!(
    a_connection_is_followed_by_another_when_it_is_old,
    a_walk_sees_rows_of_both_places_although_each_is_cut,
    a_unique_key_that_a_dba_added_loses_no_row_in_silence,
    rows_follow_the_primary_to_another_server,
);
