//! Clocks that jump: the host's, and MySQL's.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rusqlite::{Connection, params};
use rustix::process::Signal;
use support::{
    clock,
    database::Server,
    on_each_server,
    partner::Partner,
    probe::Probe,
    process::{run, shown},
    relay::Relay,
    tenant::Folder,
};
use uuid::{NoContext, Timestamp, Uuid};

use super::{count, drained, folder, serve};

const HOUR: u64 = 60 * 60 * 1000;
const DAY: u64 = 24 * HOUR;
const KEEP: &str = "[records.\"old*\"]\nkeep = \"1s\"\n";

/// Milliseconds since 1970.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis().try_into().unwrap()
}

/// The SQLite file of a host that does not run.
fn file(folder: &Folder) -> Connection {
    Connection::open(folder.path("data/records.sqlite")).unwrap()
}

/// Has the host find its clock this much ahead of when it last ran.
fn ahead(folder: &Folder, millis: u64) {
    let changed = file(folder).execute("UPDATE clock SET seen = ?1", [now() - millis]).unwrap();
    assert_eq!(changed, 1);
}

async fn retention(relay: &Relay, what: &str) -> String {
    let config = relay.folder().config();
    let output = run(&["retention", "--config", config.to_str().unwrap(), what]).await;
    assert!(output.status.success(), "{}", shown(&output));
    String::from_utf8(output.stdout).unwrap()
}

async fn rows(relay: &Relay) -> String {
    relay.api_get("/t/records?of=old&count=9").await.1
}

#[tokio::test]
async fn a_clock_that_is_days_ahead_deletes_nothing_until_somebody_confirms_it() {
    let folder = Folder::new("").api("t", KEEP);
    let relay = Relay::serve(folder).await;
    assert_eq!(retention(&relay, "--status").await, "old records are deleted\n");
    assert_eq!(relay.api_get("/t/append?to=old&first=0&rows=3").await.1, "3");
    let folder = relay.end_with(Signal::TERM).await;
    ahead(&folder, 40 * DAY);
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let relay = Relay::serve(folder).await;
    relay.logged(&["WARN", "days_ahead=40", "old records are kept", "retention --confirm"]).await;
    assert!(retention(&relay, "--status").await.contains("1440 more minutes"));
    // Starting again does not help.
    let relay = Relay::serve(relay.end_with(Signal::KILL).await).await;
    assert_eq!(rows(&relay).await, "2 1 0");
    assert!(retention(&relay, "--status").await.contains("is in doubt"));
    assert_eq!(rows(&relay).await, "2 1 0");
    assert_eq!(retention(&relay, "--confirm").await, "old records are deleted\n");
    relay.logged(&["INFO", "old records deleted", "tenant.name=t", "collection=old*", "deleted=3"]).await;
    assert_eq!(rows(&relay).await, "");
}

#[tokio::test]
async fn a_host_that_was_off_for_less_than_a_day_deletes_at_once_also_where_nobody_writes() {
    let relay = Relay::serve(Folder::new("").api("t", KEEP)).await;
    assert_eq!(relay.api_get("/t/append?to=old&first=0&rows=3").await.1, "3");
    let folder = relay.end_with(Signal::TERM).await;
    ahead(&folder, 23 * HOUR);
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let relay = Relay::serve(folder).await;
    relay.logged(&["INFO", "old records deleted", "deleted=3"]).await;
    assert_eq!(rows(&relay).await, "");
}

/// Rows wait in the file for no statement that deletes more than some of them, and such statements have pauses.
#[tokio::test]
async fn old_rows_are_deleted_no_faster_than_twenty_thousand_a_second() {
    const ROWS: u64 = 30_000;
    let relay = Relay::serve(Folder::new("").api("t", &format!("{KEEP}\n[limits]\nrecords = \"1GiB\"\n"))).await;
    for first in (0..ROWS).step_by(10_000) {
        assert_eq!(relay.api_get(&format!("/t/append?to=old&first={first}&rows=10000")).await.1, "10000");
    }
    let folder = relay.end_with(Signal::TERM).await;
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let began = Instant::now();
    let relay = Relay::serve(folder).await;
    relay.logged(&["INFO", "old records deleted", &format!("deleted={ROWS}")]).await;
    assert!(began.elapsed() >= Duration::from_millis(1400), "{:?}", began.elapsed());
    assert_eq!(rows(&relay).await, "");
}

