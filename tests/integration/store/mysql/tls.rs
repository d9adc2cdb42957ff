//! MySQL behind TLS, where the URL asks for it.

use support::{
    appends::Appends,
    certificates::Authority,
    database::Server,
    on_each_server,
    process::shown,
    relay::Relay,
    skip::{skipped, there},
    tenant::Folder,
};

use super::drained;

/// A relay that trusts this authority.
async fn serve(url: &str, trusted: &Authority) -> Relay {
    let folder = Appends::folder_to_mysql();
    folder.write("roots.pem", &trusted.pem);
    let roots = folder.path("roots.pem");
    Relay::serve_with(folder, &[("STORE_URL", url), ("SSL_CERT_FILE", roots.to_str().unwrap())]).await
}

async fn rows_go_over_tls_to_a_server_that_the_machine_trusts(server: Server) {
    let (authority, unknown) = (Authority::generate(), Authority::generate());
    let Some(database) = server.start_tls(&authority).await else { return };
    // From now on the server takes that user only over TLS.
    database.query("ALTER USER relay REQUIRE SSL").await;
    let secure = format!("{}?require_ssl=true", database.url());
    for (url, trusted, why) in [(&database.url(), &authority, "Access denied"), (&secure, &unknown, "certificate")] {
        let relay = serve(url, trusted).await;
        assert_eq!(relay.api_get("/t/append?to=log&first=0&rows=1").await.1, "1");
        relay.logged(&["WARN", "records stay in the outbox", why]).await;
    }
    let relay = serve(&secure, &authority).await;
    assert_eq!(relay.api_get("/t/append?to=log&first=1&rows=2").await.1, "2");
    drained(&relay, &database, 2).await;
    assert_eq!(relay.api_get("/t/records?of=log&count=9").await.1, "2 1");
}

async fn ssl_mode_says_what_is_checked(server: Server) {
    let (authority, unknown) = (Authority::generate(), Authority::generate());
    let Some(database) = server.start_tls(&authority).await else { return };
    database.query("ALTER USER relay REQUIRE SSL").await;
    let url = |mode: &str| format!("{}?ssl-mode={mode}", database.url());
    let mut rows = 0;
    for (mode, trusted, said) in [
        ("DISABLED", &authority, "it refuses the login"),
        ("VERIFY_IDENTITY", &unknown, "nobody that this machine trusts vouches"),
        ("VERIFY_IDENTITY", &authority, ""),
        ("REQUIRED", &unknown, ""),
    ] {
        let relay = serve(&url(mode), trusted).await;
        assert_eq!(relay.api_get("/t/append?to=log&first=0&rows=1").await.1, "1");
        if said.is_empty() {
            rows += 1;
            drained(&relay, &database, rows).await;
        } else {
            relay.logged(&["WARN", "records stay in the outbox", said]).await;
        }
    }
}

/// The certificate that MySQL makes at its first start names nobody but its subject.
#[tokio::test]
async fn a_certificate_that_mysql_made_for_itself_needs_another_mode() {
    let Some(database) = Server::MySql.start().await else { return };
    database.query("ALTER USER relay REQUIRE SSL").await;
    let authority = std::fs::read_to_string(database.data("ca.pem")).unwrap();
    let serve = async |mode: &str| {
        let folder = Appends::folder_to_mysql();
        folder.write("roots.pem", &authority);
        let (roots, url) = (folder.path("roots.pem"), format!("{}?ssl-mode={mode}", database.url()));
        let relay = Relay::serve_with(folder, &[("STORE_URL", &url), ("SSL_CERT_FILE", roots.to_str().unwrap())]).await;
        assert_eq!(relay.api_get("/t/append?to=log&first=0&rows=1").await.1, "1");
        relay
    };
    serve("DISABLED").await.logged(&["WARN", "it refuses the login"]).await;
    serve("VERIFY_IDENTITY").await.logged(&["WARN", "for another name", "ssl-mode=REQUIRED"]).await;
    let relay = serve("REQUIRED").await;
    drained(&relay, &database, 1).await;
    assert_eq!(relay.api_get("/t/records?of=log&count=9").await.1, "0");
}

/// Some tools make certificates of version 1, which no verifier here takes, whatever it would trust.
async fn a_certificate_of_version_1_is_named_as_what_is_wrong(server: Server) {
    let folder = Folder::empty();
    let (key, certificate) = (folder.path("key.pem"), folder.path("certificate.pem"));
    let (key, certificate) = (key.to_str().unwrap(), certificate.to_str().unwrap());
    let subject = folder.path("request.pem");
    let subject = subject.to_str().unwrap();
    if !there("openssl") {
        return skipped::<()>("openssl").unwrap_or_default();
    }
    for arguments in [
        &["req", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=records", "-keyout", key, "-out", subject][..],
        &["x509", "-req", "-in", subject, "-signkey", key, "-days", "9", "-out", certificate],
    ] {
        let output = std::process::Command::new("openssl").args(arguments).output().unwrap();
        assert!(output.status.success(), "{}", shown(&output));
    }
    let arguments = [format!("--ssl-cert={certificate}"), format!("--ssl-key={key}")];
    let Some(database) = server.start_with(&arguments.each_ref().map(|argument| &**argument)).await else { return };
    for mode in ["VERIFY_IDENTITY", "REQUIRED"] {
        let relay = serve(&format!("{}?ssl-mode={mode}", database.url()), &Authority::generate()).await;
        assert_eq!(relay.api_get("/t/append?to=log&first=0&rows=1").await.1, "1");
        relay.logged(&["WARN", "the server's certificate has version 1", "one of version 3"]).await;
    }
}

on_each_server!(
    a_certificate_of_version_1_is_named_as_what_is_wrong,
    rows_go_over_tls_to_a_server_that_the_machine_trusts,
    ssl_mode_says_what_is_checked,
);
