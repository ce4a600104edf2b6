#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# If this fails, a program that reads a file while it arrives, and asks afterwards whether it was changed meanwhile (tar, backups), hears that it was.
. "$(dirname "$0")/../tools/native.sh" --self
. "$(dirname "$0")/lib.sh"
. "$TOOLS/clone.sh"

o=$T/o c=$T/c
mkdir "$o"
for f in 1 2 3; do head -c 3000001 /dev/urandom >"$o/big$f"; done
truncate -s 1G "$o/open" "$o/mapped" # too long to be fetched ahead as a whole
echo small >"$o/small1"
echo small >"$o/small2"
serve sock "$o"
background "$BUILD/tests/relay" --mbit 8 --listen "unix:$T/relay.sock" --connect "unix:$T/sock"
wait_for 30 test -e "$T/relay.sock"
clone "unix:$T/relay.sock" "$c"

# Three seconds, more than a commit's two. One may come just when all is here, and before tar has seen the end.
quiet() {
	for f in 1 2 3; do
		tar cf "$T/big.tar" -C "$c" big$f && return
	done
	return 1
}
ok "tar of a file that is arriving ends well" quiet
tar xf "$T/big.tar" -C "$T" && ok "what is in the archive is right" cmp "$o/big$f" "$T/big$f"

# Nobody reads it, but it is open, or mapped: it is left alone, until it is not used any more.
cat >"$T/use.py" <<'EOP'
import mmap, os, sys, time
path, small, how = sys.argv[1:]
end = time.monotonic() + 120
def moved(path, since):
    while os.stat(path).st_ctime_ns == since:
        if time.monotonic() > end:
            sys.exit(f"{path} was not written down for two minutes")
        time.sleep(0.01)
before, since = os.stat(path).st_ctime_ns, os.stat(small).st_ctime_ns
fd = os.open(path, os.O_RDONLY)
if how == "mapped":
    m = mmap.mmap(fd, 4096, prot=mmap.PROT_READ)
    os.close(fd)
    if m[:10] != bytes(10):
        sys.exit("wrong content")
elif os.read(fd, 10) != bytes(10):
    sys.exit("wrong content")
open(small).read()
moved(small, since)
if os.stat(path).st_ctime_ns != before:
    sys.exit("a file that is used was changed")
if how == "mapped":
    m.close()
else:
    os.close(fd)
moved(path, before)
EOP
for how in open mapped; do
	[ $how = open ] && small=small1 || small=small2
	ok "what is $how is not written down, and then it is" python3 "$T/use.py" "$c/$how" "$c/$small" $how
done
ok "service and keeper are killed" kill_service "$c"
ok "the service starts" "$SLUICE" start "$c"
is "$(state_of "$c/big1")" full "what had arrived is here"
is "$(state_of "$c/open")" partial "and the beginning of what was open"
done_testing
