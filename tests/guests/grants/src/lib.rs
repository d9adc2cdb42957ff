//! An API that tries to use what a manifest may grant: see [`answer`].
#![allow(unsafe_code)] // What `export!` expands to.

use std::io::Write as _;

use wasi::config::store as config;
use wasip2::{
    cli::environment,
    http::types::{Fields, IncomingRequest, OutgoingBody, OutgoingResponse, ResponseOutparam},
    sockets::{network::IpAddressFamily, tcp_create_socket::create_tcp_socket},
};

mod files;
mod web;

wit_bindgen::generate!({
    path: "../../../wit/edge-relay-tenant@0.1.0",
    world: "imports",
    generate_all,
});

struct Api;
wasip2::http::proxy::export!(Api);

impl wasip2::exports::http::incoming_handler::Guest for Api {
    fn handle(request: IncomingRequest, place: ResponseOutparam) {
        let target = request.path_with_query().unwrap_or_default();
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        text(place, &answer(path, &Query(query)));
    }
}

/// The parameters of a request, without any decoding.
struct Query<'q>(&'q str);

impl<'q> Query<'q> {
    fn get(&self, name: &str) -> &'q str {
        let pairs = self.0.split('&').filter_map(|pair| pair.split_once('='));
        pairs.filter(|(key, _)| *key == name).map(|(_, value)| value).next().unwrap_or_default()
    }

    fn number(&self, name: &str) -> Option<u64> {
        self.get(name).parse().ok()
    }
}

/// Does what the path says. Returns the result, or the name of the error.
fn answer(path: &str, query: &Query<'_>) -> String {
    let done = match path {
        "/folders" => Ok(files::folders()),
        "/read" => files::read(query.get("path")),
        "/list" => files::list(query.get("path")),
        "/listings" => files::listings(query.get("path"), query.number("count").unwrap_or_default()),
        "/open" => files::open(query.get("path"), query.number("count").unwrap_or_default()),
        "/write" => files::write(query.get("path"), query.get("text")),
        "/remove" => files::remove(query.get("path")),
        "/link" => files::link(query.get("path"), query.get("to")),
        "/rename" => files::rename(query.get("path"), query.get("to")),
        "/environment" => Ok(variables()),
        "/config" => Ok(format!("{:?}", config::get(query.get("key")))),
        "/configs" => Ok(format!("{:?}", config::get_all())),
        "/fetch" => web::fetch(query),
        "/follow" => web::follow(query),
        "/upload" => web::upload(query),
        "/download" => web::download(query),
        "/keep" => web::keep(query),
        "/kept" => web::kept(),
        "/socket" => Ok(format!("{:?}", create_tcp_socket(IpAddressFamily::Ipv4).map(drop))),
        _ => Err("no such path".to_owned()),
    };
    done.unwrap_or_else(|error| error)
}

/// The guest's environment variables, arguments and working folder.
fn variables() -> String {
    let (arguments, folder) = (environment::get_arguments(), environment::initial_cwd());
    let mut variables = environment::get_environment();
    variables.sort();
    format!("{variables:?} {arguments:?} {folder:?}")
}

fn text(place: ResponseOutparam, text: &str) {
    let response = OutgoingResponse::new(Fields::new());
    let Ok(body) = response.body() else { return };
    ResponseOutparam::set(place, Ok(response));
    let Ok(mut stream) = body.write() else { return };
    let written = stream.write_all(text.as_bytes());
    drop(stream);
    if written.is_ok() {
        let _ = OutgoingBody::finish(body, None);
    }
}
