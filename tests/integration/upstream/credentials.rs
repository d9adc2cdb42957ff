//! What the partner is shown at each connection: secrets from files, and what a dial component makes.

use support::{
    guests, loopback,
    origin::Origin,
    partner::{Partner, RawPeer},
    relay::Relay,
    tenant::Folder,
};

use super::refusals::long_pause;

#[tokio::test]
async fn secret_files_are_read_anew_for_each_connection() {
    let mut partner = Partner::start().await;
    let upstream =
        "headers = { authorization = { file = \"token\" } }\nquery = { plain = \"a b\", key = { file = \"key\" } }";
    let folder = Folder::new("").tenant("t", &partner.url(), upstream);
    folder.write("tenants/t/token", "Bearer s3cret-1\n");
    folder.write("tenants/t/key", "s3cret&2\r\n");
    let relay = Relay::serve(folder).await;
    let mut peer = partner.arrival().await.request().await;
    assert_eq!(peer.header("authorization"), Some("Bearer s3cret-1"));
    assert_eq!(peer.target(), "/feed?key=1&plain=a+b&key=s3cret%262");
    peer.agree(&[]).await;
    relay.logged(&["upstream connected"]).await;
    // A live connection stays; the next one has what is there then.
    relay.folder().write("tenants/t/token", "Bearer s3cret-3");
    peer.frame(0x88, b"").await;
    let peer = partner.arrival().await.request().await;
    assert_eq!(peer.header("authorization"), Some("Bearer s3cret-3"));
    drop(peer);

    std::fs::remove_file(relay.folder().path("tenants/t/token")).unwrap();
    relay.upstream_failed("secret", 1.0).await;
    relay.logged(&["upstream not connected", "token cannot be read"]).await;
    relay.folder().write("tenants/t/token", "two\nlines");
    relay.logged(&["upstream not connected", "headers.authorization", "line breaks"]).await;
    assert!(!relay.log().contains("s3cret"), "{}", relay.log());
    assert!(!relay.ready().await.to_string().contains("s3cret"));
}

/// A relay whose tenant has a dial component. `settings` say what that does.
async fn dialed(partner: &Partner, settings: &str, more: &str) -> Relay {
    let manifest = format!(
        "headers = {{ x-plain = \"p\", x-key = \"overridden\" }}\nquery = {{ more = \"m\" }}\n\
         [components]\ndial = \"dial.wasm\"\n[settings]\n{settings}\n[grants]\nsecrets = {{ key = {{ env = \"T__KEY\" }} }}\n{more}"
    );
    let folder = Folder::new("").tenant("t", &partner.url(), &manifest);
    folder.copy(guests::dialer(), "tenants/t/dial.wasm");
    Relay::serve_with(folder, &[("T__KEY", "s3cret")]).await
}

async fn request(partner: &mut Partner) -> RawPeer {
    partner.arrival().await.request().await
}

