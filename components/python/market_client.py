"""The client handler: answers what clients ask on their WebSocket.

{"get":"public"} is answered by {"public":{"BTC-USD":"60234.1",…}}, {"get":"products"} by {"products":["BTC-USD",…]}.
Anything else is answered by an error that says what may be asked.
"""

import json

from wit_world import exports
from wit_world.exports.client_handler import Acceptance, Action, Action_Error, Action_Reply, Client, Error, Kind, Request
from wit_world.imports.edge_relay_tenant_types import Frame, Frame_Text

import state

# The longest question, in characters.
LONGEST = 100


class ClientHandler(exports.ClientHandler):
    def on_connect(self, id: str, request: Request) -> Acceptance:
        """Everybody is let in, to the channels they ask for. To refuse a client: raise Err(Refusal(401, "…"))."""
        return Acceptance(identity=None, channels=None, subprotocol=None)

    def on_subscribe(self, client: Client, channel: str, data: str | None) -> None:
        pass

    def on_message(self, client: Client, kind: Kind, frame: Frame) -> list[Action]:
        if not isinstance(frame, Frame_Text):
            return [wrong("only text is understood")]
        try:
            # JSON with ten thousand brackets would overflow the stack and end the call.
            question = json.loads(frame.value) if len(frame.value) <= LONGEST else None
        except ValueError:
            question = None
        if question == {"get": "public"}:
            return [reply({"public": state.prices()})]
        if question == {"get": "products"}:
            return [reply({"products": state.products()})]
        return [wrong('ask {"get":"public"} or {"get":"products"}')]

    def on_disconnect(self, client: Client, reason: str) -> None:
        pass


def reply(answer: object) -> Action:
    return Action_Reply(Frame_Text(state.text(answer)))


def wrong(message: str) -> Action:
    return Action_Error(Error(code=400, message=message))
