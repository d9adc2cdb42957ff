//! The import `channels`, and the checks that publications of every role go through.

use std::sync::Arc;

use wasmtime::component::{HasSelf, Linker};
use wire::{Frame, Kind, frame::MAX_CONTROL};

use crate::{
    channel::{Publication, Refused},
    component::{
        RoleKind,
        bindings::edge_relay::tenant::{
            channels,
            types::{Close, FrameParam, FrameResult, Gap, Output, Publication as GuestPublication},
        },
        run::host::{Guest, Host},
    },
    delivery::{ClientId, End, Step},
};

/// Most publications of one call, and most channels of one gap. Each costs the host a few microseconds.
const MAX_PUBLICATIONS: usize = 10_000;
/// Most bytes of a reason in the log.
const MAX_REASON: usize = 200;

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
    let (mut count, mut first) = (0, None);
    let mut refuse = |why: Refused, limit: Option<&'static str>, times| {
        tenant.metrics.refused(why.reason(), times);
        limit.into_iter().for_each(|limit| tenant.metrics.limited(limit, times));
        count += times;
        first.get_or_insert(why);
    };
    // Cut first: there may be a million of them, and nobody should wait for those.
    let beyond = made.len().saturating_sub(MAX_PUBLICATIONS);
    made.truncate(MAX_PUBLICATIONS);
    let mut publications = Vec::with_capacity(made.len());
    // Nothing needs the partner's time yet.
    for GuestPublication { channel, key, data, remove, id, at: _ } in made {
        let data = from_guest(data);
        if id.is_some() {
            refuse(Refused::Id, None, 1);
        } else if data.bytes.len() > largest {
            refuse(Refused::Size(largest), Some("publication"), 1);
        } else {
            publications.push(Publication { channel: channel.into(), key: key.map(Into::into), remove, data });
        }
    }
    // The rate is taken for all of a call at once, so the call's last publications are the ones over it.
    let over = publications.split_off(tenant.publications.take_some(publications.len()));
    if !over.is_empty() {
        refuse(Refused::Rate(tenant.publications.per_second()), Some("publications-per-second"), over.len());
    }
    if beyond > 0 {
        refuse(Refused::Count, Some("call-publications"), beyond);
    }
    let refused = tenant.channels.publish(publications, upstream_of(guest)).await.1;
    count += refused.len();
    let first = first.or_else(|| refused.first().copied())?;
    Some((count, first))
}

/// The upstream that a filter's guest is named after.
fn upstream_of(guest: &Guest) -> Option<&Arc<str>> {
    (guest.role == RoleKind::Filter).then_some(&guest.name)
}

/// Publishes what a guest's call returned. The call is over, so refusals go to the log.
pub async fn publish_all(guest: &Guest, made: Vec<GuestPublication>) {
    if let Some((count, why)) = publish(guest, made).await {
        guest.log(|| tracing::warn!(count, error = %why, "publications refused"));
    }
}

/// Carries out what a filter's call returned, in its order. A gap that there is no room for is told at the end, in all
/// that the upstream has published on: no gap is kept from clients.
pub async fn carry_out(guest: &Guest, mut made: Vec<Output>) {
    let beyond = made.split_off(made.len().min(MAX_PUBLICATIONS));
    let mut untold = beyond.iter().any(|output| matches!(output, Output::Gap(_)));
    if !beyond.is_empty() {
        guest.tenant.metrics.refused(Refused::Count.reason(), beyond.len());
        guest.tenant.metrics.limited("call-publications", beyond.len());
        guest.log(|| tracing::warn!(count = beyond.len(), error = %Refused::Count, "publications refused"));
    }
    let mut publications = Vec::with_capacity(made.len());
    for output in made {
        match output {
            Output::Publish(publication) => publications.push(publication),
            Output::Gap(gap) => {
                publish_all(guest, std::mem::take(&mut publications)).await;
                untold |= report_gap(guest, gap).await.is_err();
            }
        }
    }
    publish_all(guest, publications).await;
    if untold && let Some(upstream) = upstream_of(guest) {
        guest.tenant.channels.lost(upstream);
    }
}

/// Begins new epochs where a guest knows that something is missing. Each channel that is looked at counts as a
/// publication.
async fn report_gap(guest: &Guest, Gap { channels, reason }: Gap) -> Result<(), String> {
    let tenant = &guest.tenant;
    let count = match (channels.len(), upstream_of(guest)) {
        (0, None) => return Err("the gap names no channel; name at least one".into()),
        (0, Some(_)) => tenant.channels.count(),
        (named, _) if named > MAX_PUBLICATIONS => {
            return Err(format!("the gap names {named} channels; name at most {MAX_PUBLICATIONS}"));
        }
        (named, _) => named,
    };
    if !tenant.publications.take_all(count) {
        tenant.metrics.limited("publications-per-second", count);
        return Err(Refused::Rate(tenant.publications.per_second()).to_string());
    }
    match upstream_of(guest).filter(|_| channels.is_empty()) {
        Some(upstream) => tenant.channels.lost(upstream),
        None => {
            for channel in &channels {
                tenant.channels.gap(channel).await;
            }
        }
    }
    let reason = shortened(reason);
    guest.log(|| tracing::info!(reason, "gap reported by a component"));
    Ok(())
}

/// A text of a guest for the log, cut to a length that a line can have.
pub fn shortened(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(MAX_REASON));
    text
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

    async fn gap(&mut self, channels: Vec<String>, reason: String) -> Result<(), String> {
        report_gap(self.guest(), Gap { channels, reason }).await
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
