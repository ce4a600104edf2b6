#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# The layers of docs/design.md: a file that includes from below would turn the folder list into a lie.
# asan: no
. "$(dirname "$0")/lib.sh"

layers="base wire notify origin store fill gate replay keeper service serve mount cli"

# Print what breaks the rule, for the tree $1.
violations() {
	python3 - "$1" "$layers" <<'EOF'
import os, re, sys
top, layers = sys.argv[1], sys.argv[2].split()
for folder, dirs, files in os.walk(top):
    for name in sorted(files):
        path = os.path.relpath(os.path.join(folder, name), top)
        if not name.endswith((".c", ".h")):
            continue
        own = path.split("/")[0]
        if own not in layers:
            print(f"{path}: {own} is no layer")
            continue
        text = open(os.path.join(top, path), encoding="utf-8").read()
        for n, line in enumerate(text.split("\n"), 1):
            m = re.match(r'\s*#\s*include\s*([<"])([^">]+)[">]', line)
            if not m:
                continue
            kind, what = m.groups()
            if kind == "<":
                if what == "linux/fuse.h":
                    print(f"{path}:{n}: includes <{what}>: the protocol is in wire/proto.h")
                continue
            to = what.split("/")[0]
            if "/" not in what or to not in layers or ".." in what:
                print(f'{path}:{n}: "{what}" does not name its layer')
            elif layers.index(to) > layers.index(own):
                print(f'{path}:{n}: {own} includes "{what}" from below')
            elif not os.path.exists(os.path.join(top, what)):
                print(f'{path}:{n}: "{what}" does not exist')
EOF
}

is "$(violations "$TOP/src")" "" "each file includes only from its own layer and those above it"

# The check itself finds what it should.
mkdir -p "$T/s/base" "$T/s/wire" "$T/s/odd"
echo '#include "wire/b.h"' >"$T/s/base/a.c"
echo '#include <linux/fuse.h>' >"$T/s/wire/b.h"
echo '# include "b.h"' >"$T/s/wire/c.c"
: >"$T/s/odd/d.c"
is "$(violations "$T/s" | wc -l)" 4 "a wrong include is found"

sources() { find "$TOP/src" "$TOP/tests" "$TOP/bench" "$TOP/tools" "$TOP/.ci" -type f 2>/dev/null; }

missing=$(sources | grep -E '\.(c|h|py|sh|t)$|/tools/|/\.ci/|/tests/run$|/bench/' |
	grep -vE '\.(json|md|txt|build|pyc)$|__pycache__' |
	while IFS= read -r f; do
		head -n 5 "$f" | grep -q 'SPDX-License-Identifier: LGPL-2.1-or-later' || echo "${f#"$TOP/"}"
	done)
is "$missing" "" "each source names its licence"

missing=$(find "$TOP/src" -name '*.h' | while IFS= read -r f; do
	grep -q '^#pragma once' "$f" || echo "${f#"$TOP/"}"
done)
is "$missing" "" "each header guards itself"

missing=$(find "$TOP/src" -name '*.h' | sort | while IFS= read -r f; do
	grep -qE '^(/\*| \*)' <(sed -n '2,6p' "$f") || echo "${f#"$TOP/"}"
done)
is "$missing" "" "each header says at its top what it is about"

done_testing
