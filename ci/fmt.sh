#!/usr/bin/env bash
# All Rust is formatted by rustfmt.toml.
source "$(dirname "$0")/lib.sh"
cargo fmt --all -- --check
cargo fmt --all --manifest-path fuzz/Cargo.toml -- --check
cargo fmt --all --manifest-path report/others/Cargo.toml -- --check
