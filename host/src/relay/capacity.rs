//! How many connections and threads this process can have.

use config::HostLimits;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// File descriptors kept for what is neither a client nor a handshake: upstreams, listeners, epolls, files.
const RESERVED_FILES: usize = 256;

/// How many connections of each kind there may be at once.
#[derive(Debug, PartialEq, Eq)]
pub struct Capacity {
    pub clients: usize,
    pub handshakes: usize,
    pub api_connections: usize,
}

impl Capacity {
    /// Raises the limit on open files as far as the system allows, and fits the configured limits into it.
    pub fn of_process(limits: &HostLimits) -> Self {
        Self::fit(limits, raise_file_limit())
    }

    /// Lowers the limits to what this many open files allow.
    fn fit(limits: &HostLimits, files: usize) -> Self {
        // Small shares, so that clients have some even when there are few files.
        let handshakes = limits.handshakes.min(files / 4);
        let api_connections = limits.api_connections.min(files / 8);
        let room = files.saturating_sub(handshakes + api_connections + RESERVED_FILES.min(files / 4));
        let clients = limits.clients.unwrap_or(room).min(room);
        let lowered = handshakes < limits.handshakes
            || api_connections < limits.api_connections
            || limits.clients.is_some_and(|wanted| clients < wanted);
        if lowered {
            tracing::warn!(
                files,
                clients,
                handshakes,
                api_connections,
                "limits lowered: the process may not have more files open (ulimit -n)"
            );
        }
        Self { clients, handshakes, api_connections }
    }
}

/// How many threads write to clients. One core is left to upstreams, handshakes and guests.
pub fn shard_count() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).saturating_sub(1).max(1)
}

/// Lets the process have as many files as the system allows. Returns how many.
fn raise_file_limit() -> usize {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    let files = if raised.is_ok() { maximum } else { current };
    files.and_then(|files| usize::try_from(files).ok()).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_fit_the_files_there_are() {
        let fit = |clients, files| {
            let Capacity { clients, handshakes, api_connections } =
                Capacity::fit(&HostLimits { clients, ..HostLimits::default() }, files);
            (clients, handshakes, api_connections)
        };
        assert_eq!(fit(None, 20_000), (20_000 - 4096 - 2048 - 256, 4096, 2048));
        assert_eq!(fit(Some(100), 20_000), (100, 4096, 2048));
        assert_eq!(fit(None, 1024), (384, 256, 128));
        assert_eq!(fit(Some(5000), 300), (113, 75, 37));
    }
}
