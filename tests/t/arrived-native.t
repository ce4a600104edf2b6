#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# If this fails, what a user writes to a file that has just arrived is overwritten by the origin's, when the service is killed in that moment.
. "$(dirname "$0")/../tools/native.sh" --self
. "$(dirname "$0")/lib.sh"
. "$TOOLS/clone.sh"

o=$T/o c=$T/c
mkdir "$o"
for i in 1 2 3 4 5; do head -c 300001 /dev/urandom >"$o/$i"; done
clone --gate fanotify "$o" "$c"
"$SLUICE" hydrate "$c" >"$T/.out" || bail "hydrate"
cat >"$T/write.py" <<'EOP'
# A new version of the origin's arrives in a file that is open; the service is killed; somebody writes.
import json, os, signal, subprocess, sys, time
sluice, o, c = sys.argv[1:]
def status():
    return json.loads(subprocess.run([sluice, "status", "--json", c], capture_output=True, text=True, check=True).stdout)
end = time.monotonic() + 120
def until(what, test):
    while not test():
        if time.monotonic() > end:
            sys.exit(f"{what}: not in two minutes")
        time.sleep(0.005)
new = os.urandom(300001)
pid = json.loads(subprocess.run([sluice, "status", "--json", os.path.dirname(c)], capture_output=True, text=True, check=True).stdout)["service_pid"]
fd = os.open(c, os.O_RDWR)
with open(o, "r+b") as f:
    f.write(new)
until("the new version", lambda: os.fstat(fd).st_mtime_ns == os.stat(o).st_mtime_ns and os.pread(fd, 1, 0) == new[:1])
if os.pread(fd, len(new), 0) != new:
    sys.exit("not the origin's")
os.kill(pid, signal.SIGKILL)
os.pwrite(fd, b"mine", 5000)
os.close(fd)
until("the next service", lambda: status()["service_pid"] != pid)
until("that it is the user's", lambda: "modified" in status()["paths"][0]["flags"] and status()["paths"][0]["state"] == "full")
want = new[:5000] + b"mine" + new[5004:]
with open(c, "rb") as f:
    if f.read() != want:
        sys.exit("what was written is lost")
EOP
for i in 1 2 3 4 5; do ok "what is written to $i stays" python3 "$T/write.py" "$SLUICE" "$o/$i" "$c/$i"; done
done_testing
