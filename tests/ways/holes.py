# SPDX-License-Identifier: LGPL-2.1-or-later
"""Holes: readers that ask where there is something to read"""

import errno
import fcntl
import os
import struct
import subprocess

from gates import which
from way import SIZE, NotHere, Wrong, content, read, way

FS_IOC_FIEMAP = 0xC020660B
SYNC, LAST, UNWRITTEN = 1, 1, 0x800
SPARSE = 3 << 20


def sparse(directory):
    """1 MiB of nothing, some bytes, nothing, some bytes, and nothing up to the end."""
    with open(directory + "/f", "wb") as f:
        f.truncate(SPARSE)
        for at in (1 << 20, 2 << 20):
            f.seek(at)
            f.write(content(100000))


def dense(directory):
    with open(directory + "/f", "wb") as f:
        f.write(content(SIZE))


def segments(fd, size):
    at = 0
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as e:
            if e.errno == errno.ENXIO:
                return
            raise
        at = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, min(at, size)


def walk(w, parts, size):
    fd, got = os.open(w.path(), os.O_RDONLY), bytearray(size)
    for a, b in parts(fd, size):
        got[a:b] = os.pread(fd, b - a, a)
    w.same(got)


def extents(fd, size):
    at = 0
    while at < size:
        said = bytearray(struct.pack("QQIIII", at, size - at, SYNC, 0, 32, 0) + bytes(56 * 32))
        fcntl.ioctl(fd, FS_IOC_FIEMAP, said)
        count = struct.unpack_from("I", said, 20)[0]
        if count == 0:
            return
        for i in range(count):
            logical, _, length, _, _, flags = struct.unpack_from("QQQQQI", said, 32 + 56 * i)
            if not flags & UNWRITTEN:
                yield logical, min(logical + length, size)
            at = logical + length
            if flags & LAST:
                return


for make, text in ((dense, "a file without holes"), (sparse, "a file with holes at the origin")):
    @way(f"read, {text}", make=make)
    def whole(w):
        w.same(read(w.path()))

    @way(f"lseek SEEK_DATA and SEEK_HOLE, {text}", make=make, quick=True)
    def seek(w):
        walk(w, segments, len(w.bytes()))

    @way(f"FIEMAP, {text}", make=make, may_refuse="a reader that is told nothing reads everything")
    def fiemap(w):
        walk(w, extents, len(w.bytes()))

    for program in (["cp", "--sparse=auto"], ["cp", "--sparse=always"], ["rsync", "--sparse"]):
        @way(f"{' '.join(program)}, {text}", make=make)
        def copy(w, program=program): # pylint: disable=dangerous-default-value
            w.run(*program, w.path(), w.tmp + "/out")
            w.same(read(w.tmp + "/out"))

    @way(f"tar c -S, {text}", make=make)
    def tar(w):
        w.run("tar", "-S", "-C", w.dir, "-cf", w.tmp + "/t", "f", ok=(0, 1)) # 1: its ctime changed
        w.run("tar", "-C", w.tmp, "-xf", w.tmp + "/t")
        w.same(read(w.tmp + "/f"))

    @way(f"cp --sparse=auto to a file of the clone and that one's holes, {text}", make=make)
    def twice(w):
        w.run("cp", "--sparse=auto", w.path(), w.path("g"))
        w.run("cp", "--sparse=auto", w.path("g"), w.tmp + "/out")
        w.same(read(w.tmp + "/out"))


@way("filefrag, then a read")
def filefrag(w):
    if not which("filefrag"):
        raise NotHere("filefrag is not installed")
    # Whatever it says, and it has a right to complain: FIBMAP is root's.
    subprocess.run([which("filefrag"), "-v", w.path()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    w.same(read(w.path()))


@way("xfs_fsr: defragmented, then read", may_refuse="XFS only")
def defragmented(w):
    said = subprocess.run([which("xfs_fsr"), "-v", w.path()], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
                          text=True) if which("xfs_fsr") else None
    if not said or "not" in said.stdout and "XFS" in said.stdout:
        raise NotHere("no XFS, or no xfs_fsr")
    w.same(read(w.path()))


@way("st_blocks: a file with bytes is not shown as one without", blind="the sizes of files are not their bytes")
def blocks(w):
    st = os.stat(w.path())
    if st.st_blocks * 512 < SIZE - SIZE // 8:
        raise Wrong(f"{st.st_blocks} blocks for {st.st_size} bytes: tar -S need not read it")


@way("lseek to the first hole of a file that has none", blind="where a filesystem has none, a hole begins anywhere")
def first_hole(w):
    at = os.lseek(os.open(w.path(), os.O_RDONLY), 0, os.SEEK_HOLE)
    if at != SIZE:
        raise Wrong(f"it says that a hole begins at {at}")
