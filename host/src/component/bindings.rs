//! Rust types of the WIT packages, made by `bindgen!`.

wasmtime::component::bindgen!({
    path: "../wit/edge-relay-tenant@0.1.0",
    world: "filter-component",
    imports: {
        "wasi:keyvalue/store": async | trappable,
        "wasi:keyvalue/atomics": async | trappable,
        "wasi:keyvalue/batch": async | trappable,
        "edge-relay:tenant/channels.publish": async,
    },
    exports: { default: async },
    with: { "wasi:keyvalue/store.bucket": crate::state::Bucket },
    ownership: Borrowing { duplicate_if_necessary: true },
});
