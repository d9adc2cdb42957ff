//! Partners behind TLS, with a certificate that is trusted or not.

use std::net::IpAddr;

use support::{certificates::Authority, partner::Partner, relay::Relay, tenant::Folder};

/// A relay that trusts this authority and no other.
async fn relay(partner: &Partner, trusted: &Authority) -> Relay {
    let folder = Folder::new("").tenant("t", &partner.tls_url(), "");
    folder.write("roots.pem", &trusted.pem);
    let roots = folder.path("roots.pem");
    Relay::serve_with(folder, &[("SSL_CERT_FILE", roots.to_str().unwrap())]).await
}

#[tokio::test]
async fn a_trusted_partner_is_relayed() {
    let mut partner = Partner::start().await;
    let authority = Authority::generate();
    let relay = relay(&partner, &authority).await;
    let mut client = relay.client("/t").await;
    let mut peer = partner.arrival().await.upgrade_tls(&authority.acceptor(partner.address.ip())).await;
    assert_eq!(peer.path, "/feed?key=1");
    peer.text("in private").await;
    assert_eq!(client.text().await, "in private");
    assert_eq!(relay.metric("edge_relay_upstream_failures_total", &[]).await, 0.0);
}

#[tokio::test]
async fn an_untrusted_partner_is_not_and_the_relay_tries_again() {
    let mut partner = Partner::start().await;
    let (authority, unknown) = (Authority::generate(), Authority::generate());
    let relay = relay(&partner, &authority).await;
    let mut client = relay.client("/t").await;
    let address = partner.address.ip();
    partner.arrival().await.refused_tls(&unknown.acceptor(address)).await;
    relay.upstream_failed("tls", 1.0).await;
    let another: IpAddr = [127, 2, 0, 1].into();
    partner.arrival().await.refused_tls(&authority.acceptor(another)).await;
    relay.upstream_failed("tls", 2.0).await;

    let mut peer = partner.arrival().await.upgrade_tls(&authority.acceptor(address)).await;
    peer.text("trusted now").await;
    assert_eq!(client.text().await, "trusted now");
    assert_eq!(partner.connections(), 3);
}
