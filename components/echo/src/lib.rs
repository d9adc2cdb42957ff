//! The smallest client handler: it lets everybody in and sends back every message, text as text and binary as binary.
#![allow(unsafe_code)] // Only what `export!` expands to.

use edge_relay::tenant::types::Frame;
use exports::edge_relay::tenant::client_handler::{Acceptance, Action, Client, Guest, Kind, Refusal, Request};

wit_bindgen::generate!({
    path: "../../wit/edge-relay-tenant@0.1.0",
    world: "client-component",
    generate_all,
});

pub struct Echo;
// Only for hosts: a linker for this machine would refuse the names.
#[cfg(target_arch = "wasm32")]
export!(Echo);

impl Guest for Echo {
    fn on_connect(_id: String, _request: Request) -> Result<Acceptance, Refusal> {
        Ok(Acceptance { identity: None, channels: None, subprotocol: None })
    }

    fn on_subscribe(_client: Client, _channel: String, _data: Option<String>) -> Result<(), Refusal> {
        Ok(())
    }

    fn on_message(_client: Client, _kind: Kind, frame: Frame) -> Vec<Action> {
        vec![Action::Reply(frame)]
    }

    fn on_disconnect(_client: Client, _reason: String) {}
}
