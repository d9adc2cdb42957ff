//! HTTP requests of components: where they may go.

use std::net::Ipv4Addr;

use support::{certificates::Authority, http::Http, loopback, origin::Origin, relay::Relay};

use super::{folder, says, tenant};

const REQUESTS: &str = "edge_relay_outbound_requests_total";
const DENIED: &str = "ErrorCode::HttpRequestDenied";
/// The error for a name whose address is not granted.
const PROHIBITED: &str = "ErrorCode::DestinationIpProhibited";

/// A relay whose operator allows loopback, with a tenant `t` that may reach these hosts.
async fn relay(hosts: &[String]) -> Relay {
    let allowed = folder("networks = [\"127.0.0.0/8\", \"::1\"]");
    Relay::serve(tenant(allowed, "t", &format!("grants.http = {hosts:?}"))).await
}

async fn fetches(http: &mut Http, to: &str) -> String {
    says(http, &format!("/t/fetch?to={to}&path=/")).await
}

#[tokio::test]
async fn a_listed_address_is_reached_and_no_other_address_or_port() {
    let (listed, other, port) = (loopback(), loopback(), loopback());
    let (listed, other) = (Origin::start(listed).await, Origin::start(other).await);
    let unlisted = Origin::start(port).await;
    let relay = relay(&[listed.address.to_string(), format!("{}:1", unlisted.address.ip())]).await;
    let mut http = relay.http().await;
    assert_eq!(fetches(&mut http, &listed.address.to_string()).await, "200 the origin");
    let head = says(&mut http, &format!("/t/fetch?to={}&path=/head?a=b", listed.address)).await.to_lowercase();
    assert!(head.starts_with("200 get /head?a=b http/1.1\r\n"), "{head}");
    assert!(head.contains(&format!("\r\nhost: {}\r\n", listed.address)), "{head}");
    for denied in [other.address, unlisted.address] {
        assert_eq!(fetches(&mut http, &denied.to_string()).await, DENIED);
        assert_eq!(fetches(&mut http, &denied.to_string()).await, DENIED);
        let line = relay.logged(&["request denied", &denied.to_string(), "tenant.name=t"]).await;
        assert_eq!(relay.log().matches(&line).count(), 1);
    }
    assert_eq!((listed.connections(), other.connections(), unlisted.connections()), (2, 0, 0));
    relay.metric_is(REQUESTS, &[("tenant", "t"), ("outcome", "answered")], 2.0).await;
    relay.metric_is(REQUESTS, &[("tenant", "t"), ("outcome", "denied")], 4.0).await;
    let logged = relay.log().matches("request denied").count();
    assert_eq!(logged, 2, "once for each host: {}", relay.log());
}

#[tokio::test]
async fn a_name_that_leads_to_loopback_needs_the_network_too() {
    let origin = Origin::start(Ipv4Addr::LOCALHOST).await;
    let name = format!("localhost:{}", origin.address.port());
    let named = relay(std::slice::from_ref(&name)).await;
    let mut http = named.http().await;
    assert_eq!(fetches(&mut http, &name).await, PROHIBITED);
    assert_eq!(fetches(&mut http, &origin.address.to_string()).await, DENIED);
    named.logged(&["request denied", &name, "not public"]).await;
    assert_eq!(origin.connections(), 0);

    let covered = relay(&[name.clone(), "127.0.0.0/8".into(), "::1".into()]).await;
    let mut http = covered.http().await;
    assert_eq!(fetches(&mut http, &name).await, "200 the origin");
    assert_eq!(fetches(&mut http, &name.to_uppercase()).await, "200 the origin");
    // A network without a port grants its addresses at the usual ports only.
    assert_eq!(fetches(&mut http, &origin.address.to_string()).await, DENIED);
    assert_eq!(origin.connections(), 2);
}

#[tokio::test]
async fn a_redirect_is_the_guests_to_follow_and_checked_like_any_request() {
    let (listed, other) = (Origin::start(loopback()).await, Origin::start(loopback()).await);
    let relay = relay(&[listed.address.to_string()]).await;
    let mut http = relay.http().await;
    let follow = |to: String| format!("/t/follow?to={}&path=/redirect?{to}", listed.address);
    assert_eq!(says(&mut http, &follow(listed.address.to_string())).await, "302 then 200");
    assert_eq!(says(&mut http, &follow(other.address.to_string())).await, format!("302 then {DENIED}"));
    assert_eq!((listed.connections(), other.connections()), (3, 0));
}