async fn rows_are_kept_while_mysqls_clock_does_not_agree(server: Server) {
    let Some(database) = server.start().await else { return };
    let mut partner = Partner::start().await;
    let folder = folder(&partner);
    folder.append("tenants/t/tenant.toml", KEEP);
    let relay = serve(folder, &database.url()).await;
    let mut probe = Probe::new(&relay, &mut partner, "t").await;
    assert_eq!(probe.ask("append-many old 5 10").await, "5");
    drained(&relay, &database, 5).await;
    drop(probe);
    let folder = relay.end_with(Signal::TERM).await;
    // What a connection asks is ten days behind.
    database.query("SET GLOBAL init_connect = 'SET timestamp = UNIX_TIMESTAMP() - 864000'").await;
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let relay = serve(folder, &database.url()).await;
    relay.logged(&["WARN", "could not be deleted", "s ahead of MySQL's"]).await;
    assert_eq!(count(&database).await, 5);
    let folder = relay.end_with(Signal::TERM).await;
    database.query("SET GLOBAL init_connect = ''").await;
    let relay = serve(folder, &database.url()).await;
    relay.logged(&["INFO", "old records deleted", "deleted=5"]).await;
    assert_eq!(count(&database).await, 0);
}

/// An id of this time.
fn id(millis: u64) -> Uuid {
    let nanos = u32::try_from(millis % 1000 * 1_000_000).unwrap();
    Uuid::new_v7(Timestamp::from_unix(NoContext, millis / 1000, nanos))
}

async fn ids_go_on_in_order_and_times_are_the_clocks_after_it_went_back(server: Server) {
    let Some(mut database) = server.start().await else { return };
    let mut partner = Partner::start().await;
    let url = database.url();
    let relay = serve(folder(&partner), &url).await;
    let mut probe = Probe::new(&relay, &mut partner, "t").await;
    probe.ask("append log first").await;
    drained(&relay, &database, 1).await;
    drop(probe);
    let folder = relay.end_with(Signal::TERM).await;
    // It was appended while the clock was seventy years ahead.
    let future = id(now() + 70 * 365 * DAY);
    file(&folder).execute("UPDATE clock SET last_id = ?1", params![future.as_bytes()]).unwrap();
    database.query(&format!("UPDATE records SET id = x'{}'", future.simple())).await;
    database.stop().await;
    let relay = serve(folder, &url).await;
    let mut probe = Probe::new(&relay, &mut partner, "t").await;
    for text in ["second", "third"] {
        probe.ask(&format!("append log {text}")).await;
    }
    let (from, to) = (now() - HOUR, now() + HOUR);
    database.restart().await;
    drained(&relay, &database, 3).await;
    let check = async |probe: &mut Probe, newest: &str, later: &str| {
        let range = async |probe: &mut Probe, from: &str, to: u64, limit: u32| {
            probe.ask(&format!("range log {from} {to} {limit}")).await
        };
        assert_eq!(probe.ask("records log 9").await, format!("{newest}third second first"));
        assert_eq!(range(probe, &from.to_string(), to, 9).await, format!("second third{later}"));
        assert_eq!(range(probe, &from.to_string(), to, 1).await, "second");
        assert_eq!(range(probe, &to.to_string(), u64::MAX, 9).await, "first");
        assert_eq!(range(probe, &future.to_string(), to, 9).await, format!("second third{later}"));
    };
    check(&mut probe, "", "").await;
    assert_eq!(probe.ask("walk log 2").await, "3 rows, in order");
    // One more waits in the outbox.
    database.read_only(true).await;
    probe.ask("append log fourth").await;
    check(&mut probe, "fourth ", " fourth").await;
    assert_eq!(probe.ask("walk log 2").await, "4 rows, in order");
}

async fn rows_after_a_clock_that_was_decades_ahead_for_a_moment_have_their_own_times(server: Server) {
    let Some(database) = server.start().await else { return };
    let mut partner = Partner::start().await;
    let folder = folder(&partner);
    let (Some(clock), url) = (clock::variables(&folder), database.url()) else { return };
    let variables: Vec<_> = clock.iter().map(|(name, value)| (*name, &**value)).chain([("STORE_URL", &*url)]).collect();
    let relay = Relay::serve_with(folder, &variables).await;
    let mut probe = Probe::new(&relay, &mut partner, "t").await;
    for (text, days) in [("before", 0), ("ahead", 70 * 365), ("after", 0)] {
        clock::set(relay.folder(), days);
        assert_eq!(probe.ask(&format!("append log {text}")).await.len(), 36);
    }
    let (from, to) = (now() - HOUR, now() + HOUR);
    for _ in 0..2 {
        assert_eq!(probe.ask("records log 9").await, "after ahead before");
        assert_eq!(probe.ask(&format!("range log {from} {to} 9")).await, "before after");
        assert_eq!(probe.ask(&format!("range log {to} {} 9", u64::MAX)).await, "ahead");
        drained(&relay, &database, 3).await;
    }
}

on_each_server!(
    rows_after_a_clock_that_was_decades_ahead_for_a_moment_have_their_own_times,
    rows_are_kept_while_mysqls_clock_does_not_agree,
    ids_go_on_in_order_and_times_are_the_clocks_after_it_went_back,
);
