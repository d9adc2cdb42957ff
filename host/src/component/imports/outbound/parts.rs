//! Bounds the size of the parts of an outgoing request.
//!
//! A guest holds its requests in the host's memory, as many as it has handles. wasmtime bounds a request's header
//! fields and its scheme, but takes a method and an authority of any length, and a path of 64 KiB. So the functions
//! that set these check the length first. A part that is too long fails as a malformed one does, and stays as it was.

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

/// The name that wasmtime's linker has for every 0.2 that a guest may be made for. Under another name the functions
/// here would never be called.
const INTERFACE: &str = "wasi:http/types@0.2.12";

/// In bytes. The longest registered method, `UPDATEREDIRECTREF`, has 17.
const MAX_METHOD: usize = 64;
/// In bytes. A host's name has at most 253, and its port 6 more.
const MAX_AUTHORITY: usize = 1 << 10;
/// In bytes, with the query. Common servers take 8 KiB.
const MAX_PATH: usize = 16 << 10;

/// What the guest gets from setting a part.
type Set = (std::result::Result<(), ()>,);

/// Puts the bounds before wasmtime's functions.
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

/// Whether a part is too long. Counts it if it is.
fn is_too_long(host: &Host, part: &str, most: usize) -> bool {
    let is = part.len() > most;
    if is {
        host.tenant().metrics.limited("request-part", 1);
    }
    is
}
