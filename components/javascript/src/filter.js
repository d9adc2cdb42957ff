// The filter: what the tenant makes of Coinbase's feed.
//
// Of all that the exchange sends, clients of the channel `prices` receive the price of each product, at each change:
// {"product":"BTC-USD","price":"60234.1"}. The tenant's state has, while the exchange is connected, the latest prices and
// the products that any message has named.
import { get as setting } from "wasi:config/store";
import { log } from "wasi:logging/logging";

import { forget, keep, PRODUCTS, PUBLIC } from "./state.js";

// What the open connection has brought: each product, and its latest price if there was one. A filter's instance serves one
// upstream, one call at a time.
const seen = new Map();

export const filter = {
  // A connection was opened. Text is { tag: "text", val: "…" }, binary { tag: "binary", val: Uint8Array }.
  onOpen(_upstream) {
    const subscribe = setting("subscribe");
    return subscribe == null ? [] : [{ tag: "text", val: subscribe }];
  },

  onFrames(_upstream, frames) {
    const known = seen.size;
    const publications = frames.map(publication).filter((made) => made !== undefined);
    // One call for all of a batch: each goes through the host.
    const changed = new Set(publications.map(({ key }) => key));
    attempt("on-frames", () => {
      keep(PUBLIC, [...changed].map((product) => [product, seen.get(product)]));
      if (seen.size > known) keep(PRODUCTS, [...seen.keys()].map((product) => [product, ""]));
    });
    return publications;
  },

  // Without the exchange nothing in the state is the latest.
  onClose(_upstream, _reason) {
    seen.clear();
    attempt("on-close", () => {
      forget(PUBLIC);
      forget(PRODUCTS);
    });
    return [];
  },
};

// Changes the state, if there is room for it; clients get their prices all the same. An import that fails throws an error
// whose payload is what the WIT says of it; an error without is a mistake of ours, which is for the log with its stack.
function attempt(context, change) {
  try {
    change();
  } catch (error) {
    if (error.payload === undefined) throw error;
    log("error", context, `the state cannot be changed: ${JSON.stringify(error.payload)}`);
  }
}

// What a message changes for clients: nothing, unless it is a ticker with a new price.
function publication(frame) {
  if (frame.tag !== "text") return undefined;
  let message;
  try {
    message = JSON.parse(frame.val);
  } catch (error) {
    log("warn", "on-frames", `a message is not JSON: ${error.message}`);
    return undefined;
  }
  const { type, product_id: product, price } = message ?? {};
  if (typeof product !== "string" || product === "") return undefined;
  if (!seen.has(product)) seen.set(product, undefined);
  if (type !== "ticker" || typeof price !== "string" || price === "" || seen.get(product) === price) return undefined;
  seen.set(product, price);
  const data = { tag: "text", val: JSON.stringify({ product, price }) };
  return { channel: "prices", key: product, data, remove: false };
}
