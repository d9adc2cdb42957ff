//! Machines that lack what others have: code runs all the same, or one sentence says why not, and neither the cache nor
//! the tenant pays for it.

use std::{fs, os::unix::fs::MetadataExt};

use rustix::{
    io::Errno,
    process::{Resource, Signal},
};
use support::{
    bombs,
    client::Client,
    compile_bombs,
    disk::Disk,
    guests, hosts,
    machine::{Refusal, can_refuse, refusing, without_proc},
    partner::Partner,
    process::{command, shown},
    relay::Relay,
    tenant::Folder,
};
use tokio_tungstenite::tungstenite::Message;

use crate::component::code::{COMPILES, DISTRUSTED, cached, compiled_before, loaded, works};

const FAILURES: &str = "edge_relay_guest_failures_total";
const NOWHERE: &str = "ws://127.0.0.1:1/";
/// Address space for the relay's own needs, in bytes. An instance reserves more: 4 GiB for each memory.
const ROOM: usize = 1 << 30;
/// Takes 50 MiB of memory at once, and gives up.
const GROW: &str = "(drop (memory.grow (i32.const 800))) unreachable";
/// Writable memory for the relay's own needs, in bytes. It is less than [`GROW`] takes.
const WRITABLE: usize = 32 << 20;

/// The one entry of the folder's cache: which file it is, and what is in it.
fn entry(folder: &Folder) -> (u64, Vec<u8>) {
    let entries = cached(folder, ".code");
    assert_eq!(entries.len(), 1, "{entries:?}");
    (entries[0].metadata().unwrap().ino(), fs::read(&entries[0]).unwrap())
}

#[tokio::test]
async fn without_a_system_call_that_helps_code_is_compiled_and_runs() {
    let Some(()) = can_refuse() else { return };
    for error in [Errno::NOSYS, Errno::PERM] {
        for refusal in [Refusal::pidfd_open(error), Refusal::memfd_create(error)] {
            let mut partner = Partner::start().await;
            let folder = Folder::with_own_cache("").filtered("t", &partner.url(), guests::market("filter"), "");
            let relay = Relay::serve_by(folder, |command| refusing(command, &[refusal])).await;
            assert_eq!(loaded(&relay).await, [1.0, 0.0, 0.0], "{}", relay.log());
            works(&relay, &mut partner.accept().await, "1").await;
            let folder = relay.end_with(Signal::TERM).await;
            // The cache has the entry and the key, and nothing unfinished.
            assert_eq!(cached(&folder, "").len(), 2, "{:?}", cached(&folder, ""));
            assert_eq!(loaded(&Relay::serve(folder).await).await, [0.0, 1.0, 0.0]);
        }
    }
}

#[tokio::test]
async fn a_compilation_has_its_deadline_without_pidfd_open() {
    let Some(()) = can_refuse() else { return };
    let folder = Folder::with_own_cache("compile-time = \"1s\"").filtered("t", NOWHERE, guests::echo(), "");
    folder.write("tenants/t/filter.wasm", compile_bombs::of_time());
    let refusal = Refusal::pidfd_open(Errno::NOSYS);
    let relay = Relay::serve_by(folder, |command| refusing(command, &[refusal])).await;
    relay.logged(&["ERROR", "tenant refused", "t/filter.wasm", "longer than 1s"]).await;
}

/// Serves a tenant whose code is in the cache, on a machine that does not let it run. The log must have these words,
/// and the cache must be as before.
async fn refused(words: &[&str], serve: impl AsyncFnOnce(Folder) -> Relay) {
    let mut partner = Partner::start().await;
    let folder = compiled_before(&partner).await;
    let before = entry(&folder);
    let relay = serve(folder).await;
    relay.logged(&[&["ERROR", "tenant refused"][..], words].concat()).await;
    assert_eq!(relay.metric(COMPILES, &[]).await, 0.0, "{}", relay.log());
    assert_eq!(relay.metric(DISTRUSTED, &[]).await, 0.0, "{}", relay.log());
    let folder = relay.end_with(Signal::TERM).await;
    assert!(entry(&folder) == before, "the entry is another");
    let relay = Relay::serve(folder).await;
    assert_eq!(loaded(&relay).await, [0.0, 1.0, 0.0], "{}", relay.log());
    works(&relay, &mut partner.accept().await, "1").await;
}

#[tokio::test]
async fn where_no_memory_may_become_executable_one_sentence_says_so_and_the_cache_stays() {
    let Some(()) = can_refuse() else { return };
    refused(&["t/filter.wasm", "MemoryDenyWriteExecute=yes", "os error 1"], async |folder| {
        Relay::serve_by(folder, |command| refusing(command, &[Refusal::executable_memory()])).await
    })
    .await;
}

