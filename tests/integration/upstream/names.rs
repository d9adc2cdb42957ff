//! Where the name of a partner leads: several addresses, other addresses, and addresses that a tenant may not reach.

use std::net::{IpAddr, Ipv4Addr};

use support::{
    guests,
    hosts::{self, Deaf},
    loopback,
    origin::Origin,
    partner::Partner,
    relay::Relay,
    tenant::Folder,
};

/// Adds a tenant whose partner has the name `partner.test`.
fn named(folder: Folder, port: u16) -> Folder {
    folder.tenant("t", &format!("ws://partner.test:{port}/"), "")
}

#[tokio::test]
async fn an_address_that_swallows_packets_costs_a_moment() {
    let Some(()) = hosts::can_be_set() else { return };
    let mut partner = Partner::start().await;
    let port = partner.address.port();
    let deaf = IpAddr::from(loopback());
    let _keeper = Deaf::at(deaf, port).await;
    let folder = named(Folder::new(""), port);
    hosts::set(&folder, &[("partner.test", deaf), ("partner.test", partner.address.ip())]);
    let relay = Relay::serve_with_hosts(folder).await;
    let _peer = partner.accept().await;
    // A failure would be the deadline.
    assert_eq!(relay.metric("edge_relay_upstream_failures_total", &[]).await, 0.0, "{}", relay.log());
}

#[tokio::test]
async fn a_guests_request_tries_the_next_address_too() {
    let Some(()) = hosts::can_be_set() else { return };
    let origin = Origin::start(loopback()).await;
    let port = origin.address.port();
    let deaf = IpAddr::from(loopback());
    let _keeper = Deaf::at(deaf, port).await;
    let folder = Folder::new("");
    let grants = format!("components.api = \"api.wasm\"\ngrants.http = [\"origin.test:{port}\", \"127.0.0.0/8\"]");
    folder.write("tenants/t/tenant.toml", format!("name = \"t\"\n{grants}\n"));
    folder.copy(guests::grants(), "tenants/t/api.wasm");
    hosts::set(&folder, &[("origin.test", deaf), ("origin.test", origin.address.ip())]);
    let relay = Relay::serve_with_hosts(folder).await;
    let answer = relay.http().await.get(&format!("/t/fetch?to=origin.test:{port}&path=/")).await;
    assert_eq!(answer.body, "200 the origin");
}

#[tokio::test]
async fn a_name_is_looked_up_anew_for_each_connection() {
    let Some(()) = hosts::can_be_set() else { return };
    let mut before = Partner::start().await;
    let port = before.address.port();
    let mut after = Partner::start_at(loopback(), port).await;
    let folder = named(Folder::new(""), port);
    hosts::set(&folder, &[("partner.test", before.address.ip())]);
    let relay = Relay::serve_with_hosts(folder).await;
    let peer = before.accept().await;
    hosts::set(relay.folder(), &[("partner.test", after.address.ip())]);
    peer.close().await;
    after.accept().await;
    assert_eq!(before.connections(), 1);
}

#[tokio::test]
async fn an_address_that_is_not_public_is_the_operators_to_allow() {
    let partner = Partner::start().await;
    let folder = Folder::new("").tenant("t", &partner.url(), "");
    folder.allow("");
    let relay = Relay::serve(folder).await;
    let line = format!("grants.networks = [\"{}\"]", partner.address.ip());
    relay.logged(&["tenant refused", "upstream.url", &line]).await;
    assert_eq!(partner.connections(), 0);
}

#[tokio::test]
async fn so_is_one_that_a_name_leads_to() {
    let partner = Partner::local().await;
    let folder = Folder::new("").tenant("t", &partner.named_url(), "");
    folder.allow("networks = [{ network = \"127.0.0.1\", tenants = [\"other\"] }]");
    let relay = Relay::serve(folder).await;
    relay.upstream_failed("denied", 1.0).await;
    relay.logged(&["upstream not connected", "localhost:", "grants.networks = ["]).await;
    assert_eq!(partner.connections(), 0);
}

#[tokio::test]
async fn every_address_of_a_name_is_looked_at() {
    let Some(()) = hosts::can_be_set() else { return };
    let mut partner = Partner::start().await;
    let folder = named(Folder::new(""), partner.address.port());
    let (allowed, other) = (partner.address.ip(), IpAddr::from(Ipv4Addr::new(127, 2, 0, 1)));
    folder.allow("networks = [\"127.1.0.0/16\"]");
    hosts::set(&folder, &[("partner.test", allowed), ("partner.test", other)]);
    let relay = Relay::serve_with_hosts(folder).await;
    relay.upstream_failed("denied", 1.0).await;
    relay.logged(&["partner.test:", "leads to 127.2.0.1", "grants.networks = [\"127.2.0.1\"]"]).await;
    assert_eq!(partner.connections(), 0);
    hosts::set(relay.folder(), &[("partner.test", allowed)]);
    partner.accept().await;
}

#[tokio::test]
async fn a_large_network_has_no_link_local_addresses() {
    let folder = Folder::new("").tenant("t", "ws://169.254.169.254/", "");
    folder.allow("networks = [\"0.0.0.0/0\", \"::/0\"]");
    let relay = Relay::serve(folder).await;
    relay.logged(&["tenant refused", "169.254.169.254"]).await;
}

#[tokio::test]
async fn a_redirect_leads_no_further_than_a_url() {
    let mut partner = Partner::start().await;
    let inner = Partner::start_at(Ipv4Addr::new(127, 2, 0, 2), 0).await;
    let folder = Folder::new("").tenant("t", &partner.url(), "");
    folder.allow("networks = [\"127.1.0.0/16\"]");
    let relay = Relay::serve(folder).await;
    let answer = format!("HTTP/1.1 302 Found\r\nLocation: ws://{}/\r\nContent-Length: 0\r\n\r\n", inner.address);
    partner.arrival().await.answer(answer.as_bytes()).await;
    relay.upstream_failed("denied", 1.0).await;
    relay.logged(&["upstream not connected", "leads to 127.2.0.2"]).await;
    assert_eq!(inner.connections(), 0);
}

#[tokio::test]
async fn the_operators_own_upstream_leads_anywhere() {
    let mut partner = Partner::local().await;
    let _relay = Relay::pass(&partner.named_url(), &[]).await;
    partner.accept().await;
}
