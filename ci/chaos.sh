#!/usr/bin/env bash
# Processes that talk to each other while one fault after the other befalls them, for
# SMC_TEST_SECONDS (60 by default). The seed is printed; SMC_TEST_SEED plays the same plans again. A
# hundred minutes, in release mode:
#   SMC_TEST_SECONDS=6000 ci/chaos.sh --release
source "$(dirname "$0")/lib.sh"
scratch

export SMC_TEST_SECONDS=${SMC_TEST_SECONDS:-60}
# The watchdog of a test knows nothing of hours; what the last season leaves takes its time.
export SMC_TEST_DEADLINE_S=${SMC_TEST_DEADLINE_S:-$((SMC_TEST_SECONDS + 600))}
cargo test --locked --features blocking --test chaos "$@" -- chaos --exact --nocapture 2>&1 | tee "$scratch/log"
(($(tests_passed "$scratch/log") > 0)) || fail "no test ran"
