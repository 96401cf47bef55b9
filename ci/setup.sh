#!/usr/bin/env bash
# Installs what the gates need and the machine lacks. Only Debian's packages and crates are fetched;
# the Rust toolchain (stable, with rustfmt and clippy) has to be there.
source "$(dirname "$0")/lib.sh"

for tool in cargo rustc rustdoc cargo-fmt cargo-clippy; do
    command -v "$tool" >/dev/null || fail "$tool is missing: a stable Rust toolchain with rustfmt and clippy is needed"
done

# Program and Debian package: strace sees idleness, valgrind counts instructions, ip and unshare
# make network namespaces, nft and socat what stands between them, jq reads JSON, g++ builds
# libFuzzer; curl and Redis are for the tests of integration/.
tools="cc:gcc curl:curl g++:g++ git:git ip:iproute2 jq:jq nft:nftables nsenter:util-linux realpath:coreutils"
tools+=" redis-benchmark:redis-tools redis-cli:redis-tools redis-server:redis-server setpriv:util-linux"
tools+=" socat:socat strace:strace unshare:util-linux valgrind:valgrind"
missing=()
for tool in $tools; do
    command -v "${tool%%:*}" >/dev/null || missing+=("${tool#*:}")
done
# And a PostgreSQL server of their own; Debian keeps its programs out of PATH.
command -v initdb >/dev/null || compgen -G "/usr/lib/postgresql/*/bin/initdb" >/dev/null || missing+=(postgresql)
if ((${#missing[@]})); then
    echo "missing here: ${missing[*]}"
    ((EUID == 0)) || fail "install these packages first (only root can): ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    apt-get -o Acquire::Retries=3 update -qq
    apt-get -o Acquire::Retries=3 install -y -qq --no-install-recommends "${missing[@]}"
fi

# Fails when a committed lock file does not fit its manifest.
host=$(rustc -vV | sed -n 's/^host: //p')
cargo fetch --locked --target "$host"
cargo fetch --locked --target "$host" --manifest-path fuzz/Cargo.toml
cargo fetch --locked --target "$host" --manifest-path report/others/Cargo.toml

rustc -V
cargo -V
strace -V | head -n 1
ip -V
printf 'Linux %s, %s cores, user %s\n' "$(uname -r)" "$(nproc)" "$(id -u)"
