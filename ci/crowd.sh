#!/usr/bin/env bash
# TCP and SMC in turns where CPUs are short: two and four pairs of processes on two CPUs, one pair
# beside a busy loop, and one whose sides have a quota of half a core each (as root). Prints round
# trips per second (of all pairs together) and p99 (of the worst), each beside TCP's, and fails
# where SMC is below TCP.
#
# `SECONDS_EACH=10 ROUNDS=5 ci/crowd.sh`, `CROWDS="two quota" ci/crowd.sh`. No gate of .ci/run:
# figures of a busy machine are none.
source "$(dirname "$0")/lib.sh"
seconds=${SECONDS_EACH:-3}
rounds=${ROUNDS:-3}
tests=${TESTS:-conns}
read -ra crowds <<<"${CROWDS:-two four busy quota}"

cargo build --locked --release --example smcperf
perf=$target/release/examples/smcperf
scratch=$(mktemp -d)
serving=()
burning=
groups=()
clean() {
    ((${#serving[@]} == 0)) || kill "${serving[@]}" 2>/dev/null || true
    [[ -z $burning ]] || kill "$burning" 2>/dev/null || true
    wait 2>/dev/null || true
    ((${#groups[@]} == 0)) || rmdir "${groups[@]}" 2>/dev/null || true
    rm -rf "$scratch"
}
trap clean EXIT
mkdir -m 700 "$scratch/device"
export SMC_LO_DIR=$scratch/device

# half_core NAME: a control group with half a core, by its directory.
half_core() {
    local root=/sys/fs/cgroup group
    [[ ! -d $root/cpu ]] || root+=/cpu
    group=$root/smc-crowd-$$-$1
    mkdir "$group"
    if [[ -e $group/cpu.max ]]; then
        echo "50000 100000" >"$group/cpu.max"
    else
        echo 100000 >"$group/cpu.cfs_period_us"
        echo 50000 >"$group/cpu.cfs_quota_us"
    fi
    echo "$group"
}

# within GROUP COMMAND...: runs it on two CPUs, and in that control group if there is one.
within() {
    [[ -z $1 ]] || echo "$BASHPID" >"$1/cgroup.procs"
    exec taskset -c 0,1 "${@:2}"
}

# play CROWD TRANSPORT PAIRS SERVER_GROUP CLIENT_GROUP: one round.
play() {
    local crowd=$1 transport=$2 pairs=$3 pair address clients=() outcome=0
    serving=()
    for ((pair = 0; pair < pairs; pair++)); do
        within "$4" "$perf" serve 127.0.0.1:0 >"$scratch/serve$pair" &
        serving+=($!)
    done
    for ((pair = 0; pair < pairs; pair++)); do
        for _ in $(seq 200); do
            grep -q '^listening' "$scratch/serve$pair" && break
            sleep 0.05
        done
        address=$(grep -o '127.0.0.1:[0-9]*' "$scratch/serve$pair" | head -n 1)
        within "$5" "$perf" run "$address" --json --transport="$transport" --test="$tests" --rounds=1 \
            --seconds="$seconds" >"$scratch/run$pair" &
        clients+=($!)
    done
    for pair in "${!clients[@]}"; do
        wait "${clients[pair]}" || outcome=$?
    done
    ((outcome == 0)) || fail "$crowd over $transport: exit status $outcome"
    kill "${serving[@]}"
    wait "${serving[@]}" 2>/dev/null || true
    serving=()
    # Of all pairs together; the limits of the machine are nobody's transport.
    cat "$scratch"/run* | jq -sc --arg crowd "$crowd" --arg transport "$transport" '
        map(select(.transport == $transport and .msgs_per_s)) | group_by([.test, .connections])[]
        | { crowd: $crowd, transport: $transport, test: .[0].test, connections: .[0].connections,
            rate: (map(.msgs_per_s) | add), p99: (map(.rtt_p99_us) | max) }
    ' >>"$scratch/rows"
    rm -f "$scratch"/run*
}

for crowd in "${crowds[@]}"; do
    pairs=1 server_group='' client_group=''
    case $crowd in
        two) pairs=2 ;;
        four) pairs=4 ;;
        busy)
            taskset -c 0,1 bash -c 'while :; do :; done' &
            burning=$!
            ;;
        quota)
            ((EUID == 0)) || fail "the quota needs root"
            server_group=$(half_core server)
            client_group=$(half_core client)
            groups=("$server_group" "$client_group")
            ;;
        *) fail "no such crowd: $crowd" ;;
    esac
    for ((round = 0; round < rounds; round++)); do
        for transport in tcp smc; do
            play "$crowd" "$transport" "$pairs" "$server_group" "$client_group"
        done
    done
    if [[ -n $burning ]]; then
        kill "$burning"
        wait "$burning" 2>/dev/null || true
        burning=
    fi
done

printf '%s, CPUs 0 and 1, load %s; %s s each, medians of %s rounds\n\n' \
    "$(uname -sr)" "$(cut -d' ' -f1 /proc/loadavg)" "$seconds" "$rounds"
jq -rs '
    def median: sort | .[length / 2 | floor];
    def short: if . >= 100 then round else (. * 100 | round) / 100 end;
    group_by([.crowd, .test, .connections])[]
    | (map(select(.transport == "tcp"))) as $tcp | (map(select(.transport == "smc"))) as $smc
    | ($tcp | map(.rate) | median) as $old | ($smc | map(.rate) | median) as $new
    | ($tcp | map(.p99) | median) as $late | ($smc | map(.p99) | median) as $later
    | [$tcp[0].crowd, "\($tcp[0].test) × \($tcp[0].connections)", "\($old | short)/s", "\($new | short)/s",
        "\($new / $old | short)×", "p99 \($late | short) µs", "\($later | short) µs", "\($later / $late | short)×",
        if $new < $old then "RATE BELOW TCP" else "" end, if $later > $late then "P99 ABOVE TCP" else "" end]
    | @tsv
' "$scratch/rows" | column -t -s $'\t' | tee "$scratch/table"
! grep -q 'BELOW\|ABOVE' "$scratch/table" || fail "SMC is behind TCP"
