#!/usr/bin/env bash
# Rules of the house that no compiler checks. Looks at what git tracks, and at all rules before it fails.
source "$(dirname "$0")/lib.sh"
faults=0

# broken RULE HITS: says what breaks the rule, if anything does.
broken() {
    if [[ -n $2 ]]; then
        printf '%s:\n%s\n\n' "$1" "$2" >&2
        faults=$((faults + 1))
    fi
}

# matches PATTERN PATHSPEC...: the lines that git tracks and that match.
matches() {
    local status=0
    git grep -nIP "$1" -- "${@:2}" || status=$?
    ((status <= 1)) || fail "git grep ends with $status"
}

# forbid RULE PATTERN PATHSPEC...: no line matches, comments aside.
forbid() {
    local hits
    hits=$(matches "${@:2}")
    broken "$1" "$(grep -vP '^[^:]+:\d+:\s*//' <<<"$hits" || true)"
}

forbid "unsafe lives in src/ism/{sys,arena,ring} only" '\bunsafe\b' \
    'src/*.rs' ':!src/ism/sys*' ':!src/ism/arena*' ':!src/ism/ring*'
forbid "clc, ism, link and conn know no tokio (src/rt/tokio.rs does)" '\btokio::|\buse tokio\b|\bextern crate tokio\b' \
    'src/clc*' 'src/ism*' 'src/link*' 'src/conn*'
forbid "atomics come from src/sync.rs, where loom can see them" '\b(sync::atomic|sync::\{.*\batomic)\b' \
    'src/*.rs' ':!src/sync.rs'
forbid "a library prints nothing" '\b(e?println|e?print|dbg)!' 'src/*.rs'
forbid "a test runs or does not exist" '#!?\[.*\bignore\b' '*.rs'

# These two in comments, too.
hits=$(matches '//[/!]\s*```.*\bignore\b' '*.rs')
broken "an example in the documentation is built" "$hits"
hits=$(matches '(?<![\w.*])/(work|root|home|Users)/\w' .)
broken "no path of one machine" "$hits"

long=$(git ls-files -z -- '*.rs' '*.sh' .ci/run | xargs -0 wc -l | awk '$2 != "total" && $1 > 600')
broken "a file has at most 600 lines" "$long"
broken "a script can be executed" "$(git ls-files -s -- 'ci/*.sh' .ci/run | awk '$1 != "100755" && $4 != "ci/lib.sh" { print $4 }')"
for script in ci/*.sh; do
    name=${script#ci/}
    [[ $name == lib.sh ]] || grep -q " $script\$" .ci/run || broken "every gate is run" "$script is not in .ci/run"
done
broken "the lock files are committed" "$(git ls-files --error-unmatch Cargo.lock fuzz/Cargo.lock 2>&1 >/dev/null || true)"

((faults == 0)) || fail "$faults rules broken"
echo "all rules kept"
