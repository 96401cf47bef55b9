#!/usr/bin/env bash
# Smoke of each fuzz target: its seeds and what was found before (fuzz/found: each file reaches
# something that no other does), then some time on inputs of its own. FUZZ_SECONDS, by default 15
# for each target, is for all targets together: 7200 for two hours; FUZZ_TARGETS names some of them.
# Needs neither nightly nor cargo-fuzz: coverage by plain compiler flags, those that
# cargo-fuzz gives. FUZZ_TOOLCHAIN=nightly adds AddressSanitizer, FUZZ_KEEP=DIRECTORY keeps what was
# found new.
source "$(dirname "$0")/lib.sh"
scratch

host=$(rustc -vV | sed -n 's/^host: //p')
mapfile -t targets < <(cargo metadata --locked --no-deps --format-version 1 --manifest-path fuzz/Cargo.toml |
    jq -r '.packages[].targets[] | select(.kind == ["bin"]) | .name')
((${#targets[@]} > 0)) || fail "fuzz/ has no target"
[[ -z ${FUZZ_TARGETS:-} ]] || read -ra targets <<<"$FUZZ_TARGETS"

export CARGO_TARGET_DIR="$target/fuzz${FUZZ_TOOLCHAIN:-}"
RUSTFLAGS="${FUZZ_TOOLCHAIN:+-Zsanitizer=address }--cfg fuzzing -Cdebug-assertions -Ccodegen-units=1 -Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares" \
    cargo ${FUZZ_TOOLCHAIN:+"+$FUZZ_TOOLCHAIN"} build --locked --release --bins --manifest-path fuzz/Cargo.toml --target "$host"

seconds=$(((${FUZZ_SECONDS:-$((15 * ${#targets[@]}))} + ${#targets[@]} - 1) / ${#targets[@]}))
for name in "${targets[@]}"; do
    binary="$CARGO_TARGET_DIR/$host/release/$name"
    seeds="fuzz/seeds/$name"
    [[ -n $(ls "$seeds") ]] || fail "$seeds has no seeds"
    found="fuzz/found/$name"
    [[ -n $(ls "$found") ]] || fail "$found has no inputs"
    new="${FUZZ_KEEP:-$scratch}/$name"
    mkdir -p "$new"
    limits=(-max_len=700 -timeout=30 -rss_limit_mb=2048 "-artifact_prefix=$scratch/")

    echo "--- $name: $(find "$seeds" "$found" -type f | wc -l) known inputs"
    "$binary" "${limits[@]}" "$seeds"/* "$found"/* >"$scratch/log" 2>&1 || {
        cat "$scratch/log"
        fail "$name: a known input fails"
    }

    echo "--- $name: $seconds s"
    status=0
    "$binary" "${limits[@]}" "-max_total_time=$seconds" -print_final_stats=1 "$new" "$seeds" "$found" \
        >"$scratch/log" 2>&1 || status=$?
    if ((status != 0)); then
        tail -n 60 "$scratch/log"
        # The input in a form that a log can carry.
        for artifact in "$scratch"/{crash,leak,oom,slow-unit,timeout}-*; do
            [[ ! -f $artifact ]] || printf '%s: %s\n' "${artifact##*/}" "$(base64 -w 0 "$artifact")"
        done
        fail "$name: exit status $status"
    fi
    grep -E 'Loaded|INITED|DONE|^stat::(number_of|new_units)' "$scratch/log"
    # Without counters libFuzzer guesses blindly: the flags above would have lost their effect.
    grep -Eq 'INITED +cov: [1-9]' "$scratch/log" || fail "$name: no coverage is seen"
done
