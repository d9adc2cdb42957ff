//! `component build` and `component check`, used as a tenant's developer uses them.

use std::{fs, path::Path, process::Output};

use support::{
    guests, place,
    process::{command, output, run, shown},
    relay::Relay,
    tenant::Folder,
};

async fn check(file: &Path) -> Output {
    run(&["component", "check", file.to_str().unwrap()]).await
}

async fn build(source: &Path, output: &Path) -> Output {
    run(&["component", "build", source.to_str().unwrap(), "-o", output.to_str().unwrap()]).await
}

#[tokio::test]
async fn check_says_which_roles_and_imports_a_component_has() {
    let output = check(guests::market("filter")).await;
    let shown = shown(&output);
    assert_eq!(output.status.code(), Some(0), "{shown}");
    let stdout = String::from_utf8(output.stdout).unwrap();
    let roles = stdout.lines().find(|line| line.starts_with("roles:")).unwrap();
    assert!(roles.ends_with(" filter"), "{shown}");
    let imports = stdout.split_once("imports:").unwrap().1.split_once("may ask:").unwrap().0;
    for import in ["wasi:config/store@0.2.0-rc.1", "wasi:logging/logging@0.1.0-draft"] {
        assert!(imports.contains(import), "{shown}");
    }
    // The component imports nothing of the system.
    assert!(!imports.contains("wasi:cli") && !imports.contains("wasi:filesystem"), "{shown}");
}

#[tokio::test]
async fn check_says_what_a_component_may_ask_for() {
    for (component, asks) in [
        (
            guests::grants(),
            "grants.folders (wasi:filesystem)|grants.environment (wasi:cli/environment)|\
             sockets, which are never granted (wasi:sockets)|grants.http (wasi:http/outgoing-handler)|\
             settings, grants.secrets (wasi:config)",
        ),
        (guests::market("filter"), "settings, grants.secrets (wasi:config)"),
        (guests::echo(), "none"),
    ] {
        let output = check(component).await;
        let shown = shown(&output);
        assert_eq!(output.status.code(), Some(0), "{shown}");
        let stdout = String::from_utf8(output.stdout).unwrap();
        let said: Vec<_> = stdout.split_once("may ask:").unwrap().1.lines().map(str::trim).collect();
        assert_eq!(said.join("|"), asks, "{shown}");
    }
}

#[tokio::test]
async fn check_says_of_a_filter_that_it_follows_demand() {
    let output = check(guests::demand()).await;
    let shown = shown(&output);
    assert_eq!(output.status.code(), Some(0), "{shown}");
    let stdout = String::from_utf8(output.stdout).unwrap();
    let roles = stdout.lines().find(|line| line.starts_with("roles:")).unwrap();
    assert!(roles.ends_with(" filter, follows demand"), "{shown}");
}

/// Runs the program with a folder of caches in this folder. Returns whether it has compiled anything.
async fn compiles(folder: &Folder, arguments: &[&str]) -> bool {
    let mut command = command(arguments);
    command.env("XDG_CACHE_HOME", folder.path("caches"));
    let output = output(command).await;
    let shown = shown(&output);
    assert_eq!(output.status.code(), Some(0), "{shown}");
    shown.contains(" INFO compiling component=")
}

#[tokio::test]
async fn what_a_check_has_compiled_is_there_for_the_next() {
    let folder = Folder::with_own_cache("").handled("t", guests::echo(), "");
    let (component, tenants) = (folder.path("tenants/t/client.wasm"), folder.path("tenants"));
    let (component, tenants) = (component.to_str().unwrap(), tenants.to_str().unwrap());
    assert!(compiles(&folder, &["component", "check", component]).await);
    assert!(!compiles(&folder, &["component", "check", component]).await);
    assert!(!compiles(&folder, &["tenants", "check", tenants]).await);
    let kept = fs::read_dir(folder.path("caches/edge-relay/compiled")).unwrap().count();
    assert_eq!(kept, 2, "a key and one entry");
}

#[tokio::test]
async fn a_check_for_a_host_fills_the_hosts_cache() {
    let folder = Folder::with_own_cache("").handled("t", guests::echo(), "");
    let (component, config) = (folder.path("tenants/t/client.wasm"), folder.config());
    let check = ["component", "check", component.to_str().unwrap(), "--config", config.to_str().unwrap()];
    assert!(compiles(&folder, &check).await);
    assert!(!compiles(&folder, &check).await);
    assert!(!folder.path("caches").exists());
    let relay = Relay::serve(folder).await;
    assert_eq!(relay.metric("edge_relay_components_loaded_total", &[("origin", "cached")]).await, 1.0);
    assert!(!relay.log().contains("compiling"), "{}", relay.log());
}

#[tokio::test]
async fn check_names_what_the_host_does_not_give() {
    let output = check(guests::stranger()).await;
    let shown = shown(&output);
    assert_eq!(output.status.code(), Some(2), "{shown}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("acme:unknown/thing@1.0.0"), "{shown}");
    let output = check(guests::roleless()).await;
    let shown = self::shown(&output);
    assert_eq!(output.status.code(), Some(2), "{shown}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("role"), "{shown}");
}

#[tokio::test]
async fn check_refuses_what_is_no_component() {
    let folder = Folder::empty();
    folder.write("text.wasm", "not WebAssembly");
    folder.write("core.wasm", b"\0asm\x01\0\0\0");
    for (file, reason) in [("text.wasm", "not WebAssembly"), ("core.wasm", "core module")] {
        let output = check(&folder.path(file)).await;
        let shown = shown(&output);
        assert_eq!(output.status.code(), Some(2), "{shown}");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(error.contains(file) && error.contains(reason), "{shown}");
    }
}

#[tokio::test]
async fn build_makes_a_component_of_a_core_module() {
    let folder = Folder::empty();
    guests::market("filter");
    // The core module that the build of the crate has left.
    let target = place::guests().join("wasm32-unknown-unknown/release");
    let component = folder.path("made.wasm");
    let output = build(&target.join("market_filter.wasm"), &component).await;
    assert_eq!(output.status.code(), Some(0), "{}", shown(&output));
    assert!(fs::read(&component).unwrap() == fs::read(guests::market("filter")).unwrap());
}

/// The source is a component already, as a build for `wasm32-wasip2` makes one.
#[tokio::test]
async fn build_takes_a_component_as_it_is() {
    let folder = Folder::empty();
    let copy = folder.path("copy.wasm");
    let output = build(guests::market("filter"), &copy).await;
    assert_eq!(output.status.code(), Some(0), "{}", shown(&output));
    assert!(fs::read(&copy).unwrap() == fs::read(guests::market("filter")).unwrap());
}

#[tokio::test]
async fn build_says_why_it_cannot() {
    let folder = Folder::empty();
    folder.write("empty/readme", "no crate");
    folder.write("text.wasm", "not WebAssembly");
    folder.write("core.wasm", b"\0asm\x01\0\0\0");
    let cases =
        [("empty", "Cargo.toml"), ("text.wasm", "WebAssembly"), ("core.wasm", "WIT"), ("nowhere.wasm", "No such file")];
    for (source, reason) in cases {
        let made = folder.path("made.wasm");
        let output = build(&folder.path(source), &made).await;
        let shown = shown(&output);
        assert_eq!(output.status.code(), Some(2), "{shown}");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(error.contains(source) && error.contains(reason), "{shown}");
        assert!(!made.exists(), "{source}: a part of a file is left");
    }
}
