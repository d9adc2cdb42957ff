//! Partners behind TLS: which certificates are trusted, what is shown to them, and what is said about those that are
//! not trusted.

use std::net::IpAddr;

use support::{
    certificates::{Authority, Issued},
    partner::Partner,
    process::{command, shown},
    relay::Relay,
    tenant::Folder,
};

/// A relay that trusts this authority and no other.
async fn relay(partner: &Partner, trusted: &Authority) -> Relay {
    let folder = Folder::new("").tenant("t", &partner.tls_url(), "");
    folder.write("roots.pem", &trusted.pem);
    let roots = folder.path("roots.pem");
    Relay::serve_with(folder, &[("SSL_CERT_FILE", roots.to_str().unwrap())]).await
}

/// A folder with a tenant that has these keys in its `[upstream.tls]`, and these files.
fn folder(partner: &Partner, tls: &str, files: &[(&str, &str)]) -> Folder {
    let folder = Folder::new("").tenant("t", &partner.tls_url(), &format!("[upstream.tls]\n{tls}"));
    for (name, content) in files {
        folder.write(&format!("tenants/t/{name}"), content);
    }
    folder
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
async fn an_untrusted_partner_is_not_and_the_relay_says_which_and_tries_again() {
    let mut partner = Partner::start().await;
    let (authority, unknown) = (Authority::generate(), Authority::generate());
    let relay = relay(&partner, &authority).await;
    let mut client = relay.client("/t").await;
    let address = partner.address.ip().to_string();
    let another: IpAddr = [127, 2, 0, 1].into();
    let named = ["wrong.example"].map(|name| authority.certificate(name).acceptor());
    let mut failures = 0.0;
    for (acceptor, words) in [
        (unknown.acceptor(partner.address.ip()), &["is issued by nobody who is trusted here", "roots = "][..]),
        (authority.acceptor(another), &["is for 127.2.0.1", "server-name = "]),
        (named[0].clone(), &["is for wrong.example", "server-name = "]),
        (authority.expired(&address).acceptor(), &["has expired on Wed, 03 Feb 2021", "renew it"]),
        (Issued::self_signed(&address).acceptor(), &["is self-signed", "roots = "]),
    ] {
        partner.arrival().await.refused_tls(&acceptor).await;
        failures += 1.0;
        relay.upstream_failed("tls", failures).await;
        let which = format!("the certificate of {address} (SHA-256 ");
        relay.logged(&[&["upstream not connected", which.as_str()], words].concat()).await;
    }
    let mut peer = partner.arrival().await.upgrade_tls(&authority.acceptor(partner.address.ip())).await;
    peer.text("trusted now").await;
    assert_eq!(client.text().await, "trusted now");
}

#[tokio::test]
async fn a_port_without_tls_is_named_as_such() {
    let mut partner = Partner::start().await;
    let relay = relay(&partner, &Authority::generate()).await;
    partner.arrival().await.write(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
    relay.upstream_failed("tls", 1.0).await;
    relay.logged(&["upstream not connected", "does not speak TLS at this port"]).await;
}

#[tokio::test]
async fn an_upstream_may_have_roots_and_a_name_of_its_own() {
    let mut partner = Partner::start().await;
    let authority = Authority::generate();
    let acceptor = authority.certificate("feed.example").acceptor();
    // With a byte order mark, as some editors leave it.
    let roots = format!("\u{feff}{}", authority.pem);
    let folder = folder(&partner, "roots = \"roots.pem\"\nserver-name = \"feed.example\"", &[("roots.pem", &roots)]);
    let _relay = Relay::serve(folder).await;
    let peer = partner.arrival().await.upgrade_tls(&acceptor).await;
    assert_eq!(peer.headers["host"], partner.address.to_string());
}

#[tokio::test]
async fn a_self_signed_certificate_is_trusted_if_it_is_that_very_one() {
    let mut partner = Partner::start().await;
    let address = partner.address.ip().to_string();
    let (given, other) = (Issued::self_signed(&address), Issued::self_signed(&address));
    let relay = Relay::serve(folder(&partner, "roots = \"partner.pem\"", &[("partner.pem", &given.pem())])).await;
    partner.arrival().await.refused_tls(&other.acceptor()).await;
    relay.upstream_failed("tls", 1.0).await;
    let mut peer = partner.arrival().await.upgrade_tls(&given.acceptor()).await;
    let mut client = relay.client("/t").await;
    peer.text("the very one").await;
    assert_eq!(client.text().await, "the very one");
}

#[tokio::test]
async fn a_client_certificate_is_shown_and_read_anew() {
    let mut partner = Partner::start().await;
    let authority = Authority::generate();
    let acceptor = authority.demanding_acceptor(partner.address.ip());
    let roots = ("roots.pem", authority.pem.as_str());
    let relay = Relay::serve(folder(&partner, "roots = \"roots.pem\"", &[roots])).await;
    let arrival = partner.arrival().await;
    arrival.refused_tls(&acceptor).await;
    relay.upstream_failed("tls", 1.0).await;
    relay.logged(&["upstream not connected", "wants a certificate of this side", "certificate = "]).await;
    drop(relay);

    let (own, stranger) = (authority.certificate("client"), Authority::generate().certificate("client"));
    let (pem, key) = (stranger.pem(), stranger.key.serialize_pem());
    let keys = "roots = \"roots.pem\"\ncertificate = \"own.pem\"\nkey = \"own.key\"";
    let relay = Relay::serve(folder(&partner, keys, &[roots, ("own.pem", &pem), ("own.key", &key)])).await;
    loop {
        // Connections of the relay before may still be there.
        let arrival = partner.arrival().await;
        arrival.refused_tls(&acceptor).await;
        if relay.metric("edge_relay_upstream_failures_total", &[("reason", "tls")]).await > 0.0 {
            break;
        }
    }
    relay.logged(&["upstream not connected", "does not take this side's certificate"]).await;
    relay.folder().write("tenants/t/own.key", own.key.serialize_pem());
    relay.logged(&["upstream not connected", "is not the key of"]).await;
    relay.folder().write("tenants/t/own.pem", own.pem());
    loop {
        let arrival = partner.arrival().await;
        if let Some(mut peer) = arrival.try_tls(&acceptor).await {
            peer.agree(&[]).await;
            break;
        }
    }
    relay.logged(&["upstream connected"]).await;
}

#[tokio::test]
async fn roots_that_are_none_are_an_error_at_the_start() {
    let authority = Authority::generate();
    let der = config::pem::certificates(authority.pem.as_bytes()).unwrap()[0].to_vec();
    let marked = format!("\u{feff}{}", authority.pem);
    for (content, words) in [
        (Some(&b""[..]), "is empty"),
        (Some(&der), "is DER, not PEM"),
        (Some(b"no certificate"), "has no certificate in it"),
        (Some(b"-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n"), "that can be a root"),
        (None, "cannot be read"),
    ] {
        let folder = Folder::new("").tenant("t", "ws://127.0.0.1:1/", "");
        let roots = folder.path("roots.pem");
        if let Some(content) = content {
            folder.write("roots.pem", content);
        }
        let mut command = command(&["serve".as_ref(), "--config".as_ref(), folder.config().as_os_str()]);
        let output = command.env("SSL_CERT_FILE", &roots).output().unwrap();
        let shown = shown(&output);
        assert_eq!(output.status.code(), Some(2), "{shown}");
        assert!(shown.contains("SSL_CERT_FILE") && shown.contains(words), "{words}: {shown}");
    }
    let mut partner = Partner::start().await;
    let folder = Folder::new("").tenant("t", &partner.tls_url(), "");
    folder.write("roots.pem", marked);
    let roots = folder.path("roots.pem");
    let _relay = Relay::serve_with(folder, &[("SSL_CERT_FILE", roots.to_str().unwrap())]).await;
    partner.arrival().await.upgrade_tls(&authority.acceptor(partner.address.ip())).await;
}

#[tokio::test]
async fn a_client_certificate_is_for_no_other_origin() {
    let (mut partner, mut other) = (Partner::start().await, Partner::start().await);
    let authority = Authority::generate();
    let own = authority.certificate("client");
    let keys = "roots = \"roots.pem\"\ncertificate = \"own.pem\"\nkey = \"own.key\"";
    let files = [("roots.pem", &*authority.pem), ("own.pem", &own.pem()), ("own.key", &own.key.serialize_pem())];
    let relay = Relay::serve(folder(&partner, keys, &files)).await;
    let mut peer = partner.arrival().await.request_tls(&authority.demanding_acceptor(partner.address.ip())).await;
    let answer = format!("HTTP/1.1 307 Temporary Redirect\r\nLocation: wss://{}/\r\n\r\n", other.address);
    peer.write(answer.as_bytes()).await;
    // The roots hold there, too, but the certificate is not shown.
    other.arrival().await.refused_tls(&authority.demanding_acceptor(other.address.ip())).await;
    relay.logged(&["upstream not connected", &other.address.to_string(), "wants a certificate"]).await;
}
