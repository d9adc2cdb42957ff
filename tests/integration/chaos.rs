//! The proxy that tests put on a line does to it what it says, and nothing else.

use std::{
    io::ErrorKind,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{Instant, timeout},
};

use crate::support::{
    chaos::{Chaos, Fault, Way, When},
    loopback, until, within,
};

/// Long enough to see that nothing comes.
const A_WHILE: Duration = Duration::from_millis(100);

/// Sends back all that comes; when its client ends, it says so and ends too.
struct Echo {
    address: SocketAddr,
    got: Arc<Mutex<String>>,
    _task: JoinSet<()>,
}

impl Echo {
    async fn start() -> Self {
        let listener = TcpListener::bind((loopback(), 0)).await.unwrap();
        let (address, got) = (listener.local_addr().unwrap(), Arc::<Mutex<String>>::default());
        let (mut task, log) = (JoinSet::new(), Arc::clone(&got));
        task.spawn(async move {
            let mut answering = JoinSet::new();
            loop {
                let (mut socket, _) = listener.accept().await.unwrap();
                let log = Arc::clone(&log);
                answering.spawn(async move {
                    let mut buffer = [0; 1024];
                    let end = loop {
                        match socket.read(&mut buffer).await {
                            Ok(0) => break "(end)",
                            Ok(length) => {
                                log.lock().unwrap().push_str(std::str::from_utf8(&buffer[..length]).unwrap());
                                if socket.write_all(&buffer[..length]).await.is_err() {
                                    break "(reset)";
                                }
                            }
                            Err(_) => break "(reset)",
                        }
                    };
                    if end == "(end)" {
                        let _ = socket.write_all(b"bye").await;
                    }
                    log.lock().unwrap().push_str(end);
                });
            }
        });
        Self { address, got, _task: task }
    }

    /// Waits until that is all it got since it was last asked.
    async fn got(&self, wanted: &str) {
        until(format!("{wanted:?} at the target"), async || {
            let mut got = self.got.lock().unwrap();
            if *got != wanted {
                return Err(got.clone());
            }
            got.clear();
            Ok(())
        })
        .await;
    }
}

async fn exchange(socket: &mut TcpStream, text: &str) {
    socket.write_all(text.as_bytes()).await.unwrap();
    expect(socket, text).await;
}

async fn expect(socket: &mut TcpStream, text: &str) {
    let mut answer = vec![0; text.len()];
    within(text, socket.read_exact(&mut answer)).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&answer), text);
}

