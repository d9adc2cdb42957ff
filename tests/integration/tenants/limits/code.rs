//! What components may use: memory, time, instances, handles, state, records, and requests at a time.

use support::{bombs, guests, http::Http, partner::Partner, probe::Probe, relay::Relay, tenant::Folder, until};

use crate::tenants::limits::{ask, handled, refusals, refusals_reach};

const INSTANCES: &str = "edge_relay_guest_instances";

/// Serves tenant `t` with a handler and an API. A call of the API may take this long.
async fn both(host_limits: &str, limits: &str, call: &str) -> Relay {
    let calls = format!("client-call = \"1m\"\napi-call = \"{call}\"");
    let manifest = format!(
        "name = \"t\"\n[components]\nclient = \"client.wasm\"\napi = \"api.wasm\"\n[limits]\n{calls}\n{limits}\n"
    );
    let folder = Folder::new(host_limits).api("u", "");
    folder.write("tenants/t/tenant.toml", manifest);
    folder.copy(guests::handler(), "tenants/t/client.wasm");
    folder.copy(guests::api(), "tenants/t/api.wasm");
    Relay::serve(folder).await
}

#[tokio::test]
async fn memory_over_the_limit_is_refused_to_the_guest_which_may_go_on() {
    let relay = handled("memory = \"16MiB\"").await;
    let mut client = relay.client("/t").await;
    assert_eq!(ask(&mut client, "reserve 1000000").await, "true");
    assert_eq!(ask(&mut client, "reserve 100000000").await, "false");
    assert_eq!(refusals(&relay, "memory").await, 1.0);
    relay.logged(&["WARN", "tenant.name=t", "limit=memory", "memory=16777216", "reached its limit"]).await;
    assert_eq!(ask(&mut client, "reply on").await, "on");
    assert_eq!(relay.metric("edge_relay_guest_failures_total", &[]).await, 0.0);
}

#[tokio::test]
async fn tables_grow_so_far_and_their_call_is_told() {
    let folder = Folder::new("");
    folder.write("tenants/t/tenant.toml", "name = \"t\"\ncomponents.client = \"client.wasm\"\n");
    folder.write("tenants/t/client.wasm", bombs::bomb(&[bombs::ON_MESSAGE], bombs::TABLE));
    let relay = Relay::serve(folder).await;
    let mut client = relay.client("/t").await;
    // The guest grows its table until that fails, and then traps.
    assert!(ask(&mut client, "grow").await.contains("\"code\":100"));
    assert_eq!(refusals(&relay, "tables").await, 1.0);
    relay.logged(&["WARN", "tenant.name=t", "limit=tables", "reached its limit"]).await;
}

#[tokio::test]
async fn a_call_that_is_too_long_is_counted_by_its_limit() {
    let relay = handled("client-call = \"100ms\"").await;
    let mut client = relay.client("/t").await;
    assert!(ask(&mut client, "loop").await.contains("\"code\":100"));
    assert_eq!(refusals(&relay, "client-call").await, 1.0);
    let relay = Relay::serve(Folder::new("").api("t", "[limits]\napi-call = \"100ms\"")).await;
    assert_eq!(relay.http().await.get("/t/loop").await.envelope(), (504, "api_late".into()));
    refusals_reach(&relay, "api-call", 1.0).await;
}

#[tokio::test]
async fn handles_that_leak_cost_the_call_and_its_instance() {
    let relay = handled("client-call = \"1m\"").await;
    let mut client = relay.client("/t").await;
    assert_eq!(ask(&mut client, "leak 500").await, "leaked");
    assert!(ask(&mut client, "leak 600").await.contains("\"code\":100"));
    let labels = [("tenant", "t"), ("blame", "guest_broke"), ("reason", "trap")];
    assert_eq!(relay.metric("edge_relay_guest_failures_total", &labels).await, 1.0);
    assert_eq!(refusals(&relay, "handles").await, 1.0);
    relay.logged(&["WARN", "tenant.name=t", "holds more than 1000 handles"]).await;
    assert_eq!(ask(&mut client, "leak 500").await, "leaked");
}

#[tokio::test]
async fn state_and_keys_over_the_limit_are_refused_to_the_guest() {
    let mut partner = Partner::start().await;
    let limits = "[limits]\nstate = \"4KiB\"\nstate-keys = 2\nlogs = \"64KiB\"\nrecords = \"4KiB\"";
    let relay = Relay::serve(Folder::new("").filtered("t", &partner.url(), guests::probe(), limits)).await;
    let mut probe = Probe::new(&relay, &mut partner, "t").await;
    probe.check(&[("set default a 1", "Ok(())"), ("set default b 1", "Ok(())")]).await;
    assert!(probe.ask("set default c 1").await.contains("full: 2 keys"));
    assert_eq!(refusals(&relay, "state-keys").await, 1.0);
    assert!(probe.ask("fill default a 5000").await.contains("full: 4096 bytes"));
    assert_eq!(refusals(&relay, "state").await, 1.0);
    // The limits of logs and of records are counted too.
    let answer = probe.ask(&format!("publish news {}", "x".repeat(70_000))).await;
    assert!(answer.contains("reached their limit of bytes"), "{answer}");
    assert_eq!(refusals(&relay, "logs").await, 1.0);
    probe.ask("append-many log 1 10000").await;
    refusals_reach(&relay, "records", 1.0).await;
    until("a refusal that the filter sees", async || {
        let answer = probe.ask("append log x").await;
        if answer.contains("Full") { Ok(()) } else { Err(answer) }
    })
    .await;
}

