//! Jobs: components that are called at the manifest's times.

use std::time::{SystemTime, UNIX_EPOCH};

use support::{client::Client, guests, process, relay::Relay, tenant::Folder};

/// A folder with a tenant that has no upstream, and whose job has these schedules.
fn folder(schedules: &str) -> Folder {
    let folder = Folder::new("");
    folder.write("tenants/t/tenant.toml", format!("name = \"t\"\n[components]\njob = \"job.wasm\"\n{schedules}"));
    folder.copy(guests::probe(), "tenants/t/job.wasm");
    folder
}

/// Returns what the job says about a tick: how often it has run, and when it should have run, in milliseconds.
async fn tick(ticks: &mut Client, schedule: &str) -> (u64, u128) {
    let text = ticks.text().await;
    let words: Vec<&str> = text.split(' ').collect();
    assert_eq!((words.len(), words[0]), (3, schedule), "{text}");
    (words[1].parse().unwrap(), words[2].parse().unwrap())
}

#[tokio::test]
async fn a_job_runs_at_its_times_and_is_told_them() {
    let relay = Relay::serve(folder("[[schedule]]\nname = \"tick\"\nevery = \"200ms\"\nafter = \"1ms\"")).await;
    let mut ticks = relay.client("/t?channel=ticks").await;
    let (mut runs, mut at) = tick(&mut ticks, "tick").await;
    for _ in 0..4 {
        let (next_runs, next_at) = tick(&mut ticks, "tick").await;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
        // A tick is never early. On a busy machine one may be left out, but the others keep their times.
        assert!(next_at <= now, "{next_at} {now}");
        assert!(next_at > at && (next_at - at).is_multiple_of(200), "{at} {next_at}");
        assert_eq!(next_runs, runs + 1);
        (runs, at) = (next_runs, next_at);
    }
    let labels = [("tenant", "t"), ("name", "tick")];
    relay.metric_reaches("edge_relay_guest_calls_total", &labels, 4.0).await;
    assert!(relay.metric("edge_relay_guest_call_seconds_sum", &labels).await > 0.0);
}

#[tokio::test]
async fn a_job_longer_than_its_period_misses_ticks_and_never_runs_twice_at_once() {
    let limits = "[limits]\njob-call = \"350ms\"";
    let both = "[[schedule]]\nname = \"loop\"\nevery = \"100ms\"\n[[schedule]]\nname = \"tick\"\nevery = \"100ms\"";
    let relay = Relay::serve(folder(&format!("{both}\n{limits}"))).await;
    let mut ticks = relay.client("/t?channel=ticks").await;
    let labels = [("name", "loop")];
    let missed = relay.metric_reaches("edge_relay_job_missed_ticks_total", &labels, 6.0).await;
    let lost = relay.metric("edge_relay_guest_lost_total", &labels).await;
    // At least three ticks pass in each call of 350 ms, and more on a busy machine.
    assert!(lost >= 1.0 && missed >= 3.0 * (lost - 1.0), "{missed} missed, {lost} lost");
    relay.metric_reaches("edge_relay_guest_failures_total", &[("name", "loop"), ("reason", "deadline")], 1.0).await;
    // The other schedule has an instance of its own, and goes on.
    tick(&mut ticks, "tick").await;
}

#[tokio::test]
async fn a_trap_costs_its_tick_only() {
    let both = "[[schedule]]\nname = \"trap\"\nevery = \"100ms\"\n[[schedule]]\nname = \"tick\"\nevery = \"100ms\"";
    let relay = Relay::serve(folder(both)).await;
    let mut ticks = relay.client("/t?channel=ticks").await;
    let (runs, _) = tick(&mut ticks, "tick").await;
    relay.metric_reaches("edge_relay_guest_failures_total", &[("name", "trap"), ("reason", "trap")], 2.0).await;
    relay.metric_reaches("edge_relay_guest_lost_total", &[("name", "trap")], 2.0).await;
    assert_eq!(tick(&mut ticks, "tick").await.0, runs + 1);
    assert_eq!(relay.metric("edge_relay_guest_lost_total", &[("name", "tick")]).await, 0.0);
}

#[tokio::test]
async fn a_schedule_and_a_job_need_each_other() {
    let folder = folder("[[schedule]]\nname = \"a\"\nevry = \"5s\"\n[[schedule]]\nname = \"a\"\nevery = \"1ms\"");
    folder.write("tenants/u/tenant.toml", "name = \"u\"\n[components]\njob = \"job.wasm\"\n");
    folder.copy(guests::probe(), "tenants/u/job.wasm");
    folder.write("tenants/v/tenant.toml", "name = \"v\"\n[[schedule]]\nname = \"a\"\nevery = \"5s\"\n");
    folder.write(
        "tenants/w/tenant.toml",
        "name = \"w\"\n[components]\njob = \"job.wasm\"\n[[schedule]]\nname = \"a\"\nevery = \"5s\"",
    );
    folder.copy(guests::hostile(), "tenants/w/job.wasm");
    let output =
        process::run(&["serve".as_ref(), "--strict".as_ref(), "--config".as_ref(), folder.config().as_os_str()]).await;
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{errors}");
    for expected in [
        "t/tenant.toml:6: schedule.evry: unknown key; did you mean `every`?",
        "schedule.every: is missing",
        "t/tenant.toml:8: schedule.name: \"a\" is another schedule's name",
        "schedule.every: \"1ms\" is out of range",
        "u/tenant.toml:3: components.job: needs a [[schedule]]",
        "v/tenant.toml:2: schedule: needs a job",
        "w/job.wasm: components.job: has not the role of job",
    ] {
        assert!(errors.contains(expected), "{expected} is not in:\n{errors}");
    }
}
