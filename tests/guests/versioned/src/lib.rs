//! A filter that adds its version to each message: that of its code, that of its instance and that of its settings, as
//! `MESSAGE code-0000 0000 SETTING`. Tests make other versions of the code by writing over the digits.
#![allow(unsafe_code)] // Only what `export!` expands to.

use std::{cell::OnceCell, hint::black_box};

use edge_relay::tenant::types::{Connection, Frame, Output, Publication};
use exports::edge_relay::tenant::filter::Guest;
use wasi::config::store;

wit_bindgen::generate!({
    path: "../../../wit/edge-relay-tenant@0.1.0",
    world: "filter-component",
    generate_all,
});

static CODE: &str = "code-0000";

thread_local! {
    /// The digits that this instance saw first.
    static FIRST: OnceCell<String> = const { OnceCell::new() };
}

struct Versioned;
export!(Versioned);

impl Guest for Versioned {
    fn on_open(_upstream: String, _connection: Connection) -> Vec<Frame> {
        Vec::new()
    }

    fn on_frames(_upstream: String, _connection: u64, frames: Vec<Frame>) -> Vec<Output> {
        let code = *black_box(&CODE);
        let digits = code.trim_start_matches("code-");
        let first = FIRST.with(|first| first.get_or_init(|| digits.to_owned()).clone());
        let setting = store::get("version").ok().flatten().unwrap_or_default();
        let publish = |frame| match frame {
            Frame::Text(text) => publication(format!("{text} {code} {first} {setting}")),
            Frame::Binary(_) => publication("not text".to_owned()),
        };
        frames.into_iter().map(publish).map(Output::Publish).collect()
    }

    fn on_close(_upstream: String, _connection: u64, _reason: String) -> Vec<Output> {
        Vec::new()
    }
}

fn publication(text: String) -> Publication {
    Publication { channel: "out".to_owned(), key: None, data: Frame::Text(text), remove: false, id: None, at: None }
}
