//! Rust types of the WIT packages, made by `bindgen!`: the imports once, with the filter's world, and shared.

pub use crate::component::bindings::filter::{edge_relay, wasi};

pub mod filter {
    wasmtime::component::bindgen!({
        path: "../wit/edge-relay-tenant@0.1.0",
        world: "filter-component",
        imports: {
            "wasi:keyvalue/store": async | trappable,
            "wasi:keyvalue/atomics": async | trappable,
            "wasi:keyvalue/batch": async | trappable,
            "edge-relay:tenant/channels": async,
            "edge-relay:tenant/records": async,
            "edge-relay:tenant/upstreams": async,
        },
        exports: { default: async },
        with: { "wasi:keyvalue/store.bucket": crate::state::Bucket },
        ownership: Borrowing { duplicate_if_necessary: true },
    });
}

/// A further world, with the imports' types of the filter's.
macro_rules! world {
    ($name:ident, $world:literal) => {
        pub mod $name {
            wasmtime::component::bindgen!({
                path: "../wit/edge-relay-tenant@0.1.0",
                world: $world,
                exports: { default: async },
                with: {
                    "edge-relay:tenant": super::edge_relay::tenant,
                    "wasi:config": super::wasi::config,
                    "wasi:keyvalue": super::wasi::keyvalue,
                    "wasi:logging": super::wasi::logging,
                },
                ownership: Borrowing { duplicate_if_necessary: true },
            });
        }
    };
}

world!(demand, "filter-demand-component");
world!(job, "job-component");
world!(client, "client-component");
world!(lease, "client-lease-component");
