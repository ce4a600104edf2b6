#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# No power, no origin, too many readers: if this fails, a native clone claims what is not there, or gives an
# error where it should wait, or zeros where it should give an error.
. "$(dirname "$0")/../tools/native.sh" --self
. "$(dirname "$0")/lib.sh"
. "$TOOLS/clone.sh"

o=$T/o c=$T/c
new() { head -c "$1" /dev/urandom >"$2"; }

# ---- power loss: the image as it is on disk at some moment, under another service ----

cat >"$T/load.py" <<'EOP'
import os, random, sys
o, c, stop = sys.argv[1:]
rng = random.Random(3)
names = os.listdir(o)
while not os.path.exists(stop):
    n = rng.choice(names)
    a, b = os.open(f"{o}/{n}", os.O_RDONLY), os.open(f"{c}/{n}", os.O_RDONLY)
    off, k = rng.randrange(os.fstat(a).st_size), rng.randrange(400_000)
    assert os.pread(a, k, off) == os.pread(b, k, off), n
    os.close(a)
    os.close(b)
EOP
# full_size IMAGE: how long its filesystem is. The file ends before, because what is cold has no bytes.
full_size() { python3 -c 'import sys; h = open(sys.argv[1], "rb").read(16); print(int.from_bytes(h[4:8], "big") * int.from_bytes(h[8:16], "big"))' "$1"; }
mkdir "$o"
for i in {1..40}; do new $((RANDOM * 60 + 1)) "$o/$i"; done
serve power.sock "$o"
# On a filesystem with reflinks, where a copy is of one moment.
truncate -s 4G "$T/power.img"
mkfs.xfs -q "$T/power.img"
mkdir "$T/power"
mount -o loop "$T/power.img" "$T/power" || bail "mount"
st=$T/power/st st2=$T/power/st2
clone --store "$st" --capacity 700M "unix:$T/power.sock" "$c"
background python3 "$T/load.py" "$o" "$c" "$T/stop"
load=$BG
bad='' claimed=0
for round in {1..5}; do
	now=$(field fetches "$c")
	enough() { "$SLUICE" evict "$c/$((RANDOM % 40 + 1))" && [ "$(field fetches "$c")" -ge $((now + 10)) ]; }
	wait_for 30 enough
	mkdir "$st2"
	cp --reflink=always "$st/image" "$st2/image" || bail "no copy"
	# What the copy claims to have, read from its files.
	truncate -s "$(full_size "$st2/image")" "$st2/image"
	mkdir -p "$T/mnt"
	if mount -o loop,nouuid "$st2/image" "$T/mnt"; then
		out=$(python3 - "$o" "$T/mnt/tree" <<'EOP'
import os, sys
o, c = sys.argv[1:]
claimed = 0
for n in os.listdir(o):
    p = f"{c}/{n}"
    want = open(f"{o}/{n}", "rb").read()
    if os.getxattr(p, "trusted.sluice")[1] == 2:  # SL_FULL; the format is in front of it
        claimed += 1
        if open(p, "rb").read() != want:
            print("WRONG", n)
print("claimed", claimed)
EOP
		)
		umount "$T/mnt"
		grep -q WRONG <<<"$out" && bad+=" $round: $out"
		claimed=$((claimed + ${out##*claimed }))
	else
		bad+=" $round: does not mount"
	fi
	rm -r "$st2"
done
: >"$T/stop"
ok "the load saw nothing wrong" wait "$load"
is "$bad" "" "five copies of the image under load: what their records claim is there"
ok "and they claimed something ($claimed files)" test "$claimed" -gt 5
"$SLUICE" remove --force "$c"
umount "$T/power"
rm "$T/power.img"

# ---- many readers wait, and the origin is away meanwhile ----

readers=2000
sanitized && readers=500
[ -z "${SLUICE_LONG-}" ] || readers=20000
readers=${READERS:-$readers}
background "$BUILD/tests/relay" --listen "unix:$T/relay.sock" --connect "unix:$T/power.sock"
relay=$BG
wait_for 30 test -e "$T/relay.sock"
clone "unix:$T/relay.sock" "$c"
kill -USR2 "$relay"
background "$BUILD/tests/many_readers" "$o" "$c" "$readers" "$T/ready" >"$T/many.log"
many=$BG
waiting() { [ "$(field waiting "$c")" -ge $((readers * 9 / 10)) ]; }
ok "$readers readers wait" wait_for 300 waiting
kill -USR1 "$relay" # what was asked is lost with the connection
kill -USR2 "$relay"
ok "the origin was cut off, and is back: all get the right bytes" wait "$many"
diag "$(<"$T/many.log")"
woken=$(sed -n 's/^woken \([0-9]*\) .*/\1/p' "$T/many.log")
sanitized || ok "they are not all woken for each answer" test "$woken" -lt $((readers / 5))
"$SLUICE" remove --force "$c"

# ---- more than the service may have descriptors for ----

# Those that are not taken up wait in the kernel. What is done for those that are takes some as well.
clone "unix:$T/relay.sock" "$c"
"$SLUICE" stop "$c"
ok "a service that may have a thousand descriptors starts" prlimit --nofile=1000:1000 setpriv --bounding-set -sys_resource "$SLUICE" start "$c"
kill -USR2 "$relay"
rm -f "$T/ready"
background "$BUILD/tests/many_readers" "$o" "$c" 1500 "$T/ready" >"$T/many.log"
many=$BG
waiting() { [ -e "$T/ready" ] && [ "$(field waiting "$c")" -ge 500 ]; }
ok "so many wait as the service has descriptors for" wait_for 300 waiting
kill -USR1 "$relay"
kill -USR2 "$relay"
ok "and all get the right bytes" wait "$many"
diag "$(<"$T/many.log")"
"$SLUICE" remove --force "$c"

done_testing
