//! Configurations with which a strict relay must not start: the exit code is 2, every mistake is listed, and nothing
//! listens. Without `--strict` only the host's own mistakes end the start.

use std::net::TcpListener;

use support::{
    guests,
    process::{run, shown},
    tenant::Folder,
};

const UPSTREAM: &str = "[[upstream]]\nname = \"feed\"\nurl = \"wss://feed.example/\"\n";

/// Checks that `serve` refuses the folder's configuration, with one line for each of these reasons. A reason is given
/// by its words.
async fn refused(folder: &Folder, reasons: &[&[&str]]) {
    let config = folder.config();
    let output = run(&["serve", "--strict", "--config", config.to_str().unwrap()]).await;
    let shown = shown(&output);
    assert_eq!(output.status.code(), Some(2), "{shown}");
    assert!(output.stdout.is_empty(), "it has listened: {shown}");
    let errors = String::from_utf8(output.stderr).unwrap();
    for words in reasons {
        let named = errors.lines().any(|line| words.iter().all(|word| line.contains(word)));
        assert!(named, "no line with {words:?}: {shown}");
    }
    // The log also says what is compiled.
    let mistakes = errors.lines().filter(|line| !line.contains(" INFO compiling")).count();
    assert_eq!(mistakes, reasons.len(), "one line for each mistake: {shown}");
}

#[tokio::test]
async fn what_is_not_toml() {
    let folder = Folder::empty();
    folder.write("tenants/t/tenant.toml", format!("name = \"t\"\n{UPSTREAM}"));
    folder.write("relay.toml", "tenants = \"tenants\"\n[limits\nclients = 1\n");
    refused(&folder, &[&["relay.toml:2:", "TOML"]]).await;
    folder.write("relay.toml", b"tenants = \"\xFF\"\n");
    refused(&folder, &[&["relay.toml", "UTF-8"]]).await;
}

#[tokio::test]
async fn half_a_file() {
    let folder = Folder::new("");
    // Cut in the middle of a string, as on a full disk.
    folder.write("tenants/t/tenant.toml", "name = \"t\"\n[[upstream]]\nname = \"feed\"\nurl = \"ws://127.0");
    refused(&folder, &[&["tenant.toml:4:", "TOML"]]).await;
    // Valid TOML, and yet cut.
    folder.write("tenants/t/tenant.toml", "name = \"t\"\n[[upstream]]\nname = \"feed\"\n");
    refused(&folder, &[&["tenant.toml:", "upstream", "url"]]).await;
}

#[tokio::test]
async fn every_mistake_in_every_file_is_listed_at_once() {
    let folder = Folder::empty();
    let relay = "tenants = \"tenants\"\ntrusted-proxies = [\"10.0.0.0/8\", \"here\"]\n[listen]\nclients = \"8080\"\n\
        [limits]\nping-interval = \"soon\"\nhandshake = 5\n";
    folder.write("relay.toml", relay);
    folder.write("tenants/a/tenant.toml", "name = \"A tenant\"\n[[upstream]]\nname = \"feed\"\nurl = \"http://x/\"\n");
    folder.write("tenants/b/tenant.toml", format!("name = \"b\"\n{UPSTREAM}[limits]\nmemory = \"much\"\nfilter = 1\n"));
    folder.write("tenants/c/tenant.toml", format!("name = \"b\"\npath = \"/c\"\n{UPSTREAM}"));
    let reasons: [&[&str]; 9] = [
        &["relay.toml:2:", "trusted-proxies", "here"],
        &["relay.toml:4:", "listen.clients", "8080"],
        &["relay.toml:6:", "limits.ping-interval", "soon"],
        &["relay.toml:7:", "limits.handshake", "unknown"],
        &["a/tenant.toml:1:", "name", "A tenant"],
        &["a/tenant.toml:4:", "upstream.url", "wss://"],
        &["b/tenant.toml:6:", "limits.memory", "much"],
        &["b/tenant.toml:7:", "limits.filter", "unknown"],
        &["b/tenant.toml:1:", "name", "c/tenant.toml"],
    ];
    refused(&folder, &reasons).await;
}

