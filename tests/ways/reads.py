# SPDX-License-Identifier: LGPL-2.1-or-later
"""Reading"""

import ctypes
import errno
import mmap
import os
import random
import threading

from way import LIBC, SIZE, Wrong, read, read_fd, syscall, way

PAGE = mmap.PAGESIZE


def opened(w, name="f", flags=0):
    return os.open(w.path(name), os.O_RDONLY | flags)


@way("read", quick=True)
def plain(w):
    w.same(read(w.path()))


@way("read, 4 KiB at a time")
def small(w):
    w.same(read_fd(opened(w), 4096))


@way("pread, backwards")
def backwards(w):
    fd, want = opened(w), w.bytes()
    for at in range(SIZE - SIZE % 10000, -1, -10000):
        w.same(os.pread(fd, 10000, at), want[at:at + 10000])


@way("pread, at random places of 40 MiB", files={"f": 40 << 20})
def scattered(w):
    fd, want, rng = opened(w), w.bytes(), random.Random(1)
    for _ in range(100):
        at, n = rng.randrange(len(want)), rng.choice((1, 4096, 65536, 300000))
        w.same(os.pread(fd, n, at), want[at:at + n])


@way("pread, the last partial page")
def last_page(w):
    at = SIZE - SIZE % PAGE
    w.same(os.pread(opened(w), 2 * PAGE, at), w.bytes()[at:])


@way("readv", quick=True)
def vector(w):
    parts = [bytearray(n) for n in (1, 4095, 100000, 7, 300000)]
    n = os.readv(opened(w), parts)
    w.same(b"".join(parts)[:n])


@way("O_DIRECT", quick=True)
def direct(w):
    fd, got = opened(w, flags=os.O_DIRECT), b""
    with mmap.mmap(-1, 1 << 16) as buffer:
        while n := os.preadv(fd, [buffer], len(got)):
            got += buffer[:n]
    w.same(got)


@way("O_DIRECT, the last partial page only")
def direct_tail(w):
    at = SIZE - SIZE % PAGE
    with mmap.mmap(-1, PAGE) as buffer:
        n = os.preadv(opened(w, flags=os.O_DIRECT), [buffer], at)
        w.same(buffer[:n], w.bytes()[at:])


@way("preadv2, RWF_NOWAIT", quick=True)
def nowait(w):
    """What is not here may be refused with EAGAIN, as it is for what is on the disk only; then a read that waits."""
    fd, got, idle = opened(w), b"", 0
    while True:
        buffer = bytearray(50000)
        try:
            n = os.preadv(fd, [buffer], len(got), os.RWF_NOWAIT)
        except OSError as e:
            if e.errno not in (errno.EAGAIN, errno.EOPNOTSUPP):
                raise
            idle += 1
            n = os.preadv(fd, [buffer], len(got))
        if n == 0:
            break
        got += buffer[:n]
    w.same(got)


@way("preadv2, RWF_HIPRI")
def hipri(w):
    fd, buffer = opened(w), bytearray(SIZE)
    n = os.preadv(fd, [buffer], 0, os.RWF_HIPRI)
    w.same(buffer[:n])


@way("read by two at once, from both ends", files={"f": 4 << 20})
def both_ends(w):
    want, wrong = w.bytes(), []

    def go(places):
        fd = opened(w)
        for at in places:
            if os.pread(fd, 65536, at) != want[at:at + 65536]:
                wrong.append(at)

    places = range(0, len(want), 65536)
    threads = [threading.Thread(target=go, args=(p,)) for p in (places, reversed(places), places)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    if wrong:
        raise Wrong(f"wrong at {wrong[:5]}")


def advised(w, advice):
    fd = opened(w)
    advice(fd)
    w.same(read_fd(fd))


def readahead(fd):
    LIBC.readahead.argtypes = ctypes.c_int, ctypes.c_int64, ctypes.c_size_t
    syscall("readahead", fd, 0, SIZE)


@way("readahead, then read", quick=True)
def ahead(w):
    advised(w, readahead)


@way("readahead, then mmap")
def ahead_map(w):
    fd = opened(w)
    readahead(fd)
    with mmap.mmap(fd, 0, prot=mmap.PROT_READ) as m:
        w.same(m[:])


@way("posix_fadvise WILLNEED, then read")
def willneed(w):
    advised(w, lambda fd: os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_WILLNEED))


@way("posix_fadvise WILLNEED and DONTNEED, then O_DIRECT")
def dontneed(w):
    fd = opened(w)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_WILLNEED)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    direct(w)


@way("posix_fadvise SEQUENTIAL, then read")
def sequential(w):
    advised(w, lambda fd: os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL))


@way("posix_fadvise RANDOM, then read")
def at_random(w):
    advised(w, lambda fd: os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM))


@way("open with O_NOATIME, O_NONBLOCK, O_RDWR")
def flags(w):
    for f in (os.O_NOATIME, os.O_NONBLOCK, os.O_RDWR):
        w.same(read_fd(os.open(w.path(), f)))
