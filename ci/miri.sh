#!/usr/bin/env bash
# The unit tests that need no memory file, socket or thread of a runtime under Miri: the ring on the
# heap with both ends, the signal page, the tables of a link, the messages. Needs
#   rustup component add miri rust-src --toolchain nightly
# MIRI_TOOLCHAIN names another one. No gate of .ci/run.
source "$(dirname "$0")/lib.sh"
scratch

toolchain=${MIRI_TOOLCHAIN:-nightly}
cargo "+$toolchain" miri --version >/dev/null || fail "no Miri: rustup component add miri rust-src --toolchain $toolchain"
# Few cases of each property: Miri takes a thousand times as long.
export PROPTEST_CASES=${PROPTEST_CASES:-8} PROPTEST_DISABLE_FAILURE_PERSISTENCE=true
# Random numbers and the clock come from outside.
export MIRIFLAGS="-Zmiri-disable-isolation ${MIRIFLAGS:-}" CARGO_TARGET_DIR="$target/miri"
cargo "+$toolchain" miri test --locked --package tokio-smc --no-default-features --lib -- \
    ism::ring:: ism::interrupt:: ism::dmb:: link::given:: link::numbers:: link::message:: link::shares:: \
    clc:: conn::waiters:: 2>&1 | tee "$scratch/log"
(($(tests_passed "$scratch/log") > 0)) || fail "no test ran"
