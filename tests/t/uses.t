#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Files that are only opened, read and closed at the origin: if this fails, somebody who asked is not told of it, somebody who did not ask
is, what a clone or a mount itself reads is taken for somebody's use, or a file is fetched because it was read elsewhere.

With exporters that listen with fanotify, and with inotify."""

import collections
import os
import subprocess
import sys
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tools"))
import slt  # noqa: E402
import standin  # noqa: E402
from slt import NATIVE, ROOT, SLUICE, T, clone, is_, ok, read, state, status, wait_for, write  # noqa: E402
from watch import ACCESS, CHANGES, CLOSE_NOWRITE, OPEN, Watcher  # noqa: E402

USES = "open,access,close"
BACKENDS = "fanotify inotify" if ROOT else "inotify"


class Watch:
    """A 'sluice watch', and what it printed."""

    def __init__(self, origin, *options):
        self.out = f"{T}/watch{time.monotonic_ns()}"
        with open(self.out, "wb") as f:
            self.p = subprocess.Popen([SLUICE, "watch", *options, origin], stdin=subprocess.DEVNULL, stdout=f, stderr=subprocess.PIPE)
        slt._at_end.append(self.p.kill)
        assert self.p.stderr.readline() == b"watching\n"

    def lines(self):
        """What was said, without the numbers."""
        return [line.split(" ", 1)[1].strip() for line in read(self.out).split("\n")[:-1]]

    def until(self, line):
        wait_for(60, line, lambda: line in self.lines())
        return self.lines()

    def end(self):
        self.p.terminate()
        self.p.wait(60)
        self.p.stderr.close()


def serve(name, tree, backend):
    sock = f"{T}/{name}"
    less = ["setpriv", "--bounding-set=-sys_admin"] if backend == "inotify" and ROOT else []
    p = subprocess.Popen([*less, SLUICE, "serve", "--unix", sock, tree], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    slt._at_end.append(p.kill)
    assert p.stdout.readline().startswith(b"serving")
    return "unix:" + sock, p


def kinds(lines, place):
    return sorted({k for line in lines if line.rsplit(" ", 1)[-1] == place for k in line.split(" ")[0].split(",")})


def use(path):
    """Opened, read and closed, with pauses in which the kernel's queue is read."""
    with open(path, "rb") as f:
        time.sleep(0.02)
        f.read()
        time.sleep(0.02)


def told_who_asks(backend):
    o = f"{T}/w-{backend}"
    os.makedirs(f"{o}/d")
    write(f"{o}/d/f", "x" * 1000)
    origin, _ = serve(f"sw-{backend}", o, backend)
    plain, uses, some = Watch(origin), Watch(origin, "--mask", f"create,{USES}"), Watch(origin, "--mask", "create,access")
    use(f"{o}/d/f")
    os.listdir(f"{o}/d")
    write(f"{o}/end", "")
    said = uses.until("create end")
    is_(kinds(said, "d/f"), ["access", "close", "open"], f"{backend}: who asks is told of a file that is read")
    is_(kinds(said, "d"), ["access", "close", "dir", "open"], f"{backend}: and of a directory that is listed")
    is_(kinds(some.until("create end"), "d/f"), ["access"], f"{backend}: who asks for one kind is told of that")
    is_(kinds(plain.until("create end"), "d/f"), [], f"{backend}: who does not ask is not")
    # Somebody else reads through the exporter.
    c = clone(origin, f"{T}/wc-{backend}")
    before = len(uses.lines())
    is_(read(f"{c}/d/f"), "x" * 1000, f"{backend}: a clone reads it")
    os.listdir(f"{c}/d")
    slt.sluice("hydrate", c)
    write(f"{o}/end2", "")
    after = uses.until("create end2")[before:]
    is_([line for line in after if line.split()[-1] in ("d", "d/f")], [], f"{backend}: what the exporter reads for a client is told to nobody")
    for w in (plain, uses, some):
        w.end()
    slt.sluice("remove", "--force", "--discard", c)


def heard(w, where, name):
    return collections.Counter(k for d, k, n in w.events if d == where and n == name)


