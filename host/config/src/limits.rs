//! A tenant's `[limits]`, and `[tenant-limits]` of relay.toml, which says the most that any tenant may have of each.
//!
//! One line of the table below defines all of a limit.

use std::{
    ops::RangeInclusive,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{
    Quota,
    document::{Table, Value},
    units::{show_duration, show_size},
};

/// What a limit counts, and how it is written.
trait Unit {
    type Value: Copy + PartialOrd;

    fn read(value: &Value<'_>, range: &RangeInclusive<Self::Value>) -> Option<Self::Value>;
    fn show(value: Self::Value) -> String;
}

struct Bytes;
struct Count;
struct Time;

/// The type of a limit.
macro_rules! value {
    (Time) => {
        Duration
    };
    ($unit:ident) => {
        usize
    };
}

impl Unit for Bytes {
    type Value = usize;

    fn read(value: &Value<'_>, range: &RangeInclusive<usize>) -> Option<usize> {
        value.size(&(*range.start() as u64..=*range.end() as u64))
    }

    fn show(value: usize) -> String {
        show_size(value as u64)
    }
}

impl Unit for Count {
    type Value = usize;

    fn read(value: &Value<'_>, range: &RangeInclusive<usize>) -> Option<usize> {
        value.count(&(*range.start() as u64..=*range.end() as u64))
    }

    fn show(value: usize) -> String {
        value.to_string()
    }
}

impl Unit for Time {
    type Value = Duration;

    fn read(value: &Value<'_>, range: &RangeInclusive<Duration>) -> Option<Duration> {
        value.duration(range)
    }

    fn show(value: Duration) -> String {
        format!("{:?}", show_duration(value))
    }
}

/// For each limit: what it is, its key in the manifest, its unit, its default and its range.
macro_rules! limits {
    ($($(#[$doc:meta])* $field:ident $key:literal $unit:ident: $default:expr, $least:expr => $most:expr;)*) => {
        /// `[limits]` of a tenant.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct TenantLimits {
            $($(#[$doc])* pub $field: value!($unit),)*
        }

        impl Default for TenantLimits {
            fn default() -> Self {
                Self { $($field: $default,)* }
            }
        }

        impl TenantLimits {
            /// The top of every range.
            pub const MOST: Self = Self { $($field: $most,)* };

            #[cfg(test)]
            const COUNT: usize = [$($key),*].len();

            pub(super) fn read(mut table: Table<'_>, caps: &TenantCaps) -> Self {
                let limits = Self {
                    $($field: capped::<$unit>(
                        &mut table, $key, &($least..=$most), $default, caps.most.$field, &caps.file,
                    ),)*
                };
                table.finish();
                limits
            }
        }

        impl TenantCaps {
            /// `[tenant-limits]` of the relay.toml at `file`.
            pub(super) fn read(mut table: Table<'_>, file: &Path) -> Self {
                let most = TenantLimits {
                    $($field: table.take($key).and_then(|value| $unit::read(&value, &($least..=$most))).unwrap_or($most),)*
                };
                table.finish();
                Self { file: file.into(), most }
            }
        }
    };
}

limits! {
    /// Most upstreams. Each is a connection to a partner, and a file of the process.
    upstreams "upstreams" Count: 32, 1 => 1000;
    /// Most bytes of linear memory in one instance. The range is from what a small guest starts with to all that 32
    /// bits can address.
    memory "memory" Bytes: 64 << 20, 1 << 20 => 4 << 30;
    /// Most bytes of the host's memory that the tenant has in all: its instances, code, logs, queues, unfinished
    /// messages and state. The range is from one small instance to more memory than most hosts have.
    memory_total "memory-total" Bytes: 1 << 30, 16 << 20 => 1 << 40;
    /// Most instances of all components at once; each may have as much memory as `memory` says.
    instances "instances" Count: 100, 1 => 10_000;
    /// How long an instance may be idle before it is dropped. Below the range instances would be made all the time;
    /// above it none would ever be idle.
    instance_idle "instance-idle" Time: Duration::from_secs(60), Duration::from_millis(100) => Duration::from_secs(24 * 3600);
    /// Longest call of the filter, host calls included. The engine's clock ticks every millisecond. Above the range a
    /// guest that hangs would pass for a busy one.
    filter_call "filter-call" Time: Duration::from_secs(1), Duration::from_millis(10) => Duration::from_secs(60);
    /// Most bytes of one upstream's messages that wait for the filter. A single larger message may wait alone. Below
    /// the range hardly a burst fits; the top is more than a filter catches up with.
    filter_queue "filter-queue" Bytes: 64 << 20, 64 << 10 => 4 << 30;
    /// Longest call of the dial component, host calls included. It may ask other servers for a token.
    dial_call "dial-call" Time: Duration::from_secs(10), Duration::from_millis(10) => Duration::from_secs(60);
    /// Longest call of the job, host calls included. A job may wait for other servers, but not for ever.
    job_call "job-call" Time: Duration::from_secs(10), Duration::from_millis(10) => Duration::from_secs(600);
    /// Longest call of the client handler, host calls included.
    client_call "client-call" Time: Duration::from_secs(1), Duration::from_millis(10) => Duration::from_secs(60);
    /// Most instances of the client handler.
    client_instances "client-instances" Count: 8, 1 => 1000;
    /// Largest message accepted from a client, in bytes. The least is the longest control frame's payload (RFC 6455,
    /// 5.5).
    client_message "client-message" Bytes: 64 << 10, 125 => 16 << 20;
    /// Most messages of one client that wait for the handler.
    client_queue "client-queue" Count: 128, 1 => 100_000;
    /// Most bytes of all clients' messages that wait for the handler and replies that wait for sockets.
    client_backlog "client-backlog" Bytes: 64 << 20, 64 << 10 => 64 << 30;
    /// Most messages or commands that one client may send per second; as many may come at once.
    client_messages_per_second "client-messages-per-second" Count: 1000, 1 => 1_000_000;
    /// Most bytes of these messages per second; as many may come at once.
    client_bytes_per_second "client-bytes-per-second" Bytes: 4 << 20, 1 << 10 => 1 << 30;
    /// Most clients at once in their handshake. `handshakes` of relay.toml limits all tenants together.
    handshakes "handshakes" Count: 4096, 1 => 1_000_000;
    /// Most requests at once that read channels over HTTP. The host answers 64.
    channel_reads "channel-reads" Count: 64, 1 => 64;
    /// Most clients at once. By default as many as the host takes.
    clients "clients" Count: 16_000_000, 1 => 16_000_000;
    /// Most clients at once from one address, which in IPv6 is one /64. At the top of the range nobody is counted.
    clients_per_address "clients-per-address" Count: 16_000_000, 1 => 16_000_000;
    /// Longest call of the API, from the start of a request to the end of its answer. A client may be slow with a body,
    /// but not for ever.
    api_call "api-call" Time: Duration::from_secs(30), Duration::from_millis(10) => Duration::from_secs(3600);
    /// Most instances of the API.
    api_instances "api-instances" Count: 32, 1 => 1000;
    /// Most requests that wait for an instance.
    api_queue "api-queue" Count: 1024, 1 => 1_000_000;
    /// Largest body of a request, in bytes.
    api_body "api-body" Bytes: 1 << 20, 0 => 4 << 30;
    /// Most channels that exist at once, published to or subscribed to. Clients may create half of them.
    channels "channels" Count: 10_000, 2 => 1_000_000;
    /// Largest payload that a component publishes, in bytes. The default is that of an upstream's message.
    publication "publication" Bytes: 16 << 20, 1 => 64 << 20;
    /// Most publications of all components, and messages of upstreams without a filter, per second; as many may come at
    /// once. More than a hundred times what one core filters would be no limit.
    publications_per_second "publications-per-second" Count: 1_000_000, 1 => 100_000_000;
    /// Most messages that the tenant's clients and upstreams send per second, all together; as many may come at once.
    /// More than one core can cut out of frames would be no limit.
    messages_per_second "messages-per-second" Count: 1_000_000, 1 => 100_000_000;
    /// Most pings, pongs and fragments that they send per second. Clients answer a ping in `ping-interval` each.
    control_frames_per_second "control-frames-per-second" Count: 100_000, 1 => 100_000_000;
    /// Most bytes that the tenant's upstreams, clients, requests and answers bring per second. By default about what a
    /// network of ten gigabits carries; the top is more than any has.
    bytes_in_per_second "bytes-in-per-second" Bytes: 1 << 30, 1 << 10 => 1 << 40;
    /// Most bytes that are sent for the tenant per second, to clients above all. Feeds go to many.
    bytes_out_per_second "bytes-out-per-second" Bytes: 16 << 30, 1 << 10 => 1 << 40;
    /// Most bytes of all channels' logs together. The range is from one log of the least size to more memory than most
    /// hosts have.
    logs "logs" Bytes: 256 << 20, 64 << 10 => 64 << 30;
    /// Most bytes of all keys and values that the components keep.
    state "state" Bytes: 16 << 20, 4 << 10 => 1 << 30;
    /// Most keys that the components keep.
    state_keys "state-keys" Count: 100_000, 1 => 10_000_000;
    /// Most bytes of the tenant's records in the host's own file. `[store] size` limits all tenants together.
    records "records" Bytes: 256 << 20, 4 << 10 => 1 << 44;
    /// Most HTTP requests of components under way at once.
    outbound_requests "outbound-requests" Count: 64, 1 => 10_000;
    /// Most HTTP requests that components may begin per second; as many may begin at once.
    outbound_requests_per_second "outbound-requests-per-second" Count: 100, 1 => 1_000_000;
    /// Most lines per second that components write to the log, and that the host writes about their faults; as many may
    /// come at once.
    log_lines_per_second "log-lines-per-second" Count: 1000, 1 => 1_000_000;
}

impl TenantLimits {
    pub fn quota(&self) -> Quota {
        Quota { keys: self.state_keys, bytes: self.state }
    }
}

/// The most that any tenant may have of each limit.
#[derive(Clone, Debug)]
pub struct TenantCaps {
    /// The relay.toml that says so.
    file: PathBuf,
    most: TenantLimits,
}

impl Default for TenantCaps {
    /// The top of every range.
    fn default() -> Self {
        Self { file: PathBuf::new(), most: TenantLimits::MOST }
    }
}

/// Reads a limit, which must be within its range and its cap. If it is not written, it is its default, or its cap if
/// that is less.
fn capped<U: Unit>(
    table: &mut Table<'_>,
    key: &'static str,
    range: &RangeInclusive<U::Value>,
    default: U::Value,
    cap: U::Value,
    file: &Path,
) -> U::Value {
    let unwritten = if default > cap { cap } else { default };
    let Some(value) = table.take(key) else { return unwritten };
    let Some(wanted) = U::read(&value, range) else { return unwritten };
    if wanted > cap {
        let (wanted, cap, file) = (U::show(wanted), U::show(cap), file.display());
        value.problem(format!(
            "{wanted} is more than a tenant may have here: {file} says tenant-limits.{key} = {cap}; write at most that"
        ));
        return unwritten;
    }
    wanted
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::Document;

    /// What a tenant gets with this `[limits]`, under this `[tenant-limits]`.
    fn limits(caps: &str, limits: &str) -> Result<TenantLimits, String> {
        let (relay, manifest) = (Path::new("etc/relay.toml"), Path::new("t/tenant.toml"));
        let document = Document::new(relay, caps);
        let caps = document.parse().ok().map(|root| TenantCaps::read(root, relay)).unwrap_or_default();
        document.conclude(Some(())).map_err(|problems| problems.to_string())?;
        let document = Document::new(manifest, limits);
        let limits = document.parse().ok().map(|root| TenantLimits::read(root, &caps));
        document.conclude(limits).map_err(|problems| problems.to_string())
    }

    #[test]
    fn every_default_is_within_its_range_and_is_what_a_tenant_gets_that_says_nothing() {
        assert_eq!(limits("", ""), Ok(TenantLimits::default()));
    }

    #[test]
    fn the_document_has_every_limit_with_its_default() {
        let document = include_str!("../../../docs/CONFIGURATION.md");
        let block = document.split("\n```").find_map(|block| block.split_once("[limits]\nmemory = ")).unwrap().1;
        let text = format!("memory = {block}");
        assert_eq!(limits("", &text), Ok(TenantLimits::default()));
        // The lines that are commented out are no defaults, but they are limits.
        let all = text.replace("\n# ", "\n");
        limits("", &all).unwrap();
        assert_eq!(all.lines().count(), TenantLimits::COUNT, "{all}");
    }

    #[test]
    fn under_a_cap_a_tenant_gets_what_it_asks_for_and_else_the_smaller_of_default_and_cap() {
        let caps = "memory = '32MiB'\nfilter-call = '20s'\nclients = 100\n";
        let TenantLimits { memory, filter_call, clients, .. } = limits(caps, "").unwrap();
        assert_eq!((memory, filter_call, clients), (32 << 20, Duration::from_secs(1), 100));
        let wanted = "memory = '32MiB'\nfilter-call = '20s'\nclients = 7\n";
        let TenantLimits { memory, filter_call, clients, .. } = limits(caps, wanted).unwrap();
        assert_eq!((memory, filter_call, clients), (32 << 20, Duration::from_secs(20), 7));
    }

    #[test]
    fn over_a_cap_both_files_and_values_are_named() {
        let caps = "memory = '32MiB'\nfilter-call = '2s'\nclients = 100\n";
        let wanted = "memory = '33MiB'\nfilter-call = '2.1s'\nclients = 101\nchannels = 5\n";
        let more = |key: &str, wanted: &str, cap: &str| {
            let rule = format!("etc/relay.toml says tenant-limits.{key} = {cap}; write at most that");
            format!("{key}: {wanted} is more than a tenant may have here: {rule}")
        };
        let expected = [
            format!("t/tenant.toml:1: {}", more("memory", "33MiB", "32MiB")),
            format!("t/tenant.toml:2: {}", more("filter-call", "\"2100ms\"", "\"2s\"")),
            format!("t/tenant.toml:3: {}", more("clients", "101", "100")),
        ];
        assert_eq!(limits(caps, wanted), Err(expected.join("\n")));
    }

    #[test]
    fn caps_have_the_keys_units_and_ranges_of_limits() {
        let found = limits("memory = 'much'\nclients = 0\nchanels = 5\n", "").unwrap_err();
        let expected = [
            "etc/relay.toml:1: memory: \"much\" is not a size; write for example \"64KiB\", \"16MiB\" or a number of bytes",
            "etc/relay.toml:2: clients: 0 is out of range; write 1 to 16000000",
            "etc/relay.toml:3: chanels: unknown key; did you mean `channels`?",
        ];
        assert_eq!(found, expected.join("\n"));
    }
}
