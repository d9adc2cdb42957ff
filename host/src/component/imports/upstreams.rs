//! The import `upstreams`: a component sends frames to its tenant's upstreams, and asks whether they are connected.

use wasmtime::component::{HasSelf, Linker};

use crate::{
    component::{
        bindings::edge_relay::tenant::{
            types::FrameResult,
            upstreams,
            upstreams::{Error, State},
        },
        imports::channels::from_guest,
        run::host::Host,
    },
    upstream::SendError,
};

pub const PROVIDED: &[(&str, &str)] = &[("edge-relay:tenant/upstreams", "0.1.0")];
pub const GRANTED: &[(&str, &str)] = &[];

/// Puts its functions into the linker.
pub fn link(linker: &mut Linker<Host>) -> wasmtime::Result<()> {
    upstreams::add_to_linker::<Host, HasSelf<Host>>(linker, |host| host)
}

impl upstreams::Host for Host {
    async fn send(&mut self, upstream: String, frames: Vec<FrameResult>) -> Result<(), Error> {
        let upstream = self.version().upstream(&upstream).ok_or(Error::Unknown)?;
        upstream.send(frames.into_iter().map(from_guest).collect()).await.map_err(|error| match error {
            SendError::Unknown => Error::Unknown,
            SendError::Disconnected => Error::Disconnected,
            SendError::Full | SendError::Memory => Error::Full,
            SendError::TooLarge => Error::TooLarge,
        })
    }

    async fn status(&mut self, upstream: String) -> Result<State, Error> {
        let upstream = self.version().upstream(&upstream).ok_or(Error::Unknown)?;
        Ok(if upstream.is_connected().await { State::Connected } else { State::Disconnected })
    }
}
