//! Bounds the size of the parts of an outgoing request.
//!
//! A guest's requests are in the host's memory, and a guest may hold as many as it has handles. wasmtime bounds a
//! request's header fields and its scheme. But it takes a method and an authority of any length, and a path of 64 KiB.
//! So the functions that set these parts check the length first. A part that is too long fails like a malformed one,
//! and the request keeps the old part.

use wasmtime::{
    Result, StoreContextMut,
    component::{Linker, Resource},
};
use wasmtime_wasi_http::{
    WasiHttpView,
    p2::{
        bindings::http::types::{HostOutgoingRequest as _, Method},
        types::HostOutgoingRequest,
    },
};

use crate::component::run::host::Host;

/// The interface's name in wasmtime's linker, whichever version 0.2 a guest is built for. Under another name, no guest
/// would call the functions here.
const INTERFACE: &str = "wasi:http/types@0.2.12";

/// Longest method, in bytes. The longest registered one, `UPDATEREDIRECTREF`, has 17.
const MAX_METHOD: usize = 64;
/// Longest authority, in bytes. A host's name has at most 253, and its port 6 more.
const MAX_AUTHORITY: usize = 1 << 10;
/// Longest path with its query, in bytes. Common servers take 8 KiB.
const MAX_PATH: usize = 16 << 10;

/// The result that the guest gets when it sets a part.
type Set = (std::result::Result<(), ()>,);

/// Replaces wasmtime's functions in the linker with functions that check lengths first.
pub fn bound(linker: &mut Linker<Host>) -> Result<()> {
    linker.allow_shadowing(true);
    let mut types = linker.instance(INTERFACE)?;
    types.func_wrap("[method]outgoing-request.set-method", set_method)?;
    types.func_wrap("[method]outgoing-request.set-authority", set_authority)?;
    types.func_wrap("[method]outgoing-request.set-path-with-query", set_path)?;
    linker.allow_shadowing(false);
    Ok(())
}

fn set_method(
    mut store: StoreContextMut<'_, Host>,
    (request, method): (Resource<HostOutgoingRequest>, Method),
) -> Result<Set> {
    let name = if let Method::Other(name) = &method { name } else { "" };
    if is_too_long(store.data(), name, MAX_METHOD) {
        return Ok((Err(()),));
    }
    Ok((store.data_mut().http().set_method(request, method)?,))
}

fn set_authority(
    mut store: StoreContextMut<'_, Host>,
    (request, authority): (Resource<HostOutgoingRequest>, Option<String>),
) -> Result<Set> {
    if is_too_long(store.data(), authority.as_deref().unwrap_or_default(), MAX_AUTHORITY) {
        return Ok((Err(()),));
    }
    Ok((store.data_mut().http().set_authority(request, authority)?,))
}

fn set_path(
    mut store: StoreContextMut<'_, Host>,
    (request, path): (Resource<HostOutgoingRequest>, Option<String>),
) -> Result<Set> {
    if is_too_long(store.data(), path.as_deref().unwrap_or_default(), MAX_PATH) {
        return Ok((Err(()),));
    }
    Ok((store.data_mut().http().set_path_with_query(request, path)?,))
}

/// Whether a part is too long. Counts it as refused if it is.
fn is_too_long(host: &Host, part: &str, most: usize) -> bool {
    let is = part.len() > most;
    if is {
        host.tenant().metrics.limited("request-part", 1);
    }
    is
}
