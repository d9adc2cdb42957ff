//! The roles that a component may have.

use std::fmt;

/// What a component is to the host. One component may have several roles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RoleKind {
    /// Makes credentials for each connection to a partner.
    Dial,
    /// Turns an upstream's messages into publications.
    Filter,
    /// Lets clients in and answers their messages.
    Client,
    /// Answers HTTP requests.
    Api,
    /// Runs on a schedule.
    Job,
}

impl RoleKind {
    pub const ALL: [Self; 5] = [Self::Dial, Self::Filter, Self::Client, Self::Api, Self::Job];

    /// The role's key in the manifest's `[components]`, and the value of the metrics' label `role`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Dial => "dial",
            Self::Filter => "filter",
            Self::Client => "client",
            Self::Api => "api",
            Self::Job => "job",
        }
    }

    /// The interface that a component of this role exports. For an API the patch version is left out: any will do.
    pub fn interface(self) -> &'static str {
        match self {
            Self::Dial => "edge-relay:tenant/dialer@0.1.0",
            Self::Filter => "edge-relay:tenant/filter@0.1.0",
            Self::Client => "edge-relay:tenant/client-handler@0.1.0",
            Self::Api => "wasi:http/incoming-handler@0.2.",
            Self::Job => "edge-relay:tenant/job@0.1.0",
        }
    }

    /// The manifest's key of the limit on how long a call may take.
    pub fn call_limit(self) -> &'static str {
        match self {
            Self::Dial => "dial-call",
            Self::Filter => "filter-call",
            Self::Client => "client-call",
            Self::Api => "api-call",
            Self::Job => "job-call",
        }
    }
}

impl fmt::Display for RoleKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
