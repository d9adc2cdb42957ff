#!/usr/bin/env bash
# Makes the component of app.js with jco: build.sh OUT.wasm
#
# The tools that package-lock.json pins, and every component they have made, stay in
# $FOREIGN_TOOLS (default: ${XDG_CACHE_HOME:-$HOME/.cache}/edge-relay/tools/foreign), each under
# the hash of what it came from: a second call copies, or does nothing.
#
# Exit codes: 2 wrong usage, 3 no node or npm here, or too old ones, 4 the tools could not be installed,
# 1 anything else.
set -euo pipefail

readonly OLDEST_NODE=20 # what the packages of package-lock.json ask for

fail() {
    printf 'build.sh: %s\n' "$2" >&2
    exit "$1"
}

hash_of() {
    cat -- "$@" | sha256sum | cut -c 1-16
}

# Replaces OUT in one step, and only if it is not this component already, so that a reader never
# sees half a file, nor a new time stamp without a reason.
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
    # The peers left out are another builder, which the WIT package would bring along; the optional
    # ones are this machine's binaries, and no script of a package needs to run.
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
    # Called in the root folder, jco takes the source's path apart wrongly: it is called elsewhere.
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
    # Tests run side by side: the first installs and builds, the others wait and find it done.
    mkdir -p -- "$store"
    exec 9>"$store/lock"
    flock 9
    scratch=$(mktemp -d -- "$store/making.XXXXXX")
    trap 'rm -rf -- "$scratch"' EXIT
    [[ -d $tools ]] || install_tools
    [[ -f $made ]] || componentize
fi
deliver "$made"
