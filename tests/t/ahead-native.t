#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Marks that are set before they are asked for: if this fails, who walks through a tree that is here waits for the service at each
# file, or nobody asks about a file that is not here.
. "$(dirname "$0")/../tools/native.sh" --self
. "$(dirname "$0")/lib.sh"
. "$TOOLS/clone.sh"

o=$T/o c=$T/c
mkdir -p "$o/one" "$o/two"
for d in one two; do
	for i in $(seq 200); do head -c $((i * 50 + 5000)) /dev/urandom >"$o/$d/file-$i"; done
done
clone "$o" "$c"

# marked FILE: the kernel does not ask about it.
marked() { grep -qs "^fanotify ino:$(printf %x "$(stat -c %i "$1")") .*ignored_mask:[0-9a-f]*[1-9a-f]" /proc/"$(field service_pid "$c")"/fdinfo/*; }
marked_any() { local f; for f in "$@"; do marked "$f" && return 0; done; return 1; }
# In the order in which a walker comes to them.
mapfile -t one < <(ls -U "$c/one") && mapfile -t two < <(ls -U "$c/two")

nok "what is not here is not marked" marked_any "$c/one/${one[3]}" "$c/two/${two[20]}"
"$SLUICE" hydrate "$c" >"$T/.out" || bail "hydrate"
ok "what has arrived completely is, before anybody opens it" wait_for 60 marked "$c/one/${one[3]}"
ok "all of it" wait_for 60 marked "$c/two/${two[199]}"
"$SLUICE" evict "$c/one/${one[5]}" >"$T/.out" || bail "evict"
nok "until it is evicted" marked "$c/one/${one[5]}"
# With the service go the marks, and no more of it is fetched.
"$SLUICE" stop "$c" >"$T/.out" && "$SLUICE" start "$c" >"$T/.out" || bail "stop and start"
nok "after a start nothing is marked" marked_any "$c/one/${one[3]}" "$c/one/${one[20]}"
ok "the first file is read" cmp "$o/one/${one[0]}" "$c/one/${one[0]}"
nok "which marks no other one" marked_any "$c/one/${one[1]}" "$c/one/${one[3]}"
ok "and the second" cmp "$o/one/${one[1]}" "$c/one/${one[1]}"
ok "which marks those that follow" wait_for 60 marked "$c/one/${one[16]}"
ok "one after the other" marked "$c/one/${one[3]}"
nok "but not the one that is not here" marked "$c/one/${one[5]}"
before=$(field fetches "$c")
ok "which reads as it should" cmp "$o/one/${one[5]}" "$c/one/${one[5]}"
is "$(field fetches "$c")" $((before + 1)) "from the origin"
nok "and nothing that is far away" marked "$c/one/${one[150]}"

"$SLUICE" evict "$c/one/${one[7]}" >"$T/.out"
nok "eviction takes such a mark away" marked "$c/one/${one[7]}"
ok "and what was evicted reads as it should" cmp "$o/one/${one[7]}" "$c/one/${one[7]}"

ok "the first file of the next directory is read" cmp "$o/two/${two[0]}" "$c/two/${two[0]}"
ok "which is enough, of who walks" wait_for 60 marked "$c/two/${two[16]}"
ok "all is as at the origin" same_tree "$o" "$c"
done_testing
