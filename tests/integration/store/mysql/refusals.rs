//! Rows that MySQL refuses, and rows that wait behind them.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use support::{
    database::{Database, Server},
    http::Http,
    on_each_server,
    relay::Relay,
    tenant::Folder,
    until,
};

use super::{count, drained, outbox_empty, serve};

/// Two tenants with an API each that appends.
fn two() -> Folder {
    let limits = "[limits]\nrecords = \"1GiB\"\napi-call = \"20s\"\n";
    let folder = Folder::new("").api("one", limits).api("other", limits);
    folder.append("relay.toml", "[store]\nurl = { env = \"STORE_URL\" }\n");
    folder
}

async fn append(relay: &Relay, tenant: &str, first: usize, rows: usize) {
    let path = format!("/{tenant}/append?to=log&first={first}&rows={rows}");
    assert_eq!(relay.api_get(&path).await, (200, rows.to_string()));
}

async fn with_tables(database: &Database) -> Relay {
    let relay = serve(two(), &database.url()).await;
    append(&relay, "one", 0, 1).await;
    drained(&relay, database, 1).await;
    relay
}

async fn rows_behind_one_that_is_refused_for_any_reason_arrive(server: Server) {
    let Some(database) = server.start().await else { return };
    let relay = with_tables(&database).await;
    let signal = "CREATE TRIGGER refuses BEFORE INSERT ON records FOR EACH ROW IF NEW.data = '7' THEN \
        SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'seven is refused'; END IF";
    // A row of one tenant, and what lets it in again.
    let mut dead = 0;
    for (wrong, right, error) in [
        (vec![signal], vec!["DROP TRIGGER refuses"], "seven is refused"),
        (
            vec!["ALTER TABLE records PARTITION BY LIST COLUMNS (tenant) (PARTITION o VALUES IN ('other'))"],
            vec!["ALTER TABLE records REMOVE PARTITIONING"],
            "partition",
        ),
        (
            vec!["ALTER TABLE records ADD COLUMN wanted INT NOT NULL"],
            vec!["ALTER TABLE records DROP COLUMN wanted"],
            "wanted",
        ),
    ] {
        database.query("DELETE FROM records").await;
        for sql in wrong {
            database.query(sql).await;
        }
        append(&relay, "one", 0, 20).await;
        append(&relay, "other", 0, 20).await;
        outbox_empty(&relay).await;
        let there = count(&database).await;
        let refused = match error {
            "seven is refused" => 2,
            "partition" => 20,
            _ => 40,
        };
        assert_eq!(there, 40 - refused, "{error}");
        dead += refused;
        relay.metric_is("edge_relay_records_dead_letters_total", &[], dead as f64).await;
        for sql in right {
            database.query(sql).await;
        }
        append(&relay, "one", 100, 5).await;
        drained(&relay, &database, there + 5).await;
    }
    relay.logged(&["ERROR", "dead letters", "seven is refused"]).await;
}

