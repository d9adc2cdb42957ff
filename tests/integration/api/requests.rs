//! The API as HTTP: which tenant gets a request, what the guest sees of it, and how long a connection lives.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::{guests, http::Http, process, relay::Relay, tenant::Folder, until};

/// Returns what the guest saw of a request.
async fn seen(http: &mut Http, path: &str) -> Value {
    let answer = http.get(path).await;
    assert_eq!(answer.status(), 200, "{answer:?}");
    answer.json()
}

/// Returns the values of a header, as the guest saw them.
fn values(seen: &Value, name: &str) -> Vec<String> {
    let headers = seen["headers"].as_array().unwrap();
    let values = headers.iter().filter(|header| header[0] == name);
    values.map(|header| header[1].as_str().unwrap().to_owned()).collect()
}

async fn not_found(http: &mut Http, path: &str) {
    assert_eq!(http.get(path).await.envelope(), (404, "not_found".into()), "{path}");
}

#[tokio::test]
async fn the_path_names_the_tenant_and_the_guest_gets_the_rest_of_it() {
    let relay = Relay::serve(Folder::new("").api("t", "").api("u", "path = \"/u/v1\"")).await;
    let mut http = relay.http().await;
    for (path, rest) in [
        ("/t/request", "/request"),
        ("/t/request?", "/request?"),
        ("/t/request?a=/t&b=%20c", "/request?a=/t&b=%20c"),
        ("/u/v1/request", "/request"),
        ("http://api.test/t/request?x", "/request?x"),
    ] {
        assert_eq!(seen(&mut http, path).await["path"], rest, "{path}");
    }
    // These reach the guest, which has no such path.
    for path in ["/t", "/t/", "/t?a", "/t//request", "/t/%72equest", "/t/../t/request"] {
        let answer = http.get(path).await;
        assert_eq!((answer.status(), answer.body.as_str()), (404, "no such path"), "{path}");
    }
    for path in ["/", "/tt", "/tt/request", "/T/request", "/u", "/u/v2/request", "/nobody/request", "/%74/request"] {
        not_found(&mut http, path).await;
    }
    assert_eq!(http.post("/nobody", "a body").await.envelope(), (404, "not_found".into()));
    assert_eq!(seen(&mut http, "/t/request").await["path"], "/request", "the body was read to its end");
    http.request("OPTIONS", "*").await;
    assert_eq!(http.answer().await.envelope().0, 404);
    relay.metric_is("edge_relay_api_refused_total", &[("reason", "not_found")], 10.0).await;
}

#[tokio::test]
async fn of_several_prefixes_the_longest_wins() {
    let folder = Folder::new("")
        .api("root", "path = \"/\"\nsettings.greeting = \"root\"")
        .api("a", "path = \"/a\"\nsettings.greeting = \"a\"")
        .api("b", "path = \"/b/a\"\nsettings.greeting = \"b\"");
    let relay = Relay::serve(folder).await;
    let mut http = relay.http().await;
    for (path, tenant) in [("/imports", "root"), ("/a/imports", "a"), ("/b/a/imports", "b"), ("/b/a/imports?/a", "b")] {
        let answer = http.get(path).await;
        assert!(answer.body.ends_with(&format!("Ok(Some(\"{tenant}\"))")), "{path}: {answer:?}");
    }
    for path in ["/", "/ab/imports", "/b/imports", "/b/ac/imports"] {
        assert_eq!(http.get(path).await.body, "no such path", "{path}");
    }
}

#[tokio::test]
async fn a_tenant_without_an_api_has_none() {
    let folder = Folder::new("").tenant("t", "ws://127.0.0.1:1/", "").api("neighbour", "");
    let relay = Relay::serve(folder).await;
    let mut http = relay.http().await;
    not_found(&mut http, "/t/count").await;
    assert_eq!(http.get("/neighbour/count").await.body, "1");
}

