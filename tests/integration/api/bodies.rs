//! Bodies of requests and answers: they stream in both directions, within their limits, and a body that stops does not
//! hold an instance.

use support::{
    http::{Http, chunk},
    relay::Relay,
    tenant::Folder,
};

/// A tenant with one instance, whose calls may take longer than the test.
async fn one_instance(limits: &str) -> Relay {
    let limits = format!("[limits]\napi-instances = 1\napi-call = \"1h\"\n{limits}");
    Relay::serve(Folder::new("").api("t", &limits)).await
}

/// Checks that the only instance takes a call.
async fn is_free(relay: &Relay) {
    assert_eq!(relay.http().await.get("/t/count").await.status(), 200);
}

fn post(path: &str, headers: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nHost: a\r\n{headers}\r\n")
}

#[tokio::test]
async fn an_answer_begins_before_the_request_has_ended() {
    let relay = Relay::serve(Folder::new("").api("t", "")).await;
    let mut http = relay.http().await;
    for _ in 0..2 {
        http.begin("/t/echo").await;
        assert_eq!(http.head().await.status, 200);
        for part in ["one", "two", "three"] {
            http.send_chunk(part).await;
            assert_eq!(http.chunk().await, part);
        }
        http.end().await;
        assert_eq!(http.chunk().await, "");
    }
}

#[tokio::test]
async fn each_part_of_an_answer_goes_out_as_it_is_made() {
    let relay = one_instance("").await;
    let mut http = relay.http().await;
    // The pause between two chunks is longer than the test.
    http.request("GET", "/t/stream?chunks=2&ms=3600000").await;
    http.head().await;
    assert_eq!(http.chunk().await, "chunk 0\n");
}

#[tokio::test]
async fn large_bodies_pass_in_little_memory() {
    const PART: usize = 64 << 10;
    const PARTS: usize = 1024;
    const MORE: usize = 32 << 20;
    let relay = Relay::serve(Folder::new("").api("t", "[limits]\napi-body = \"64MiB\"")).await;
    let mut http = relay.http().await;
    http.get("/t/count").await;
    let before = relay.peak_memory();
    http.request("GET", &format!("/t/big?bytes={}", PART * PARTS)).await;
    assert!(http.head().await.header("content-length").is_none());
    let mut length = 0;
    loop {
        let chunk = http.chunk().await.len();
        if chunk == 0 {
            break;
        }
        length += chunk;
    }
    assert_eq!(length, PART * PARTS);
    http.send(post("/t/length", &format!("Content-Length: {}\r\n", PART * PARTS))).await;
    let part = "x".repeat(PART);
    for _ in 0..PARTS {
        http.send(&part).await;
    }
    assert_eq!(http.answer().await.body, (PART * PARTS).to_string());
    http.begin("/t/echo").await;
    http.head().await;
    for _ in 0..PARTS {
        http.send_chunk(&part).await;
        let mut back = 0;
        while back < PART {
            back += http.chunk().await.len();
        }
    }
    http.end().await;
    assert_eq!(http.chunk().await, "");
    let more = relay.peak_memory() - before;
    assert!(more < MORE, "{more} bytes more for bodies of {}", PART * PARTS);
}

#[tokio::test]
async fn a_client_that_does_not_read_holds_the_guest_back_not_memory() {
    const MORE: usize = 32 << 20;
    let limits = "[limits]\napi-instances = 1\napi-call = \"1s\"";
    let relay = Relay::serve(Folder::new("").api("t", limits)).await;
    let before = relay.peak_memory();
    let mut http = Http::narrow(relay.api()).await;
    http.request("GET", "/t/big?bytes=1000000000").await;
    relay.metric_is("edge_relay_guest_failures_total", &[("reason", "deadline")], 1.0).await;
    is_free(&relay).await;
    assert!(relay.peak_memory() - before < MORE);
    let answer = http.cut_off().await.expect("what was made in time");
    assert!(answer.status() == 200 && answer.body.len() < MORE, "{}", answer.body.len());
}

#[tokio::test]
async fn a_client_that_never_reads_is_dropped() {
    let limits = "[limits]\napi-instances = 1\napi-call = \"1h\"";
    let relay = Relay::serve(Folder::new("stall-timeout = \"500ms\"").api("t", limits)).await;
    for times in [1.0, 2.0] {
        let mut http = Http::narrow(relay.api()).await;
        http.request("GET", "/t/big?bytes=1000000000").await;
        relay.metric_is("edge_relay_api_refused_total", &[("reason", "stalled")], times).await;
        is_free(&relay).await;
        // A client that reads now and then keeps its connection, however long the guest takes.
        let mut slow = relay.http().await;
        slow.request("GET", "/t/stream?chunks=3&ms=700").await;
        assert_eq!(slow.answer().await.body, "chunk 0\nchunk 1\nchunk 2\n");
    }
}

#[tokio::test]
async fn a_body_may_be_as_large_as_the_limit_and_no_larger() {
    let relay = one_instance("api-body = \"10KiB\"").await;
    let mut http = relay.http().await;
    let most = "x".repeat(10 << 10);
    for path in ["/t/length", "/t/echo", "/t/ignore"] {
        assert_eq!(http.post(path, &most).await.status(), 200, "{path}");
    }
    http.begin("/t/length").await;
    http.send_chunk(&most).await;
    http.end().await;
    assert_eq!(http.answer().await.body, most.len().to_string());
    // The length is known from the header, so no guest is called.
    let calls = relay.metric_reaches("edge_relay_guest_calls_total", &[], 4.0).await;
    let over = most.len() + 1;
    for path in ["/t/length", "/t/ignore"] {
        http.send(post(path, &format!("Content-Length: {over}\r\n"))).await;
        http.send(&"x".repeat(over)).await;
        assert_eq!(http.answer().await.envelope(), (413, "too_large".into()), "{path}");
    }
    assert_eq!(relay.metric("edge_relay_guest_calls_total", &[]).await, calls);
    // Without a length, the relay finds out while it reads.
    let mut http = relay.http().await;
    http.begin("/t/length").await;
    http.send_chunk(&most).await;
    http.send_chunk("x").await;
    assert_eq!(http.answer().await.envelope(), (413, "too_large".into()));
    // The client ends the body, so the connection can go on.
    http.end().await;
    assert_eq!(http.get("/t/count").await.status(), 200);
    relay.metric_is("edge_relay_api_refused_total", &[("reason", "too_large")], 3.0).await;
}

