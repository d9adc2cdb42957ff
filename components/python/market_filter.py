"""The filter: turns Coinbase's feed into the tenant's publications.

The exchange sends much more, but clients of the channel `prices` receive only the price of each product, at each
change: {"product":"BTC-USD","price":"60234.1"}. While the exchange is connected, the tenant's state has the latest
prices and the products that any message has named.
"""

import json
from contextlib import contextmanager

from componentize_py_types import Err
from wit_world import exports
from wit_world.imports import logging, wasi_config_store as settings
from wit_world.imports.edge_relay_tenant_types import (
    Connection,
    Frame,
    Frame_Text,
    Output,
    Output_Publish,
    Publication,
)

import state

CHANNEL = "prices"


@contextmanager
def attempt(context: str):
    """Changes the state if there is room for it. Clients get their prices in any case."""
    try:
        yield
    except Err as error:  # An import's own error. Others are mistakes of ours: they go to the log with their traceback.
        logging.log(logging.Level.ERROR, context, f"the state cannot be changed: {error.value}")


class Filter(exports.Filter):
    def __init__(self) -> None:
        # What has come on the open connection: each product, with its latest price if there was one. A filter's
        # instance serves one upstream, one call at a time, with one object of this class for all calls.
        self.seen: dict[str, str | None] = {}

    def on_open(self, upstream: str, connection: Connection) -> list[Frame]:
        subscribe = settings.get("subscribe")
        return [] if subscribe is None else [Frame_Text(subscribe)]

    def on_frames(self, upstream: str, connection: int, frames: list[Frame]) -> list[Output]:
        known = len(self.seen)
        publications = [made for frame in frames if (made := self.publication(frame))]
        with attempt("on-frames"):
            # One call for the whole batch, since each call goes through the host.
            state.keep(state.PUBLIC, {made.key: self.seen[made.key] for made in publications})
            if len(self.seen) > known:
                state.keep(state.PRODUCTS, dict.fromkeys(self.seen, ""))
        return [Output_Publish(made) for made in publications]

    def on_close(self, upstream: str, connection: int, reason: str) -> list[Output]:
        # Without the exchange the state would be out of date.
        self.seen.clear()
        with attempt("on-close"):
            state.forget(state.PUBLIC)
            state.forget(state.PRODUCTS)
        return []

    def publication(self, frame: Frame) -> Publication | None:
        """The publication that a message causes: none, unless it is a ticker with a new price."""
        if not isinstance(frame, Frame_Text):
            return None
        try:
            message = json.loads(frame.value)
        except ValueError as error:
            logging.log(logging.Level.WARN, "on-frames", f"a message is not JSON: {error}")
            return None
        match message:
            case {"product_id": str(product), **rest} if product:
                last = self.seen.setdefault(product, None)
            case _:
                return None
        match rest:
            case {"type": "ticker", "price": str(price)} if price and price != last:
                self.seen[product] = price
                data = Frame_Text(state.text({"product": product, "price": price}))
                return Publication(channel=CHANNEL, key=product, data=data, remove=False, id=None, at=None)
        return None
