//! The parts of a hostile tenant.

use super::bombs::{self, ON_CONNECT, ON_FRAMES, ON_SCHEDULE, bomb};
use crate::{
    failure::Failure,
    run::{host::Folder, partner::Partner, place::Place},
};

pub const TENANT: &str = "hostile";
/// An API that does what it is asked to do.
const API: &str = "tests/guests/api";
const FILE: &str = "hostile.wasm";
/// The time limit of a hostile call, short so that there are many calls.
const CALL: &str = "200ms";
const SCHEDULES: usize = 4;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Attack {
    LoopInFilter,
    LoopInHandler,
    LoopInApi,
    LoopInJob,
    Memory,
    Traps,
    Publications,
    Log,
    State,
}

/// What makes the hostile code run.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Messages,
    Clients,
    Requests,
    Schedules,
}

impl Attack {
    pub const ALL: [Self; 9] = [
        Self::LoopInFilter,
        Self::LoopInHandler,
        Self::LoopInApi,
        Self::LoopInJob,
        Self::Memory,
        Self::Traps,
        Self::Publications,
        Self::Log,
        Self::State,
    ];

    pub fn title(self) -> &'static str {
        match self {
            Self::LoopInFilter => "loops in its filter",
            Self::LoopInHandler => "loops in its client handler, 8 at once",
            Self::LoopInApi => "loops in its API, 8 at once",
            Self::LoopInJob => "loops in its job, 4 schedules",
            Self::Memory => "fills memories of 64 MiB, 8 at once",
            Self::Traps => "traps for each of 12 clients, who come again",
            Self::Publications => "publishes a million messages a call",
            Self::Log => "writes to the log without end",
            Self::State => "writes to the state without end",
        }
    }

    pub fn way(self) -> Way {
        match self {
            Self::LoopInFilter | Self::Publications | Self::Log | Self::State => Way::Messages,
            Self::LoopInHandler | Self::Memory | Self::Traps => Way::Clients,
            Self::LoopInApi => Way::Requests,
            Self::LoopInJob => Way::Schedules,
        }
    }

    /// Writes the tenant, which does not attack yet.
    pub fn write(self, folder: &Folder, partner: &Partner, place: &Place) -> Result<(), Failure> {
        match self.code() {
            Some(code) => folder.write(TENANT, FILE, &code)?,
            None => folder.link(TENANT, FILE, &place.build(API)?)?,
        }
        folder.manifest(TENANT, &self.manifest(partner, false))
    }

    /// The hostile code. `None`: it is the API, which is not written by hand.
    fn code(self) -> Option<Vec<u8>> {
        let (function, body) = match self {
            Self::LoopInFilter => (ON_FRAMES, bombs::LOOP),
            Self::LoopInHandler => (ON_CONNECT, bombs::LOOP),
            Self::LoopInApi => return None,
            Self::LoopInJob => (ON_SCHEDULE, bombs::LOOP),
            Self::Memory => (ON_CONNECT, bombs::MEMORY),
            Self::Traps => (ON_CONNECT, bombs::TRAP),
            Self::Publications => (ON_FRAMES, bombs::MANY_PUBLICATIONS),
            Self::Log => (ON_FRAMES, bombs::LOG),
            Self::State => (ON_FRAMES, bombs::STATE),
        };
        Some(bomb(&[function], body))
    }

    /// The tenant's manifest. While it attacks, its schedules are due from the moment the manifest comes, otherwise
    /// never.
    pub fn manifest(self, partner: &Partner, attacks: bool) -> String {
        let role = match self.way() {
            Way::Messages => "filter",
            Way::Clients => "client",
            Way::Requests => "api",
            Way::Schedules => "job",
        };
        let after = if attacks { "1ms" } else { "1h" };
        let schedule = |nth| format!("[[schedule]]\nname = \"s{nth}\"\nevery = \"100ms\"\nafter = \"{after}\"\n");
        let schedules = if self.way() == Way::Schedules { SCHEDULES } else { 0 };
        format!(
            "name = \"{TENANT}\"\n[[upstream]]\nname = \"feed\"\nurl = \"ws://{}/\"\n[components]\n{role} = \"{FILE}\"\n\
             {}[settings]\nattacks = \"{attacks}\"\n[limits]\n{role}-call = \"{CALL}\"\napi-instances = 8\n",
            partner.address,
            (0..schedules).map(schedule).collect::<String>()
        )
    }
}
