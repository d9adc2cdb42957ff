//! An API that does what the path says, whether that is good or bad: see [`answer`].
#![allow(unsafe_code)] // What `export!` expands to, and a handle that is used twice.

use std::{cell::Cell, hint::black_box, io::Write as _, mem::forget, process::abort};

use edge_relay::tenant::{
    channels, records,
    types::{Frame, Publication},
    upstreams,
};
use wasi::{
    config::store as settings,
    keyvalue::store,
    logging::logging::{Level, log},
};
use wasip2::{
    cli::stdout::get_stdout,
    clocks::monotonic_clock,
    http::{
        outgoing_handler,
        types::{
            ErrorCode, Fields, IncomingBody, IncomingRequest, Method, OutgoingBody, OutgoingRequest, OutgoingResponse,
            ResponseOutparam, Scheme,
        },
    },
    io::streams::{OutputStream, StreamError},
    random::random::get_random_bytes,
};

wit_bindgen::generate!({
    path: "../../../wit/edge-relay-tenant@0.1.0",
    world: "imports",
    generate_all,
});

/// How many bytes are read and written at a time.
const PART: usize = 16 << 10;

thread_local! {
    /// How many calls this instance has had.
    static CALLS: Cell<u32> = const { Cell::new(0) };
}

struct Api;
wasip2::http::proxy::export!(Api);

impl wasip2::exports::http::incoming_handler::Guest for Api {
    fn handle(request: IncomingRequest, place: ResponseOutparam) {
        CALLS.set(CALLS.get() + 1);
        answer(request, place);
    }
}

fn answer(request: IncomingRequest, place: ResponseOutparam) {
    let target = request.path_with_query().unwrap_or_default();
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let number = |name: &str| query_value(query, name).parse().unwrap_or(0_u64);
    match path {
        // Good answers.
        "/count" => text(place, CALLS.get().to_string()),
        "/request" => text(place, seen(&request)),
        "/echo" => echo(&request, place),
        "/length" => text(place, until_end(&request).to_string()),
        "/status" => with_status(place, number("is") as u16, Some("answered")),
        "/empty" => with_status(place, number("is") as u16, None),
        "/big" => big(place, number("bytes")),
        "/stream" => stream(place, number("chunks"), number("ms")),
        "/ignore" => text(place, "not read".to_owned()),
        "/fetch" => text(place, fetch(query_value(query, "from"))),
        "/state" => text(place, fill_state(number("bytes") as usize)),
        "/publish" => text(place, publish(query_value(query, "channel"), query_value(query, "text"))),
        "/gap" => text(place, gap(query_value(query, "channel"))),
        "/append" => text(place, append(query)),
        "/append-for" => text(place, append_for(query)),
        "/records" => text(place, newest(query)),
        "/imports" => text(place, imports()),
        // No answer.
        "/silent" => {}
        "/silent-and-keeps" => forget(place),
        "/refuse" => ResponseOutparam::set(place, Err(ErrorCode::InternalError(Some("hush".to_owned())))),
        "/trap" => abort(),
        "/loop" => spin(),
        "/wait" => wait_for_ever(),
        "/memory" => hoard(),
        // An answer with something after it, or less than a whole answer.
        "/twice" => twice(place),
        "/trap-after" => {
            text(place, "all of it".to_owned());
            abort();
        }
        "/trap-after-chunks" => {
            chunked(place, |body| body.is_some_and(|body| body.write("all of it")));
            abort();
        }
        "/die" => half(&request, place, None, || abort()),
        "/die-with-length" => half(&request, place, Some("12"), || abort()),
        "/die-at-once" => {
            let mut body = begin(place, &[]);
            if let Some(body) = &mut body {
                body.write("half ");
            }
            abort();
        }
        "/hang" => half(&request, place, None, || wait_for_ever()),
        "/drop" => half(&request, place, None, || {}),
        "/keep" => {
            // The body is begun and never ended, and its handles are kept.
            let body = begin(place, &[]);
            forget(body.map(|mut body| body.write("half ").then_some(body)));
        }
        "/keep-all" => {
            forget(request.consume());
            forget(request);
            text(place, "kept".to_owned());
        }
        "/too-long" => too_long(place),
        "/leak" => {
            for _ in 0..number("handles") {
                forget(Fields::new());
            }
            text(place, "leaked".to_owned());
        }
        "/parts" => text(place, parts(|name| number(name) as usize)),
        "/random" => {
            black_box(get_random_bytes(number("bytes")));
            text(place, "done".to_owned());
        }
        "/stdout" => {
            let _ = get_stdout().write(&vec![b'x'; number("bytes") as usize]);
            text(place, "done".to_owned());
        }
        _ => with_status(place, 404, Some("no such path")),
    }
}

