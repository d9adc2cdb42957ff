//! Tenants that come, change and go while the relay runs: what changes, and that no connection is cut by it.

use std::path::Path;

use rustix::process::Signal;
use serde_json::Value;
use support::{
    client::Client,
    guests,
    partner::{Partner, Peer},
    relay::Relay,
    tenant::Folder,
    until,
};
use tokio_tungstenite::tungstenite::Message;

mod load;

pub const SWAPS: &str = "edge_relay_tenant_swaps_total";

/// Waits until this many changes of a tenant have had this outcome.
async fn swapped(relay: &Relay, tenant: &str, outcome: &str, times: u32) {
    relay.metric_reaches(SWAPS, &[("tenant", tenant), ("outcome", outcome)], times.into()).await;
}

/// A manifest with a filter and this setting, and more keys.
fn manifest(partner: &Partner, setting: &str, more: &str) -> String {
    format!(
        "name = \"t\"\n[[upstream]]\nname = \"feed\"\nurl = \"{}\"\n[components]\nfilter = \"filter.wasm\"\n{more}\n\
         [settings]\nversion = \"{setting}\"\n",
        partner.url()
    )
}

/// A relay with a tenant `t` whose filter says which version of it has filtered.
struct Scene {
    relay: Relay,
    partner: Partner,
    peer: Peer,
    client: Client,
}

impl Scene {
    async fn new() -> Self {
        Self::with(Folder::new(""), "").await
    }

    /// Serves the tenant with more keys in its manifest.
    async fn with(folder: Folder, more: &str) -> Self {
        let mut partner = Partner::start().await;
        folder.write("tenants/t/tenant.toml", manifest(&partner, "first", more));
        folder.write("tenants/t/filter.wasm", guests::versioned(1));
        let relay = Relay::serve(folder).await;
        let client = relay.client("/t?channel=out").await;
        let peer = partner.accept().await;
        Self { relay, partner, peer, client }
    }

    fn write(&self, path: &str, content: impl AsRef<[u8]>) {
        self.relay.folder().write(&format!("tenants/t/{path}"), content);
    }

    /// Checks what the filter makes of a message now.
    async fn filters(&mut self, wanted: &str) {
        self.peer.text("message").await;
        assert_eq!(self.client.text().await, format!("message {wanted}"));
    }

    async fn swapped(&self, times: u32) {
        swapped(&self.relay, "t", "applied", times).await;
    }

    /// Waits until a change is refused for a reason with these words, and checks that the version before goes on.
    async fn refused(&mut self, times: u32, words: &[&str]) {
        swapped(&self.relay, "t", "refused", times).await;
        // The reason is shown after the count.
        until(format!("a refusal with {words:?}"), async || {
            let why = self.relay.ready().await["tenants"]["t"]["refused"].as_str().unwrap_or_default().to_owned();
            if words.iter().all(|word| why.contains(word)) { Ok(()) } else { Err(why) }
        })
        .await;
        let logged = [&["ERROR", "tenant refused; the version before runs on", "tenant.name=t"], words].concat();
        self.relay.logged(&logged).await;
        self.filters("code-0001 0001 first").await;
    }
}

#[tokio::test]
async fn changed_code_and_settings_are_swapped_in_without_a_word() {
    let mut scene = Scene::new().await;
    scene.filters("code-0001 0001 first").await;
    scene.write("filter.wasm", guests::versioned(2));
    scene.swapped(1).await;
    scene.filters("code-0002 0002 first").await;
    scene.write("tenant.toml", manifest(&scene.partner, "second", ""));
    scene.swapped(2).await;
    scene.filters("code-0002 0002 second").await;
    assert_eq!(scene.partner.connections(), 1, "the upstream stays");
    assert_eq!(scene.relay.metric("edge_relay_clients_closed_total", &[]).await, 0.0);
    assert_eq!(scene.relay.metric(SWAPS, &[("outcome", "refused")]).await, 0.0);
    // The instance of the old version is gone.
    scene.relay.metric_is("edge_relay_guest_instances", &[("tenant", "t")], 1.0).await;
}

