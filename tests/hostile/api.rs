//! Hostile APIs, and hostile clients of them.

use std::time::Duration;

use support::{
    guests,
    http::{Http, chunk},
};
use tokio::time::{sleep, timeout};

use crate::scene::{BETWEEN, Scene};

/// How many requests the hostile API gets at once: more than it has instances.
const REQUESTS: usize = 12;
/// How long the client of a request waits for its answer.
const PATIENCE: Duration = Duration::from_millis(300);

async fn scene(limits: &str) -> Scene {
    let limits = format!("api-call = \"200ms\"\napi-instances = 8\n{limits}");
    let more = format!("[components]\napi = \"api.wasm\"\n[limits]\n{limits}\n");
    Scene::with(&more, |folder| folder.copy(guests::api(), "tenants/hostile/api.wasm")).await
}

/// Checks that the neighbour is undisturbed while requests for this path keep coming.
async fn check(path: &str, limits: &str, reason: Option<&str>) -> Scene {
    let mut scene = scene(limits).await;
    let address = scene.relay.api();
    let path = format!("/hostile{path}");
    scene
        .undisturbed(async || {
            let request = || async {
                Http::connect(address).await.try_get(&path).await;
            };
            let requests = (0..REQUESTS).map(|_| timeout(PATIENCE, request()));
            futures_util::future::join_all(requests).await;
            sleep(BETWEEN).await;
        })
        .await;
    scene.broke("api", reason).await;
    scene
}

#[tokio::test]
async fn loops() {
    check("/loop", "", Some("deadline")).await;
}

#[tokio::test]
async fn a_host_call_that_never_ends() {
    check("/wait", "", Some("deadline")).await;
}

#[tokio::test]
async fn traps_without_end() {
    check("/trap", "", Some("trap")).await;
    check("/die", "", Some("trap")).await;
}

#[tokio::test]
async fn bombs_of_memory_and_handles() {
    check("/memory", "", None).await.memory_is_bounded();
    check("/leak?handles=100000", "", None).await.memory_is_bounded();
}

#[tokio::test]
async fn answers_that_are_slow_and_ones_without_end() {
    check("/stream?chunks=1000000&ms=10", "", Some("deadline")).await;
    check("/big?bytes=1000000000000", "", Some("deadline")).await.memory_is_bounded();
    check("/hang", "", Some("deadline")).await;
}

/// Sends request bodies that come byte by byte, and bodies that do not end.
#[tokio::test]
async fn requests_that_are_slow_and_ones_without_end() {
    let mut scene = scene("").await;
    let address = scene.relay.api();
    scene
        .undisturbed(async || {
            let request = |bytes: usize| async move {
                let mut http = Http::connect(address).await;
                http.begin("/hostile/length").await;
                while http.try_send(chunk(vec![b'x'; bytes])).await {
                    sleep(BETWEEN).await;
                }
            };
            let requests = (0..REQUESTS).map(|nth| timeout(PATIENCE, request(if nth % 2 == 0 { 1 } else { 1 << 16 })));
            futures_util::future::join_all(requests).await;
        })
        .await;
    scene.memory_is_bounded();
}
