#!/usr/bin/env bash
# Smoke of the comparison of web and RPC stacks: it ends, every result is there, and every SMC
# connection ran on loopback-ism. How fast anything was is not judged, so the build that the tests
# made is good enough.
source "$(dirname "$0")/lib.sh"
scratch

cargo build --locked --example stackperf
timeout --foreground 240 cargo run --locked --quiet --example stackperf -- --seconds 0.4 --rounds 1 --json >"$scratch/rows" ||
    fail "exit status $?; its output: $(cat "$scratch/rows")"
cat "$scratch/rows"

jq -s -r '
    [["grpc", 1], ["grpc", 64], ["http1", 1], ["http1", 64], ["http2", 100]] as $cases
    | (.[] | . as $row
        | if [.requests_per_s, .p50_us, .p99_us, .cpu_us_per_request] | all(type == "number" and . > 0) | not then "has no figures"
          elif .transport == "smc" and (.smc_ran_on | keys) != ["loopback-ism"] then "ran on something else"
          elif .transport != "smc" and .smc_ran_on != {} then "is not SMC, but has an SMC connection"
          else empty end
        | "\($row | tojson): \(.)"),
      (([$cases[] as $case | ("duplex", "smc", "tcp", "uds") as $transport | $case + [$transport]] | sort) as $wanted
        | (map([.test, .in_flight, .transport]) | sort) as $seen
        | select($seen != $wanted)
        | "missing: \($wanted - $seen | tojson); not asked for: \($seen - $wanted | tojson)")
' "$scratch/rows" >"$scratch/faults"
[[ ! -s $scratch/faults ]] || fail "$(cat "$scratch/faults")"
echo "$(wc -l <"$scratch/rows") results, all whole"
