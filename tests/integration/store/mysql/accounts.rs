//! What an account may do, how it logs in, and what an operator is told.

use rustix::process::Signal;
use support::{
    database::{Database, Server},
    on_each_server,
    partner::Partner,
    probe::Probe,
    process::{command, shown},
    relay::Relay,
    tenant::Folder,
    until,
};

use super::{count, drained, folder, outbox_empty, serve};

/// Starts a relay, and appends a row, so that the tables are there.
async fn with_tables(database: &Database, partner: &mut Partner) -> Folder {
    let relay = serve(folder(partner), &database.url()).await;
    let mut probe = Probe::new(&relay, partner, "t").await;
    probe.ask("append log first").await;
    drained(&relay, database, 1).await;
    drop(probe);
    relay.end_with(Signal::TERM).await
}

/// Takes all rights from the account, and grants these.
async fn grant(database: &Database, rights: &str) {
    database.query("REVOKE ALL PRIVILEGES, GRANT OPTION FROM relay").await;
    database.query(&format!("GRANT {rights} ON records.* TO relay")).await;
}

async fn migrate(relay: &Folder, database: &Database, what: &[&str]) -> (bool, String) {
    let config = relay.config();
    let mut command = command(&[&["migrate", "--config", config.to_str().unwrap()], what].concat());
    command.env("STORE_URL", database.url());
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    (output.status.success(), shown(&output))
}

async fn four_rights_suffice_and_nothing_is_locked_once_the_tables_are_there(server: Server) {
    let Some(database) = server.start().await else { return };
    let mut partner = Partner::start().await;
    let folder = with_tables(&database, &mut partner).await;
    grant(&database, "SELECT, INSERT, UPDATE, DELETE").await;
    database.query("SET GLOBAL log_output = 'TABLE'").await;
    database.query("SET GLOBAL general_log = 1").await;
    folder.append("tenants/t/tenant.toml", "[records.old]\nkeep = \"1s\"\n");
    let relay = serve(folder, &database.url()).await;
    let mut probe = Probe::new(&relay, &mut partner, "t").await;
    probe.ask("append old row").await;
    probe.ask("append log second").await;
    drained(&relay, &database, 3).await;
    assert_eq!(probe.ask("records log 9").await, "second first");
    drop(probe);
    let folder = relay.end_with(Signal::TERM).await;
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    let relay = serve(folder, &database.url()).await;
    relay.logged(&["INFO", "old records deleted", "deleted=1"]).await;
    let (is_up, said) = migrate(relay.folder(), &database, &["--up", "--database", "mysql"]).await;
    assert!(is_up, "{said}");
    let sql = "SELECT CONVERT(argument USING utf8mb4) FROM mysql.general_log";
    let asked = database.query(sql).await.concat().join("\n");
    for word in ["GET_LOCK", "CREATE", "ALTER"] {
        assert!(!asked.contains(word), "{word}: {asked}");
    }
    assert!(asked.contains("INSERT INTO records") && asked.contains("INSERT INTO relay_hosts"), "{asked}");
    assert!(!relay.log().contains("WARN"), "{}", relay.log());
}

async fn rights_that_are_granted_while_it_runs_take_effect(server: Server) {
    let Some(database) = server.start().await else { return };
    let mut partner = Partner::start().await;
    let folder = with_tables(&database, &mut partner).await;
    grant(&database, "SELECT").await;
    let relay = serve(folder, &database.url()).await;
    let mut probe = Probe::new(&relay, &mut partner, "t").await;
    probe.ask("append log second").await;
    relay.logged(&["WARN", "records stay in the outbox", "lacks a right", "SELECT, INSERT, UPDATE and DELETE"]).await;
    assert_eq!(probe.ask("records log 9").await, "second first");
    grant(&database, "SELECT, INSERT, UPDATE, DELETE").await;
    drained(&relay, &database, 2).await;
    assert_eq!(relay.metric("edge_relay_records_dead_letters_total", &[]).await, 0.0);
}

