//! HTTP requests of components while they last: their bodies, and their end with the call.

use support::{loopback, origin::Origin, relay::Relay, until};

use super::{folder, says, tenant};

const REQUESTS: &str = "edge_relay_outbound_requests_total";
/// The size of a body, far more than the relay may keep of one.
const LARGE: usize = 256 << 20;
/// How much memory the relay may use for it.
const MOST: usize = 32 << 20;

/// A relay with a tenant `t` that may send requests to the origin, with these keys in its limits.
async fn relay(origin: &Origin, limits: &str) -> Relay {
    let grants = format!("grants.http = [\"{}\"]\n[limits]\n{limits}", origin.address);
    Relay::serve(tenant(folder("networks = [\"127.0.0.0/8\"]"), "t", &grants)).await
}

#[tokio::test]
async fn large_bodies_are_streamed_both_ways() {
    let origin = Origin::start(loopback()).await;
    let relay = relay(&origin, "api-call = \"5m\"").await;
    let mut http = relay.http().await;
    // The first call takes memory of its own, which is not counted.
    says(&mut http, &format!("/t/download?to={}&path=/", origin.address)).await;
    let before = relay.peak_memory();
    let down = says(&mut http, &format!("/t/download?to={}&path=/big?{LARGE}", origin.address)).await;
    assert_eq!(down, LARGE.to_string());
    let up = says(&mut http, &format!("/t/upload?to={}&path=/count&bytes={LARGE}", origin.address)).await;
    assert_eq!(up, format!("200 {LARGE}"));
    let grown = relay.peak_memory() - before;
    assert!(grown < MOST, "grown by {grown} bytes");
    origin.served(3).await;
}

#[tokio::test]
async fn an_endless_answer_ends_with_the_calls_deadline() {
    let origin = Origin::start(loopback()).await;
    let relay = relay(&origin, "api-call = \"500ms\"").await;
    let mut http = relay.http().await;
    for path in ["/endless", "/silent", "/stalls", "/heads"] {
        let answer = http.get(&format!("/t/download?to={}&path={path}", origin.address)).await;
        // The head of an answer has a limit of its own.
        assert!(answer.status() == 504 || path == "/heads" && answer.status() == 200, "{path}: {answer:?}");
    }
    origin.served(4).await;
    assert!(origin.sent() > 0);
    relay.metric_is(REQUESTS, &[("tenant", "t"), ("outcome", "cut_off")], 1.0).await;
    assert!(relay.peak_memory() < 512 << 20);
}

/// The guest keeps a request in an instance that goes on.
#[tokio::test]
async fn a_request_ends_with_the_call_that_it_is_of() {
    let origin = Origin::start(loopback()).await;
    let relay = relay(&origin, "api-instances = 1").await;
    let mut http = relay.http().await;
    let keep = |path: &str| format!("/t/keep?to={}&path={path}", origin.address);
    assert_eq!(says(&mut http, &keep("/silent")).await, "kept");
    relay.metric_is(REQUESTS, &[("tenant", "t"), ("outcome", "cut_off")], 1.0).await;
    // The request may have ended before it was connected.
    let connected = origin.connections();
    origin.served(connected).await;
    assert_eq!(says(&mut http, "/t/kept").await, "ErrorCode::ConnectionTerminated");
    // An answer that has begun cannot be read to its end, and does not look complete.
    assert_eq!(says(&mut http, &keep("/stalls&answer=yes")).await, "kept");
    origin.served(connected + 1).await;
    let said = says(&mut http, "/t/kept").await;
    assert!(said.starts_with("broken behind 0:"), "{said}");
    assert_eq!(says(&mut http, &keep("/endless&answer=yes")).await, "kept");
    origin.served(connected + 2).await;
    assert_eq!(relay.metric("edge_relay_guest_failures_total", &[]).await, 0.0);
}

#[tokio::test]
async fn a_request_ends_with_a_client_that_waits_for_it_or_without() {
    let origin = Origin::start(loopback()).await;
    let relay = relay(&origin, "api-call = \"1s\"\napi-instances = 4").await;
    let mut waiting = Vec::new();
    for _ in 0..4 {
        let mut http = relay.http().await;
        http.request("GET", &format!("/t/fetch?to={}&path=/silent", origin.address)).await;
        waiting.push(http);
    }
    until("four connections at the origin", async || match origin.connections() {
        4 => Ok(()),
        fewer => Err(fewer.to_string()),
    })
    .await;
    for mut http in waiting {
        assert_eq!(http.answer().await.envelope(), (504, "api_late".into()));
    }
    origin.served(4).await;
    // The tenant goes on.
    assert_eq!(
        says(&mut relay.http().await, &format!("/t/fetch?to={}&path=/", origin.address)).await,
        "200 the origin"
    );
}
