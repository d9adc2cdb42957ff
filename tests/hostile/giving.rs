//! What a tenant gives its clients: large publications, large snapshots, very many publications, very many channels,
//! and records over its quota.

use std::{
    future::pending,
    io::{BufRead, BufReader, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    sync::Arc,
    thread,
    time::Duration,
};

use rustix::process::setpriority_process;
use support::{
    crowd::Crowd,
    guests,
    raw::{FIN, TEXT, frame, request},
    until,
};
use tokio::time::sleep;

use crate::{
    scene::{Scene, is_full, swap},
    senders::{NICE, Repeated, Senders, nice},
};

/// Bytes of a large publication: little less than a partner's message may have.
const LARGE: usize = 15 << 20;
/// How long a client stays, and the time between two changes of all keys.
const STAY: Duration = Duration::from_millis(50);
const ROUND: Duration = Duration::from_millis(300);

/// A client of the hostile tenant over some transport, that reads as fast as it can.
#[derive(Clone, Copy)]
enum Reader {
    Deflated,
    Events,
    Centrifuge,
}

impl Reader {
    const ALL: [Self; 3] = [Self::Deflated, Self::Events, Self::Centrifuge];

    /// Connects to channel `main`, and reads to the end in a thread.
    fn start(self, clients: SocketAddr) -> TcpStream {
        let deflate = "Sec-WebSocket-Extensions: permessage-deflate\r\n";
        let mut socket = BufReader::new(TcpStream::connect(clients).unwrap());
        let asked = match self {
            Self::Deflated => with_header(&request(clients, "/hostile?channel=main"), deflate),
            Self::Events => format!("GET /hostile/sse?channel=main HTTP/1.1\r\nHost: {clients}\r\n\r\n"),
            Self::Centrifuge => with_header(&request(clients, "/hostile/connection/websocket"), deflate),
        };
        socket.get_mut().write_all(asked.as_bytes()).unwrap();
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert!(socket.read_line(&mut head).unwrap() > 0, "{head}");
        }
        if let Self::Centrifuge = self {
            for command in [r#"{"id":1,"connect":{}}"#, r#"{"id":2,"subscribe":{"channel":"main"}}"#] {
                socket.get_mut().write_all(&frame(FIN | TEXT, command.as_bytes())).unwrap();
            }
        }
        let socket = socket.into_inner();
        reads(&socket);
        socket
    }
}

/// Reads to the end in a thread.
fn reads(socket: &TcpStream) {
    let mut reads = socket.try_clone().unwrap();
    thread::spawn(move || {
        nice(|| {
            let mut buffer = vec![0; 256 << 10];
            while reads.read(&mut buffer).is_ok_and(|length| length > 0) {}
        });
    });
}

fn with_header(request: &str, header: &str) -> String {
    format!("{}{header}\r\n", request.strip_suffix("\r\n").unwrap())
}

/// The frame of a partner's large message, which compresses as well as quotes do.
fn large() -> Vec<u8> {
    let mut message = vec![0x81, 127];
    message.extend((LARGE as u64).to_be_bytes());
    while message.len() < 10 + LARGE {
        let number = message.len() * 7919 % 100_003;
        write!(message, "{{\"symbol\":\"S{}\",\"price\":{number}}},", number % 97).unwrap();
    }
    message.truncate(10 + LARGE);
    message
}

#[tokio::test]
async fn large_publications_in_every_format() {
    let mut scene = Scene::with("[compression]\nabove = 0\n", |_| {}).await;
    let mut peer = scene.partner.as_mut().unwrap().arrival().await.request().await;
    peer.agree(&[]).await;
    let clients: Vec<_> = Reader::ALL.map(|reader| reader.start(scene.relay.clients)).into();
    Senders::start(vec![peer.into_std()], &large()).check(&mut scene).await;
    drop(clients);
}

#[tokio::test]
async fn large_snapshots_for_clients_that_come_and_go() {
    const KEYS: usize = 2_500;
    let more = "[compression]\nabove = 0\n[components]\nfilter = \"filter.wasm\"\n[limits]\nfilter-call = \"20s\"\n";
    let mut scene = Scene::with(more, |folder| folder.copy(guests::probe(), "tenants/hostile/filter.wasm")).await;
    let mut peer = scene.partner.as_mut().unwrap().accept().await;
    let (clients, mut nth) = (scene.relay.clients, 0);
    let coming = Repeated::start(move || {
        let socket = Reader::ALL[nth % Reader::ALL.len()].start(clients);
        nth += 1;
        thread::sleep(STAY);
        let _ = socket.shutdown(Shutdown::Both);
    });
    // All keys change, so that the snapshot is made anew.
    peer.text(format!("rounds main 0 1 {KEYS} 8000")).await;
    let (begin, end) = (async |_: &_| coming.turn(true), async |_: &_| coming.rest().await);
    let mut round = 1;
    let attack = async || {
        peer.text(format!("rounds main {round} {} {KEYS} 8000", round + 1)).await;
        round += 1;
        sleep(ROUND).await;
    };
    scene.undisturbed_by(begin, attack, end).await;
    coming.end();
}

/// Starts a relay whose hostile tenant has these schedules, which do not run yet. Returns the manifest's end of now,
/// and one with which they run every 100 ms.
async fn with_schedules(names: &[String], limits: &str) -> (Scene, String, String) {
    let job = |after: &str| {
        let schedule =
            |name: &String| format!("[[schedule]]\nname = \"{name}\"\nevery = \"100ms\"\nafter = \"{after}\"\n");
        format!(
            "[components]\njob = \"job.wasm\"\n[limits]\njob-call = \"20s\"\n{limits}{}",
            names.iter().map(schedule).collect::<String>()
        )
    };
    let (later, now) = (job("24h"), job("1ms"));
    let scene = Scene::with_records(&later, |folder| folder.copy(guests::probe(), "tenants/hostile/job.wasm")).await;
    (scene, later, now)
}

