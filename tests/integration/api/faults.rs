//! APIs that fail, misbehave or get too many requests: what their clients get, and that other tenants do not notice.

use rustix::process::Signal;
use support::{http::Http, partner::Partner, relay::Relay, tenant::Folder, until};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;

const FAILURES: &str = "edge_relay_guest_failures_total";
const INSTANCES: &str = "edge_relay_guest_instances";
const QUEUE: &str = "edge_relay_guest_queue";

/// Serves tenant `t` with these limits, and a neighbour with one instance.
async fn relay(limits: &str) -> Relay {
    let folder = Folder::new("").api("t", &format!("[limits]\n{limits}"));
    Relay::serve(folder.api("neighbour", "limits.api-instances = 1")).await
}

/// Checks that the neighbour's only instance has served all requests so far: one more with each call.
async fn neighbour_has_served(relay: &Relay, count: u32) {
    assert_eq!(relay.http().await.get("/neighbour/count").await.body, count.to_string());
    assert_eq!(relay.metric(FAILURES, &[("tenant", "neighbour")]).await, 0.0);
}

async fn failed(relay: &Relay, blame: &str, reason: &str, times: f64) {
    let labels = [("tenant", "t"), ("role", "api"), ("blame", blame), ("reason", reason)];
    relay.metric_is(FAILURES, &labels, times).await;
    relay.metric_is(FAILURES, &[("tenant", "t")], times).await;
}

/// Begins a call that lasts until its request ends. The call has its instance when this returns.
async fn held(relay: &Relay) -> Http {
    let mut http = relay.http().await;
    http.begin("/t/echo").await;
    http.send_chunk("held").await;
    http.head().await;
    assert_eq!(http.chunk().await, "held");
    http
}

async fn let_go(mut http: Http) {
    http.end().await;
    assert_eq!(http.chunk().await, "");
}

#[tokio::test]
async fn a_trap_costs_its_request_and_a_fresh_instance() {
    let relay = relay("api-instances = 1").await;
    let mut http = relay.http().await;
    for times in 1..=3_u8 {
        assert_eq!(http.get("/t/count").await.body, "1");
        assert_eq!(http.get("/t/count").await.body, "2");
        assert_eq!(http.get("/t/trap").await.envelope(), (500, "api_broke".into()));
        failed(&relay, "guest_broke", "trap", times.into()).await;
        neighbour_has_served(&relay, times.into()).await;
    }
    relay.metric_is("edge_relay_guest_lost_total", &[("tenant", "t")], 3.0).await;
    relay.metric_is("edge_relay_api_refused_total", &[("reason", "api_broke")], 3.0).await;
    relay.logged(&["component call failed", "tenant.name=t", "guest.role=api"]).await;
}

#[tokio::test]
async fn a_call_past_its_deadline_is_ended() {
    let relay = relay("api-instances = 1\napi-call = \"200ms\"").await;
    let mut http = relay.http().await;
    for (path, times) in [("/t/loop", 1), ("/t/wait", 2_u8)] {
        assert_eq!(http.get(path).await.envelope(), (504, "api_late".into()));
        failed(&relay, "guest_broke", "deadline", times.into()).await;
        assert_eq!(http.get("/t/count").await.body, "1");
        neighbour_has_served(&relay, times.into()).await;
    }
}

#[tokio::test]
async fn a_call_past_its_deadline_is_logged_with_where_it_was() {
    let relay = relay("api-call = \"200ms\"").await;
    let late = "no answer within 200 ms in ";
    let mut http = relay.http().await;
    for (path, function) in [("/t/loop", "api_guest::spin"), ("/t/wait", "api_guest::wait_for_ever")] {
        assert_eq!(http.get(path).await.envelope(), (504, "api_late".into()));
        relay.logged(&["component call failed", "guest.role=api", late, function]).await;
    }
    // A body whose end never comes.
    http.begin("/t/length").await;
    relay.logged(&["component call failed", "guest.role=api", late, "api_guest::until_end"]).await;
}

#[tokio::test]
async fn memory_over_the_limit_is_a_trap() {
    let relay = relay("api-instances = 1\nmemory = \"16MiB\"").await;
    assert_eq!(relay.http().await.get("/t/memory").await.envelope(), (500, "api_broke".into()));
    failed(&relay, "guest_broke", "trap", 1.0).await;
    assert!(relay.peak_memory() < 500 << 20);
    neighbour_has_served(&relay, 1).await;
}

#[tokio::test]
async fn handles_over_the_limit_are_a_trap() {
    let relay = relay("api-instances = 1").await;
    let mut http = relay.http().await;
    assert_eq!(http.get("/t/leak?handles=900").await.body, "leaked");
    assert_eq!(http.get("/t/leak?handles=900").await.envelope(), (500, "api_broke".into()));
    failed(&relay, "guest_broke", "trap", 1.0).await;
    assert_eq!(http.get("/t/count").await.body, "1");
    neighbour_has_served(&relay, 1).await;
}