/// One tenant's rows are all refused. The other's arrive as if it were alone, and the log stays short.
async fn a_tenant_whose_rows_are_all_refused_is_not_felt_by_another(server: Server) {
    const REFUSED: usize = 4000;
    let Some(mut database) = server.start().await else { return };
    let relay = with_tables(&database).await;
    database
        .query(
            "CREATE TRIGGER refuses BEFORE INSERT ON records FOR EACH ROW IF NEW.tenant = 'one' THEN \
             SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'not this one'; END IF",
        )
        .await;
    database.stop().await;
    append(&relay, "one", 0, REFUSED).await;
    append(&relay, "other", 0, 10).await;
    database.restart().await;
    let sql = "SELECT count(*) FROM records WHERE tenant = 'other'";
    let arrived = async |rows: usize| {
        until(format!("{rows} rows of the other"), async || {
            let there = database.query(sql).await.concat().concat();
            if there == rows.to_string() { Ok(()) } else { Err(there) }
        })
        .await;
    };
    arrived(10).await;
    let waiting = async || relay.metric("edge_relay_outbox_rows", &[("tenant", "one")]).await;
    assert!(waiting().await > 0.0, "the other did not wait for all of them");
    let mut longest = Duration::ZERO;
    for nth in 1..=5 {
        let began = Instant::now();
        append(&relay, "other", nth * 10, 10).await;
        arrived(10 + nth * 10).await;
        longest = longest.max(began.elapsed());
    }
    assert!(longest < Duration::from_secs(5), "rows of the other took {longest:?}");
    relay.metric_is("edge_relay_records_dead_letters_total", &[], REFUSED as f64).await;
    assert_eq!(waiting().await, 0.0);
    assert!(relay.metric("edge_relay_outbox_bytes", &[("tenant", "one")]).await > REFUSED as f64, "they still count");
    // All of them are told of in the end.
    until("the number of refused rows in the log", async || {
        let log = relay.log();
        let lines: Vec<_> = log.lines().filter(|line| line.contains("dead letters")).collect();
        assert!(lines.len() <= 10, "{} lines", lines.len());
        let refused = |line: &&str| {
            line.split_once(" refused=").and_then(|(_, rest)| rest.split(' ').next()?.parse::<usize>().ok())
        };
        let told: usize = lines.iter().filter_map(refused).sum();
        if told == REFUSED { Ok(()) } else { Err(format!("{told}: {lines:?}")) }
    })
    .await;
    // Once it is mended, its rows go the usual way.
    database.query("DROP TRIGGER refuses").await;
    append(&relay, "one", 0, 10).await;
    outbox_empty(&relay).await;
    assert_eq!(count(&database).await, 1 + 60 + 10);
}

async fn a_packet_that_was_made_larger_saves_a_row(server: Server) {
    let Some(database) = server.start_with(&["--max-allowed-packet=1M"]).await else { return };
    let relay = with_tables(&database).await;
    // The connection that drains knows the limit of before.
    database.query("SET GLOBAL max_allowed_packet = 67108864").await;
    assert_eq!(relay.api_get("/one/append?to=log&first=1&rows=1&bytes=1048576").await.1, "1");
    drained(&relay, &database, 2).await;
    assert_eq!(relay.metric("edge_relay_records_dead_letters_total", &[]).await, 0.0);
}

async fn a_transaction_that_is_too_large_for_the_binary_log_becomes_smaller_ones(server: Server) {
    let binary_log = ["--log-bin=binlog", "--server-id=1", "--binlog-format=ROW"];
    let sizes = ["--max-binlog-cache-size=262144", "--binlog-cache-size=32768"];
    let Some(mut database) = server.start_with(&[&binary_log[..], &sizes].concat()).await else { return };
    let relay = with_tables(&database).await;
    assert_eq!(database.query("SELECT @@log_bin").await, [["1"]]);
    let large = "INSERT INTO records (tenant, collection, id, data) SELECT 'x', 'x', UNHEX(LPAD(HEX(n), 32, '0')), REPEAT('x', 9999) \
        FROM (WITH RECURSIVE many (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM many WHERE n < 100) SELECT n FROM many) AS many";
    let error = database.query_as_user(large).await.unwrap_err().to_string();
    assert!(error.contains("1197"), "{error}");
    database.stop().await;
    for first in 0..4 {
        let path = format!("/one/append?to=log&first={}&rows=100&bytes=10000", first * 100);
        assert_eq!(relay.api_get(&path).await.1, "100");
    }
    database.restart().await;
    drained(&relay, &database, 401).await;
    assert_eq!(relay.metric("edge_relay_records_dead_letters_total", &[]).await, 0.0);
}