#[tokio::test]
async fn all_components_share_the_instances_and_a_call_that_waits_too_long_is_told() {
    let relay = both("", "instances = 1", "300ms").await;
    let mut client = relay.client("/t").await;
    let mut other = relay.client("/t").await;
    // An idle instance makes room at once, and not only when its idle time is over.
    assert_eq!(relay.http().await.get("/t/count").await.body, "1");
    assert_eq!(ask(&mut client, "reply turn").await, "turn");
    assert_eq!(relay.http().await.get("/t/count").await.body, "1", "another instance");
    assert_eq!(ask(&mut client, "reply turn").await, "turn");
    let before = refusals(&relay, "instances").await;
    client.send("hold key".into()).await;
    client.settle().await;
    relay.metric_is("edge_relay_guest_queue", &[("role", "client")], 0.0).await;
    assert_eq!(relay.http().await.get("/t/count").await.envelope(), (503, "busy".into()));
    assert_eq!(relay.metric(INSTANCES, &[("tenant", "t")]).await, 1.0);
    assert!(refusals(&relay, "instances").await > before);
    // Another tenant has a limit of its own. A client's message waits for its turn and is not lost.
    assert_eq!(relay.http().await.get("/u/count").await.body, "1");
    other.send("reply waited".into()).await;
    other.has_no_more().await;
    let labels = [("tenant", "t"), ("role", "api"), ("blame", "host_failed"), ("reason", "busy")];
    assert_eq!(relay.metric("edge_relay_guest_failures_total", &labels).await, 1.0);
}

#[tokio::test]
async fn a_filter_that_gets_no_instance_in_its_time_is_counted_and_tried_again() {
    let mut partner = Partner::start().await;
    let folder = Folder::new("instances = 1").handled("u", guests::handler(), "[limits]\nclient-call = \"1m\"");
    let folder = folder.filtered("t", &partner.url(), guests::probe(), "[limits]\nfilter-call = \"100ms\"");
    let relay = Relay::serve(folder).await;
    let mut client = relay.client("/u").await;
    client.send("busy 2000\nreply done".into()).await;
    client.settle().await;
    relay.metric_is("edge_relay_guest_queue", &[("role", "client")], 0.0).await;
    // Without an instance nothing says what to send first, so the relay closes the connection.
    partner.accept().await.ended().await;
    let labels = [("tenant", "t"), ("role", "filter"), ("blame", "host_failed"), ("reason", "busy")];
    assert!(relay.metric("edge_relay_guest_failures_total", &labels).await >= 1.0);
    assert!(refusals(&relay, "host-instances").await >= 1.0);
    relay.logged(&["WARN", "tenant.name=t", "no place for an instance within 100 ms"]).await;
    assert_eq!(client.text().await, "done");
    let mut probe = Probe::new(&relay, &mut partner, "t").await;
    assert_eq!(probe.ask("status feed").await, "Ok(State::Live) 0");
}

#[tokio::test]
async fn instances_of_all_tenants_are_bounded_and_idle_ones_make_room_for_others() {
    let relay = both("instances = 1", "", "300ms").await;
    let mut client = relay.client("/t").await;
    let mut releases = relay.client("/t").await;
    for _ in 0..3 {
        assert_eq!(ask(&mut client, "reply mine").await, "mine");
        assert_eq!(relay.http().await.get("/u/count").await.body, "1", "the other tenant's instance makes room");
        assert_eq!(relay.metric(INSTANCES, &[]).await, 1.0);
    }
    // A busy instance does not make room.
    client.send("busy 2000".into()).await;
    client.settle().await;
    relay.metric_is("edge_relay_guest_queue", &[("role", "client")], 0.0).await;
    assert_eq!(relay.http().await.get("/t/count").await.envelope(), (503, "busy".into()));
    assert!(refusals(&relay, "host-instances").await >= 1.0);
    assert_eq!(refusals(&relay, "instances").await, 0.0);
    assert_eq!(ask(&mut releases, "reply later").await, "later");
}

#[tokio::test]
async fn bodies_and_requests_over_the_limit_are_counted_by_it() {
    let folder =
        Folder::new("").api("t", "[limits]\napi-instances = 1\napi-queue = 1\napi-body = 10\napi-call = \"1m\"");
    let relay = Relay::serve(folder).await;
    assert_eq!(relay.http().await.post("/t/echo", "eleven bytes").await.envelope(), (413, "too_large".into()));
    refusals_reach(&relay, "api-body", 1.0).await;
    // A chunked request, which lasts until the test ends it.
    let mut held = relay.http().await;
    held.begin("/t/echo").await;
    held.send_chunk("held").await;
    held.head().await;
    let mut waits: Http = relay.http().await;
    waits.request("GET", "/t/count").await;
    relay.metric_is("edge_relay_guest_queue", &[("role", "api")], 1.0).await;
    assert_eq!(relay.http().await.get("/t/count").await.envelope(), (503, "busy".into()));
    assert_eq!(refusals(&relay, "api-queue").await, 1.0);
    held.end().await;
    assert_eq!(waits.answer().await.status(), 200);
}
