#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# If this fails, something wrong can be read when service and keeper of a native clone are killed by one stroke, or what is written
# then is lost.
. "$(dirname "$0")/../tools/native.sh" --self
. "$(dirname "$0")/lib.sh"
. "$TOOLS/clone.sh"
"$SLUICE" doctor --json | python3 -c 'import json, sys
sys.exit(any(f["name"] == "fail-closed" and f["ok"] for f in json.load(sys.stdin)["gates"]["fanotify"]["features"]))' ||
	skip_all "with the kernel series nobody reads or writes then"

o=$T/o c=$T/c
new() { head -c "$1" /dev/urandom >"$2"; }
mkdir "$o"
for i in {1..1000}; do new $((i * 13 % 9000 + 1)) "$o/$i"; done
cat >"$T/few.py" <<'EOP'
# A reader of files that are here or not, for ever: a line for each hundred, WRONG or an error, once, for what is not right.
import os, random, sys, time
o, c, seed = sys.argv[1:]
rng = random.Random(seed)
names = os.listdir(o)
n = 0
told = set()
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
        if e.errno not in told:
            print("failed", name, e, flush=True)
        told.add(e.errno)
        time.sleep(0.01)
    if n % 100 == 0:
        print("read", flush=True)
EOP
read_much() { [ "$(cat "$T"/few.[0-9] | grep -c read)" -ge "$much" ]; }
cg=
for d in /sys/fs/cgroup /sys/fs/cgroup/unified; do
	[ -z "$cg" ] && [ -e "$d/cgroup.controllers" ] && mkdir "$d/sluice-${T##*.}" 2>/dev/null && cg=$d/sluice-${T##*.}
done
[ -e "$cg/cgroup.kill" ] || cg=
diag "killed by ${cg:-numbers: no cgroup.kill here}"
start() { if [ -n "$cg" ]; then bash -c 'echo $$ >"$1/cgroup.procs"; exec "$2" start "$3"' bash "$cg" "$SLUICE" "$c"; else "$SLUICE" start "$c"; fi; }
dead() { ! "$SLUICE" status "$c" --brief --json 2>/dev/null | grep -q '"service_pid":[1-9]'; }
stroke() {
	if [ -n "$cg" ]; then
		echo 1 >"$cg/cgroup.kill"
	else
		kill_service "$c"
	fi
}
[ -z "$cg" ] || at_exit rmdir "$cg"
"$SLUICE" clone --gate fanotify --no-start "$o" "$c" >"$T/.out" || bail "clone"
at_exit timeout 60 "$SLUICE" remove --force --discard "$c"
start >"$T/.out" || bail "start"
readers=()
for i in 1 2; do
	background python3 "$T/few.py" "$o" "$c" "$i" >"$T/few.$i"
	readers+=("$BG")
done
rounds=4
[ -z "${SLUICE_LONG-}" ] || rounds=40
for ((round = 0; round < rounds; round++)); do
	"$SLUICE" evict "$c" >"$T/.out"
	much=$(($(cat "$T"/few.[0-9] | grep -c read) + 4))
	wait_for 120 read_much
	stroke
	wait_for 60 dead || fail "round $round: it lives"
	much=$(($(cat "$T"/few.[0-9] | grep -c read) + 4))
	wait_for 120 read_much # whatever that is now
	wait_for 60 start || fail "round $round: start"
done
for i in "${readers[@]}"; do kill -9 "$i" && wait_for 30 gone "$i"; done
is "$(cat "$T"/few.[0-9] | grep -h WRONG | head -n 3)" "" "$rounds times both were killed at once: nothing that could be read was wrong"
is "$(cat "$T"/few.[0-9] | grep -h failed | grep -vE "Input/output error|No such file" | head -n 3)" "" "what could not be read was an I/O error, or not there"
ok "and it happened ($(cat "$T"/few.[0-9] | grep -c failed) times)" grep -q failed "$T"/few.[0-9]
: >"$T/bad"
for f in "$o"/*; do cmp "$f" "$c/${f##*/}" >>"$T/bad" 2>&1; done
is "$(<"$T/bad")" "" "after the last start all is right"

# ---- what is written while nobody is there ----

"$SLUICE" evict "$c" >"$T/.out"
for f in cold part full; do new 1000001 "$o/$f"; done
"$SLUICE" remove --force "$c"
clone "$o" "$c"
cat "$c/full" >"$T/.out"
dd if="$c/part" bs=4096 count=1 status=none >"$T/.out"
"$SLUICE" stop "$c" >"$T/.out" # so that it is known what is here
"$SLUICE" start "$c" >"$T/.out"
ok "service and keeper die once more" kill_service "$c"
new 8192 "$T/mine"
for f in cold part full; do
	cp "$o/$f" "$T/$f"
	dd if="$T/mine" of="$T/$f" bs=4096 seek=100 conv=notrunc status=none
	ok "$f: it can be written to" dd if="$T/mine" of="$c/$f" bs=4096 seek=100 conv=notrunc status=none
done
nok "part of a block that is not here cannot" dd if="$T/mine" of="$c/cold" bs=100 count=1 conv=notrunc status=none
ok "names can be made" cp "$T/mine" "$c/mine"
ok "it is started" "$SLUICE" start "$c"
for f in cold part full mine; do
	ok "$f: what was written is there, and the rest is the origin's" cmp "$c/$f" "$T/$f"
	like "$(flags_of "$c/$f")" "modified|local" "$f: and it is the user's"
done
"$SLUICE" evict "$c" >"$T/.out"
touch "$o"/*
for f in cold part full mine; do ok "$f: nothing takes it away" cmp "$c/$f" "$T/$f"; done
ok "stopped" "$SLUICE" stop "$c"
ok "started" "$SLUICE" start "$c"
for f in cold part full mine; do ok "$f: also later" cmp "$c/$f" "$T/$f"; done
"$SLUICE" remove --force --discard "$c"
done_testing