/// Sets a request's parts and a field to texts of these lengths. Says which were taken, and how much the body's stream
/// takes.
fn parts(length: impl Fn(&str) -> usize) -> String {
    let (request, of) = (OutgoingRequest::new(Fields::new()), |name| "x".repeat(length(name)));
    let method = request.set_method(&Method::Other(of("method"))).is_ok();
    let authority = request.set_authority(Some(&of("authority"))).is_ok();
    let path = request.set_path_with_query(Some(&format!("/{}", of("path").split_off(1)))).is_ok();
    let field = Fields::new().set("x", &[of("field").into_bytes()]).is_ok();
    let body = request.body().ok();
    let stream = body.as_ref().and_then(|body| body.write().ok());
    let taken = stream.as_ref().and_then(|stream| stream.check_write().ok()).unwrap_or_default();
    format!("{method} {authority} {path} {field} {taken}")
}

/// Appends `rows` rows one after another, numbered from `first` on. Each is its number, filled up to `bytes` bytes.
/// Says how many were taken, and the first error.
fn append(query: &str) -> String {
    let number = |name: &str| query_value(query, name).parse().unwrap_or(0_u64);
    let (first, rows, bytes) = (number("first"), number("rows"), number("bytes") as usize);
    let collection = query_value(query, "to");
    for nth in 0..rows {
        let mut row = (first + nth).to_string().into_bytes();
        row.resize(row.len().max(bytes), b' ');
        if let Err(error) = records::append(collection, &row) {
            return format!("{nth} {error:?}");
        }
    }
    rows.to_string()
}

/// Appends rows of `bytes` bytes one after another for `ms` milliseconds. Says how many microseconds each took.
fn append_for(query: &str) -> String {
    let number = |name: &str| query_value(query, name).parse().unwrap_or(0_u64);
    let row = vec![b'x'; number("bytes") as usize];
    let end = monotonic_clock::now() + number("ms") * 1_000_000;
    let mut took = Vec::new();
    loop {
        let begun = monotonic_clock::now();
        if begun >= end {
            return took.join(" ");
        }
        match records::append(query_value(query, "to"), &row) {
            Ok(_) => took.push(((monotonic_clock::now() - begun) / 1000).to_string()),
            Err(error) => return format!("{error:?}"),
        }
    }
}

/// The texts of the newest rows in a collection.
fn newest(query: &str) -> String {
    let count = query_value(query, "count").parse().unwrap_or(0);
    let text = |row: &records::Entry| String::from_utf8_lossy(&row.data).trim_end().to_owned();
    match records::latest(query_value(query, "of"), count) {
        Ok(rows) => rows.iter().map(text).collect::<Vec<_>>().join(" "),
        Err(error) => format!("{error:?}"),
    }
}

/// A parameter of a query, without any decoding.
fn query_value<'q>(query: &'q str, name: &str) -> &'q str {
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    pairs.filter(|(key, _)| *key == name).map(|(_, value)| value).next().unwrap_or_default()
}

/// The body of an answer that has begun.
struct Body {
    stream: OutputStream,
    body: OutgoingBody,
}

