//! Components' code: compiled once, in a child that is killed when it goes over its limits, and kept on disk.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use rustix::process::{Pid, Signal, geteuid, kill_process, test_kill_process};
use support::{
    compile_bombs, guests,
    partner::{Partner, Peer},
    process::{command, on_terminal, output, run, shown},
    relay::Relay,
    skip::{need, skipped},
    tenant::Folder,
    until,
};

const LOADED: &str = "edge_relay_components_loaded_total";
const REFUSED: &str = "edge_relay_components_refused_total";
pub(super) const DISTRUSTED: &str = "edge_relay_code_cache_distrusted_total";
pub(super) const COMPILES: &str = "edge_relay_component_compile_seconds_count";

/// Counts the components by their origin: compiled, cached, shared.
pub(super) async fn loaded(relay: &Relay) -> [f64; 3] {
    let mut found = [0.0; 3];
    for (nth, origin) in ["compiled", "cached", "shared"].into_iter().enumerate() {
        found[nth] = relay.metric(LOADED, &[("origin", origin)]).await;
    }
    found
}

fn ticker(price: &str) -> String {
    format!(r#"{{"type":"ticker","product_id":"A-B","price":"{price}"}}"#)
}

fn published(price: &str) -> String {
    format!(r#"{{"product":"A-B","price":"{price}"}}"#)
}

const NOWHERE: &str = "ws://127.0.0.1:1/";

/// A folder whose tenant `t` has the sample's filter, with the filter's code in the cache.
pub(super) async fn compiled_before(partner: &Partner) -> Folder {
    let folder = Folder::with_own_cache("").filtered("t", NOWHERE, guests::market("filter"), "");
    let folder = Relay::serve(folder).await.end_with(Signal::TERM).await;
    folder.filtered("t", &partner.url(), guests::market("filter"), "")
}

/// Checks that the filter of `t` works.
pub(super) async fn works(relay: &Relay, peer: &mut Peer, price: &str) {
    let mut client = relay.client("/t?channel=prices").await;
    peer.text(&ticker(price)).await;
    // The snapshot has what was published before.
    while client.text().await != published(price) {}
}

/// Lists the files of the folder's cache whose names end in this.
pub(super) fn cached(folder: &Folder, end: &str) -> Vec<PathBuf> {
    let files = fs::read_dir(folder.path("data/cache")).unwrap().map(|file| file.unwrap().path());
    files.filter(|file| file.to_str().unwrap().ends_with(end)).collect()
}

#[tokio::test]
async fn a_component_is_compiled_once_for_all_tenants_and_all_starts() {
    let mut partner = Partner::start().await;
    let filter = guests::market("filter");
    let mut folder = Folder::with_own_cache("").filtered("t", &partner.url(), filter, "");
    for name in ["a", "b", "c"] {
        folder = folder.filtered(name, NOWHERE, filter, "");
    }
    let relay = Relay::serve(folder).await;
    assert_eq!(loaded(&relay).await, [1.0, 0.0, 3.0]);
    assert_eq!(relay.metric(COMPILES, &[]).await, 1.0);
    works(&relay, &mut partner.accept().await, "1").await;

    let folder = relay.end_with(Signal::TERM).await;
    let entries = cached(&folder, ".code");
    assert_eq!(entries.len(), 1, "{entries:?}");
    // The cache has the entry and the key, and nothing unfinished.
    assert_eq!(cached(&folder, "").len(), 2, "{:?}", cached(&folder, ""));
    for file in [&entries[0], &folder.path("data/cache/key")] {
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{}", file.display());
    }

    let relay = Relay::serve(folder).await;
    assert_eq!(loaded(&relay).await, [0.0, 1.0, 3.0]);
    assert_eq!(relay.metric(COMPILES, &[]).await, 0.0);
    works(&relay, &mut partner.accept().await, "2").await;
}

/// Tampers with a cache that has one entry. The relay must find that out, and run nevertheless.
async fn distrusted(reason: &str, logged: &str, tamper: impl Fn(&Path)) {
    let mut partner = Partner::start().await;
    let folder = compiled_before(&partner).await;
    tamper(&cached(&folder, ".code")[0]);
    let relay = Relay::serve(folder).await;
    assert_eq!(loaded(&relay).await, [1.0, 0.0, 0.0], "{reason}: {}", relay.log());
    assert_eq!(relay.metric(DISTRUSTED, &[("reason", reason)]).await, 1.0, "{reason}: {}", relay.log());
    relay.logged(&["WARN", logged]).await;
    works(&relay, &mut partner.accept().await, "1").await;
    // The relay has replaced what it found in the place of the entry.
    let relay = Relay::serve(relay.end_with(Signal::TERM).await).await;
    assert_eq!(loaded(&relay).await, [0.0, 1.0, 0.0], "{reason}: {}", relay.log());
}

#[tokio::test]
async fn a_changed_byte_is_not_trusted() {
    distrusted("mac", "it was cut or changed", |entry| {
        let mut bytes = fs::read(entry).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(entry, bytes).unwrap();
    })
    .await;
}

#[tokio::test]
async fn what_was_cut_is_not_trusted() {
    distrusted("mac", "it was cut or changed", |entry| {
        let bytes = fs::read(entry).unwrap();
        fs::write(entry, &bytes[..bytes.len() / 2]).unwrap();
    })
    .await;
    distrusted("mac", "it was cut or changed", |entry| fs::write(entry, "").unwrap()).await;
}

#[tokio::test]
async fn an_entry_of_another_key_is_not_trusted() {
    distrusted("mac", "the key is another", |entry| {
        let key = entry.with_file_name("key");
        let other: Vec<u8> = fs::read(&key).unwrap().iter().map(|byte| !byte).collect();
        fs::write(&key, other).unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_key_that_others_could_read_is_replaced() {
    distrusted("mac", "key", |entry| {
        fs::set_permissions(entry.with_file_name("key"), Permissions::from_mode(0o644)).unwrap();
    })
    .await;
}

/// Puts a valid entry of another component in the place of an entry.
#[tokio::test]
async fn an_entry_under_another_name_is_not_trusted() {
    let folder = Folder::with_own_cache("").handled("t", guests::echo(), "");
    let folder = Relay::serve(folder).await.end_with(Signal::TERM).await;
    let other = cached(&folder, ".code").remove(0);
    distrusted("mac", "it was cut or changed", |entry| {
        // The key that the entry was made with is copied too.
        fs::copy(other.with_file_name("key"), entry.with_file_name("key")).unwrap();
        fs::copy(&other, entry).map(drop).unwrap();
    })
    .await;
}

#[tokio::test]
async fn an_entry_that_others_may_write_to_is_not_trusted() {
    distrusted("mode", "chmod go-w", |entry| fs::set_permissions(entry, Permissions::from_mode(0o622)).unwrap()).await;
}

#[tokio::test]
async fn an_entry_of_another_user_is_not_trusted() {
    if !geteuid().is_root() {
        skipped::<()>("root, which alone can give a file to another user,");
        return;
    }
    distrusted("owner", "user 1,", |entry| std::os::unix::fs::chown(entry, Some(1), None).unwrap()).await;
}

#[tokio::test]
async fn what_is_no_file_is_not_trusted() {
    distrusted("io", "symbolic link", |entry| {
        let moved = entry.with_file_name("moved");
        fs::rename(entry, &moved).unwrap();
        std::os::unix::fs::symlink(moved, entry).unwrap();
    })
    .await;
}

#[tokio::test]
async fn without_a_folder_of_its_own_the_relay_compiles_at_every_start() {
    let mut partner = Partner::start().await;
    let folder = Folder::with_own_cache("").filtered("t", &partner.url(), guests::market("filter"), "");
    fs::create_dir_all(folder.path("data/cache")).unwrap();
    fs::set_permissions(folder.path("data/cache"), Permissions::from_mode(0o777)).unwrap();
    let relay = Relay::serve(folder).await;
    assert_eq!(relay.metric(DISTRUSTED, &[("reason", "mode")]).await, 1.0);
    relay.logged(&["WARN", "data/cache", "chmod go-w"]).await;
    works(&relay, &mut partner.accept().await, "1").await;
    let folder = relay.end_with(Signal::TERM).await;
    assert!(cached(&folder, "").is_empty(), "{:?}", cached(&folder, ""));

    // A file in the place of the folder cannot be used either.
    fs::remove_dir(folder.path("data/cache")).unwrap();
    folder.write("data/cache", "");
    let relay = Relay::serve(folder).await;
    assert_eq!(loaded(&relay).await, [1.0, 0.0, 0.0]);
    assert_eq!(relay.metric(DISTRUSTED, &[]).await, 1.0);
}

/// Kubernetes' `fsGroup` gives a volume's folders and files to a group each time that it mounts the volume.
#[tokio::test]
async fn a_cache_that_a_group_was_given_is_taken_back() {
    let mut partner = Partner::start().await;
    let folder = compiled_before(&partner).await;
    let (cache, entry) = (folder.path("data/cache"), cached(&folder, ".code").remove(0));
    let give = |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    give(&cache, 0o2770);
    let key = fs::read(cache.join("key")).unwrap();
    let relay = Relay::serve(folder).await;
    // The group could have put a key there that it knows.
    assert_eq!(loaded(&relay).await, [1.0, 0.0, 0.0], "{}", relay.log());
    assert_ne!(fs::read(cache.join("key")).unwrap(), key);
    relay.logged(&["WARN", "data/cache", "mode=2770", "a group could write", "OnRootMismatch"]).await;
    assert_eq!(cache.metadata().unwrap().permissions().mode() & 0o7777, 0o2750);
    works(&relay, &mut partner.accept().await, "1").await;
    let relay = Relay::serve(relay.end_with(Signal::TERM).await).await;
    assert_eq!(loaded(&relay).await, [0.0, 1.0, 0.0], "{}", relay.log());
    drop(partner.accept().await);
    let folder = relay.end_with(Signal::TERM).await;

    // Who can read the key can make entries, so nothing in the folder is trusted any more, and it is made anew.
    give(&cache.join("key"), 0o660);
    give(&entry, 0o660);
    let relay = Relay::serve(folder).await;
    assert_eq!(loaded(&relay).await, [1.0, 0.0, 0.0], "{}", relay.log());
    relay.logged(&["WARN", "the key of the cache of compiled code is replaced"]).await;
    works(&relay, &mut partner.accept().await, "2").await;
    let relay = Relay::serve(relay.end_with(Signal::TERM).await).await;
    assert_eq!(loaded(&relay).await, [0.0, 1.0, 0.0], "{}", relay.log());
}

/// A volume's own folder belongs to root, also with `fsGroup`.
#[tokio::test]
async fn a_cache_of_another_user_is_not_used_and_the_log_names_a_way_out() {
    if !geteuid().is_root() {
        skipped::<()>("root, which alone can give a folder to another user,");
        return;
    }
    let folder = Folder::with_own_cache("").filtered("t", NOWHERE, guests::market("filter"), "");
    let volume = folder.path("data/cache");
    fs::create_dir_all(&volume).unwrap();
    std::os::unix::fs::chown(&volume, Some(1), None).unwrap();
    fs::set_permissions(&volume, Permissions::from_mode(0o2775)).unwrap();
    let relay = Relay::serve(folder).await;
    relay.logged(&["WARN", "data/cache", "user 1,", "name a folder in it"]).await;
    assert_eq!(relay.metric(DISTRUSTED, &[("reason", "owner")]).await, 1.0);
    // What it says helps.
    let folder = relay.end_with(Signal::TERM).await.cache_at(&volume.join("own"));
    let relay = Relay::serve(Relay::serve(folder).await.end_with(Signal::TERM).await).await;
    assert_eq!(loaded(&relay).await, [0.0, 1.0, 0.0], "{}", relay.log());
}

/// The small limits do not hold for the good component, because its code is in the cache by then.
#[tokio::test]
async fn bombs_do_not_start_and_all_of_them_are_named() {
    let folder = Folder::with_own_cache("").filtered("good", NOWHERE, guests::market("filter"), "");
    let folder = Relay::serve(folder).await.end_with(Signal::TERM).await;
    folder.append("relay.toml", "compile-time = \"5s\"\ncompile-memory = \"256MiB\"\n");
    let folder = folder.filtered("long", NOWHERE, guests::echo(), "").filtered("large", NOWHERE, guests::echo(), "");
    folder.write("tenants/long/filter.wasm", compile_bombs::of_time());
    folder.write("tenants/large/filter.wasm", compile_bombs::of_memory());
    let (config, tenants) = (folder.config(), folder.path("tenants"));
    let (config, tenants) = (config.to_str().unwrap(), tenants.to_str().unwrap());
    let commands: [&[&str]; 2] =
        [&["serve", "--strict", "--config", config], &["tenants", "check", tenants, "--config", config]];
    for command in commands {
        let output = run(command).await;
        let shown = shown(&output);
        assert_eq!(output.status.code(), Some(2), "{shown}");
        let errors = String::from_utf8(output.stderr).unwrap();
        let named = |words: &[&str]| errors.lines().any(|line| words.iter().all(|word| line.contains(word)));
        assert!(named(&["long/filter.wasm", "longer than 5s", "compile-time"]), "{shown}");
        assert!(named(&["large/filter.wasm", "256 MiB", "compile-memory"]), "{shown}");
        let (compiling, mistakes): (Vec<_>, Vec<_>) =
            errors.lines().partition(|line| line.contains(" INFO compiling component="));
        assert_eq!((compiling.len(), mistakes.len()), (2, 2), "a line each: {shown}");
    }
}

/// A single compile that takes two seconds and then fails.
#[tokio::test]
async fn a_terminal_shows_a_bar_while_something_is_compiled_and_a_file_does_not() {
    let Some(()) = need("script") else { return };
    let folder = Folder::with_own_cache("compile-time = \"2s\"").filtered("t", NOWHERE, guests::echo(), "");
    folder.write("tenants/t/filter.wasm", compile_bombs::of_time());
    let (config, tenants) = (folder.config(), folder.path("tenants"));
    let (config, tenants) = (config.to_str().unwrap(), tenants.to_str().unwrap());
    let commands: [&[&str]; 2] =
        [&["serve", "--strict", "--config", config], &["tenants", "check", tenants, "--config", config]];
    for arguments in commands {
        let said = shown(&output(on_terminal(&command(arguments))).await);
        assert!(said.contains("\r\x1b[Kloading components [------------------------] 0 of 1, 1 s"), "{said}");
        // It makes room for the lines after it.
        let last = said.rsplit("\r\x1b[K").next().unwrap();
        assert!(!last.contains("loading components") && last.contains("longer than 2s"), "{said}");
        let said = shown(&run(arguments).await);
        assert!(said.contains(" INFO compiling component=") && said.contains("longer than 2s"), "{said}");
        assert!(!said.contains("loading components") && !said.contains('\x1b'), "{said}");
    }
}

/// Lists the relay's children, which compile.
fn compilers(relay: &Relay) -> Vec<Pid> {
    let parent = format!("PPid:\t{}", relay.id());
    let processes =
        fs::read_dir("/proc").unwrap().filter_map(|process| process.unwrap().file_name().into_string().ok());
    let is_child = |process: &String| {
        fs::read_to_string(format!("/proc/{process}/status")).is_ok_and(|status| {
            status.lines().any(|line| line == parent) && !status.lines().any(|line| line.starts_with("State:\tZ"))
        })
    };
    processes.filter(is_child).filter_map(|process| Pid::from_raw(process.parse().ok()?)).collect()
}

/// Waits for the child that compiles now.
async fn compiler(relay: &Relay) -> Pid {
    until("a child that compiles", async || match compilers(relay)[..] {
        [child] => Ok(child),
        ref other => Err(format!("{other:?}")),
    })
    .await
}

#[tokio::test]
async fn while_a_bomb_compiles_everybody_is_served_and_its_end_is_no_hang() {
    let mut partner = Partner::start().await;
    let mut others = Partner::start().await;
    let relay =
        Relay::serve(Folder::with_own_cache("").filtered("t", &partner.url(), guests::market("filter"), "").tenant(
            "other",
            &others.url(),
            "",
        ))
        .await;
    let (mut peer, mut other) = (partner.accept().await, others.accept().await);
    let mut client = relay.client("/other").await;
    works(&relay, &mut peer, "1").await;

    relay.folder().write("tenants/t/filter.wasm", compile_bombs::of_time());
    relay.signal(Signal::HUP);
    let child = compiler(&relay).await;
    for nth in 0..100 {
        other.text(&nth.to_string()).await;
        assert_eq!(client.text().await, nth.to_string());
    }
    // The tenant's version before goes on, and takes new clients.
    works(&relay, &mut peer, "2").await;
    assert_eq!(compilers(&relay), [child], "it has ended in the meantime: {}", relay.log());

    kill_process(child, Signal::KILL).unwrap();
    relay.logged(&["tenant refused; the version before runs on", "t/filter.wasm", "the compiler was killed"]).await;
    assert_eq!(relay.metric(REFUSED, &[("reason", "killed")]).await, 1.0);
    works(&relay, &mut peer, "3").await;

    // The component was not at fault, so it is tried again. The child ends with the relay, however the relay ends.
    relay.signal(Signal::HUP);
    let child = compiler(&relay).await;
    drop(relay.end_with(Signal::TERM).await);
    until("the child's end", async || match test_kill_process(child) {
        Ok(()) => Err("it runs".to_owned()),
        Err(_) => Ok(()),
    })
    .await;
}

#[tokio::test]
async fn a_bomb_in_the_place_of_a_good_component_is_refused() {
    let mut partner = Partner::start().await;
    let folder = compiled_before(&partner).await;
    folder.append("relay.toml", "compile-time = \"5s\"\ncompile-memory = \"256MiB\"\n");
    let folder = folder.filtered("other", NOWHERE, guests::market("filter"), "");
    let relay = Relay::serve(folder).await;
    assert_eq!(loaded(&relay).await, [0.0, 1.0, 1.0]);
    let mut peer = partner.accept().await;
    for (nth, (bomb, reason, said)) in
        [(compile_bombs::of_time(), "time", "compile-time"), (compile_bombs::of_memory(), "memory", "compile-memory")]
            .iter()
            .enumerate()
    {
        relay.folder().write("tenants/t/filter.wasm", bomb);
        relay.signal(Signal::HUP);
        relay.logged(&["tenant refused; the version before runs on", "t/filter.wasm", said]).await;
        assert_eq!(relay.metric(REFUSED, &[("reason", reason)]).await, 1.0);
        works(&relay, &mut peer, &format!("{nth}.5")).await;
        // Another tenant with the same bomb is refused without another compile.
        let compiles = relay.metric(COMPILES, &[]).await;
        relay.folder().write("tenants/other/filter.wasm", bomb);
        relay.signal(Signal::HUP);
        relay.logged(&["tenant refused; the version before runs on", "other/filter.wasm", said]).await;
        assert_eq!(relay.metric(COMPILES, &[]).await, compiles);
    }
    // A sound component is taken again, with the code that is still in memory.
    relay.folder().copy(guests::market("filter"), "tenants/t/filter.wasm");
    relay.signal(Signal::HUP);
    relay.metric_reaches("edge_relay_tenant_swaps_total", &[("tenant", "t"), ("outcome", "applied")], 1.0).await;
    works(&relay, &mut peer, "9").await;
    assert_eq!(compilers(&relay), []);
}

#[tokio::test]
async fn tenants_are_checked_beforehand() {
    let folder = Folder::with_own_cache("").filtered("a", "wss://feed.example/", guests::demand(), "").handled(
        "b",
        guests::handler(),
        "",
    );
    let check = async |path: &str| run(&["tenants", "check", folder.path(path).to_str().unwrap()]).await;
    let output = check("tenants").await;
    let all = shown(&output);
    assert_eq!(output.status.code(), Some(0), "{all}");
    let size = guests::demand().metadata().unwrap().len();
    for line in ["tenant: a", &format!("  filter.wasm: {size} bytes; roles: filter, follows demand"), "tenant: b"] {
        assert!(all.contains(line), "no {line:?} in {all}");
    }
    // A single tenant's folder can be checked too.
    let output = check("tenants/b").await;
    let one = shown(&output);
    assert_eq!(output.status.code(), Some(0), "{one}");
    assert!(one.contains("tenant: b") && !one.contains("tenant: a"), "{one}");

    // All mistakes are reported, in all tenants and in all files of each.
    folder.write("tenants/c/tenant.toml", "name = \"c\"\npaht = \"/\"\n");
    folder.write("tenants/d/tenant.toml", "name = \"d\"\n[components]\nclient = \"text.wasm\"\napi = \"none.wasm\"\n");
    folder.write("tenants/d/text.wasm", "not WebAssembly");
    folder.copy(guests::roleless(), "tenants/d/none.wasm");
    // Instances need more memory than that to begin.
    folder.append("tenants/b/tenant.toml", "[limits]\nmemory = \"1MiB\"\n");
    let output = check("tenants").await;
    let all = shown(&output);
    assert_eq!(output.status.code(), Some(2), "{all}");
    let errors = String::from_utf8(output.stderr).unwrap();
    let reasons: [&[&str]; 4] = [
        &["c/tenant.toml:2:", "paht"],
        &["d/text.wasm", "components.client", "not WebAssembly"],
        &["d/none.wasm", "components.api", "role"],
        &["b/client.wasm", "components.client", "trial"],
    ];
    for words in reasons {
        assert!(
            errors.lines().any(|line| words.iter().all(|word| line.contains(word))),
            "no line with {words:?}: {all}"
        );
    }
    // Nothing else is reported, except what the log says about the compiler's work and the trial.
    let is_logged = |line: &&str| line.contains(" WARN ") || line.contains(" INFO compiling");
    assert_eq!(errors.lines().filter(|line| !is_logged(line)).count(), reasons.len(), "{all}");
    // Sound tenants are listed nevertheless.
    assert!(all.contains("tenant: a"), "{all}");

    let output = check("nowhere").await;
    assert_eq!(output.status.code(), Some(2), "{}", shown(&output));
}
