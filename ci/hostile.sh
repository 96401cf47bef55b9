#!/usr/bin/env bash
# Random sessions of a hostile peer against both kinds of runtime, for HOSTILE_SECONDS (50 by
# default) or as many as SMC_TEST_SESSIONS says. The seed is printed; SMC_TEST_SEED plays the same
# ones again. `cargo test` plays the scenes. Ten thousand sessions, in release mode:
#   SMC_TEST_SESSIONS=10000 ci/hostile.sh --release
source "$(dirname "$0")/lib.sh"
scratch

[[ -n ${SMC_TEST_SESSIONS:-} ]] || export SMC_TEST_SECONDS=${HOSTILE_SECONDS:-50}
# The watchdog of a test knows nothing of hours.
export SMC_TEST_DEADLINE_S=${SMC_TEST_DEADLINE_S:-$((${SMC_TEST_SECONDS:-7200} + 300))}
cargo test --locked --test hostile "$@" -- random_sessions --exact --nocapture 2>&1 | tee "$scratch/log"
(($(tests_passed "$scratch/log") > 0)) || fail "no test ran"
