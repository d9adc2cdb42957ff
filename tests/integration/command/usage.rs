//! The command line: help, usage errors, and the commands that need no configuration.

use std::{
    fs::{self, File},
    io::Write,
    path::Path,
    process::Command,
};

use rustix::process::Signal;
use support::{
    client::Client,
    partner::Partner,
    process::{Process, command, output, run, shown, with_memory_limit},
    relay::Relay,
    tenant::Folder,
    until,
};
use tokio::net::TcpStream;

#[tokio::test]
async fn every_command_has_help_with_examples() {
    let commands: [&[&str]; 7] = [
        &["serve"],
        &["pass"],
        &["feed"],
        &["demo"],
        &["component", "build"],
        &["component", "check"],
        &["tenants", "check"],
    ];
    for command in commands {
        let output = run(&[command, &["--help"]].concat()).await;
        let shown = shown(&output);
        assert_eq!(output.status.code(), Some(0), "{shown}");
        assert!(shown.contains("Example"), "{shown}");
        assert!(shown.contains(&format!("  edge-relay {}", command.join(" "))), "no example: {shown}");
    }
}

#[tokio::test]
async fn wrong_usage_is_exit_code_2_and_named() {
    let folder = Folder::empty();
    let broken = folder.path("broken.jsonl");
    fs::write(&broken, "{\"t\":0,\"from\":\"upstream\",\"text\":\"\"}\n{\"t\":1").unwrap();
    let broken = broken.to_str().unwrap();
    let url = "ws://h/";
    let cases: [(&[&str], &str); 22] = [
        (&["relay"], "relay"),
        (&["serve"], "--config"),
        (&["serve", "--config", "x", "--verbose"], "--verbose"),
        (&["pass"], "--upstream"),
        (&["pass", "--upstream", "http://127.0.0.1/"], "ws://"),
        (&["pass", "--upstream", "ws://127.0.0.1/", "--header", "no colon"], "Name: value"),
        (&["pass", "--upstream", "ws://127.0.0.1/", "--listen", "here"], "here"),
        (&["pass", "--upstream", "ws://host:99999/"], "a port from 1 to 65535"),
        (&["pass", "--upstream", "ws://u:p@h/"], "no user or password"),
        (&["pass", "--upstream", "ws://h/#f"], "no fragment"),
        (&["pass", "--upstream", url, "--header", "Host: other"], "\"Host\" is set by the handshake itself"),
        (&["pass", "--upstream", url, "--header", "Sec-WebSocket-Key: a"], "is set by the handshake itself"),
        (&["pass", "--upstream", url, "--header", "X: 1", "--header", "x: 2"], "is written twice"),
        (&["pass", "--upstream", url, "--header", "X: a\nb"], "x: the value cannot be a header's value"),
        (&["pass", "--upstream", url, "--subprotocol", "a b"], "\"a b\" is not a subprotocol"),
        (&["pass", "--upstream", url, "--subprotocol", "a\nb"], "is not a subprotocol"),
        (&["feed", "--speed", "-1", "--file", broken], "-1"),
        (&["feed", "--file", broken], "broken.jsonl:2:"),
        (&["feed", "--file", "/nowhere.jsonl"], "/nowhere.jsonl"),
        (&["demo", "--for", "ever"], "ever"),
        (&["demo", "--listen", "here"], "here"),
        (&["component", "check", "/nowhere.wasm"], "/nowhere.wasm"),
    ];
    for (arguments, named) in cases {
        let output = run(arguments).await;
        let shown = shown(&output);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {shown}");
        assert!(output.stdout.is_empty(), "{arguments:?}: {shown}");
        assert!(String::from_utf8_lossy(&output.stderr).contains(named), "{arguments:?}: {shown}");
    }
}

/// Address space of a command that reads a file, in bytes: enough for all but a file without an end.
const ADDRESS_SPACE: usize = 1 << 30;

#[tokio::test]
async fn what_has_no_end_is_not_read() {
    let folder = Folder::empty();
    let (pipe, large) = (folder.path("pipe"), folder.path("large"));
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let mut file = File::create(&large).unwrap();
    // It begins like a component. The rest takes no room on the disk.
    file.write_all(b"\0asm\x0D\0\x01\0").unwrap();
    file.set_len(10 << 30).unwrap();
    let commands: [&[&str]; 3] = [&["component", "build"], &["component", "check"], &["feed", "--file"]];
    for arguments in commands {
        for (path, reason) in [
            (Path::new("/dev/zero"), "is not a file"),
            (pipe.as_path(), "is not a file"),
            (large.as_path(), "has 10737418240 bytes"),
        ] {
            let mut command = command(arguments);
            command.arg(path);
            let output = output(with_memory_limit(&command, ADDRESS_SPACE)).await;
            let shown = shown(&output);
            assert_eq!(output.status.code(), Some(2), "{arguments:?}: {shown}");
            let error = String::from_utf8_lossy(&output.stderr);
            assert!(error.contains(path.to_str().unwrap()) && error.contains(reason), "{arguments:?}: {shown}");
        }
    }
}

