// The tenant's state: what the filter keeps and the other roles read. Values are bytes.
import { open } from "wasi:keyvalue/store";
import { deleteMany, getMany, setMany } from "wasi:keyvalue/batch";

import { decode, encode } from "./text.js";

// Product → latest price.
export const PUBLIC = "public";
// The products that the exchange has named, as keys.
export const PRODUCTS = "products";

export function keep(bucket, pairs) {
  if (pairs.length > 0) setMany(open(bucket), pairs.map(([key, text]) => [key, encode(text)]));
}

export function forget(bucket) {
  const opened = open(bucket);
  for (let all = keys(opened); all.length > 0; all = keys(opened)) deleteMany(opened, all);
}

// Every product's latest price, by product.
export function prices() {
  const bucket = open(PUBLIC);
  const pairs = getMany(bucket, keys(bucket)).filter((pair) => pair != null);
  return Object.fromEntries(pairs.map(([product, price]) => [product, decode(price)]));
}

// The names of all products.
export function products() {
  return keys(open(PRODUCTS));
}

// All keys of a bucket. They come sorted, a page at a time.
function keys(bucket) {
  const all = [];
  let cursor = null;
  do {
    const page = bucket.listKeys(cursor);
    all.push(...page.keys);
    cursor = page.cursor;
  } while (cursor != null);
  return all;
}
