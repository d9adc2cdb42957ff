//! Connections of one tenant, or of one address, that hold places which all tenants share.

use std::{
    future::pending,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use rustix::net::{AddressFamily, SocketType, bind, connect, socket, sockopt::set_socket_linger};
use support::{
    bombs::{self, ON_CONNECT, bomb},
    raw::request,
    until,
};

use crate::{
    scene::Scene,
    senders::{Repeated, check_beside},
};

/// Places of a pool on the host, and connections that want one.
const PLACES: usize = 100;
const CROWD: usize = 3 * PLACES;
/// Clients of a herd.
const HERD: usize = 100;
/// How many of a crowd come at once, and the pause until the next. Otherwise the test would measure what so many at
/// once cost its own kernel.
const AT_ONCE: usize = 10;
const NEXT: Duration = Duration::from_millis(1);
/// How long a crowd stays, and the time between two newcomers that must be served beside it.
const STAY: Duration = Duration::from_millis(300);
const BETWEEN: Duration = Duration::from_millis(20);
/// Longest answer to a newcomer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Bytes of an answer that a socket's buffers do not hold.
const LARGE: usize = 8 << 20;

/// Connects from another address of this machine.
fn connect_from_elsewhere(to: SocketAddr) -> TcpStream {
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    // Very many come and go. None of them keeps its port for a while.
    set_socket_linger(&socket, Some(Duration::ZERO)).unwrap();
    bind(&socket, &SocketAddr::from(([127, 0, 0, 2], 0))).unwrap();
    connect(&socket, &to).unwrap();
    TcpStream::from(socket)
}

/// Asks for something on a connection of its own, and returns the answer's first line.
fn ask(to: SocketAddr, request: &str) -> String {
    let mut socket = TcpStream::connect(to).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.write_all(request.as_bytes()).unwrap();
    let mut line = String::new();
    if let Err(error) = BufReader::new(socket).read_line(&mut line) {
        line = error.to_string();
    }
    line
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n")
}

/// Checks that the neighbour is undisturbed by crowds that are made like this, each of which stays for a moment. All
/// newcomers that ask `to` for `path` are served meanwhile.
async fn check(
    scene: &mut Scene,
    mut come: impl FnMut() -> TcpStream + Send + 'static,
    (to, path): (SocketAddr, &'static str),
) {
    let stands = Arc::<AtomicBool>::default();
    let shown = Arc::clone(&stands);
    let crowds = Repeated::start(move || {
        let mut crowd = Vec::new();
        while crowd.len() < CROWD {
            crowd.extend((0..AT_ONCE).map(|_| come()));
            thread::sleep(NEXT);
        }
        shown.store(true, Ordering::SeqCst);
        thread::sleep(STAY);
        while !crowd.is_empty() {
            crowd.truncate(crowd.len().saturating_sub(AT_ONCE));
            thread::sleep(NEXT);
        }
    });
    let served = Arc::<AtomicUsize>::default();
    let counted = Arc::clone(&served);
    let newcomers = Repeated::start(move || {
        let line = ask(to, &get(path));
        assert!(line.starts_with("HTTP/1.1 200 "), "a newcomer was told: {line}");
        counted.fetch_add(1, Ordering::Relaxed);
        thread::sleep(BETWEEN);
    });
    let begin = async |_: &_| {
        stands.store(false, Ordering::SeqCst);
        crowds.turn(true);
        until("a crowd", async || stands.load(Ordering::SeqCst).then_some(()).ok_or_else(String::new)).await;
        newcomers.turn(true);
    };
    let end = async |_: &_| {
        newcomers.rest().await;
        crowds.rest().await;
    };
    scene.undisturbed_by(begin, async || pending().await, end).await;
    newcomers.end();
    crowds.end();
    let served = served.load(Ordering::Relaxed);
    assert!(served > 5, "{served} newcomers were served");
}

/// How often the host refused something for want of such places.
async fn refused(scene: &Scene, limit: &str) -> f64 {
    scene.relay.metric("edge_relay_limit_refusals_total", &[("limit", limit)]).await
}

#[tokio::test]
async fn handshakes_that_wait_for_a_handler() {
    let more = "[components]\nclient = \"bomb.wasm\"\n[limits]\nclient-call = \"10s\"\n";
    let mut scene = Scene::within(&format!("handshakes = {PLACES}"), more, |folder| {
        folder.write("tenants/hostile/bomb.wasm", bomb(&[ON_CONNECT], bombs::WAIT));
    })
    .await;
    let clients = scene.relay.clients;
    let come = move || {
        let mut socket = connect_from_elsewhere(clients);
        // Whom the relay has sent away may have no answer yet.
        let _ = socket.write_all(request(clients, "/hostile").as_bytes());
        socket
    };
    check(&mut scene, come, (clients, "/neighbour/channels/main")).await;
    assert!(refused(&scene, "handshakes").await > 0.0);
}

#[tokio::test]
async fn handshakes_that_are_never_whole() {
    let limits = format!("handshakes = {PLACES}\nhandshake-timeout = \"60s\"");
    let mut scene = Scene::within(&limits, "", |_| {}).await;
    let (clients, mut nth) = (scene.relay.clients, 0);
    let come = move || {
        let mut socket = connect_from_elsewhere(clients);
        nth += 1;
        let _ = socket.write_all(["", "GET", "GET /hostile HTTP/1.1\r\nHost: "][nth % 3].as_bytes());
        socket
    };
    // They wait for those that began before them, and newcomers of other addresses do not.
    check(&mut scene, come, (clients, "/neighbour/channels/main")).await;
}

#[tokio::test]
async fn clients_that_take_every_place() {
    let mut scene = Scene::within(&format!("clients = {CROWD}"), "", |_| {}).await;
    let clients = scene.relay.clients;
    let come = move || {
        let mut socket = TcpStream::connect(clients).unwrap();
        let _ = socket.write_all(request(clients, "/hostile?channel=main").as_bytes());
        socket
    };
    check(&mut scene, come, (clients, "/neighbour/channels/main")).await;
    assert!(refused(&scene, "clients").await > 0.0);
}

#[tokio::test]
async fn readings_of_channels_that_nobody_takes() {
    // The partner may be silent for long: what it has sent stays.
    let mut scene = Scene::with("idle-timeout = \"1h\"\n", |_| {}).await;
    let mut peer = scene.partner.as_mut().unwrap().arrival().await.request().await;
    peer.agree(&[]).await;
    let mut peer = peer.into_std();
    let head = [vec![0x81, 127], (LARGE as u64).to_be_bytes().into()].concat();
    peer.write_all(&[head, vec![b'x'; LARGE]].concat()).unwrap();
    scene.relay.metric_reaches("edge_relay_publications_total", &[("tenant", "hostile")], 1.0).await;
    let clients = scene.relay.clients;
    let come = move || {
        let mut socket = connect_from_elsewhere(clients);
        let _ = socket.write_all(get("/hostile/channels/main").as_bytes());
        socket
    };
    check(&mut scene, come, (clients, "/neighbour/channels/main")).await;
    assert!(refused(&scene, "channel-reads").await > 0.0);
    scene.memory_is_bounded();
}

#[tokio::test]
async fn connections_to_the_api_that_are_idle_or_never_whole() {
    let mut scene = Scene::within(&format!("api-connections = {PLACES}"), "", |_| {}).await;
    let (api, mut nth) = (scene.relay.api(), 0);
    let come = move || {
        let mut socket = connect_from_elsewhere(api);
        nth += 1;
        let _ = socket.write_all(["", "GET", "POST /hostile HTTP/1.1\r\nContent-Length: 9\r\n"][nth % 3].as_bytes());
        socket
    };
    check(&mut scene, come, (api, "/neighbour/count")).await;
    assert!(scene.relay.metric("edge_relay_api_refused_total", &[("reason", "idle")]).await > 0.0);
}

/// Connections to every listener that are closed as soon as they are open, or ask for something that is not there.
#[tokio::test]
async fn connections_that_come_and_go() {
    let mut scene = Scene::with("", |_| {}).await;
    let (clients, api, admin) = (scene.relay.clients, scene.relay.api(), scene.relay.admin());
    let coming = [(clients, ""), (clients, "/none"), (api, ""), (api, "/none"), (admin, ""), (admin, "/none")]
        .into_iter()
        .map(|(to, path)| {
            Repeated::start(move || {
                let mut socket = connect_from_elsewhere(to);
                if !path.is_empty() {
                    let _ = socket.write_all(get(path).as_bytes());
                    let _ = socket.read(&mut [0; 1024]);
                }
            })
        })
        .collect();
    check_beside(&mut scene, coming).await;
    for refused in ["handshakes_refused", "api_refused"] {
        let labels = [("reason", "not_found")];
        assert!(scene.relay.metric(&format!("edge_relay_{refused}_total"), &labels).await > 10.0);
    }
}

/// Handshakes of very many clients at once, which leave as soon as they are let in.
#[tokio::test]
async fn herds_of_clients() {
    let mut scene = Scene::with("", |_| {}).await;
    let clients = scene.relay.clients;
    let herds = (0..4)
        .map(|_| {
            Repeated::start(move || {
                let herd: Vec<_> = (0..HERD).map(|_| TcpStream::connect(clients).unwrap()).collect();
                for mut socket in &herd {
                    socket.write_all(request(clients, "/hostile?channel=main").as_bytes()).unwrap();
                }
                for mut socket in herd {
                    socket.set_read_timeout(Some(PATIENCE)).unwrap();
                    let mut answer = [0; 13];
                    socket.read_exact(&mut answer).unwrap();
                    assert_eq!(String::from_utf8_lossy(&answer), "HTTP/1.1 101 ");
                }
            })
        })
        .collect();
    check_beside(&mut scene, herds).await;
}
