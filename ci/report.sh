#!/usr/bin/env bash
# Smoke of the report: it ends, and every section, every chart and every row is there and whole. How
# fast anything was is not judged. What it is compared with beside sockets (report/others) is built
# and run where libclang is.
source "$(dirname "$0")/lib.sh"
scratch

sections=load,sizes,connections,peers,connects,memory,runtimes,blocking,inside
if [[ -n ${LIBCLANG_PATH:-} ]] || compgen -G "/usr/lib/llvm*/lib/libclang*.so*" >/dev/null || ldconfig -p | grep -q libclang; then
    sections+=,others
else
    echo "libclang is not installed here: other crates are left out"
fi

if [[ $sections == *others ]]; then
    cargo clippy --locked --quiet --release --manifest-path report/others/Cargo.toml --target-dir "$target/others" -- -D warnings
fi
cargo test --locked --quiet --package smc-report
cargo build --locked --quiet --release --package smc-report
report() {
    timeout --foreground 240 cargo run --locked --release --quiet --package smc-report -- "$@"
}
report --quick --only="$sections" --out="$scratch"

jq -e 'type == "object"' "$scratch/performance/data.json" >"$scratch/verdict" || fail "data.json is not a JSON object"
jq -r --arg sections "$sections" '
    { tcp: 1, uds: 1, smc: 1 } as $three
    | { load: 3, sizes: 8, connections: 3, peers: 2, connects: 1, memory: 2, runtimes: 8, blocking: 1, inside: 1,
        others: 2 } as $cases
    | .sections as $all
    | ($sections | split(","))[] as $name
    | ($all[$name] // null) as $section
    | if $section == null then "section \($name) is missing"
      else
        ($section.rows[] | select([.[] | select(type == "number")] | length == 0) | "\($name): no figure in \(tojson)"),
        ($section.rows[] | select([.[] | select(type == "number" and . < 0)] | length > 0)
            | "\($name): a figure below zero in \(tojson)"),
        ($section.rows | map(select(.test != "connect" and .runs_on != null and .transport == "smc"
            and .runs_on != "loopback-ism"))[] | "\($name): ran on \(.runs_on): \(tojson)"),
        (["tcp", "uds", "smc"][] as $transport
            | ($section.rows | map(select(.transport == $transport or .row == $transport
                or (.row == "std" and $transport == "tcp"))) | length) as $rows
            | select($rows < $cases[$name] and ($name != "others" or $transport != "tcp"))
            | "\($name): \($rows) rows of \($transport), at least \($cases[$name]) are due")
      end
' "$scratch/performance/data.json" >"$scratch/faults"
[[ ! -s $scratch/faults ]] || fail "$(cat "$scratch/faults")"

charts=0
for name in latency-load cpu-load latency-size throughput-size connections peers connects memory runtimes blocking inside others; do
    chart="$scratch/performance/$name.svg"
    [[ $name == others && $sections != *others ]] && continue
    [[ -s $chart && $(tail -n 1 "$chart") == "</svg>" ]] || fail "the chart $name.svg is missing, or not whole"
    grep -q "tokio-smc" "$chart" || fail "the chart $name.svg does not show tokio-smc"
    grep -q "(performance/$name.svg)" "$scratch/performance.md" || fail "performance.md does not show $name.svg"
    charts=$((charts + 1))
done

# What is there already can be drawn again; what is not whole is said to be so, and stays.
report --redraw --out="$scratch"
head -c 2000 "$scratch/performance/data.json" >"$scratch/half"
cp "$scratch/half" "$scratch/performance/data.json"
if report --redraw --out="$scratch" 2>"$scratch/error"; then fail "half a file of data was taken for a whole one"; fi
grep -q "data.json is not whole" "$scratch/error" || fail "half a file of data: $(cat "$scratch/error")"
cmp -s "$scratch/half" "$scratch/performance/data.json" || fail "half a file of data was changed"
echo "$charts charts, all whole"
