//! Records on their way to MySQL: a real MariaDB and a real MySQL, and the faults of them and of the connection.

mod accounts;
mod clocks;
mod disk;
mod freezes;
mod interleavings;
mod load;
mod refusals;
mod servers;
mod tls;
mod trouble;
mod walks;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use rustix::process::Signal;
use support::{
    chaos::Chaos,
    database::{Database, Server},
    guests, on_each_server,
    partner::Partner,
    probe::Probe,
    relay::Relay,
    tenant::Folder,
    until,
};

/// A tenant whose filter takes commands, and whose records go to MySQL.
fn folder(partner: &Partner) -> Folder {
    let folder = Folder::new("").filtered("t", &partner.url(), guests::probe(), "");
    folder.append("relay.toml", "[store]\nurl = { env = \"STORE_URL\" }\n");
    folder
}

async fn serve(folder: Folder, url: &str) -> Relay {
    Relay::serve_with(folder, &[("STORE_URL", url)]).await
}

async fn count(database: &Database) -> usize {
    database.query("SELECT count(*) FROM records").await[0][0].parse().unwrap()
}

/// Waits until the outbox is empty.
async fn outbox_empty(relay: &Relay) {
    until("an empty outbox", async || {
        let waiting = relay.metric("edge_relay_records_waiting", &[]).await;
        if waiting == 0.0 { Ok(()) } else { Err(format!("{waiting} rows wait:\n{}", relay.log())) }
    })
    .await;
}

/// Waits until the outbox is empty, and checks that MySQL has this many rows.
async fn drained(relay: &Relay, database: &Database, rows: usize) {
    outbox_empty(relay).await;
    assert_eq!(count(database).await, rows);
}

/// Appends rows, a hundred at a time, until told to stop. Returns how many were acknowledged.
async fn append_until(probe: &mut Probe, stop: &AtomicBool) -> usize {
    let mut acknowledged = 0;
    while !stop.load(Ordering::Relaxed) {
        assert_eq!(probe.ask("append-many log 100 200").await, "100");
        acknowledged += 100;
    }
    acknowledged
}

async fn rows_go_to_mysql_and_are_read_from_both(server: Server) {
    let Some(database) = server.start().await else { return };
    let mut partner = Partner::start().await;
    let relay = serve(folder(&partner), &database.url()).await;
    let mut probe = Probe::new(&relay, &mut partner, "t").await;
    for text in ["one", "two", "ř\u{1F600}"] {
        assert_eq!(probe.ask(&format!("append log {text}")).await.len(), 36);
    }
    assert_eq!(probe.ask("records log 9").await, "ř\u{1F600} two one");
    drained(&relay, &database, 3).await;
    assert_eq!(probe.ask("records log 9").await, "ř\u{1F600} two one");
    assert_eq!(probe.ask("records log 2").await, "ř\u{1F600} two");
    assert_eq!(probe.ask("range log 0 9999999999999 2").await, "one two");
    let rows = database.query("SELECT CAST(tenant AS CHAR), CAST(collection AS CHAR), LENGTH(id) FROM records").await;
    assert!(rows.iter().all(|row| row[..] == ["t", "log", "16"]), "{rows:?}");
    assert_eq!(relay.metric_reaches("edge_relay_records_drained_total", &[], 3.0).await, 3.0);
    assert_eq!(relay.ready().await["records"]["waiting"], 0);
}

async fn rows_are_committed_whatever_the_servers_default(server: Server) {
    let Some(mut database) = server.start_with(&["--autocommit=0"]).await else { return };
    let mut partner = Partner::start().await;
    let relay = serve(folder(&partner), &database.url()).await;
    let mut probe = Probe::new(&relay, &mut partner, "t").await;
    assert_eq!(probe.ask("append-many log 100 10").await, "100");
    drained(&relay, &database, 100).await;
    database.kill().await;
    database.restart().await;
    assert_eq!(count(&database).await, 100);
}

