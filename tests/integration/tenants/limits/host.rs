//! The most that any tenant may have: `[tenant-limits]` of relay.toml.

use support::{
    guests,
    process::{run, shown as shown_of},
    relay::Relay,
    tenant::Folder,
};
use tokio_tungstenite::tungstenite::Message;

use crate::tenants::limits::{Manifest, ask};

const CAPS: &str = "[tenant-limits]\nmemory = \"32MiB\"\nclient-message = \"1KiB\"\n";

#[tokio::test]
async fn a_manifest_that_asks_for_more_is_refused() {
    let folder = Folder::new("").handled("t", guests::handler(), "[limits]\nmemory = \"64MiB\"\nclient-message = 1025");
    folder.append("relay.toml", CAPS);
    let output = run(&["serve", "--strict", "--config", folder.config().to_str().unwrap()]).await;
    let shown = shown_of(&output);
    assert_eq!(output.status.code(), Some(2), "{shown}");
    let errors = String::from_utf8(output.stderr).unwrap();
    for words in [
        ["tenant.toml:5: limits.memory: 64MiB is more", "relay.toml says tenant-limits.memory = 32MiB"],
        ["tenant.toml:6: limits.client-message: 1025 is more", "relay.toml says tenant-limits.client-message = 1KiB"],
    ] {
        assert!(errors.lines().any(|line| words.iter().all(|word| line.contains(word))), "{words:?}: {shown}");
    }
    assert_eq!(errors.lines().count(), 2, "{shown}");
    // `tenants check` says so too, if it knows the host's configuration.
    let (tenant, config) = (folder.path("tenants/t"), folder.config());
    let output = run(&["tenants", "check", tenant.to_str().unwrap(), "--config", config.to_str().unwrap()]).await;
    assert_eq!(output.status.code(), Some(2));
    let found = String::from_utf8(output.stderr).unwrap();
    assert!(found.contains("64MiB is more") && found.contains("tenant-limits.memory = 32MiB"), "{found}");
    let output = run(&["tenants", "check", tenant.to_str().unwrap()]).await;
    assert_eq!(output.status.code(), Some(0), "{}", shown_of(&output));
}

#[tokio::test]
async fn a_tenant_that_says_nothing_has_no_more_than_the_cap_and_a_change_to_more_is_refused() {
    let folder = Folder::new("").handled("t", guests::handler(), "[limits]\nclient-queue = 5");
    folder.append("relay.toml", CAPS);
    let mut manifest = Manifest::of(&folder, "t");
    let relay = Relay::serve(folder).await;
    let mut client = relay.client("/t").await;
    client.send(Message::binary(vec![1; 1024])).await;
    assert_eq!(client.message().await, Message::binary(vec![1; 1024]));
    assert_eq!(ask(&mut client, "reserve 40000000").await, "false");
    manifest.change(&relay, "client-queue = 5", "client-message = 2000", "refused", 1.0).await;
    relay
        .logged(&[
            "ERROR",
            "tenant refused",
            "limits.client-message: 2000 is more",
            "relay.toml says tenant-limits.client-message = 1KiB",
        ])
        .await;
    assert_eq!(ask(&mut client, "reply still").await, "still");
    manifest.change(&relay, "client-message = 2000", "client-message = 1000", "applied", 1.0).await;
    client.send(Message::binary(vec![1; 1001])).await;
    assert_eq!(client.rest().await.1.map(u16::from), Some(1009));
}
