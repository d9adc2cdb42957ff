//! What is costly at the admin listener.

use std::{
    io::{Read, Write},
    net::TcpStream,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use support::bombs::bomb;

use crate::{
    scene::Scene,
    senders::{Repeated, check_beside},
};

/// Schedules of the hostile tenant, each of which has metrics of its own.
const SCHEDULES: usize = 2_000;

#[tokio::test]
async fn metrics_of_thousands_of_schedules() {
    let schedules: String = (0..SCHEDULES)
        .map(|nth| format!("[[schedule]]\nname = \"s{nth}\"\nevery = \"24h\"\nafter = \"24h\"\n"))
        .collect();
    let more = format!("[components]\njob = \"bomb.wasm\"\n{schedules}");
    let mut scene = Scene::new(&bomb(&[], ""), &more).await;
    let admin = scene.relay.admin();
    let longest = Arc::<AtomicUsize>::default();
    let seen = Arc::clone(&longest);
    let scraping = Repeated::start(move || {
        let mut socket = TcpStream::connect(admin).unwrap();
        write!(socket, "GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = Vec::new();
        socket.read_to_end(&mut answer).unwrap();
        seen.fetch_max(answer.len(), Ordering::Relaxed);
    });
    check_beside(&mut scene, vec![scraping]).await;
    let longest = longest.load(Ordering::Relaxed);
    assert!(longest > SCHEDULES * 100, "{longest} bytes");
}
