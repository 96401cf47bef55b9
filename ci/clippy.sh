#!/usr/bin/env bash
# No lint, in any target, with all features and with the default ones; in the library and its unit
# tests also with none, that is in the engine alone. (Among the lints is `incompatible_msrv`:
# nothing of the standard library that is newer than the manifest's `rust-version`.)
source "$(dirname "$0")/lib.sh"
cargo clippy --locked --package tokio-smc --lib --profile test --no-default-features -- -D warnings
cargo clippy --locked --workspace --all-targets -- -D warnings
cargo clippy --locked --workspace --all-targets --all-features -- -D warnings
