#!/usr/bin/env bash
# Smoke of the benchmarks: they end, every result is there and whole, and every SMC connection that
# lives long enough ran on loopback-ism. How fast anything was is not judged.
source "$(dirname "$0")/lib.sh"
scratch

cargo build --locked --release --example smcperf
timeout --foreground 120 cargo run --locked --release --quiet --example smcperf -- --quick --json >"$scratch/rows" ||
    fail "exit status $?; its output: $(cat "$scratch/rows")"
cat "$scratch/rows"

# Each line on its own has to be JSON: `jq` alone would also take an object over several lines.
while IFS= read -r line; do
    jq -e 'type == "object"' <<<"$line" >"$scratch/verdict" 2>&1 || fail "not a JSON object: $line"
done <"$scratch/rows"

jq -s -r '
    ["test", "transport", "runs_on", "msg_bytes", "connections", "rtt_p50_us", "rtt_p99_us", "msgs_per_s", "bytes_per_s",
        "connects_per_s"] as $keys
    | { pp: ["rtt_p50_us", "rtt_p99_us", "msgs_per_s"], conns: ["rtt_p50_us", "rtt_p99_us", "msgs_per_s"],
        tp: ["bytes_per_s"], rate: ["msgs_per_s", "bytes_per_s"],
        connect: ["rtt_p50_us", "rtt_p99_us", "connects_per_s"] } as $figures
    | { tcp: "tcp", uds: "uds", smc: "loopback-ism" } as $on
    | [["pp", 1], ["tp", 1], ["rate", 1], ["conns", 1], ["conns", 8], ["conns", 100], ["conns", 1000], ["connect", 1]] as $cases
    | (.[] | . as $row
        | if keys != ($keys | sort) then "has not exactly the keys \($keys | join(", "))"
          elif $figures[.test] == null then "names no test"
          elif $on[.transport] == null then "names no transport"
          elif ([.msg_bytes, .connections] | all(type == "number" and . > 0)) | not then "has no size or no connections"
          elif $keys[5:] | all(. as $key | $row[$key]
                | if $figures[$row.test] | index($key) then type == "number" and . > 0 else . == null end) | not
          then "has a figure that is missing, or one too many"
          elif .test != "connect" and .runs_on != $on[.transport] then "ran on \(.runs_on)"
          elif .runs_on | IN("tcp", "uds", "loopback-ism") | not then "ran on \(.runs_on)"
          else empty end
        | "\($row | tojson): \(.)"),
      (([$cases[] as $case | ($on | keys[]) as $transport | $case + [$transport]] | sort) as $wanted
        | (map([.test, .connections, .transport]) | sort) as $seen
        | select($seen != $wanted)
        | "missing: \($wanted - $seen | tojson); not asked for: \($seen - $wanted | tojson); twice: \($seen
            | group_by(.) | map(select(length > 1)[0]) | tojson)")
' "$scratch/rows" >"$scratch/faults"
[[ ! -s $scratch/faults ]] || fail "$(cat "$scratch/faults")"
echo "$(wc -l <"$scratch/rows") results, all whole"

# The one of the blocking front end: two of its rows are upgraded.
timeout --foreground 120 cargo run --locked --release --quiet --example blockingperf -- --seconds=0.1 --rounds=1 \
    >"$scratch/blocking" || fail "blockingperf: exit status $?; its output: $(cat "$scratch/blocking")"
cat "$scratch/blocking"
on_ism=$(grep -cE 'loopback-ism *$' "$scratch/blocking" || true)
((on_ism == 2)) || fail "$on_ism rows of blockingperf ran on loopback-ism, not 2"