def on_a_clone(backend):
    o = f"{T}/c-{backend}"
    os.makedirs(f"{o}/d/sub")
    for n in ("cold", "warm"):
        write(f"{o}/d/{n}", n * 1000)
    origin, _ = serve(f"sc-{backend}", o, backend)
    c = clone(origin, f"{T}/cc-{backend}", "--events", USES)
    deaf = clone(origin, f"{T}/cd-{backend}")
    os.listdir(f"{c}/d")
    os.listdir(f"{deaf}/d")
    origins = Watch(origin, "--mask", f"create,{USES}")
    read(f"{c}/d/warm")

    def of_others():
        """With inotify what others do to a file counts as the exporter's own until it is done with reading it."""
        use(f"{o}/d/warm")
        return "open" in kinds(origins.lines(), "d/warm")
    wait_for(60, "a use by somebody else", of_others)
    write(f"{o}/d/begin", "")
    for y in (c, deaf):
        wait_for(60, "what was done until now", lambda y=y: os.path.exists(f"{y}/d/begin"))
    mask = CHANGES | OPEN | ACCESS | CLOSE_NOWRITE
    w, x = Watcher({"d": f"{c}/d"}, mask), Watcher({"d": f"{deaf}/d"}, mask)
    for n in ("cold", "warm"):
        use(f"{o}/d/{n}")
    write(f"{o}/d/end", "")
    wait_for(60, "the end", lambda: ("d", "CREATE", "end") in w.events)
    wait_for(60, "the end", lambda: ("d", "CREATE", "end") in x.events)
    if NATIVE:  # some seconds after it came it is written down (SL_FULL), which nobody is to hear of
        wait_for(60, "a record that says that it is here", lambda: os.getxattr(f"{c}/d/warm", "trusted.sluice")[1] == 2)
    for n in ("cold", "warm"):
        h = heard(w, "d", n)
        ok(h["OPEN"] == h["CLOSE_NOWRITE"] >= 1 and h["ACCESS"] >= 1 and len(h) == 3, f"{backend}: a watcher of a clone hears of {n}, and of nothing else", h)
        is_(heard(x, "d", n), collections.Counter(), f"{backend}: that of a clone without --events hears nothing")
    ok(heard(w, "d", "warm")["OPEN"] == 1, f"{backend}: opened once is opened once", w.events)
    is_(state(f"{c}/d/cold")["state"], "cold", f"{backend}: what was read there stays cold here")
    ev = status(c, "--brief")["events"]
    is_((ev["failed"], ev["lost"], ev["conflicts"]), (0, 0, 0), f"{backend}: nothing failed")
    is_(read(f"{c}/d/cold"), "cold" * 1000, f"{backend}: and is right when it is read")
    # A directory without names here, and one that is listed there.
    if not NATIVE:
        is_(state(f"{c}/d/sub")["state"], "unpopulated", f"{backend}: a directory that nobody has listed")
    os.listdir(f"{o}/d/sub")
    wait_for(60, "the directory", lambda: heard(w, "d", "sub")["OPEN"] >= 1 and heard(w, "d", "sub")["ACCESS"] >= 1)
    if not NATIVE:
        is_(state(f"{c}/d/sub")["state"], "unpopulated", f"{backend}: is one still when it was listed at the origin")
    write(f"{o}/d/end2", "")
    said = origins.until("create d/end2")
    is_(sum("open" in k.split(",") for k, _, place in (line.partition(" ") for line in said) if place == "d/cold"), 1, f"{backend}: the origin hears of its own users only")
    for y in (w, x):
        y.close()
    origins.end()
    for y in (c, deaf):
        slt.sluice("remove", "--force", "--discard", y)


def a_loop(backend):
    """Two clones with a program each that reads a file when it was used, for which it has to be fetched."""
    o = f"{T}/l-{backend}"
    os.makedirs(f"{o}/d")
    write(f"{o}/d/f", "f" * 1000)
    origin, _ = serve(f"sl-{backend}", o, backend)
    clones = [clone(origin, f"{T}/l{i}-{backend}", "--events", USES) for i in range(2)]
    for c in clones:
        os.listdir(f"{c}/d")
    w = [Watch(c, "--mask", f"create,{USES}") for c in clones]
    use(f"{o}/d/f")
    for c, x in zip(clones, w):
        wait_for(60, "the open", lambda x=x: "open" in kinds(x.lines(), "d/f"))
        is_(read(f"{c}/d/f"), "f" * 1000, f"{backend}: a program reads what was opened at the origin")
    write(f"{o}/d/end", "")
    for x in w:
        said = [line.split(" ")[0] for line in x.until("create d/end") if line.endswith(" d/f")]
        is_(sum("open" in k.split(",") for k in said), 1, f"{backend}: neither clone is told of what is read for the other one")
        x.end()
    for c in clones:
        slt.sluice("remove", "--force", "--discard", c)


def on_a_mount(kind, backend):
    o, m = f"{T}/m-{kind}-{backend}", f"{T}/mm-{kind}-{backend}"
    os.makedirs(f"{o}/d")
    os.mkdir(m)
    write(f"{o}/d/f", "f" * 1000)
    write(f"{o}/d/own", "f" * 1000)
    source = o if kind == "share" else serve(f"sm-{backend}", o, backend)[0]
    p = standin.Mount(kind, source, m, "--events", USES).start()
    os.stat(f"{m}/d")
    w = Watcher({"d": f"{m}/d"}, CHANGES | OPEN | ACCESS | CLOSE_NOWRITE)
    use(f"{o}/d/f")
    is_(read(f"{m}/d/own"), "f" * 1000, f"{kind}, {backend}: somebody reads through the mount")
    write(f"{o}/d/end", "")
    wait_for(60, "the end", lambda: ("d", "CREATE", "end") in w.events)
    h = heard(w, "d", "f")
    ok(h["OPEN"] == h["CLOSE_NOWRITE"] == 1 and h["ACCESS"] >= 1 and len(h) == 3, f"{kind}, {backend}: a watcher of a mount hears of it", h)
    h = heard(w, "d", "own")
    ok(h["OPEN"] == h["CLOSE_NOWRITE"] == 1, f"{kind}, {backend}: and of what is read through it once", h)
    w.close()
    p.stop()


def bad():
    for cmd in (("clone", "--events", "create", "/", f"{T}/bad"), ("share", "--events", "opened", "/", f"{T}/bad"),
                ("mount", "--events", "", "exec:false", f"{T}/bad")):
        r = subprocess.run([SLUICE, *cmd], capture_output=True, text=True, check=False, timeout=60)
        is_(r.returncode, 2, f"{cmd[0]} --events '{cmd[2]}' is refused")


def test():
    for backend in os.environ.get("BACKENDS", BACKENDS).split():
        on_a_clone(backend)
        a_loop(backend)
        if not NATIVE:
            told_who_asks(backend)
            on_a_mount("mount", backend)
    if not NATIVE:
        on_a_mount("share", "")
        bad()


slt.run(test, also_as_user=True)
