//! Sends requests. The parameter `to` is a host with its port, `path` is a path, and `scheme` is http unless it says
//! `https`.

use std::{cell::RefCell, io::Write as _};

use wasip2::{
    http::{
        outgoing_handler,
        types::{
            Fields, FutureIncomingResponse, IncomingBody, IncomingResponse, Method, OutgoingBody, OutgoingRequest,
            RequestOptions, Scheme,
        },
    },
    io::streams::StreamError,
};

use crate::Query;

/// How many bytes are read and written at a time.
const PART: usize = 16 << 10;
const MS: u64 = 1_000_000;

type Done = Result<String, String>;

thread_local! {
    /// A request that is kept after its call, if the host allows it.
    static KEPT: RefCell<Option<FutureIncomingResponse>> = const { RefCell::new(None) };
    /// A response that is kept in the same way.
    static ANSWER: RefCell<Option<IncomingResponse>> = const { RefCell::new(None) };
}

fn request(query: &Query<'_>) -> OutgoingRequest {
    let request = OutgoingRequest::new(Fields::new());
    let scheme = if query.get("scheme") == "https" { Scheme::Https } else { Scheme::Http };
    let _ = request.set_scheme(Some(&scheme));
    let _ = request.set_authority(Some(query.get("to")));
    let path = query.get("path");
    let _ = request.set_path_with_query(Some(path).filter(|path| !path.is_empty()));
    if query.get("method") == "connect" {
        let _ = request.set_method(&Method::Connect);
    }
    request
}

fn options(query: &Query<'_>) -> RequestOptions {
    let options = RequestOptions::new();
    let _ = options.set_first_byte_timeout(query.number("first").map(|ms| ms * MS));
    let _ = options.set_between_bytes_timeout(query.number("between").map(|ms| ms * MS));
    options
}

fn send(request: OutgoingRequest, options: RequestOptions) -> Result<FutureIncomingResponse, String> {
    outgoing_handler::handle(request, Some(options)).map_err(|error| format!("{error:?}"))
}

fn wait(answer: &FutureIncomingResponse) -> Result<IncomingResponse, String> {
    answer.subscribe().block();
    match answer.get() {
        Some(Ok(Ok(response))) => Ok(response),
        Some(Ok(Err(error))) => Err(format!("{error:?}")),
        other => Err(format!("{other:?}")),
    }
}

/// How many bytes a body has, and the beginning of its text. `Err`: how it breaks.
fn body(response: &IncomingResponse) -> Result<(usize, String), String> {
    let body = response.consume().map_err(|()| "consumed".to_owned())?;
    let stream = body.stream().map_err(|()| "streamed".to_owned())?;
    let (mut length, mut text) = (0, String::new());
    let broken = loop {
        match stream.blocking_read(PART as u64) {
            Ok(part) => {
                if length == 0 {
                    text = String::from_utf8_lossy(&part).into_owned();
                }
                length += part.len();
            }
            Err(StreamError::Closed) => break None,
            Err(StreamError::LastOperationFailed(error)) => break Some(error.to_debug_string()),
        }
    };
    drop(stream);
    drop(IncomingBody::finish(body));
    broken.map_or(Ok((length, text)), |error| Err(format!("broken behind {length}: {error}")))
}

pub fn fetch(query: &Query<'_>) -> Done {
    let response = wait(&send(request(query), options(query))?)?;
    let status = response.status();
    let (_, text) = body(&response)?;
    Ok(format!("{status} {text}"))
}

/// Follows a redirect, whose `location` is a host and its port.
pub fn follow(query: &Query<'_>) -> Done {
    let response = wait(&send(request(query), options(query))?)?;
    let location = response.headers().get("location");
    let location = location.first().map(|value| String::from_utf8_lossy(value).into_owned()).unwrap_or_default();
    let next = OutgoingRequest::new(Fields::new());
    let _ = next.set_scheme(Some(&Scheme::Http));
    let _ = next.set_authority(location.strip_prefix("http://"));
    let _ = next.set_path_with_query(Some("/"));
    let status = response.status();
    let led = send(next, options(query)).and_then(|answer| wait(&answer)).map(|response| response.status().to_string());
    Ok(format!("{status} then {}", led.unwrap_or_else(|error| error)))
}

/// Sends as many bytes as `bytes` says. Returns the status and the body of the response.
pub fn upload(query: &Query<'_>) -> Done {
    let request = request(query);
    let _ = request.set_method(&Method::Post);
    let outgoing = request.body().map_err(|()| "no body".to_owned())?;
    let answer = send(request, options(query))?;
    let mut stream = outgoing.write().map_err(|()| "no stream".to_owned())?;
    let part = [b'x'; PART];
    let mut left = query.number("bytes").unwrap_or(0) as usize;
    while left > 0 {
        let length = left.min(PART);
        if stream.write_all(part.get(..length).unwrap_or_default()).is_err() {
            break;
        }
        left -= length;
    }
    drop(stream);
    let _ = OutgoingBody::finish(outgoing, None);
    let response = wait(&answer)?;
    Ok(format!("{} {}", response.status(), body(&response)?.1))
}

/// How many bytes the response has.
pub fn download(query: &Query<'_>) -> Done {
    let response = wait(&send(request(query), options(query))?)?;
    Ok(body(&response)?.0.to_string())
}

/// Begins a request and keeps it. With `answer=yes` it waits for the response to begin, and keeps that.
pub fn keep(query: &Query<'_>) -> Done {
    let begun = send(request(query), options(query))?;
    if query.get("answer") == "yes" {
        ANSWER.replace(Some(wait(&begun)?));
    } else {
        KEPT.replace(Some(begun));
    }
    Ok("kept".to_owned())
}

/// Returns what has become of the kept request or response, in a later call.
pub fn kept() -> Done {
    if let Some(response) = ANSWER.take() {
        return body(&response).map(|(length, _)| length.to_string());
    }
    match KEPT.take() {
        Some(answer) => wait(&answer).map(|response| response.status().to_string()),
        None => Err("nothing kept".to_owned()),
    }
}
