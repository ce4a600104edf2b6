# SPDX-License-Identifier: LGPL-2.1-or-later
"""From file to file, pipe and socket inside the kernel"""

import fcntl
import os
import signal
import socket
import struct
import threading

from way import SIZE, NotHere, Wrong, content, read, read_fd, way

FICLONE, FICLONERANGE, FIDEDUPERANGE = 0x40049409, 0x4020940D, 0xC0189436
XFS_IOC_EXCHANGE_RANGE = 0x40285881
REFLINK = "only filesystems with reflinks can, within one"


def drained(fd, start):
    """What comes out of fd while start(), in a thread, puts it in."""
    failed = []

    def go():
        try:
            start()
        except BaseException as e:  # pylint: disable=broad-except
            failed.append(e)

    t = threading.Thread(target=go)
    t.start()
    got = read_fd(fd)
    t.join()
    if failed:
        raise failed[0]
    return got


def all_of(step):
    done = 0
    while n := step(done):
        done += n


@way("sendfile to a socket", quick=True)
def sendfile_socket(w):
    a, b = socket.socketpair()
    fd = os.open(w.path(), os.O_RDONLY)

    def send():
        try:
            all_of(lambda at: os.sendfile(a.fileno(), fd, at, 70000))
        finally:
            a.close()

    w.same(drained(b.fileno(), send))


@way("sendfile to a file outside")
def sendfile_file(w):
    fd, to = os.open(w.path(), os.O_RDONLY), os.path.join(w.tmp, "out")
    target = os.open(to, os.O_WRONLY | os.O_CREAT)
    all_of(lambda at: os.sendfile(target, fd, at, SIZE))
    w.same(read(to))


def spliced(w, fd, *offset):
    r, p = os.pipe()

    def go():
        try:
            while os.splice(fd, p, 50000, *offset):
                pass
        finally:
            os.close(p)

    w.same(drained(r, go))


@way("splice to a pipe", quick=True)
def splice(w):
    spliced(w, os.open(w.path(), os.O_RDONLY))


@way("splice to a pipe, O_DIRECT")
def splice_direct(w):
    fd, got = os.open(w.path(), os.O_RDONLY | os.O_DIRECT), b""
    r, p = os.pipe()
    while n := os.splice(fd, p, 65536, offset_src=len(got)):
        got += os.read(r, n)
    w.same(got)


def ranged(w, to):
    fd, target = os.open(w.path(), os.O_RDONLY), os.open(to, os.O_WRONLY | os.O_CREAT)
    all_of(lambda at: os.copy_file_range(fd, target, SIZE, at, at))
    w.same(read(to))


@way("copy_file_range within the clone", quick=True)
def copy_inside(w):
    ranged(w, w.path("out"))


@way("copy_file_range to another filesystem", may_refuse="the kernel copies between some filesystems only")
def copy_outside(w):
    ranged(w, os.path.join(w.tmp, "out"))


@way("copy_file_range within one file")
def copy_self(w):
    want = bytearray(w.bytes())
    fd = os.open(w.path(), os.O_RDWR)
    n = os.copy_file_range(fd, fd, 50000, 100000, 200000)
    want[200000:200000 + n] = want[100000:100000 + n]
    w.same(read(w.path()), want)


@way("FICLONE into a file of the clone", may_refuse=REFLINK, quick=True)
def clone(w):
    with open(w.path(), "rb") as f, open(w.path("out"), "wb") as out:
        fcntl.ioctl(out, FICLONE, f.fileno())
    w.same(read(w.path("out")))


@way("FICLONERANGE into a file of the clone", may_refuse=REFLINK, files={"f": 1 << 20})
def clone_range(w):
    with open(w.path(), "rb") as f, open(w.path("out"), "wb") as out:
        fcntl.ioctl(out, FICLONERANGE, struct.pack("qQQQ", f.fileno(), 65536, 131072, 0))
    w.same(read(w.path("out")), w.bytes()[65536:65536 + 131072])


@way("FICLONE from a file outside over a cold file", may_refuse=REFLINK, blind="it replaces all bytes")
def clone_over(w):
    new = content(SIZE)
    with open(w.path("new"), "wb") as f:
        f.write(new)
    with open(w.path("new"), "rb") as f, open(w.path(), "r+b") as out:
        fcntl.ioctl(out, FICLONE, f.fileno())
    w.same(read(w.path()), new)


def dedupe(source, target, length):
    """Whether the kernel says that they are the same, and has made them share their blocks."""
    with open(source, "rb") as f, open(target, "r+b") as g:
        said = fcntl.ioctl(f, FIDEDUPERANGE, struct.pack("QQHHIqQQiI", 0, length, 1, 0, 0, g.fileno(), 0, 0, 0, 0))
    done, status, _ = struct.unpack("QiI", said[40:56])
    if status < 0:
        raise OSError(-status, os.strerror(-status))
    return status == 0 and done > 0


@way("FIDEDUPERANGE of two cold files that differ", files={"f": 1 << 18, "g": 1 << 18}, may_refuse=REFLINK)
def dedupe_different(w):
    if dedupe(w.path("f"), w.path("g"), 1 << 18):
        raise Wrong("they are said to be the same")
    for n in "fg":
        w.same(read(w.path(n)), name=n)


@way("FIDEDUPERANGE of a cold file and a local file of zeros", files={"f": 1 << 18}, may_refuse=REFLINK)
def dedupe_zeros(w):
    with open(w.path("zeros"), "wb") as f:
        f.write(bytes(1 << 18))
    if dedupe(w.path("zeros"), w.path("f"), 1 << 18):
        raise Wrong("they are said to be the same")
    w.same(read(w.path()))


@way("XFS_IOC_EXCHANGE_RANGE of a cold file with a local one", files={"f": 1 << 18}, may_refuse="XFS only, and not every one",
     blind=None)
def exchange(w):
    with open(w.path("new"), "wb") as f:
        f.write(b"n" * (1 << 18))
    with open(w.path(), "r+b") as f, open(w.path("new"), "r+b") as g:
        fcntl.ioctl(g, XFS_IOC_EXCHANGE_RANGE, struct.pack("iiQQQQ", f.fileno(), 0, 0, 0, 1 << 18, 0))
    w.same(read(w.path("new")), w.bytes())
    w.same(read(w.path()), b"n" * (1 << 18))


@way("a file that is locked, by flock and by fcntl")
def locked(w):
    with open(w.path(), "r+b") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        fcntl.lockf(f, fcntl.LOCK_EX)
        w.same(f.read())


@way("a file with a read lease")
def leased(w):
    fd = os.open(w.path(), os.O_RDONLY)
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as e:
        raise NotHere(f"no leases: {e}") from None
    signal.signal(signal.SIGIO, signal.SIG_IGN) # somebody wants to write to it: whoever fills it, perhaps
    w.same(read_fd(fd))


@way("AF_ALG: a hash computed by the kernel, by sendfile")
def af_alg(w):
    import hashlib
    try:
        s = socket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET, 0)
        s.bind(("hash", "sha256"))
    except OSError as e:
        raise NotHere(f"no AF_ALG: {e}") from None
    op, _ = s.accept()
    fd = os.open(w.path(), os.O_RDONLY)
    # What does not say MSG_MORE ends the message; sendfile says it for all but its last piece.
    n = os.sendfile(op.fileno(), fd, 0, 60000)
    w.same(op.recv(32), hashlib.sha256(w.bytes()[:n]).digest())