/// Checks that the neighbour is undisturbed while they run.
async fn run_schedules(scene: &mut Scene, later: &str, now: &str) {
    let begin = async |relay: &_| swap(relay, "hostile", now).await;
    let end = async |relay: &_| swap(relay, "hostile", later).await;
    scene.undisturbed_by(begin, async || pending().await, end).await;
    assert!(scene.relay.metric("edge_relay_guest_calls_total", &[("tenant", "hostile"), ("role", "job")]).await > 0.0);
}

async fn scheduled(names: &[String], limits: &str) -> Scene {
    let (mut scene, later, now) = with_schedules(names, limits).await;
    run_schedules(&mut scene, &later, &now).await;
    scene
}

/// Waits until as many publications of the hostile tenant have been taken.
async fn published(scene: &Scene, least: f64) {
    scene.relay.metric_reaches("edge_relay_publications_total", &[("tenant", "hostile")], least).await;
}

#[tokio::test]
async fn ten_thousand_publications_of_each_call() {
    let scene = scheduled(&(0..8).map(|nth| format!("many-10000-{nth}")).collect::<Vec<_>>(), "").await;
    published(&scene, 80_000.0).await;
}

#[tokio::test]
async fn hundreds_of_sixty_kilobytes_of_each_call() {
    let scene = scheduled(&(0..4).map(|nth| format!("many-700-{}", 60_000 + nth)).collect::<Vec<_>>(), "").await;
    published(&scene, 2_800.0).await;
}

#[tokio::test]
async fn a_hundred_thousand_channels_whose_logs_are_full() {
    let channels = if is_full() { 10 } else { 3 };
    let names: Vec<_> = (0..channels).map(|nth| format!("spread-10000-c{nth}-13")).collect();
    let scene = scheduled(&names, "channels = 100000\nlogs = \"4MiB\"\n").await;
    published(&scene, 10_000.0).await;
    let logs = scene.relay.metric("edge_relay_tenant_memory_bytes", &[("tenant", "hostile"), ("part", "logs")]).await;
    assert!(logs > 3e6, "they are full: {logs}");
}

#[tokio::test]
async fn large_publications_on_hundreds_of_channels() {
    const CLIENTS: usize = 10;
    const EACH: usize = 60;
    let names: Vec<_> = (0..2).map(|nth| format!("spread-{}-c-{}", CLIENTS * EACH, 50_000 + nth)).collect();
    let (mut scene, later, now) = with_schedules(&names, "").await;
    let clients = (0..CLIENTS).map(|nth| {
        let channels = (nth * EACH..(nth + 1) * EACH).map(|channel| format!("channel=c.{channel}"));
        let path = format!("/hostile?{}", channels.collect::<Vec<_>>().join("&"));
        let mut socket = TcpStream::connect(scene.relay.clients).unwrap();
        socket.write_all(request(scene.relay.clients, &path).as_bytes()).unwrap();
        let mut answer = [0; 13];
        socket.read_exact(&mut answer).unwrap();
        assert_eq!(String::from_utf8_lossy(&answer), "HTTP/1.1 101 ");
        reads(&socket);
        socket
    });
    let clients: Vec<_> = clients.collect();
    run_schedules(&mut scene, &later, &now).await;
    published(&scene, (CLIENTS * EACH) as f64).await;
    assert!(scene.relay.metric("edge_relay_deliveries_total", &[("tenant", "hostile")]).await > EACH as f64);
    drop(clients);
}

#[tokio::test]
async fn messages_for_thousands_of_clients() {
    const CLIENTS: usize = 4_000;
    let mut scene = Scene::with("", |_| {}).await;
    let mut peer = scene.partner.as_mut().unwrap().arrival().await.request().await;
    peer.agree(&[]).await;
    let (mut peer, clients) = (peer.into_std(), scene.relay.clients);
    let connect = move || {
        setpriority_process(None, NICE).unwrap();
        // Its own thread is as nice as this one.
        Crowd::connect(clients, "/hostile", CLIENTS, 9)
    };
    let crowd = Arc::new(thread::spawn(connect).join().unwrap());
    let numbers = Arc::clone(&crowd);
    let sending = Repeated::start(move || {
        let text = format!("{:08} ", numbers.number());
        peer.write_all(&[b"\x81\x09", text.as_bytes()].concat()).unwrap();
        thread::sleep(Duration::from_millis(20));
    });
    let (begin, end) = (async |_: &_| sending.turn(true), async |_: &_| sending.rest().await);
    scene.undisturbed_by(begin, async || pending().await, end).await;
    // The next number.
    let sent = crowd.number();
    until("all messages", async || match crowd.everybody_has().unwrap() {
        has if has >= sent => Ok(()),
        has => Err(format!("{has} of {sent}")),
    })
    .await;
    sending.end();
}

#[tokio::test]
async fn appends_over_the_quota() {
    let names: Vec<_> = (0..4).map(|nth| format!("append-16-{}", (1 << 20) - nth)).collect();
    let scene = scheduled(&names, "records = \"1MiB\"\n").await;
    let labels = [("tenant", "hostile"), ("limit", "records")];
    assert!(scene.relay.metric("edge_relay_limit_refusals_total", &labels).await > 0.0);
}
