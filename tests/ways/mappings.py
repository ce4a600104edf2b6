# SPDX-License-Identifier: LGPL-2.1-or-later
"""Mappings"""

import ctypes
import errno
import mmap
import os

from way import LIBC, SIZE, Wrong, in_child, read, syscall, way

PAGE = mmap.PAGESIZE
NONE, READ, WRITE = 0, mmap.PROT_READ, mmap.PROT_WRITE
MADV_POPULATE_READ = 22
MAYMOVE = 1
LIBC.mmap.restype = LIBC.mremap.restype = ctypes.c_long
LIBC.mmap.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64
LIBC.mremap.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int
LIBC.mprotect.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
LIBC.remap_file_pages.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_size_t, ctypes.c_int
LIBC.process_vm_readv.argtypes = ctypes.c_int, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong


def mapped(w, flags, prot=READ, mode="rb"):
    with open(w.path(), mode) as f:
        return mmap.mmap(f.fileno(), 0, flags=flags, prot=prot)


@way("mmap, private", quick=True)
def private(w):
    w.same(mapped(w, mmap.MAP_PRIVATE)[:])


@way("mmap, shared", quick=True)
def shared(w):
    w.same(mapped(w, mmap.MAP_SHARED)[:])


@way("mmap, shared, writable")
def writable(w):
    w.same(mapped(w, mmap.MAP_SHARED, READ | WRITE, "r+b")[:])


@way("mmap, private, and one byte written in each page")
def cow(w):
    m, want = mapped(w, mmap.MAP_PRIVATE, READ | WRITE), bytearray(w.bytes())
    for at in range(0, SIZE, PAGE):
        m[at] = want[at] = want[at] ^ 1
    w.same(m[:], want)


@way("mmap, MAP_POPULATE", quick=True)
def populate(w):
    w.same(mapped(w, mmap.MAP_PRIVATE | mmap.MAP_POPULATE)[:])


@way("mmap, madvise WILLNEED")
def willneed(w):
    m = mapped(w, mmap.MAP_SHARED)
    m.madvise(mmap.MADV_WILLNEED)
    w.same(m[:])


@way("mmap, madvise POPULATE_READ")
def populate_read(w):
    m = mapped(w, mmap.MAP_SHARED)
    m.madvise(MADV_POPULATE_READ)
    w.same(m[:])


@way("mmap, the last partial page, zeros behind the end", files={"f": SIZE})
def last_page(w):
    at = SIZE - SIZE % PAGE
    fd = os.open(w.path(), os.O_RDONLY)
    where = syscall("mmap", None, PAGE, READ, mmap.MAP_SHARED, fd, at)
    w.same(ctypes.string_at(where, PAGE), w.bytes()[at:].ljust(PAGE, b"\0"))


@way("mmap of one page, then mremap to all of the file", quick=True)
def grown(w):
    fd = os.open(w.path(), os.O_RDONLY)
    where = syscall("mmap", None, PAGE, READ, mmap.MAP_SHARED, fd, 0)
    where = syscall("mremap", where, PAGE, SIZE, MAYMOVE)
    w.same(ctypes.string_at(where, SIZE))


@way("mmap of one page, then remap_file_pages", may_refuse="an old call, that not every kernel has")
def remapped(w):
    # Shared in the kernel's books is only what could be written.
    fd, want, pages = os.open(w.path(), os.O_RDWR), w.bytes(), 16
    for first in range(PAGE, 65 * PAGE, pages * PAGE):
        where = syscall("mmap", None, pages * PAGE, READ, mmap.MAP_SHARED, fd, 0)
        syscall("remap_file_pages", where, pages * PAGE, 0, first // PAGE, 0)
        w.same(ctypes.string_at(where, pages * PAGE), want[first:first + pages * PAGE])


@way("mmap without access, then mprotect")
def protected(w):
    fd = os.open(w.path(), os.O_RDONLY)
    where = syscall("mmap", None, SIZE, NONE, mmap.MAP_PRIVATE, fd, 0)
    syscall("mprotect", where, SIZE, READ)
    w.same(ctypes.string_at(where, SIZE))


@way("mmap for execution only, then mprotect")
def executable(w):
    fd = os.open(w.path(), os.O_RDONLY)
    try:
        where = syscall("mmap", None, SIZE, mmap.PROT_EXEC, mmap.MAP_PRIVATE, fd, 0)
    except OSError as e:
        if e.errno != errno.EPERM: # a mount with noexec
            raise
        where = syscall("mmap", None, SIZE, NONE, mmap.MAP_PRIVATE, fd, 0)
    syscall("mprotect", where, SIZE, READ)
    w.same(ctypes.string_at(where, SIZE))


@way("mmap, read by a child")
def child(w):
    m = mapped(w, mmap.MAP_SHARED)
    in_child(lambda: w.same(m[:]))


@way("mmap, read after its file is closed and removed")
def removed(w):
    m = mapped(w, mmap.MAP_SHARED)
    os.unlink(w.path())
    w.same(m[:])


def truncated(w, flags):
    half = SIZE // 2
    m = mapped(w, flags, READ, "r+b")
    os.truncate(w.path(), half)
    w.same(m[:half], w.bytes()[:half])
    w.same(read(w.path()), w.bytes()[:half])


@way("mmap shared, then truncate, then the mapping")
def truncate_shared(w):
    truncated(w, mmap.MAP_SHARED)


@way("mmap private, then truncate, then the mapping")
def truncate_private(w):
    truncated(w, mmap.MAP_PRIVATE)


@way("mmap, then truncate and extend, then the mapping", blind=None)
def truncate_extend(w):
    half = SIZE // 2
    m = mapped(w, mmap.MAP_SHARED, READ, "r+b")
    os.truncate(w.path(), half)
    os.truncate(w.path(), SIZE)
    w.same(m[:], w.bytes()[:half].ljust(SIZE, b"\0"))


@way("process_vm_readv of a mapping, by another process", quick=True)
def vm_read(w):
    m = mapped(w, mmap.MAP_PRIVATE, READ | WRITE)
    remote = ctypes.addressof(ctypes.c_char.from_buffer(m))
    pid = os.getpid()

    def peek():
        buffer = ctypes.create_string_buffer(SIZE)
        here = (ctypes.c_size_t * 2)(ctypes.addressof(buffer), SIZE)
        there = (ctypes.c_size_t * 2)(remote, SIZE)
        n = syscall("process_vm_readv", pid, here, 1, there, 1, 0)
        w.same(buffer.raw[:n])

    syscall("prctl", 0x59616D61, ctypes.c_ulong(-1), 0, 0, 0) if os.path.exists("/proc/sys/kernel/yama") else None
    in_child(peek)


@way("write of a mapping into a pipe and a socket")
def written_out(w):
    import socket
    import threading
    m = mapped(w, mmap.MAP_SHARED)
    a, b = socket.socketpair()
    t = threading.Thread(target=lambda: (a.sendall(m), a.close()))
    t.start()
    got = b""
    while part := b.recv(1 << 16):
        got += part
    t.join()
    w.same(got)


@way("mmap through a descriptor opened for writing only must be refused", must_refuse="POSIX", blind="it reads nothing")
def write_only(w):
    fd = os.open(w.path(), os.O_WRONLY)
    syscall("mmap", None, SIZE, READ, mmap.MAP_SHARED, fd, 0)
    raise Wrong("it was mapped")
