//! The import `upstreams`: a component sends frames to its tenant's upstreams, says what it expects of them, and asks
//! what they are doing.

use std::{ops::RangeInclusive, sync::Arc, time::Duration};

use wasmtime::component::{HasSelf, Linker};

use crate::{
    component::{
        bindings::edge_relay::tenant::{
            types::FrameResult,
            upstreams::{self, Error, ReconnectOptions, SendOptions},
        },
        imports::channels::{from_guest, shortened},
        run::host::Host,
    },
    upstream,
    upstream::{Handle, SendError, State, Status, millis_until},
};

pub const PROVIDED: &[(&str, &str)] = &[("edge-relay:tenant/upstreams", "0.1.0")];
pub const GRANTED: &[(&str, &str)] = &[];

/// The range of `within`, in milliseconds: that of the manifest's `data-timeout`.
const WITHIN: RangeInclusive<u32> = 1_000..=86_400_000;

/// Puts its functions into the linker.
pub fn link(linker: &mut Linker<Host>) -> wasmtime::Result<()> {
    upstreams::add_to_linker::<Host, HasSelf<Host>>(linker, |host| host)
}

impl Host {
    fn upstream(&self, name: &str) -> Result<Arc<Handle>, Error> {
        self.version().upstream(name).map(Arc::clone).ok_or(Error::Unknown)
    }
}

impl From<SendError> for Error {
    fn from(error: SendError) -> Self {
        match error {
            SendError::Unknown => Self::Unknown,
            SendError::Disconnected => Self::Disconnected,
            SendError::Full | SendError::Memory => Self::Full,
            SendError::TooLarge => Self::TooLarge,
        }
    }
}

impl From<State> for upstreams::State {
    fn from(state: State) -> Self {
        match state {
            State::Resting => Self::Resting,
            State::Connecting => Self::Connecting,
            State::Live => Self::Live,
            State::Stale => Self::Stale,
        }
    }
}

impl upstreams::Host for Host {
    async fn send(&mut self, upstream: String, frames: Vec<FrameResult>, options: SendOptions) -> Result<(), Error> {
        let SendOptions { connection, first } = options;
        let frames = frames.into_iter().map(from_guest).collect();
        Ok(self.upstream(&upstream)?.send(frames, upstream::SendOptions { connection, first }).await?)
    }

    async fn expect(&mut self, upstream: String, within: Option<u32>) -> Result<(), Error> {
        let upstream = self.upstream(&upstream)?;
        if within.is_some_and(|within| !WITHIN.contains(&within)) {
            return Err(Error::OutOfRange);
        }
        upstream.expect(within.map(|within| Duration::from_millis(within.into()))).await;
        Ok(())
    }

    async fn reconnect(&mut self, upstream: String, options: ReconnectOptions) -> Result<(), Error> {
        let upstream = self.upstream(&upstream)?;
        let ReconnectOptions { reason, overlap } = options;
        if overlap {
            return Err(Error::Unsupported);
        }
        Ok(upstream.reconnect(shortened(reason)).await?)
    }

    async fn status(&mut self, upstream: String) -> Result<upstreams::UpstreamStatus, Error> {
        let upstream = self.upstream(&upstream)?;
        let Status { state, reason, until } = upstream.status().await;
        let queued = u32::try_from(upstream.queued().await).unwrap_or(u32::MAX);
        Ok(upstreams::UpstreamStatus { state: state.into(), reason, until: until.map(millis_until), queued })
    }
}
