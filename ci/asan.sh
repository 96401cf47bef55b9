#!/usr/bin/env bash
# The unit tests under AddressSanitizer, which the stable compiler has behind a flag that it calls
# unstable: no other toolchain is needed. No gate of .ci/run: it takes too long. Which tests:
# ASAN_TESTS="ism:: conn::" ci/asan.sh. Builds into a directory that is gone afterwards, or into
# ASAN_TARGET_DIR.
source "$(dirname "$0")/lib.sh"
scratch

host=$(rustc -vV | sed -n 's/^host: //p')
read -ra tests <<<"${ASAN_TESTS:-}"
export CARGO_TARGET_DIR=${ASAN_TARGET_DIR:-$scratch/target} CARGO_INCREMENTAL=0 CARGO_PROFILE_DEV_DEBUG=line-tables-only
export RUSTC_BOOTSTRAP=1 RUSTFLAGS="-Zsanitizer=address"
# Rings on memory files that a peer shares are no leak, and some tests leave what a killed process
# would.
export ASAN_OPTIONS=detect_leaks=0:abort_on_error=1:${ASAN_OPTIONS:-}
cargo test --locked --package tokio-smc --lib --target "$host" -- "${tests[@]}" 2>&1 | tee "$scratch/log"
(($(tests_passed "$scratch/log") > 0)) || fail "no test ran"