#[tokio::test]
async fn what_is_wrong_is_refused_and_what_ran_runs_on() {
    let mut scene = Scene::new().await;
    scene.filters("code-0001 0001 first").await;
    let good = guests::versioned(1);
    let read = |path: &Path| std::fs::read(path).unwrap();
    let stranger = read(guests::stranger());
    let mut half = good.clone();
    half.truncate(good.len() / 2);
    let wrong: [(&[u8], &[&str]); 5] = [
        (b"rubbish", &["filter.wasm", "is not WebAssembly"]),
        (b"\0asm\x01\0\0\0", &["filter.wasm", "is a core module", "edge-relay component build"]),
        (&half, &["filter.wasm", "does not compile"]),
        (&stranger, &["filter.wasm", "imports what the host does not give"]),
        (&read(guests::handler()), &["filter.wasm", "has not the role of filter"]),
    ];
    for (times, (code, words)) in (1..).zip(wrong) {
        scene.write("filter.wasm", code);
        scene.refused(times, words).await;
    }
    scene.write("filter.wasm", guests::versioned(1));
    scene.swapped(1).await;
    assert_eq!(scene.relay.ready().await["tenants"]["t"]["refused"], Value::Null);
    let manifests = [
        ("name = \"t\"\nnmae = 1\n".to_owned(), &["tenant.toml", "nmae: unknown key"][..]),
        ("name = \"t\n".to_owned(), &["tenant.toml", "is not TOML"]),
        (manifest(&scene.partner, "second", "client = \"none.wasm\""), &["components.client", "none.wasm"]),
    ];
    for (times, (manifest, words)) in (6..).zip(manifests) {
        scene.write("tenant.toml", manifest);
        scene.refused(times, words).await;
    }
    assert_eq!(scene.partner.connections(), 1);
    assert_eq!(scene.relay.metric("edge_relay_clients_closed_total", &[]).await, 0.0);
}

#[tokio::test]
async fn a_hangup_has_all_that_was_refused_looked_at_again() {
    let mut scene = Scene::new().await;
    scene.write("filter.wasm", "rubbish");
    scene.refused(1, &["is not WebAssembly"]).await;
    scene.relay.signal(Signal::HUP);
    scene.refused(2, &["is not WebAssembly"]).await;
}

#[tokio::test]
async fn tenants_come_and_go() {
    let mut scene = Scene::new().await;
    let other = Partner::start().await;
    let folder = scene.relay.folder();
    folder.write("tenants/u/tenant.toml", manifest(&other, "other", "").replace("\"t\"", "\"u\""));
    folder.write("tenants/u/filter.wasm", guests::versioned(7));
    swapped(&scene.relay, "u", "applied", 1).await;
    let mut client = scene.relay.client("/u?channel=out").await;
    let mut other = other;
    let mut peer = other.accept().await;
    peer.text("hello").await;
    assert_eq!(client.text().await, "hello code-0007 0007 other");
    assert_eq!(scene.relay.metric("edge_relay_tenants", &[]).await, 2.0);

    std::fs::remove_dir_all(scene.relay.folder().path("tenants/u")).unwrap();
    let (rest, code) = client.rest().await;
    assert_eq!((rest, code.map(u16::from)), (Vec::new(), Some(1001)));
    assert_eq!(peer.ended().await, Some(1001));
    scene.relay.metric_is("edge_relay_clients_closed_total", &[("tenant", "u"), ("reason", "tenant")], 1.0).await;
    until("that the path leads nowhere", async || match Client::try_connect(&scene.relay.url("/u")).await {
        Ok(_) => Err("it leads somewhere".to_owned()),
        Err(error) => error.to_string().contains("404").then_some(()).ok_or(error.to_string()),
    })
    .await;
    // Nothing of the removed tenant is shown.
    assert!(!scene.relay.ready().await["tenants"].as_object().unwrap().contains_key("u"));
    scene.relay.metric_is("edge_relay_guest_instances", &[("tenant", "u")], 0.0).await;
    scene.filters("code-0001 0001 first").await;
}

#[tokio::test]
async fn a_manifest_that_comes_before_its_code_is_refused_until_that_is_there() {
    let mut scene = Scene::new().await;
    let mut other = Partner::start().await;
    let folder = scene.relay.folder();
    folder.write("tenants/u/tenant.toml", manifest(&other, "other", "").replace("\"t\"", "\"u\""));
    swapped(&scene.relay, "u", "refused", 1).await;
    folder.write("tenants/u/filter.wasm", guests::versioned(7));
    swapped(&scene.relay, "u", "applied", 1).await;
    let mut client = scene.relay.client("/u?channel=out").await;
    other.accept().await.text("hello").await;
    assert_eq!(client.text().await, "hello code-0007 0007 other");
    scene.filters("code-0001 0001 first").await;
}