#[tokio::test]
async fn what_is_behind_handles_is_bounded() {
    let relay = relay("").await;
    let mut http = relay.http().await;
    let mut parts = async |method: u32, authority: u32, path: u32, field: u32| {
        let asked = format!("/t/parts?method={method}&authority={authority}&path={path}&field={field}");
        http.get(&asked).await.body
    };
    assert_eq!(parts(64, 1 << 10, 16 << 10, 73_000).await, "true true true true 65536");
    let refusals = [("tenant", "t"), ("limit", "request-part")];
    assert_eq!(relay.metric("edge_relay_limit_refusals_total", &refusals).await, 0.0);
    assert_eq!(parts(65, (1 << 10) + 1, (16 << 10) + 1, 1).await, "false false false true 65536");
    assert_eq!(relay.metric("edge_relay_limit_refusals_total", &refusals).await, 3.0);
    assert!(parts(1, 1, 1, 74_000).await.contains("api_broke"));
    failed(&relay, "guest_broke", "trap", 1.0).await;
    neighbour_has_served(&relay, 1).await;
}

#[tokio::test]
async fn a_call_of_the_host_that_is_long_work_is_a_trap() {
    let relay = relay("").await;
    let mut http = relay.http().await;
    for (times, path, well, over) in [(1_u8, "random", 64 << 10, (64 << 10) + 1), (2, "stdout", 4 << 10, (4 << 10) + 1)]
    {
        assert_eq!(http.get(&format!("/t/{path}?bytes={well}")).await.body, "done");
        assert_eq!(http.get(&format!("/t/{path}?bytes={over}")).await.envelope(), (500, "api_broke".into()), "{path}");
        failed(&relay, "guest_broke", "trap", times.into()).await;
    }
    neighbour_has_served(&relay, 1).await;
}

#[tokio::test]
async fn a_guest_that_does_not_answer_is_at_fault() {
    let relay = relay("api-instances = 1").await;
    let mut http = relay.http().await;
    for (times, path) in [(1_u8, "/t/silent"), (2, "/t/silent-and-keeps"), (3, "/t/silent")] {
        assert_eq!(http.get(path).await.envelope(), (500, "api_broke".into()), "{path}");
        failed(&relay, "guest_broke", "no_answer", times.into()).await;
    }
    relay.logged(&["WARN", "tenant.name=t", "guest.role=api", "an API returned without an answer"]).await;
    // The guest has returned, and its instance goes on.
    assert_eq!(http.get("/t/count").await.body, "4");
    neighbour_has_served(&relay, 1).await;
}

#[tokio::test]
async fn errors_that_a_guest_reads_say_nothing_of_the_hosts_code() {
    let folder = Folder::new("").api("t", "");
    let relay = Relay::serve_with(folder, &[("RUST_BACKTRACE", "1")]).await;
    let mut http = relay.http().await;
    http.request("GET", "/t/too-long").await;
    let line = relay.logged(&["tenant.name=t", "guest.context=error"]).await;
    assert!(!line.contains(".rs") && !line.contains("Stack backtrace"), "{line}");
}

#[tokio::test]
async fn an_error_instead_of_an_answer_is_the_guests_no() {
    let relay = relay("api-instances = 1").await;
    let answer = relay.http().await.get("/t/refuse").await;
    assert_eq!(answer.envelope(), (500, "api_error".into()));
    assert!(!answer.body.contains("hush"), "the guest's text was sent to the client: {answer:?}");
    failed(&relay, "guest_said_no", "error", 1.0).await;
    assert_eq!(relay.http().await.get("/t/count").await.body, "2");
    neighbour_has_served(&relay, 1).await;
}

#[tokio::test]
async fn of_two_answers_the_first_counts() {
    let relay = relay("api-instances = 1").await;
    let mut http = relay.http().await;
    for times in 1..=10_u8 {
        assert_eq!(http.get("/t/twice").await.body, "the first");
        failed(&relay, "guest_broke", "trap", times.into()).await;
    }
    assert_eq!(http.get("/t/count").await.body, "1");
    neighbour_has_served(&relay, 1).await;
}

#[tokio::test]
async fn a_trap_after_the_answers_end_costs_the_instance_only() {
    let relay = relay("api-instances = 1").await;
    let mut http = relay.http().await;
    for times in 1..=10_u8 {
        let path = if times % 2 == 0 { "/t/trap-after" } else { "/t/trap-after-chunks" };
        assert_eq!(http.get(path).await.body, "all of it");
        failed(&relay, "guest_broke", "trap", times.into()).await;
    }
    assert_eq!(http.get("/t/count").await.body, "1");
    neighbour_has_served(&relay, 1).await;
}

