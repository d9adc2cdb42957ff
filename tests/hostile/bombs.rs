//! Bombs: components that no compiler would make, written in WebAssembly's text format. Each has the roles filter,
//! client handler and job.
//!
//! A bomb gets the bodies of some functions, and its other functions are harmless. Its filter publishes nothing, its
//! handler lets every client in and answers nothing, and its job does nothing. By the component model's canonical ABI,
//! each of these functions can return a pointer to zeros, which are at address 0.

use std::path::Path;

use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

const WIT: [&str; 2] = ["wit/edge-relay-tenant@0.1.0", "tests/guests/bombs/wit"];

pub const ON_OPEN: &str = "edge-relay:tenant/filter@0.1.0#on-open";
pub const ON_FRAMES: &str = "edge-relay:tenant/filter@0.1.0#on-frames";
pub const ON_CLOSE: &str = "edge-relay:tenant/filter@0.1.0#on-close";
pub const ON_CONNECT: &str = "edge-relay:tenant/client-handler@0.1.0#on-connect";
pub const ON_SUBSCRIBE: &str = "edge-relay:tenant/client-handler@0.1.0#on-subscribe";
pub const ON_MESSAGE: &str = "edge-relay:tenant/client-handler@0.1.0#on-message";
pub const ON_DISCONNECT: &str = "edge-relay:tenant/client-handler@0.1.0#on-disconnect";
pub const ON_SCHEDULE: &str = "edge-relay:tenant/job@0.1.0#on-schedule";

/// The flat type of each exported function.
const FUNCTIONS: [(&str, &str); 8] = [
    (ON_OPEN, "(param i32 i32 i64 i32) (result i32)"),
    (ON_FRAMES, "(param i32 i32 i64 i32 i32) (result i32)"),
    (ON_CLOSE, "(param i32 i32 i64 i32 i32) (result i32)"),
    (ON_CONNECT, "(param i32) (result i32)"),
    (ON_SUBSCRIBE, "(param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32)"),
    (ON_MESSAGE, "(param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32)"),
    (ON_DISCONNECT, "(param i32 i32 i32 i32 i32 i32 i32)"),
    (ON_SCHEDULE, "(param i32 i32 i64) (result i32)"),
];

pub const LOOP: &str = "(loop $on (br $on)) unreachable";
pub const TRAP: &str = "unreachable";
/// Takes memory, one MiB at a time, and writes to all of it.
pub const MEMORY: &str = "(local $at i32)
    (loop $on
        (local.set $at (memory.grow (i32.const 16)))
        (if (i32.ne (local.get $at) (i32.const -1)) (then
            (memory.fill (i32.shl (local.get $at) (i32.const 16)) (i32.const 1) (i32.const 0x100000))
            (br $on))))
    unreachable";
pub const TABLE: &str =
    "(loop $on (br_if $on (i32.ne (table.grow $table (ref.null func) (i32.const 1000)) (i32.const -1))))
    unreachable";
pub const STACK: &str = "(call $deeper (i64.const 0)) unreachable";
/// Waits an hour in a call to the host.
pub const WAIT: &str = "(call $block (call $subscribe (i64.const 3600000000000))) unreachable";
/// Waits a millisecond in a call to the host, again and again.
pub const NAP: &str = "(loop $on (call $block (call $subscribe (i64.const 1000000))) (br $on)) unreachable";
/// Takes handles and gives none back.
pub const HANDLES: &str = "(loop $on (drop (call $subscribe (i64.const 3600000000000))) (br $on)) unreachable";
/// Logs the same line for ever.
pub const LOG: &str = "(loop $on (call $log (i32.const 2) (i32.const 64) (i32.const 4) (i32.const 64) (i32.const 7)) (br $on)) unreachable";
/// Stores the same KiB under keys that count up.
pub const STATE: &str = "(local $bucket i32)
    (call $open (i32.const 64) (i32.const 4) (i32.const 32))
    (local.set $bucket (i32.load (i32.const 36)))
    (loop $on
        (call $count)
        (call $set (local.get $bucket) (i32.const 128) (i32.const 8) (i32.const 1024) (i32.const 1024) (i32.const 32))
        (br $on))
    unreachable";
/// Returns half a million publications without a payload on channel `flood`.
pub const MANY_PUBLICATIONS: &str = "(i32.store (i32.const 40) (call $outputs (i32.const 500000) (i32.const 0)))
    (i32.store (i32.const 44) (i32.const 500000))
    (i32.const 40)";
/// Publishes half a million such publications through the import, again and again.
pub const MANY_PUBLISHED: &str = "(local $made i32)
    (local.set $made (call $publications (i32.const 500000) (i32.const 0)))
    (loop $on (call $publish (local.get $made) (i32.const 500000) (i32.const 32)) (br $on))
    unreachable";
/// Returns a thousand publications that share one payload of a MiB.
pub const SHARED_PAYLOAD: &str = "(drop (memory.grow (i32.const 32)))
    (i32.store (i32.const 40) (call $outputs (i32.const 1000) (i32.const 0x100000)))
    (i32.store (i32.const 44) (i32.const 1000))
    (i32.const 40)";
/// Returns a publication of a GiB, which exists if the memory may be that large.
pub const HUGE_PAYLOAD: &str = "(drop (memory.grow (i32.const 16384)))
    (i32.store (i32.const 40) (call $outputs (i32.const 1) (i32.const 0x40000000)))
    (i32.store (i32.const 44) (i32.const 1))
    (i32.const 40)";
