//! What a component may reach: nothing of the host by default, else what its manifest asks for and the operator allows.

use rustix::process::Signal;
use support::{
    guests,
    http::Http,
    process::{run, shown},
    relay::Relay,
    tenant::Folder,
};

mod files;
mod requests;
mod streams;

/// A relay.toml with this `[grants]`.
fn folder(allowed: &str) -> Folder {
    let folder = Folder::new("");
    folder.allow(allowed);
    folder
}

/// Adds a tenant with these grants, whose API tries to reach what the path says.
fn tenant(folder: Folder, name: &str, grants: &str) -> Folder {
    folder.write(
        &format!("tenants/{name}/tenant.toml"),
        format!("name = \"{name}\"\ncomponents.api = \"api.wasm\"\n{grants}\n"),
    );
    folder.copy(guests::grants(), &format!("tenants/{name}/api.wasm"));
    folder
}

async fn says(http: &mut Http, path: &str) -> String {
    let answer = http.get(path).await;
    assert_eq!(answer.status(), 200, "{path}: {answer:?}");
    answer.body
}

#[tokio::test]
async fn nothing_is_granted_by_default() {
    let relay = Relay::serve_with(tenant(folder(""), "t", ""), &[("T__KEY", "hunter2")]).await;
    let mut http = relay.http().await;
    for (path, nothing) in [
        ("/t/folders", ""),
        ("/t/read?path=/etc/hosts", "no folder"),
        ("/t/environment", "[] [] None"),
        ("/t/configs", "Ok([])"),
        ("/t/fetch?to=example.com&path=/", "ErrorCode::HttpRequestDenied"),
    ] {
        assert_eq!(says(&mut http, path).await, nothing, "{path}");
    }
    let socket = says(&mut http, "/t/socket").await;
    assert!(socket.contains("Err") && socket.contains("access-denied"), "{socket}");
}

#[tokio::test]
async fn a_folder_is_read_and_nothing_else() {
    let folder = tenant(folder(""), "t", "grants.folders = { \"/data\" = \"data\" }");
    folder.write("tenants/t/data/prices", "42");
    folder.write("tenants/t/data/deep/er", "43");
    folder.write("tenants/t/key", "hunter2");
    for (link, to) in [("out", "../key"), ("abs", "/etc/hosts"), ("up", ".."), ("in", "deep/er")] {
        std::os::unix::fs::symlink(to, folder.path(&format!("tenants/t/data/{link}"))).unwrap();
    }
    let manifest = folder.path("tenants/t/tenant.toml");
    let relay = Relay::serve(folder).await;
    let mut http = relay.http().await;
    for (path, what) in [
        ("/t/folders", "/data"),
        ("/t/read?path=/data/prices", "42"),
        ("/t/read?path=/data/deep/../prices", "42"),
        ("/t/read?path=/data/in", "43"),
        ("/t/list?path=/data/deep", "er"),
        ("/t/read?path=/data/none", "no-entry"),
        // These paths lead out of the folder.
        ("/t/read?path=/data/../key", "not-permitted"),
        ("/t/read?path=/data/deep/../../key", "not-permitted"),
        ("/t/read?path=/data//etc/hosts", "not-permitted"),
        ("/t/read?path=/data/out", "not-permitted"),
        ("/t/read?path=/data/abs", "not-permitted"),
        ("/t/read?path=/data/up/key", "not-permitted"),
        ("/t/list?path=/data/up", "not-permitted"),
        // The folder may not be written to.
        ("/t/write?path=/data/prices&text=0", "not-permitted"),
        ("/t/write?path=/data/new&text=0", "not-permitted"),
        ("/t/remove?path=/data/prices", "not-permitted"),
        ("/t/link?path=/data/new&to=prices", "not-permitted"),
        ("/t/rename?path=/data/prices&to=/data/new", "not-permitted"),
    ] {
        let said = says(&mut http, path).await;
        assert!(said == what || what == "not-permitted" && said == "read-only", "{path}: {said}");
    }
    assert!(manifest.is_file() && manifest.with_file_name("data/prices").is_file());
    assert!(!manifest.with_file_name("data/new").exists());
}

#[tokio::test]
async fn writing_is_a_grant_and_the_operators_to_allow() {
    let grants = "grants.folders = { \"/own\" = { path = \"data\", write = true }, \"/s\" = { path = \"SHARED\", write = true } }";
    let place = folder("write = true\nfolders = [{ path = \"shared\", write = true, tenants = [\"t\"] }]");
    place.write("shared/prices", "42");
    let grants = grants.replace("SHARED", place.path("shared").to_str().unwrap());
    let place = tenant(place, "t", &grants);
    place.write("tenants/t/data/old", "old");
    let (own, shared) = (place.path("tenants/t/data/new"), place.path("shared/prices"));
    let relay = Relay::serve(place).await;
    let mut http = relay.http().await;
    assert_eq!(says(&mut http, "/t/write?path=/own/new&text=new").await, "written");
    assert_eq!(says(&mut http, "/t/write?path=/s/prices&text=43").await, "written");
    assert_eq!(
        (std::fs::read_to_string(own).unwrap(), std::fs::read_to_string(shared).unwrap()),
        ("new".into(), "43".into())
    );
    assert_eq!(says(&mut http, "/t/write?path=/own/../tenant.toml&text=x").await, "not-permitted");

    // By default neither is allowed.
    let place = folder("");
    place.write("shared/prices", "42");
    let shared = place.path("shared");
    let grants = format!(
        "[grants.folders]\n\"/own\" = {{ path = \"data\", write = true }}\n\"/s\" = {:?}\n\"/code\" = \".\"",
        shared.to_str().unwrap()
    );
    let place = tenant(place, "t", &grants);
    place.write("tenants/t/data/old", "old");
    let output = run(&["serve".as_ref(), "--strict".as_ref(), "--config".as_ref(), place.config().as_os_str()]).await;
    let said = shown(&output);
    assert_eq!(output.status.code(), Some(2), "{said}");
    for words in [
        "4: grants.folders.\"/own\".path: \"data\" is not to be written",
        "5: grants.folders.\"/s\"",
        "6: grants.folders.\"/code\"",
    ] {
        assert!(said.contains(words), "{words} is not in {said}");
    }
}