impl Body {
    /// Writes to the body. `false`: the client no longer takes it.
    fn write(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.stream.write_all(bytes.as_ref()).is_ok()
    }

    fn end(self) {
        drop(self.stream);
        let _ = OutgoingBody::finish(self.body, None);
    }
}

/// Sends the head of an answer.
fn begin(place: ResponseOutparam, headers: &[(&str, &str)]) -> Option<Body> {
    let fields = Fields::new();
    for (name, value) in headers {
        let _ = fields.append(name, value.as_bytes());
    }
    let response = OutgoingResponse::new(fields);
    let body = response.body().ok()?;
    ResponseOutparam::set(place, Ok(response));
    Some(Body { stream: body.write().ok()?, body })
}

/// Sends an answer without a length. It is ended if `write` returns true.
fn chunked(place: ResponseOutparam, write: impl FnOnce(Option<&mut Body>) -> bool) {
    let mut body = begin(place, &[]);
    if write(body.as_mut())
        && let Some(body) = body
    {
        body.end();
    }
}

fn text(place: ResponseOutparam, text: String) {
    if let Some(mut body) = begin(place, &[("content-length", &text.len().to_string())])
        && body.write(text)
    {
        body.end();
    }
}

fn with_status(place: ResponseOutparam, status: u16, text: Option<&str>) {
    let response = OutgoingResponse::new(Fields::new());
    if response.set_status_code(status).is_err() {
        return ResponseOutparam::set(place, Err(ErrorCode::InternalError(None)));
    }
    let body = text.and_then(|_| response.body().ok());
    ResponseOutparam::set(place, Ok(response));
    if let (Some(body), Some(text)) = (body, text)
        && let Ok(stream) = body.write()
    {
        let mut body = Body { body, stream };
        body.write(text);
        body.end();
    }
}

/// Returns the request as the guest sees it, in JSON.
fn seen(request: &IncomingRequest) -> String {
    let headers = request.headers().entries();
    let headers: Vec<_> = headers.iter().map(|(name, value)| (name.as_str(), String::from_utf8_lossy(value))).collect();
    serde_json::json!({
        "method": format!("{:?}", request.method()),
        "path": request.path_with_query(),
        "scheme": format!("{:?}", request.scheme()),
        "authority": request.authority(),
        "headers": headers,
    })
    .to_string()
}

/// Reads the request's body part by part. Returns whether it came to its end.
fn read(request: &IncomingRequest, mut each: impl FnMut(&[u8]) -> bool) -> bool {
    let Ok(body) = request.consume() else { return false };
    let Ok(stream) = body.stream() else { return false };
    let whole = loop {
        match stream.blocking_read(PART as u64) {
            Ok(part) if each(&part) => {}
            Err(StreamError::Closed) => break true,
            _ => break false,
        }
    };
    drop(stream);
    drop(IncomingBody::finish(body));
    whole
}

/// Sends the body back as it comes.
fn echo(request: &IncomingRequest, place: ResponseOutparam) {
    chunked(place, |body| body.is_some_and(|body| read(request, |part| body.write(part))));
}

/// Reads the request's body to its end. Returns how many bytes it has.
#[inline(never)] // It has a name in backtraces.
fn until_end(request: &IncomingRequest) -> usize {
    let mut length = 0;
    read(request, |part| {
        length += part.len();
        true
    });
    length
}

fn big(place: ResponseOutparam, bytes: u64) {
    let Some(mut body) = begin(place, &[]) else { return };
    let part = [b'x'; PART];
    let mut left = bytes as usize;
    while left > 0 {
        let length = left.min(PART);
        if !body.write(part.get(..length).unwrap_or_default()) {
            return;
        }
        left -= length;
    }
    body.end();
}

