#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# If this fails, wrong bytes are read where memory is short: inodes go, and with them the marks that say "do not ask about this file".
. "$(dirname "$0")/../tools/native.sh" --self
. "$(dirname "$0")/lib.sh"
. "$TOOLS/clone.sh"

# What ASan keeps of freed memory would be more than the test leaves to the service.
! sanitized || export ASAN_OPTIONS=${ASAN_OPTIONS-}:quarantine_size_mb=2:thread_local_quarantine_size_kb=64
o=$T/o c=$T/c files=2000
# Files of some pages, so that their content alone is more than the little memory there is.
python3 - "$o" "$files" <<'EOP'
import os, sys
o, n = sys.argv[1], int(sys.argv[2])
os.mkdir(o)
for i in range(n):
    with open(f"{o}/{i}", "wb") as f:
        f.write(os.urandom(i * 131 % 30000 + 1))
EOP
cat >"$T/few.py" <<'EOP'
# A reader of files that are here or not, for ever: a line for each hundred; what is not right in one of its own.
import os, random, sys, time
o, c = sys.argv[1:]
rng = random.Random(os.getpid())
names = os.listdir(o)
n = 0
while True:
    name = rng.choice(names)
    n += 1
    try:
        with open(f"{c}/{name}", "rb") as f:
            got = f.read()
        with open(f"{o}/{name}", "rb") as f:
            if got != f.read():
                print("WRONG", name, flush=True)
    except OSError as e:
        print("FAILED", name, e, flush=True)
        time.sleep(0.1)
    if n % 100 == 0:
        print("read", flush=True)
EOP

# A group for all that is below, the clone's service as well: whoever brings an inode into memory pays for it.
group=
old=/sys/fs/cgroup/memory/sluice-${T##*.} new=/sys/fs/cgroup/sluice-${T##*.}
if [ -e /sys/fs/cgroup/memory/memory.limit_in_bytes ] && mkdir "$old"; then
	group=$old limit=$old/memory.limit_in_bytes press=$old/memory.force_empty
elif grep -qw memory /sys/fs/cgroup/cgroup.subtree_control && mkdir "$new"; then
	group=$new limit=$new/memory.high press=$new/memory.reclaim
fi 2>"$T/.out"
[ -z "$group" ] || at_exit wait_for 30 rmdir "$group" # when the service has gone
enter='[ -z "$1" ] || echo $$ >"$1/cgroup.procs"; exec "${@:2}"'
bash -c "$enter" bash "$group" true 2>"$T/.out" || group=
grouped=(bash -c "$enter" bash "$group")
diag "little memory by ${group:-dropping caches: no memory cgroup can be had}"

at_exit timeout 60 "$SLUICE" remove --force --discard "$c"
"${grouped[@]}" "$SLUICE" clone --gate fanotify "$o" "$c" >"$T/.out" 2>&1 || bail "no clone: $(<"$T/.out")"
# How many inodes are not asked about. The keeper has the same descriptors, and no successor has another number.
marks() { cat /proc/"$keeper"/fdinfo/* 2>/dev/null | grep -c '^fanotify ino:.* ignored_mask:[0-9a-f]*[1-9a-f]'; }
keeper=$(field keeper_pid "$c")
"${grouped[@]}" bash -c 'for f in "$1"/*; do cmp "$f" "$2/${f##*/}"; done' bash "$o" "$c" >"$T/bad" 2>&1
is "$(head -n 3 "$T/bad")" "" "with much memory all is right"
most=$(marks)
ok "and what is here is not asked about ($most of $files)" test "$most" -gt $((files / 2))

readers=()
for i in 1 2; do
	background "${grouped[@]}" python3 "$T/few.py" "$o" "$c" >"$T/few.$i"
	readers+=("$BG")
done
times() { cat "$T"/few.[0-9] | grep -c "^$1"; }
read_much() { [ "$(times read)" -ge "$much" ]; }
much=4
wait_for 120 read_much
# What programs have for themselves, and 24 MiB for the content of files (some 60), for inodes and names.
[ -z "$group" ] || echo $(($(awk '$1 == "rss" || $1 == "anon" { print $2 }' "$group/memory.stat") + (24 << 20))) >"$limit"
# What the limit leaves in memory because it was used a moment ago goes as well.
press() { if [ -n "$group" ]; then echo 1G >"$press"; else echo 3 >/proc/sys/vm/drop_caches; fi 2>"$T/.out"; }
squeezed() { press; now=$(marks); [ "$now" -lt $((most - 50)) ]; } # who reads on gets new ones meanwhile
gone=0 seen=
for round in {1..4}; do
	wait_for 30 squeezed && gone=$((gone + 1))
	seen+=" $now"
	"$SLUICE" evict "$c/$((round * 10))" "$c/$((round * 10 + 1))" "$c/$((round * 10 + 2))" >"$T/.out"
	[ $round != 3 ] || "$SLUICE" evict "$c" >"$T/.out"
	much=$(($(times read) + 10))
	wait_for 120 read_much
	seen+="-$(marks)"
done
ok "the readers live" kill -0 "${readers[@]}"
for i in "${readers[@]}"; do kill -9 "$i" && wait_for 30 gone "$i"; done
is "$(grep -hE "WRONG|FAILED" "$T"/few.[0-9] | head -n 3)" "" "with little memory all that is read is right ($(times read) hundred files)"
is "$gone" 4 "although marks went with their inodes, and came again (of $most:$seen)"
"$SLUICE" remove --force "$c"
done_testing