/// One grant is a folder below another that may be written to. A guest puts a link in its place.
#[tokio::test]
async fn a_guest_cannot_lead_a_grant_elsewhere() {
    let place = folder("write = true");
    place.write("secret/key", "hunter2");
    let grants = "grants.folders = { \"/all\" = { path = \"data\", write = true }, \"/part\" = \"data/part\" }";
    // Each call has a fresh instance, which opens its folders anew.
    let place = tenant(place, "t", &format!("{grants}\n"));
    let manifest = std::fs::read_to_string(place.path("tenants/t/tenant.toml")).unwrap();
    let manifest = manifest.replace("\"api.wasm\"", "{ file = \"api.wasm\", isolation = \"call\" }");
    place.write("tenants/t/tenant.toml", manifest);
    place.write("tenants/t/data/part/prices", "42");
    let relay = Relay::serve(place).await;
    let mut http = relay.http().await;
    assert_eq!(says(&mut http, "/t/rename?path=/all/part&to=/all/moved").await, "renamed");
    assert_eq!(says(&mut http, "/t/link?path=/all/part&to=../../../secret").await, "linked");
    for path in ["/all/part/key", "/part/key"] {
        let said = says(&mut http, &format!("/t/read?path={path}")).await;
        assert!(said == "not-permitted" || said == "no-entry", "{path}: {said}");
    }
    assert_eq!(says(&mut http, "/t/read?path=/part/prices").await, "42");
}

#[tokio::test]
async fn values_and_secrets_of_the_tenant_alone() {
    let grants = "settings.greeting = \"hello\"\n[grants]\nenvironment = { LOG = \"debug\", TOKEN = { env = \"T__TOKEN\" } }\n\
        secrets = { api-key = { env = \"T__KEY\" }, signing = { file = \"key\" } }";
    let place = tenant(tenant(folder(""), "t", grants), "u", "");
    place.write("tenants/t/key", "hunter4\n");
    let variables = [("T__TOKEN", "hunter2"), ("T__KEY", "hunter3"), ("EDGE_RELAY_LOG", "trace")];
    let relay = Relay::serve_with(place, &variables).await;
    let mut http = relay.http().await;
    assert_eq!(says(&mut http, "/t/environment").await, "[(\"LOG\", \"debug\"), (\"TOKEN\", \"hunter2\")] [] None");
    for (key, value) in [("greeting", "hello"), ("api-key", "hunter3"), ("signing", "hunter4")] {
        assert_eq!(says(&mut http, &format!("/t/config?key={key}")).await, format!("Ok(Some({value:?}))"));
    }
    for path in ["/u/environment", "/u/configs"] {
        let said = says(&mut http, path).await;
        assert!(!said.contains("hunter"), "{path}: {said}");
    }
    assert!(!relay.log().contains("hunter"), "{}", relay.log());
}

#[tokio::test]
async fn a_rotated_secret_and_other_grants_are_a_new_version() {
    let grants = "[grants]\nsecrets = { key = { file = \"key\" } }";
    let place = tenant(folder(""), "t", grants);
    place.write("tenants/t/key", "first");
    place.write("tenants/t/data/prices", "42");
    let (key, manifest) = (place.path("tenants/t/key"), place.path("tenants/t/tenant.toml"));
    let relay = Relay::serve(place).await;
    let mut http = relay.http().await;
    assert_eq!(says(&mut http, "/t/config?key=key").await, "Ok(Some(\"first\"))");
    let swapped = [("tenant", "t"), ("outcome", "applied")];
    std::fs::write(&key, "second").unwrap();
    // The change is applied at once if the file's times differ, and otherwise within seconds.
    relay.metric_is("edge_relay_tenant_swaps_total", &swapped, 1.0).await;
    assert_eq!(says(&mut http, "/t/config?key=key").await, "Ok(Some(\"second\"))");
    let text = std::fs::read_to_string(&manifest).unwrap();
    std::fs::write(&manifest, format!("{text}\nfolders = {{ \"/data\" = \"data\" }}\n")).unwrap();
    relay.signal(Signal::HUP);
    relay.metric_is("edge_relay_tenant_swaps_total", &swapped, 2.0).await;
    assert_eq!(says(&mut http, "/t/read?path=/data/prices").await, "42");
    // What the operator does not allow is refused, and the version before goes on.
    std::fs::write(&manifest, format!("{text}\nhttp = [\"127.0.0.1\"]\n")).unwrap();
    relay.signal(Signal::HUP);
    relay.metric_is("edge_relay_tenant_swaps_total", &[("tenant", "t"), ("outcome", "refused")], 1.0).await;
    relay.logged(&["tenant refused", "[grants] networks"]).await;
    assert_eq!(says(&mut http, "/t/read?path=/data/prices").await, "42");
    std::fs::write(&manifest, text).unwrap();
    relay.signal(Signal::HUP);
    relay.metric_is("edge_relay_tenant_swaps_total", &swapped, 3.0).await;
    assert_eq!(says(&mut http, "/t/folders").await, "", "the grant was removed");
}
