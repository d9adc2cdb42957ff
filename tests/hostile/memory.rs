//! What a tenant can make the host keep for it: within its `memory-total`, which is 1 GiB unless its manifest says less.

use std::time::Duration;

use futures_util::future::join_all;
use support::{
    appended::with_module,
    bombs::{ON_MESSAGE, bomb},
    client::Client,
    guests,
    http::Http,
    raw::{Raw, header},
};
use tokio::time::{sleep, timeout};
use tokio_tungstenite::tungstenite::{Message, protocol::frame::coding::Data};

use crate::scene::{Scene, knock};

/// The default of `memory-total`.
const TOTAL: usize = 1 << 30;
const MIB: usize = 1 << 20;
const HANDLER: &str = "[components]\nclient = \"bomb.wasm\"\n";
/// A channel that keeps much.
const LARGE_LOG: &str = "[channels.\"main\"]\nlog = \"256MiB\"\nslow = \"close\"\n";
/// A partner may send messages of 64 MiB.
const LARGE_MESSAGES: &str = "max-message = \"64MiB\"\n";

/// Knocks at a component of which each instance has a module with these parts 58 times.
async fn instances_with(parts: &str) {
    let code = with_module(&bomb(&[], ""), parts, 58);
    let mut scene = Scene::new(&code, HANDLER).await;
    let address = scene.relay.clients;
    let knocks = async {
        for _ in 0..3 {
            join_all((0..12).map(|_| knock(address, "/hostile"))).await;
        }
    };
    scene.memory_within(128 * MIB, 1, knocks).await;
}

#[tokio::test]
async fn globals_and_segments_of_many_instances() {
    instances_with(&"(global i64 (i64.const 0))".repeat(300_000)).await;
    instances_with(&format!("(func) {}", "(elem func 0)".repeat(100_000))).await;
}

/// Returns 9,001 actions that keep the shard busy and have 6 MiB: to follow a channel, to leave it, and to leave another
/// with a name of 2 KiB, again and again. The last one publishes, and must wait until the shard has done the others.
const MANY_ACTIONS: &str = "(local $at i32)
    (if (i32.lt_u (memory.size) (i32.const 24)) (then (drop (memory.grow (i32.const 8)))))
    (local.set $at (i32.const 0x110000))
    (loop $on
        (i32.store8 (local.get $at) (i32.const 5))
        (i32.store offset=4 (local.get $at) (i32.const 144))
        (i32.store offset=8 (local.get $at) (i32.const 5))
        (i32.store8 offset=40 (local.get $at) (i32.const 6))
        (i32.store offset=44 (local.get $at) (i32.const 144))
        (i32.store offset=48 (local.get $at) (i32.const 5))
        (i32.store8 offset=80 (local.get $at) (i32.const 6))
        (i32.store offset=84 (local.get $at) (i32.const 0x100000))
        (i32.store offset=88 (local.get $at) (i32.const 2048))
        (br_if $on (i32.lt_u (local.tee $at (i32.add (local.get $at) (i32.const 120))) (i32.const 0x167e40))))
    (i32.store8 (local.get $at) (i32.const 3))
    (i32.store offset=4 (local.get $at) (i32.const 144))
    (i32.store offset=8 (local.get $at) (i32.const 5))
    (i32.store (i32.const 40) (i32.const 0x110000))
    (i32.store (i32.const 44) (i32.const 9001))
    (i32.const 40)";

/// Sends one message from each of many clients, whose handler answers with these actions.
async fn act(address: std::net::SocketAddr, path: &str, clients: usize) {
    let mut connected = Vec::new();
    for _ in 0..clients {
        connected.push(Raw::connect(address, path).await);
    }
    let sent =
        connected.iter_mut().map(async |client: &mut Raw| client.try_send(&support::raw::frame(0x81, b"go")).await);
    join_all(sent).await;
    sleep(Duration::from_secs(2)).await;
}

#[tokio::test]
async fn actions_that_wait_for_the_shard() {
    let limits = "[limits]\nclient-backlog = \"1MiB\"\nclient-call = \"10s\"\n";
    let mut scene = Scene::new(&bomb(&[ON_MESSAGE], MANY_ACTIONS), &format!("{HANDLER}{limits}")).await;
    let address = scene.relay.clients;
    scene.memory_within(256 * MIB, 1, act(address, "/hostile", 800)).await;
    let refused = [("tenant", "hostile"), ("limit", "client-backlog")];
    scene.relay.metric_reaches("edge_relay_limit_refusals_total", &refused, 1.0).await;
}

