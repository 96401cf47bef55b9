#!/usr/bin/env bash
# The recipes of docs/containers.md, as they stand there, run by podman; and what the text beside
# them says of a pod, a published port, users, a read-only root and a seccomp profile. Needs root,
# podman, podman-compose, and a runtime that works here (CONTAINER_RUNTIME, runc by default).
# No gate of .ci/run: an engine is not to be had everywhere, and `cargo test --test namespaces`
# builds the same networks without one.
source "$(dirname "$0")/lib.sh"
((EUID == 0)) || fail "needs root"
for program in podman podman-compose jq "${CONTAINER_RUNTIME:=runc}"; do
    command -v "$program" >/dev/null || fail "needs $program"
done

cargo build --locked --release --example smcperf --example filecopy
examples=$target/release/examples

scratch=$(mktemp -d)
shared=/run/smc-lo
made=
address=
clean() {
    podman-compose -p smc -f "$scratch/compose.yml" down --volumes &>/dev/null || true
    podman pod rm --force server client pod &>/dev/null || true
    podman rm --force receiver systemd &>/dev/null || true
    podman network rm --force smc-containers &>/dev/null || true
    podman rmi --force localhost/server localhost/client &>/dev/null || true
    [[ -z $made ]] || rm -rf "$shared"
    rm -rf "$scratch"
}
trap clean EXIT

