//! Records in the host's own file, as components and operators see them. The tests of MySQL are in `mysql`.

use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use support::{guests, partner::Partner, probe::Probe, relay::Relay, tenant::Folder, until};

/// A relay with one tenant whose filter takes commands.
async fn serve(partner: &Partner, more: &str) -> Relay {
    Relay::serve(Folder::new("").filtered("t", &partner.url(), guests::probe(), more)).await
}

async fn texts_are(probe: &mut Probe, command: &str, wanted: &str) {
    assert_eq!(probe.ask(command).await, wanted, "{command}");
}

#[tokio::test]
async fn rows_are_read_back_in_their_order() {
    let mut partner = Partner::start().await;
    let relay = serve(&partner, "").await;
    let mut probe = Probe::new(&relay, &mut partner, "t").await;
    let mut ids = Vec::new();
    for text in ["one", "two", "three"] {
        ids.push(probe.ask(&format!("append log {text}")).await);
    }
    assert!(ids.is_sorted() && ids.iter().all(|id| id.len() == 36), "{ids:?}");
    texts_are(&mut probe, "records log 2", "three two").await;
    texts_are(&mut probe, "records log 9", "three two one").await;
    texts_are(&mut probe, "records other 9", "").await;
    let ever = "9999999999999";
    texts_are(&mut probe, &format!("range log 0 {ever} 9"), "one two three").await;
    texts_are(&mut probe, &format!("range log {} {ever} 9", ids[0]), "two three").await;
    texts_are(&mut probe, &format!("range log {} {ever} 1", ids[0]), "two").await;
    texts_are(&mut probe, "range log 0 1 9", "").await;
    texts_are(&mut probe, &format!("range log {ever} {ever} 9"), "").await;
    // A filter's rows are written when its call has returned. The filter sees them earlier.
    texts_are(&mut probe, "append-and-read log four 2", "four three").await;
    texts_are(&mut probe, "append-and-read other five 9", "five").await;
    texts_are(&mut probe, "records log 9", "four three two one").await;
    assert!(probe.ask(&format!("range log nonsense {ever} 9")).await.contains("not a record's id"));
    assert_eq!(relay.metric("edge_relay_records_appended_total", &[]).await, 5.0);
    assert_eq!(relay.metric("edge_relay_records_waiting", &[]).await, 5.0);
    assert!(relay.metric("edge_relay_records_commit_seconds_count", &[]).await >= 1.0);
}

#[tokio::test]
async fn what_is_no_row_or_collection_is_refused_with_a_reason() {
    let mut partner = Partner::start().await;
    // Some of these calls pass 17 MiB, which takes long on a busy machine.
    let relay = serve(&partner, "[limits]\nfilter-call = \"10s\"\n").await;
    let mut probe = Probe::new(&relay, &mut partner, "t").await;
    let long = "x".repeat(129);
    for (command, why) in [
        ("append  text".to_owned(), "1 to 128 bytes"),
        (format!("append {long} text"), "1 to 128 bytes"),
        ("append a\u{7}b text".to_owned(), "no control characters"),
        ("append-many log 1 1048577".to_owned(), "at most 1 MiB"),
        ("append-many log 10001 1".to_owned(), "at most 10,000 rows"),
        ("append-many log 17 1048576".to_owned(), "16 MiB"),
    ] {
        let answer = probe.ask(&command).await;
        assert!(answer.contains("Invalid") && answer.contains(why), "{command:.40}: {answer}");
    }
    texts_are(&mut probe, "append-many log 16 1048576", "16").await;
    // A read returns at most 8 MiB.
    let read = probe.ask("records log 1000").await;
    assert_eq!(read.len(), 8 * (1 << 20) + 7);
}

#[tokio::test]
async fn rows_outlive_the_host_and_its_death() {
    let mut partner = Partner::start().await;
    let mut folder = Folder::new("").filtered("t", &partner.url(), guests::probe(), "");
    let mut expected = String::new();
    for round in 0..3 {
        let relay = Relay::serve(folder).await;
        let mut probe = Probe::new(&relay, &mut partner, "t").await;
        texts_are(&mut probe, "records log 9", &expected).await;
        let id = probe.ask(&format!("append log {round}")).await;
        assert_eq!(id.len(), 36, "{id}");
        expected = format!("{round} {expected}").trim_end().to_owned();
        folder = relay.end_with(if round == 0 { Signal::TERM } else { Signal::KILL }).await;
    }
}

