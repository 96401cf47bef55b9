#!/usr/bin/env bash
# The library builds without a warning with no feature, with each, with each pair and with all; its
# unit tests pass with all (`cargo test` has run them with the default ones). The engine alone needs
# no tokio, and the blocking front end neither.
source "$(dirname "$0")/lib.sh"

engine=$(cargo tree --locked --package tokio-smc --edges normal,build --no-default-features --features unstable-engine \
    --target all --prefix none --format '{p}')
! grep '^tokio ' <<<"$engine" || fail "the engine depends on tokio"
blocking=$(cargo tree --locked --package tokio-smc --edges normal,build --no-default-features --features blocking \
    --target all --prefix none --format '{p}')
! grep '^tokio ' <<<"$blocking" || fail "the blocking front end depends on tokio"

packages=$(cargo metadata --locked --no-deps --format-version 1)
check() {
    printf -- '--- %s with %s\n' "$1" "${2:-no feature}"
    cargo clippy --quiet --locked --package "$1" --lib --no-default-features --features "$2" -- -D warnings
}
for package in $(jq -r '.packages[] | select(.targets | any(.kind[] == "lib")) | .name' <<<"$packages"); do
    mapfile -t features < <(
        jq -r --arg name "$package" '.packages[] | select(.name == $name) | .features | keys - ["default"] | .[]' \
            <<<"$packages"
    )
    check "$package" ""
    for ((i = 0; i < ${#features[@]}; i++)); do
        check "$package" "${features[i]}"
        for ((j = i + 1; j < ${#features[@]}; j++)); do
            check "$package" "${features[i]},${features[j]}"
        done
    done
    if ((${#features[@]} > 2)); then
        check "$package" "$(IFS=, && echo "${features[*]}")"
    fi
done
cargo test --locked --workspace --lib --all-features