async fn appends_go_on_while_mysql_is_away_and_all_arrive_when_it_is_back(server: Server) {
    let Some(mut database) = server.start().await else { return };
    let mut partner = Partner::start().await;
    let url = database.url();
    database.kill().await;
    // MySQL is away at the start too.
    let relay = serve(folder(&partner), &url).await;
    let mut probe = Probe::new(&relay, &mut partner, "t").await;
    assert_eq!(probe.ask("append-many log 5000 200").await, "5000");
    relay.metric_reaches("edge_relay_records_drain_failures_total", &[], 2.0).await;
    assert_eq!(relay.ready().await["records"]["waiting"], 5000);
    relay.metric_reaches("edge_relay_outbox_oldest_seconds", &[], 0.001).await;
    assert!(probe.ask("records log 1").await.contains("Unavailable"));
    database.restart().await;
    drained(&relay, &database, 5000).await;
    database.read_only(true).await;
    assert_eq!(probe.ask("append-many log 500 200").await, "500");
    let failures = relay.metric("edge_relay_records_drain_failures_total", &[]).await;
    relay.metric_reaches("edge_relay_records_drain_failures_total", &[], failures + 1.0).await;
    database.read_only(false).await;
    drained(&relay, &database, 5500).await;
}

async fn whatever_happens_on_the_way_each_row_arrives_once(server: Server) {
    let Some(database) = server.start().await else { return };
    let mut partner = Partner::start().await;
    let mut chaos = Chaos::start(database.address).await;
    chaos.latency(Duration::from_millis(5));
    let relay = serve(folder(&partner), &database.url_at(chaos.address)).await;
    let mut probe = Probe::new(&relay, &mut partner, "t").await;
    let stop = Arc::new(AtomicBool::new(false));
    let (stopped, appending) = (Arc::clone(&stop), async { append_until(&mut probe, &stop).await });
    let trouble = async {
        for round in 1..=6 {
            let drained = relay.metric("edge_relay_records_drained_total", &[]).await;
            relay.metric_reaches("edge_relay_records_drained_total", &[], drained + 1.0).await;
            let failures = relay.metric("edge_relay_records_drain_failures_total", &[]).await;
            if round % 2 == 0 {
                chaos.refuse().await;
            }
            chaos.cut();
            relay.metric_reaches("edge_relay_records_drain_failures_total", &[], failures + 1.0).await;
            if round % 2 == 0 {
                chaos.accept().await;
            }
        }
        stopped.store(true, Ordering::Relaxed);
    };
    let (acknowledged, ()) = tokio::join!(appending, trouble);
    drained(&relay, &database, acknowledged).await;
    let distinct = database.query("SELECT count(DISTINCT id) FROM records").await;
    assert_eq!(distinct[0][0], acknowledged.to_string());
}

async fn a_host_killed_while_it_drains_loses_nothing_and_repeats_nothing(server: Server) {
    let Some(database) = server.start().await else { return };
    let mut partner = Partner::start().await;
    let mut folder = folder(&partner);
    let mut acknowledged = 0;
    for _ in 0..3 {
        let relay = serve(folder, &database.url()).await;
        let mut probe = Probe::new(&relay, &mut partner, "t").await;
        for _ in 0..20 {
            assert_eq!(probe.ask("append-many log 500 200").await, "500");
            acknowledged += 500;
        }
        folder = relay.end_with(Signal::KILL).await;
    }
    let relay = serve(folder, &database.url()).await;
    outbox_empty(&relay).await;
    // The rows of a filter's last call may be on disk without an acknowledgement. So there are never fewer rows than
    // acknowledged ones, and none is there twice.
    let rows = count(&database).await;
    assert!((acknowledged..=acknowledged + 500).contains(&rows), "{rows} rows, {acknowledged} acknowledged");
}