/// An account that may not change the tables of the version before, which have rows.
async fn tables_of_the_version_before_are_brought_up_to_date_when_the_account_may(server: Server) {
    let Some(database) = server.start().await else { return };
    let mut partner = Partner::start().await;
    for sql in [
        include_str!("../../../../migrations/mysql/V1__records.up.sql"),
        "CREATE TABLE refinery_schema_history (version INT PRIMARY KEY, name VARCHAR(255), applied_on VARCHAR(255), \
         checksum VARCHAR(255))",
        "INSERT INTO refinery_schema_history VALUES (1, 'records', '2026-01-01T00:00:00Z', '1')",
        "INSERT INTO records VALUES ('t', 'log', x'019b76da800070008000000000000000', 'before')",
    ] {
        database.query(sql).await;
    }
    grant(&database, "SELECT, INSERT, UPDATE, DELETE").await;
    let folder = folder(&partner);
    folder.append("tenants/t/tenant.toml", "[limits]\nfilter-call = \"5s\"\n");
    let relay = serve(folder, &database.url()).await;
    let mut probe = Probe::new(&relay, &mut partner, "t").await;
    probe.ask("append log after").await;
    relay.logged(&["WARN", "records stay in the outbox", "lacks a right"]).await;
    let range = "range log 0 9999999999999 9";
    for asked in [range, "records log 9"] {
        let said = probe.ask(asked).await;
        assert!(said.contains("Unavailable"), "{asked}: {said}");
    }
    grant(&database, "ALL").await;
    drained(&relay, &database, 2).await;
    assert_eq!(probe.ask(range).await, "before after");
    assert_eq!(probe.ask("records log 9").await, "after before");
}

async fn one_connection_is_enough(server: Server) {
    let Some(database) = server.start().await else { return };
    let mut partner = Partner::start().await;
    database.query("ALTER USER relay WITH MAX_USER_CONNECTIONS 1").await;
    let folder = with_tables(&database, &mut partner).await;
    let relay = serve(folder, &database.url()).await;
    let mut probe = Probe::new(&relay, &mut partner, "t").await;
    for nth in 2..5 {
        probe.ask("append log row").await;
        drained(&relay, &database, nth).await;
        assert_eq!(probe.ask("records log 9").await.split(' ').count(), nth);
    }
}

async fn tables_are_not_taken_from_a_host_that_uses_them(server: Server) {
    let Some(database) = server.start().await else { return };
    let mut partner = Partner::start().await;
    let folder = folder(&partner);
    let relay = serve(folder, &database.url()).await;
    let mut probe = Probe::new(&relay, &mut partner, "t").await;
    probe.ask("append log first").await;
    drained(&relay, &database, 1).await;
    // It is noted a moment later, and again and again.
    let seen = "SELECT count(*) FROM relay_hosts WHERE seen > CURRENT_TIMESTAMP - INTERVAL 30 SECOND";
    for _ in 0..2 {
        until("a host in MySQL", async || {
            let hosts = database.query(seen).await.concat().concat();
            if hosts == "1" { Ok(()) } else { Err(hosts) }
        })
        .await;
        database.query("UPDATE relay_hosts SET seen = seen - INTERVAL 50 SECOND").await;
    }
    let down = ["--down", "1", "--database", "mysql"];
    // Another host's folder, in which no tenant is right.
    let other = Folder::new("");
    other.append("relay.toml", "[store]\nurl = { env = \"STORE_URL\" }\n");
    other.write("tenants/t/tenant.toml", "nonsense");
    let (is_down, said) = migrate(&other, &database, &down).await;
    assert!(!is_down && said.contains("stop all hosts"), "{said}");
    assert_eq!(count(&database).await, 1);
    drop(probe);
    let _folder = relay.end_with(Signal::TERM).await;
    let (is_down, said) = migrate(&other, &database, &down).await;
    assert!(is_down && said.contains("undone   V4__hosts"), "{said}");
    let (is_up, said) = migrate(&other, &database, &["--up", "--database", "mysql"]).await;
    assert!(is_up && said.contains("applied  V4__hosts"), "{said}");
    assert_eq!(count(&database).await, 1);
}

