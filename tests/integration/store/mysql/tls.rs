//! MySQL behind TLS, where the URL asks for it.

use support::{appends::Appends, certificates::Authority, mariadb::MariaDb, relay::Relay};

use super::drained;

/// A relay that trusts this authority.
async fn serve(url: &str, trusted: &Authority) -> Relay {
    let folder = Appends::folder_to_mysql();
    folder.write("roots.pem", &trusted.pem);
    let roots = folder.path("roots.pem");
    Relay::serve_with(folder, &[("STORE_URL", url), ("SSL_CERT_FILE", roots.to_str().unwrap())]).await
}

#[tokio::test]
async fn rows_go_over_tls_to_a_server_that_the_machine_trusts() {
    let (authority, unknown) = (Authority::generate(), Authority::generate());
    let Some(database) = MariaDb::start_tls(&authority).await else { return };
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
