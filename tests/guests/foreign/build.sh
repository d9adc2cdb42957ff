#!/usr/bin/env bash
# Makes the component of app.js with jco: build.sh OUT.wasm
#
# The tools that package-lock.json pins, and every component that they have made, stay in $FOREIGN_TOOLS (default:
# ${XDG_CACHE_HOME:-$HOME/.cache}/edge-relay/tools/foreign), each under the hash of its sources. So a second call only
# copies, or does nothing.
#
# Exit codes: 2 wrong usage, 3 node or npm is missing or too old, 4 the tools could not be installed, 1 anything else.
set -euo pipefail

readonly OLDEST_NODE=20 # what the packages of package-lock.json ask for

fail() {
    printf 'build.sh: %s\n' "$2" >&2
    exit "$1"
}

hash_of() {
    cat -- "$@" | sha256sum | cut -c 1-16
}

# Replaces OUT in one step, so that a reader never sees half a file. Leaves it alone if it is this component already, so
# that its time stamp stays.
deliver() {
    cmp -s -- "$1" "$out" && return
    mkdir -p -- "$(dirname -- "$out")"
    local part
    part=$(mktemp -- "$out.XXXXXX")
    cp -- "$1" "$part"
    chmod 644 -- "$part"
    mv -f -- "$part" "$out"
}

need_node() {
    local tool
    for tool in node npm; do
        command -v "$tool" >/dev/null || fail 3 "$tool is not installed"
    done
    local major
    major=$(node -p 'process.versions.node.split(".")[0]')
    ((major >= OLDEST_NODE)) || fail 3 "node $major is too old: jco needs $OLDEST_NODE or newer"
}

install_tools() {
    local log=$scratch/npm.log
    mkdir -- "$scratch/tools"
    cp -- "$here/package.json" "$here/package-lock.json" "$scratch/tools/"
    # One of the peers that are left out is another builder, which the WIT package would bring along. The optional
    # packages are this machine's binaries. No script of a package needs to run.
    npm ci --prefix "$scratch/tools" --legacy-peer-deps --include=optional --ignore-scripts \
        --no-audit --no-fund >"$log" 2>&1 || {
        cat -- "$log" >&2
        fail 4 "npm could not install jco"
    }
    mv -- "$scratch/tools" "$tools"
}

componentize() {
    local log=$scratch/jco.log
    local modules=$tools/node_modules
    # jco parses the source's path wrongly when it is called in the root folder, so it is called in another one.
    cd -- "$scratch"
    node "$modules/@bytecodealliance/jco/src/jco.js" componentize "$here/app.js" \
        --wit "$modules/@spinframework/wasi-http-proxy/wit/wasi-http@0.2.3.wit" \
        --world-name wasi:http/proxy \
        --out "$scratch/app.wasm" >"$log" 2>&1 || {
        cat -- "$log" >&2
        fail 1 "jco could not make a component of app.js"
    }
    mv -- "$scratch/app.wasm" "$made"
}

(($# == 1)) || fail 2 "usage: build.sh OUT.wasm"
out=$(realpath -m -- "$1")
here=$(dirname -- "$(realpath -- "${BASH_SOURCE[0]}")")
store=$(realpath -m -- "${FOREIGN_TOOLS:-${XDG_CACHE_HOME:-$HOME/.cache}/edge-relay/tools/foreign}")
tools=$store/jco-$(hash_of "$here/package.json" "$here/package-lock.json")
made=$store/app-$(hash_of "$here/build.sh" "$here/package.json" "$here/package-lock.json" "$here/app.js").wasm

if [[ ! -f $made ]]; then
    need_node
    # Tests run side by side. The first one installs and builds, and the others wait for it.
    mkdir -p -- "$store"
    exec 9>"$store/lock"
    flock 9
    scratch=$(mktemp -d -- "$store/making.XXXXXX")
    trap 'rm -rf -- "$scratch"' EXIT
    [[ -d $tools ]] || install_tools
    [[ -f $made ]] || componentize
fi
deliver "$made"
