//! What is costly at the admin listener.

use std::{
    io::{Read, Write},
    net::TcpStream,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use support::bombs::bomb;

use crate::{scene::Scene, senders::nice};

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
    let (on, ended) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
    let scraping = {
        let (on, ended) = (Arc::clone(&on), Arc::clone(&ended));
        thread::spawn(move || {
            nice(|| {
                let mut longest = 0;
                while !ended.load(Ordering::Relaxed) {
                    if on.load(Ordering::Relaxed) {
                        let mut socket = TcpStream::connect(admin).unwrap();
                        write!(socket, "GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
                        let mut answer = Vec::new();
                        socket.read_to_end(&mut answer).unwrap();
                        longest = longest.max(answer.len());
                    } else {
                        thread::sleep(Duration::from_millis(1));
                    }
                }
                assert!(longest > SCHEDULES * 100, "{longest} bytes");
            });
        })
    };
    let begin = async |_: &_| on.store(true, Ordering::Relaxed);
    let end = async |_: &_| on.store(false, Ordering::Relaxed);
    scene.undisturbed_by(begin, async || std::future::pending().await, end).await;
    ended.store(true, Ordering::Relaxed);
    scraping.join().unwrap();
}
