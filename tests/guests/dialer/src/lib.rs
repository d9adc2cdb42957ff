//! A dial component that does what the setting `dial` says.
#![allow(unsafe_code)] // Only what `export!` expands to.

use exports::edge_relay::tenant::dialer::{Attempt, Credentials, Guest};
use wasi::config::store;
use wasip2::{
    http::{
        outgoing_handler,
        types::{Fields, IncomingBody, OutgoingRequest, Scheme},
    },
    random::random::get_random_u64,
};

wit_bindgen::generate!({
    path: "../../../wit/edge-relay-tenant@0.1.0",
    world: "dial-component",
    generate_all,
});

struct Dialer;
export!(Dialer);

impl Guest for Dialer {
    /// Tells the partner what it was told, in the path and the query, and sends the secret `key` in a header.
    fn dial(attempt: Attempt) -> Result<Credentials, String> {
        let header = |name: &str, value: String| (name.to_owned(), value);
        let mut headers = vec![header("x-key", setting("key")), header("x-random", get_random_u64().to_string())];
        let mut query = format!("attempt={}&last={:?}&url={}", attempt.number, attempt.last_status, attempt.url);
        let mut path = format!("/{}", attempt.upstream);
        match setting("dial").as_str() {
            "refuse" => return Err("no token\ntoday".to_owned()),
            "trap" => std::process::abort(),
            "loop" => loop {
                std::hint::black_box(attempt.number);
            },
            "fetch" => headers.push(header("x-token", fetch(&setting("origin"))?)),
            "host" => headers.push(header("Host", "elsewhere".to_owned())),
            "line" => headers.push(header("x-line", "a\r\nb".to_owned())),
            "relative" => path = "feed".to_owned(),
            "nothing" => {
                return Ok(Credentials { path: None, query: None, headers: Vec::new() });
            }
            _ => query.push_str("&end"),
        }
        Ok(Credentials { path: Some(path), query: Some(query), headers })
    }
}

fn setting(name: &str) -> String {
    store::get(name).ok().flatten().unwrap_or_default()
}

/// Asks a server for a token.
fn fetch(origin: &str) -> Result<String, String> {
    let request = OutgoingRequest::new(Fields::new());
    let parts = [
        request.set_scheme(Some(&Scheme::Http)),
        request.set_authority(Some(origin)),
        request.set_path_with_query(Some("/")),
    ];
    if parts.contains(&Err(())) {
        return Err("no such origin".to_owned());
    }
    let answer = outgoing_handler::handle(request, None).map_err(|error| format!("{error:?}"))?;
    answer.subscribe().block();
    let Some(Ok(Ok(response))) = answer.get() else { return Err("no answer".to_owned()) };
    let body = response.consume().map_err(|()| "no body".to_owned())?;
    let stream = body.stream().map_err(|()| "no stream".to_owned())?;
    let token = stream.blocking_read(100).map_err(|error| format!("{error:?}"))?;
    drop(stream);
    drop(IncomingBody::finish(body));
    String::from_utf8(token).map_err(|error| error.to_string())
}
