//! One tenant is used for the first time, in each of its roles.

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

/// How long the first work of each role took, in ns, connections and handshakes included.
#[derive(Clone, Copy)]
pub struct Visit {
    /// From the start of a client's connection until the handler has let it in and it follows its channel.
    pub client: u64,
    /// From the partner's first message, right after the upstream's handshake, until the filter's publication is at the
    /// client.
    pub filter: u64,
    /// From the start of a request to the end of its answer.
    pub api: u64,
}

/// Uses a tenant whose upstream is on demand and connects to this partner.
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

/// Reads until a message has come.
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
