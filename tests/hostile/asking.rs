//! Clients that ask for much, one thing after another: history, channels, records.

use std::{
    cell::Cell,
    io::{BufRead, BufReader, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    time::Duration,
};

use support::{
    guests,
    raw::{FIN, TEXT, frame, request},
};

use crate::{
    scene::Scene,
    senders::{Repeated, check_beside},
};

/// How many clients ask at once.
const CLIENTS: usize = 30;
/// Bytes of the publication that makes a history large.
const LARGE: usize = 1 << 20;
/// Channels that a client names at once: as many as it may follow.
const CHANNELS: usize = 64;
/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// The partner may be silent for long: what it has sent stays.
const SILENT: &str = "idle-timeout = \"1h\"\n";
/// Without these a client that asks much is told to slow down.
const LIMITS: &str = "[limits]\nmessages-per-second = 100000000\nclient-messages-per-second = 1000000\n\
    client-bytes-per-second = \"1GiB\"\nclient-queue = 100000\nchannels = 100000\n";

/// Checks that the neighbour is undisturbed while this many do something again and again.
async fn check(scene: &mut Scene, count: usize, act: impl Fn() -> Box<dyn FnMut() + Send>) {
    check_beside(scene, (0..count).map(|_| Repeated::start(act())).collect()).await;
}

/// A client of the Centrifuge protocol.
struct Session(TcpStream);

impl Session {
    fn connect(clients: SocketAddr, header: &str) -> Self {
        let mut socket = BufReader::new(TcpStream::connect(clients).unwrap());
        let asked = request(clients, "/hostile/connection/websocket");
        socket.get_mut().write_all(format!("{}{header}\r\n", asked.strip_suffix("\r\n").unwrap()).as_bytes()).unwrap();
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert!(socket.read_line(&mut head).unwrap() > 0, "{head}");
        }
        let socket = socket.into_inner();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut session = Self(socket);
        session.send(r#"{"id":1,"connect":{}}"#);
        assert!(String::from_utf8_lossy(&session.frame()).contains("connect"));
        session
    }

    fn send(&mut self, commands: &str) {
        self.0.write_all(&frame(FIN | TEXT, commands.as_bytes())).unwrap();
    }

    /// Reads a frame, and returns its payload.
    fn frame(&mut self) -> Vec<u8> {
        let mut head = [0; 2];
        self.0.read_exact(&mut head).unwrap();
        let mut longer = [0; 8];
        let used = match head[1] {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        self.0.read_exact(&mut longer[8 - used..]).unwrap();
        let length = if used == 0 { head[1].into() } else { u64::from_be_bytes(longer) };
        let mut payload = vec![0; length as usize];
        self.0.read_exact(&mut payload).unwrap();
        payload
    }

    /// Reads until as many replies have come, each a line, and returns the first.
    fn replies(&mut self, count: usize) -> String {
        let mut all = String::new();
        while all.lines().count() < count {
            all.push_str(&String::from_utf8(self.frame()).unwrap());
            all.push('\n');
        }
        all.lines().next().unwrap().to_owned()
    }
}

async fn publish(scene: &mut Scene, bytes: usize) {
    let mut peer = scene.partner.as_mut().unwrap().arrival().await.request().await;
    peer.agree(&[]).await;
    let mut peer = peer.into_std();
    let mut message = [vec![0x81, 127], (bytes as u64).to_be_bytes().into()].concat();
    message.extend((0..bytes).map(|nth| b'a' + (nth * 7919 % 100_003 % 26) as u8));
    peer.write_all(&message).unwrap();
    scene.relay.metric_reaches("edge_relay_publications_total", &[("tenant", "hostile")], 1.0).await;
    // It stays connected.
    std::mem::forget(peer);
}

#[tokio::test]
async fn histories_of_large_publications() {
    for (header, least) in [("", LARGE), ("Sec-WebSocket-Extensions: permessage-deflate\r\n", 10 << 10)] {
        let mut scene = Scene::with(&format!("{SILENT}[compression]\nabove = 0\n{LIMITS}"), |_| {}).await;
        publish(&mut scene, LARGE).await;
        let clients = scene.relay.clients;
        // One after another: a client waits for all others.
        check(&mut scene, CLIENTS / 3, || {
            let mut session = Session::connect(clients, header);
            Box::new(move || {
                session.send(r#"{"id":2,"history":{"channel":"main","limit":1}}"#);
                let reply = session.frame().len();
                assert!(reply > least, "{reply} bytes");
            })
        })
        .await;
    }
}

#[tokio::test]
async fn subscriptions_that_come_and_go() {
    let mut scene = Scene::with(LIMITS, |_| {}).await;
    let clients = scene.relay.clients;
    let next = Cell::new(0);
    check(&mut scene, CLIENTS, || {
        let mut session = Session::connect(clients, "");
        let own = next.replace(next.get() + 1);
        let commands: Vec<_> = (0..CHANNELS)
            .flat_map(|channel| {
                let id = 2 * channel + 2;
                ["subscribe", "unsubscribe"]
                    .map(|what| format!(r#"{{"id":{id},"{what}":{{"channel":"{own}.{channel}"}}}}"#))
            })
            .collect();
        let commands = commands.join("\n");
        Box::new(move || {
            session.send(&commands);
            let first = session.replies(2 * CHANNELS);
            assert!(first.contains("subscribe"), "{first}");
        })
    })
    .await;
}

#[tokio::test]
async fn clients_of_many_channels() {
    let mut scene = Scene::with(LIMITS, |_| {}).await;
    let clients = scene.relay.clients;
    let next = Cell::new(0);
    check(&mut scene, CLIENTS, || {
        let own = next.replace(next.get() + 1);
        let channels: Vec<_> = (0..CHANNELS).map(|channel| format!("channel={own}.{channel}")).collect();
        let asked = request(clients, &format!("/hostile?{}", channels.join("&")));
        Box::new(move || {
            let mut socket = TcpStream::connect(clients).unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            socket.write_all(asked.as_bytes()).unwrap();
            let mut answer = vec![0; 1024];
            let length = socket.read(&mut answer).unwrap();
            let answer = String::from_utf8_lossy(&answer[..length]);
            assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
            let _ = socket.shutdown(Shutdown::Both);
        })
    })
    .await;
    assert!(scene.relay.metric("edge_relay_clients_closed_total", &[("tenant", "hostile")]).await > 0.0);
}

/// Checks that the neighbour is undisturbed while eight clients of the hostile API ask for this again and again.
async fn check_api(scene: &mut Scene, asked: &str) {
    let api = scene.relay.api();
    check(scene, 8, || {
        let asked = format!("GET {asked} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        Box::new(move || {
            let mut socket = TcpStream::connect(api).unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            socket.write_all(asked.as_bytes()).unwrap();
            let mut answer = Vec::new();
            socket.read_to_end(&mut answer).unwrap();
            assert!(answer.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&answer));
        })
    })
    .await;
}

/// Starts a relay whose hostile tenant has an API, and whose neighbour appends records.
async fn with_api(limits: &str) -> Scene {
    let more = format!("[components]\napi = \"api.wasm\"\n[limits]\napi-call = \"20s\"\n{limits}");
    Scene::with_records(&more, |folder| folder.copy(guests::api(), "tenants/hostile/api.wasm")).await
}

#[tokio::test]
async fn records_that_are_read() {
    let mut scene = with_api("").await;
    let appended = scene.relay.api_get("/hostile/append?to=c&rows=2000&bytes=4000").await;
    assert_eq!(appended, (200, "2000".to_owned()));
    check_api(&mut scene, "/hostile/records?of=c&count=1000").await;
}

#[tokio::test]
async fn records_that_are_appended() {
    check_api(&mut with_api("records = \"8GiB\"\n").await, "/hostile/append-for?to=c&bytes=1000&ms=100").await;
}

#[tokio::test]
async fn state_that_is_filled() {
    check_api(&mut with_api("state = \"64MiB\"\n").await, "/hostile/state?bytes=1000000").await;
}

#[tokio::test]
async fn answers_of_mebibytes() {
    check_api(&mut with_api("").await, "/hostile/big?bytes=16000000").await;
}

/// Each instance keeps a thread busy that may wait for a disk.
#[tokio::test]
async fn folders_and_files_that_are_read() {
    const FILES: usize = 2_000;
    const BYTES: usize = 1 << 20;
    let more =
        "[grants.folders]\n\"/data\" = \"data\"\n[components]\napi = \"api.wasm\"\n[limits]\napi-call = \"20s\"\n";
    for asked in ["/hostile/list?path=/data/.", "/hostile/read?path=/data/large"] {
        let mut scene = Scene::with(more, |folder| {
            folder.copy(guests::grants(), "tenants/hostile/api.wasm");
            folder.write("tenants/hostile/data/large", vec![b'x'; BYTES]);
            (0..FILES).for_each(|nth| folder.write(&format!("tenants/hostile/data/{nth}"), ""));
        })
        .await;
        check_api(&mut scene, asked).await;
    }
}
