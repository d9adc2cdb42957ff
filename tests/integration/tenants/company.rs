//! Bad company in the tenants' folder: what is no tenant, and tenants that cannot be served. The others are served.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    process::Command,
};

use serde_json::{Value, json};
use support::{
    guests,
    process::{run, shown},
    relay::Relay,
    tenant::Folder,
    until,
};
use tokio_tungstenite::tungstenite::Message;

/// Nobody listens here.
const NOWHERE: &str = "ws://127.0.0.1:1/";

/// Waits until `/readyz` shows this.
async fn readiness(relay: &Relay, fits: impl Fn(u16, &Value) -> bool) {
    until("another readiness", async || {
        let (status, body) = relay.get("/readyz").await;
        if fits(status, &serde_json::from_str(&body).unwrap()) { Ok(()) } else { Err(format!("{status} {body}")) }
    })
    .await;
}

#[tokio::test]
async fn sound_tenants_are_served_beside_what_cannot_be() {
    let folder = Folder::new("").handled("good", guests::handler(), "");
    for name in ["lost+found", "CVS/Root", "__pycache__", "empty"] {
        fs::create_dir_all(folder.path(&format!("tenants/{name}"))).unwrap();
    }
    folder.write("tenants/empty/filter.wasm", "no manifest");
    fs::set_permissions(folder.path("tenants/lost+found"), fs::Permissions::from_mode(0o000)).unwrap();
    folder.write("tenants/mistaken/tenant.toml", "name = \"mistaken\"\nnmae = 1\n");
    folder.write("tenants/z/tenant.toml", "name = \"good\"\npath = \"/z\"\n");
    for name in ["device", "pipe"] {
        fs::create_dir_all(folder.path(&format!("tenants/{name}"))).unwrap();
    }
    symlink("/dev/stdin", folder.path("tenants/device/tenant.toml")).unwrap();
    let made = Command::new("mkfifo").arg(folder.path("tenants/pipe/tenant.toml")).status().unwrap();
    assert!(made.success());
    fs::create_dir_all(folder.path("tenants/linked")).unwrap();
    symlink("../../relay.toml", folder.path("tenants/linked/tenant.toml")).unwrap();
    fs::create_dir_all(folder.path("tenants/dangling")).unwrap();
    symlink("nothing", folder.path("tenants/dangling/tenant.toml")).unwrap();
    folder.write("text.wasm", "not WebAssembly");
    let text = folder.path("text.wasm");
    let folder = folder.filtered("text", NOWHERE, &text, "");

    let relay = Relay::serve(folder).await;
    let mut client = relay.client("/good").await;
    client.send(Message::text("reply hello")).await;
    assert_eq!(client.text().await, "hello");
    let ready = relay.ready().await;
    let why = |folder: &str| ready["refused"][folder].as_str().unwrap_or_default().to_owned();
    for (folder, words) in [
        ("mistaken", "nmae: unknown key"),
        ("z", "\"good\" is also the name in"),
        ("pipe", "is not a file"),
        ("linked", "leads out of the tenant's folder"),
        ("device", "leads out of the tenant's folder"),
        ("dangling", "cannot be read"),
        ("text", "is not WebAssembly"),
    ] {
        assert!(why(folder).contains(words), "{folder}: {ready}");
        relay.logged(&["ERROR", "tenant refused; it is not in service", &format!("tenant.name={folder} ")]).await;
    }
    assert_eq!(ready["refused"].as_object().unwrap().len(), 7, "{ready}");
    assert_eq!(ready["tenants"].as_object().unwrap().len(), 1, "{ready}");
    relay.metric_is("edge_relay_tenants_refused", &[], 7.0).await;
    for name in ["lost+found", "CVS", "__pycache__", "empty"] {
        relay.logged(&["INFO", "a folder is passed over", &format!("tenants/{name}")]).await;
    }

    // For the one who removes this folder.
    fs::set_permissions(relay.folder().path("tenants/lost+found"), fs::Permissions::from_mode(0o700)).unwrap();

    // Mended, they are served; gone, they are forgotten.
    let folder = relay.folder();
    folder.write("tenants/mistaken/tenant.toml", "name = \"mistaken\"\n");
    fs::copy(guests::hostile(), folder.path("tenants/text/filter.wasm")).unwrap();
    fs::remove_dir_all(folder.path("tenants/z")).unwrap();
    fs::remove_file(folder.path("tenants/pipe/tenant.toml")).unwrap();
    readiness(&relay, |_, ready| {
        let serves = |name: &str| ready["tenants"][name].is_object();
        let is_refused = |name: &str| ready["refused"][name].is_string();
        serves("mistaken") && serves("text") && !is_refused("z") && !is_refused("pipe") && is_refused("linked")
    })
    .await;
    relay.metric_is("edge_relay_tenants_refused", &[], 3.0).await;
    drop(relay.client("/mistaken").await);
}

