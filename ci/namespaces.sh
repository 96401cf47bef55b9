#!/usr/bin/env bash
# The tests that make network namespaces and other users, which only root can. More random
# connections: `SMC_TEST_CONNECTIONS=20000 ci/namespaces.sh`.
source "$(dirname "$0")/lib.sh"
((EUID == 0)) || fail "needs root"
scratch

if [[ -z $(git ls-files tests/namespaces/main.rs) ]]; then
    echo "tests/namespaces does not exist: there is nothing to run"
    exit 0
fi
SMC_TEST_CONNECTIONS=${SMC_TEST_CONNECTIONS:-2000} CI=1 cargo test --locked --test namespaces 2>&1 | tee "$scratch/log"
(($(tests_passed "$scratch/log") > 0)) || fail "no test ran"
# Of the hostile peers those that are another user, or in another pid namespace.
CI=1 cargo test --locked --test hostile -- scenes:: 2>&1 | tee "$scratch/log"
(($(tests_passed "$scratch/log") > 0)) || fail "no test ran"
