//! Lets in a client of the Centrifuge protocol: its command `connect`.

use std::sync::atomic::Ordering;

use tokio::select;
use wire::centrifuge::{Disconnect, Error, Recover, reply};

use crate::{
    component::{Admission, ConnectRequest, Handler, NotLetIn},
    delivery::{End, Follow, Step, StepList},
    entry::{
        admission::follow_given,
        centrifuge::{CentrifugeSession, CommandRefusal, Handled, expiry_step, follow},
        refusal::error_status,
    },
};

impl CentrifugeSession {
    /// Asks the tenant's handler, if it has one, whether the client is let in. The shard writes the reply. `subs`: the
    /// channels that the client had, and where it was in them.
    pub(super) async fn connect(
        &self,
        id: u32,
        token: Option<String>,
        data: Option<String>,
        subs: &[(String, Recover)],
        steps: &mut StepList,
    ) -> Result<(), CommandRefusal> {
        let (mut given, mut lease) = (Vec::new(), None);
        if let Some(handled) = &self.handled {
            let handler = &handled.handler;
            let request = handled.request.lock().take();
            let mut request = request.ok_or(Error::PermissionDenied)?;
            request.token = token.or(request.token);
            request.data = data;
            let admission = match self.ask(handled, *request).await {
                Ok(admission) => admission,
                Err(why) => return Err(self.not_let_in(id, why, steps)),
            };
            lease = admission.lease;
            // It cannot be set already: a second `connect` is refused.
            let _ = handled.session.set(admission.session);
            // The client may have left while the handler was asked.
            if let Some((session, reason)) = handled.session.get().zip(self.reason.get()) {
                session.note_leaving(reason);
            }
            if let Some(names) = admission.channels {
                given = self.given(handler, names, subs).await?;
            }
        }
        self.connected.store(true, Ordering::Relaxed);
        steps.push(Step::Connected { id, expires_seconds: lease, given });
        steps.push(expiry_step(lease));
        // The reply need not wait for the other commands of the frame.
        self.send_steps(steps.take(), None);
        Ok(())
    }

    /// Asks the handler. A client that has left before its turn is not asked about.
    async fn ask(&self, handled: &Handled, request: ConnectRequest) -> Result<Admission, NotLetIn> {
        select! {
            biased;
            () = handled.left.notified() => Err(NotLetIn::Gone),
            admission = handled.handler.connect(self.id, request, self.compression) => admission,
        }
    }

    /// Tells a client that is not let in why, and how its connection ends. SDKs reconnect by themselves, unless the
    /// tenant's code refused the client.
    fn not_let_in(&self, id: u32, why: NotLetIn, steps: &mut StepList) -> CommandRefusal {
        let disconnect = match &why {
            NotLetIn::Refused(..) => Disconnect::PermissionDenied,
            NotLetIn::Broken(_) => Disconnect::Internal,
            NotLetIn::Gone => Disconnect::Shutdown,
        };
        if let NotLetIn::Refused(status, reason) = why {
            let code = u32::from(error_status(status).as_u16());
            self.write_reply(steps, |out| reply::error(id, code, &reason, out));
        }
        CommandRefusal::End(End::Centrifuge(disconnect, disconnect.reason().to_owned()))
    }

    /// The channels that the handler gives the client, each from where the client was in it.
    async fn given(
        &self,
        handler: &Handler,
        names: Vec<String>,
        subs: &[(String, Recover)],
    ) -> Result<Vec<Follow>, CommandRefusal> {
        let internal = |_| CommandRefusal::End(End::Centrifuge(Disconnect::Internal, "no such channels".into()));
        let channels = follow_given(&self.tenant, handler, names).await.map_err(internal)?;
        let followed = channels.into_iter().map(|channel| {
            let recover = subs.iter().find(|(name, _)| **name == *channel.name).map(|(_, recover)| *recover);
            follow(channel, recover, true)
        });
        Ok(followed.collect())
    }
}
