#!/usr/bin/env bash
# Loom goes through the interleavings of the ring's and the wake-ups' models.
source "$(dirname "$0")/lib.sh"
scratch

# Loom itself is optimised and the rest is not: the models take seconds, and all of it in release
# mode takes minutes to build. Debug assertions stay, so the models run the library's, too.
export RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR="$target/loom"
cargo test --locked --package tokio-smc --lib loom_ \
    --config 'profile.dev.package.loom.opt-level=3' --config 'profile.dev.package.generator.opt-level=3' \
    2>&1 | tee "$scratch/log"
passed=$(tests_passed "$scratch/log")
((passed > 0)) || fail "no model ran"

# Every model in the sources is among them: one in a module that nobody includes would be missed in
# silence.
written=$(git grep -hE '^\s*fn loom_[a-z0-9_]+\(\)' -- 'src/*.rs' | wc -l)
((passed == written)) || fail "$passed models ran, but the sources have $written"
