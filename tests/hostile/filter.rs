//! Hostile filters.

use std::time::Duration;

use support::bombs::{self, ON_CLOSE, ON_FRAMES, ON_OPEN, bomb};
use tokio::time::sleep;
use tokio_tungstenite::tungstenite::Message;

use crate::scene::Scene;

const FILTER: &str = "[components]\nfilter = \"bomb.wasm\"\n[limits]\nfilter-call = \"200ms\"\n";
/// Time between two messages to the hostile filter.
const PACE: Duration = Duration::from_millis(2);

/// Checks that the neighbour is undisturbed by a filter that has this body in these functions. Its calls must break,
/// for this reason if one is given.
async fn check(functions: &[&str], body: &str, limits: &str, reason: Option<&str>) -> Scene {
    let mut scene = Scene::new(&bomb(functions, body), &format!("{FILTER}{limits}")).await;
    let mut partner = scene.partner.take().unwrap();
    let mut peer = None;
    let closes = functions.contains(&ON_CLOSE);
    scene
        .undisturbed(async || {
            let open = match &mut peer {
                Some(open) => open,
                None => peer.insert(partner.accept().await),
            };
            let fed = open.try_send(Message::text("bait")).await;
            sleep(PACE).await;
            if closes || !fed {
                peer = None;
            }
        })
        .await;
    scene.broke("filter", reason).await;
    scene
}

#[tokio::test]
async fn loops() {
    for function in [ON_OPEN, ON_FRAMES, ON_CLOSE] {
        check(&[function], bombs::LOOP, "", Some("deadline")).await;
    }
}

#[tokio::test]
async fn a_host_call_that_never_ends_and_ones_without_end() {
    for body in [bombs::WAIT, bombs::NAP] {
        check(&[ON_FRAMES], body, "", Some("deadline")).await;
    }
}

#[tokio::test]
async fn traps_without_end() {
    for function in [ON_OPEN, ON_FRAMES, ON_CLOSE] {
        check(&[function], bombs::TRAP, "", Some("trap")).await;
    }
}

#[tokio::test]
async fn bombs_of_memory_tables_stack_and_handles() {
    for body in [bombs::MEMORY, bombs::TABLE, bombs::STACK, bombs::HANDLES] {
        check(&[ON_FRAMES], body, "", Some("trap")).await.memory_is_bounded();
    }
}

#[tokio::test]
async fn half_a_million_publications_from_one_call() {
    for (body, reason) in [(bombs::MANY_PUBLICATIONS, Some("trap")), (bombs::MANY_PUBLISHED, Some("trap"))] {
        check(&[ON_FRAMES], body, "", reason).await.memory_is_bounded();
    }
}

#[tokio::test]
async fn payloads_larger_than_they_look() {
    check(&[ON_FRAMES], bombs::SHARED_PAYLOAD, "", Some("trap")).await.memory_is_bounded();
}

#[tokio::test]
async fn a_string_of_a_gibibyte() {
    check(&[ON_FRAMES], bombs::HUGE_PAYLOAD, "", Some("trap")).await.memory_is_bounded();
    check(&[ON_FRAMES], bombs::HUGE_PAYLOAD, "memory = \"2GiB\"\n", Some("trap")).await.memory_is_bounded();
}

#[tokio::test]
async fn text_that_is_not_utf_8() {
    check(&[ON_FRAMES], bombs::BAD_TEXT, "", Some("trap")).await;
}

#[tokio::test]
async fn floods_of_the_log_and_of_the_state() {
    check(&[ON_FRAMES], bombs::LOG, "", Some("deadline")).await;
    check(&[ON_FRAMES], bombs::STATE, "", Some("deadline")).await.memory_is_bounded();
}
