# SPDX-License-Identifier: LGPL-2.1-or-later
"""Changes: a cold file is changed, then read as a whole"""

import ctypes
import mmap
import os

from way import LIBC, SIZE, NotHere, read, syscall, way

KEEP, PUNCH, COLLAPSE, ZERO, INSERT, UNSHARE = 1, 2, 8, 16, 32, 64
LIBC.fallocate.argtypes = ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64
MIDDLE = 150000


def change(title, may_refuse=None, quick=False, blind=None):
    """A function of a path: done to the cold file and to a copy of the origin's, after which both are the same. Where it is refused,
    the file is as it was."""
    def add(do):
        @way(title, files={"f": SIZE}, may_refuse=may_refuse, quick=quick, blind=blind)
        def one(w):
            twin = w.twin()
            try:
                do(twin)
            except OSError as e:
                raise NotHere(f"the filesystem of the copy cannot: {e.strerror}") from None
            try:
                do(w.path())
            except OSError:
                w.same(read(w.path()))
                raise
            want = read(twin)
            w.same(read(w.path()), want)
            if want:
                with open(w.path(), "rb") as f, mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ) as m:
                    w.same(m[:], want)
            w.same(w.bytes(), read(os.path.join(w.want, "f")))
        return do
    return add


def fd_of(path, flags=0):
    return os.open(path, os.O_RDWR | flags)


def at(path, where, data, flags=0):
    fd = fd_of(path, flags)
    done = os.pwrite(fd, data, where)
    os.close(fd)
    assert done == len(data)


@change("truncate to half", quick=True)
def half(path):
    os.truncate(path, SIZE // 2)


@change("ftruncate to half and back")
def back(path):
    fd = fd_of(path)
    os.ftruncate(fd, SIZE // 2)
    os.ftruncate(fd, SIZE)
    os.close(fd)


@change("truncate to one byte")
def one_byte(path):
    os.truncate(path, 1)


@change("truncate to more than it was")
def longer(path):
    os.truncate(path, SIZE * 2)


@change("open with O_TRUNC, write a little", blind="nothing of the origin is left")
def o_trunc(path):
    with open(path, "wb") as f:
        f.write(b"new")


@change("append", quick=True)
def append(path):
    with open(path, "ab") as f:
        f.write(b"more" * 1000)


@change("write in the middle", quick=True)
def middle(path):
    at(path, MIDDLE, b"here" * 1000)


@change("write at the start")
def start(path):
    at(path, 0, b"here")


@change("write across the end")
def across(path):
    at(path, SIZE - 10, b"x" * 10000)


@change("write far behind the end")
def far(path):
    at(path, SIZE * 4, b"far")


@change("write of one page, O_DIRECT")
def direct(path):
    with mmap.mmap(-1, 4096) as page:
        page.write(b"d" * 4096)
        fd = fd_of(path, os.O_DIRECT)
        assert os.pwritev(fd, [page], 8192) == 4096
        os.close(fd)


@change("write through a shared mapping", quick=True)
def by_map(path):
    with open(path, "r+b") as f, mmap.mmap(f.fileno(), 0) as m:
        m[MIDDLE:MIDDLE + 4] = b"here"
        m.flush()


@change("madvise MADV_REMOVE: a hole through a shared mapping", may_refuse="a filesystem need not have it")
def remove(path):
    with open(path, "r+b") as f, mmap.mmap(f.fileno(), 0) as m:
        m.madvise(mmap.MADV_REMOVE, 40960, 81920)


@change("write with O_WRONLY")
def write_only(path):
    fd = os.open(path, os.O_WRONLY)
    os.pwrite(fd, b"here", MIDDLE)
    os.close(fd)


@change("write with O_SYNC and O_APPEND")
def synced(path):
    fd = os.open(path, os.O_WRONLY | os.O_SYNC | os.O_APPEND)
    os.write(fd, b"more")
    os.close(fd)


@change("copy_file_range into the middle", may_refuse="the kernel copies between some filesystems only")
def range_into(path):
    with open(path + ".new", "wb") as f:
        f.write(b"n" * 50000)
    source = os.open(path + ".new", os.O_RDONLY)
    assert os.copy_file_range(source, fd_of(path), 50000, 0, MIDDLE) == 50000


@change("splice into the middle")
def splice_into(path):
    r, p = os.pipe()
    os.write(p, b"p" * 4096)
    assert os.splice(r, fd_of(path), 4096, offset_dst=MIDDLE) == 4096


def allocate(title, mode, where, length, may_refuse="a filesystem need not have it"):
    @change(title, may_refuse)
    def do(path):
        fd = fd_of(path)
        try:
            syscall("fallocate", fd, mode, where, length)
        finally:
            os.close(fd)


allocate("fallocate: punch a hole", KEEP | PUNCH, 100000, 100000)
allocate("fallocate: punch a hole up to the end", KEEP | PUNCH, 100000, SIZE)
allocate("fallocate: zero a range", ZERO, 100000, 100000)
allocate("fallocate: zero a range, across the end", ZERO, 200000, 200000)
allocate("fallocate: allocate behind the end", 0, 200000, 300000)
allocate("fallocate: allocate what is there", 0, 0, SIZE)
allocate("fallocate: allocate, keep the size", KEEP, 200000, 300000)
allocate("fallocate: collapse a range", COLLAPSE, 65536, 65536)
allocate("fallocate: insert a range", INSERT, 65536, 65536)
allocate("fallocate: unshare a range", UNSHARE, 0, SIZE)


@way("two writers of a cold file at once", files={"f": 4 << 20})
def two(w):
    import threading
    want = bytearray(w.bytes())

    def go(odd):
        fd = fd_of(w.path())
        for n in range(odd, 64, 2):
            os.pwrite(fd, b"w" * 1000, n * 65536 + 500)

    threads = [threading.Thread(target=go, args=(n,)) for n in (0, 1)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for n in range(64):
        want[n * 65536 + 500:n * 65536 + 1500] = b"w" * 1000
    w.same(read(w.path()), want)


@way("written and read by turns through two descriptors", files={"f": 1 << 20})
def turns(w):
    want, a, b = bytearray(w.bytes()), os.open(w.path(), os.O_RDONLY), None
    for n in range(16):
        w.same(os.pread(a, 1000, n * 65536), want[n * 65536:n * 65536 + 1000])
        b = b if b is not None else fd_of(w.path())
        os.pwrite(b, b"z" * 500, n * 65536 + 250)
        want[n * 65536 + 250:n * 65536 + 750] = b"z" * 500
        w.same(os.pread(a, 1000, n * 65536), want[n * 65536:n * 65536 + 1000])
    w.same(read(w.path()), want)


@way("a mapping made before a write, and after it")
def map_and_write(w):
    want = bytearray(w.bytes())
    with open(w.path(), "r+b", buffering=0) as f, mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ) as before:
        f.seek(MIDDLE)
        f.write(b"here")
        want[MIDDLE:MIDDLE + 4] = b"here"
        w.same(before[:], want)
        with mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ) as after:
            w.same(after[:], want)
