"""The tenant's state: what the filter keeps and the other roles read. Values are bytes."""

import json

from wit_world.imports import batch, wasi_keyvalue_store as store

# Product → latest price.
PUBLIC = "public"
# The products that the exchange has named, as keys.
PRODUCTS = "products"


def keep(bucket: str, pairs: dict[str, str]) -> None:
    if pairs:
        batch.set_many(store.open(bucket), [(key, value.encode()) for key, value in pairs.items()])


def forget(bucket: str) -> None:
    opened = store.open(bucket)
    while keys := opened.list_keys(None).keys:
        batch.delete_many(opened, keys)


def prices() -> dict[str, str]:
    """Every product's latest price, by product."""
    bucket = store.open(PUBLIC)
    pairs = batch.get_many(bucket, all_keys(bucket))
    return {product: price.decode() for product, price in filter(None, pairs)}


def products() -> list[str]:
    """The names of all products."""
    return all_keys(store.open(PRODUCTS))


def all_keys(bucket: store.Bucket) -> list[str]:
    """All keys of a bucket. They come sorted, a page at a time."""
    page = bucket.list_keys(None)
    keys = page.keys
    while page.cursor is not None:
        page = bucket.list_keys(page.cursor)
        keys += page.keys
    return keys


def text(value: object) -> str:
    """JSON without spaces, as all of the tenant's clients get it."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
