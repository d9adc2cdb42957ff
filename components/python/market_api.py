"""The API: the latest prices over HTTP, through the standard interface wasi:http/incoming-handler.

GET /public answers {"BTC-USD":"60234.1",…}, GET /products a sorted array of products, and
GET /history?product=BTC-USD&limit=10 the summaries that the job has saved, newest first. These paths follow the
tenant's own.
"""

import json

from componentize_py_types import Err, Ok
from wit_world import exports
from wit_world.imports import records
from wit_world.imports.wasi_http_types import (
    Fields,
    IncomingRequest,
    Method_Get,
    Method_Head,
    OutgoingBody,
    OutgoingResponse,
    ResponseOutparam,
)

import state

# The job's collections have this prefix, then the product.
SUMMARIES = "summary."
# How many summaries an answer has unless the query says so, and the most that a u32 can hold.
LIMIT = "100"
MAX_LIMIT = 2**32 - 1
# Most bytes that a stream takes at once.
PIECE = 4096


class IncomingHandler(exports.IncomingHandler):
    def handle(self, request: IncomingRequest, response_out: ResponseOutparam) -> None:
        path, _, query = (request.path_with_query() or "").partition("?")
        reads = isinstance(request.method(), (Method_Get, Method_Head))
        send(response_out, *answer(reads, path, query))


def answer(reads: bool, path: str, query: str) -> tuple[int, object]:
    """The answer's status, and the value that becomes its JSON."""
    match path:
        case "/public" | "/products" | "/history" if not reads:
            return 405, {"error": "only GET and HEAD"}
        case "/public":
            return 200, state.prices()
        case "/products":
            return 200, state.products()
        case "/history":
            return history(query)
    return 404, {"error": "here are /public, /products and /history"}


def history(query: str) -> tuple[int, object]:
    """The summaries that the query asks for."""
    wanted = dict(pair.split("=", 1) for pair in query.split("&") if "=" in pair)
    product, limit = wanted.get("product"), wanted.get("limit", LIMIT)
    if product is None or not (limit.isascii() and limit.isdecimal() and int(limit) <= MAX_LIMIT):
        return 400, {"error": "ask /history?product=BTC-USD&limit=10"}
    try:
        return 200, [json.loads(row.data) for row in records.latest(SUMMARIES + product, int(limit))]
    except Err as error:
        if isinstance(error.value, records.Error_Invalid):
            return 400, {"error": error.value.value}
        return 503, {"error": f"the records cannot be read: {error.value.value}"}


def send(place: ResponseOutparam, status: int, value: object) -> None:
    """Sends the head, the body and the body's end. A client would take a body without its end for a broken one."""
    content = state.text(value).encode()
    headers = Fields.from_list([
        ("content-type", b"application/json"),
        ("content-length", str(len(content)).encode()),
        # Prices are public: a page of any origin may show them.
        ("access-control-allow-origin", b"*"),
    ])
    response = OutgoingResponse(headers)
    response.set_status_code(status)
    body = response.body()
    ResponseOutparam.set(place, Ok(response))
    try:
        with body.write() as stream:
            for at in range(0, len(content), PIECE):
                stream.blocking_write_and_flush(content[at : at + PIECE])
    except Err:
        return  # The client is gone, or asked for the head alone.
    OutgoingBody.finish(body, None)
