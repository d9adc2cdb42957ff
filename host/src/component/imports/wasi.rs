//! WASI's clocks, randomness, files, environment and output, with what the tenant is granted.

use wasmtime::component::Linker;
use wasmtime_wasi::{FsPerms, WasiCtx};

use crate::component::{
    Guest,
    imports::{files, waits},
    run::{host::Host, output::Output},
};

/// The most random bytes in one call. Making them keeps the thread, which cannot yield meanwhile.
const MAX_RANDOM: u64 = 64 << 10;

pub const PROVIDED: &[(&str, &str)] = &[
    ("wasi:io/", "0.2."),
    ("wasi:clocks/", "0.2."),
    ("wasi:random/", "0.2."),
    ("wasi:cli/", "0.2."),
    ("wasi:filesystem/", "0.2."),
    ("wasi:sockets/", "0.2."),
];
pub const GRANTED: &[(&str, &str)] = &[
    ("wasi:filesystem/", "grants.folders"),
    ("wasi:cli/environment", "grants.environment"),
    ("wasi:sockets/", "sockets, which are never granted"),
];

/// Puts its functions into the linker.
pub fn link(linker: &mut Linker<Host>) -> wasmtime::Result<()> {
    wasmtime_wasi::p2::add_to_linker_async(linker)?;
    files::link(linker)?;
    waits::link(linker)
}

/// Gives no arguments, no sockets and no look-up of names, and only the folders and environment that the manifest
/// grants.
pub fn context(guest: &Guest, stderr: &Output) -> wasmtime::Result<WasiCtx> {
    let mut wasi = WasiCtx::builder();
    wasi.stdout(Output::stdout(guest))
        .stderr(stderr.clone())
        .allow_tcp(false)
        .allow_udp(false)
        .allow_ip_name_lookup(false)
        .max_random_size(MAX_RANDOM);
    let grants = &guest.version.grants;
    for (name, value) in &grants.environment {
        wasi.env(name, value.reveal());
    }
    for folder in &grants.folders {
        let perms = if folder.write { FsPerms::ReadWrite } else { FsPerms::ReadOnly };
        wasi.preopened_dir(folder.handle(), &folder.guest, perms)?;
    }
    Ok(wasi.build())
}
