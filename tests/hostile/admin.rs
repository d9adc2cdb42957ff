//! What is costly at the admin listener.

use std::{
    io::{Read, Write},
    net::TcpStream,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use rustix::process::Signal;
use support::bombs::bomb;

use crate::{
    scene::{Scene, is_full},
    senders::{Repeated, check_beside},
};

/// Wrong keys of the hostile tenant's manifest, and their length: all that a manifest holds.
const PROBLEMS: usize = 200;
const LENGTH: usize = 4000;
/// How much of a manifest's problems is shown at most, in bytes.
const SHOWN: usize = 512 << 10;

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
    let mut scene = Scene::with("", |_| {}).await;
    let manifest = "tenants/hostile/tenant.toml";
    let folder = scene.relay.folder();
    let wrong: String =
        (0..PROBLEMS).map(|nth| format!("[[schedule]]\nwrong{nth}{} = 1\n", "x".repeat(LENGTH))).collect();
    folder.write(manifest, [std::fs::read_to_string(folder.path(manifest)).unwrap(), wrong].concat());
    scene.relay.signal(Signal::HUP);
    let labels = [("tenant", "hostile"), ("outcome", "refused")];
    scene.relay.metric_reaches("edge_relay_tenant_swaps_total", &labels, 1.0).await;
    let longest = check(&mut scene, "/readyz").await;
    assert!((10 * LENGTH..SHOWN).contains(&longest), "{longest} bytes");
}
