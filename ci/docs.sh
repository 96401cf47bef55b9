#!/usr/bin/env bash
# The documentation builds without a warning, with the private items that maintainers read and as
# users see it.
source "$(dirname "$0")/lib.sh"
# Links of public items to private ones are fine where the private ones are shown, too.
RUSTDOCFLAGS="-D warnings -A rustdoc::private-intra-doc-links" \
    cargo doc --locked --workspace --no-deps --all-features --document-private-items
RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps --all-features
