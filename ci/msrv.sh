#!/usr/bin/env bash
# The library keeps to the `rust-version` of its manifest: no dependency of it wants a newer one,
# and it builds with exactly that toolchain where it is installed. (Toolchains can't be had
# everywhere; clippy.sh checks the use of std.)
source "$(dirname "$0")/lib.sh"

metadata=$(cargo metadata --locked --all-features --format-version 1)
msrv=$(jq -r '.packages[] | select(.name == "tokio-smc") | .rust_version' <<<"$metadata")
[[ $msrv =~ ^1\.[0-9]+(\.[0-9]+)?$ ]] || fail "the manifest has no rust-version: $msrv"

# The names and versions that the library links to, whatever its features.
linked=$(cargo tree --locked --package tokio-smc --edges normal,build --all-features --target all --prefix none --format '{p}' |
    awk '{ print $1 "@" substr($2, 2) }' | sort -u)
newer=$(jq -r --arg msrv "$msrv" --arg linked "$linked" '
    def version: split(".") | map(tonumber) | .[0:3] + [0, 0, 0] | .[0:3];
    ($linked | split("\n")) as $linked
    | .packages[]
    | select(.rust_version != null and (.rust_version | version) > ($msrv | version))
    | "\(.name)@\(.version)" as $id
    | select($linked | index($id))
    | "\($id) wants Rust \(.rust_version)"' <<<"$metadata")
[[ -z $newer ]] || fail "newer than Rust $msrv: $newer"
echo "none of the $(wc -l <<<"$linked") packages that the library links to wants more than Rust $msrv"

toolchain=$(rustup toolchain list 2>/dev/null | awk '{ print $1 }' | grep -E "^${msrv//./\\.}(\.[0-9]+)?-" | head -n 1 || true)
if [[ -z $toolchain ]]; then
    echo "the toolchain $msrv is not installed here: the build with it is left out"
    exit 0
fi
cargo "+$toolchain" check --locked --package tokio-smc --lib --all-features --target-dir "$target/msrv"
