# From a clone with rustup's stable Rust, git and make: `make demo`, `make test`. Set-up gets what else they need.

# Outside the clone, so that a second clone builds fast.
export CARGO_TARGET_DIR ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/edge-relay/target

.PHONY: demo test setup

demo: setup ## A simulated exchange, the sample filter, and what a client gets, on the terminal.
	cargo run --package edge-relay -- demo

test: setup ## Every test.
	cargo build
	cargo test

setup:
	@.ci/setup
