//! Waits of guests for streams and pollables, which end with the call's deadline.
//!
//! wasmtime's own functions wait for as long as it takes. The host could only drop a call that waits, and nobody would
//! learn where in its code the guest was. The functions here take their place: at the deadline they trap, and the trap
//! has the guest's stack.

use std::time::Instant;

use tokio::time::timeout_at;
use wasmtime::{
    Result, StoreContextMut, Trap,
    component::{Linker, Resource},
};
use wasmtime_wasi::p2::{
    DynInputStream, DynOutputStream, DynPollable, StreamResult,
    bindings::io::{
        poll::{Host as _, HostPollable as _},
        streams::{Host as _, HostInputStream as _, HostOutputStream as _, StreamError},
    },
};

use crate::component::run::host::Host;

/// The interfaces' names in wasmtime's linker, whichever version 0.2 a guest is built for. Under other names, no guest
/// would call the functions here.
const POLL: &str = "wasi:io/poll@0.2.12";
const STREAMS: &str = "wasi:io/streams@0.2.12";

/// The result that a guest gets of a stream.
type Answer<T> = (std::result::Result<T, StreamError>,);

/// Replaces wasmtime's functions in the linker with those of this module.
pub fn link(linker: &mut Linker<Host>) -> Result<()> {
    linker.allow_shadowing(true);
    let mut polls = linker.instance(POLL)?;
    polls.func_wrap_async("poll", |store, parameters| Box::new(poll(store, parameters)))?;
    polls.func_wrap_async("[method]pollable.block", |store, parameters| Box::new(block(store, parameters)))?;
    let mut streams = linker.instance(STREAMS)?;
    streams.func_wrap_async("[method]input-stream.blocking-read", |store, parameters| {
        Box::new(blocking_read(store, parameters))
    })?;
    streams.func_wrap_async("[method]input-stream.blocking-skip", |store, parameters| {
        Box::new(blocking_skip(store, parameters))
    })?;
    streams.func_wrap_async("[method]output-stream.blocking-write-and-flush", |store, parameters| {
        Box::new(blocking_write(store, parameters))
    })?;
    streams.func_wrap_async("[method]output-stream.blocking-write-zeroes-and-flush", |store, parameters| {
        Box::new(blocking_write_zeroes(store, parameters))
    })?;
    streams.func_wrap_async("[method]output-stream.blocking-flush", |store, parameters| {
        Box::new(blocking_flush(store, parameters))
    })?;
    streams.func_wrap_async("[method]output-stream.blocking-splice", |store, parameters| {
        Box::new(blocking_splice(store, parameters))
    })?;
    linker.allow_shadowing(false);
    Ok(())
}

async fn poll(
    mut store: StoreContextMut<'_, Host>,
    (pollables,): (Vec<Resource<DynPollable>>,),
) -> Result<(Vec<u32>,)> {
    let end = store.data().call_end();
    Ok((until(end, store.data_mut().table().poll(pollables)).await??,))
}

async fn block(mut store: StoreContextMut<'_, Host>, (pollable,): (Resource<DynPollable>,)) -> Result<()> {
    let end = store.data().call_end();
    until(end, store.data_mut().table().block(pollable)).await?
}

async fn blocking_read(
    mut store: StoreContextMut<'_, Host>,
    (stream, bytes): (Resource<DynInputStream>, u64),
) -> Result<Answer<Vec<u8>>> {
    let end = store.data().call_end();
    let read = until(end, store.data_mut().table().blocking_read(stream, bytes)).await?;
    answer(store, read)
}

async fn blocking_skip(
    mut store: StoreContextMut<'_, Host>,
    (stream, bytes): (Resource<DynInputStream>, u64),
) -> Result<Answer<u64>> {
    let end = store.data().call_end();
    let skipped = until(end, store.data_mut().table().blocking_skip(stream, bytes)).await?;
    answer(store, skipped)
}

async fn blocking_write(
    mut store: StoreContextMut<'_, Host>,
    (stream, bytes): (Resource<DynOutputStream>, Vec<u8>),
) -> Result<Answer<()>> {
    let end = store.data().call_end();
    let written = until(end, store.data_mut().table().blocking_write_and_flush(stream, bytes)).await?;
    answer(store, written)
}

async fn blocking_write_zeroes(
    mut store: StoreContextMut<'_, Host>,
    (stream, bytes): (Resource<DynOutputStream>, u64),
) -> Result<Answer<()>> {
    let end = store.data().call_end();
    let written = until(end, store.data_mut().table().blocking_write_zeroes_and_flush(stream, bytes)).await?;
    answer(store, written)
}

async fn blocking_flush(
    mut store: StoreContextMut<'_, Host>,
    (stream,): (Resource<DynOutputStream>,),
) -> Result<Answer<()>> {
    let end = store.data().call_end();
    let flushed = until(end, store.data_mut().table().blocking_flush(stream)).await?;
    answer(store, flushed)
}

type Splice = (Resource<DynOutputStream>, Resource<DynInputStream>, u64);

async fn blocking_splice(mut store: StoreContextMut<'_, Host>, (to, from, bytes): Splice) -> Result<Answer<u64>> {
    let end = store.data().call_end();
    let spliced = until(end, store.data_mut().table().blocking_splice(to, from, bytes)).await?;
    answer(store, spliced)
}

/// Waits until the call's end at most. Then it is the trap of a call past its deadline.
async fn until<T>(end: Instant, wait: impl Future<Output = T>) -> Result<T> {
    timeout_at(end.into(), wait).await.map_err(|_| Trap::Interrupt.into())
}

/// What a guest gets. An error that is not for it is a trap.
fn answer<T>(mut store: StoreContextMut<'_, Host>, result: StreamResult<T>) -> Result<Answer<T>> {
    match result {
        Ok(value) => Ok((Ok(value),)),
        Err(error) => Ok((Err(store.data_mut().table().convert_stream_error(error)?),)),
    }
}
