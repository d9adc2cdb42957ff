"""Code with mistakes in every role, in Python: each ends in an exception that nobody catches."""

import json

from componentize_py_types import Err
from wit_world import exports
from wit_world.exports.client_handler import Acceptance, Refusal


class Filter(exports.Filter):
    def on_open(self, upstream, connection):
        return []

    def on_close(self, upstream, connection, reason):
        return []

    def on_frames(self, upstream, connection, frames):
        if frames[0].value == "shout":
            raise ValueError(f"first line\n\x1b[31m2021-01-01T00:00:00Z ERROR forged {'x' * 100_000} the end")
        return None.length


class ClientHandler(exports.ClientHandler):
    def on_connect(self, id, request):
        if request.token == "broken":
            raise TypeError("the token is odd")
        if request.token == "refused":
            raise Err(Refusal(402, "pay first"))
        return Acceptance(identity=None, channels=None, subprotocol=None)

    def on_subscribe(self, client, channel, data):
        pass

    def on_message(self, client, kind, frame):
        return json.loads(frame.value)

    def on_disconnect(self, client, reason):
        pass


class IncomingHandler(exports.IncomingHandler):
    def handle(self, request, response_out):
        no_such_function()


class Job(exports.Job):
    def on_schedule(self, name, scheduled_at):
        raise Exception(f"no idea what {name} is")
