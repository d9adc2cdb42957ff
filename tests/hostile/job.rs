//! Hostile jobs.

use std::{future::pending, time::Duration};

use support::bombs::{self, ON_SCHEDULE, bomb};

use crate::scene::{Scene, broke, swap};

/// Checks that the neighbour is undisturbed while four schedules call a job that has this body.
async fn check(body: &str, reason: Option<&str>) -> Scene {
    // A call that is to break by itself has time for that on a busy machine, too.
    let call = if reason == Some("deadline") { "200ms" } else { "10s" };
    let job = |after: Duration| {
        let limits = format!("[components]\njob = \"bomb.wasm\"\n[limits]\njob-call = \"{call}\"\n");
        let schedule =
            |nth| format!("[[schedule]]\nname = \"s{nth}\"\nevery = \"100ms\"\nafter = \"{}ms\"\n", after.as_millis());
        format!("{limits}{}", (0..4).map(schedule).collect::<String>())
    };
    let (later, now) = (job(Duration::from_secs(3600)), job(Duration::from_millis(1)));
    let mut scene = Scene::new(&bomb(&[ON_SCHEDULE], body), &later).await;
    let begin = async |relay: &_| swap(relay, "hostile", &now).await;
    // On a busy machine none of the calls may have broken within the window. So the attack goes on until one has.
    let end = async |relay: &_| {
        broke(relay, "job", reason).await;
        swap(relay, "hostile", &later).await;
    };
    scene.undisturbed_by(begin, async || pending().await, end).await;
    scene
}

#[tokio::test]
async fn loops() {
    check(bombs::LOOP, Some("deadline")).await;
}

#[tokio::test]
async fn a_host_call_that_never_ends_and_ones_without_end() {
    for body in [bombs::WAIT, bombs::NAP] {
        check(body, Some("deadline")).await;
    }
}

#[tokio::test]
async fn traps_without_end() {
    check(bombs::TRAP, Some("trap")).await;
}

#[tokio::test]
async fn bombs_of_memory_tables_stack_and_handles() {
    for body in [bombs::MEMORY, bombs::TABLE, bombs::STACK, bombs::HANDLES] {
        check(body, Some("trap")).await.memory_is_bounded();
    }
}
