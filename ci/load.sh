#!/usr/bin/env bash
# Load, in full: ten thousand upgraded connections, 200 client processes at a server with 1024
# descriptors, a million short connections, in a network namespace of their own, since the addresses
# of what has ended are taken for a minute. `cargo test` plays a piece of each; the sizes are
# described in tests/load/main.rs. No gate of .ci/run: it takes many minutes.
#   ci/load.sh --release
source "$(dirname "$0")/lib.sh"
scratch

export SMC_TEST_UPGRADED=${SMC_TEST_UPGRADED:-10000} SMC_TEST_CLIENTS=${SMC_TEST_CLIENTS:-200}
export SMC_TEST_CONNECTIONS=${SMC_TEST_CONNECTIONS:-1000000} SMC_TEST_DEADLINE_S=${SMC_TEST_DEADLINE_S:-7200}
apart=()
((EUID != 0)) || apart=(unshare --net sh -c 'ip link set lo up && exec "$@"' sh)
cargo test --locked --package tokio-smc --test load "$@" --no-run
# One after the other: none takes another's processors.
"${apart[@]}" cargo test --locked --offline --package tokio-smc --test load "$@" -- --nocapture --test-threads=1 2>&1 | tee "$scratch/log"
(($(tests_passed "$scratch/log") > 0)) || fail "no test ran"
