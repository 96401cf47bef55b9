#!/usr/bin/env bash
# Runs tokio's own tests with tokio::net::Tcp* exchanged by tokio_smc::net::Tcp*.
#
#   ci/tokio-tests.sh [policy…]          policies of SMC_LO_UPGRADE; never, eager and handshake
#                                        without arguments. With eager most of these tests end
#                                        before their upgrade does; with handshake four streams of
#                                        ten run on the ring, from the first byte on
#                                        (docs/exceptions.md)
#   ROUNDS=20 ci/tokio-tests.sh eager    repeats, for failures that come and go
#   FILES="tcp_peek" ci/tokio-tests.sh   only these files
#   KEEP=1                               keeps the generated crate and the logs
#
# The tests are taken from the packaged crate of the version in Cargo.lock; nothing of them is kept
# in this repository. The script fails when a test fails that `exceptions` does not name, or when
# one that is named there as `always` passes. Whatever is named there stands with its reason in
# docs/exceptions.md.
set -euo pipefail
cd "$(dirname "$0")/.."

# Files that hold tests of the TCP types, or that use them for something else.
files=(
    tcp_accept tcp_accept_ready tcp_connect tcp_echo tcp_into_split tcp_into_std tcp_peek tcp_shutdown tcp_socket
    tcp_split tcp_stream buffered io_copy_bidirectional io_driver io_driver_drop net_bind_resource net_panic
    net_quickack no_rt rt_busy_tick rt_common rt_handle_block_on rt_shutdown_err rt_threaded unwindsafe async_send_sync
)
# Not run, though they name the types: io_async_fd and rt_unstable_metrics (docs/exceptions.md).

# policy|file|test|always or sometimes|reason. `*` stands for every policy, `ring` for all but
# never.
exceptions() {
    :
}