# A configuration of this run's own: the engine's defaults, with a limit that every process may set.
export CONTAINERS_CONF=$scratch/containers.conf
cat >"$CONTAINERS_CONF" <<END
[containers]
log_driver = "k8s-file"
default_ulimits = ["nofile=1024:$(ulimit -Hn)", "nproc=1024:1024"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "$CONTAINER_RUNTIME"
[network]
network_backend = "netavark"
END

# Two images of the programs and the libraries that they need.
mkdir -p "$scratch/root"/{bin,proc,sys,dev,etc}
mkdir -m 1777 "$scratch/root/tmp"
cp "$examples"/{smcperf,filecopy} "$scratch/root/bin"
ldd "$examples"/{smcperf,filecopy} | grep -o '/[^ :]*\.so[^ ]*' | sort -u |
    xargs -I{} cp --parents --dereference {} "$scratch/root"
image() {
    tar -C "$scratch/root" -c . | podman import --quiet --change "CMD $2" - "localhost/$1" >/dev/null
}
image server '["/bin/smcperf", "serve", "0.0.0.0:7700"]'
image client '["/bin/smcperf", "run", "server:7700", "--test=pp,tp", "--transport=smc", "--quick", "--json"]'

# recipe NUMBER: a block of YAML of the document.
recipe() {
    awk -v number="$1" '/^```yaml/ { inside = 1; at++; next } /^```/ { inside = 0 }
        inside && at == number' docs/containers.md
}

# ran WHAT FILE: every row of smcperf that is in a file ran on shared memory, limits aside.
ran() {
    jq -e -s 'map(select(.transport == "smc")) | length > 0 and all(.[]; .runs_on == "loopback-ism")' "$2" >/dev/null || {
        cat "$2"
        fail "$1: not on shared memory"
    }
    jq -r -s --arg what "$1" '.[] | select(.transport == "smc") | "\($what): \(.test) on \(.runs_on)"' "$2"
}

# ended NAME: waits for a container, and fails with it.
ended() {
    local status
    status=$(timeout 120 podman wait "$1") || fail "$1 does not end"
    podman logs "$1" >"$scratch/out" 2>"$scratch/err"
    [[ $(podman inspect "$1" | jq -r '.[0].State.StartedAt') != 0001-* ]] || fail "$1 was not started: $(cat "$scratch/log")"
    [[ $status == 0 ]] || fail "$1: exit status $status: $(cat "$scratch/err")"
}

echo "--- compose"
recipe 1 >"$scratch/compose.yml"
podman-compose -p smc -f "$scratch/compose.yml" up -d &>"$scratch/log" || fail "$(cat "$scratch/log")"
ended smc_client_1
ran compose "$scratch/out"
podman-compose -p smc -f "$scratch/compose.yml" down --volumes &>/dev/null

echo "--- two pods of a node"
if [[ ! -e $shared ]]; then
    made=yes
    install -d -m 1777 "$shared"
fi
podman network create smc-containers >/dev/null
# A port that is published at a loopback address would be reached from another one.
address=$(podman network inspect smc-containers | jq -r ".[0].subnets[0].gateway")
recipe 2 >"$scratch/server.yml"
sed 's/name: server/name: client/; s/image: server/image: client/; s/^spec:/&\n  restartPolicy: Never/' \
    "$scratch/server.yml" >"$scratch/client.yml"
for pod in server client; do
    podman play kube --network smc-containers "$scratch/$pod.yml" &>"$scratch/log" || fail "$(cat "$scratch/log")"
done
ended client-app
ran "two pods" "$scratch/out"
podman pod rm --force --time 1 server client >/dev/null

echo "--- one pod, and nothing set"
podman pod create --name pod --network smc-containers --add-host server:127.0.0.1 >/dev/null
podman run --detach --pod pod --name pod-server --user 1000:1000 localhost/server >/dev/null
podman run --detach --pod pod --name pod-client --user 1000:1000 localhost/client >/dev/null
ended pod-client
ran "one pod" "$scratch/out"
podman pod rm --force --time 1 pod >/dev/null

# sends WHAT EXPECTED USER PEERS OPTION...: a file goes from that user of the host to a container,
# whose options these are, by a port that is published.
sends() {
    local what=$1 expected=$2 user=$3 peers=$4
    shift 4
    podman run --detach --name receiver --network smc-containers --publish "$address:7802:7800" --user 1000:1000 \
        --env "SMC_LO_DIR=$shared" --volume "$shared:$shared" "$@" \
        localhost/server /bin/filecopy recv /tmp/inbox 0.0.0.0:7800 >/dev/null
    head -c 20000000 /dev/urandom >"$scratch/file"
    chmod 755 "$scratch" && chmod 644 "$scratch/file"
    for _ in $(seq 100); do
        podman logs receiver 2>/dev/null | grep -q receiving && break
        sleep 0.1
    done
    SMC_LO_DIR=$shared SMC_LO_PEERS=$peers timeout 60 setpriv --reuid "$user" --regid "$user" --clear-groups \
        "$scratch/root/bin/filecopy" send "$scratch/file" "$address:7802" >"$scratch/out" || fail "$what: $(podman logs receiver 2>&1)"
    grep -q "over $expected" "$scratch/out" || fail "$what: $(cat "$scratch/out")"
    grep -q 'verified by the receiver' "$scratch/out" || fail "$what: not verified"
    podman rm --force --time 1 receiver >/dev/null
    echo "$what: $(grep -o "over .*" "$scratch/out")"
}

echo "--- the host, and a published port"
sends "published port" loopback-ism 1000 same
sends "a user that nobody admits" tcp 2000 uid:1000
sends "two users that admit each other" loopback-ism 2000 uid:1000 --env SMC_LO_PEERS=uid:1000,2000
sends "a read-only root" loopback-ism 1000 same --read-only
sends "no privileges at all" loopback-ism 1000 same --cap-drop=all --security-opt=no-new-privileges
jq -n '{ defaultAction: "SCMP_ACT_ALLOW", syscalls: [{ names: ["memfd_create"], action: "SCMP_ACT_ERRNO" }] }' \
    >"$scratch/seccomp.json"
sends "without memfd_create" tcp 1000 same "--security-opt=seccomp=$scratch/seccomp.json"

echo "--- units of systemd"
if [[ -x /lib/systemd/systemd ]]; then
    mkdir -m 777 "$scratch/units" "$scratch/told"
    # unit NAME COMMAND LINE...: one of the recipe's, which does that.
    unit() {
        printf '[Unit]\nAfter=%s\n' "$([[ $1 == server ]] || echo server.service)"
        awk '/^```ini/ { inside = 1; next } /^```/ { inside = 0 } inside' docs/containers.md | sed 's/^User=.*/User=games/'
        printf 'ExecStart=%s\n' "$2"
        shift 2
        (($# == 0)) || printf '%s\n' "$@"
    }
    run='/smc/root/bin/smcperf run 127.0.0.1:7700 --test=pp,tp --transport=smc --quick --json'
    once=(Type=oneshot 'ExecStartPre=/bin/sleep 1' StandardError=append:/smc/told/errors)
    unit server '/smc/root/bin/smcperf serve 127.0.0.1:7700' >"$scratch/units/server.service"
    unit client "$run" "${once[@]}" StandardOutput=append:/smc/told/client >"$scratch/units/client.service"
    unit client "$run" "${once[@]}" StandardOutput=append:/smc/told/quiet |
        sed 's/ AF_NETLINK//; s/^After=.*/After=client.service/' >"$scratch/units/quiet.service"
    printf '[Unit]\nWants=server.service client.service quiet.service\n' >"$scratch/units/smc.target"
    volumes=()
    for file in "$scratch"/units/*; do
        volumes+=(--volume "$file:/etc/systemd/system/${file##*/}:ro")
    done
    # This machine's own systemd, on a copy of its files.
    podman run --detach --name systemd --systemd=always --privileged --tmpfs /tmp:rw,notmpcopyup \
        --tmpfs /run:rw,notmpcopyup --tmpfs /var/log/journal:rw,notmpcopyup --volume "$scratch:/smc" \
        "${volumes[@]}" --rootfs /:O /lib/systemd/systemd --unit=smc.target >/dev/null
    for _ in $(seq 60); do
        [[ $(cat "$scratch"/told/quiet 2>/dev/null | wc -l) == 2 ]] && break
        sleep 0.5
    done
    [[ ! -s $scratch/told/errors ]] || fail "systemd: $(cat "$scratch/told/errors")"
    ran systemd "$scratch/told/client"
    ran "systemd, without netlink" "$scratch/told/quiet"
    podman rm --force --time 1 systemd >/dev/null
fi
