#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""What changes at an origin, told to other processes: if this fails, a client misses a change, hears it twice, or is harmed by another
client.

'sluice watch' of exports and of a clone; connections that break, exporters that are started again, clients that do not read."""

import json
import os
import re
import signal
import subprocess
import sys
import threading

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tools"))
import slt  # noqa: E402
from slt import SLUICE, T, clone, is_, ok, serve, wait_for  # noqa: E402

RELAY = os.path.join(os.environ.get("SLUICE_BUILD", "build"), "tests", "relay")


class Watch:
    """A 'sluice watch', and all that it printed."""

    def __init__(self, origin, *options):
        self.p = subprocess.Popen([SLUICE, "watch", "--json", *options, origin], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        self.events, self.text = [], []
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()
        slt._at_end.append(self.kill)
        wait_for(120, "the watch begins", lambda: self.has("ready"))

    def _read(self):
        for line in self.p.stdout:
            self.events.append(json.loads(line))

    def has(self, kind, place=None):
        return any(kind in e["events"] and (place is None or e.get("place") == place) for e in list(self.events))

    def wait(self, kind, place=None):
        wait_for(240, f"{kind} {place}", lambda: self.has(kind, place))

    def places(self, kind):
        return [e.get("place") for e in list(self.events) if kind in e["events"]]

    def kill(self):
        if self.p.poll() is None:
            self.p.send_signal(signal.SIGCONT)
            self.p.kill()
        self.p.wait()

    def end(self):
        self.p.send_signal(signal.SIGINT)
        status = self.p.wait(60)
        self.thread.join(60)
        return status


def touch(path):
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))


def basics():
    o = f"{T}/o"
    os.makedirs(f"{o}/d/deep")
    origin, _ = serve("s", o)
    w = Watch(origin)
    os.mkdir(f"{o}/d/new")
    w.wait("create", "d/new")
    os.rename(f"{o}/d/deep", f"{o}/deep")
    w.wait("rename", "d/deep")
    touch(f"{o}/deep/f")
    w.wait("create", "deep/f")
    e = next(e for e in w.events if "rename" in e["events"])
    is_((e["newplace"], e["dir"], e["side"], e["state"]["present"], e["newstate"]["present"]), ("deep", True, "origin", False, True),
        "a rename says both places, and what is there")
    numbers = [e["seq"] for e in w.events if e.get("seq")]
    ok(numbers == sorted(set(numbers)), "numbers grow", numbers)
    is_(w.end(), 0, "SIGINT ends it well")
    w = Watch(origin, "--mask", "delete", "--below", "deep")
    touch(f"{o}/deep/g")
    touch(f"{o}/d/g")
    os.unlink(f"{o}/d/g")
    os.unlink(f"{o}/deep/g")
    w.wait("delete", "deep/g")
    is_([e["events"] for e in w.events if "ready" not in e["events"]], [["delete"]], "--mask and --below leave out the rest")
    is_(w.end(), 0, "and it ends well")
    r = subprocess.run([SLUICE, "watch", "--mask", "nonsense", origin], capture_output=True, text=True, check=False)
    is_(r.returncode, 2, "an unknown kind is refused")
    ok("nonsense" in r.stderr, "by its name", r.stderr)
    r = subprocess.run([SLUICE, "watch", f"{T}/nothing"], capture_output=True, text=True, check=False, timeout=120)
    is_(r.returncode, 1, "an origin that is not there is an error")


def of_a_local_directory():
    o = f"{T}/local"
    os.mkdir(o)
    w = Watch(o)
    touch(f"{o}/f")
    w.wait("create", "f")
    ok(True, "a local directory tells of its changes")
    w.end()


def of_a_clone():
    o = f"{T}/co"
    os.makedirs(f"{o}/d")
    origin, _ = serve("cs", o)
    c = clone(origin, f"{T}/c")
    os.listdir(c)
    w = Watch(c)
    touch(f"{o}/f")
    w.wait("create", "f")
    ok(True, "a clone says what its service is told")
    subprocess.run([SLUICE, "stop", c], check=True, timeout=120)
    is_(w.p.wait(120), 1, "and ends when the service does")


def cut():
    """A connection that is cut at any moment: nothing is lost, nothing told twice."""
    o = f"{T}/cut"
    os.makedirs(f"{o}/d")
    origin, _ = serve("cuts", o)
    relay = subprocess.Popen([RELAY, "--listen", f"unix:{T}/cutr", "--connect", origin], stdin=subprocess.DEVNULL)
    slt._at_end.append(relay.kill)
    wait_for(60, "the relay", lambda: os.path.exists(f"{T}/cutr"))
    w = Watch(f"unix:{T}/cutr")
    n = 0
    for _ in range(15):
        for _ in range(200):
            touch(f"{o}/d/{n:06}")
            n += 1
            if n % 67 == 0:
                relay.send_signal(signal.SIGUSR1)
    w.wait("create", f"d/{n - 1:06}")
    is_(w.places("create"), [f"d/{i:06}" for i in range(n)], "each of 3000 files is told once, in order")
    ok(not w.has("lost"), "and nothing had to be compared")
    w.end()


def restarted():
    """Another exporter knows nothing of the marks of the one before: the client is told."""
    o = f"{T}/again"
    os.mkdir(o)
    origin, p = serve("agains", o)
    w = Watch(origin)
    p.kill()
    p.wait()
    touch(f"{o}/unseen")
    serve("agains", o)
    w.wait("lost")
    ok(True, "after a restart of the exporter the client is told that it has missed something")

    def heard():
        name = f"x{len(os.listdir(o))}"
        touch(f"{o}/{name}")
        return any(re.match("x", p or "") for p in w.places("create"))

    wait_for(120, "it is marked again", heard)
    ok(True, "and hears what comes then")
    w.end()


def slow():
    """A client that stands still harms nobody."""
    o = f"{T}/slow"
    os.makedirs(f"{o}/d")
    origin, p = serve("slows", o)
    w, good = Watch(origin), Watch(origin)
    w.p.send_signal(signal.SIGSTOP)
    n = 100_000
    for i in range(n):
        os.mknod(f"{o}/d/{i:06}", 0o100600)
        if i % 5000 == 4999:
            good.wait("create", f"d/{i:06}")
    is_(good.places("create"), [f"d/{i:06}" for i in range(n)], "beside one that stands still another one hears all")
    with open(f"/proc/{p.pid}/status", encoding="utf-8") as f:
        mib = int(re.search(r"VmHWM:\s+(\d+)", f.read())[1]) // 1024
    ok(mib < 300, "what is kept for it is bounded", f"{mib} MiB")
    w.p.send_signal(signal.SIGCONT)
    w.wait("lost")
    ok(len(w.places("create")) < n, "and it is told that it has missed something")
    good.end()
    w.end()


def test():
    basics()
    of_a_local_directory()
    of_a_clone()
    cut()
    restarted()
    slow()


slt.run(test)
