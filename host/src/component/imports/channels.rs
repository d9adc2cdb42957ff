//! The import `channels`, and the checks that publications of every role go through.

use std::{sync::Arc, time::Instant};

use tokio::{sync::oneshot, task::yield_now};
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
    tenant::turns::TurnShare,
};

/// Most publications of one call, and most channels of one gap. Each costs the host a few microseconds.
const MAX_PUBLICATIONS: usize = 10_000;
/// Publications, or other things that a call wants done, after which others have their turn; and bytes of these.
pub const SLICE: usize = 256;
pub const SLICE_BYTES: usize = 256 << 10;
/// Most bytes of a reason in the log.
const MAX_REASON: usize = 200;

pub const PROVIDED: &[(&str, &str)] = &[("edge-relay:tenant/types", "0.1.0"), ("edge-relay:tenant/channels", "0.1.0")];
pub const GRANTED: &[(&str, &str)] = &[];

/// Puts its functions into the linker.
pub fn link(linker: &mut Linker<Host>) -> wasmtime::Result<()> {
    channels::add_to_linker::<Host, HasSelf<Host>>(linker, |host| host)
}

/// Publications that were refused.
struct PublishRefused {
    count: usize,
    /// Why the first was.
    first: Refused,
    /// Whether some came too late.
    late: bool,
}

/// The time that a call has left for what it leaves to do, and its tenant's turns if that is much.
pub struct Leftover {
    /// `None`: there is little to do, and nobody need wait for it.
    share: Option<TurnShare>,
    /// `None`: the call is under way, and ends this by itself.
    until: Option<Instant>,
}

impl Leftover {
    /// For what a call of a guest has left to do. `count` and `bytes`: how much that is. `until`: when the call's time
    /// is over.
    pub fn new(guest: &Guest, (count, bytes): (usize, usize), until: Instant) -> Self {
        let is_much = count > SLICE || bytes > SLICE_BYTES;
        Self { share: is_much.then(|| guest.tenant.turns.share()), until: Some(until) }
    }

    /// For what is done in the middle of a call.
    fn of_call(share: &TurnShare) -> Self {
        Self { share: Some(share.clone()), until: None }
    }

    /// Does the work, in the tenant's turns if it is much.
    pub async fn work<T>(&self, work: impl Future<Output = T>) -> T {
        match &self.share {
            Some(share) => share.take(work).await.0,
            None => work.await,
        }
    }

    /// Lets others have their turn. Returns whether there is time left after that.
    pub async fn pass(&self) -> bool {
        if let Some(share) = &self.share {
            share.pass().await;
        }
        self.until.is_none_or(|until| Instant::now() < until)
    }
}

/// Publishes what a guest made, a part at a time. Returns what was refused, which is counted here.
async fn publish(guest: &Guest, mut made: Vec<GuestPublication>, leftover: &Leftover) -> Option<PublishRefused> {
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
            publications.push(Publication {
                channel: channel.into(),
                key: key.map(Into::into),
                remove,
                data,
                framed: None,
            });
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
    let (mut refused, mut late) = (Vec::new(), false);
    let mut rest = publications.into_iter();
    while let Some(mut slice) = next_slice(&mut rest) {
        for publication in slice.iter_mut().filter(|publication| publication.is_large()) {
            publication.frame(yield_now).await;
        }
        refused.extend(tenant.channels.publish(slice, upstream_of(guest)).await.1);
        if rest.len() > 0 && !leftover.pass().await {
            refuse(Refused::Late, Some(guest.role.call_limit()), rest.len());
            late = true;
            break;
        }
    }
    count += refused.len();
    let first = first.or_else(|| refused.first().copied())?;
    Some(PublishRefused { count, first, late })
}

/// Takes as many publications as are made at once.
fn next_slice(rest: &mut std::vec::IntoIter<Publication>) -> Option<Vec<Publication>> {
    let mut bytes = 0;
    let fits = |publication: &&Publication| {
        let fits = bytes < SLICE_BYTES;
        bytes += publication.data.bytes.len();
        fits
    };
    let count = rest.as_slice().iter().take(SLICE).take_while(fits).count();
    (count > 0).then(|| rest.take(count).collect())
}

/// The upstream that a filter's guest is named after.
fn upstream_of(guest: &Guest) -> Option<&Arc<str>> {
    (guest.role == RoleKind::Filter).then_some(&guest.name)
}