#[tokio::test]
async fn the_guest_sees_the_request_as_it_came() {
    let relay = Relay::serve(Folder::new("").api("t", "")).await;
    let mut http = relay.http().await;
    http.send(
        "BREW /t/request HTTP/1.1\r\nHost: api.test:8081\r\nX-Twice: a\r\nx-twice: b\r\nAccept-Encoding: gzip\r\n\
         X-Latin: \u{e9}\r\n\r\n",
    )
    .await;
    let answer = http.answer().await;
    assert_eq!(answer.head.header("content-encoding"), None);
    let seen = answer.json();
    assert_eq!(seen["method"], "Method::Other(\"BREW\")");
    assert_eq!(seen["scheme"], "Some(Scheme::Http)");
    assert_eq!(seen["authority"], "api.test:8081");
    assert_eq!(values(&seen, "x-twice"), ["a", "b"]);
    assert_eq!(values(&seen, "x-latin"), ["\u{e9}"]);
    assert_eq!(values(&seen, "accept-encoding"), ["gzip"]);
    assert_eq!(values(&seen, "x-forwarded-for"), ["127.0.0.1"]);
}

const FORGED: &str = "X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-For: 6.6.6.7\r\nX-Real-IP: 6.6.6.8\r\n\
    CF-Connecting-IP: 6.6.6.9\r\nForwarded: for=6.6.6.10\r\nTrue-Client-IP: 6.6.6.11\r\nX_Forwarded_For: 6.6.6.12\r\n\
    X-Forwarded_For: 6.6.6.13\r\nX-Client-IP: 6.6.6.14\r\nX-Forwarded-Host: 6.6.6.15\r\nX-Forwarded-User: 6.6.6.17\r\nX_Real_IP: 6.6.6.16\r\n";

#[tokio::test]
async fn a_client_cannot_say_that_it_is_another() {
    let relay = Relay::serve(Folder::new("").api("t", "")).await;
    let mut http = relay.http().await;
    http.send(format!("GET /t/request HTTP/1.1\r\nHost: a\r\n{FORGED}\r\n")).await;
    let seen = http.answer().await.json();
    assert_eq!(values(&seen, "x-forwarded-for"), ["127.0.0.1"]);
    assert!(!seen.to_string().contains("6.6.6."), "{seen}");
}

#[tokio::test]
async fn a_trusted_proxy_tells_the_clients_address() {
    let folder = Folder::new("").api("t", "");
    let config = std::fs::read_to_string(folder.config()).unwrap();
    folder.write("relay.toml", format!("trusted-proxies = [\"127.0.0.0/8\"]\n{config}"));
    let relay = Relay::serve(folder).await;
    let mut http = relay.http().await;
    for (headers, client) in [
        ("X-Forwarded-For: 6.6.6.6, 1.2.3.4\r\n", "1.2.3.4"),
        ("X-Real-IP: 2001:db8::1\r\nX-Forwarded-For: 6.6.6.6\r\n", "6.6.6.6"),
        ("", "127.0.0.1"),
    ] {
        http.send(format!("GET /t/request HTTP/1.1\r\nHost: a\r\n{headers}\r\n")).await;
        let seen = http.answer().await.json();
        assert_eq!(values(&seen, "x-forwarded-for"), [client]);
        assert_eq!(values(&seen, "x-real-ip"), [""; 0]);
    }
    // What a proxy that is trusted may have passed on unread is no more to be believed. What it says of the request is.
    http.send(format!("GET /t/request HTTP/1.1\r\nHost: a\r\n{FORGED}X-Forwarded-Proto: https\r\n\r\n")).await;
    let seen = http.answer().await.json();
    assert_eq!(values(&seen, "x-forwarded-for"), ["6.6.6.7"]);
    assert_eq!(values(&seen, "x-forwarded-proto"), ["https"]);
    for name in [
        "true-client-ip",
        "x_forwarded_for",
        "x-forwarded_for",
        "x-client-ip",
        "x_real_ip",
        "x-forwarded-user",
        "cf-connecting-ip",
    ] {
        assert_eq!(values(&seen, name), [""; 0], "{name}");
    }
}