async fn a_rotated_password_needs_no_restart(server: Server) {
    let Some(mut database) = server.start().await else { return };
    let mut partner = Partner::start().await;
    let folder = folder(&partner);
    let config = std::fs::read_to_string(folder.config()).unwrap();
    folder.write("relay.toml", config.replace("{ env = \"STORE_URL\" }", "{ file = \"url\" }"));
    folder.write("url", database.url());
    let relay = Relay::serve(folder).await;
    let mut probe = Probe::new(&relay, &mut partner, "t").await;
    probe.ask("append log first").await;
    drained(&relay, &database, 1).await;
    let url = |password: &str| format!("mysql://relay:{password}@{}/records", database.address);
    // Told by a signal.
    let (second, third) = (url("second"), url("third"));
    database.query("ALTER USER relay IDENTIFIED BY 'second'").await;
    relay.folder().write("url", &second);
    relay.signal(Signal::HUP);
    relay.logged(&["INFO", "the URL of MySQL was read again"]).await;
    probe.ask("append log second").await;
    drained(&relay, &database, 2).await;
    // Told by the server, which ends all connections.
    database.query("ALTER USER relay IDENTIFIED BY 'third'").await;
    database.stop().await;
    database.restart().await;
    probe.ask("append log third").await;
    let said = relay.logged(&["WARN", "it refuses the login"]).await;
    assert!(!said.contains("second@"), "{said}");
    relay.folder().write("url", third);
    drained(&relay, &database, 3).await;
    assert_eq!(probe.ask("records log 9").await, "third second first");
}

async fn a_server_with_no_room_for_a_connection_says_so(server: Server) {
    let Some(database) = server.start_with(&["--max-connections=10"]).await else { return };
    let mut partner = Partner::start().await;
    let folder = with_tables(&database, &mut partner).await;
    let mut others = Vec::new();
    until("a server without room", async || match database.connect().await {
        Ok(connection) => {
            others.push(connection);
            Err("room".to_owned())
        }
        Err(error) => {
            let error = error.to_string();
            if error.contains("Too many connections") { Ok(()) } else { panic!("{error}") }
        }
    })
    .await;
    let relay = serve(folder, &database.url()).await;
    let mut probe = Probe::new(&relay, &mut partner, "t").await;
    probe.ask("append log second").await;
    let said = "it has as many connections as max_connections allows";
    relay.logged(&["WARN", "records stay in the outbox", said]).await;
    assert!(probe.ask("records log 9").await.contains(said));
    for connection in others {
        connection.disconnect().await.unwrap();
    }
    drained(&relay, &database, 2).await;
}

/// The program has no such login: it says which ones it has.
#[tokio::test]
async fn an_account_that_logs_in_by_sha256_password_is_told_what_else_there_is() {
    let Some(database) = Server::MySql.start().await else { return };
    let mut partner = Partner::start().await;
    database.query("ALTER USER relay IDENTIFIED WITH sha256_password BY 'secret'").await;
    let relay = serve(folder(&partner), &format!("mysql://relay:secret@{}/records", database.address)).await;
    let mut probe = Probe::new(&relay, &mut partner, "t").await;
    probe.ask("append log first").await;
    relay.logged(&["WARN", "the account logs in by sha256_password", "caching_sha2_password"]).await;
    database.query("ALTER USER relay IDENTIFIED WITH caching_sha2_password BY 'secret'").await;
    drained(&relay, &database, 1).await;
}

/// The driver used to panic, and the host ended.
#[tokio::test]
async fn accounts_that_log_in_by_ed25519_and_parsec_are_served() {
    let plugins = ["--plugin-load-add=auth_ed25519;auth_parsec", "--plugin-maturity=unknown"];
    let Some(database) = Server::NewMariaDb.start_with(&plugins).await else { return };
    let mut partner = Partner::start().await;
    let url = format!("mysql://relay:secret@{}/records", database.address);
    let mut folder = folder(&partner);
    let mut rows = 0;
    for way in ["ed25519", "parsec"] {
        // It changes while the host runs.
        database.query("ALTER USER relay IDENTIFIED BY 'another'").await;
        let relay = serve(folder, &url).await;
        let mut probe = Probe::new(&relay, &mut partner, "t").await;
        probe.ask("append log row").await;
        relay.logged(&["WARN", "it refuses the login"]).await;
        database.query(&format!("ALTER USER relay IDENTIFIED VIA {way} USING PASSWORD('secret')")).await;
        drained(&relay, &database, rows + 1).await;
        drop(probe);
        let relay = serve(relay.end_with(Signal::TERM).await, &url).await;
        let mut probe = Probe::new(&relay, &mut partner, "t").await;
        probe.ask("append log row").await;
        rows += 2;
        drained(&relay, &database, rows).await;
        drop(probe);
        folder = relay.end_with(Signal::TERM).await;
    }
}