/// Returns a publication of text that is not UTF-8.
pub const BAD_TEXT: &str = "(i32.store (i32.const 40) (call $outputs (i32.const 1) (i32.const 0)))
    (i32.store (i32.const 44) (i32.const 1))
    (i32.store (i32.add (i32.load (i32.const 40)) (i32.const 32)) (i32.const 72))
    (i32.store (i32.add (i32.load (i32.const 40)) (i32.const 36)) (i32.const 2))
    (i32.const 40)";

/// A component in which these functions have this body. The others are harmless.
pub fn bomb(functions: &[&str], body: &str) -> Vec<u8> {
    component(functions, body, "")
}

/// A component in which the start function has this body.
pub fn bomb_at_start(body: &str) -> Vec<u8> {
    component(&[], "", &format!("(func $start {body}) (start $start)"))
}

fn component(functions: &[&str], body: &str, more: &str) -> Vec<u8> {
    let functions: String = FUNCTIONS
        .iter()
        .map(|(name, kind)| {
            let (bad, returns) = (functions.contains(name), kind.ends_with("(result i32)"));
            let well = if returns { "(i32.const 0)" } else { "" };
            let drops = if bad && !returns && body.ends_with("(i32.const 40)") { "drop" } else { "" };
            format!("(func (export \"{name}\") {kind} {}{drops})\n", if bad { body } else { well })
        })
        .collect();
    let module = format!(
        r#"(module
        (import "wasi:clocks/monotonic-clock@0.2.6" "subscribe-duration" (func $subscribe (param i64) (result i32)))
        (import "wasi:io/poll@0.2.6" "[method]pollable.block" (func $block (param i32)))
        (import "wasi:logging/logging@0.1.0-draft" "log" (func $log (param i32 i32 i32 i32 i32)))
        (import "wasi:keyvalue/store@0.2.0-draft" "open" (func $open (param i32 i32 i32)))
        (import "wasi:keyvalue/store@0.2.0-draft" "[method]bucket.set" (func $set (param i32 i32 i32 i32 i32 i32)))
        (import "edge-relay:tenant/channels@0.1.0" "publish" (func $publish (param i32 i32 i32)))
        (memory (export "memory") 16)
        (table $table 1 funcref)
        (data (i32.const 64) "bombast \ff\fe")
        (data (i32.const 128) "00000000")
        (data (i32.const 144) "flood")
        (global $heap (mut i32) (i32.const 4096))
        ;; The heap starts again when it is full: what the host wrote is not kept for long.
        (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32)
            (local $at i32)
            (if (i32.gt_u (i32.add (global.get $heap) (local.get 3)) (i32.const 0xf0000))
                (then (global.set $heap (i32.const 4096))))
            (local.set $at (global.get $heap))
            (global.set $heap (i32.and (i32.add (i32.add (global.get $heap) (local.get 3)) (i32.const 15)) (i32.const -16)))
            (local.get $at))
        (func $deeper (param i64) (call $deeper (i64.add (local.get 0) (i64.const 1))) (call $deeper (local.get 0)))
        ;; Counts up the eight digits at address 128.
        (func $count (local $at i32)
            (local.set $at (i32.const 135))
            (loop $on
                (if (i32.eq (i32.load8_u (local.get $at)) (i32.const 57))
                    (then
                        (i32.store8 (local.get $at) (i32.const 48))
                        (local.set $at (i32.sub (local.get $at) (i32.const 1)))
                        (br_if $on (i32.ge_u (local.get $at) (i32.const 128))))
                    (else (i32.store8 (local.get $at) (i32.add (i32.load8_u (local.get $at)) (i32.const 1)))))))
        ;; Makes $count publications on channel `flood`. All share one text: $bytes bytes from address 0x100000 on.
        (func $publications (param $count i32) (param $bytes i32) (result i32)
            (call $fill (local.get $count) (local.get $bytes) (i32.const 80) (i32.const 0)))
        ;; The same as what a filter returns: each behind the case `publish` of `output`.
        (func $outputs (param $count i32) (param $bytes i32) (result i32)
            (call $fill (local.get $count) (local.get $bytes) (i32.const 88) (i32.const 8)))
        (func $fill (param $count i32) (param $bytes i32) (param $size i32) (param $offset i32) (result i32)
            (local $first i32) (local $at i32) (local $end i32)
            (local.set $first (i32.shl
                (memory.grow (i32.add (i32.shr_u (i32.mul (local.get $count) (local.get $size)) (i32.const 16)) (i32.const 1)))
                (i32.const 16)))
            (local.set $at (i32.add (local.get $first) (local.get $offset)))
            (local.set $end (i32.add (local.get $at) (i32.mul (local.get $count) (local.get $size))))
            (loop $on
                (i32.store offset=0 (local.get $at) (i32.const 144))
                (i32.store offset=4 (local.get $at) (i32.const 5))
                (i32.store offset=24 (local.get $at) (i32.const 0x100000))
                (i32.store offset=28 (local.get $at) (local.get $bytes))
                (br_if $on (i32.lt_u (local.tee $at (i32.add (local.get $at) (local.get $size))) (local.get $end))))
            (local.get $first))
        {functions}
        {more})"#
    );
    let mut module = wat::parse_str(&module).unwrap_or_else(|error| panic!("{error}"));
    let mut resolve = Resolve::default();
    let packages = WIT.map(|folder| {
        // The root is the folder with the lock file, since more than one crate compiles this file.
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().find(|above| above.join("Cargo.lock").exists());
        let folder = root.unwrap().join(folder);
        resolve.push_dir(folder).unwrap_or_else(|error| panic!("{error:#}")).0
    });
    let world = resolve.select_world(&packages[1..], Some("bomb")).unwrap();
    embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8).unwrap();
    let encoded = ComponentEncoder::default().validate(true).module(&module).and_then(|mut encoder| encoder.encode());
    encoded.unwrap_or_else(|error| panic!("{error:#}"))
}
