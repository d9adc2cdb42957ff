// The API: the latest prices over HTTP, through the standard interface wasi:http/incoming-handler.
//
// GET /public answers {"BTC-USD":"60234.1",…}, GET /products a sorted array of products, and GET
// /history?product=BTC-USD&limit=10 the summaries that the job has saved, newest first. These paths follow the tenant's
// own.
import { Fields, OutgoingBody, OutgoingResponse, ResponseOutparam } from "wasi:http/types";
import { latest } from "edge-relay:tenant/records";

import { prices, products } from "./state.js";
import { decode, encode } from "./text.js";

// The job's collections have this prefix, then the product.
const SUMMARIES = "summary.";
// How many summaries an answer has unless the query says so, and the most that a u32 can hold.
const LIMIT = 100;
const MAX_LIMIT = 2 ** 32 - 1;
// Most bytes that a stream takes at once.
const PIECE = 4096;

export const incomingHandler = {
  handle(request, place) {
    const [path, query = ""] = (request.pathWithQuery() ?? "").split(/\?(.*)/s);
    const reads = ["get", "head"].includes(request.method().tag);
    const answer = { "/public": () => [200, prices()], "/products": () => [200, products()], "/history": history }[path];
    if (answer === undefined) return send(place, 404, { error: "here are /public, /products and /history" });
    if (!reads) return send(place, 405, { error: "only GET and HEAD" });
    send(place, ...answer(query));
  },
};

// The summaries that the query asks for.
function history(query) {
  const wanted = Object.fromEntries(query.split("&").map((pair) => pair.split(/=(.*)/s)));
  const limit = /^[0-9]+$/.test(wanted.limit ?? LIMIT) ? Number(wanted.limit ?? LIMIT) : Infinity;
  if (wanted.product === undefined || limit > MAX_LIMIT) return [400, { error: "ask /history?product=BTC-USD&limit=10" }];
  try {
    return [200, latest(SUMMARIES + wanted.product, limit).map((row) => JSON.parse(decode(row.data)))];
  } catch (error) {
    // As in the filter: an error without a payload is a mistake of ours.
    if (error.payload === undefined) throw error;
    const { tag, val } = error.payload;
    return tag === "invalid" ? [400, { error: val }] : [503, { error: `the records cannot be read: ${val}` }];
  }
}

// Sends the head, then the body, then the body's end. A client would take a body without its end for a broken one.
function send(place, status, value) {
  const bytes = encode(JSON.stringify(value));
  const headers = Fields.fromList([
    ["content-type", encode("application/json")],
    ["content-length", encode(String(bytes.length))],
    // Prices are public: a page of any origin may show them.
    ["access-control-allow-origin", encode("*")],
  ]);
  const response = new OutgoingResponse(headers);
  response.setStatusCode(status);
  const body = response.body();
  ResponseOutparam.set(place, { tag: "ok", val: response });
  const stream = body.write();
  try {
    for (let at = 0; at < bytes.length; at += PIECE) stream.blockingWriteAndFlush(bytes.slice(at, at + PIECE));
  } catch {
    return; // The client is gone, or asked for the head alone.
  } finally {
    stream[Symbol.dispose]();
  }
  OutgoingBody.finish(body, null);
}