#[tokio::test]
async fn the_relay_is_ready_unless_tenants_are_there_and_none_is_served() {
    let relay = Relay::serve(Folder::new("")).await;
    assert_eq!(relay.ready().await, json!({ "status": "ready", "tenants": {}, "refused": {} }));
    relay.folder().write("tenants/t/tenant.toml", "name = 1\n");
    readiness(&relay, |status, ready| status == 503 && ready["refused"]["t"].is_string()).await;
    relay.folder().write("tenants/t/tenant.toml", "name = \"t\"\n");
    readiness(&relay, |status, ready| status == 200 && ready["tenants"]["t"].is_object()).await;
    // What ran runs on.
    relay.folder().write("tenants/t/tenant.toml", "name = 1\n");
    readiness(&relay, |status, ready| status == 200 && ready["tenants"]["t"]["refused"].is_string()).await;
    // Also when the relay has started with nothing that it could serve.
    let folder = relay.end_with(rustix::process::Signal::TERM).await;
    let relay = Relay::serve(folder).await;
    readiness(&relay, |status, ready| status == 503 && ready["refused"]["t"].is_string()).await;
}

#[tokio::test]
async fn a_tenant_whose_claim_was_anothers_is_served_once_that_is_gone() {
    let folder = Folder::new("");
    folder.write("tenants/a/tenant.toml", "name = \"t\"\n");
    folder.write("tenants/b/tenant.toml", "name = \"t\"\n");
    let relay = Relay::serve(folder).await;
    assert!(relay.ready().await["refused"]["b"].is_string());
    fs::remove_dir_all(relay.folder().path("tenants/a")).unwrap();
    readiness(&relay, |_, ready| ready["tenants"]["t"].is_object() && ready["refused"] == json!({})).await;
}

#[tokio::test]
async fn a_claim_of_a_tenant_that_cannot_be_served_is_free() {
    let folder = Folder::new("");
    folder.write("text.wasm", "not WebAssembly");
    let text = folder.path("text.wasm");
    let folder = folder.filtered("a", NOWHERE, &text, "");
    folder.write("tenants/b/tenant.toml", "name = \"a\"\n");
    let relay = Relay::serve(folder).await;
    readiness(&relay, |_, ready| ready["tenants"]["a"].is_object() && ready["refused"]["a"].is_string()).await;
    drop(relay.client("/a").await);
}

#[tokio::test]
async fn a_check_passes_over_what_is_no_tenant() {
    let folder = Folder::new("").tenant("t", "wss://feed.example/", "");
    fs::create_dir(folder.path("tenants/lost+found")).unwrap();
    let tenants = folder.path("tenants");
    let output = run(&["tenants", "check", tenants.to_str().unwrap()]).await;
    let said = shown(&output);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.contains("lost+found is passed over: it has no tenant.toml"), "{said}");
    fs::remove_dir_all(folder.path("tenants/t")).unwrap();
    let output = run(&["tenants", "check", tenants.to_str().unwrap()]).await;
    assert_eq!(output.status.code(), Some(2), "{}", shown(&output));
}

/// A megabyte of mistakes would be a line of 54 MB in the log at each change, and as much at `/readyz`.
#[tokio::test]
async fn a_manifest_full_of_mistakes_is_refused_in_few_words() {
    let folder = Folder::new("").tenant("good", NOWHERE, "");
    folder.write("tenants/t/tenant.toml", "=\n".repeat(500_000));
    folder.write("tenants/u/tenant.toml", format!("name = \"u\"\n{}", "x".repeat(900_000)));
    folder.write("tenants/v/tenant.toml", format!("name = \"v\"\n{} = 1\n", vec!["k"; 10_000].join(".")));
    let relay = Relay::serve(folder).await;
    let ready = relay.ready().await;
    let why = ready["refused"]["t"].as_str().unwrap();
    assert!(why.contains("has 499950 more mistakes"), "{why}");
    assert!(ready.to_string().len() < 20_000, "{} bytes", ready.to_string().len());
    relay.logged(&["ERROR", "tenant refused", "tenant.name=t", "more mistakes"]).await;
}
