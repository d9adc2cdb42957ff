//! One tenant is used, in each of its roles, by whoever comes first.

use std::{
    io::Read,
    net::{SocketAddr, TcpStream},
};

use super::{
    host::{self, Host},
    partner::{self, Partner},
};
use crate::{
    clock,
    failure::{Context, Failure},
    frame, handshake, message,
};

/// How long each role took to do its first work, in ns. Connections and handshakes are in it.
#[derive(Clone, Copy)]
pub struct Visit {
    /// From a client's begin to its being let in by the handler, channel and all.
    pub client: u64,
    /// From the partner's first message, right behind the handshake of the upstream, to what the filter makes of it at
    /// the client.
    pub filter: u64,
    /// From a request's begin to the end of its answer.
    pub api: u64,
}

/// Its upstream is on demand, and connects to this partner.
pub fn visit(tenant: &str, host: &Host, partner: &Partner) -> Result<Visit, Failure> {
    let doing = || format!("{tenant} ({})", host.process.last_words());
    let (mut client, let_in) = enter(tenant, host.clients).with_context(doing)?;
    let mut upstream = partner.accept().with_context(doing)?;
    let mut payload = Vec::new();
    let sent = clock::now();
    message::write(0, sent, &mut payload);
    partner::send(&mut upstream, &payload)?;
    read_text(&mut client).with_context(doing)?;
    let filter = clock::now() - sent;
    partner::stay(upstream);
    let begin = clock::now();
    host::get(host.api, &format!("/{tenant}/public")).with_context(doing)?;
    Ok(Visit { client: let_in, filter, api: clock::now() - begin })
}

fn enter(tenant: &str, address: SocketAddr) -> Result<(TcpStream, u64), Failure> {
    let begin = clock::now();
    let mut client = host::connect(address)?;
    handshake::ask(&mut client, &format!("/{tenant}?channel=prices"))?;
    Ok((client, clock::now() - begin))
}

/// Until a message has come.
fn read_text(client: &mut TcpStream) -> Result<(), Failure> {
    let (mut bytes, mut buffer) = (Vec::new(), [0; 512]);
    loop {
        let mut rest = bytes.as_slice();
        while let Some((frame, behind)) = frame::split(rest) {
            if frame.first == frame::TEXT {
                return Ok(());
            }
            rest = behind;
        }
        bytes = rest.to_vec();
        let read = client.read(&mut buffer).context("no message")?;
        (read > 0).then_some(()).context("a client was closed")?;
        bytes.extend(buffer.iter().take(read));
    }
}