#[tokio::test]
async fn half_an_answer_never_looks_whole() {
    let relay = relay("api-call = \"1s\"").await;
    for (path, reason) in [
        ("/t/die", "trap"),
        ("/t/die-with-length", "trap"),
        ("/t/hang", "deadline"),
        ("/t/drop", "half_answer"),
        ("/t/keep", "half_answer"),
        ("/t/die-at-once", "trap"),
    ] {
        let before = relay.metric(FAILURES, &[("blame", "guest_broke"), ("reason", reason)]).await;
        let mut http = relay.http().await;
        http.begin(path).await;
        if path != "/t/keep" && path != "/t/die-at-once" {
            // The first half arrives before the guest fails.
            let head = http.head().await;
            assert_eq!(head.status, 200);
            match head.header("content-length") {
                Some(length) => assert_eq!(length, "12"),
                None => assert_eq!(http.chunk().await, "half "),
            }
            http.end().await;
            let rest = http.rest().await;
            assert!(rest.is_empty() || rest == "half ", "{path}: {rest:?}");
        } else {
            let answer = http.cut_off().await.expect("the part made before");
            assert_eq!((answer.status(), answer.body.as_str()), (200, "half "), "{path}");
        }
        relay.metric_is(FAILURES, &[("blame", "guest_broke"), ("reason", reason)], before + 1.0).await;
    }
    relay.logged(&["WARN", "guest.role=api", "an API returned before the end of its answer's body"]).await;
    neighbour_has_served(&relay, 1).await;
}

#[tokio::test]
async fn what_a_guest_keeps_of_a_call_is_of_no_use_in_the_next() {
    let relay = relay("api-instances = 1").await;
    let mut http = relay.http().await;
    assert_eq!(http.post("/t/keep-all", "body").await.body, "kept");
    assert_eq!(http.get("/t/count").await.body, "2");
    // What receives an answer is gone too, and the next request gets its own.
    assert_eq!(http.get("/t/silent-and-keeps").await.status(), 500);
    assert_eq!(http.get("/t/count").await.body, "4");
    neighbour_has_served(&relay, 1).await;
}

#[tokio::test]
async fn an_instance_serves_as_many_calls_as_the_manifest_says() {
    // With one instance, a request waits until the call before it has returned.
    let one = "limits.api-instances = 1";
    let folder = Folder::new("").api("t", one).api_as("three", "{ file = \"api.wasm\", reuse = 3 }", one).api_as(
        "fresh",
        "{ file = \"api.wasm\", isolation = \"call\" }",
        one,
    );
    let relay = Relay::serve(folder).await;
    let mut http = relay.http().await;
    for count in 1..=7_u32 {
        assert_eq!(http.get("/t/count").await.body, count.to_string());
        assert_eq!(http.get("/three/count").await.body, ((count - 1) % 3 + 1).to_string());
        assert_eq!(http.get("/fresh/count").await.body, "1");
    }
    for (tenant, instances) in [("t", 1.0), ("three", 1.0), ("fresh", 0.0)] {
        relay.metric_is(INSTANCES, &[("tenant", tenant)], instances).await;
    }
}

#[tokio::test]
async fn each_call_under_way_has_an_instance_and_the_rest_wait_their_turn() {
    let relay = relay("api-instances = 3\napi-queue = 2\napi-call = \"1h\"").await;
    let mut calls = Vec::new();
    for instances in 1..=3_u8 {
        calls.push(held(&relay).await);
        relay.metric_is(INSTANCES, &[("tenant", "t")], instances.into()).await;
    }
    let (mut first, mut second) = (relay.http().await, relay.http().await);
    for (waiting, http) in [(1.0, &mut first), (2.0, &mut second)] {
        http.request("GET", "/t/count").await;
        relay.metric_is(QUEUE, &[("tenant", "t")], waiting).await;
    }
    let busy = relay.http().await.get("/t/count").await;
    assert_eq!(busy.envelope(), (503, "busy".into()));
    assert_eq!(busy.head.header("retry-after"), Some("1"));
    failed(&relay, "host_failed", "busy", 1.0).await;
    relay.metric_is("edge_relay_api_refused_total", &[("reason", "busy")], 1.0).await;
    neighbour_has_served(&relay, 1).await;
    for call in calls {
        let_go(call).await;
    }
    assert_eq!((first.answer().await.status(), second.answer().await.status()), (200, 200));
    relay.metric_is(QUEUE, &[("tenant", "t")], 0.0).await;
    assert_eq!(relay.metric(INSTANCES, &[("tenant", "t")]).await, 3.0);
}

