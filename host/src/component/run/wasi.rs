//! What an instance is granted, as WASI shows it.

use wasmtime_wasi::{FsPerms, WasiCtx};

use crate::component::{Guest, run::output::Output};

/// Bytes of one call for random ones: making them keeps the thread, which cannot yield meanwhile.
const MAX_RANDOM: u64 = 64 << 10;

/// No arguments, no address, no look-up of names; of folders and of the environment what the manifest grants.
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
