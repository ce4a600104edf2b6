#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# If this fails, a program that reads a file while it arrives, and asks afterwards whether it was changed meanwhile (tar, backups), hears that it was.
. "$(dirname "$0")/../tools/native.sh" --self
. "$(dirname "$0")/lib.sh"
. "$TOOLS/clone.sh"

o=$T/o c=$T/c
mkdir "$o"
head -c 5000001 /dev/urandom >"$o/big"
head -c 5000001 /dev/urandom >"$o/mapped"
echo small >"$o/small"
serve sock "$o"
background "$BUILD/tests/relay" --mbit 8 --listen "unix:$T/relay.sock" --connect "unix:$T/sock"
wait_for 30 test -e "$T/relay.sock"
clone "unix:$T/relay.sock" "$c"

# Five seconds, more than two commits.
ok "tar of a file that is arriving ends well" tar cf "$T/big.tar" -C "$c" big
is "$(cat "$T/.out")" "" "it says nothing"
tar xf "$T/big.tar" -C "$T" && ok "what is in the archive is right" cmp "$o/big" "$T/big"

# What only a mapping uses is in use; what nobody uses is written down soon.
cat >"$T/map.py" <<'EOP'
import mmap, os, sys, time
o, c, small = sys.argv[1:]
fd = os.open(c, os.O_RDONLY)
m = mmap.mmap(fd, 0, prot=mmap.PROT_READ)
os.close(fd)
before = os.stat(c).st_ctime_ns
if m[:] != open(o, "rb").read():
    sys.exit("wrong content")
was = os.stat(small).st_ctime_ns
open(small).read()
end = time.monotonic() + 60
while os.stat(small).st_ctime_ns == was:
    if time.monotonic() > end:
        sys.exit("what nobody uses was not written down for a minute")
    time.sleep(0.01)
if os.stat(c).st_ctime_ns != before:
    sys.exit("a file that is mapped was changed")
m.close()
while os.stat(c).st_ctime_ns == before:
    if time.monotonic() > end:
        sys.exit("what nobody uses any more was not written down for a minute")
    time.sleep(0.01)
EOP
ok "a mapping is a use; without one it is written down" python3 "$T/map.py" "$o/mapped" "$c/mapped" "$c/small"
ok "and then survives service and keeper" kill_service "$c"
ok "the service starts" "$SLUICE" start "$c"
for f in big mapped small; do is "$(state_of "$c/$f")" full "what had arrived is here: $f"; done
done_testing
