#!/usr/bin/env bash
# The hot paths take no more instructions than benches/baseline.toml says, give or take 5 %. Counted
# by callgrind, so that neither the load of the machine nor its processor matters.
# `ci/instructions.sh --renew` writes the baseline anew.
source "$(dirname "$0")/lib.sh"
baseline=benches/baseline.toml
percent=5

renew=
case ${1:-} in
    "") ;;
    --renew) renew=yes ;;
    *) fail "unknown argument: $1" ;;
esac

# The runner that belongs to the library of the lock file; most of its cost is to build it, so it is
# kept.
version=$(cargo pkgid --locked gungraun)
version=${version##*@}
runner=$target/gungraun-runner
if [[ $("$runner/bin/gungraun-runner" --version 2>/dev/null) != "gungraun-runner $version" ]]; then
    # Unoptimised: it starts valgrind and reads its answers.
    CARGO_PROFILE_DEV_DEBUG=false cargo install --quiet --locked --debug --force --root "$runner" \
        --target-dir "$runner/build" --version "$version" gungraun-runner
    rm -rf "$runner/build"
fi

scratch
PATH=$runner/bin:$PATH

# count: adds a line `group.name = instructions` for each bench.
count() {
    cargo bench --locked --package tokio-smc-benches --bench instructions -- --output-format=json >"$scratch/json"
    jq -r '"\(.group).\(.function_name) = \(.profiles[0].data.total.metrics.Ir.values.new)"' "$scratch/json" \
        >>"$scratch/counts"
    [[ -s $scratch/counts ]] || fail "nothing was counted"
}

# least: of each bench the least count. Chance only adds to one, when a timer falls into it.
least() {
    awk '!($1 in least) { order[++n] = $1; least[$1] = $3 } $3 < least[$1] { least[$1] = $3 }
        END { for (i = 1; i <= n; i++) print order[i], "=", least[order[i]] }' "$scratch/counts"
}

# compare: a table of what is now and was then; false when something is dearer, new, or gone.
compare() {
    least | awk -v percent="$percent" '
        FNR == 1 && NR == 1 { printf "%-28s %12s %12s %9s\n", "instructions each time", "baseline", "now", "change" }
        /^#/ || NF != 3 { next }
        FILENAME == ARGV[1] { baseline[$1] = $3; next }
        !($1 in baseline) { printf "%-28s %12s %12.1f  not in the baseline\n", $1, "-", $3 / 100; faults++; next }
        {
            change = ($3 / baseline[$1] - 1) * 100
            verdict = change > percent ? "  TOO MUCH" : change < -percent ? "  better: renew the baseline" : ""
            printf "%-28s %12.1f %12.1f %+8.2f%%%s\n", $1, baseline[$1] / 100, $3 / 100, change, verdict
            faults += change > percent
            delete baseline[$1]
        }
        END {
            for (name in baseline) { printf "%-28s %12.1f  is not counted any more\n", name, baseline[name] / 100; faults++ }
            exit faults > 0
        }' "$baseline" -
}

count
if [[ -n $renew ]]; then
    count
    {
        echo "# Instructions that each bench of instructions.rs takes for 100 times its work (x86-64)."
        echo "# Written by \`ci/instructions.sh --renew\` with $(rustc -V)."
        least
    } >"$baseline"
    echo "written: $baseline"
fi
compare && exit
echo "once more:"
count
compare || {
    grep -qF "$(rustc -V)" "$baseline" || echo "counted with $(rustc -V); $(sed -n 2p "$baseline")" >&2
    fail "more than $percent % above $baseline; where the cost is meant, say so in the commit and renew it: ci/instructions.sh --renew"
}