#[tokio::test]
async fn a_newcomer_may_not_take_what_another_has() {
    let mut scene = Scene::new().await;
    let folder = scene.relay.folder();
    folder.write("tenants/u/tenant.toml", "name = \"t\"\n");
    swapped(&scene.relay, "u", "refused", 1).await;
    scene.relay.logged(&["ERROR", "it is not in service", "the name t is also that of the tenant in"]).await;
    folder.write("tenants/u/tenant.toml", "name = \"u\"\npath = \"/t\"\n");
    swapped(&scene.relay, "u", "refused", 2).await;
    scene.relay.logged(&["ERROR", "it is not in service", "the path /t meets /t, that of the tenant in"]).await;
    // Otherwise the tenant would get requests that are meant for the other one.
    folder.write("tenants/u/tenant.toml", "name = \"u\"\npath = \"/t/connection/websocket\"\n");
    swapped(&scene.relay, "u", "refused", 3).await;
    scene.relay.logged(&["ERROR", "the path /t/connection/websocket meets /t, that of the tenant in"]).await;
    folder.write("tenants/u/tenant.toml", "name = \"u\"\nhosts = [\"feed.example\"]\n");
    swapped(&scene.relay, "u", "refused", 4).await;
    scene.relay.logged(&["ERROR", "tenants/u/tenant.toml:2: hosts", "is the operator's to give"]).await;
    scene.filters("code-0001 0001 first").await;
    // Only the other tenant is in the way.
    scene.relay.folder().write("tenants/u/tenant.toml", "name = \"u\"\npath = \"/t\"\n");
    swapped(&scene.relay, "u", "refused", 5).await;
    std::fs::remove_dir_all(scene.relay.folder().path("tenants/t")).unwrap();
    swapped(&scene.relay, "u", "applied", 1).await;
    scene.relay.client("/t").await;
}

#[tokio::test]
async fn an_upstream_that_changes_is_closed_before_the_next_is_opened() {
    let mut scene = Scene::new().await;
    let mut other = Partner::start().await;
    scene.write("tenant.toml", manifest(&other, "second", ""));
    scene.swapped(1).await;
    assert_eq!(scene.peer.ended().await, Some(1001));
    scene.peer = other.accept().await;
    scene.filters("code-0001 0001 second").await;
    assert_eq!(scene.partner.connections(), 1);
    assert_eq!(scene.relay.metric("edge_relay_clients_closed_total", &[]).await, 0.0);
}

#[tokio::test]
async fn a_filter_that_is_swapped_keeps_its_place_while_others_wait_for_one() {
    let folder = Folder::new("");
    folder.copy(guests::api(), "tenants/t/api.wasm");
    let mut scene = Scene::with(folder, "api = \"api.wasm\"\n[limits]\ninstances = 1\napi-call = \"1m\"").await;
    scene.filters("code-0001 0001 first").await;
    // A filter that has a place does not give it back.
    let mut http = scene.relay.http().await;
    tokio::spawn(async move { http.get("/t/wait").await.body });
    let labels = [("tenant", "t"), ("limit", "instances")];
    scene.relay.metric_reaches("edge_relay_limit_refusals_total", &labels, 1.0).await;
    scene.write("filter.wasm", guests::versioned(2));
    scene.swapped(1).await;
    scene.filters("code-0002 0002 first").await;
    assert_eq!(scene.relay.metric("edge_relay_guest_lost_total", &[]).await, 0.0);
}

#[tokio::test]
async fn idle_instances_of_old_code_go_though_a_call_still_runs_in_it() {
    let folder = Folder::new("");
    folder.copy(guests::api(), "tenants/t/api.wasm");
    let more = "api = \"api.wasm\"\n[limits]\napi-call = \"1m\"\ninstance-idle = \"1m\"";
    let scene = Scene::with(folder, more).await;
    let instances = async |wanted| {
        scene.relay.metric_is("edge_relay_guest_instances", &[("tenant", "t"), ("role", "api")], wanted).await;
    };
    let mut http = scene.relay.http().await;
    tokio::spawn(async move { http.get("/t/wait").await.body });
    instances(1.0).await;
    assert_eq!(scene.relay.http().await.get("/t/count").await.body, "1");
    instances(2.0).await;
    scene.write("tenant.toml", manifest(&scene.partner, "second", more));
    scene.swapped(1).await;
    instances(1.0).await;
}