async fn expect_reset(socket: &mut TcpStream) {
    let error = within("a reset", socket.read(&mut [0; 8])).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_proxy_passes_all_on_counts_it_and_cuts_it() {
    let echo = Echo::start().await;
    let proxy = Chaos::start(echo.address).await;
    let mut sockets = Vec::new();
    for text in ["one", "three"] {
        let mut socket = TcpStream::connect(proxy.address).await.unwrap();
        exchange(&mut socket, text).await;
        echo.got(text).await;
        sockets.push(socket);
    }
    assert_eq!((proxy.connections(), proxy.open(), proxy.bytes(Way::Up), proxy.bytes(Way::Down)), (2, 2, 8, 8));
    proxy.cut();
    for mut socket in sockets {
        expect_reset(&mut socket).await;
    }
    echo.got("(reset)(reset)").await;
    let mut socket = TcpStream::connect(proxy.address).await.unwrap();
    exchange(&mut socket, "again").await;
    socket.shutdown().await.unwrap();
    expect(&mut socket, "bye").await;
    assert_eq!(within("the end", socket.read(&mut [0; 8])).await.unwrap(), 0);
    echo.got("again(end)").await;
    until("no open connection", async || match proxy.open() {
        0 => Ok(()),
        open => Err(open.to_string()),
    })
    .await;
    assert_eq!(proxy.connections(), 3);
}

#[tokio::test]
async fn a_proxy_holds_back_and_delays() {
    let echo = Echo::start().await;
    let proxy = Chaos::start(echo.address).await;
    let mut socket = TcpStream::connect(proxy.address).await.unwrap();
    exchange(&mut socket, "before").await;
    echo.got("before").await;
    proxy.stall();
    socket.write_all(b"held").await.unwrap();
    timeout(A_WHILE, socket.read_u8()).await.unwrap_err();
    echo.got("").await;
    proxy.go_on();
    expect(&mut socket, "held").await;

    proxy.latency(A_WHILE);
    let sent = Instant::now();
    exchange(&mut socket, "late").await;
    assert!(sent.elapsed() >= 2 * A_WHILE, "{:?}", sent.elapsed());
    // It delays, it does not slow down.
    let sent = Instant::now();
    for _ in 0..100 {
        socket.write_all(b"a line of text, ").await.unwrap();
        tokio::task::yield_now().await;
    }
    expect(&mut socket, &"a line of text, ".repeat(100)).await;
    assert!((2 * A_WHILE..50 * A_WHILE).contains(&sent.elapsed()), "{:?}", sent.elapsed());
}

#[tokio::test]
async fn a_fault_strikes_where_it_was_armed() {
    let echo = Echo::start().await;
    let proxy = Chaos::start(echo.address).await;
    // What reaches the target, and what comes back; nobody knows where an answer and the reset race.
    let cases = [
        (When::Passed(Way::Up, 2), "CO", None),
        (When::Passed(Way::Up, 0), "", Some("")),
        (When::Passed(Way::Down, 2), "COMMIT;", Some("CO")),
        (When::Passed(Way::Down, 0), "COMMIT;", Some("")),
        (When::Before(Way::Up, "MIT"), "COM", None),
        (When::After(Way::Up, "COMM"), "COMM", None),
        (When::Before(Way::Down, "MIT"), "COMMIT;", Some("COM")),
        (When::Answer("COMMIT"), "COMMIT;", Some("")),
    ];
    let mut other = TcpStream::connect(proxy.address).await.unwrap();
    for (when, reaches_target, comes_back) in cases {
        let mut socket = TcpStream::connect(proxy.address).await.unwrap();
        exchange(&mut socket, "SELECT;").await;
        echo.got("SELECT;").await;
        proxy.arm(when, Fault::Cut);
        socket.write_all(b"COMMIT;").await.unwrap();
        proxy.struck().await;
        let mut got = Vec::new();
        let error = within("a reset", socket.read_to_end(&mut got)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        if let Some(comes_back) = comes_back {
            assert_eq!(String::from_utf8(got).unwrap(), comes_back);
        }
        echo.got(&format!("{reaches_target}(reset)")).await;
        // Nobody else is struck.
        exchange(&mut other, "another").await;
        echo.got("another").await;
    }
}

#[tokio::test]
async fn a_text_is_found_in_pieces() {
    let echo = Echo::start().await;
    let proxy = Chaos::start(echo.address).await;
    proxy.arm(When::Answer("COMMIT"), Fault::Stall);
    let mut socket = TcpStream::connect(proxy.address).await.unwrap();
    for piece in ["a CO", "M"] {
        exchange(&mut socket, piece).await;
    }
    socket.write_all(b"MIT").await.unwrap();
    proxy.struck().await;
    timeout(A_WHILE, socket.read_u8()).await.unwrap_err();
    echo.got("a COMMIT").await;
    proxy.go_on();
    expect(&mut socket, "MIT").await;
    // It was for once, and never comes where all goes on before.
    exchange(&mut socket, "COMMIT").await;
    proxy.arm(When::Passed(Way::Up, 1), Fault::Stall);
    proxy.go_on();
    exchange(&mut socket, "COMMIT").await;
}

#[tokio::test]
async fn one_way_of_a_connection_ends_alone() {
    let echo = Echo::start().await;
    let proxy = Chaos::start(echo.address).await;
    let mut socket = TcpStream::connect(proxy.address).await.unwrap();
    exchange(&mut socket, "whole").await;
    proxy.half_close(Way::Up);
    expect(&mut socket, "bye").await;
    echo.got("whole(end)").await;

    let mut socket = TcpStream::connect(proxy.address).await.unwrap();
    proxy.arm(When::Answer("COMMIT"), Fault::HalfClose(Way::Down));
    socket.write_all(b"COMMIT;").await.unwrap();
    assert_eq!(within("the end", socket.read(&mut [0; 8])).await.unwrap(), 0);
    echo.got("COMMIT;").await;
    socket.write_all(b"more").await.unwrap();
    echo.got("more").await;
}

#[tokio::test]
async fn a_proxy_refuses_who_comes_and_keeps_who_is_there() {
    let echo = Echo::start().await;
    let mut proxy = Chaos::start(echo.address).await;
    let mut socket = TcpStream::connect(proxy.address).await.unwrap();
    exchange(&mut socket, "in").await;
    proxy.refuse().await;
    let error = TcpStream::connect(proxy.address).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    exchange(&mut socket, "still").await;
    proxy.accept().await;
    exchange(&mut TcpStream::connect(proxy.address).await.unwrap(), "new").await;
    assert_eq!(proxy.connections(), 2);
}
