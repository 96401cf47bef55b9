#!/usr/bin/env bash
# Rules of the house that no compiler checks. Looks at what git tracks, and at all rules before it
# fails.
source "$(dirname "$0")/lib.sh"
# Or grep would take what is not ASCII for no text.
export LC_ALL=C.UTF-8
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

# ---- width: characters, not bytes. Of UTF-8 every byte but a character's first is 10xxxxxx. ----

hits=$(git ls-files -z -- '*.md' | LC_ALL=C xargs -0 awk '
    FNR == 1 { code = 0 }
    /^[ >]*(```|~~~)/ { code = !code; next }
    code || /^ *\|/ { next }
    {
        line = $0
        gsub(/[\200-\277]/, "", line)
        if (length(line) <= 100) next
        # What can not be broken may stand alone on a line: a word, a link.
        sub(/^[ >]*([-*+] |[0-9]+\. )? */, "", line)
        if (line ~ / / && line !~ /^!?\[[^]]*\](\([^)]*\)|:.*)[.,;:]?$/) print FILENAME ":" FNR ": " $0
    }')
broken "prose is at most 100 columns wide, tables and code aside" "$hits"

hits=$(git ls-files -z -- '*.rs' '*.sh' '*.toml' .ci/run | LC_ALL=C xargs -0 awk '
    FNR == 1 { code = 0; rust = FILENAME ~ /\.rs$/; mark = rust ? "^ *//[/!]?" : "^ *#" }
    $0 !~ mark { code = 0; next }
    {
        line = $0
        gsub(/[\200-\277]/, "", line)
        width = length(line)
        sub(mark " *", "", line)
        # Of the documentation code and tables are aside, as in prose.
        if (rust && line ~ /^(```|~~~)/) code = !code
        else if (width > 100 && !code && line ~ / / && !(rust && line ~ /^\|/)) print FILENAME ":" FNR ": " $0
    }')
broken "comments are at most 100 columns wide" "$hits"

# ---- what the documents say is true ----

# paths: the files that the patterns on standard input name, braces and stars expanded.
paths() {
    local pattern
    while IFS= read -r pattern; do
        [[ -n $pattern ]] || continue
        [[ $pattern =~ ^[A-Za-z0-9_./{},*-]+$ ]] || fail "no pattern for paths: $pattern"
        eval "printf '%s\n' $pattern"
    done
}

# missing: those of the paths on standard input that do not exist.
missing() {
    local path
    while IFS= read -r path; do
        [[ -z $path || -e $path ]] || echo "$path"
    done
}

listed=$(sed -n '/^## Source files/,$p' docs/design.md | awk -F'|' '/^\| `/ { print $2 }' |
    grep -oP '`[^`]+`' | tr -d '`' | paths)
broken "docs/design.md lists files that exist" "$(missing <<<"$listed")"
hits=$(comm -23 <(git ls-files -- 'src/*.rs' | grep -vP '/tests(\.rs|/.*)$' | sort) <(sort -u <<<"$listed"))
broken "docs/design.md lists every file of src/, tests aside" "$hits"

for document in README.md docs/*.md; do
    hits=$({ grep -oP '`\K(src|tests|benches|ci|docs|examples|integration|fuzz)/[^`< ]+(?=`)' "$document" || true; } |
        paths | missing)
    broken "$document names files that exist" "$hits"
done
while IFS= read -r document; do
    hits=$({ grep -oP '\]\(\K[^)#:]+(?=[)#])' "$document" || true; } | sed "s|^|$(dirname "$document")/|" | missing)
    broken "$document links to files that exist" "$hits"
done < <(git ls-files -- '*.md')

hits=$(git ls-files -- examples | sed -nE 's|^examples/([^/]+)\.rs$|\1|p; s|^examples/([^/]+)/main\.rs$|\1|p' |
    while IFS= read -r example; do grep -q "^|.*\[\?\`$example\`" examples/README.md || echo "$example"; done)
broken "the table of examples/README.md has every example" "$hits"

version=$(grep -oP 'const VERSION: u16 = \K\d+' src/link/message.rs)
hits=$(grep -nP "u16 version = (?!$version\b)" docs/protocol.md || true)
broken "docs/protocol.md has the version of the link messages, $version" "$hits"

# The legend of hazards: every code has an entry, and every entry tests that exist where it says.
tests=$(git grep -oP '\bfn \Khazard_\w+' -- '*.rs' | sort)
entries=$(grep -oP '^### \K[A-Z]\d+(?=: )' docs/hazards.md | sort)
hits=$(comm -23 <(grep -oP ':hazard_\K[a-z]\d+(?=_)' <<<"$tests" | tr '[:lower:]' '[:upper:]' | sort -u) <(echo "$entries"))
broken "docs/hazards.md has an entry for every code in the name of a test" "$hits"
named=$(awk '/^- `.*`:$/ { file = $2; gsub(/[`:]/, "", file) } /^  - `hazard_/ { gsub(/`/, ""); print file ":" $2 }' \
    docs/hazards.md | sort -u)
broken "docs/hazards.md names tests that exist" "$(comm -23 <(echo "$named") <(echo "$tests"))"
hits=$(comm -23 <(echo "$entries") <(grep -oP ':hazard_\K[a-z]\d+(?=_)' <<<"$named" | tr '[:lower:]' '[:upper:]' | sort -u))
broken "every entry of docs/hazards.md names a test" "$hits"

# The threat model: what it names as shown by a test is a test, or a scene of tests/hostile.
hits=$(grep -oP '`\K[a-z][a-z0-9]*(_[a-z0-9]+){2,}(?=`)' docs/threat-model.md | sort -u | while read -r name; do
    git grep -qE "\\b(fn $name\\(\\)|$name: [a-z]+::)" -- '*.rs' || echo "$name"
done)
broken "docs/threat-model.md names tests that exist" "$hits"

# ---- files ----

long=$(git ls-files -z -- '*.rs' '*.sh' .ci/run | xargs -0 wc -l | awk '$2 != "total" && $1 > 600')
broken "a file has at most 600 lines" "$long"
broken "a script can be executed" "$(git ls-files -s -- 'ci/*.sh' .ci/run | awk '$1 != "100755" && $4 != "ci/lib.sh" { print $4 }')"
for script in ci/*.sh; do
    name=${script#ci/}
    # One that takes too long, or a toolchain that not everybody has, says so.
    [[ $name == lib.sh ]] || grep -q " $script\$" .ci/run || grep -qi '^#.*no gate of \.ci/run' "$script" ||
        broken "every gate is run" "$script is not in .ci/run"
done
broken "the lock files are committed" "$(git ls-files --error-unmatch Cargo.lock fuzz/Cargo.lock report/others/Cargo.lock 2>&1 >/dev/null || true)"

((faults == 0)) || fail "$faults rules broken"
echo "all rules kept"