#[tokio::test]
async fn unknown_keys_wherever_they_stand() {
    let folder = Folder::new("clents = 5");
    let config = std::fs::read_to_string(folder.config()).unwrap();
    folder.write("relay.toml", format!("tenant = 1\n{config}[shop]\nurl = \"x\"\n"));
    let tenant = format!(
        "name = \"t\"\nhost = \"x\"\n{UPSTREAM}idle = \"1s\"\n[components]\nfillter = \"x.wasm\"\n\
         [channels.\"out\"]\nlogs = 1\n[limits]\nmemory-limit = 1\n"
    );
    folder.write("tenants/t/tenant.toml", tenant);
    let reasons: [&[&str]; 8] = [
        &["relay.toml", "tenant:", "unknown"],
        &["relay.toml", "limits.clents", "unknown", "clients"],
        &["relay.toml", "shop", "unknown"],
        &["tenant.toml", "host", "unknown"],
        &["tenant.toml", "idle", "unknown"],
        &["tenant.toml", "components.fillter", "unknown", "filter"],
        &["tenant.toml", "logs", "unknown"],
        &["tenant.toml", "limits.memory-limit", "unknown"],
    ];
    refused(&folder, &reasons).await;
}

#[tokio::test]
async fn files_that_are_not_there() {
    let folder = Folder::empty();
    let reasons: [&[&str]; 1] = [&["relay.toml", "No such file"]];
    refused(&folder, &reasons).await;
    folder.write("relay.toml", "tenants = \"elsewhere\"\n");
    refused(&folder, &[&["relay.toml:1:", "elsewhere"]]).await;
    folder.write("relay.toml", "tenants = \"tenants\"\n");
    folder.write("tenants/t/tenant.toml", format!("name = \"t\"\n{UPSTREAM}[components]\nfilter = \"f.wasm\"\n"));
    refused(&folder, &[&["tenant.toml:6:", "components.filter", "f.wasm"]]).await;
}

#[tokio::test]
async fn components_that_cannot_run() {
    let url = "ws://127.0.0.1:1/";
    let plain = Folder::empty();
    plain.write("text.wasm", "not WebAssembly");
    plain.write("core.wasm", b"\0asm\x01\0\0\0");
    plain.write("torn.wasm", &std::fs::read(guests::hostile()).unwrap()[..5_000]);
    let folder = Folder::new("")
        .filtered("text", url, &plain.path("text.wasm"), "")
        .filtered("core", url, &plain.path("core.wasm"), "")
        .filtered("torn", url, &plain.path("torn.wasm"), "")
        .filtered("roleless", url, guests::roleless(), "")
        .filtered("stranger", url, guests::stranger(), "");
    let reasons: [&[&str]; 5] = [
        &["text/filter.wasm", "not WebAssembly"],
        &["core/filter.wasm", "core module", "component build"],
        &["torn/filter.wasm"],
        &["roleless/filter.wasm", "filter", "greet"],
        &["stranger/filter.wasm", "acme:unknown/thing@1.0.0"],
    ];
    refused(&folder, &reasons).await;
}

#[tokio::test]
async fn one_tenants_manifest_and_anothers_component() {
    let url = "ws://127.0.0.1:1/";
    let plain = Folder::empty();
    plain.write("text.wasm", "not WebAssembly");
    let folder = Folder::new("")
        .tenant("mistaken", url, "[limits]\nmemory = \"much\"")
        .filtered("text", url, &plain.path("text.wasm"), "")
        .filtered("good", url, guests::hostile(), "");
    refused(&folder, &[&["mistaken/tenant.toml:6:", "limits.memory"], &["text/filter.wasm", "not WebAssembly"]]).await;
}

#[tokio::test]
async fn a_port_in_use() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for listener in ["clients", "admin"] {
        let folder = Folder::new("").tenant("t", "ws://127.0.0.1:1/", "");
        let config = std::fs::read_to_string(folder.config()).unwrap();
        let free = format!("{listener} = \"127.0.0.1:0\"");
        folder.write("relay.toml", config.replace(&free, &format!("{listener} = \"{address}\"")));
        let output = run(&["serve", "--config", folder.config().to_str().unwrap()]).await;
        let shown = shown(&output);
        // The configuration itself is right.
        assert_eq!(output.status.code(), Some(1), "{shown}");
        assert!(output.stdout.is_empty(), "{shown}");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(error.contains(&address) && error.contains(listener) && error.contains("in use"), "{shown}");
    }
    let output = run(&["pass", "--upstream", "ws://127.0.0.1:1/", "--listen", &address]).await;
    assert_eq!(output.status.code(), Some(1), "{}", shown(&output));
}
