#!/usr/bin/env bash
# Runs the Autobahn TestSuite's fuzzing client against the sample tenant `echo`, compression included: `make
# conformance`. Prints the failed cases, the cases by behavior, and last 'N passed, N failed'. Exit code 1: a case
# failed; 2: the suite is missing.
#
# The variable AUTOBAHN may name a command that runs the suite. It is called with a URL and patterns of cases
# (`1.*,2.*`), and prints the same lines. Without it, docker or podman runs the suite's container.
set -euo pipefail
cd "$(dirname "$0")/.."

# All cases except 9, which measures speed, and 11, which is empty.
readonly PLAIN='1.*,2.*,3.*,4.*,5.*,6.*,7.*,10.*'
# The cases of permessage-deflate. Here UNIMPLEMENTED is a failure.
readonly COMPRESSED='12.*,13.*'
readonly IMAGE=crossbario/autobahn-testsuite
readonly RELAY="${CARGO_TARGET_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/edge-relay/target}/debug/edge-relay"

fail() {
    echo "conformance: $*" >&2
    exit 2
}

# Prints the report's cases, one in each line: case, behavior, behavior at the close.
cases_of() {
    awk -F'"' '$2 ~ /^[0-9.]+$/ { id = $2 } $2 == "behavior" { how = $4 } $2 == "behaviorClose" { print id, how, $4 }' "$1"
}

in_container() {
    local options=(run --rm --network host --volume "$work:/suite")
    [ "$container" = podman ] || options+=(--user "$(id -u):$(id -g)")
    local patterns="\"${2//,/\",\"}\""
    rm -rf "$work/report"
    echo "{\"outdir\":\"/suite/report\",\"servers\":[{\"agent\":\"relay\",\"url\":\"$1\"}],\"cases\":[$patterns]," \
        '"exclude-cases":[],"exclude-agent-cases":{}}' >"$work/spec.json"
    "$container" "${options[@]}" "$IMAGE" wstest -m fuzzingclient -s /suite/spec.json >"$work/suite.log" 2>&1 || true
    [ -f "$work/report/index.json" ] || fail "$container did not run the suite (or set AUTOBAHN): $(tail "$work/suite.log")"
    cases_of "$work/report/index.json" | sort -V | awk '
        function fine(how) { return how ~ /^(OK|NON-STRICT|INFORMATIONAL|UNIMPLEMENTED)$/ }
        { by[$2]++ }
        fine($2) && fine($3) { passed++; next }
        { failed++; print $1 ": " $2 ", close " $3 }
        END {
            for (how in by) all = all ", " how " " by[how]
            print "cases by behavior: " substr(all, 3)
            print passed + 0 " passed, " failed + 0 " failed"
        }'
}

if [ -z "${AUTOBAHN:-}" ]; then
    container=$(command -v podman docker | head -n 1) ||
        fail "the suite is missing: install podman or docker, or set AUTOBAHN to a command that takes a URL and cases"
    container=$(basename "$container")
fi

work=$(mktemp -d)
relay=
trap '[ -z "$relay" ] || kill "$relay" 2>/dev/null || true; rm -rf "$work"' EXIT

mkdir -p "$work/tenants/echo"
"$RELAY" component build components/echo -o "$work/tenants/echo/echo.wasm" >/dev/null
{
    # Compresses every message, however short.
    echo 'compression = { above = 0 }'
    cat components/echo/tenant.toml
} >"$work/tenants/echo/tenant.toml"
cat >"$work/relay.toml" <<TOML
tenants = "tenants"
[listen]
clients = "127.0.0.1:0"
api = "127.0.0.1:0"
admin = "127.0.0.1:0"
TOML
(cd "$work" && exec "$RELAY" serve --config relay.toml >stdout 2>stderr) &
relay=$!
until address=$(sed -n 's/^listening clients=\([^ ]*\).*/\1/p' "$work/stdout" 2>/dev/null) && [ -n "$address" ]; do
    kill -0 "$relay" 2>/dev/null || fail "the relay does not start: $(cat "$work/stderr")"
    sleep 0.1
done

all_passed=0
all_failed=0
for cases in "$PLAIN" "$COMPRESSED"; do
    echo "cases $cases" >&2
    if [ -n "${AUTOBAHN:-}" ]; then
        # A command may have arguments.
        # shellcheck disable=SC2086
        $AUTOBAHN "ws://$address/echo" "$cases" >"$work/result" || true
    else
        in_container "ws://$address/echo" "$cases" >"$work/result"
    fi
    read -r passed failed < <(sed -n 's/^\([0-9]*\) passed, \([0-9]*\) failed$/\1 \2/p' "$work/result") ||
        fail "the suite did not finish: $(cat "$work/result")"
    grep -v ' passed, ' "$work/result"
    if [ "$cases" = "$COMPRESSED" ]; then
        unimplemented=$(sed -n 's/^cases by behavior:.*UNIMPLEMENTED \([0-9]*\).*/\1/p' "$work/result")
        passed=$((passed - ${unimplemented:-0}))
        failed=$((failed + ${unimplemented:-0}))
    fi
    all_passed=$((all_passed + passed))
    all_failed=$((all_failed + failed))
done
echo "$all_passed passed, $all_failed failed"
[ "$all_failed" = 0 ]