/// Begins messages of 16 MiB and does not end them: one in one frame, one in many.
async fn begin_messages(address: std::net::SocketAddr, path: &str, clients: usize) {
    const PIECE: usize = 64 << 10;
    const PIECES: usize = 255;
    let mut open = Vec::new();
    for nth in 0..clients {
        // Once the tenant's memory is full, its handler has no instance to let a client in.
        let tcp = tokio::net::TcpStream::connect(address).await.unwrap();
        let Ok(mut client) = Raw::try_upgrade(tcp, address, path).await else { continue };
        let fragments = nth % 2 == 0;
        let sent = async {
            if !fragments && !client.try_send(&header(0x82, 16 << 20)).await {
                return;
            }
            for piece in 0..PIECES {
                let first = if piece == 0 { 0x02 } else { 0x00 };
                let whole = if fragments { support::raw::frame(first, &[b'x'; PIECE]) } else { vec![b'x'; PIECE] };
                if !client.try_send(&whole).await {
                    return;
                }
            }
        };
        // A client that the relay has closed takes no more.
        let _ = timeout(Duration::from_secs(5), sent).await;
        open.push(client);
    }
    sleep(Duration::from_millis(500)).await;
}

#[tokio::test]
async fn unfinished_messages_of_clients() {
    let limits = "[limits]\nclient-message = \"16MiB\"\n";
    let mut scene = Scene::new(&bomb(&[], ""), &format!("{HANDLER}{limits}")).await;
    let address = scene.relay.clients;
    scene.memory_within(TOTAL, 1, begin_messages(address, "/hostile", 100)).await;
}

/// Upstreams whose partner begins a message of 64 MiB and does not end it.
fn upstreams(url: &str, count: usize) -> String {
    let upstream = |nth| format!("[[upstream]]\nname = \"u{nth}\"\nurl = \"{url}\"\n{LARGE_MESSAGES}");
    (0..count).map(upstream).collect()
}

#[tokio::test]
async fn unfinished_messages_of_partners() {
    const UPSTREAMS: usize = 26;
    let mut partner = support::partner::Partner::start().await;
    let more = upstreams(&partner.url(), UPSTREAMS);
    let mut scene = Scene::with(&more, |_| {}).await;
    let begun = async {
        let mut open = Vec::new();
        for nth in 0..UPSTREAMS {
            let mut peer = partner.accept().await;
            // One in one frame, one in many.
            let pieces = if nth % 2 == 0 { 1 } else { 60 };
            for piece in 0..pieces {
                let kind = if piece == 0 { Data::Binary } else { Data::Continue };
                if !peer.fragment(kind, vec![b'x'; (60 << 20) / pieces], false).await {
                    break;
                }
            }
            open.push(peer);
        }
    };
    scene.memory_within(TOTAL, 1, begun).await;
}

/// Publishes messages of 15 MiB, each to clients that have read only the beginning of the one before.
async fn stall(scene: &mut Scene, address: std::net::SocketAddr, messages: usize) {
    let mut partner = scene.partner.take().unwrap();
    let publish = async {
        let mut peer = partner.accept().await;
        let mut stalled = Vec::new();
        for _ in 0..messages {
            stalled.push(Raw::narrow(address, "/hostile?channel=main").await);
            sleep(Duration::from_millis(20)).await;
            peer.send(Message::binary(vec![b'x'; 15 << 20])).await;
        }
        sleep(Duration::from_secs(1)).await;
    };
    scene.memory_within(TOTAL, 1, publish).await;
}

#[tokio::test]
async fn chunks_that_stalled_clients_hold() {
    let more = LARGE_LOG.replace("256MiB", "16MiB");
    let mut scene = Scene::with(&more, |_| {}).await;
    let address = scene.relay.clients;
    stall(&mut scene, address, 100).await;
}

