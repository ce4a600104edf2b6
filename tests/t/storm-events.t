#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""A storm of changes at the origin, more than any queue holds: if this fails, the exporter or a clone takes memory without limit, a change
is lost for good, or a client that has nothing to do with it is harmed. The clone's service is killed in the middle of it.

STORM=1000000 makes it longer (default 12000)."""

import os
import signal
import subprocess
import sys
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tools"))
import slt  # noqa: E402
from slt import SANITIZED, T, clone, note, ok, point, serve, status, wait_for, write  # noqa: E402

STORM = int(os.environ.get("STORM", "3000" if SANITIZED else "12000"))
MEMORY = 400 << 20  # of either process; the queues have at most 64 MiB each, and a clone some more for what it knows of files


def memory(pid):
    try:
        with open(f"/proc/{pid}/status", encoding="ascii") as f:
            return next((int(line.split()[1]) * 1024 for line in f if line.startswith("RssAnon")), 0)
    except OSError:
        return 0


# Names that stay, names that go again, renames, content: with a process of its own, for we have to look meanwhile.
CHANGES = """
import os, sys
top, n = sys.argv[1], int(sys.argv[2])
dirs = [f"{top}/d{i}" for i in range(8)]
for i in range(n // 4):
    d = dirs[i % 8]
    fd = os.open(f"{d}/f{i % 500}", os.O_WRONLY | os.O_CREAT, 0o644)
    os.pwrite(fd, b"%d" % i, 0)
    os.close(fd)
    os.rename(f"{d}/f{i % 500}", f"{dirs[i * 3 % 8]}/g{i % 400}")
    if i % 5 == 0:
        os.unlink(f"{dirs[i * 3 % 8]}/g{i % 400}")
"""


def same(o, c, what):
    p = subprocess.run(["bash", "-c", f'. "{slt.TOOLS}/../t/lib.sh"; trap - EXIT; same_tree --no-dir-mtime "{o}" "{c}"'], check=False,
                       stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**os.environ, "TMPDIR": T}, timeout=600)
    ok(p.returncode == 0, what, p.stdout.decode(errors="replace")[:2000])


def test():
    o, c, other = f"{T}/o", f"{T}/c", f"{T}/other"
    for i in range(8):
        os.makedirs(f"{o}/d{i}")
    os.mkdir(f"{o}/quiet")
    origin, p = serve("s", o)
    clone(origin, c)
    clone(origin, other)
    for d in sorted(os.listdir(o)):
        os.listdir(f"{c}/{d}")
    os.listdir(f"{other}/quiet")
    most = {"exporter": 0, "service": 0}
    storm = subprocess.Popen([sys.executable, "-c", CHANGES, o, str(STORM)], stdin=subprocess.DEVNULL)
    slt._at_end.append(storm.kill)  # pylint: disable=protected-access
    begin, killed, service = time.monotonic(), False, status(c, "--brief")["service_pid"]
    while storm.poll() is None:
        most["exporter"] = max(most["exporter"], memory(p.pid))
        most["service"] = max(most["service"], memory(service))
        if not killed and len(os.listdir(f"{o}/d1")) > 20:
            os.kill(service, signal.SIGKILL)
            killed = True
            wait_for(120, "the next service", lambda: (s := status(c, "--brief").get("service_pid")) and s != service)
            service = status(c, "--brief")["service_pid"]
        time.sleep(0.05)
    ok(storm.returncode == 0 and killed, f"{STORM} changes were made, and the service was killed meanwhile", storm.returncode, killed)
    with point("a client that has nothing to do with them is told of what it has marked"):
        write(f"{o}/quiet/new", "new")
        wait_for(240, "the new file", lambda: os.path.lexists(f"{other}/quiet/new"))
    write(f"{o}/d0/last", "last")
    wait_for(500, "the last change", lambda: os.path.lexists(f"{c}/d0/last"))

    def done():
        most["service"] = max(most["service"], memory(service))
        e = status(c, "--brief").get("events")
        return e and not e["queued"] and not e["comparing"]
    wait_for(500, "nothing is left to do", done)
    e = status(c, "--brief")["events"]
    note(f"{time.monotonic() - begin:.1f} s; most memory {({k: f'{v >> 20} MiB' for k, v in most.items()})}; {e}")
    same(o, c, "the trees are equal after it")
    ok(max(most.values()) < MEMORY, "neither took memory without limit", most)
    ok(e["failed"] == 0 and e["conflicts"] == 0, "and nothing failed", e)


slt.run(test)