#[tokio::test]
async fn tls_with_the_roots_that_the_host_trusts() {
    let (authority, unknown) = (Authority::generate(), Authority::generate());
    let (trusted, untrusted) = (loopback(), loopback());
    let good = Origin::start_tls(trusted, authority.acceptor(trusted.into())).await;
    let bad = Origin::start_tls(untrusted, unknown.acceptor(untrusted.into())).await;
    let other = Origin::start_tls(loopback(), authority.acceptor(trusted.into())).await;
    let plain = Origin::start(loopback()).await;
    let hosts: Vec<_> = [&good, &bad, &other, &plain].map(|origin| origin.address.to_string()).into();
    let place = tenant(folder("networks = [\"127.0.0.0/8\"]"), "t", &format!("grants.http = {hosts:?}"));
    place.write("roots.pem", &authority.pem);
    let roots = place.path("roots.pem");
    let relay = Relay::serve_with(place, &[("SSL_CERT_FILE", roots.to_str().unwrap())]).await;
    let mut http = relay.http().await;
    for (origin, what) in [
        (&good, "200 the origin"),
        (&bad, "ErrorCode::TlsCertificateError"),
        (&other, "ErrorCode::TlsCertificateError"),
        (&plain, "ErrorCode::ConnectionTerminated"),
    ] {
        let said = says(&mut http, &format!("/t/fetch?scheme=https&to={}&path=/", origin.address)).await;
        assert_eq!(said, what, "{}", origin.address);
    }
    relay.metric_is(REQUESTS, &[("tenant", "t"), ("outcome", "tls")], 2.0).await;
}

#[tokio::test]
async fn what_is_wrong_is_an_error_of_wasi_http() {
    let origin = Origin::start(loopback()).await;
    let nobody = format!("{}:9", loopback());
    let relay = relay(&[origin.address.to_string(), nobody.clone(), "*.invalid".into()]).await;
    let mut http = relay.http().await;
    assert_eq!(fetches(&mut http, &nobody).await, "ErrorCode::ConnectionRefused");
    assert!(fetches(&mut http, "nowhere.invalid").await.starts_with("ErrorCode::DnsError"));
    assert_eq!(fetches(&mut http, &format!("user@{}", origin.address)).await, "ErrorCode::HttpRequestUriInvalid");
    for (path, error) in [
        ("/close", "ErrorCode::HttpResponseIncomplete"),
        ("/nonsense", "ErrorCode::HttpProtocolError"),
        ("/heads", "ErrorCode::HttpResponseHeaderSectionSize"),
        ("/large-head", "ErrorCode::HttpResponseHeaderSectionSize"),
        ("/half", "broken behind 4:"),
        ("/silent&first=50", "ErrorCode::ConnectionReadTimeout"),
        ("/stalls&between=50", "broken behind 4:"),
        ("/&method=connect", "ErrorCode::HttpRequestMethodInvalid"),
        ("", "ErrorCode::HttpProtocolError"),
    ] {
        let said = says(&mut http, &format!("/t/fetch?to={}&path={path}", origin.address)).await;
        assert!(said.starts_with(error), "{path}: {said}");
    }
    for (outcome, count) in
        [("refused", 1.0), ("dns", 1.0), ("invalid", 2.0), ("broken", 4.0), ("timeout", 1.0), ("answered", 2.0)]
    {
        relay.metric_is(REQUESTS, &[("tenant", "t"), ("outcome", outcome)], count).await;
    }
    origin.served(7).await;
    // A guest's mistakes are for the guest to log.
    assert_eq!(relay.log().matches("WARN").count(), 0, "{}", relay.log());
}

#[tokio::test]
async fn requests_at_once_and_per_second_are_limited() {
    const LIMITED: &str = "ErrorCode::ConnectionLimitReached";
    const REFUSALS: &str = "edge_relay_limit_refusals_total";
    let origin = Origin::start(loopback()).await;
    let with = async |limit: &str| {
        let grants = format!("grants.http = [\"{}\"]\n[limits]\n{limit}", origin.address);
        Relay::serve(tenant(folder("networks = [\"127.0.0.0/8\"]"), "t", &grants)).await
    };
    let few = with("outbound-requests = 1").await;
    let (mut first, mut second) = (few.http().await, few.http().await);
    first.request("GET", &format!("/t/fetch?to={}&path=/silent", origin.address)).await;
    support::until("a request under way", async || if origin.connections() == 1 { Ok(()) } else { Err(String::new()) })
        .await;
    assert_eq!(fetches(&mut second, &origin.address.to_string()).await, LIMITED);
    few.metric_is(REFUSALS, &[("tenant", "t"), ("limit", "outbound-requests")], 1.0).await;
    few.metric_is(REQUESTS, &[("tenant", "t"), ("outcome", "limited")], 1.0).await;
    // The refused request was not sent.
    assert_eq!(origin.connections(), 1);

    let slow = with("outbound-requests-per-second = 1").await;
    let mut http = slow.http().await;
    let mut refused = 0;
    for _ in 0..10 {
        refused += usize::from(fetches(&mut http, &origin.address.to_string()).await == LIMITED);
    }
    assert!((1..10).contains(&refused), "{refused}");
    let labels = [("tenant", "t"), ("limit", "outbound-requests-per-second")];
    slow.metric_is(REFUSALS, &labels, refused as f64).await;
}
