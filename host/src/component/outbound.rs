//! Requests that guests send: none, as nothing grants them. The import is there because components of `wasi:http` worlds
//! have it whether they use it or not.

use hyper::{Request, Response};
use wasmtime_wasi_http::{Error, RequestOptions, Result, WasiBody, WasiHttpHooks};

/// What a component's outgoing requests meet.
pub struct Outbound;

type Transmitted = Box<dyn Future<Output = Result<(), Error>> + Send>;

impl WasiHttpHooks for Outbound {
    fn send_request(
        &mut self,
        _: Request<WasiBody>,
        _: Option<RequestOptions>,
        _: Transmitted,
    ) -> Box<dyn Future<Output = Result<(Response<WasiBody>, Transmitted)>> + Send> {
        Box::new(async { Err(Error::HttpRequestDenied) })
    }
}
