#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
# tsan: yes
"""However many wait for the same, the origin is asked once: if this fails, readers at the same time multiply what travels, or
what will be read next is not fetched ahead of a sweep, or is fetched although nobody sweeps."""

import mmap
import os
import random
import signal
import subprocess
import sys
import threading

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tools"))
import slt  # noqa: E402
from slt import NATIVE, T, out, point  # noqa: E402

O, C = T + "/o", T + "/c"
MIB = 1 << 20
READERS = 32


def make_origin():
    rng = random.Random(5)
    data = {}

    def file(name, size):
        data[name] = rng.randbytes(size)
        with open(f"{O}/{name}", "wb") as f:
            f.write(data[name])
    os.mkdir(O)
    for name in ("same", "direct", "overlap", "sequential"):
        file(name, 16 * MIB)
    for d in ("names", "small", "some", "tree"):
        os.mkdir(f"{O}/{d}")
    for i in range(2000):
        file(f"small/{i:04}", rng.randrange(1, 3000))
    for i in range(500):
        file(f"names/{i:04}", 0)
        file(f"some/{i:04}", 100)
    for i in range(300):
        os.mkdir(f"{O}/tree/{i}")
        file(f"tree/{i}/f", 10)
    with open(O + "/large", "wb") as f:
        f.truncate(1 << 30)
    return data


class Link:
    """The relay between clone and export: a little slow, so that looking ahead pays; and it can be stopped, so that all who wait
    have come before the first is answered."""

    def __init__(self, target):
        self.origin = f"unix:{T}/link"
        relay = os.environ["BUILD"] + "/tests/relay"
        self.p = subprocess.Popen([relay, "--rtt-ms", "4", "--listen", self.origin, "--connect", target],
                                  stdin=subprocess.DEVNULL)
        slt._at_end.append(self.p.kill)
        slt.wait_for(30, "the relay listens", lambda: os.path.exists(T + "/link"))

    def toggle(self):
        """Two signals that it has not taken are one."""
        self.p.send_signal(signal.SIGUSR2)
        slt.wait_for(60, "the relay takes the signal", lambda: not self.pending() >> (signal.SIGUSR2 - 1) & 1)

    def pending(self):
        with open(f"/proc/{self.p.pid}/status", encoding="ascii") as f:
            return int(next(line.split()[1] for line in f if line.startswith("ShdPnd:")), 16)


def stats():
    st = slt.status(C, "--brief")
    return st["fetched_bytes"], st["listings"]


def at_once(link, f, waiting):
    """f(i) in READERS threads; the origin answers only after so many wait."""
    errors = []

    def run(i):
        try:
            f(i)
        except BaseException as e:  # pylint: disable=broad-except
            errors.append(repr(e)[:300])
    threads = [threading.Thread(target=run, args=(i,)) for i in range(READERS)]
    link.toggle()
    try:
        for t in threads:
            t.start()
        slt.wait_for(60, f"{waiting} wait", lambda: slt.status(C, "--brief")["waiting"] >= waiting)
    finally:
        link.toggle()
        for t in threads:
            t.join()
    assert not errors, errors[:3]


def pread_whole(name, want, off, n, flags=0):
    fd = os.open(f"{C}/{name}", os.O_RDONLY | flags)
    try:
        if flags:
            with mmap.mmap(-1, n) as m:
                k = os.preadv(fd, [m], off)
                got = m[:k]
        else:
            got = os.pread(fd, n, off)
        assert got == want[off:off + n], f"{name}: wrong content at {off}"
    finally:
        os.close(fd)


