#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# long: yes
# If this fails, content that is taken away over and over is missing, or wrong, for somebody who reads, maps or walks meanwhile.
# ROUNDS=200 is the long form. GATE chooses the gate.
. "$(dirname "$0")/lib.sh"
. "$TOOLS/clone.sh"

o=$T/o c=$T/c
make_tree "$o" 60
head -c 8000000 /dev/urandom >"$o/large"
serve s "$o"
clone --gate "${GATE:-fuse}" "unix:$T/s" "$c"
ok "evicted over and over under readers, mappers and walkers: nothing is wrong, nothing fails" \
	"$TOOLS/storm.py" --rounds "${ROUNDS:-20}" "$o" "$c" -- "$SLUICE" evict "$c"
diag "$(<"$T/.out")"
isnt "$(field bytes_here "$c")" "" "the service is alive"

# The storm itself notices what is wrong.
cp -a "$o" "$T/copy"
printf x >>"$T/copy/large"
nok "a file with a byte too many is noticed" "$TOOLS/storm.py" --rounds 2 "$o" "$T/copy" -- true
like "$(<"$T/.out")" '"wrong": [1-9]' "as wrong"
rm "$T/copy/large"
nok "a file that is not there is noticed" "$TOOLS/storm.py" --rounds 2 "$o" "$T/copy" -- true
done_testing