async fn a_row_that_mysql_refuses_is_put_aside_and_holds_up_nobody(server: Server) {
    let Some(database) = server.start().await else { return };
    let mut partner = Partner::start().await;
    let relay = serve(folder(&partner), &database.url()).await;
    let mut probe = Probe::new(&relay, &mut partner, "t").await;
    probe.ask("append log first").await;
    drained(&relay, &database, 1).await;
    database.query("ALTER TABLE records ADD CONSTRAINT no_poison CHECK (data <> 'poison')").await;
    assert_eq!(probe.ask("append-many log 700 10").await, "700");
    probe.ask("append log poison").await;
    assert_eq!(probe.ask("append-many log 700 10").await, "700");
    drained(&relay, &database, 1401).await;
    assert_eq!(relay.metric_reaches("edge_relay_records_dead_letters_total", &[], 1.0).await, 1.0);
    relay.logged(&["ERROR", "dead letters", "tenant.name=t", "no_poison"]).await;
}

async fn dead_letters_leave_a_full_outbox_and_stay_their_tenants_bytes(server: Server) {
    let Some(mut database) = server.start_with(&["--max-allowed-packet=1M"]).await else { return };
    let mut partner = Partner::start().await;
    let folder = folder(&partner);
    folder.append("relay.toml", "size = \"6MiB\"\n");
    folder.append("tenants/t/tenant.toml", "[limits]\nrecords = \"5MiB\"\n");
    database.stop().await;
    let relay = serve(folder, &database.url()).await;
    let mut probe = Probe::new(&relay, &mut partner, "t").await;
    // These rows have a mebibyte each, and MySQL takes no statement with one of them.
    assert_eq!(probe.ask("append-many log 4 1048576").await, "4");
    assert_eq!(probe.ask("append-many log 2 400000").await, "2");
    relay.metric_is("edge_relay_records_waiting", &[], 6.0).await;
    database.restart().await;
    drained(&relay, &database, 2).await;
    // The rows leave the outbox before they are counted.
    relay.metric_is("edge_relay_records_dead_letters_total", &[], 4.0).await;
    // The rows still count after a restart.
    drop(probe);
    let relay = serve(relay.end_with(Signal::TERM).await, &database.url()).await;
    let mut probe = Probe::new(&relay, &mut partner, "t").await;
    assert_eq!(probe.ask("append-many log 2 1000000").await, "2");
    relay.logged(&["ERROR", "tenant.name=t", "not written", "as many bytes as they may"]).await;
}

async fn names_that_would_mean_something_in_sql_are_names(server: Server) {
    let Some(database) = server.start().await else { return };
    let (mut one, mut other) = (Partner::start().await, Partner::start().await);
    let folder = folder(&one).filtered("u", &other.url(), guests::probe(), "");
    let relay = serve(folder, &database.url()).await;
    let mut by_one = Probe::new(&relay, &mut one, "t").await;
    let mut by_other = Probe::new(&relay, &mut other, "u").await;
    by_other.ask("append log yours").await;
    let names = [
        "log'--",
        "log\"",
        "log%",
        "l_g",
        "LOG",
        "log\\",
        "log\\'",
        "log/**/",
        "'OR'1'='1",
        "`log`",
        "l\u{f6}g",
        "?",
        "log;",
    ];
    for name in names {
        assert_eq!(by_one.ask(&format!("append {name} {name}")).await.len(), 36);
    }
    drained(&relay, &database, names.len() + 1).await;
    for name in names {
        assert_eq!(by_one.ask(&format!("records {name} 9")).await, name);
        assert_eq!(by_one.ask(&format!("range {name} 0 9999999999999 9")).await, name);
        assert!(by_one.ask(&format!("range {name} 0'OR'1 9999999999999 9")).await.contains("not a record's id"));
        assert_eq!(by_other.ask(&format!("records {name} 9")).await, "");
    }
    // These names differ only in ways that a collation ignores, such as spaces at the end.
    assert_eq!(by_one.ask("records Log 9").await, "");
    assert_eq!(by_other.ask("records log 9").await, "yours");
    assert_eq!(by_one.ask("records log 9").await, "");
}

