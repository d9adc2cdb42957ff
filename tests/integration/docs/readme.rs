//! The documents' own components, clients and configuration, taken from their texts.

use std::{
    fs,
    path::{Path, PathBuf},
};

use support::{client::Client, guests, partner::Partner, place::root, relay::Relay, tenant::Folder};
use tokio_tungstenite::tungstenite::{self, Message};

const README: &str = include_str!("../../../README.md");
const CLIENTS: &str = include_str!("../../../docs/CLIENTS.md");
const CONFIGURATION: &str = include_str!("../../../docs/CONFIGURATION.md");
const TENANTS: &str = include_str!("../../../docs/TENANTS.md");

/// Returns the first block of this language in CLIENTS.md that has these words in it.
pub fn block(language: &str, words: &str) -> &'static str {
    block_of(CLIENTS, language, words)
}

fn block_of(document: &'static str, language: &str, words: &str) -> &'static str {
    let blocks = document.split("\n```").filter_map(|block| block.strip_prefix(language)?.strip_prefix('\n'));
    blocks.into_iter().find(|block| block.contains(words)).unwrap()
}

/// Builds the crate of a document, as the document says, from the block that has these words in it.
fn built(document: &'static str, name: &str, words: &str) -> PathBuf {
    let source = Folder::empty();
    let manifest = format!("[package]\nname = \"{name}\"\nversion = \"0.1.0\"\nedition = \"2024\"\n[workspace]\n");
    let dependency = |line: &&str| document.contains(&format!("`{line}`"));
    let dependencies = [r#"wit-bindgen = "0.62""#, r#"wasip2 = "2""#].into_iter().filter(dependency);
    let dependencies: String = dependencies.map(|line| format!("{line}\n")).collect();
    let library = format!("[lib]\ncrate-type = [\"cdylib\"]\n[dependencies]\n{dependencies}");
    source.write("crate/Cargo.toml", format!("{manifest}{library}"));
    source.write("crate/src/lib.rs", block_of(document, "rust", words));
    // Uses the versions that the other guests are built with.
    source.copy(&root("Cargo.lock"), "crate/Cargo.lock");
    copy_folder(&root("wit/edge-relay-tenant@0.1.0"), &source, "crate/wit");
    guests::build_crate(&source.path("crate"))
}

fn copy_folder(from: &Path, folder: &Folder, to: &str) {
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = format!("{to}/{}", entry.file_name().to_str().unwrap());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), folder, &to);
        } else {
            folder.copy(&entry.path(), &to);
        }
    }
}

#[tokio::test]
async fn its_filter_builds_and_runs() {
    let mut partner = Partner::start().await;
    let filter = built(README, "trades", "struct Trades");
    let relay = Relay::serve(Folder::new("").filtered("t", &partner.url(), &filter, "")).await;
    let mut trades = relay.client("/t?channel=trades").await;
    let mut peer = partner.accept().await;
    assert_eq!(peer.next_text().await, r#"{"subscribe":"trades"}"#);
    peer.text("a quote").await;
    peer.text("a trade").await;
    assert_eq!(trades.text().await, "a trade");
}

/// Serves a tenant that has no upstream, and one component.
async fn with_component(role: &str, component: &Path, more: &str) -> Relay {
    let folder = Folder::new("");
    folder.write("tenants/t/tenant.toml", format!("name = \"t\"\n{more}\n[components]\n{role} = \"it.wasm\"\n"));
    folder.copy(component, "tenants/t/it.wasm");
    Relay::serve(folder).await
}

/// Each client of the README is also in CLIENTS.md, whose clients the tests of real clients run.
#[test]
fn its_clients_are_those_of_the_clients_document() {
    for (language, words) in [("js", "new WebSocket"), ("python", "websockets"), ("sh", "curl -N")] {
        assert_eq!(block_of(README, language, words), block(language, words));
    }
}

#[tokio::test]
async fn its_client_handler_builds_and_runs() {
    let relay = with_component("client", &built(TENANTS, "desk", "struct Desk"), "").await;
    let mut client = relay.client("/t?token=let%20me%20in&channel=public-news").await;
    client.send(Message::text("hi")).await;
    assert_eq!(client.text().await, "hello ada");
    for (path, status) in [("/t", 401), ("/t?token=let%20me%20in&channel=secret", 403)] {
        match Client::try_connect(&relay.url(path)).await.err() {
            Some(tungstenite::Error::Http(answer)) => assert_eq!(answer.status(), status, "{path}"),
            other => panic!("{path}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn its_api_builds_and_runs() {
    let relay = with_component("api", &built(TENANTS, "hello", "struct Hello"), "").await;
    let (status, body) = relay.api_get("/t/over/here?x=1").await;
    assert!(status == 200 && body.contains("this is /over/here?x=1"), "{status} {body}");
}

#[tokio::test]
async fn its_job_builds_and_runs() {
    let schedule = "[[schedule]]\nname = \"tick\"\nevery = \"100ms\"";
    let relay = with_component("job", &built(TENANTS, "ticks", "struct Ticks"), schedule).await;
    let mut ticks = relay.client("/t?channel=ticks").await;
    let first: u64 = ticks.text().await.parse().unwrap();
    assert_eq!(ticks.text().await, (first + 1).to_string());
}

#[tokio::test]
async fn its_configuration_is_accepted() {
    let folder = Folder::empty();
    let listen = block_of(CONFIGURATION, "toml", "trusted-proxies").replace("0.0.0.0:8080", "127.0.0.1:0");
    let listen = listen.replace("0.0.0.0:8081", "127.0.0.1:0").replace(":9090", ":0");
    // The lines that are commented out must be accepted too.
    let srv = format!("{}/srv/", folder.path("").display());
    // The partner is on this machine.
    let listen = listen.replace("# folders = ", "folders = ").replace("# networks = ", "networks = ");
    let listen = listen.replace("\"10.1.0.0/16\"", "\"10.1.0.0/16\", \"127.0.0.0/8\"").replace("/srv/", &srv);
    folder.write("relay.toml", listen);
    for file in [
        "srv/prices/now",
        "srv/shared/now",
        "tenants/market/data/now",
        "tenants/market/signing.key",
        "tenants/market/listen.key",
    ] {
        folder.write(file, "42");
    }
    let manifest =
        block_of(CONFIGURATION, "toml", "[[upstream]]").replace("# headers", "headers").replace("# sub", "sub");
    let manifest = manifest.replace("# idle", "idle").replace("# max", "max").replace("# path", "path");
    let manifest = manifest.replace("# connect", "connect").replace("# linger", "linger").replace("/srv/", &srv);
    let manifest = manifest.replace("# folders", "folders").replace("# http", "http").replace("# envir", "envir");
    let manifest = manifest.replace("# secrets", "secrets").replace("# query", "query");
    let partner = Partner::start().await;
    folder.write("tenants/market/tenant.toml", manifest.replace("wss://ws-feed.exchange.coinbase.com", &partner.url()));
    for role in guests::MARKET {
        folder.copy(guests::market(role), &format!("tenants/market/{role}.wasm"));
    }
    let relay = Relay::serve_with(folder, &[("MARKET__TOKEN", "Bearer x"), ("MARKET__KEY", "y")]).await;
    assert_eq!(relay.ready().await["status"], "ready");
}