/// What an appender is told, that nothing acknowledged is dropped, and that it goes on.
async fn an_outage_that_is_longer_than_the_outbox_is_large(server: Server) {
    let Some(mut database) = server.start().await else { return };
    let folder = two();
    folder.append("relay.toml", "size = \"4MiB\"\n");
    let relay = serve(folder, &database.url()).await;
    append(&relay, "one", 0, 1).await;
    drained(&relay, &database, 1).await;
    database.kill().await;
    let mut http: Http = relay.http().await;
    let (mut kept, mut said) = (1, String::new());
    while said.is_empty() {
        let answer = http.get("/one/append?to=log&first=1&rows=100&bytes=1000").await;
        let (count, error) = answer.body.split_once(' ').unwrap_or((&answer.body, ""));
        kept += count.parse::<usize>().unwrap();
        said = error.to_owned();
    }
    assert!(said.contains("Full") && said.contains("the store, or its disk, is full"), "{said}");
    relay.metric_reaches("edge_relay_outbox_oldest_seconds", &[], 0.001).await;
    let rows = relay.metric("edge_relay_outbox_rows", &[("tenant", "one")]).await;
    assert_eq!(rows, (kept - 1) as f64);
    assert!(relay.metric("edge_relay_outbox_bytes", &[("tenant", "one")]).await >= rows * 1000.0);
    assert!(relay.metric("edge_relay_records_refused_total", &[("reason", "full")]).await > 0.0);
    // Not even a restart on a full outbox loses a row.
    let relay = serve(relay.end_with(Signal::KILL).await, &database.url()).await;
    database.restart().await;
    drained(&relay, &database, kept).await;
    append(&relay, "one", 0, 10).await;
    drained(&relay, &database, kept + 10).await;
    relay.metric_is("edge_relay_outbox_oldest_seconds", &[], 0.0).await;
}

/// A copy of the outbox is made while the host appends to it, and another host starts with it.
async fn an_outbox_is_copied_while_it_is_in_use_and_restored(server: Server) {
    let Some(mut database) = server.start().await else { return };
    let relay = with_tables(&database).await;
    database.stop().await;
    append(&relay, "one", 1, 500).await;
    let copied = relay.folder().path("copy.sqlite");
    let appending = async {
        for nth in 0..20 {
            append(&relay, "other", nth * 10, 10).await;
        }
    };
    let (from, to) = (relay.folder().path("data/records.sqlite"), copied.display().to_string());
    let copying = tokio::task::spawn_blocking(move || {
        rusqlite::Connection::open(from).unwrap().execute("VACUUM INTO ?1", [to]).unwrap();
    });
    let ((), copying) = tokio::join!(appending, copying);
    copying.unwrap();
    // The disk with the outbox is lost.
    let copy = std::fs::read(copied).unwrap();
    let _lost = relay.end_with(Signal::KILL).await;
    let folder = two();
    folder.write("data/records.sqlite", copy);
    database.restart().await;
    let relay = serve(folder, &database.url()).await;
    outbox_empty(&relay).await;
    let rows = count(&database).await;
    assert!((501..=701).contains(&rows), "{rows}");
    append(&relay, "other", 0, 1).await;
    drained(&relay, &database, rows + 1).await;
}

/// What MySQL has refused is in no answer, and comes back when an operator puts it back.
async fn dead_letters_are_in_no_answer_until_they_are_put_back(server: Server) {
    let Some(database) = server.start().await else { return };
    let relay = with_tables(&database).await;
    database.query("ALTER TABLE records ADD CONSTRAINT no_two CHECK (data <> '2')").await;
    append(&relay, "one", 1, 3).await;
    drained(&relay, &database, 3).await;
    relay.metric_is("edge_relay_records_dead_letters_total", &[], 1.0).await;
    assert_eq!(relay.api_get("/one/records?of=log&count=9").await.1, "3 1 0");
    let folder = relay.end_with(Signal::TERM).await;
    database.query("ALTER TABLE records DROP CONSTRAINT no_two").await;
    let file = rusqlite::Connection::open(folder.path("data/records.sqlite")).unwrap();
    file.execute_batch(
        "BEGIN; INSERT INTO records (id, tenant, collection, data, at) SELECT id, tenant, collection, data, at FROM \
         dead_letters; DELETE FROM dead_letters; COMMIT",
    )
    .unwrap();
    drop(file);
    let relay = serve(folder, &database.url()).await;
    drained(&relay, &database, 4).await;
    assert_eq!(relay.api_get("/one/records?of=log&count=9").await.1, "3 2 1 0");
}

on_each_server!(
    rows_behind_one_that_is_refused_for_any_reason_arrive,
    a_tenant_whose_rows_are_all_refused_is_not_felt_by_another,
    a_packet_that_was_made_larger_saves_a_row,
    a_transaction_that_is_too_large_for_the_binary_log_becomes_smaller_ones,
    an_outage_that_is_longer_than_the_outbox_is_large,
    an_outbox_is_copied_while_it_is_in_use_and_restored,
    dead_letters_are_in_no_answer_until_they_are_put_back,
);