#[tokio::test]
async fn a_request_that_waits_too_long_is_told_that_the_tenant_is_busy() {
    let folder = Folder::new("").api("t", "[limits]\napi-instances = 1\napi-call = \"400ms\"");
    let relay = Relay::serve(folder).await;
    let mut looping = relay.http().await;
    looping.request("GET", "/t/hang").await;
    looping.head().await;
    // Three requests wait for a call that takes the whole deadline. The first one is served, and perhaps the next.
    let mut waiting = Vec::new();
    for _ in 0..3 {
        let mut http = relay.http().await;
        http.request("GET", "/t/wait").await;
        waiting.push(http);
    }
    let mut statuses = Vec::new();
    for mut http in waiting {
        let (status, code) = http.answer().await.envelope();
        assert!([(503, "busy"), (504, "api_late")].contains(&(status, &code)), "{status} {code}");
        statuses.push(status);
    }
    assert!(statuses.contains(&503), "{statuses:?}");
    relay.metric_is(QUEUE, &[("tenant", "t")], 0.0).await;
}

#[tokio::test]
async fn a_request_that_leaves_while_waiting_frees_its_place() {
    let relay = relay("api-instances = 1\napi-queue = 1\napi-call = \"1h\"").await;
    let call = held(&relay).await;
    let mut gone = relay.http().await;
    gone.request("GET", "/t/trap").await;
    relay.metric_is(QUEUE, &[("tenant", "t")], 1.0).await;
    gone.reset();
    relay.metric_is(QUEUE, &[("tenant", "t")], 0.0).await;
    let mut next = relay.http().await;
    next.request("GET", "/t/count").await;
    relay.metric_is(QUEUE, &[("tenant", "t")], 1.0).await;
    let_go(call).await;
    // The call of the client that left was never made. It would have cost the instance.
    assert_eq!(next.answer().await.body, "2");
    assert_eq!(relay.metric(FAILURES, &[("tenant", "t")]).await, 0.0);
}

#[tokio::test]
async fn busy_loops_disturb_nobody_else() {
    let mut partner = Partner::start().await;
    let limits = "[limits]\napi-instances = 8\napi-call = \"1h\"";
    let folder = Folder::new("").api("t", limits).api("neighbour", "limits.api-instances = 1").tenant(
        "feed",
        &partner.url(),
        "",
    );
    let relay = Relay::serve(folder).await;
    let mut client = relay.client("/feed").await;
    let mut peer = partner.accept().await;
    let mut looping = Vec::new();
    for _ in 0..8 {
        let mut http = relay.http().await;
        http.request("GET", "/t/loop").await;
        looping.push(http);
    }
    relay.metric_is(INSTANCES, &[("tenant", "t")], 8.0).await;
    relay.metric_is(QUEUE, &[("tenant", "t")], 0.0).await;
    let mut http = relay.http().await;
    for count in 1..=20 {
        assert_eq!(http.get("/neighbour/count").await.body, count.to_string());
        peer.text(&count.to_string()).await;
        assert_eq!(client.message().await, Message::text(count.to_string()));
    }
}

#[tokio::test]
async fn at_the_end_answers_are_finished_and_connections_closed() {
    let mut relay = Relay::serve(Folder::new("shutdown-timeout = \"5m\"").api("t", "")).await;
    let mut idle = relay.http().await;
    idle.get("/t/count").await;
    let mut streaming = held(&relay).await;
    // A connection without a request.
    let mut mute = relay.http().await;
    relay.signal(Signal::TERM);
    assert_eq!(idle.rest().await, "");
    assert_eq!(mute.rest().await, "");
    let api = relay.api();
    until("requests refused", async || match TcpStream::connect(api).await {
        Ok(_) => Err("connected".to_owned()),
        Err(_) => Ok(()),
    })
    .await;
    assert_eq!(relay.ended(), None);
    streaming.send_chunk("still").await;
    assert_eq!(streaming.chunk().await, "still");
    streaming.end().await;
    assert_eq!(streaming.chunk().await, "");
    assert_eq!(streaming.rest().await, "");
    assert_eq!(relay.end().await.code(), Some(0));
}

#[tokio::test]
async fn at_the_end_a_call_that_goes_on_is_cut_at_the_deadline() {
    let folder = Folder::new("shutdown-timeout = \"300ms\"").api("t", "[limits]\napi-call = \"1h\"");
    let mut relay = Relay::serve(folder).await;
    let mut streaming = held(&relay).await;
    let mut looping = relay.http().await;
    looping.request("GET", "/t/loop").await;
    relay.metric_is(INSTANCES, &[("tenant", "t")], 2.0).await;
    relay.signal(Signal::TERM);
    assert_eq!(streaming.rest().await, "");
    assert_eq!(looping.rest().await, "");
    assert_eq!(relay.end().await.code(), Some(0));
    relay.logged(&["API requests cut off at shutdown"]).await;
}
