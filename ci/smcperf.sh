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

jq -s -r --argjson cpus "$(nproc)" '
    ["test", "transport", "runs_on", "msg_bytes", "connections", "paced_per_s"] as $names
    | ["rtt_p50_us", "rtt_p99_us", "msgs_per_s", "bytes_per_s", "connects_per_s", "cpu_us_per_msg", "cpu_us_per_mib",
        "cpu_us_per_connect", "cpu_us_per_s", "pacing_us_per_msg"] as $all
    | ["rtt_p50_us", "rtt_p99_us", "msgs_per_s", "cpu_us_per_msg"] as $trips
    | { pp: $trips, conns: $trips, tp: ["bytes_per_s", "cpu_us_per_mib"],
        rate: ["msgs_per_s", "bytes_per_s", "cpu_us_per_msg"],
        connect: ["rtt_p50_us", "rtt_p99_us", "connects_per_s", "cpu_us_per_connect"],
        paced: ($trips + ["pacing_us_per_msg"]), idle: ["cpu_us_per_s"] } as $figures
    | { pp: ["rtt_p50_us"], tp: ["bytes_per_s"], conns: ["msgs_per_s"] } as $limits
    | { tcp: "tcp", uds: "uds", smc: "loopback-ism" } as $on
    | [["pp", 1, null], ["tp", 1, null], ["rate", 1, null], ["conns", 1, null], ["conns", 8, null],
        ["conns", 100, null], ["conns", 1000, null], ["connect", 1, null], ["paced", 1, 100], ["paced", 1, 1000],
        ["paced", 1, 5000], ["paced", 1, 20000], ["idle", 100, 0]] as $cases
    | ([["tp", "memcpy"], ["tp", "memcpy, verified"]]
        + if $cpus > 1 then [["pp", "bare spin"], ["tp", "memcpy from another core, verified"]]
            + [$cases[] | select(.[0] == "conns") | ["conns", "bare pages"]] else [] end) as $bounds
    | (.[] | . as $row
        | (if .transport == "limit" then $limits else $figures end) as $due
        | if keys != ($names + $all | sort) then "has not exactly the keys \($names + $all | join(", "))"
          elif $due[.test] == null then "names no test, or none that has a limit"
          elif .transport != "limit" and $on[.transport] == null then "names no transport"
          elif ([.msg_bytes, .connections] | all(type == "number" and . > 0)) | not then "has no size or no connections"
          elif $all | all(. as $key | $row[$key]
                | if $due[$row.test] | index($key)
                  then type == "number" and (. > 0 or (. == 0 and $key == "cpu_us_per_s"))
                  else . == null end) | not
          then "has a figure that is missing, or one too many"
          elif .transport == "limit" then empty
          elif .test != "connect" and .runs_on != $on[.transport] then "ran on \(.runs_on)"
          elif .runs_on | IN("tcp", "uds", "loopback-ism") | not then "ran on \(.runs_on)"
          else empty end
        | "\($row | tojson): \(.)"),
      (([$cases[] as $case | ($on | keys[]) as $transport | $case + [$transport]]
            + [$bounds[] | [.[0], "limit", .[1]]] | sort) as $wanted
        | (map(if .transport == "limit" then [.test, .transport, .runs_on]
            else [.test, .connections, .paced_per_s, .transport] end) | sort) as $seen
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
