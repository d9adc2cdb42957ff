//! The operator's proxy, for partners and for guests' requests.

use std::net::IpAddr;

use support::{
    certificates::Authority,
    guests,
    hosts::{self, Deaf},
    loopback,
    origin::Origin,
    partner::Partner,
    process::{command, shown},
    proxy::Proxy,
    relay::Relay,
    tenant::Folder,
};

/// Has these keys at the top of relay.toml.
fn with_keys(folder: Folder, keys: &str) -> Folder {
    let host = std::fs::read_to_string(folder.config()).unwrap();
    folder.write("relay.toml", format!("{keys}\n{host}"));
    folder
}

#[tokio::test]
async fn a_partner_is_reached_through_it_with_credentials() {
    let Some(proxy) = Proxy::start("BasicAuth user pass").await else { return };
    let mut partner = Partner::start().await;
    let keys = format!("proxy = \"{}\"\nproxy-credentials = {{ file = \"proxy-password\" }}", proxy.url());
    let folder = with_keys(Folder::new("").tenant("t", &partner.url(), ""), &keys);
    folder.write("proxy-password", "user:pass\n");
    let relay = Relay::serve(folder).await;
    let mut client = relay.client("/t").await;
    let mut peer = partner.accept().await;
    peer.text("through the proxy").await;
    assert_eq!(client.text().await, "through the proxy");
    assert_eq!(peer.headers["host"], partner.address.to_string());
    assert!(!peer.headers.contains_key("proxy-authorization"));
    assert_eq!(proxy.asked(&partner.address.to_string()), 1);
    assert!(!relay.log().contains("user:pass"));
}

#[tokio::test]
async fn a_proxy_that_refuses_is_the_reason() {
    let Some(proxy) = Proxy::start("BasicAuth user right").await else { return };
    let partner = Partner::start().await;
    let keys = format!("proxy = \"{}\"\nproxy-credentials = {{ env = \"PROXY\" }}", proxy.url());
    let folder = with_keys(Folder::new("").tenant("t", &partner.url(), ""), &keys);
    let relay = Relay::serve_with(folder, &[("PROXY", "user:wrong")]).await;
    relay.upstream_failed("proxy", 1.0).await;
    // tinyproxy says 401 for wrong credentials and 407 for none.
    relay.logged(&["upstream not connected", "proxy 127.", "it answered CONNECT", "HTTP status 40"]).await;
    assert_eq!(partner.connections(), 0);
}

#[tokio::test]
async fn tls_goes_through_it() {
    let Some(proxy) = Proxy::start("").await else { return };
    let mut partner = Partner::start().await;
    let authority = Authority::generate();
    let folder = Folder::new("").tenant("t", &partner.tls_url(), "tls = { roots = \"roots.pem\" }");
    folder.write("tenants/t/roots.pem", &authority.pem);
    // The variables for both schemes; the one for `ws` leads nowhere.
    let relay = Relay::serve_with(
        with_keys(folder, "proxy = \"environment\""),
        &[("HTTPS_PROXY", &proxy.url()), ("HTTP_PROXY", "http://127.0.0.1:1")],
    )
    .await;
    let mut client = relay.client("/t").await;
    let mut peer = partner.arrival().await.upgrade_tls(&authority.acceptor(partner.address.ip())).await;
    peer.text("in private").await;
    assert_eq!(client.text().await, "in private");
    assert_eq!(proxy.asked(&partner.address.to_string()), 1);
}

#[tokio::test]
async fn the_environments_url_may_have_credentials() {
    let Some(proxy) = Proxy::start("BasicAuth user pass").await else { return };
    let mut partner = Partner::start().await;
    let folder = || with_keys(Folder::new("").tenant("t", &partner.url(), ""), "proxy = \"environment\"");
    let without = Relay::serve_with(folder(), &[("ALL_PROXY", &proxy.url())]).await;
    without.upstream_failed("proxy", 1.0).await;
    without.logged(&["HTTP status 407", "credentials that it takes"]).await;
    drop(without);
    let url = proxy.url().replace("http://", "http://user:pass@");
    let relay = Relay::serve_with(folder(), &[("ALL_PROXY", &url)]).await;
    partner.accept().await;
    assert!(!relay.log().contains("user:pass"));
}

