//! The WASI context of an instance, with what its tenant is granted.

use wasmtime_wasi::{FsPerms, WasiCtx};

use crate::component::{Guest, run::output::Output};

/// The most random bytes in one call. Making them keeps the thread, which cannot yield meanwhile.
const MAX_RANDOM: u64 = 64 << 10;

/// Gives no arguments, no sockets and no look-up of names, and only the folders and environment that the manifest
/// grants.
pub fn wasi(guest: &Guest, stderr: &Output) -> wasmtime::Result<WasiCtx> {
    let mut wasi = WasiCtx::builder();
    wasi.stdout(Output::new(guest, "stdout"))
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
