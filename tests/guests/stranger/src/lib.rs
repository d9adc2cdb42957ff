//! A filter that imports `acme:unknown/thing@1.0.0`, which the relay does not provide.
#![allow(unsafe_code)] // Only what `export!` expands to.

use edge_relay::tenant::types::{Connection, Frame, Output};
use exports::edge_relay::tenant::filter::Guest;

wit_bindgen::generate!({
    path: "../../../wit/edge-relay-tenant@0.1.0",
    inline: "
        package edge-relay-tests:stranger;

        package acme:unknown@1.0.0 {
            interface thing {
                ping: func();
            }
        }

        world stranger {
            include edge-relay:tenant/filter-component@0.1.0;
            import acme:unknown/thing@1.0.0;
        }
    ",
    world: "edge-relay-tests:stranger/stranger",
    generate_all,
});

struct Stranger;
export!(Stranger);

impl Guest for Stranger {
    fn on_open(_upstream: String, _connection: Connection) -> Vec<Frame> {
        acme::unknown::thing::ping();
        Vec::new()
    }

    fn on_frames(_upstream: String, _connection: u64, _frames: Vec<Frame>) -> Vec<Output> {
        Vec::new()
    }

    fn on_close(_upstream: String, _connection: u64, _reason: String) -> Vec<Output> {
        Vec::new()
    }
}
