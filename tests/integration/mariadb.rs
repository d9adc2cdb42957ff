//! The database that tests of records stand on does what it says: it keeps what it must, and fails when it is told to.

use std::{
    fs::File,
    io::{ErrorKind, Write},
};

use mysql_async::{Conn, Error, prelude::Queryable};

use crate::support::{
    chaos::{Chaos, Fault, Way, When},
    disk::Disk,
    mariadb::MariaDb,
    until, within,
};

#[tokio::test]
async fn committed_rows_outlive_kill_and_stop() {
    let Some(mut database) = MariaDb::start().await else { return };
    database.query("CREATE TABLE kept (id INT PRIMARY KEY, word TEXT CHARACTER SET utf8mb4)").await;
    database.query_as_user("INSERT INTO kept VALUES (1, 'jedna'), (2, NULL)").await.unwrap();
    database.kill().await;
    database.query_as_user("SELECT 1").await.unwrap_err();
    database.restart().await;
    database.query_as_user("INSERT INTO kept VALUES (3, 'tří')").await.unwrap();
    database.stop().await;
    database.restart().await;
    let rows = database.query("SELECT id, word FROM kept ORDER BY id").await;
    assert_eq!(rows, [["1", "jedna"], ["2", "NULL"], ["3", "tří"]]);
}

#[tokio::test]
async fn read_only_is_for_the_user_alone() {
    let Some(database) = MariaDb::start_with(&["--max-allowed-packet=1M"]).await else { return };
    assert_eq!(database.query("SELECT @@max_allowed_packet").await, [["1048576"]]);
    database.query("CREATE TABLE words (word TEXT)").await;
    database.read_only(true).await;
    let Error::Server(error) = database.query_as_user("INSERT INTO words VALUES ('no')").await.unwrap_err() else {
        panic!("no answer")
    };
    assert_eq!(error.code, 1290, "{error}");
    database.query("INSERT INTO words VALUES ('yes')").await;
    database.read_only(false).await;
    database.query_as_user("INSERT INTO words VALUES ('yes')").await.unwrap();
    assert_eq!(database.query("SELECT word FROM words").await, [["yes"], ["yes"]]);
}

#[tokio::test]
async fn a_full_disk_takes_nothing_until_it_is_free() {
    let Some(disk) = Disk::small(100 << 20) else { return };
    let Some(database) = MariaDb::start_on(&disk, &[]).await else { return };
    database.query("CREATE TABLE words (word BLOB)").await;
    disk.fill();
    assert_eq!(File::create(disk.path("x")).unwrap().write(b"x").unwrap_err().kind(), ErrorKind::StorageFull);
    let insert = "INSERT INTO words SELECT REPEAT('x', 200) FROM seq_1_to_1000";
    let mut inserted = 0;
    let error = loop {
        match database.query_as_user(insert).await {
            Ok(_) => inserted += 1,
            Err(Error::Server(error)) => break error,
            Err(error) => panic!("{error}"),
        }
        assert!(inserted < 1000);
    };
    assert_eq!(error.code, 1114, "{error}");
    disk.free();
    database.query_as_user(insert).await.unwrap();
    assert_eq!(database.query("SELECT COUNT(*) FROM words").await, [[((inserted + 1) * 1000).to_string()]]);
}

#[tokio::test]
async fn a_server_ends_with_who_started_it() {
    let started = std::thread::spawn(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(MariaDb::start())
    });
    let Some(mut database) = tokio::task::spawn_blocking(|| started.join().unwrap()).await.unwrap() else { return };
    until("the server's end", async || database.ended().ok_or_else(|| "it runs".to_owned())).await;
}

#[tokio::test]
async fn a_commit_is_cut_before_and_after_it_is_done() {
    let Some(database) = MariaDb::start().await else { return };
    database.query("CREATE TABLE words (word TEXT)").await;
    let proxy = Chaos::start(database.address).await;
    let url = database.url_at(proxy.address);
    for (when, rows) in [(When::Before(Way::Up, "COMMIT"), 0), (When::Answer("COMMIT"), 1)] {
        proxy.arm(when, Fault::Cut);
        let mut connection = within("a connection", Conn::from_url(&url)).await.unwrap();
        connection.query_drop("START TRANSACTION").await.unwrap();
        connection.query_drop("INSERT INTO words VALUES ('x')").await.unwrap();
        let error = within("the cut", connection.query_drop("COMMIT")).await.unwrap_err();
        assert!(matches!(error, Error::Io(_)), "{error}");
        proxy.struck().await;
        assert_eq!(database.query("SELECT COUNT(*) FROM words").await, [[rows.to_string()]]);
    }
    // The URL is right without a proxy too.
    Conn::from_url(&database.url()).await.unwrap().disconnect().await.unwrap();
}
