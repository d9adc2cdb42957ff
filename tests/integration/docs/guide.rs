//! The guide for tenants' developers, carried out as it stands: its files, its commands, and what it promises.
//!
//! Only downloads are replaced, by the toolchains that `.ci/setup tests` has installed.

use std::{fs, os::unix::fs::PermissionsExt, os::unix::fs::symlink, process::Command};

use support::{
    client::Client,
    languages::{self, Language},
    partner::Partner,
    place,
    process::{shown, user_caches},
    relay::Relay,
    script::{self, Script},
    skip,
    tenant::Folder,
    until,
};
use tokio_tungstenite::tungstenite::Message;

const GUIDE: &str = include_str!("../../../docs/TENANTS.md");
/// The path of the guide's manifest.
const MANIFEST: &str = "tenants/prices/tenant.toml";
/// The address of the guide's partner.
const EXCHANGE: &str = "ws://127.0.0.1:9000/";

#[tokio::test]
async fn it_leads_to_a_tenant_in_rust() {
    let Some(()) = can_be_asked() else { return };
    let folder = begun("### Rust");
    // Uses the versions that the other guests are built with.
    folder.copy(&place::root("Cargo.lock"), "code/Cargo.lock");
    run(&folder, "### Rust");
    works(folder).await;
}

#[tokio::test]
async fn it_leads_to_a_tenant_in_javascript() {
    let Some(()) = can_be_asked() else { return };
    let Some((tools, _)) = languages::installed(Language::JavaScript) else { return };
    let _turn = languages::turn().await;
    let folder = begun("### JavaScript");
    let modules = tools.join("node_modules");
    stand_in(
        &folder,
        "npm",
        &format!("[ \"$*\" = 'ci --ignore-scripts --prefix code' ] && ln -s '{}' code", modules.display()),
    );
    run(&folder, "### JavaScript");
    let relay = works(folder).await;
    broken_calls_are_in_the_log(&relay).await;
    changes_while_it_runs(&relay).await;
}

#[tokio::test]
async fn it_leads_to_a_tenant_in_python() {
    let Some(()) = can_be_asked() else { return };
    let Some((tools, _)) = languages::installed(Language::Python) else { return };
    let _turn = languages::turn().await;
    let folder = begun("### Python");
    let version = fs::read_to_string(place::root("components/python/requirements.txt")).unwrap();
    let tool = format!("PYTHONPATH='{0}' exec '{0}/bin/componentize-py' \"$@\"", tools.display());
    stand_in(&folder, "venv-componentize-py", &tool);
    stand_in(&folder, "venv-pip", &format!("[ \"$*\" = 'install {}' ]", version.trim()));
    let here = "for tool in pip componentize-py; do ln -s \"$PWD/bin/venv-$tool\" code/.venv/bin/$tool; done";
    stand_in(&folder, "python3", &format!("[ \"$*\" = '-m venv code/.venv' ] && mkdir -p code/.venv/bin && {here}"));
    run(&folder, "### Python");
    let relay = works(folder).await;
    broken_calls_are_in_the_log(&relay).await;
}

/// Checks that the programs are installed with which the guide's reader asks the tenant.
fn can_be_asked() -> Option<()> {
    skip::need("curl")?;
    script::node_packages().map(drop)
}

/// Returns the first block of this language behind these words.
fn block(behind: &str, language: &str) -> &'static str {
    let (_, rest) = GUIDE.split_once(behind).unwrap_or_else(|| panic!("{behind} is not in the guide"));
    let (_, rest) = rest.split_once(&format!("\n```{language}\n")).unwrap();
    rest.split_once("\n```").unwrap().0
}

/// Returns a section, from its heading to the next.
fn section(heading: &str) -> &'static str {
    let (_, rest) = GUIDE.split_once(&format!("\n{heading}\n")).unwrap();
    rest.split("\n##").next().unwrap()
}

/// Returns a folder with the files of a language's section, in which the guide was followed up to that section.
fn begun(heading: &str) -> Folder {
    let folder = Folder::empty();
    let host = block("An operator's `relay.toml`", "toml");
    folder.write(
        "relay.toml",
        ["8080", "8081", "9090"].iter().fold(host.to_owned(), |host, port| host.replace(port, "0")),
    );
    let folder = folder.shared_cache();
    folder.write(MANIFEST, block("`tenants/prices/tenant.toml`:", "toml"));
    fs::create_dir(folder.path("bin")).unwrap();
    symlink(place::program(), folder.path("bin/edge-relay")).unwrap();
    run(&folder, "## The code");
    folder.write("code/wit/prices.wit", block("`code/wit/prices.wit`", "wit"));
    for (before, after) in section(heading).match_indices("`:\n\n```").map(|(at, _)| section(heading).split_at(at)) {
        let name = before.rsplit('`').next().unwrap();
        let content = after.split_once("```").unwrap().1.split_once('\n').unwrap().1;
        folder.write(name, content.split_once("\n```").unwrap().0);
    }
    folder
}