#[tokio::test]
async fn logs_in_every_format() {
    let mut scene = Scene::with(LARGE_LOG, |_| {}).await;
    let address = scene.relay.clients;
    let mut partner = scene.partner.take().unwrap();
    let read = async {
        let mut peer = partner.accept().await;
        for _ in 0..240 {
            peer.burst((0..4).map(|_| Message::binary(vec![b'x'; 256 << 10]))).await;
        }
        sleep(Duration::from_millis(500)).await;
        // Each reads all that the log has, in its format.
        let (_, newest) =
            support::relay::http(address, &get("/hostile/channels/main?limit=1", "Connection: close")).await;
        let newest: serde_json::Value = serde_json::from_str(&newest).unwrap();
        let since = format!("channel=main&since={}:0", newest["epoch"].as_str().unwrap());
        tokio::join!(
            every_byte(address, get(&format!("/hostile/sse?{since}"), "Accept: text/event-stream")),
            every_byte(address, deflating(address, &since)),
        );
    };
    // What all logs may have by default.
    scene.memory_within(256 * MIB, 1, read).await;
}

/// A plain WebSocket's request that agrees to compression.
fn deflating(address: std::net::SocketAddr, since: &str) -> String {
    let request = support::raw::request(address, &format!("/hostile?{since}"));
    format!("{}\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n", request.trim_end())
}

fn get(path: &str, header: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: a\r\n{header}\r\n\r\n")
}

/// Sends a request, and reads for a while what comes.
async fn every_byte(address: std::net::SocketAddr, request: String) {
    let mut raw = Raw::tcp(address).await;
    raw.send(request.as_bytes()).await;
    let _ = timeout(Duration::from_secs(3), raw.ended()).await;
}

#[tokio::test]
async fn listings_of_a_large_folder() {
    let more =
        "[components]\napi = \"api.wasm\"\n[grants.folders]\n\"/data\" = \"data\"\n[limits]\napi-call = \"20s\"\n";
    let mut scene = Scene::with(more, |folder| {
        folder.copy(guests::grants(), "tenants/hostile/api.wasm");
        for nth in 0..20_000 {
            folder.write(&format!("tenants/hostile/data/a-rather-long-name-of-a-file-{nth:0>100}"), "");
        }
    })
    .await;
    let address = scene.relay.api();
    let list = async || Http::connect(address).await.get("/hostile/listings?path=/data/.&count=20").await.body;
    let lists = async {
        for kept in join_all((0..8).map(|_| list())).await {
            assert_eq!(kept, "kept");
        }
    };
    scene.memory_within(128 * MIB, 1, lists).await;
}

/// Tenants that are attacked in different ways at once stay within what all of them may have together.
#[tokio::test]
async fn all_at_once_stay_within_the_sum() {
    const SHARE: usize = 64 * MIB;
    const TENANTS: usize = 3;
    let limits = "memory-total = \"64MiB\"\nclient-message = \"16MiB\"\nclient-call = \"10s\"\n";
    let mut partner = support::partner::Partner::start().await;
    let url = partner.url();
    let mut scene = Scene::new(&bomb(&[ON_MESSAGE], MANY_ACTIONS), &format!("{HANDLER}[limits]\n{limits}")).await;
    let folder = scene.relay.folder();
    let manifest = |name: &str, more: &str| format!("name = \"{name}\"\n{more}\n[limits]\n{limits}");
    folder.write("tenants/begun/tenant.toml", manifest("begun", HANDLER));
    folder.write("tenants/begun/bomb.wasm", bomb(&[], ""));
    let log = "[channels.\"main\"]\nlog = \"256MiB\"\n";
    folder.write("tenants/fed/tenant.toml", manifest("fed", &format!("{}{log}", upstreams(&url, 4))));
    scene.relay.signal(rustix::process::Signal::HUP);
    scene.relay.metric_is("edge_relay_tenants", &[], (TENANTS + 1) as f64).await;
    let address = scene.relay.clients;
    let fed = async {
        for _ in 0..4 {
            let mut peer = partner.accept().await;
            peer.try_send(Message::binary(vec![b'x'; 30 << 20])).await;
            peer.fragment(Data::Binary, vec![b'x'; 50 << 20], false).await;
        }
    };
    let attacks = async {
        tokio::join!(act(address, "/hostile", 200), begin_messages(address, "/begun", 20), fed);
    };
    scene.memory_within(SHARE, TENANTS, attacks).await;
    for tenant in ["hostile", "begun", "fed"] {
        let all = scene.relay.metric("edge_relay_tenant_memory_bytes", &[("tenant", tenant)]).await;
        assert!(all <= SHARE as f64, "{tenant}: {all}");
    }
    // It still serves a client that behaves.
    let begun = Client::connect(&scene.relay.url("/begun")).await;
    drop(begun);
}
