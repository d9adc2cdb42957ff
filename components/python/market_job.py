"""The job: saves all prices at the times of the tenant's schedule, then broadcasts them on the channel `summary`.

Each product has a collection of records, `summary.PRODUCT`, which outlives the host. The API serves it.
"""

from wit_world import exports
from wit_world.imports import records
from wit_world.imports.edge_relay_tenant_types import Frame_Text, Publication

import state


class Job(exports.Job):
    def on_schedule(self, name: str, scheduled_at: int) -> list[Publication]:
        prices = state.prices()
        if not prices:
            return []
        for product, price in prices.items():
            records.append(f"summary.{product}", state.text({"at": scheduled_at, "price": price}).encode())
        data = Frame_Text(state.text(prices))
        return [Publication(channel="summary", key=None, data=data, remove=False, id=None, at=None)]
