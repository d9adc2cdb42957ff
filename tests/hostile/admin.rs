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
    scene::{Scene, is_full},
    senders::{Repeated, check_beside},
};

/// Tenants whose manifests are wrong, the wrong keys of each, and their length.
const WRONG: usize = 40;
const PROBLEMS: usize = 50;
const LENGTH: usize = 100;
/// How much of all reasons is shown, in bytes: not all.
const SHOWN: std::ops::Range<usize> = 200 << 10..350 << 10;

/// Checks that the neighbour is undisturbed while somebody asks for this again and again. Returns the length of the
/// longest answer.
async fn check(scene: &mut Scene, path: &'static str) -> usize {
    let admin = scene.relay.admin();
    let longest = Arc::<AtomicUsize>::default();
    let seen = Arc::clone(&longest);
    let asking = Repeated::start(move || {
        let mut socket = TcpStream::connect(admin).unwrap();
        write!(socket, "GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = Vec::new();
        socket.read_to_end(&mut answer).unwrap();
        seen.fetch_max(answer.len(), Ordering::Relaxed);
    });
    check_beside(scene, vec![asking]).await;
    longest.load(Ordering::Relaxed)
}

/// Each schedule has metrics of its own.
#[tokio::test]
async fn metrics_of_thousands_of_schedules() {
    let count = if is_full() { 12_000 } else { 2_000 };
    let schedules: String =
        (0..count).map(|nth| format!("[[schedule]]\nname = \"s{nth}\"\nevery = \"24h\"\nafter = \"24h\"\n")).collect();
    let more = format!("[components]\njob = \"bomb.wasm\"\n{schedules}");
    let mut scene = Scene::new(&bomb(&[], ""), &more).await;
    let longest = check(&mut scene, "/metrics").await;
    assert!(longest > count * 100, "{longest} bytes");
}

#[tokio::test]
async fn reasons_of_many_long_problems() {
    let wrong: String = (0..PROBLEMS).map(|nth| format!("wrong{nth}{} = 1\n", "x".repeat(LENGTH))).collect();
    let mut scene = Scene::with("", |folder| {
        (0..WRONG).for_each(|nth| folder.write(&format!("tenants/wrong{nth}/tenant.toml"), &wrong));
    })
    .await;
    let longest = check(&mut scene, "/readyz").await;
    assert!(SHOWN.contains(&longest), "{longest} bytes");
}
