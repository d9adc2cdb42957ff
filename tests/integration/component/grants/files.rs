//! Files of granted folders: what may be opened, and how many.

use std::{fs, os::unix::fs::symlink, os::unix::net::UnixListener, process::Command};

use rustix::process::Signal;
use support::{relay::Relay, tenant::Folder, until};

use super::{folder, says, tenant};

const READS: &str = "grants.folders = { \"/data\" = \"data\" }\n";

/// Opens more pipes than there are threads for files. None of them may wait for its other side.
#[tokio::test]
async fn a_pipe_a_socket_and_a_device_are_not_opened_and_make_nobody_wait() {
    const OPENED: usize = 600;
    let place = tenant(folder(""), "t", &format!("{READS}[limits]\napi-call = \"2s\""));
    place.write("tenants/t/data/prices", "42");
    let pipe = place.path("tenants/t/data/pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let _socket = UnixListener::bind(place.path("tenants/t/data/socket")).unwrap();
    let relay = Relay::serve(place).await;
    let read = async |path: &str, times: usize| {
        let mut http = relay.http().await;
        for _ in 0..times {
            assert_eq!(says(&mut http, &format!("/t/read?path=/data/{path}")).await, "unsupported");
        }
    };
    tokio::join!(
        read("pipe", OPENED / 4),
        read("pipe", OPENED / 4),
        read("pipe", OPENED / 4),
        read("pipe", OPENED / 4)
    );
    read("socket", 1).await;
    assert_eq!(says(&mut relay.http().await, "/t/read?path=/data/prices").await, "42");
}

#[tokio::test]
async fn a_large_folder_is_listed_to_its_end_and_kinds_of_entries_are_known() {
    const FILES: usize = 3_000;
    let place = tenant(folder(""), "t", READS);
    let mut names: Vec<_> = (0..FILES).map(|nth| format!("file-{nth}")).collect();
    names.iter().for_each(|name| place.write(&format!("tenants/t/data/{name}"), ""));
    symlink("nowhere", place.path("tenants/t/data/link")).unwrap();
    names.push("link".into());
    names.sort();
    let relay = Relay::serve(place).await;
    let mut http = relay.http().await;
    assert_eq!(says(&mut http, "/t/list?path=/data/.").await, names.join(" "));
    assert_eq!(says(&mut http, "/t/list?path=/data/file-1").await, "not-directory");
}

#[tokio::test]
async fn a_tenant_has_a_share_of_the_files_that_the_process_may_open() {
    const FILES: u32 = 3_200;
    // A quarter of an eighth.
    const SHARE: u64 = 100;
    let more = format!("{READS}[limits]\ninstance-idle = \"2s\"");
    let place = tenant(tenant(folder(""), "t", &more), "u", &more);
    for name in ["t", "u"] {
        place.write(&format!("tenants/{name}/data/prices"), "42");
    }
    let relay = Relay::serve_with_files(place, FILES).await;
    let mut http = relay.http().await;
    let open = |tenant: &str, count: u64| format!("/{tenant}/open?path=/data/prices&count={count}");
    assert_eq!(says(&mut http, &open("t", SHARE - 10)).await, "kept");
    assert_eq!(says(&mut http, &open("t", 20)).await, "quota");
    relay.metric_is("edge_relay_limit_refusals_total", &[("tenant", "t"), ("limit", "open-files")], 1.0).await;
    // Another tenant has its own.
    assert_eq!(says(&mut http, &open("u", SHARE - 10)).await, "kept");
    // The files of an instance are closed with it, and make room for others.
    until("room for another file", async || {
        let said = says(&mut http, "/t/read?path=/data/prices").await;
        if said == "42" { Ok(()) } else { Err(said) }
    })
    .await;
}

/// A tenant whose guests may write to the folder `shared` of the operator.
fn writer() -> Folder {
    let place = folder("write = true\nfolders = [{ path = \"shared\", write = true, tenants = [\"t\"] }]");
    place.write("shared/late/prices", "42");
    let shared = place.path("shared");
    let grants = format!(
        "grants.folders = {{ \"/s\" = {{ path = {:?}, write = true }}, \
         \"/own\" = {{ path = \"data\", write = true }} }}",
        shared.to_str().unwrap()
    );
    let place = tenant(place, "t", &grants);
    place.write("tenants/t/data/late/prices", "42");
    place
}

#[tokio::test]
async fn a_tenant_that_comes_later_is_refused_where_anothers_guests_write() {
    let place = writer();
    for folder in ["shared/late", "tenants/t/data/late"] {
        place.write(&format!("{folder}/tenant.toml"), "name = \"late\"\npath = \"/late\"\n");
    }
    let relay = Relay::serve(place).await;
    let mut http = relay.http().await;
    for target in ["../shared/late", "t/data/late"] {
        let link = relay.folder().path("tenants/late");
        symlink(target, &link).unwrap();
        relay.signal(Signal::HUP);
        until("a refusal", async || {
            let ready = relay.ready().await;
            let why = ready["refused"]["late"].as_str().unwrap_or_default();
            if why.contains("where the guests of") { Ok(()) } else { Err(ready.to_string()) }
        })
        .await;
        // The guests' folder is theirs as before.
        assert_eq!(says(&mut http, "/t/write?path=/s/prices&text=43").await, "written");
        fs::remove_file(link).unwrap();
        relay.signal(Signal::HUP);
        relay.metric_is("edge_relay_tenants_refused", &[], 0.0).await;
    }
}

/// At a start, too, and whichever name comes first: a tenant is not made of what another tenant's guests write.
#[tokio::test]
async fn a_tenant_within_anothers_own_folder_is_refused_at_the_start() {
    let place = writer();
    place.write("tenants/t/data/late/tenant.toml", "name = \"late\"\npath = \"/late\"\n");
    symlink("t/data/late", place.path("tenants/a-late")).unwrap();
    let relay = Relay::serve(place).await;
    let ready = relay.ready().await;
    assert!(ready["refused"]["a-late"].as_str().unwrap_or_default().contains("where the guests of"), "{ready}");
    assert_eq!(says(&mut relay.http().await, "/t/read?path=/own/late/prices").await, "42");
}
