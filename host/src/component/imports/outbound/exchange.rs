//! One request on a connection of its own: HTTP/1.1, over TLS if its URL says so.

use std::{pin::pin, sync::Arc, time::Duration};

use http_body_util::BodyExt as _;
use hyper::{
    Request, Response, Uri,
    client::conn::http1,
    header::{HeaderName, HeaderValue},
    rt::{Read, Write},
};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{TlsConnector, client::TlsStream};
use wasmtime_wasi_http::{Error, WasiBody};

use crate::{
    component::imports::outbound::{
        RequestFailure, Transmitted,
        body::ArrivingAnswer,
        failure::{exchanging, securing},
    },
    dial::Server,
    shutdown::Stop,
    tls::TlsError,
};

/// Most bytes that are read and not parsed yet: an answer's head, or a part of its body that waits for the guest.
const MAX_BUFFER: usize = 64 << 10;

/// How long a server may be silent.
#[derive(Clone, Copy)]
pub struct Times {
    /// Before the head of its answer.
    pub first: Duration,
    /// Longest time between two parts of the answer's body.
    pub between: Duration,
}

pub enum Connection {
    Plain(TcpStream),
    Secure(Box<TlsStream<TcpStream>>),
}

/// Speaks TLS on a connection if the server wants it.
pub async fn connect(
    stream: TcpStream,
    server: &Server,
    tls: impl FnOnce() -> Result<Arc<ClientConfig>, TlsError>,
) -> Result<Connection, RequestFailure> {
    if !server.secure {
        return Ok(Connection::Plain(stream));
    }
    let tls = tls().map_err(|_| RequestFailure::Code(Error::ConfigurationError))?;
    let name = server.tls_name().ok_or(RequestFailure::Code(Error::HttpRequestUriInvalid))?;
    let secure = TlsConnector::from(tls).connect(name, stream).await.map_err(|error| securing(&error))?;
    Ok(Connection::Secure(Box::new(secure)))
}

impl Connection {
    /// Sends a request and waits for the head of its answer. The body arrives while the guest reads it and the returned
    /// future is polled. It stops when the call ends.
    pub async fn exchange(
        self,
        request: Request<WasiBody>,
        times: Times,
        stop: Stop,
    ) -> Result<(Response<WasiBody>, Transmitted), RequestFailure> {
        match self {
            Self::Plain(stream) => exchange(TokioIo::new(stream), request, times, stop).await,
            Self::Secure(stream) => exchange(TokioIo::new(stream), request, times, stop).await,
        }
    }
}

/// Bytes of an answer's header fields, as they are written (RFC 9112, section 5).
fn head_bytes<B>(answer: &Response<B>) -> usize {
    let field = |(name, value): (&HeaderName, &HeaderValue)| name.as_str().len() + value.len() + ": \r\n".len();
    answer.headers().iter().map(field).sum()
}

async fn exchange(
    stream: impl Read + Write + Unpin + Send + 'static,
    mut request: Request<WasiBody>,
    times: Times,
    mut stop: Stop,
) -> Result<(Response<WasiBody>, Transmitted), RequestFailure> {
    let broken = |error: hyper::Error| RequestFailure::Code(exchanging(&error));
    let handshake = http1::Builder::new().max_buf_size(MAX_BUFFER).handshake(stream).await;
    let (mut sender, connection) = handshake.map_err(broken)?;
    // An origin server expects the path alone (RFC 9112, 3.2.1). The header `host` has the host.
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    let uri = path.parse::<Uri>().map_err(|_| RequestFailure::Code(Error::HttpRequestUriInvalid))?;
    *request.uri_mut() = uri;

    let mut connection = Box::pin(connection);
    let mut answered = pin!(timeout(times.first, sender.send_request(request)));
    let (answer, open) = tokio::select! {
        biased;
        answer = &mut answered => (answer, true),
        ended = &mut connection => {
            ended.map_err(broken)?;
            (answered.await, false)
        }
    };
    let answer = answer.map_err(|_| RequestFailure::Code(Error::ConnectionReadTimeout))?.map_err(broken)?;
    // hyper takes a head that is larger than its buffer if the rest of it comes in one read.
    let head = head_bytes(&answer);
    if head > MAX_BUFFER {
        return Err(RequestFailure::Code(Error::HttpResponseHeaderSectionSize(u32::try_from(head).ok())));
    }
    let answer = answer.map(|body| ArrivingAnswer::new(body, times.between, stop.clone()).boxed_unsync());
    let transmitted = async move {
        if open {
            tokio::select! {
                // The guest learns of an error from the body.
                _ = connection => {}
                () = stop.wait() => {}
            }
        }
        Ok(())
    };
    Ok((answer, Box::new(transmitted)))
}
