# What the gates have in common; sourced by each, from whatever directory it was called.
# shellcheck shell=bash
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Builds with other flags than the usual ones live beside the usual ones, so that neither drops the
# other's. shellcheck disable=SC2034
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")

fail() {
    printf '%s: %s\n' "$(basename "$0")" "$*" >&2
    exit 1
}

# tests_passed LOG: how many tests the `test result:` lines of cargo's output count as passed.
tests_passed() {
    awk '/^test result:/ { for (i = 2; i <= NF; i++) if ($i ~ /^passed/) passed += $(i - 1) } END { print passed + 0 }' "$1"
}

# A directory that is gone when the gate ends.
scratch() {
    scratch=$(mktemp -d)
    trap 'rm -rf "$scratch"' EXIT
}
