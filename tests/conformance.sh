#!/usr/bin/env bash
# Runs the Autobahn TestSuite, compression included: `make conformance`. Its fuzzing client tests the relay as a server,
# with the sample tenant `echo`; its fuzzing server tests it as a partner's client, with the guest `mirror`. Prints the
# failed cases, the cases by behavior, and last 'N passed, N failed'. Exit code 1: a case failed; 2: the suite is missing.
#
# The variable AUTOBAHN may name a command that runs the fuzzing client. It is called with a URL and patterns of cases
# (`1.*,2.*`), and prints the same lines. WSTEST may name a command that runs the suite's `wstest` with its arguments.
# Without them, docker or podman runs the suite's container.
set -euo pipefail
cd "$(dirname "$0")/.."

# All cases except 9, which measures speed, and 11, which is empty.
readonly PLAIN='1.*,2.*,3.*,4.*,5.*,6.*,7.*,10.*'
# The cases of permessage-deflate. Here UNIMPLEMENTED is a failure.
readonly COMPRESSED='12.*,13.*'
readonly LISTEN='[listen]
clients = "127.0.0.1:0"
api = "127.0.0.1:0"
admin = "127.0.0.1:0"'
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
    cases_of "$work/report/index.json" | summary
}

# Prints the failed cases, the cases by behavior, and 'N passed, N failed' of the cases of `cases_of`. What is not
# implemented is a failure among the cases of compression.
summary() {
    sort -V | awk '
        function fine(id, how) { return how ~ /^(OK|NON-STRICT|INFORMATIONAL)$/ || how == "UNIMPLEMENTED" && id !~ /^1[23]\./ }
        { by[$2]++ }
        fine($1, $2) && fine($1, $3) { passed++; next }
        { failed++; print $1 ": " $2 ", close " $3 }
        END {
            for (how in by) all = all ", " how " " by[how]
            print "cases by behavior: " substr(all, 3)
            print passed + 0 " passed, " failed + 0 " failed"
        }'
}

# Runs the fuzzing server with the specification in the work's folder, until it is killed.
fuzzing_server() {
    if [ -n "${WSTEST:-}" ]; then
        # A command may have arguments.
        # shellcheck disable=SC2086
        exec $WSTEST -m fuzzingserver -s "$work/server.json"
    fi
    exec "$container" run --rm --network host --volume "$work:$work" "$IMAGE" wstest -m fuzzingserver -s "$work/server.json"
}

# Tests the relay as a partner's client.
as_client() {
    local folder=$work/client port=9101
    mkdir -p "$folder/tenants/mirror" "$folder/report"
    "$RELAY" component build tests/guests/mirror -o "$folder/tenants/mirror/mirror.wasm" >/dev/null
    echo "{\"url\":\"ws://127.0.0.1:$port\",\"outdir\":\"$folder/report\",\"cases\":[\"${PLAIN//,/\",\"}\",\"${COMPRESSED//,/\",\"}\"],\
\"exclude-cases\":[],\"exclude-agent-cases\":{}}" >"$work/server.json"
    fuzzing_server >"$work/server.log" 2>&1 &
    server=$!
    {
        echo 'name = "mirror"'
        local nth
        for nth in count $(seq 12); do
            printf '[[upstream]]\nname = "%s"\nurl = "ws://127.0.0.1:%s/"\ncompression = true\nidle-timeout = "1h"\n' \
                "$([ "$nth" = count ] && echo count || echo "case-$nth")" "$port"
        done
        printf '[components]\nfilter = "mirror.wasm"\ndial = "mirror.wasm"\n[limits]\nupstreams = 13\n'
    } >"$folder/tenants/mirror/tenant.toml"
    printf 'tenants = "tenants"\n[grants]\nnetworks = ["127.0.0.1"]\n%s\n' "$LISTEN" >"$folder/relay.toml"
    until (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do
        kill -0 "$server" 2>/dev/null || fail "the fuzzing server does not start: $(tail "$work/server.log")"
        sleep 0.2
    done
    (cd "$folder" && exec "$RELAY" serve --config relay.toml >stdout 2>stderr) &
    client=$!
    until [ -s "$folder/report/index.json" ]; do
        kill -0 "$client" 2>/dev/null || fail "the relay does not run: $(tail "$folder/stderr")"
        sleep 1
    done
    sleep 1
    kill "$client" "$server"
    cases_of "$folder/report/index.json" | summary
}

if [ -z "${AUTOBAHN:-}" ] || [ -z "${WSTEST:-}" ]; then
    container=$(command -v podman docker | head -n 1) ||
        fail "the suite is missing: install podman or docker, or set AUTOBAHN and WSTEST"
    container=$(basename "$container")
fi

work=$(mktemp -d)
relay=
client=
server=
trap 'for process in $relay $client $server; do kill "$process" 2>/dev/null || true; done; rm -rf "$work"' EXIT

mkdir -p "$work/tenants/echo"
"$RELAY" component build components/echo -o "$work/tenants/echo/echo.wasm" >/dev/null
{
    # Compresses every message, however short.
    echo 'compression = { above = 0 }'
    cat components/echo/tenant.toml
} >"$work/tenants/echo/tenant.toml"
printf 'tenants = "tenants"\n%s\n' "$LISTEN" >"$work/relay.toml"
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
    # The command may count what is not implemented as passed.
    if [ "$cases" = "$COMPRESSED" ] && [ -n "${AUTOBAHN:-}" ]; then
        unimplemented=$(sed -n 's/^cases by behavior:.*UNIMPLEMENTED \([0-9]*\).*/\1/p' "$work/result")
        passed=$((passed - ${unimplemented:-0}))
        failed=$((failed + ${unimplemented:-0}))
    fi
    all_passed=$((all_passed + passed))
    all_failed=$((all_failed + failed))
done
echo "as a client" >&2
as_client >"$work/result"
grep -v ' passed, ' "$work/result"
read -r passed failed < <(sed -n 's/^\([0-9]*\) passed, \([0-9]*\) failed$/\1 \2/p' "$work/result")
all_passed=$((all_passed + passed))
all_failed=$((all_failed + failed))
echo "$all_passed passed, $all_failed failed"
[ "$all_failed" = 0 ]
