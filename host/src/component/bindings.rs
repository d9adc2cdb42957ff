//! Rust types of the WIT packages, made by `bindgen!`.

wasmtime::component::bindgen!({
    path: "../wit/edge-relay-tenant@0.1.0",
    world: "filter-component",
    exports: { default: async },
    ownership: Borrowing { duplicate_if_necessary: true },
});