#[tokio::test]
async fn a_variable_that_names_no_proxy_is_an_error_at_the_start() {
    for value in ["socks5://127.0.0.1:1", "https://127.0.0.1:1", "://", "http://"] {
        let folder = with_keys(Folder::new("").tenant("t", "wss://feed.example/", ""), "proxy = \"environment\"");
        let mut command = command(&["serve".as_ref(), "--config".as_ref(), folder.config().as_os_str()]);
        let output = command.env("https_proxy", value).output().unwrap();
        let shown = shown(&output);
        assert_eq!(output.status.code(), Some(2), "{value}: {shown}");
        assert!(shown.contains("https_proxy in the environment names no proxy"), "{value}: {shown}");
    }
}

#[tokio::test]
async fn it_is_asked_for_the_next_address_too() {
    let Some(proxy) = Proxy::start("").await else { return };
    let Some(()) = hosts::can_be_set() else { return };
    let mut partner = Partner::start().await;
    let port = partner.address.port();
    let deaf = IpAddr::from(loopback());
    let _keeper = Deaf::at(deaf, port).await;
    let folder = Folder::new("").tenant("t", &format!("ws://partner.test:{port}/"), "");
    hosts::set(&folder, &[("partner.test", deaf), ("partner.test", partner.address.ip())]);
    let relay = Relay::serve_with_hosts(with_keys(folder, &format!("proxy = \"{}\"", proxy.url()))).await;
    let _peer = partner.accept().await;
    assert_eq!(relay.metric("edge_relay_upstream_failures_total", &[]).await, 0.0, "{}", relay.log());
    assert_eq!(proxy.asked(&partner.address.to_string()), 1);
}

#[tokio::test]
async fn the_environments_exceptions_count() {
    let Some(proxy) = Proxy::start("").await else { return };
    let mut partner = Partner::start().await;
    let folder = with_keys(Folder::new("").tenant("t", &partner.url(), ""), "proxy = \"environment\"");
    let relay = Relay::serve_with(folder, &[("http_proxy", &proxy.url()), ("NO_PROXY", "127.0.0.0/8")]).await;
    partner.accept().await;
    assert_eq!(proxy.asked(&partner.address.to_string()), 0);
    drop(relay);

    let folder = with_keys(Folder::new("").tenant("t", &partner.url(), ""), "proxy = \"environment\"");
    let _relay = Relay::serve_with(folder, &[("http_proxy", &proxy.url())]).await;
    partner.accept().await;
    assert_eq!(proxy.asked(&partner.address.to_string()), 1);
}

#[tokio::test]
async fn hosts_that_are_listed_are_connected_to_without_it() {
    let Some(proxy) = Proxy::start("").await else { return };
    let mut partner = Partner::start().await;
    let keys = format!("proxy = \"{}\"\nno-proxy = [\"{}\"]", proxy.url(), partner.address.ip());
    let _relay = Relay::serve(with_keys(Folder::new("").tenant("t", &partner.url(), ""), &keys)).await;
    partner.accept().await;
    assert_eq!(proxy.asked(&partner.address.to_string()), 0);
}

