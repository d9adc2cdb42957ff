# From a clone with rustup's stable Rust, git and make: `make demo`, `make test`. Set-up gets what else they need.

# Outside the clone, so that a second clone builds fast.
export CARGO_TARGET_DIR ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/edge-relay/target
# The client libraries that tests use as their users do.
export CLIENT_TOOLS ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/edge-relay/tools/clients
# The database servers that tests start.
export DATABASE_TOOLS ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/edge-relay/tools/databases
# The proxies that tests put in front of the relay.
export PROXY_TOOLS ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/edge-relay/tools/proxies
# The toolchains of the languages that sample tenants are written in.
export LANGUAGE_TOOLS ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/edge-relay/tools/languages
# The servers that the benchmark measures beside the relay.
export BENCH_TOOLS ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/edge-relay/tools/bench

.PHONY: demo test conformance fuzz bench bench-records setup

demo: setup ## A simulated exchange, the sample filter, and a page with what a client gets; its URL is printed first.
	@cargo run --package edge-relay -- demo

test: ## Every test; the last line says how many passed, failed and were skipped.
	@.ci/setup tests
	@tests/run

conformance: setup ## The Autobahn TestSuite against the tenant `echo`, in its container or by the command in AUTOBAHN.
	cargo build
	@tests/conformance.sh

fuzz: setup ## Every fuzz target, four minutes of a processor together; it takes nightly Rust. Longer: FUZZ_SECONDS=3600, for each.
	@tests/fuzz/run

bench: ## What a delivery costs, beside other servers, as tables. Some of it: ARGS="--only paced --runs 7"; all of ARGS: --help.
	@.ci/setup bench
	cargo build --release --package edge-relay --package bench
	@$(CARGO_TARGET_DIR)/release/bench $(ARGS)

bench-records: setup ## What records cost, as a table; some minutes.
	@.ci/setup tests
	cargo bench --bench records

setup:
	@.ci/setup
