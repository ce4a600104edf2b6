#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""If this fails, full files are read through the service, or changes that the service does not see are lost."""

import mmap
import os
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tools"))
import slt  # noqa: E402
from slt import is_, ok  # noqa: E402

O, C = os.path.join(slt.T, "o"), os.path.join(slt.T, "c")


def write(path, data):
    with open(path, "wb") as f:
        f.write(data)


def read(path):
    with open(path, "rb") as f:
        return f.read()


def flags(name):
    return slt.state(os.path.join(C, name))["flags"]


def test():
    os.mkdir(O)
    data = os.urandom(300000)
    for name in "abcde":
        write(os.path.join(O, name), data)
    slt.clone(O, C)
    if not slt.status(C)["passthrough"]:
        slt.skip("no passthrough: it needs root and Linux 6.9")
        return
    for name in "abcde":
        read(os.path.join(C, name))

    a = os.path.join(C, "a")
    with open(a, "rb") as f:
        is_(f.read(), data, "a full file is read right in passthrough mode")
        with mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ) as m:
            ok(m[:] == data, "and through a mapping")
        slt.sluice("evict", a)
        is_(slt.state(a)["state"], "full", "it is not evicted while it is open")
    is_(flags("a"), [], "reading leaves it unmodified")
    slt.sluice("evict", a)
    is_(slt.state(a)["state"], "cold", "it is evicted when it is closed")

    # A write-open while others read in passthrough mode.
    b = os.path.join(C, "b")
    with open(b, "rb") as r, open(b, "r+b", buffering=0) as w:
        w.seek(100)
        w.write(b"changed")
        want = data[:100] + b"changed" + data[107:]
        is_(r.read(), want, "a reader sees what a writer wrote")
    is_(flags("b"), ["modified"], "the file is modified")
    slt.sluice("evict", b)
    is_(read(b), want, "and not evicted")

    # Opened again when it is modified: passthrough both ways.
    with open(b, "r+b", buffering=0) as w:
        w.write(b"again")
        w.truncate(200000)
    want = (b"again" + want[5:])[:200000]
    is_(read(b), want, "writes in passthrough mode arrive, and truncation does")
    is_(os.stat(b).st_size, 200000, "the size is right")

    # A cold file, opened before it is here, while others open it afterwards.
    slt.sluice("evict", os.path.join(C, "c"))
    c = os.path.join(C, "c")
    with open(c, "rb") as first:
        is_(first.read(10), data[:10], "a file that was opened cold")
        is_(first.read(), data[10:], "is filled under its reader")
        with open(c, "rb") as second:
            is_(second.read(), data, "a second reader while the first has it open in the other mode")
    with open(c, "rb") as third:
        is_(third.read(), data, "and a third when it is closed")

    os.mkfifo(os.path.join(slt.T, "fifo"))
    with open(os.path.join(C, "new"), "w+b", buffering=0) as f:
        f.write(b"x" * 100000)
        with open(os.path.join(C, "new"), "rb") as g:
            is_(g.read(), b"x" * 100000, "a new file is read while it is written")
    slt.sluice("stop", C)
    slt.sluice("start", C)
    is_((read(b), read(os.path.join(C, "new"))), (want, b"x" * 100000), "all of it is there after a restart")
    is_(read(os.path.join(O, "b")), data, "the origin is as it was")


slt.run(test)
