// The filter: turns Coinbase's feed into the tenant's publications.
//
// The exchange sends much more, but clients of the channel `prices` receive only the price of each product, at each
// change: {"product":"BTC-USD","price":"60234.1"}. While the exchange is connected, the tenant's state has the latest
// prices and the products that any message has named.
import { get as setting } from "wasi:config/store";
import { log } from "wasi:logging/logging";

import { forget, keep, PRODUCTS, PUBLIC } from "./state.js";

// What has come on the open connection: each product, with its latest price if there was one. A filter's instance
// serves one upstream, one call at a time.
const seen = new Map();

export const filter = {
  // This instance is to serve a connection, new or not. Text is { tag: "text", val: "…" }, binary
  // { tag: "binary", val: Uint8Array }.
  onOpen(_upstream, _connection) {
    const subscribe = setting("subscribe");
    return subscribe == null ? [] : [{ tag: "text", val: subscribe }];
  },

  onFrames(_upstream, _connection, frames) {
    const known = seen.size;
    const publications = frames.map(publication).filter((made) => made !== undefined);
    // One call for the whole batch, since each call goes through the host.
    const changed = new Set(publications.map(({ key }) => key));
    attempt("on-frames", () => {
      keep(PUBLIC, [...changed].map((product) => [product, seen.get(product)]));
      if (seen.size > known) keep(PRODUCTS, [...seen.keys()].map((product) => [product, ""]));
    });
    return publications.map((made) => ({ tag: "publish", val: made }));
  },

  // Without the exchange the state would be out of date.
  onClose(_upstream, _connection, _reason) {
    seen.clear();
    attempt("on-close", () => {
      forget(PUBLIC);
      forget(PRODUCTS);
    });
    return [];
  },
};

// Changes the state if there is room for it. Clients get their prices in any case. An import that fails throws an error
// with the WIT's error as its payload. An error without a payload is a mistake of ours, and goes to the log with its
// stack.
function attempt(context, change) {
  try {
    change();
  } catch (error) {
    if (error.payload === undefined) throw error;
    log("error", context, `the state cannot be changed: ${JSON.stringify(error.payload)}`);
  }
}

// The publication that a message causes: none, unless it is a ticker with a new price.
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