async fn each_thing_that_a_server_refuses_is_said_in_one_sentence(server: Server) {
    let Some(database) = server.start().await else { return };
    let mut partner = Partner::start().await;
    drop(with_tables(&database, &mut partner).await);
    let read_only = if server == Server::MariaDb { "tx_read_only" } else { "transaction_read_only" };
    // What is in effect for connections from then on, what it is when it is right again, and what is said.
    for (wrong, right, said) in [
        (
            "SET GLOBAL max_prepared_stmt_count = 0".to_owned(),
            "SET GLOBAL max_prepared_stmt_count = 16382".to_owned(),
            "as many prepared statements as max_prepared_stmt_count allows",
        ),
        (
            format!("SET GLOBAL {read_only} = 1"),
            format!("SET GLOBAL {read_only} = 0"),
            "its transactions only read (transaction_read_only)",
        ),
        ("ALTER USER relay ACCOUNT LOCK".into(), "ALTER USER relay ACCOUNT UNLOCK".into(), "the account is locked"),
        (
            "ALTER USER relay WITH MAX_QUERIES_PER_HOUR 1".into(),
            "ALTER USER relay WITH MAX_QUERIES_PER_HOUR 0".into(),
            "has asked as much, as it may",
        ),
    ] {
        database.query(&wrong).await;
        let relay = serve(folder(&partner), &database.url()).await;
        let mut probe = Probe::new(&relay, &mut partner, "t").await;
        let before = count(&database).await;
        probe.ask("append log row").await;
        relay.logged(&["WARN", "records stay in the outbox", said]).await;
        database.query(&right).await;
        drained(&relay, &database, before + 1).await;
        assert_eq!(relay.metric("edge_relay_records_dead_letters_total", &[]).await, 0.0);
    }
}

async fn reads_say_what_a_server_refuses(server: Server) {
    let Some(database) = server.start().await else { return };
    let mut partner = Partner::start().await;
    let folder = with_tables(&database, &mut partner).await;
    database.query("SET GLOBAL init_connect = 'SET SESSION max_join_size = 1, SESSION sql_big_selects = 0'").await;
    let relay = serve(folder, &database.url()).await;
    let mut probe = Probe::new(&relay, &mut partner, "t").await;
    assert_eq!(probe.ask("append-many log 9 9").await, "9");
    drained(&relay, &database, 10).await;
    let said = probe.ask("records log 9").await;
    assert!(said.contains("sql_big_selects"), "{said}");
}

async fn a_server_that_ends_idle_connections_causes_no_error(server: Server) {
    let Some(database) = server.start().await else { return };
    database.query("SET GLOBAL wait_timeout = 1").await;
    let mut partner = Partner::start().await;
    let relay = serve(folder(&partner), &database.url()).await;
    let mut probe = Probe::new(&relay, &mut partner, "t").await;
    for nth in 1..4 {
        probe.ask("append log row").await;
        outbox_empty(&relay).await;
        assert_eq!(probe.ask("records log 9").await.split(' ').count(), nth);
        tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
    }
    assert_eq!(relay.metric("edge_relay_records_drain_failures_total", &[]).await, 0.0, "{}", relay.log());
    assert!(!relay.log().contains("WARN"), "{}", relay.log());
}

/// The driver would go from the address to the path that the server names, where another may be.
async fn rows_go_to_the_server_at_the_address_and_not_to_one_at_the_path_that_it_names(server: Server) {
    let Some((one, other)) = server.start().await.zip(server.start().await) else { return };
    std::os::unix::fs::symlink(other.moved_socket(), one.named_socket()).unwrap();
    let mut partner = Partner::start().await;
    let relay = serve(folder(&partner), &one.url()).await;
    let mut probe = Probe::new(&relay, &mut partner, "t").await;
    probe.ask("append log row").await;
    drained(&relay, &one, 1).await;
    assert_eq!(other.query("SHOW TABLES").await.len(), 0);
}

on_each_server!(
    four_rights_suffice_and_nothing_is_locked_once_the_tables_are_there,
    rights_that_are_granted_while_it_runs_take_effect,
    tables_of_the_version_before_are_brought_up_to_date_when_the_account_may,
    one_connection_is_enough,
    tables_are_not_taken_from_a_host_that_uses_them,
    a_rotated_password_needs_no_restart,
    each_thing_that_a_server_refuses_is_said_in_one_sentence,
    reads_say_what_a_server_refuses,
    a_server_that_ends_idle_connections_causes_no_error,
    a_server_with_no_room_for_a_connection_says_so,
    rows_go_to_the_server_at_the_address_and_not_to_one_at_the_path_that_it_names,
);
