//! The README's own filter and configuration, taken from its text.

use std::{fs, path::Path};

use crate::support::{guests, partner::Partner, relay::Relay, tenant::Folder};

const README: &str = include_str!("../../README.md");

/// The first block of a language that has these words in it.
fn block(language: &str, words: &str) -> &'static str {
    let blocks = README.split("\n```").filter_map(|block| block.strip_prefix(language)?.strip_prefix('\n'));
    blocks.into_iter().find(|block| block.contains(words)).unwrap()
}

/// A crate with the README's filter, as the README says to make one.
fn write_crate(folder: &Folder) {
    let manifest = "[package]\nname = \"trades\"\nversion = \"0.1.0\"\nedition = \"2024\"\n[workspace]\n";
    let library = "[lib]\ncrate-type = [\"cdylib\"]\n[dependencies]\nwit-bindgen = \"0.61\"\n";
    folder.write("crate/Cargo.toml", format!("{manifest}{library}"));
    folder.write("crate/src/lib.rs", block("rust", "export!"));
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    // The versions that the other guests are built with.
    folder.copy(&root.join("Cargo.lock"), "crate/Cargo.lock");
    copy_folder(&root.join("wit/edge-relay-tenant@0.1.0"), folder, "crate/wit");
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
    let source = Folder::empty();
    write_crate(&source);
    let filter = guests::build_crate(&source.path("crate"));
    let relay = Relay::serve(Folder::new("").filtered("t", &partner.url(), &filter, "")).await;
    let mut trades = relay.client("/t?channel=trades").await;
    let mut peer = partner.accept().await;
    assert_eq!(peer.next_text().await, r#"{"subscribe":"trades"}"#);
    peer.text("a quote").await;
    peer.text("a trade").await;
    assert_eq!(trades.text().await, "a trade");
}

#[tokio::test]
async fn its_configuration_is_accepted() {
    let folder = Folder::empty();
    let listen = block("toml", "trusted-proxies").replace("0.0.0.0:8080", "127.0.0.1:0").replace(":9090", ":0");
    folder.write("relay.toml", listen);
    // What is commented out is true too.
    let manifest = block("toml", "[[upstream]]").replace("# headers", "headers").replace("# sub", "sub");
    let manifest = manifest.replace("# idle", "idle").replace("# max", "max").replace("# path", "path");
    let partner = Partner::start().await;
    folder.write("tenants/market/tenant.toml", manifest.replace("wss://ws-feed.exchange.coinbase.com", &partner.url()));
    folder.copy(guests::market("filter"), "tenants/market/filter.wasm");
    let relay = Relay::serve_with(folder, &[("MARKET__TOKEN", "Bearer x")]).await;
    assert_eq!(relay.ready().await["status"], "ready");
}