#[tokio::test]
async fn a_request_is_for_one_host_which_its_component_sees() {
    let folder = Folder::new("")
        .api("a", "path = \"/\"\nhosts = [\"a.example\"]")
        .api("b", "path = \"/\"\nhosts = [\"b.example\"]");
    folder.allow("hosts = [\"a.example\", \"b.example\"]");
    let relay = Relay::serve(folder).await;
    let mut http = relay.http().await;
    http.send("GET http://a.example:80/request?x HTTP/1.1\r\nHost: b.example\r\n\r\n").await;
    let seen = http.answer().await.json();
    assert_eq!((&seen["authority"], &seen["path"]), (&json!("a.example:80"), &json!("/request?x")));
    for (head, words) in [
        ("GET /request HTTP/1.1\r\nHost: a.example\r\nHost: b.example\r\n", "more than once"),
        ("GET /request HTTP/1.1\r\nHost: b.example@a.example\r\n", "Host is not a host"),
        ("GET /request HTTP/1.1\r\nHost: a.example:x\r\n", "Host is not a host"),
        ("GET /request HTTP/1.1\r\n", "missing"),
        ("GET b.example HTTP/1.1\r\nHost: a.example\r\n", "target"),
        ("GET http://b.example@a.example/request HTTP/1.1\r\nHost: a.example\r\n", "target"),
    ] {
        http.send(format!("{head}\r\n")).await;
        let answer = http.answer().await;
        assert_eq!(answer.status(), 400, "{head}");
        assert!(answer.json()["error"]["message"].as_str().unwrap().contains(words), "{head}: {}", answer.body);
    }
}