policies=("$@")
[ ${#policies[@]} -gt 0 ] || policies=(never eager handshake)
[ -z "${FILES:-}" ] || read -ra files <<<"$FILES"
rounds=${ROUNDS:-1}
limit=${TEST_FILE_SECONDS:-120}

host=$(rustc -vV | sed -n 's/^host: //p')
tokio=$(cargo metadata --locked --format-version 1 --filter-platform "$host" |
    grep -o '"manifest_path":"[^"]*/tokio-[0-9][^"/]*/Cargo.toml"' | head -1 | cut -d'"' -f4)
tokio=${tokio%/Cargo.toml}
[ -d "$tokio/tests" ] || { echo "the packaged $tokio has no tests" >&2; exit 1; }

target=${CARGO_TARGET_DIR:-$PWD/target}
work=$(mktemp -d "${TMPDIR:-/tmp}/tokio-tests.XXXXXX")
cleanup() { [ -n "${KEEP:-}" ] && echo "kept: $work" || rm -rf "$work"; }
trap cleanup EXIT
mkdir -p "$work/crate/src" "$work/crate/tests" "$work/logs"

# ---- the crate ----

# The tests ask for tokio's features with cfg(feature).
features=(fs full io-std io-util macros net process rt rt-multi-thread signal sync test-util time)
{
    cat <<END
[package]
name = "tokio-tests"
version = "0.0.0"
edition = "2021"
publish = false
# One of the tests reads this file.
homepage = "https://tokio.rs"

[workspace]

[features]
default = [$(printf '"%s", ' "${features[@]}")]
$(printf '%s = []\n' "${features[@]}")

[dependencies]
tokio-smc = { path = "$PWD" }
tokio = { version = "=${tokio##*/tokio-}", features = ["full", "test-util"] }
tokio-stream = "0.1"
tokio-test = "0.4"
futures = "0.3"
bytes = "1"
libc = "0.2"
socket2 = { version = "0.6", features = ["all"] }
tempfile = "3"

[lints.rust]
warnings = "allow"
END
} >"$work/crate/Cargo.toml"
: >"$work/crate/src/lib.rs"
# The versions that the crate itself is tested with.
cp Cargo.lock "$work/crate/Cargo.lock"
cp -r "$tokio/tests/support" "$work/crate/tests/"

for file in "${files[@]}"; do
    test=$work/crate/tests/$file.rs
    exchange=(-e 's/\btokio::net::(Tcp|tcp::|\{Tcp)/tokio_smc::net::\1/g')
    if grep -q '^use tokio::{net' "$tokio/tests/$file.rs"; then
        exchange+=(-e 's/\bnet::(Tcp)/tokio_smc::net::\1/g')
    fi
    sed -E "${exchange[@]}" "$tokio/tests/$file.rs" >"$test"
    # Every file has to have something of ours, or it tests tokio.
    grep -q 'tokio_smc::' "$test" || { echo "$file.rs uses no TCP type" >&2; exit 1; }
done

built=0
(cd "$work/crate" && CARGO_TARGET_DIR=$target cargo build --tests --keep-going --quiet \
    --message-format=json-render-diagnostics) >"$work/build.json" || built=$?
binaries=$(sed -nE 's/.*"executable":"([^"]+)".*/\1/p' "$work/build.json")

# ---- the runs ----

: >"$work/unexpected"
: >"$work/expected"
exceptions >"$work/exceptions"
: >"$work/table"

# Answers with how often the test may fail and why.
exception() { # policy file test
    awk -F'|' -v p="$1" -v f="$2" -v t="$3" \
        '($1 == "*" || $1 == p || ($1 == "ring" && p != "never")) && $2 == f && $3 == t { print $4 "|" $5; exit }' "$work/exceptions"
}

run() { # policy file binary round
    local policy=$1 file=$2 binary=$3 log=$work/logs/$1-$2-$4.log dir name known code=0
    dir=$(mktemp -d "$work/smc-lo.XXXXXX")
    (cd "$work/crate" && RUST_BACKTRACE=0 SMC_LO_DIR=$dir SMC_LO_UPGRADE=$policy timeout -k 5 "$limit" "$binary") \
        >"$log" 2>&1 </dev/null || code=$?
    rm -rf "$dir"
    passed=0 failed=0 excused=0
    while read -r name; do
        known=$(exception "$policy" "$file" "$name")
        if grep -qE "^test $(sed 's/[][\.*^$]/\\&/g' <<<"$name")( - should panic)? \.\.\. (ok|ignored)" "$log"; then
            passed=$((passed + 1))
            [ "${known%%|*}" != always ] || echo "$policy $file::$name passes, though it is an exception" >>"$work/unexpected"
        elif [ -n "$known" ]; then
            excused=$((excused + 1))
            echo "$policy $file::$name: ${known#*|}" >>"$work/expected"
        else
            failed=$((failed + 1))
            local how=failed
            grep -qE "^test $name( - should panic)? \.\.\. FAILED" "$log" || how="did not finish (exit $code)"
            echo "$policy $file::$name $how" >>"$work/unexpected"
            { echo "---- $policy $file::$name"; sed -n "/^---- $name stdout/,/^---- /p" "$log" | head -20; } >>"$work/details"
        fi
    done < <("$binary" --list 2>/dev/null | sed -n 's/: test$//p')
    [ "$code" -eq 0 ] || [ $((failed + excused)) -gt 0 ] || echo "$policy $file: exit $code" >>"$work/unexpected"
}

for file in "${files[@]}"; do
    [ -f "$work/crate/tests/$file.rs" ] || continue
    binary=$(grep -E "/$file-[0-9a-f]+$" <<<"$binaries" | head -1 || true)
    if [ -z "$binary" ]; then
        echo "$file does not compile" >>"$work/unexpected"
        printf '%-24s does not compile\n' "$file" >>"$work/table"
        continue
    fi
    line=$(printf '%-24s' "$file")
    if [ "$("$binary" --list 2>/dev/null | grep -c ': test$')" -eq 0 ]; then
        echo "$line compiles, which is all it tests" >>"$work/table"
        continue
    fi
    for policy in "${policies[@]}"; do
        all_passed=0 all_failed=0 all_excused=0
        for ((round = 1; round <= rounds; round++)); do
            run "$policy" "$file" "$binary" "$round"
            all_passed=$((all_passed + passed)) all_failed=$((all_failed + failed))
            all_excused=$((all_excused + excused))
        done
        line+=$(printf ' %7d %7d %7d' "$all_passed" "$all_failed" "$all_excused")
    done
    echo "$line" >>"$work/table"
done

{
    printf '%-24s' ''
    for policy in "${policies[@]}"; do printf ' %23s' "$policy"; done
    printf '\n%-24s' "tests of ${tokio##*/}"
    for policy in "${policies[@]}"; do printf ' %7s %7s %7s' passed failed excused; done
    echo
    cat "$work/table"
}
if [ -s "$work/expected" ]; then
    echo
    echo "excused:"
    sort "$work/expected" | uniq -c
fi
if [ -s "$work/unexpected" ] || [ "$built" -ne 0 ]; then
    echo
    echo "unexpected:"
    sort "$work/unexpected" | uniq -c
    [ ! -s "$work/details" ] || cat "$work/details"
    exit 1
fi