#[tokio::test]
async fn a_body_over_the_limit_breaks_an_answer_that_has_begun() {
    let relay = one_instance("api-body = \"10KiB\"").await;
    let mut http = relay.http().await;
    http.begin("/t/echo").await;
    http.head().await;
    http.send_chunk("x").await;
    assert_eq!(http.chunk().await, "x");
    http.try_send(chunk("x".repeat(11 << 10))).await;
    // The guest sees the error, and does not end its answer.
    assert!(!http.rest().await.contains("0\r\n\r\n"));
    is_free(&relay).await;
}

#[tokio::test]
async fn a_client_that_still_sends_gets_its_413() {
    let relay = one_instance("api-body = \"10KiB\"").await;
    for headers in ["Content-Length: 4000000000\r\n", "Transfer-Encoding: chunked\r\n"] {
        let mut http = relay.http().await;
        http.send(post("/t/length", headers)).await;
        // More than all buffers on the way hold, written while nobody reads.
        let body = chunk("x".repeat(16 << 20));
        http.try_send(body).await;
        assert_eq!(http.answer().await.envelope(), (413, "too_large".into()), "{headers}");
    }
    is_free(&relay).await;
}

#[tokio::test]
async fn a_client_that_asks_first_is_told_to_go_on_or_not_to() {
    let relay = one_instance("api-body = \"10KiB\"").await;
    let mut http = relay.http().await;
    http.send(post("/t/length", "Content-Length: 5\r\nExpect: 100-continue\r\n")).await;
    assert_eq!(http.head().await.status, 100);
    http.send("12345").await;
    assert_eq!(http.answer().await.body, "5");
    for (path, status) in [("/t/length", 413), ("/nobody", 404)] {
        let mut http = relay.http().await;
        http.send(post(path, "Content-Length: 20000\r\nExpect: 100-continue\r\n")).await;
        assert_eq!(http.answer().await.status(), status);
        // The client is not asked for a body that nobody reads.
        assert_eq!(http.rest().await, "");
    }
}

#[tokio::test]
async fn an_endless_body_is_cut_at_the_limit_if_fast_and_at_the_deadline_if_slow() {
    let folder = Folder::new("")
        .api("t", "[limits]\napi-instances = 1\napi-call = \"1h\"")
        .api("slow", "[limits]\napi-instances = 1\napi-call = \"300ms\"");
    let relay = Relay::serve(folder).await;
    let mut fast = relay.http().await;
    fast.begin("/t/length").await;
    let part = chunk("x".repeat(64 << 10));
    while fast.try_send(&part).await {}
    relay.metric_is("edge_relay_api_refused_total", &[("reason", "too_large")], 1.0).await;
    is_free(&relay).await;
    // Sends one byte, and then nothing for longer than the call may take.
    let mut slow = relay.http().await;
    slow.begin("/slow/length").await;
    slow.send_chunk("x").await;
    assert_eq!(slow.answer().await.envelope(), (504, "api_late".into()));
    assert_eq!(relay.http().await.get("/slow/count").await.body, "1");
}

#[tokio::test]
async fn a_chunk_that_is_none_breaks_the_body() {
    let relay = one_instance("").await;
    let mut http = relay.http().await;
    http.begin("/t/length").await;
    http.send_chunk("good").await;
    http.send("nonsense\r\n").await;
    http.rest().await;
    is_free(&relay).await;
}

#[tokio::test]
async fn a_client_that_vanishes_frees_the_instance() {
    let relay = one_instance("").await;
    // The client leaves in the middle of its request.
    let mut http = relay.http().await;
    http.begin("/t/echo").await;
    http.send_chunk("x").await;
    http.head().await;
    assert_eq!(http.chunk().await, "x");
    drop(http);
    is_free(&relay).await;
    // The client leaves in the middle of its answer.
    let mut http = relay.http().await;
    http.request("GET", "/t/big?bytes=4000000000").await;
    http.head().await;
    drop(http);
    is_free(&relay).await;
}

#[tokio::test]
async fn an_answer_arrives_though_nobody_reads_the_request() {
    let relay = one_instance("api-body = \"64MiB\"").await;
    for path in ["/t/ignore", "/nobody", "/t/trap", "/t/silent", "/t/keep-all"] {
        let mut http = relay.http().await;
        // A small body: the connection serves the next request.
        for _ in 0..2 {
            http.send(post(path, "Content-Length: 100000\r\n")).await;
            http.send("x".repeat(100_000)).await;
            http.answer().await;
        }
        // A large body: all of it is sent before the answer is read.
        let mut http = relay.http().await;
        http.send(post(path, "Content-Length: 33554432\r\n")).await;
        http.try_send("x".repeat(32 << 20)).await;
        http.answer().await;
        // A body that is never sent: the answer comes nevertheless.
        let mut http = relay.http().await;
        http.send(post(path, "Content-Length: 33554432\r\n")).await;
        http.answer().await;
    }
    is_free(&relay).await;
}
