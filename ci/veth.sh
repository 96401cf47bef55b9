#!/usr/bin/env bash
# Side by side between two network namespaces, as between two containers: TCP and SMC in one run of
# smcperf, over a veth pair and over a bridge, with a device directory that both share, and what
# connect costs without one. Prints the ratios to TCP, and fails where one misses its bar:
#
#     pp       median round trip at least 6 times shorter
#     tp       at least 2 times the bytes per second
#     connect  at least 0.95 of the connections per second; 0.98 without a shared directory
#
# `SECONDS_EACH=10 ROUNDS=15 ci/veth.sh` measures longer, `TESTS=pp,connect` only those. Needs root.
# No gate of .ci/run: figures of a busy machine are none.
source "$(dirname "$0")/lib.sh"
((EUID == 0)) || fail "needs root"
seconds=${SECONDS_EACH:-3}
rounds=${ROUNDS:-9}

cargo build --locked --release --example smcperf
perf=$target/release/examples/smcperf

scratch=$(mktemp -d)
client=smc-veth-$$-client
server=smc-veth-$$-server
serving=
clean() {
    [[ -z $serving ]] || kill "$serving" 2>/dev/null || true
    ip netns del "$client" 2>/dev/null || true
    ip netns del "$server" 2>/dev/null || true
    ip link del "br$$" 2>/dev/null || true
    rm -rf "$scratch"
}
trap clean EXIT

# Two addresses for the server: one at the end of a wire, one behind a bridge.
ip netns add "$client"
ip netns add "$server"
ip -n "$client" link set lo up
ip -n "$server" link set lo up
ip -n "$client" link add wire type veth peer name wire netns "$server"
ip link add "br$$" type bridge
ip link set "br$$" up
for side in client server; do
    ip link add "v$side$$" type veth peer name eth0 netns "${!side}"
    ip link set "v$side$$" master "br$$" up
    [[ $side == client ]] && last=2 || last=3
    for interface in wire eth0; do
        [[ $interface == wire ]] && net=10.201.1 || net=10.201.2
        ip -n "${!side}" addr add "$net.$last/24" dev "$interface"
        ip -n "${!side}" link set "$interface" up
    done
done

# What has ended keeps its port for a minute, and there are more connections than ports: when they
# run short, the kernel searches for milliseconds, and that would be measured.
ip netns exec "$client" sysctl -qw net.ipv4.ip_local_port_range="1024 65535" net.ipv4.tcp_max_tw_buckets=1000
ip netns exec "$server" sysctl -qw net.ipv4.tcp_max_tw_buckets=1000

# measure TITLE ADDRESS:PORT CLIENT_DIR SERVER_DIR TESTS: the rows of one run, with the title as a
# key.
measure() {
    local title=$1 address=$2
    mkdir -p -m 700 "$3" "$4"
    SMC_LO_DIR=$4 ip netns exec "$server" "$perf" serve "$address" >"$scratch/serve" &
    serving=$!
    for _ in $(seq 200); do
        grep -q '^listening' "$scratch/serve" && break
        sleep 0.05
    done
    SMC_LO_DIR=$3 ip netns exec "$client" "$perf" run "$address" --json --transport=tcp,smc --test="$5" \
        --seconds="$seconds" --rounds="$rounds" >"$scratch/run" || fail "$title: exit status $?"
    kill "$serving"
    wait "$serving" 2>/dev/null || true
    serving=
    jq -c --arg title "$title" '. + { title: $title }' "$scratch/run" >>"$scratch/rows"
}

all=${TESTS:-pp,tp,rate,conns,connect}
measure veth 10.201.1.3:7700 "$scratch/shared" "$scratch/shared" "$all"
measure bridge 10.201.2.3:7700 "$scratch/shared" "$scratch/shared" "$all"
measure "veth, no shared directory" 10.201.1.3:7701 "$scratch/near" "$scratch/far" connect

printf '%s, %s CPUs, load %s; %s s each, medians of %s rounds\n\n' \
    "$(uname -sr)" "$(nproc)" "$(cut -d' ' -f1 /proc/loadavg)" "$seconds" "$rounds"
jq -rs '
    def figure: if .test == "pp" then .rtt_p50_us elif .test == "tp" then .bytes_per_s
        elif .test == "rate" or .test == "conns" then .msgs_per_s else .connects_per_s end;
    def unit: { pp: "µs p50", tp: "B/s", rate: "msg/s", conns: "round trips/s", connect: "connects/s" }[.test];
    def bar: if .test == "pp" then 6 elif .test == "tp" then 2
        elif .test == "connect" then (if .title | test("no shared") then 0.98 else 0.95 end) else 0 end;
    def short: if . >= 100 then round else (. * 100 | round) / 100 end;
    group_by([.title, .test, .connections])[]
    | (map(select(.transport == "tcp"))[0]) as $tcp | (map(select(.transport == "smc"))[0]) as $smc
    | ($tcp | figure) as $old | ($smc | figure) as $new
    | (if $tcp.test == "pp" then $old / $new else $new / $old end) as $ratio
    | [$tcp.title, "\($tcp.test) × \($tcp.connections)", ($old | short), ($new | short), ($tcp | unit),
        "\($ratio * 1000 | round / 1000)×", $smc.runs_on,
        if ($smc | bar) == 0 then "" elif $ratio >= ($smc | bar) then "bar \($smc | bar): holds"
        else "bar \($smc | bar): MISSED" end,
        if $smc.test != "connect" and $smc.runs_on != "loopback-ism" then "NOT ON THE RING" else "" end]
    | @tsv
' "$scratch/rows" | column -t -s $'\t' | tee "$scratch/table"
! grep -q 'MISSED\|NOT ON THE RING' "$scratch/table" || fail "a bar is missed"