def test():
    data = make_origin()
    link = Link(slt.serve("sock", O)[0])
    slt.clone(link.origin, C)
    os.listdir(C)

    with point(f"{READERS} readers of the same cold file"):
        before = stats()
        at_once(link, lambda i: [pread_whole("same", data["same"], off, MIB) for off in range(0, 16 * MIB, MIB)], 1)
        assert stats() == (before[0] + 16 * MIB, before[1]), (before, stats())
    with point(f"{READERS} readers past the page cache, each of the same range: all wait, one request"):
        before = stats()
        fetches = slt.status(C, "--brief")["fetches"]
        at_once(link, lambda i: pread_whole("direct", data["direct"], 9 * MIB, 65536, os.O_DIRECT), READERS)
        assert stats() == (before[0] + 65536, before[1]), (before, stats())
        assert slt.status(C, "--brief")["fetches"] == fetches + 1
    with point("the rest of it, by all"):
        before = stats()
        at_once(link, lambda i: [pread_whole("direct", data["direct"], off, MIB, os.O_DIRECT) for off in range(0, 16 * MIB, MIB)], READERS)
        assert stats() == (before[0] + 16 * MIB - 65536, before[1]), (before, stats())
    with point("random ranges that overlap: nothing travels twice"):
        before = stats()

        def overlapping(i):
            rng = random.Random(i)
            for _ in range(40):
                pread_whole("overlap", data["overlap"], rng.randrange(16 * MIB), rng.randrange(1, 300_000))
        at_once(link, overlapping, 5)
        slt.wait_for(30, "the last arrives", lambda: (st := slt.state(C + "/overlap"))["bytes_here"] == stats()[0] - before[0])
    if not NATIVE:  # of a native clone all names are there from the beginning
        with point(f"{READERS} listers of the same cold directory: one listing"):
            before = stats()

            def names(_):
                assert len(os.listdir(C + "/names")) == 500
            at_once(link, names, READERS)
            assert stats() == (before[0], before[1] + 1), (before, stats())
        with point("names looked up in a directory that nobody has listed: one listing"):
            before = stats()

            def name(i):
                assert os.stat(f"{C}/some/{i:04}").st_size == 100
            at_once(link, name, 1)
            assert stats() == (before[0], before[1] + 1), (before, stats())

    # ---- ahead ----
    with point("reading from beginning to end asks for much at a time"):
        st = slt.status(C, "--brief")
        with open(C + "/sequential", "rb", buffering=0) as f:
            got = b"".join(iter(lambda: f.read(4096), b""))
        assert got == data["sequential"]
        st2 = slt.status(C, "--brief")
        n = st2["fetches"] - st["fetches"]
        assert st2["fetched_bytes"] - st["fetched_bytes"] == 16 * MIB
        assert n <= 64, f"{n} requests"
    with point("reading here and there does not fetch what is in between"):
        before, rng = stats(), random.Random(8)
        fd = os.open(C + "/large", os.O_RDONLY)
        for _ in range(50):
            assert os.pread(fd, 4096, rng.randrange(1 << 18) * 4096) == bytes(4096)
        os.close(fd)
        got = stats()[0] - before[0]
        assert 0 < got <= 50 * 256 * 1024, got
    with point("one file of a directory, or two, is no sweep"):
        st = slt.status(C, "--brief")
        for name in ("small/1000", "small/0017"):
            assert open(f"{C}/{name}", "rb").read() == data[name]
        st2 = slt.status(C)
        assert st2["prefetched"] == st["prefetched"] and st2["fetches"] == st["fetches"] + 2
        assert slt.state(C + "/small")["below"]["cold"] == 1998
    with point("tar of a directory of 2,000 small files is a sweep: most arrive before they are asked for, each once"):
        st = slt.status(C, "--brief")
        tar = out("tar", "-C", C, "-c", "small")
        st2 = slt.status(C, "--brief")
        assert st2["prefetched"] - st["prefetched"] > 1000, (st, st2)
        want = sum(len(d) for n, d in data.items() if n.startswith("small/") and n not in ("small/1000", "small/0017"))
        assert st2["fetched_bytes"] - st["fetched_bytes"] == want, (st, st2, want)
        os.mkdir(T + "/x")
        subprocess.run(["tar", "-C", T + "/x", "-x"], input=tar, check=True)
        out("diff", "-r", O + "/small", T + "/x/small")
    if not NATIVE:
        with point("find is a sweep: directories are listed ahead, each once"):
            st = slt.status(C, "--brief")
            assert len(out("find", C + "/tree").splitlines()) == 601
            st2 = slt.status(C, "--brief")
            assert st2["listings"] - st["listings"] == 301, (st, st2)
            assert st2["prefetched"] - st["prefetched"] > 100, (st, st2)
            assert st2["fetched_bytes"] == st["fetched_bytes"]
    with point("nobody waits any more"):
        slt.wait_for(60, "nobody waits", lambda: slt.status(C, "--brief")["waiting"] == 0)


slt.run(test, also_as_user=True)
