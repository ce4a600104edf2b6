# SPDX-License-Identifier: LGPL-2.1-or-later
"""Eviction: what was here is taken away from under somebody"""

import mmap
import os
import subprocess
import time

from way import SIZE, NotHere, forked, in_child, read, read_fd, way
from execs import Running, payload, TABLE


def evict(w, name="f"):
    """Refused or done: both are good, as long as what is read is right."""
    if w.gate.evict(w.path(name)) is None:
        raise NotHere("there is no eviction")


def evicted(w, name="f"):
    """Done: nobody is in the way, except for a moment."""
    end = time.monotonic() + 60
    while not w.gate.evict(w.path(name)) or w.gate.states([w.path(name)]) not in (None, ["cold"]):
        if w.gate.evict(w.path(name)) is None:
            raise NotHere("there is no eviction")
        assert time.monotonic() < end, "it is not evicted"
        time.sleep(0.01)


@way("read again after an eviction", quick=True)
def again(w):
    for _ in range(3):
        w.same(read(w.path()))
        evicted(w)
    w.same(read(w.path()))


@way("O_DIRECT after an eviction")
def direct_again(w):
    w.same(read(w.path()))
    evicted(w)
    fd, got = os.open(w.path(), os.O_RDONLY | os.O_DIRECT), b""
    with mmap.mmap(-1, 1 << 16) as buffer:
        while n := os.preadv(fd, [buffer], len(got)):
            got += buffer[:n]
    w.same(got)


@way("mmap after an eviction")
def map_again(w):
    w.same(read(w.path()))
    evicted(w)
    with open(w.path(), "rb") as f, mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ) as m:
        w.same(m[:])


@way("a descriptor opened before an eviction, read after it", quick=True)
def opened(w):
    w.same(read(w.path()))
    fd = os.open(w.path(), os.O_RDONLY)
    evict(w)
    w.same(read_fd(fd))


@way("a descriptor that was read half before an eviction")
def half(w):
    with open(w.path(), "rb", buffering=0) as f:
        got = f.read(SIZE // 2)
        evict(w)
        w.same(got + read_fd(f.fileno()))


@way("a descriptor in another process, opened before an eviction")
def elsewhere(w):
    w.same(read(w.path()))
    child = subprocess.Popen(["sh", "-c", 'exec 3<"$1"; echo; read x; cat <&3', "-", w.path()], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    child.stdout.readline()
    evict(w)
    w.same(child.communicate(b"\n")[0])


@way("a mapping made before an eviction, read after it", quick=True)
def mapped(w):
    w.same(read(w.path()))
    with open(w.path(), "rb") as f:
        m = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)
    evict(w)
    w.same(m[:])


@way("a mapping half of which was touched before an eviction")
def mapped_half(w):
    with open(w.path(), "rb") as f:
        m = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)
    got = m[:SIZE // 2]
    evict(w)
    w.same(got + m[SIZE // 2:])


@way("a program that is being executed during an eviction", make=payload)
def executed(w):
    with Running(w) as r:
        evict(w)
        w.same(os.pread(os.open(f"/proc/{r.pid}/mem", os.O_RDONLY), len(TABLE), r.table), TABLE)


@way("O_PATH, opened before an eviction, reopened after it")
def o_path(w):
    fd = os.open(w.path(), os.O_PATH)
    w.same(read(w.path()))
    evict(w)
    w.same(read(f"/proc/self/fd/{fd}"))


@way("a file that was changed is not evicted")
def changed(w):
    with open(w.path(), "r+b") as f:
        f.write(b"mine")
    evict(w)
    w.same(read(w.path()), b"mine" + w.bytes()[4:])


@way("written through a mapping, then evicted, then read")
def written_map(w):
    with open(w.path(), "r+b") as f, mmap.mmap(f.fileno(), 0) as m:
        m[100:104] = b"mine"
    evict(w)
    want = bytearray(w.bytes())
    want[100:104] = b"mine"
    w.same(read(w.path()), want)


@way("a renamed file, evicted and read by its new name")
def renamed(w):
    w.same(read(w.path()))
    os.rename(w.path(), w.path("g"))
    evict(w, "g")
    w.same(read(w.path("g")))


@way("a hard link, evicted by one name and read by the other")
def linked(w):
    w.same(read(w.path()))
    os.link(w.path(), w.path("g"))
    evict(w, "g")
    w.same(read(w.path()))


@way("evicted over and over while another process reads", files={"f": 2 << 20})
def race(w):
    if w.gate.evict(w.path()) is None:
        raise NotHere("there is no eviction")
    want = w.bytes()

    def go():
        for _ in range(30):
            w.same(read(w.path()), want)

    def evict_again():
        while True:
            w.gate.evict(w.path())

    pid = forked(evict_again)
    try:
        in_child(go)
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
