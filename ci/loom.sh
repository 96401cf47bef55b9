#!/usr/bin/env bash
# Loom goes through the interleavings of the ring's and the wake-ups' models.
source "$(dirname "$0")/lib.sh"
scratch

# Debug assertions stay: the models run the library's, too.
export RUSTFLAGS="--cfg loom" CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS=true CARGO_TARGET_DIR="$target/loom"
cargo test --locked --release --lib loom_ 2>&1 | tee "$scratch/log"
passed=$(tests_passed "$scratch/log")
((passed > 0)) || fail "no model ran"

# Every model in the sources is among them: one in a module that nobody includes would be missed in silence.
written=$(git grep -hE '^\s*fn loom_[a-z0-9_]+\(\)' -- 'src/*.rs' | wc -l)
((passed == written)) || fail "$passed models ran, but the sources have $written"