/// Replaces a command of the guide whose work is already done.
fn stand_in(folder: &Folder, name: &str, script: &str) {
    let path = format!("bin/{name}");
    folder.write(&path, format!("#!/bin/sh\n{script}\n"));
    fs::set_permissions(folder.path(&path), fs::Permissions::from_mode(0o755)).unwrap();
}

/// Runs all commands of a section.
fn run(folder: &Folder, heading: &str) {
    commands(heading).for_each(|commands| shell(folder, commands));
}

/// Returns a section's blocks of commands.
fn commands(heading: &str) -> impl Iterator<Item = &'static str> {
    section(heading).split("\n```sh\n").skip(1).map(|rest| rest.split_once("\n```").unwrap().0)
}

fn shell(folder: &Folder, commands: &str) {
    let path = format!("{}:{}", folder.path("bin").display(), std::env::var("PATH").unwrap());
    let mut shell = Command::new("bash");
    shell.args(["-ec", commands]).current_dir(folder.path("")).env("PATH", path);
    shell.env("XDG_CACHE_HOME", user_caches()).env("CARGO_TARGET_DIR", place::guests());
    shell.env("EDGE_RELAY", place::root(".").canonicalize().unwrap());
    let output = shell.output().unwrap();
    assert!(output.status.success(), "{commands}\n{}", shown(&output));
}

/// Checks the tenant, serves it, and makes sure that it does what the guide says.
async fn works(folder: Folder) -> Relay {
    let mut commands = commands("## Check it, run it");
    shell(&folder, commands.next().unwrap());
    let mut partner = Partner::local().await;
    let manifest = fs::read_to_string(folder.path(MANIFEST)).unwrap();
    assert!(manifest.contains(EXCHANGE) && GUIDE.contains("edge-relay feed --listen 127.0.0.1:9000\n"));
    folder.write(MANIFEST, manifest.replace(EXCHANGE, &partner.url()));
    let relay = Relay::serve(folder).await;
    let here = |text: &str| {
        let text = text.replace("127.0.0.1:8080", &relay.clients.to_string());
        text.replace("127.0.0.1:8081", &relay.api().to_string())
    };
    let mut first = relay.client("/prices?channel=prices").await;
    let mut peer = partner.accept().await;
    assert_eq!(peer.next_text().await, r#"{"type":"subscribe"}"#);
    for message in [r#"{"type":"heartbeat"}"#, r#"{"product_id":"BTC-USD","price":"43189.50"}"#] {
        peer.text(message).await;
    }
    assert_eq!(first.text().await, "BTC-USD 43189.50");
    let (status, _) = relay.api_get("/prices/none").await;
    assert_eq!(status, 404);
    // Clients that come later get the latest price of every product first.
    let mut events = Script::curl(&here(commands.next().unwrap())).unwrap();
    until("an event", async || {
        let line = events.said().await;
        if line == "data: BTC-USD 43189.50" { Ok(()) } else { Err(line) }
    })
    .await;
    let answer = Script::curl(&here(commands.next().unwrap())).unwrap();
    assert_eq!(answer.rest().await, ["43189.50"]);
    // Node before 22 has no WebSocket of its own.
    let page = here(block("from a browser's console", "js"));
    let mut page = Script::node(&format!("import WebSocket from \"ws\";\n{page}"), &[]).unwrap();
    let mut said = [page.said().await, page.said().await];
    said.sort();
    assert_eq!(said, ["BTC-USD 43189.50", "no such product is not known"]);
    relay
}

/// Checks that broken calls are in the log, where the guide says.
async fn broken_calls_are_in_the_log(relay: &Relay) {
    let mut client = relay.client("/prices?channel=main").await;
    client.send(Message::binary("x")).await;
    assert!(client.text().await.contains("\"code\":100"));
    let tenant = "tenant.name=prices guest.role=client";
    relay.logged(&["WARN", "component call failed", tenant, "having written: ", "binary is no product"]).await;
}

/// Checks that new code is taken into service as the guide says, and that what is not code is refused.
async fn changes_while_it_runs(relay: &Relay) {
    let folder = relay.folder();
    let source = fs::read_to_string(folder.path("code/app.js")).unwrap();
    folder.write("code/app.js", source.replace("is not known", "is unknown"));
    shell(folder, commands("### JavaScript").last().unwrap());
    let mut client = relay.client("/prices?channel=main").await;
    let answers = async |client: &mut Client| {
        client.send(Message::text("x")).await;
        client.text().await
    };
    until("the new code's answer", async || match answers(&mut client).await {
        answer if answer == "x is unknown" => Ok(()),
        answer => Err(answer),
    })
    .await;
    folder.write("tenants/prices/app.wasm", "half a component");
    until("a refusal", async || {
        let ready = relay.ready().await;
        let refused = ready["tenants"]["prices"]["refused"].as_str().map(str::to_owned);
        refused.ok_or_else(|| ready.to_string())
    })
    .await;
    relay.logged(&["tenant.name=prices", "app.wasm"]).await;
    assert_eq!(answers(&mut client).await, "x is unknown");
}