#[tokio::test]
async fn without_proc_one_sentence_says_so_and_the_cache_stays() {
    let Some(()) = hosts::can_be_set() else { return };
    refused(&["filter.wasm", "there is no /proc", "mount -t proc"], async |folder| {
        Relay::serve_by(folder, |command| without_proc(&command)).await
    })
    .await;
    let check = command(&["component".as_ref(), "check".as_ref(), guests::echo().as_os_str()]);
    let output = without_proc(&check).output().unwrap();
    let shown = shown(&output);
    assert!(!output.status.success() && shown.contains("there is no /proc"), "{shown}");
}

#[tokio::test]
async fn where_the_cache_is_mounted_noexec_its_code_runs_from_a_copy_and_the_cache_stays() {
    let Some(disk) = Disk::noexec() else { return };
    let cache = disk.path("cache");
    let mut partner = Partner::start().await;
    let folder =
        Folder::with_own_cache("").filtered("t", &partner.url(), guests::market("filter"), "").cache_at(&cache);
    let inodes = || {
        let files = fs::read_dir(&cache).unwrap();
        let mut inodes: Vec<_> = files.map(|file| file.unwrap().metadata().unwrap().ino()).collect();
        inodes.sort_unstable();
        inodes
    };
    let relay = Relay::serve(folder).await;
    assert_eq!(loaded(&relay).await, [1.0, 0.0, 0.0], "{}", relay.log());
    relay.logged(&["WARN", "cache", "mounted noexec", "mount it with exec"]).await;
    works(&relay, &mut partner.accept().await, "1").await;
    let before = inodes();
    let relay = Relay::serve(relay.end_with(Signal::TERM).await).await;
    assert_eq!(loaded(&relay).await, [0.0, 1.0, 0.0], "{}", relay.log());
    works(&relay, &mut partner.accept().await, "2").await;
    assert_eq!(inodes(), before);
    let folder = relay.end_with(Signal::TERM).await;

    // Without files in memory there is no place for the copy.
    let Some(()) = can_refuse() else { return };
    let relay = Relay::serve_by(folder, |mut command| {
        command.env("TMPDIR", disk.path(""));
        refusing(command, &[Refusal::memfd_create(Errno::PERM)])
    })
    .await;
    let words = ["t/filter.wasm", "/cache (mounted noexec)", "have cache in relay.toml"];
    relay.logged(&[&["ERROR", "tenant refused"][..], &words].concat()).await;
    assert_eq!(inodes(), before);
}

#[tokio::test]
async fn a_host_without_address_space_answers_503_and_takes_the_blame() {
    let relay = Relay::serve(Folder::new("").api("t", "").handled("h", guests::handler(), "")).await;
    relay.limit(Resource::As, Some(relay.address_space() + ROOM));
    assert_eq!(relay.http().await.get("/t/count").await.envelope(), (503, "memory".into()));
    let refused = Client::try_connect(&relay.url("/h")).await.err().expect("no instance for the client").to_string();
    assert!(refused.contains("503"), "{refused}");
    relay.logged(&["ERROR", "tenant.name=t", "the host failed a component's call", "vm.max_map_count"]).await;
    let failed = [("blame", "host_failed"), ("reason", "host_memory")];
    assert_eq!(relay.metric(FAILURES, &[failed[0], failed[1], ("tenant", "t")]).await, 1.0);
    assert_eq!(relay.metric(FAILURES, &[failed[0], failed[1], ("tenant", "h")]).await, 1.0);
    assert_eq!(relay.metric(FAILURES, &[("blame", "guest_broke")]).await, 0.0);
    assert!(!relay.log().contains("component call failed"), "{}", relay.log());

    relay.limit(Resource::As, None);
    assert_eq!(relay.http().await.get("/t/count").await.body, "1");
    relay.client("/h").await;
}

#[tokio::test]
async fn a_guest_whose_memory_the_host_cannot_grow_is_not_to_blame() {
    let folder = Folder::new("");
    folder.write("tenants/t/tenant.toml", "name = \"t\"\ncomponents.client = \"client.wasm\"\n");
    folder.write("tenants/t/client.wasm", bombs::bomb(&[bombs::ON_MESSAGE], GROW));
    let relay = Relay::serve(folder).await;
    let mut client = relay.client("/t").await;
    relay.limit(Resource::Data, Some(relay.writable_memory() + WRITABLE));
    client.send(Message::text("grow")).await;
    assert!(client.text().await.contains("\"code\":100"));
    let by_host = [("blame", "host_failed"), ("reason", "host_memory")];
    let by_guest = [("blame", "guest_broke"), ("reason", "trap")];
    assert_eq!(relay.metric(FAILURES, &by_host).await, 1.0, "{}", relay.log());
    assert_eq!(relay.metric(FAILURES, &by_guest).await, 0.0);
    assert!(!relay.log().contains("component call failed"), "{}", relay.log());

    // Where the host has memory, the trap is the guest's own.
    relay.limit(Resource::Data, None);
    client.send(Message::text("grow")).await;
    assert!(client.text().await.contains("\"code\":100"));
    assert_eq!(relay.metric(FAILURES, &by_host).await, 1.0);
    assert_eq!(relay.metric(FAILURES, &by_guest).await, 1.0);
}
