//! Components that are hostile before they are ever called.

use std::{cell::Cell, future::pending};

use rustix::process::Signal;

use crate::{
    bombs::{self, bomb, bomb_at_start},
    scene::Scene,
    support::relay::Relay,
};

const TENANT: &str = "[components]\nclient = \"bomb.wasm\"\n";

/// The neighbour is undisturbed while code whose start-up does that is tried again and again, and refused.
async fn check(body: &str, reason: &str) {
    let mut scene = Scene::new(&bomb(&[], ""), TENANT).await;
    let labels = [("tenant", "hostile"), ("outcome", "refused")];
    let refused = async |relay: &Relay| relay.metric("edge_relay_tenant_swaps_total", &labels).await;
    let before = Cell::new(0.0);
    let begin = async |relay: &Relay| {
        before.set(refused(relay).await);
        relay.folder().write("tenants/hostile/bomb.wasm", bomb_at_start(body));
        relay.signal(Signal::HUP);
    };
    let end = async |relay: &Relay| {
        relay.metric_reaches("edge_relay_tenant_swaps_total", &labels, before.get() + 1.0).await;
    };
    scene.undisturbed_by(begin, async || pending().await, end).await;
    let why = scene.relay.ready().await["tenants"]["hostile"]["refused"].as_str().unwrap_or_default().to_owned();
    assert!(why.contains("components.client: a trial of it fails") && why.contains(reason), "{why}");
    // The version before goes on.
    drop(scene.relay.client("/hostile").await);
}

#[tokio::test]
async fn loops() {
    check(bombs::LOOP, "no answer within").await;
}

#[tokio::test]
async fn traps() {
    check(bombs::TRAP, "unreachable").await;
}

#[tokio::test]
async fn bombs_of_memory_tables_and_stack() {
    for (body, reason) in [(bombs::MEMORY, "unreachable"), (bombs::TABLE, "unreachable"), (bombs::STACK, "stack")] {
        check(body, reason).await;
    }
}