#[tokio::test]
async fn pass_opens_one_listener_and_answers_at_the_root() {
    let mut partner = Partner::start().await;
    let relay = Relay::pass(&partner.url(), &[]).await;
    let mut client = relay.client("/").await;
    partner.accept().await.text("hello").await;
    assert_eq!(client.text().await, "hello");
    let listening = listening_ports(relay.id());
    assert_eq!(listening, [relay.clients.port()]);
}

/// Lists the TCP ports that a process listens on.
fn listening_ports(process: u32) -> Vec<u16> {
    let links = fs::read_dir(format!("/proc/{process}/fd")).unwrap();
    let sockets: Vec<_> = links
        .filter_map(|link| fs::read_link(link.unwrap().path()).ok())
        .filter_map(|target| Some(target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned()))
        .collect();
    let mut ports = Vec::new();
    for table in ["tcp", "tcp6"] {
        for line in fs::read_to_string(format!("/proc/{process}/net/{table}")).unwrap_or_default().lines().skip(1) {
            let columns: Vec<_> = line.split_whitespace().collect();
            // The columns are the local address, the state (0A is LISTEN) and the inode.
            if columns[3] == "0A" && sockets.iter().any(|inode| inode == columns[9]) {
                ports.push(u16::from_str_radix(columns[1].rsplit(':').next().unwrap(), 16).unwrap());
            }
        }
    }
    ports
}

#[tokio::test]
async fn feed_simulates_an_exchange_until_it_is_stopped() {
    let mut feed = Process::spawn(command(&["feed", "--listen", "127.0.0.1:0", "--rate", "200"]));
    let addresses = feed.listening().await;
    let mut client = Client::connect(&format!("ws://{}/", addresses[0].1)).await;
    for _ in 0..100 {
        let message: serde_json::Value = serde_json::from_str(&client.text().await).unwrap();
        assert!(message["product_id"].is_string() && message["type"].is_string(), "{message}");
    }
    feed.signal(Signal::TERM);
    assert_eq!(feed.end().await.code(), Some(0), "{}", feed.log());
}

/// Returns the two counts in the demonstration's last line.
fn relayed(stdout: &str) -> (u64, u64) {
    let last = stdout.lines().last().unwrap();
    let numbers: Vec<u64> = last.split(' ').filter_map(|word| word.parse().ok()).collect();
    assert_eq!(numbers.len(), 2, "{last}");
    (numbers[0], numbers[1])
}

#[tokio::test]
async fn demo_ends_by_itself_and_says_how_much_went_in_and_out() {
    let output = run(&["demo", "--for", "4s"]).await;
    let shown = shown(&output);
    assert_eq!(output.status.code(), Some(0), "{shown}");
    let stdout = String::from_utf8(output.stdout).unwrap();
    let (sent, received) = relayed(&stdout);
    assert!((10..=sent).contains(&received), "{shown}");
    // The demonstration prints a line each second with what a client gets.
    let seconds = stdout.lines().filter(|line| line.contains("\"product\":") && line.contains("\"price\":")).count();
    assert!((2..=4).contains(&seconds), "{shown}");
}

#[tokio::test]
async fn demo_fails_if_nothing_was_relayed() {
    let output = run(&["demo", "--for", "1ms"]).await;
    let shown = shown(&output);
    let (_, received) = relayed(&String::from_utf8(output.stdout).unwrap());
    assert_eq!(output.status.code() == Some(0), received > 0, "{shown}");
}

/// Waits for a line with these words. The demonstration prints one each second.
async fn line_with(demo: &mut Process, words: &str) -> String {
    for _ in 0..10 {
        let line = demo.line().await.unwrap();
        if line.contains(words) {
            return line;
        }
    }
    panic!("no line with {words:?}: {}", demo.log());
}

#[tokio::test]
async fn demo_can_be_interrupted_and_leaves_nothing() {
    let mut demo = Process::spawn(command(&["demo"]));
    let clients = line_with(&mut demo, "clients connect to ws://").await;
    let url = format!("ws://{}", clients.split_once("ws://").unwrap().1);
    Client::connect(&url).await.text().await;
    line_with(&mut demo, "\"price\":").await;
    demo.signal(Signal::INT);
    assert_eq!(demo.end().await.code(), Some(0), "{}", demo.log());
    let listener = url.strip_prefix("ws://").unwrap().split('/').next().unwrap().to_owned();
    until("the demonstration's port closed", async || match TcpStream::connect(&listener).await {
        Ok(_) => Err("it accepts".to_owned()),
        Err(_) => Ok(()),
    })
    .await;
    let files = std::env::temp_dir().join(format!("edge-relay-demo-{}", demo.id()));
    assert!(!files.exists(), "{} stays behind", files.display());
}
