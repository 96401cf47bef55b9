#!/usr/bin/env bash
# The scenes of the laboratory of limits that only root can play: control groups, mounts, locked
# memory, other users. `cargo test` plays them too where it can; here none is left out.
source "$(dirname "$0")/lib.sh"
((EUID == 0)) || fail "needs root"
scratch

CI=1 cargo test --locked --test limits -- memory:: directory:: no_further_process 2>&1 | tee "$scratch/log"
(($(tests_passed "$scratch/log") > 0)) || fail "no test ran"