async fn old_rows_are_deleted_in_mysql_too(server: Server) {
    let Some(database) = server.start().await else { return };
    let mut partner = Partner::start().await;
    let folder = folder(&partner);
    folder.append("tenants/t/tenant.toml", "[records.\"old*\"]\nkeep = \"1s\"\n");
    let relay = serve(folder, &database.url()).await;
    let mut probe = Probe::new(&relay, &mut partner, "t").await;
    // More rows than are deleted at once.
    assert_eq!(probe.ask("append-many old 2500 10").await, "2500");
    assert_eq!(probe.ask("append kept row").await.len(), 36);
    drained(&relay, &database, 2501).await;
    drop(probe);
    let folder = relay.end_with(Signal::TERM).await;
    // Old rows are looked for at the start, and then every minute.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let relay = serve(folder, &database.url()).await;
    until("old rows gone", async || {
        let rows = count(&database).await;
        if rows == 1 { Ok(()) } else { Err(format!("{rows} rows:\n{}", relay.log())) }
    })
    .await;
    assert_eq!(database.query("SELECT CAST(collection AS CHAR) FROM records").await, [["kept"]]);
}

async fn two_hosts_that_start_at_once_migrate_one_database(server: Server) {
    let Some(database) = server.start().await else { return };
    let (mut one, mut other) = (Partner::start().await, Partner::start().await);
    let url = database.url();
    let (first, second) = tokio::join!(serve(folder(&one), &url), serve(folder(&other), &url));
    let mut by_first = Probe::new(&first, &mut one, "t").await;
    let mut by_second = Probe::new(&second, &mut other, "t").await;
    assert_eq!(by_first.ask("append-many log 10 10").await, "10");
    assert_eq!(by_second.ask("append-many log 10 10").await, "10");
    for relay in [&first, &second] {
        outbox_empty(relay).await;
    }
    assert_eq!(count(&database).await, 20);
    assert_eq!(database.query("SELECT count(*) FROM refinery_schema_history").await[0][0], "4");
}

async fn a_database_newer_than_the_program_is_refused(server: Server) {
    let Some(database) = server.start().await else { return };
    let mut partner = Partner::start().await;
    let folder = folder(&partner);
    let config = folder.config();
    let relay = serve(folder, &database.url()).await;
    let mut probe = Probe::new(&relay, &mut partner, "t").await;
    probe.ask("append log row").await;
    drained(&relay, &database, 1).await;
    let _folder = relay.end_with(Signal::TERM).await;
    let migrate = async |what: &[&str]| {
        let fixed = ["migrate", "--config", config.to_str().unwrap()];
        let mut command = support::process::command(&[&fixed[..], what].concat());
        command.env("STORE_URL", database.url());
        tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
    };
    let said = String::from_utf8(migrate(&["--status"]).await.stdout).unwrap();
    assert_eq!(said.matches("applied").count(), 7, "{said}");
    database.query("INSERT INTO refinery_schema_history VALUES (99, 'later', '2030-01-01T00:00:00Z', '1')").await;
    let mut command = support::process::command(&["serve", "--config", config.to_str().unwrap()]);
    command.env("STORE_URL", database.url());
    let refused = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(!refused.status.success() && said.contains("version 99"), "{said}");
    database.query("DELETE FROM refinery_schema_history WHERE version = 99").await;
    assert!(!migrate(&["--down", "1"]).await.status.success(), "it must be told which of the two databases");
    assert!(migrate(&["--down", "4", "--database", "mysql"]).await.status.success());
    assert_eq!(database.query("SHOW TABLES LIKE 'records'").await.len(), 0);
    assert!(migrate(&["--up"]).await.status.success());
    assert_eq!(count(&database).await, 0);
}

on_each_server!(
    rows_go_to_mysql_and_are_read_from_both,
    rows_are_committed_whatever_the_servers_default,
    appends_go_on_while_mysql_is_away_and_all_arrive_when_it_is_back,
    whatever_happens_on_the_way_each_row_arrives_once,
    a_host_killed_while_it_drains_loses_nothing_and_repeats_nothing,
    a_row_that_mysql_refuses_is_put_aside_and_holds_up_nobody,
    dead_letters_leave_a_full_outbox_and_stay_their_tenants_bytes,
    names_that_would_mean_something_in_sql_are_names,
    old_rows_are_deleted_in_mysql_too,
    two_hosts_that_start_at_once_migrate_one_database,
    a_database_newer_than_the_program_is_refused,
);
