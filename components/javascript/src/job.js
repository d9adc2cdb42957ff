// The job: saves all prices at the times of the tenant's schedule, then broadcasts them on the channel `summary`.
//
// Each product has a collection of records, `summary.PRODUCT`, which outlives the host. The API serves it.
import { append } from "edge-relay:tenant/records";

import { prices } from "./state.js";
import { encode } from "./text.js";

export const job = {
  onSchedule(_name, at) {
    const latest = prices();
    if (Object.keys(latest).length === 0) return [];
    for (const [product, price] of Object.entries(latest)) {
      append(`summary.${product}`, encode(JSON.stringify({ at: Number(at), price })));
    }
    const data = { tag: "text", val: JSON.stringify(latest) };
    return [{ channel: "summary", key: null, data, remove: false }];
  },
};