#[tokio::test]
async fn a_dial_component_makes_path_query_and_headers() {
    let mut partner = Partner::start().await;
    let relay = dialed(&partner, "", "").await;
    let url = partner.url();
    let target = |number: u32, last: &str| format!("/feed?attempt={number}&last={last}&url={url}&end&more=m");
    let mut first = request(&mut partner).await;
    assert_eq!(first.target(), target(1, "None"));
    assert_eq!((first.header("x-key"), first.header("x-plain")), (Some("s3cret"), Some("p")));
    let random = first.header("x-random").unwrap().to_owned();
    first.write(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n").await;
    let second = request(&mut partner).await;
    assert_eq!(second.target(), target(2, "Some(401)"));
    assert_ne!(second.header("x-random"), Some(random.as_str()));
    drop(second);
    let mut third = request(&mut partner).await;
    assert_eq!(third.target(), target(3, "Some(401)"), "the second had no answer");
    third.agree(&[]).await;
    relay.logged(&["upstream connected"]).await;
    drop(third);
    assert_eq!(request(&mut partner).await.target(), target(1, "None"), "a new row of attempts");
    assert_eq!(relay.metric("edge_relay_guest_calls_total", &[("role", "dial")]).await, 4.0);
    assert!(!relay.log().contains("s3cret"));
}

#[tokio::test]
async fn what_it_makes_goes_to_no_other_origin() {
    let (mut partner, mut other) = (Partner::start().await, Partner::start().await);
    let _relay = dialed(&partner, "", "").await;
    let mut first = request(&mut partner).await;
    let answer = format!("HTTP/1.1 302 Found\r\nLocation: ws://{}/\r\nContent-Length: 0\r\n\r\n", other.address);
    first.write(answer.as_bytes()).await;
    let second = request(&mut other).await;
    assert_eq!((second.target(), second.header("x-key"), second.header("x-plain")), ("/", None, None));
}

#[tokio::test]
async fn another_version_of_it_ends_the_wait_after_a_refusal() {
    let mut partner = Partner::start().await;
    let relay = dialed(&partner, "", "").await;
    long_pause(&mut partner, &relay, "403 Forbidden").await;
    let changed = std::time::Instant::now();
    let manifest = std::fs::read_to_string(relay.folder().path("tenants/t/tenant.toml")).unwrap();
    relay.folder().write("tenants/t/tenant.toml", manifest.replace("[settings]\n", "[settings]\ndial = \"nothing\"\n"));
    assert_eq!(request(&mut partner).await.target(), "/feed?key=1&more=m");
    assert!(changed.elapsed() < std::time::Duration::from_secs(8), "{:?}", changed.elapsed());
    relay.logged(&["upstream waits no longer", "the dial component has changed"]).await;
}

#[tokio::test]
async fn a_tenants_folder_that_was_exchanged_has_nobody_elses_secrets() {
    let (mut partner, folder) = (Partner::start().await, Folder::new(""));
    for (place, key) in [("own", "mine"), ("other", "s3cret")] {
        let upstream = format!("[[upstream]]\nname = \"feed\"\nurl = \"{}\"\n", partner.url());
        let headers = "headers = { x-key = { file = \"key\" } }\n";
        folder.write(&format!("{place}/tenant.toml"), format!("name = \"t\"\n{upstream}{headers}"));
        folder.write(&format!("{place}/key"), key);
    }
    let (link, own, other) = (folder.path("tenants/t"), folder.path("own"), folder.path("other"));
    // What is there is refused, so that the version before runs on.
    folder.append("other/tenant.toml", "unknown = 1\n");
    std::os::unix::fs::symlink(own, &link).unwrap();
    let relay = Relay::serve(folder).await;
    let mut peer = request(&mut partner).await;
    assert_eq!(peer.header("x-key"), Some("mine"));
    peer.agree(&[]).await;
    std::fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink(other, &link).unwrap();
    drop(peer);
    relay.upstream_failed("secret", 1.0).await;
    relay.logged(&["upstream not connected", "the tenant's folder was exchanged"]).await;
    assert_eq!(partner.connections(), 1);
}

#[tokio::test]
async fn it_may_ask_a_server_first() {
    let (mut partner, origin) = (Partner::start().await, Origin::start(loopback()).await);
    let address = origin.address;
    let relay =
        dialed(&partner, &format!("dial = \"fetch\"\norigin = \"{address}\""), &format!("http = [\"{address}\"]"))
            .await;
    let peer = request(&mut partner).await;
    assert_eq!(peer.header("x-token"), Some("the origin"));
    assert_eq!(relay.metric("edge_relay_outbound_requests_total", &[("outcome", "answered")]).await, 1.0);
}

#[tokio::test]
async fn it_may_leave_everything_to_the_manifest() {
    let mut partner = Partner::start().await;
    let _relay = dialed(&partner, "dial = \"nothing\"", "").await;
    let peer = request(&mut partner).await;
    assert_eq!((peer.target(), peer.header("x-key")), ("/feed?key=1&more=m", Some("overridden")));
}

#[tokio::test]
async fn what_it_does_wrong_is_a_failed_connection_with_its_reason() {
    for (dial, words) in [
        ("refuse", "says no: no token\\ntoday"),
        ("trap", "unreachable"),
        ("loop", "no answer within 100 ms"),
        ("host", "the header \"Host\", which is set by the handshake itself"),
        ("line", "has a value that cannot be a header's value"),
        ("relative", "the URL must have a path that begins with '/'"),
    ] {
        let partner = Partner::start().await;
        let relay = dialed(&partner, &format!("dial = \"{dial}\""), "[limits]\ndial-call = \"100ms\"").await;
        relay.upstream_failed("dial", 1.0).await;
        let line = relay.logged(&["upstream not connected", "the dial component"]).await;
        assert!(line.contains(words), "{dial}: {line}");
        // Where the component broke is in its own line alone.
        assert!(!line.contains(" in "), "{dial}: {line}");
        let feed = relay.ready().await["tenants"]["t"]["upstreams"]["feed"].take();
        assert!(feed["reason"].as_str().unwrap().contains("the dial component"), "{feed}");
        assert_eq!(partner.connections(), 0, "{dial}");
    }
}

#[tokio::test]
async fn it_need_not_wait_for_the_filter() {
    let mut partner = Partner::start().await;
    // The filter never comes back from its first call.
    let manifest = "[components]\ndial = \"dial.wasm\"\nfilter = \"filter.wasm\"\n[settings]\non-open = \"loop\"\n\
                    [limits]\nfilter-call = \"1m\"";
    let folder = Folder::new("").tenant("t", &partner.url(), manifest);
    folder.copy(guests::dialer(), "tenants/t/dial.wasm");
    folder.copy(guests::hostile(), "tenants/t/filter.wasm");
    let other = Partner::start().await;
    folder.append("tenants/t/tenant.toml", &format!("[[upstream]]\nname = \"other\"\nurl = \"{}\"\n", other.url()));
    let relay = Relay::serve(folder).await;
    partner.accept().await;
    { other }.accept().await;
    assert_eq!(relay.metric("edge_relay_guest_calls_total", &[("role", "dial")]).await, 2.0);
}