#[tokio::test]
async fn it_gets_the_address_that_was_checked_or_the_name() {
    let Some(proxy) = Proxy::start("").await else { return };
    let mut partner = Partner::local().await;
    let port = partner.address.port();
    for (resolves, asked) in [(false, format!("127.0.0.1:{port}")), (true, format!("localhost:{port}"))] {
        let keys = format!("proxy = \"{}\"\nproxy-resolves = {resolves}", proxy.url());
        let folder = with_keys(Folder::new("").tenant("t", &partner.named_url(), ""), &keys);
        // What a name leads to is the proxy's matter if it gets the name.
        folder.allow(if resolves { "" } else { "networks = [\"127.0.0.1\", \"::1\"]" });
        let _relay = Relay::serve(folder).await;
        partner.accept().await;
        assert_eq!(proxy.asked(&asked), 1, "{asked}");
    }
    // An address in a redirect is checked all the same.
    let folder = Folder::new("").tenant("t", &partner.named_url(), "");
    folder.allow("");
    let keys = format!("proxy = \"{}\"\nproxy-resolves = true", proxy.url());
    let relay = Relay::serve(with_keys(folder, &keys)).await;
    let answer = format!("HTTP/1.1 302 Found\r\nLocation: ws://127.0.0.1:{port}/\r\nContent-Length: 0\r\n\r\n");
    partner.arrival().await.answer(answer.as_bytes()).await;
    relay.upstream_failed("denied", 1.0).await;
    assert_eq!(proxy.asked(&format!("127.0.0.1:{port}")), 1, "by the first relay alone");
    drop(relay);
    // Without that, an address that is not allowed is not asked for.
    let folder = Folder::new("").tenant("t", &partner.named_url(), "");
    folder.allow("");
    let relay = Relay::serve(with_keys(folder, &format!("proxy = \"{}\"", proxy.url()))).await;
    relay.upstream_failed("denied", 1.0).await;
    assert_eq!(proxy.asked(&format!("127.0.0.1:{port}")), 1);
}

#[tokio::test]
async fn guests_requests_go_through_it_after_their_hosts_were_checked() {
    let Some(proxy) = Proxy::start("").await else { return };
    let (origin, other) = (Origin::start(loopback()).await, Origin::start(loopback()).await);
    let keys = format!("proxy = \"{}\"\nproxy-resolves = true", proxy.url());
    let folder = with_keys(Folder::new(""), &keys);
    let grants = format!("components.api = \"api.wasm\"\ngrants.http = [\"{}\"]", origin.address);
    folder.write("tenants/t/tenant.toml", format!("name = \"t\"\n{grants}\n"));
    folder.copy(guests::grants(), "tenants/t/api.wasm");
    let relay = Relay::serve(folder).await;
    let fetch = async |address| relay.http().await.get(&format!("/t/fetch?to={address}&path=/")).await.body;
    assert_eq!(fetch(origin.address.to_string()).await, "200 the origin");
    assert_eq!(proxy.asked(&origin.address.to_string()), 1);
    for denied in [other.address.to_string(), "localhost:80".into()] {
        assert_eq!(fetch(denied.clone()).await, "ErrorCode::HttpRequestDenied");
        assert_eq!(proxy.asked(&denied), 0);
    }
}

#[tokio::test]
async fn a_proxy_that_is_not_there_fails_requests_and_says_so() {
    let origin = Origin::start(loopback()).await;
    let folder = with_keys(Folder::new(""), &format!("proxy = \"http://{}:1\"", loopback()));
    let grants = format!("components.api = \"api.wasm\"\ngrants.http = [\"{}\"]", origin.address);
    folder.write("tenants/t/tenant.toml", format!("name = \"t\"\n{grants}\n"));
    folder.copy(guests::grants(), "tenants/t/api.wasm");
    let relay = Relay::serve(folder).await;
    let answer = relay.http().await.get(&format!("/t/fetch?to={}&path=/", origin.address)).await;
    assert_eq!(answer.body, "ErrorCode::DestinationUnavailable");
    relay.metric_is("edge_relay_outbound_requests_total", &[("outcome", "proxy")], 1.0).await;
    relay.logged(&["WARN", "tenant.name=t", "the proxy of relay.toml cannot be reached"]).await;
    assert_eq!(origin.connections(), 0);
}
