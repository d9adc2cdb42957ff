//! Machines that lack what others have: the tenant does not pay for it.

use rustix::process::Resource;
use support::{bombs, client::Client, guests, relay::Relay, tenant::Folder};
use tokio_tungstenite::tungstenite::Message;

const FAILURES: &str = "edge_relay_guest_failures_total";
/// Address space for the relay's own needs, in bytes. An instance reserves more: 4 GiB for each memory.
const ROOM: usize = 1 << 30;
/// Takes 50 MiB of memory at once, and gives up.
const GROW: &str = "(drop (memory.grow (i32.const 800))) unreachable";
/// Writable memory for the relay's own needs, in bytes. It is less than [`GROW`] takes.
const WRITABLE: usize = 32 << 20;

#[tokio::test]
async fn a_host_without_address_space_answers_503_and_takes_the_blame() {
    let relay = Relay::serve(Folder::new("").api("t", "").handled("h", guests::handler(), "")).await;
    relay.limit(Resource::As, Some(relay.address_space() + ROOM));
    assert_eq!(relay.http().await.get("/t/count").await.envelope(), (503, "memory".into()));
    let refused = Client::try_connect(&relay.url("/h")).await.err().expect("no instance for the client").to_string();
    assert!(refused.contains("503"), "{refused}");
    relay.logged(&["ERROR", "tenant.name=t", "the host failed a component's call", "vm.max_map_count"]).await;
    let failed = [("blame", "host_failed"), ("reason", "host_memory")];
    assert_eq!(relay.metric(FAILURES, &[failed[0], failed[1], ("tenant", "t")]).await, 1.0);
    assert_eq!(relay.metric(FAILURES, &[failed[0], failed[1], ("tenant", "h")]).await, 1.0);
    assert_eq!(relay.metric(FAILURES, &[("blame", "guest_broke")]).await, 0.0);
    assert!(!relay.log().contains("component call failed"), "{}", relay.log());

    relay.limit(Resource::As, None);
    assert_eq!(relay.http().await.get("/t/count").await.body, "1");
    relay.client("/h").await;
}

#[tokio::test]
async fn a_guest_whose_memory_the_host_cannot_grow_is_not_to_blame() {
    let folder = Folder::new("");
    folder.write("tenants/t/tenant.toml", "name = \"t\"\ncomponents.client = \"client.wasm\"\n");
    folder.write("tenants/t/client.wasm", bombs::bomb(&[bombs::ON_MESSAGE], GROW));
    let relay = Relay::serve(folder).await;
    let mut client = relay.client("/t").await;
    relay.limit(Resource::Data, Some(relay.writable_memory() + WRITABLE));
    client.send(Message::text("grow")).await;
    assert!(client.text().await.contains("\"code\":100"));
    let by_host = [("blame", "host_failed"), ("reason", "host_memory")];
    let by_guest = [("blame", "guest_broke"), ("reason", "trap")];
    assert_eq!(relay.metric(FAILURES, &by_host).await, 1.0, "{}", relay.log());
    assert_eq!(relay.metric(FAILURES, &by_guest).await, 0.0);
    assert!(!relay.log().contains("component call failed"), "{}", relay.log());

    // Where the host has memory, the trap is the guest's own.
    relay.limit(Resource::Data, None);
    client.send(Message::text("grow")).await;
    assert!(client.text().await.contains("\"code\":100"));
    assert_eq!(relay.metric(FAILURES, &by_host).await, 1.0);
    assert_eq!(relay.metric(FAILURES, &by_guest).await, 1.0);
}
