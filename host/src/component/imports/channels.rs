//! The import `channels`, and the checks that publications of every role go through.

use wasmtime::component::{HasSelf, Linker};
use wire::{Frame, Kind, frame::MAX_CONTROL};

use crate::{
    channel::{Publication, Refused},
    component::{
        RoleKind,
        bindings::edge_relay::tenant::{
            channels,
            types::{Close, FrameParam, FrameResult, Publication as GuestPublication},
        },
        run::host::{Guest, Host},
    },
    delivery::{ClientId, End, Step},
};

/// Most publications of one call. Each costs the host a few microseconds.
const MAX_PUBLICATIONS: usize = 10_000;

pub const PROVIDED: &[(&str, &str)] = &[("edge-relay:tenant/types", "0.1.0"), ("edge-relay:tenant/channels", "0.1.0")];
pub const GRANTED: &[(&str, &str)] = &[];

/// Puts its functions into the linker.
pub fn link(linker: &mut Linker<Host>) -> wasmtime::Result<()> {
    channels::add_to_linker::<Host, HasSelf<Host>>(linker, |host| host)
}

/// Publishes what a guest made. Returns how many publications were refused, and why the first was. Refusals are counted
/// here.
pub async fn publish(guest: &Guest, mut made: Vec<GuestPublication>) -> Option<(usize, Refused)> {
    let tenant = &guest.tenant;
    let largest = guest.version.limits.publication;
    // A filter's guest has the name of its upstream.
    let upstream = (guest.role == RoleKind::Filter).then_some(&guest.name);
    let (mut count, mut first) = (0, None);
    let mut refuse = |why: Refused, limit, times| {
        tenant.metrics.refused(why.reason(), times);
        tenant.metrics.limited(limit, times);
        count += times;
        first.get_or_insert(why);
    };
    // Cut first: there may be a million of them, and nobody should wait for those.
    let beyond = made.len().saturating_sub(MAX_PUBLICATIONS);
    made.truncate(MAX_PUBLICATIONS);
    let mut publications = Vec::with_capacity(made.len());
    for GuestPublication { channel, key, data, remove } in made {
        let data = from_guest(data);
        if data.bytes.len() > largest {
            refuse(Refused::Size(largest), "publication", 1);
        } else {
            publications.push(Publication { channel: channel.into(), key: key.map(Into::into), remove, data });
        }
    }
    // The rate is taken for all of a call at once, so the call's last publications are the ones over it.
    let over = publications.split_off(tenant.publications.take_some(publications.len()));
    if !over.is_empty() {
        refuse(Refused::Rate(tenant.publications.per_second()), "publications-per-second", over.len());
    }
    if beyond > 0 {
        refuse(Refused::Count, "call-publications", beyond);
    }
    let refused = tenant.channels.publish(publications, upstream).await.1;
    count += refused.len();
    let first = first.or_else(|| refused.first().copied())?;
    Some((count, first))
}

/// Publishes what a guest's call returned. The call is over, so refusals go to the log.
pub async fn publish_all(guest: &Guest, made: Vec<GuestPublication>) {
    if let Some((count, why)) = publish(guest, made).await {
        guest.log(|| tracing::warn!(count, error = %why, "publications refused"));
    }
}

/// A frame on its way to a guest.
pub fn to_guest(frame: &Frame) -> FrameParam<'_> {
    match frame.kind {
        Kind::Text => str::from_utf8(&frame.bytes).map_or(FrameParam::Binary(&frame.bytes), FrameParam::Text),
        Kind::Binary => FrameParam::Binary(&frame.bytes),
    }
}

/// A frame that a guest made.
pub fn from_guest(frame: FrameResult) -> Frame {
    match frame {
        FrameResult::Text(text) => Frame { kind: Kind::Text, bytes: text.into() },
        FrameResult::Binary(bytes) => Frame { kind: Kind::Binary, bytes: bytes.into() },
    }
}

/// The step by which a client's shard closes a connection as a guest asks.
///
/// A code that an endpoint must not send (RFC 6455 section 7.4) becomes 1008, the code for a broken policy. The reason
/// is cut here to what a frame can carry, so that the rest does not wait in memory.
pub fn closing(close: Close) -> Step {
    let Close { code, reason: mut text } = close;
    let code = if wire::frame::may_close_with(code) { code } else { 1008 };
    text.truncate(text.floor_char_boundary(MAX_CONTROL));
    text.shrink_to_fit();
    Step::Close(End::Handler { code, text })
}

impl channels::Host for Host {
    async fn publish(&mut self, publications: Vec<GuestPublication>) -> Result<(), String> {
        match publish(self.guest(), publications).await {
            None => Ok(()),
            Some((count, why)) => Err(format!("{count} refused, the first because {why}")),
        }
    }

    async fn latest(&mut self, channel: String) -> Option<FrameResult> {
        let latest = self.tenant().channels.latest(&channel).await?;
        Some(match (latest.kind, String::from_utf8(latest.bytes.into())) {
            (Kind::Text, Ok(text)) => FrameResult::Text(text),
            (_, Ok(text)) => FrameResult::Binary(text.into_bytes()),
            (_, Err(bytes)) => FrameResult::Binary(bytes.into_bytes()),
        })
    }

    async fn subscriber_count(&mut self, channel: String) -> u32 {
        u32::try_from(self.tenant().channels.subscribers(&channel).await).unwrap_or(u32::MAX)
    }

    async fn disconnect(&mut self, client: String, close: Close) -> Result<(), String> {
        let client: ClientId = client.parse().map_err(|error| format!("{error}"))?;
        self.tenant().take_steps(client, vec![closing(close)]).await;
        Ok(())
    }
}