#[tokio::test]
async fn a_connection_serves_many_requests_in_their_order() {
    let relay = Relay::serve(Folder::new("").api("t", "limits.api-instances = 1")).await;
    let mut http = relay.http().await;
    for count in 1..=100 {
        assert_eq!(http.get("/t/count").await.body, count.to_string());
    }
    // All requests are sent before an answer is read.
    let mut pipelined = String::new();
    for index in 0..50 {
        pipelined += &format!("POST /t/echo HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{index:02}");
        pipelined += "GET /nobody HTTP/1.1\r\nHost: a\r\n\r\nGET /t/trap HTTP/1.1\r\nHost: a\r\n\r\n";
    }
    http.send(pipelined).await;
    for index in 0..50 {
        assert_eq!(http.answer().await.body, format!("{index:02}"));
        assert_eq!(http.answer().await.status(), 404);
        assert_eq!(http.answer().await.status(), 500);
    }
    http.send("GET /t/count HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    assert_eq!(http.answer().await.body, "1");
    assert_eq!(http.rest().await, "");
}

#[tokio::test]
async fn a_head_alone_is_answered_without_a_body() {
    let relay = Relay::serve(Folder::new("").api("t", "")).await;
    let mut http = relay.http().await;
    for path in ["/t/request", "/t/big?bytes=100000", "/nobody", "/t/trap"] {
        http.request("HEAD", path).await;
        let head = http.head().await;
        let length = head.header("content-length").map(|length| length.parse::<usize>().unwrap());
        // The next bytes are the next answer, not a body.
        assert_eq!(http.get("/t/status?is=418").await.status(), 418, "{path}: {head:?}");
        assert!(length.is_none_or(|length| length > 0), "{path}: {head:?}");
    }
}

#[tokio::test]
async fn http_1_0_is_understood() {
    let relay = Relay::serve(Folder::new("").api("t", "")).await;
    let mut http = relay.http().await;
    http.send("GET /t/big?bytes=100000 HTTP/1.0\r\nHost: a\r\n\r\n").await;
    let answer = http.answer().await;
    assert_eq!(answer.head.header("transfer-encoding"), None);
    assert_eq!((answer.status(), answer.body.len()), (200, 100_000));
    assert_eq!(http.rest().await, "");
}

#[tokio::test]
async fn a_request_without_a_host_is_bad() {
    let relay = Relay::serve(Folder::new("").api("t", "")).await;
    let mut http = relay.http().await;
    for host in ["", "Host: \u{e9}\r\n"] {
        http.send(format!("GET /t/count HTTP/1.1\r\n{host}\r\n")).await;
        assert_eq!(http.answer().await.envelope(), (400, "bad_request".into()), "{host:?}");
    }
    relay.metric_is("edge_relay_api_refused_total", &[("reason", "bad_request")], 2.0).await;
}

#[tokio::test]
async fn any_status_is_the_guests_to_choose() {
    let relay = Relay::serve(Folder::new("").api("t", "")).await;
    let mut http = relay.http().await;
    for status in [200, 201, 301, 400, 404, 413, 418, 500, 503, 599, 999] {
        let answer = http.get(&format!("/t/status?is={status}")).await;
        assert_eq!((answer.status(), answer.body.as_str()), (status, "answered"));
        assert_eq!(http.get(&format!("/t/empty?is={status}")).await.body, "");
    }
    for status in [204, 304] {
        http.request("GET", &format!("/t/status?is={status}")).await;
        assert_eq!(http.head().await.status, status);
    }
    // These are not final, so the client must still get a final status.
    for status in [100, 101, 103] {
        let mut http = relay.http().await;
        http.request("GET", &format!("/t/status?is={status}")).await;
        http.rest().await;
    }
    assert_eq!(http.get("/t/status?is=1000").await.envelope(), (500, "api_error".into()));
    assert_eq!(http.get("/t/count").await.status(), 200);
}

#[tokio::test]
async fn headers_without_end_are_refused() {
    let relay = Relay::serve(Folder::new("").api("t", "limits.api-instances = 1")).await;
    // Headers of all sizes up to 60 KiB pass.
    let mut http = relay.http().await;
    let large = "x".repeat(60 << 10);
    http.send(format!("GET /t/request HTTP/1.1\r\nHost: a\r\nX-Large: {large}\r\n\r\n")).await;
    assert_eq!(values(&http.answer().await.json(), "x-large"), [large]);
    let many: String = (0..1 << 14).map(|index| format!("X-{index}: {}\r\n", "x".repeat(48))).collect();
    for headers in [format!("X: {}", "x".repeat(1 << 20)), many, "x".repeat(1 << 20)] {
        let mut http = relay.http().await;
        // The answer does not wait for the last header.
        http.try_send(format!("GET /t/request HTTP/1.1\r\nHost: a\r\n{headers}")).await;
        let answer = http.rest().await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431 ") || answer.starts_with("HTTP/1.1 400 "));
    }
    assert_eq!(relay.http().await.get("/t/count").await.body, "2");
}

#[tokio::test]
async fn what_is_not_http_ends_its_connection_only() {
    let relay = Relay::serve(Folder::new("").api("t", "")).await;
    let mut other = relay.http().await;
    for garbage in
        [&b"\x16\x03\x01\x02\0\x01\0\x01\xFC\x03\x03"[..], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\0\0\r\n\r\n"]
    {
        let mut http = relay.http().await;
        http.try_send(garbage).await;
        http.try_send("\r\n\r\n").await;
        let answer = http.rest().await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400 "), "{answer}");
    }
    assert_eq!(other.get("/t/count").await.body, "1");
}

#[tokio::test]
async fn bodies_of_two_lengths_are_refused() {
    let relay = Relay::serve(Folder::new("").api("t", "limits.api-instances = 1")).await;
    for lengths in ["Content-Length: 3\r\nContent-Length: 4", "Content-Length: -1", "Transfer-Encoding: chunked, x"] {
        let mut http = relay.http().await;
        http.send(format!("POST /t/echo HTTP/1.1\r\nHost: a\r\n{lengths}\r\n\r\nabcGET /t/count HTTP/1.1")).await;
        let answer = http.rest().await;
        assert!(answer.starts_with("HTTP/1.1 400 ") && answer.matches("HTTP/1.1 ").count() == 1, "{lengths}: {answer}");
    }
    assert_eq!(relay.http().await.get("/t/count").await.body, "1");
}

#[tokio::test]
async fn connections_over_the_limit_are_closed() {
    let relay = Relay::serve(Folder::new("api-connections = 2").api("t", "")).await;
    let (mut one, mut two) = (relay.http().await, relay.http().await);
    // An idle one would make room.
    for busy in [&mut one, &mut two] {
        busy.begin("/t/length").await;
        busy.send_chunk("x").await;
    }
    relay.metric_is("edge_relay_guest_instances", &[("role", "api")], 2.0).await;
    let mut three = relay.http().await;
    three.try_send("GET /t/count HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(three.rest().await, "");
    relay.metric_is("edge_relay_api_refused_total", &[("reason", "full")], 1.0).await;
    one.end().await;
    assert_eq!(one.answer().await.status(), 200);
    drop(two);
    // The place is free as soon as the relay knows that the connection has ended.
    until("a third connection", async || {
        let mut http = relay.http().await;
        http.try_send("GET /t/count HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
        let answer = http.rest().await;
        if answer.starts_with("HTTP/1.1 200 ") { Ok(()) } else { Err(answer) }
    })
    .await;
}

#[tokio::test]
async fn an_api_publishes_reads_state_and_sends_no_requests() {
    let relay = Relay::serve(Folder::new("").api("t", "[limits]\nstate = \"64KiB\"").api("neighbour", "")).await;
    let mut client = relay.client("/t?channel=out").await;
    let mut http = relay.http().await;
    assert_eq!(http.get("/t/publish?channel=out&text=hello").await.body, "Ok(())");
    assert_eq!(client.text().await, "hello");
    assert_eq!(http.get("/t/imports").await.body, "Some(Frame::Text(\"hello\")) Err(\"unknown\") Ok(None)");
    let partner = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    for authority in [partner.local_addr().unwrap().to_string(), "example.com".into(), "nowhere.invalid".into()] {
        let answer = http.get(&format!("/t/fetch?from={authority}")).await;
        assert!(answer.body.contains("HttpRequestDenied"), "{answer:?}");
    }
    partner.set_nonblocking(true).unwrap();
    assert_eq!(partner.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    let answer = http.get("/t/state?bytes=1000").await;
    assert!(answer.body.contains("full: 65536 bytes"), "{answer:?}");
    // Each tenant has its own limit of state.
    let answer = http.get("/neighbour/state?bytes=1000000").await;
    assert!(answer.body.contains("full: 16777216 bytes"), "{answer:?}");
}

#[tokio::test]
async fn calls_their_time_and_their_instances_are_counted() {
    let relay = Relay::serve(Folder::new("").api("t", "limits.api-instances = 1")).await;
    let mut http = relay.http().await;
    for _ in 0..5 {
        http.get("/t/stream?chunks=1&ms=2").await;
    }
    let labels = [("tenant", "t"), ("role", "api"), ("name", "api")];
    relay.metric_is("edge_relay_guest_calls_total", &labels, 5.0).await;
    // The call is counted before its time is.
    relay.metric_is("edge_relay_guest_call_seconds_count", &labels, 5.0).await;
    assert!(relay.metric("edge_relay_guest_call_seconds_sum", &labels).await >= 0.01);
    for (name, value) in [("guest_instances", 1.0), ("guest_queue", 0.0), ("guest_failures_total", 0.0)] {
        assert_eq!(relay.metric(&format!("edge_relay_{name}"), &labels).await, value, "{name}");
    }
}

#[tokio::test]
async fn what_is_no_api_is_refused_at_a_strict_start() {
    let folder =
        Folder::new("").api_as("t", "{ file = \"api.wasm\", reuse = 0, isolaton = \"call\" }", "").api("u", "");
    folder.copy(guests::probe(), "tenants/u/api.wasm");
    let output =
        process::run(&["serve".as_ref(), "--strict".as_ref(), "--config".as_ref(), folder.config().as_os_str()]).await;
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{errors}");
    for expected in [
        "components.api.reuse: 0 is out of range; write 1 to 1000000000",
        "components.api.isolaton: unknown key; did you mean `isolation`?",
        "u/api.wasm: components.api: has not the role of api",
    ] {
        assert!(errors.contains(expected), "{expected} is not in:\n{errors}");
    }
    let errors: Vec<_> = errors.lines().filter(|line| !line.contains(" INFO compiling")).collect();
    assert_eq!(errors.len(), 3, "{errors:#?}");
}

#[tokio::test]
async fn an_idle_connection_is_closed_after_its_time() {
    let relay = Relay::serve(Folder::new("api-idle-timeout = \"1s\"").api("t", "")).await;
    let mut http = relay.http().await;
    let began = Instant::now();
    assert_eq!(http.get("/t/count").await.body, "1");
    assert_eq!(http.rest().await, "");
    // By default it would stay for 75 s.
    let open = began.elapsed();
    assert!(open >= Duration::from_secs(1) && open < Duration::from_secs(60), "{open:?}");
}
