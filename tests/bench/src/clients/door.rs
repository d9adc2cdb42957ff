//! A relay's doors, and how a client comes in by each.

use std::str::FromStr;

use super::centrifuge::{self, Command};
use crate::failure::{Context, Failure};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Door {
    #[default]
    WebSocket,
    /// Server-sent events.
    Events,
    /// The Centrifuge protocol in JSON.
    Centrifuge,
}

impl Door {
    /// In the order of the tables.
    pub const ALL: [Self; 3] = [Self::WebSocket, Self::Events, Self::Centrifuge];

    pub fn name(self) -> &'static str {
        match self {
            Self::WebSocket => "websocket",
            Self::Events => "sse",
            Self::Centrifuge => "centrifuge",
        }
    }

    /// Where the door is, below the tenant's own path, which ends with a slash.
    pub fn path(self) -> &'static str {
        match self {
            Self::WebSocket => "",
            Self::Events => "sse",
            Self::Centrifuge => "connection/websocket",
        }
    }

    /// What a client has to say, and be answered, after the answer to its request.
    pub fn commands(self) -> &'static [Command] {
        match self {
            Self::WebSocket | Self::Events => &[],
            Self::Centrifuge => &centrifuge::COMMANDS,
        }
    }
}

impl FromStr for Door {
    type Err = Failure;

    fn from_str(name: &str) -> Result<Self, Failure> {
        let door = Self::ALL.into_iter().find(|door| door.name() == name);
        door.context("no such door")
    }
}
