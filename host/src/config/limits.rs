//! A tenant's `[limits]`.

use std::{ops::RangeInclusive, time::Duration};

use super::{TenantLimits, walk::Table};
use crate::state::Quota;

/// From what a small guest starts with to all that 32 bits address.
const MEMORY: RangeInclusive<u64> = 1 << 20..=4 << 30;

/// The engine's clock ticks every millisecond; over the most a busy guest looks like a hung one.
const FILTER_CALL: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_secs(60);

/// As the filter's.
const CLIENT_CALL: RangeInclusive<Duration> = FILTER_CALL;

/// A client may take its time with a body, but not for ever.
const API_CALL: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_secs(3600);

/// Each may have as much memory as `memory` says.
const INSTANCES: RangeInclusive<u64> = 1..=1000;
/// Under the least instances are made all the time; over the most nothing is ever idle.
const INSTANCE_IDLE: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(24 * 3600);
const CLIENT_QUEUE: RangeInclusive<u64> = 1..=100_000;
const CLIENT_BACKLOG: RangeInclusive<u64> = 64 << 10..=64 << 30;
const API_QUEUE: RangeInclusive<u64> = 1..=1_000_000;
const API_BODY: RangeInclusive<u64> = 0..=4 << 30;

/// A job may wait for others, but not for ever.
const JOB_CALL: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_secs(600);

/// The least is the longest control frame's payload (RFC 6455, 5.5).
const CLIENT_MESSAGE: RangeInclusive<u64> = 125..=16 << 20;
/// From one log of the least size to more than most hosts have.
const LOGS: RangeInclusive<u64> = 64 << 10..=64 << 30;
/// All tenants together have what `[store] size` says.
const RECORDS: RangeInclusive<u64> = 4 << 10..=1 << 44;
const STATE: RangeInclusive<u64> = 4 << 10..=1 << 30;
const STATE_KEYS: RangeInclusive<u64> = 1..=10_000_000;

pub(super) fn limits(mut table: Table<'_>) -> TenantLimits {
    let default = TenantLimits::default();
    let limits = TenantLimits {
        memory: table.size("memory", &MEMORY).unwrap_or(default.memory),
        filter_call: table.duration("filter-call", &FILTER_CALL).unwrap_or(default.filter_call),
        job_call: table.duration("job-call", &JOB_CALL).unwrap_or(default.job_call),
        client_call: table.duration("client-call", &CLIENT_CALL).unwrap_or(default.client_call),
        client_instances: table.count("client-instances", &INSTANCES).unwrap_or(default.client_instances),
        client_message: table.size("client-message", &CLIENT_MESSAGE).unwrap_or(default.client_message),
        client_queue: table.count("client-queue", &CLIENT_QUEUE).unwrap_or(default.client_queue),
        client_backlog: table.size("client-backlog", &CLIENT_BACKLOG).unwrap_or(default.client_backlog),
        api_call: table.duration("api-call", &API_CALL).unwrap_or(default.api_call),
        api_instances: table.count("api-instances", &INSTANCES).unwrap_or(default.api_instances),
        api_queue: table.count("api-queue", &API_QUEUE).unwrap_or(default.api_queue),
        api_body: table.size("api-body", &API_BODY).unwrap_or(default.api_body),
        instance_idle: table.duration("instance-idle", &INSTANCE_IDLE).unwrap_or(default.instance_idle),
        logs: table.size("logs", &LOGS).unwrap_or(default.logs),
        state: Quota {
            keys: table.count("state-keys", &STATE_KEYS).unwrap_or(default.state.keys),
            bytes: table.size("state", &STATE).unwrap_or(default.state.bytes),
        },
        records: table.size("records", &RECORDS).map_or(default.records, |bytes| bytes as u64),
    };
    table.finish();
    limits
}
