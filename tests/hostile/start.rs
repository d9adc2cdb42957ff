//! Components that are hostile before any of their functions is called.

use std::{cell::Cell, future::pending, time::Instant};

use futures_util::future::join_all;
use rustix::process::Signal;
use support::{
    bombs::{self, bomb, bomb_at_start},
    compile_bombs,
    relay::Relay,
    until,
};
use tokio::time::sleep;

use crate::scene::{BETWEEN, NEIGHBOUR, Scene, knock, swap};

const TENANT: &str = "[components]\nclient = \"bomb.wasm\"\n";

/// Checks that the neighbour is undisturbed while the hostile tenant changes to this code again and again. Each change
/// must be refused with all words of `reason`.
async fn check(code: &[u8], reason: &[&str]) {
    let mut scene = Scene::new(&bomb(&[], ""), TENANT).await;
    let labels = [("tenant", "hostile"), ("outcome", "refused")];
    let refused = async |relay: &Relay| relay.metric("edge_relay_tenant_swaps_total", &labels).await;
    let (before, mut nth) = (Cell::new(0.0), 0);
    let begin = async |relay: &Relay| {
        before.set(refused(relay).await);
        // A custom section makes the code new each time, since refused code is not compiled again for a while.
        nth += 1;
        relay.folder().write("tenants/hostile/bomb.wasm", [code, &[0, 3, 1, b'n', nth]].concat());
        relay.signal(Signal::HUP);
    };
    let end = async |relay: &Relay| {
        relay.metric_reaches("edge_relay_tenant_swaps_total", &labels, before.get() + 1.0).await;
    };
    scene.undisturbed_by(begin, async || pending().await, end).await;
    // The reason is shown after the count.
    until(format!("a refusal with {reason:?}"), async || {
        let why = scene.relay.ready().await["tenants"]["hostile"]["refused"].as_str().unwrap_or_default().to_owned();
        let named = why.contains("components.client: ") && reason.iter().all(|word| why.contains(word));
        if named { Ok(()) } else { Err(why) }
    })
    .await;
    // The version before goes on.
    drop(scene.relay.client("/hostile").await);
}

const TRIAL: &str = "a trial of it fails";

#[tokio::test]
async fn loops() {
    check(&bomb_at_start(bombs::LOOP), &[TRIAL, "no answer within"]).await;
}

/// There is no trial when the host starts, so the first call meets the loop.
#[tokio::test]
async fn loops_that_the_first_call_meets() {
    let mut scene = Scene::new(&bomb_at_start(bombs::LOOP), TENANT).await;
    let address = scene.relay.clients;
    let knocks = async || {
        join_all((0..12).map(|_| knock(address, "/hostile"))).await;
        sleep(BETWEEN).await;
    };
    scene.undisturbed(knocks).await;
    scene.broke("client", Some("deadline")).await;
}

#[tokio::test]
async fn traps() {
    check(&bomb_at_start(bombs::TRAP), &[TRIAL, "unreachable"]).await;
}

#[tokio::test]
async fn bombs_of_memory_tables_and_stack() {
    for (body, reason) in [(bombs::MEMORY, "unreachable"), (bombs::TABLE, "unreachable"), (bombs::STACK, "stack")] {
        check(&bomb_at_start(body), &[TRIAL, reason]).await;
    }
}

#[tokio::test]
async fn code_that_takes_for_ever_or_gigabytes_to_compile() {
    check(&compile_bombs::of_time(), &["compile-time"]).await;
    check(&compile_bombs::of_memory(), &["compile-memory"]).await;
}

/// While it is compiled, other tenants change as soon as ever.
#[tokio::test]
async fn code_that_takes_for_ever_to_compile_beside_changes_of_another() {
    let scene = Scene::new(&bomb(&[], ""), TENANT).await;
    scene.relay.folder().write("tenants/hostile/bomb.wasm", compile_bombs::of_time());
    scene.relay.signal(Signal::HUP);
    let began = Instant::now();
    for queue in 1..=3 {
        swap(&scene.relay, "neighbour", &format!("{NEIGHBOUR}\n[limits]\nclient-queue = {queue}00")).await;
    }
    let changed = began.elapsed();
    let labels = [("tenant", "hostile"), ("outcome", "refused")];
    scene.relay.metric_reaches("edge_relay_tenant_swaps_total", &labels, 1.0).await;
    let refused = began.elapsed();
    assert!(changed < refused / 2, "the neighbour's changes took {changed:?}, and the bomb {refused:?}");
}