/// Sends an answer in this many chunks, with a pause after each.
fn stream(place: ResponseOutparam, chunks: u64, ms: u64) {
    let Some(mut body) = begin(place, &[]) else { return };
    for chunk in 0..chunks {
        if !body.write(format!("chunk {chunk}\n")) {
            return;
        }
        monotonic_clock::subscribe_duration(ms * 1_000_000).block();
    }
    body.end();
}

/// Sends half of an answer, reads the request's body to its end, calls `then`, and drops the answer.
fn half(request: &IncomingRequest, place: ResponseOutparam, length: Option<&str>, then: impl FnOnce()) {
    let headers: &[_] = match length {
        Some(length) => &[("content-length", length)],
        None => &[],
    };
    let Some(mut body) = begin(place, headers) else { return };
    body.write("half ");
    until_end(request);
    then();
    // The body is dropped here without being ended.
}

/// Writes more than the answer's length, and logs the error's text.
fn too_long(place: ResponseOutparam) {
    let Some(body) = begin(place, &[("content-length", "1")]) else { return };
    if let Err(StreamError::LastOperationFailed(error)) = body.stream.blocking_write_and_flush(b"too long") {
        log(Level::Info, "error", &error.to_debug_string());
    }
}

/// Gives an answer, then another one through the same handle.
fn twice(place: ResponseOutparam) {
    let handle = place.take_handle();
    // SAFETY: the second use is of a handle that no longer exists. The host's table of handles refuses it.
    let (first, second) = unsafe { (ResponseOutparam::from_handle(handle), ResponseOutparam::from_handle(handle)) };
    chunked(first, |body| body.is_some_and(|body| body.write("the first")));
    text(second, "the second".to_owned());
}

/// Sends a request. Says how it ends.
fn fetch(authority: &str) -> String {
    let request = OutgoingRequest::new(Fields::new());
    let _ = request.set_scheme(Some(&Scheme::Http));
    let _ = request.set_authority(Some(authority));
    let _ = request.set_path_with_query(Some("/"));
    match outgoing_handler::handle(request, None) {
        Ok(answer) => {
            answer.subscribe().block();
            match answer.get() {
                Some(Ok(Ok(response))) => format!("status {}", response.status()),
                other => format!("{other:?}"),
            }
        }
        Err(why) => format!("{why:?}"),
    }
}

/// Sets keys with values of `bytes` bytes until there is no more room. Returns how many keys were set, and why the last
/// one was refused.
fn fill_state(bytes: usize) -> String {
    let bucket = match store::open("default") {
        Ok(bucket) => bucket,
        Err(why) => return format!("{why:?}"),
    };
    for key in 0.. {
        if let Err(why) = bucket.set(&key.to_string(), &vec![0; bytes]) {
            return format!("{key} keys, then {why:?}");
        }
    }
    String::new()
}

fn publish(channel: &str, text: &str) -> String {
    let data = Frame::Text(text.to_owned());
    let publication = Publication { channel: channel.to_owned(), key: None, data, remove: false, id: None, at: None };
    format!("{:?}", channels::publish(&[publication]))
}

fn gap(channel: &str) -> String {
    let channels: Vec<_> = Some(channel.to_owned()).filter(|channel| !channel.is_empty()).into_iter().collect();
    format!("{:?}", channels::gap(&channels, "api"))
}

fn imports() -> String {
    let status = upstreams::status("none").map_err(|error| error.name());
    format!("{:?} {status:?} {:?}", channels::latest("out"), settings::get("greeting"))
}

#[inline(never)] // It has a name in backtraces, as the next one.
fn spin() -> ! {
    loop {
        black_box(());
    }
}

/// Waits for ever, without working.
#[inline(never)]
fn wait_for_ever() -> ! {
    loop {
        monotonic_clock::subscribe_duration(u64::MAX / 2).block();
    }
}

fn hoard() -> ! {
    let mut hoard = Vec::new();
    loop {
        hoard.push(black_box(vec![1_u8; 1 << 20]));
    }
}
