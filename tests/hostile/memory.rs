//! What a tenant can make the host keep for it: no more than its `memory-total`, which is 1 GiB by default.

use std::{net::SocketAddr, time::Duration};

use futures_util::future::join_all;
use support::{
    appended::with_module,
    bombs::{ON_MESSAGE, bomb},
    client::Client,
    guests,
    http::Http,
    partner::Partner,
    raw::{Raw, header},
    tenant::Folder,
};
use tokio::time::{sleep, timeout};
use tokio_tungstenite::tungstenite::{Message, protocol::frame::coding::Data};

use crate::scene::{Scene, knock};

/// The default of `memory-total`.
const TOTAL: usize = 1 << 30;
const MIB: usize = 1 << 20;
const HANDLER: &str = "[components]\nclient = \"bomb.wasm\"\n";
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

/// Returns 9,001 actions that keep the shard busy and have 6 MiB: to follow a channel, to leave it, and to leave
/// another with a name of 2 KiB, again and again. The last one publishes, and must wait until the shard has done the
/// others.
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
async fn act(address: SocketAddr, path: &str, clients: usize) {
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
    let limits = "[limits]\nclient-backlog = \"64KiB\"\nclient-call = \"10s\"\n";
    let mut scene = Scene::new(&bomb(&[ON_MESSAGE], MANY_ACTIONS), &format!("{HANDLER}{limits}")).await;
    let address = scene.relay.clients;
    scene.memory_within(256 * MIB, 1, act(address, "/hostile", 800)).await;
    let refused = [("tenant", "hostile"), ("limit", "client-backlog")];
    scene.relay.metric_reaches("edge_relay_limit_refusals_total", &refused, 1.0).await;
}