/// Publishes what a guest's call returned, as long as its time lasts. The call is over, so refusals go to the log.
/// Returns whether its time was over before that.
pub async fn publish_all(guest: &Guest, made: Vec<GuestPublication>, leftover: &Leftover) -> bool {
    let Some(PublishRefused { count, first, late }) = publish(guest, made, leftover).await else { return false };
    guest.log(|| tracing::warn!(count, field = first.field(), error = %first, "publications refused"));
    late
}

/// How many publications these are, and their bytes.
pub fn extent(made: &[GuestPublication]) -> (usize, usize) {
    (made.len(), made.iter().map(|publication| frame_bytes(&publication.data)).sum())
}

/// Bytes of a frame that a guest made.
pub fn frame_bytes(frame: &FrameResult) -> usize {
    match frame {
        FrameResult::Text(text) => text.len(),
        FrameResult::Binary(bytes) => bytes.len(),
    }
}

/// Carries out what a filter's call returned, in its order. A gap that there is no room for is told at the end, in all
/// that the upstream has published on: no gap is kept from clients. `until`: when the call's time is over.
pub async fn carry_out(guest: &Guest, made: Vec<Output>, until: Instant) {
    let (mut count, mut bytes) = (0, 0);
    for output in &made {
        match output {
            Output::Publish(publication) => (count, bytes) = (count + 1, bytes + frame_bytes(&publication.data)),
            Output::Gap(gap) => count += gap.channels.len(),
        }
    }
    let leftover = Leftover::new(guest, (count, bytes), until);
    leftover.work(carry_out_by(guest, made, &leftover)).await;
}

async fn carry_out_by(guest: &Guest, mut made: Vec<Output>, leftover: &Leftover) {
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
                if publish_all(guest, std::mem::take(&mut publications), leftover).await {
                    // Nothing may come behind what is missing.
                    untold = true;
                    publications.clear();
                    break;
                }
                if let Err(error) = report_gap(guest, gap, leftover).await {
                    guest.log(|| tracing::warn!(error, "a filter's gap is told in all its upstream's channels"));
                    untold = true;
                }
            }
        }
    }
    untold |= publish_all(guest, publications, leftover).await;
    if untold && let Some(upstream) = upstream_of(guest) {
        lost(guest, upstream).await;
    }
}

/// Begins new epochs where a guest knows that something is missing. Each channel that is looked at counts as a
/// publication.
async fn report_gap(guest: &Guest, Gap { channels, reason }: Gap, leftover: &Leftover) -> Result<(), String> {
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
        Some(upstream) => lost(guest, upstream).await,
        None => {
            for (nth, channel) in channels.iter().enumerate() {
                tenant.channels.gap(channel).await;
                if nth % SLICE == SLICE - 1 && !leftover.pass().await {
                    return Err(Refused::Late.to_string());
                }
            }
        }
    }
    let reason = shortened(reason);
    guest.log(|| tracing::info!(reason, "gap reported by a component"));
    Ok(())
}

/// Begins new epochs where an upstream has published. If the channels are many, others have their turn in between.
pub async fn lost(guest: &Guest, upstream: &Arc<str>) {
    let mut before = Some(usize::MAX);
    while let Some(index) = before {
        before = guest.tenant.channels.lost(upstream, index);
        if before.is_some() {
            yield_now().await;
        }
    }
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
pub fn closing(guest: &Guest, close: Close) -> Step {
    let Close { mut code, reason: mut text } = close;
    if !wire::frame::may_close_with(code) {
        guest.log(|| tracing::warn!(field = "close.code", code, "a close code that cannot be sent becomes 1008"));
        code = 1008;
    }
    text.truncate(text.floor_char_boundary(MAX_CONTROL));
    text.shrink_to_fit();
    Step::Close(End::Handler { code, text })
}

impl channels::Host for Host {
    async fn publish(&mut self, publications: Vec<GuestPublication>) -> Result<(), String> {
        let leftover = Leftover::of_call(self.share());
        match publish(self.guest(), publications, &leftover).await {
            None => Ok(()),
            Some(PublishRefused { count, first, .. }) => Err(format!("{count} refused, the first because {first}")),
        }
    }

    async fn gap(&mut self, channels: Vec<String>, reason: String) -> Result<(), String> {
        let leftover = Leftover::of_call(self.share());
        report_gap(self.guest(), Gap { channels, reason }, &leftover).await
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
        // Waited for, so that one call has one of them under way, and what it publishes next does not overtake it.
        let (done, is_done) = oneshot::channel();
        self.tenant().take_steps(client, vec![closing(self.guest(), close), Step::ReportDone(done)]).await;
        // It is dropped when the client is gone, as it is then.
        let _ = is_done.await;
        Ok(())
    }
}
