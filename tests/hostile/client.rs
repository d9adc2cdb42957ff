//! Hostile client handlers.

use support::bombs::{self, ON_CONNECT, ON_DISCONNECT, ON_MESSAGE, ON_SUBSCRIBE, bomb};
use tokio::time::sleep;

use crate::scene::{BETWEEN, Scene, knock};

const HANDLER: &str = "[components]\nclient = \"bomb.wasm\"\n[limits]\nclient-call = \"200ms\"\n";
/// How many clients the hostile tenant has at once: more than its handler has instances.
const KNOCKING: usize = 12;

/// Checks that the neighbour is undisturbed by clients whose handler has this body in this function.
async fn check(function: &str, body: &str, reason: Option<&str>) -> Scene {
    let mut scene = Scene::new(&bomb(&[function], body), HANDLER).await;
    let address = scene.relay.clients;
    scene
        .undisturbed(async || {
            let knocking = (0..KNOCKING).map(|_| knock(address, "/hostile?channel=main"));
            futures_util::future::join_all(knocking).await;
            sleep(BETWEEN).await;
        })
        .await;
    scene.broke("client", reason).await;
    scene
}

#[tokio::test]
async fn loops() {
    for function in [ON_CONNECT, ON_SUBSCRIBE, ON_MESSAGE, ON_DISCONNECT] {
        check(function, bombs::LOOP, Some("deadline")).await;
    }
}

#[tokio::test]
async fn a_host_call_that_never_ends_and_ones_without_end() {
    for body in [bombs::WAIT, bombs::NAP] {
        check(ON_MESSAGE, body, Some("deadline")).await;
    }
}

#[tokio::test]
async fn traps_without_end() {
    for function in [ON_CONNECT, ON_SUBSCRIBE, ON_MESSAGE, ON_DISCONNECT] {
        check(function, bombs::TRAP, Some("trap")).await;
    }
}

#[tokio::test]
async fn bombs_of_memory_tables_stack_and_handles() {
    // Eight at once may reach their deadline before their memory is full.
    for body in [bombs::MEMORY, bombs::TABLE, bombs::STACK, bombs::HANDLES] {
        check(ON_CONNECT, body, None).await.memory_is_bounded();
    }
}