#[tokio::test]
async fn a_filter_that_begins_to_follow_demand_is_told_of_channels_before_the_next_message() {
    let mut scene = Scene::new().await;
    scene.filters("code-0001 0001 first").await;
    scene.write("filter.wasm", std::fs::read(guests::demand()).unwrap());
    scene.swapped(1).await;
    assert_eq!(scene.peer.next_text().await, "feed: active out");
}

#[tokio::test]
async fn an_upstream_that_changes_waits_for_the_filter_before_it() {
    let (mut one, mut other) = (Partner::start().await, Partner::start().await);
    let limits = "[limits]\nfilter-call = \"3s\"";
    let folder = Folder::new("").filtered("t", &one.url(), guests::demand(), limits);
    let relay = Relay::serve(folder).await;
    let mut peer = one.accept().await;
    assert_eq!(peer.next_text().await, "open ");
    // The filter is busy with this channel for as long as a call may take.
    let _client = relay.client("/t?channel=loop").await;
    let manifest = relay.folder().path("tenants/t/tenant.toml");
    let changed = std::fs::read_to_string(&manifest).unwrap().replace(&one.url(), &other.url());
    std::fs::write(&manifest, changed).unwrap();
    relay.signal(Signal::HUP);
    swapped(&relay, "t", "applied", 1).await;
    // The reason that its on-close was told is known when the next connection is opened.
    let opened = other.accept().await.next_text().await;
    assert!(opened.strip_prefix("open ").is_some_and(|ended| !ended.is_empty()), "{opened:?}");
}

#[tokio::test]
async fn a_schedule_that_changes_waits_for_the_call_before_it() {
    let schedule = |every: &str| {
        format!(
            "name = \"t\"\n[components]\njob = \"job.wasm\"\n[limits]\njob-call = \"3s\"\n\
             [[schedule]]\nname = \"loop\"\nevery = \"{every}\"\nafter = \"1ms\"\n"
        )
    };
    let folder = Folder::new("");
    folder.copy(guests::probe(), "tenants/t/job.wasm");
    folder.write("tenants/t/tenant.toml", schedule("1h"));
    let relay = Relay::serve(folder).await;
    relay.metric_is("edge_relay_guest_instances", &[("role", "job")], 1.0).await;
    relay.folder().write("tenants/t/tenant.toml", schedule("2h"));
    relay.signal(Signal::HUP);
    swapped(&relay, "t", "applied", 1).await;
    until("the end of the first call", async || {
        assert!(relay.metric("edge_relay_guest_instances", &[("role", "job")]).await <= 1.0, "two calls at once");
        let ended = relay.metric("edge_relay_guest_failures_total", &[("role", "job"), ("reason", "deadline")]).await;
        if ended >= 1.0 { Ok(()) } else { Err("it runs".to_owned()) }
    })
    .await;
    // Then the call that waited runs.
    relay.metric_reaches("edge_relay_guest_failures_total", &[("role", "job"), ("reason", "deadline")], 2.0).await;
}

#[tokio::test]
async fn a_handler_that_comes_is_asked_and_one_that_goes_is_not() {
    let mut scene = Scene::new().await;
    scene.write("client.wasm", std::fs::read(guests::handler()).unwrap());
    scene.write("tenant.toml", manifest(&scene.partner, "first", "client = \"client.wasm\""));
    scene.swapped(1).await;
    let mut asked = scene.relay.client("/t?channel=out").await;
    asked.send(Message::text("reply hello")).await;
    assert_eq!(asked.text().await, "hello");
    let refused = Client::try_connect(&scene.relay.url("/t?reject=418")).await.err().unwrap();
    assert!(refused.to_string().contains("418"), "{refused}");
    scene.write("tenant.toml", manifest(&scene.partner, "first", ""));
    scene.swapped(2).await;
    scene.relay.client("/t?channel=out&reject=418").await;
    // The handler goes on serving clients that it has let in.
    asked.send(Message::text("reply still")).await;
    assert_eq!(asked.text().await, "still");
    scene.filters("code-0001 0001 first").await;
    assert_eq!(asked.text().await, "message code-0001 0001 first");
}