#[tokio::test]
async fn tenants_with_the_same_collections_do_not_see_each_others_rows() {
    let (mut one, mut other) = (Partner::start().await, Partner::start().await);
    let folder = Folder::new("").filtered("t", &one.url(), guests::probe(), "");
    let relay = Relay::serve(folder.filtered("u", &other.url(), guests::probe(), "")).await;
    let mut by_one = Probe::new(&relay, &mut one, "t").await;
    let mut by_other = Probe::new(&relay, &mut other, "u").await;
    by_one.ask("append log mine").await;
    by_other.ask("append log yours").await;
    texts_are(&mut by_one, "records log 9", "mine").await;
    texts_are(&mut by_other, "records log 9", "yours").await;
    // These names hold characters that mean something in SQL.
    for name in ["log'--", "log\"", "log%", "l_g", "LOG", "log\\", "log/**/", "'OR'1'='1"] {
        texts_are(&mut by_one, &format!("records {name} 9"), "").await;
        assert_eq!(by_one.ask(&format!("append {name} {name}")).await.len(), 36);
        texts_are(&mut by_one, &format!("records {name} 9"), name).await;
    }
    texts_are(&mut by_other, "records log 9", "yours").await;
}

#[tokio::test]
async fn over_a_tenants_bytes_rows_are_refused_and_nothing_else_is() {
    let mut partner = Partner::start().await;
    let relay = serve(&partner, "[limits]\nrecords = \"64KiB\"").await;
    let mut probe = Probe::new(&relay, &mut partner, "t").await;
    texts_are(&mut probe, "append-many log 2 20000", "2").await;
    // A filter's rows are written when its call has returned, so this call is not told yet.
    texts_are(&mut probe, "append-many log 2 20000", "2").await;
    relay.logged(&["ERROR", "tenant.name=t", "not written", "as many bytes as they may"]).await;
    assert_eq!(relay.metric("edge_relay_records_refused_total", &[("reason", "full")]).await, 2.0);
    // The next call is told.
    until("a refusal that the filter sees", async || {
        let answer = probe.ask("append log x").await;
        if answer.contains("Full") { Ok(()) } else { Err(answer) }
    })
    .await;
    assert_eq!(probe.ask("records log 9").await.len(), 40_001);
}

#[tokio::test]
async fn a_store_that_is_full_refuses_rows_and_keeps_what_it_has() {
    let mut partner = Partner::start().await;
    let folder = Folder::new("").filtered("t", &partner.url(), guests::probe(), "");
    folder.append("relay.toml", "[store]\nsize = \"1MiB\"\n");
    let relay = Relay::serve(folder).await;
    let mut probe = Probe::new(&relay, &mut partner, "t").await;
    texts_are(&mut probe, "append-many log 5 100000", "5").await;
    texts_are(&mut probe, "append-many log 9 100000", "9").await;
    relay.logged(&["ERROR", "not written", "is full"]).await;
    assert_eq!(relay.metric("edge_relay_records_appended_total", &[]).await, 5.0);
    assert_eq!(probe.ask("records log 99").await.len(), 500_004);
}

#[tokio::test]
async fn old_rows_are_deleted() {
    let mut partner = Partner::start().await;
    let keep = "[records.\"old*\"]\nkeep = \"1s\"\n[records.older]\nkeep = \"1s\"";
    let folder = Folder::new("").filtered("t", &partner.url(), guests::probe(), keep);
    let relay = Relay::serve(folder).await;
    let mut probe = Probe::new(&relay, &mut partner, "t").await;
    for collection in ["old", "older", "kept"] {
        assert_eq!(probe.ask(&format!("append {collection} row")).await.len(), 36);
    }
    drop(probe);
    let folder = relay.end_with(Signal::TERM).await;
    // Old rows are looked for at the start, and then every minute.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let relay = Relay::serve(folder).await;
    let mut probe = Probe::new(&relay, &mut partner, "t").await;
    until("old rows gone", async || {
        let left = (probe.ask("records old 9").await, probe.ask("records older 9").await);
        if left == (String::new(), String::new()) { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await;
    texts_are(&mut probe, "records kept 9", "row").await;
    // The rows are gone before they are counted.
    relay.metric_is("edge_relay_records_waiting", &[], 1.0).await;
}

#[tokio::test]
async fn one_file_is_one_hosts() {
    let mut partner = Partner::start().await;
    let folder = Folder::new("").filtered("t", &partner.url(), guests::probe(), "");
    let config = folder.config();
    let relay = Relay::serve(folder).await;
    let mut probe = Probe::new(&relay, &mut partner, "t").await;
    probe.ask("append log row").await;
    let config = config.to_str().unwrap();
    let second = support::process::run(&["serve", "--config", config]).await;
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(!second.status.success() && said.contains("records.sqlite") && said.contains("another host"), "{said}");
    let migrate = support::process::run(&["migrate", "--config", config, "--status"]).await;
    assert!(!migrate.status.success(), "a host is running");
    texts_are(&mut probe, "records log 9", "row").await;
    let ready: Value = relay.ready().await;
    assert!(ready.get("records").is_none(), "without MySQL nothing waits: {ready}");
}