/// Begins messages of 16 MiB and does not end them: one in one frame, one in many.
async fn begin_messages(address: SocketAddr, path: &str, clients: usize) {
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
                let whole = if fragments { support::raw::frame(first, &vec![b'x'; PIECE]) } else { vec![b'x'; PIECE] };
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
    let mut partner = Partner::start().await;
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
async fn stall(partner: &mut Partner, address: SocketAddr, path: &str, messages: usize) {
    let mut peer = partner.accept().await;
    let mut stalled = Vec::new();
    for _ in 0..messages {
        stalled.push(Raw::narrow(address, &format!("{path}?channel=main")).await);
        sleep(Duration::from_millis(20)).await;
        if !peer.try_send(Message::binary(vec![b'x'; 15 << 20])).await {
            // There was no memory for it. The relay comes again.
            peer = partner.accept().await;
        }
    }
    sleep(Duration::from_secs(1)).await;
}

#[tokio::test]
async fn chunks_that_stalled_clients_hold() {
    let mut scene = Scene::with("[channels.\"main\"]\nlog = \"16MiB\"\nslow = \"close\"\n", |_| {}).await;
    let (address, mut partner) = (scene.relay.clients, scene.partner.take().unwrap());
    scene.memory_within(TOTAL, 1, stall(&mut partner, address, "/hostile", 100)).await;
}

/// Event streams of several channels have their events put together one by one.
#[tokio::test]
async fn events_that_stalled_streams_of_several_channels_do_not_take() {
    const STREAMS: usize = 100;
    let channels = "[channels.\"main\"]\nlog = \"64MiB\"\n[channels.\"other\"]\n[limits]\nmemory-total = \"256MiB\"\n";
    // An older relay does not know this key; the memory is checked in any case.
    let channels = if std::env::var_os("EDGE_RELAY_PROGRAM").is_some() {
        channels.replace("memory-total = \"256MiB\"", "")
    } else {
        channels.to_owned()
    };
    let mut scene = Scene::with(&channels, |_| {}).await;
    let (address, mut partner) = (scene.relay.clients, scene.partner.take().unwrap());
    let stalled = async {
        let mut peer = partner.accept().await;
        let mut streams = Vec::new();
        for _ in 0..STREAMS {
            let mut stream = Raw::tcp(address).await;
            stream.send(get("/hostile/sse?channel=main&channel=other", "Accept: text/event-stream").as_bytes()).await;
            stream.head().await;
            streams.push(stream);
        }
        peer.send(Message::binary(vec![b'x'; 12 << 20])).await;
        sleep(Duration::from_secs(3)).await;
    };
    scene.memory_within(256 * MIB, 1, stalled).await;
}

/// Fills the log of channel `main`, and has clients read it in other formats than it came in.
async fn read_in_every_format(partner: &mut Partner, address: SocketAddr, path: &str, messages: usize) {
    let mut peer = partner.accept().await;
    for _ in 0..messages / 4 {
        peer.burst((0..4).map(|_| Message::binary(vec![b'x'; 256 << 10]))).await;
    }
    sleep(Duration::from_millis(500)).await;
    // Each reads all that the log has, in its format.
    let newest = get(&format!("{path}/channels/main?limit=1"), "Connection: close");
    let (_, newest) = support::relay::http(address, &newest).await;
    let newest: serde_json::Value = serde_json::from_str(&newest).unwrap();
    let since = format!("channel=main&since={}:0", newest["epoch"].as_str().unwrap());
    tokio::join!(
        every_byte(address, get(&format!("{path}/sse?{since}"), "Accept: text/event-stream")),
        every_byte(address, deflating(address, &format!("{path}?{since}"))),
    );
}

#[tokio::test]
async fn logs_in_every_format() {
    let mut scene = Scene::with("[channels.\"main\"]\nlog = \"256MiB\"\n", |_| {}).await;
    let (address, mut partner) = (scene.relay.clients, scene.partner.take().unwrap());
    // What all logs may have by default.
    scene.memory_within(256 * MIB, 1, read_in_every_format(&mut partner, address, "/hostile", 960)).await;
}

/// A plain WebSocket's request that agrees to compression.
fn deflating(address: SocketAddr, path: &str) -> String {
    let request = support::raw::request(address, path);
    format!("{}\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n", request.trim_end())
}

fn get(path: &str, header: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: a\r\n{header}\r\n\r\n")
}

/// Sends a request, and reads for a while what comes.
async fn every_byte(address: SocketAddr, request: String) {
    let mut raw = Raw::tcp(address).await;
    raw.send(request.as_bytes()).await;
    let _ = timeout(Duration::from_secs(3), raw.ended()).await;
}

/// A tenant whose API may read a folder with many files.
const LISTS: &str =
    "[components]\napi = \"api.wasm\"\n[grants.folders]\n\"/data\" = \"data\"\n[limits]\napi-call = \"20s\"\n";

fn large_folder(folder: &Folder, tenant: &str) {
    folder.copy(guests::grants(), &format!("tenants/{tenant}/api.wasm"));
    for nth in 0..20_000 {
        folder.write(&format!("tenants/{tenant}/data/a-rather-long-name-of-a-file-{nth:0>100}"), "");
    }
}

/// Begins listings in several instances at once, and keeps them.
async fn list(api: SocketAddr, tenant: &str) {
    let path = format!("/{tenant}/listings?path=/data/.&count=20");
    let lists = (0..8).map(|_| async { Http::connect(api).await.get(&path).await.body });
    for kept in join_all(lists).await {
        assert_eq!(kept, "kept");
    }
}

#[tokio::test]
async fn listings_of_a_large_folder() {
    let mut scene = Scene::with(LISTS, |folder| large_folder(folder, "hostile")).await;
    let api = scene.relay.api();
    scene.memory_within(128 * MIB, 1, list(api, "hostile")).await;
}

/// Tenants that attack in all these ways at once stay within what all of them may have together.
#[tokio::test]
async fn all_at_once_stay_within_the_sum() {
    const SHARE: usize = 64 * MIB;
    const TENANTS: [&str; 6] = ["hostile", "begun", "fed", "stalled", "read", "lists"];
    let limits = "memory-total = \"64MiB\"\nclient-message = \"16MiB\"\nclient-call = \"10s\"\n";
    let mut partners = [Partner::start().await, Partner::start().await, Partner::start().await];
    let urls = partners.each_ref().map(Partner::url);
    let mut scene = Scene::new(&bomb(&[ON_MESSAGE], MANY_ACTIONS), &format!("{HANDLER}[limits]\n{limits}")).await;
    let folder = scene.relay.folder();
    let tenant = |name: &str, more: &str| {
        let limits = if more.contains("[limits]") { limits.to_owned() } else { format!("[limits]\n{limits}") };
        folder.write(&format!("tenants/{name}/tenant.toml"), format!("name = \"{name}\"\n{more}\n{limits}"));
    };
    folder.write("tenants/begun/bomb.wasm", bomb(&[], ""));
    tenant("begun", HANDLER);
    let log = "[channels.\"main\"]\nlog = \"256MiB\"\n";
    tenant("fed", &format!("{}{log}", upstreams(&urls[0], 4)));
    tenant("stalled", &format!("{}{log}slow = \"close\"\n", upstreams(&urls[1], 1)));
    tenant("read", &format!("{}{log}", upstreams(&urls[2], 1)));
    large_folder(folder, "lists");
    tenant("lists", LISTS);
    scene.relay.signal(rustix::process::Signal::HUP);
    // The neighbour and the honest tenant are there, too.
    scene.relay.metric_is("edge_relay_tenants", &[], 2.0 + TENANTS.len() as f64).await;
    let (address, api) = (scene.relay.clients, scene.relay.api());
    let [fed, stalled, read] = &mut partners;
    let feed = async {
        for _ in 0..4 {
            let mut peer = fed.accept().await;
            peer.try_send(Message::binary(vec![b'x'; 30 << 20])).await;
            peer.fragment(Data::Binary, vec![b'x'; 50 << 20], false).await;
        }
    };
    let attacks = async {
        // Each on the heap: together they are too large for a stack.
        tokio::join!(
            Box::pin(act(address, "/hostile", 200)),
            Box::pin(begin_messages(address, "/begun", 20)),
            Box::pin(feed),
            // More than fit. Each that does not costs the relay a connection to its partner.
            Box::pin(stall(stalled, address, "/stalled", 8)),
            Box::pin(read_in_every_format(read, address, "/read", 400)),
            Box::pin(list(api, "lists")),
        );
    };
    scene.memory_within(SHARE, TENANTS.len(), Box::pin(attacks)).await;
    for tenant in TENANTS {
        let all = scene.relay.metric("edge_relay_tenant_memory_bytes", &[("tenant", tenant)]).await;
        assert!(all <= SHARE as f64, "{tenant}: {all}");
    }
    // A client that behaves is served as before.
    drop(Client::connect(&scene.relay.url("/begun")).await);
}
