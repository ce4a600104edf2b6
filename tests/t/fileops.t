#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every file operation on what is cold: if this fails, a program that works on an ordinary directory does not work on a clone,
or sees what the origin does not have, or changes the origin."""

import ctypes
import errno
import fcntl
import hashlib
import mmap
import os
import random
import shutil
import socket
import stat
import subprocess
import sys
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tools"))
import slt  # noqa: E402
from slt import NATIVE, ROOT, T, fails, out  # noqa: E402

libc = ctypes.CDLL(None, use_errno=True)
AT_FDCWD = -100
NOREPLACE, EXCHANGE = 1, 2
KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 1, 2, 16
CASES = []


def case(what):
    """A generator: what it does before its first yield makes the origin (in o), what comes then happens in the clone (in c), and
    after another yield the service was stopped and started, after a third one killed and started."""
    def deco(f):
        CASES.append((what, f))
        return f
    return deco


# ---- helpers ----

def bytes_of(seed, size):
    return random.Random(seed).randbytes(size)


def put(path, size, mode=0o644):
    """A file of that size at the origin; its content."""
    data = bytes_of(path.rsplit("/", 2)[-2:], size) if False else bytes_of(os.path.basename(path) + str(size), size)
    with open(path, "wb") as f:
        f.write(data)
    os.chmod(path, mode)
    return data


def put_sparse(path):
    """Data at 1 MiB and 3 MiB, 5 MiB + 7 long; its content."""
    a, b = bytes_of(1, 70000), bytes_of(2, 4096)
    with open(path, "wb") as f:
        f.truncate((5 << 20) + 7)
        f.seek(1 << 20)
        f.write(a)
        f.seek(3 << 20)
        f.write(b)
    return get(path)


def get(path):
    with open(path, "rb") as f:
        return f.read()


def cold(path):
    assert slt.state(path)["bytes_here"] == 0, f"{path} is not cold: {slt.state(path)}"


def fd_of(path, flags=os.O_RDONLY, mode=0o644):
    return os.open(path, flags, mode)


def call(r):
    if r < 0:
        e = ctypes.get_errno()
        raise OSError(e, os.strerror(e))
    return r


def rename2(a, b, flags):
    call(libc.renameat2(AT_FDCWD, os.fsencode(a), AT_FDCWD, os.fsencode(b), flags))


def fallocate(fd, mode, off, n):
    call(libc.fallocate(fd, mode, ctypes.c_long(off), ctypes.c_long(n)))


def holes(fd):
    """The data extents that SEEK_DATA and SEEK_HOLE tell."""
    found, at, end = [], 0, os.fstat(fd).st_size
    while at < end:
        try:
            data = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as e:
            assert e.errno == errno.ENXIO
            break
        at = os.lseek(fd, data, os.SEEK_HOLE)
        assert data < at <= end
        found.append((data, at))
    fails(errno.ENXIO, os.lseek, fd, end, os.SEEK_DATA)
    fails(errno.ENXIO, os.lseek, fd, end + 10, os.SEEK_HOLE)
    return found


def checksum(top):
    h = hashlib.sha256()
    for d, dirs, files in os.walk(os.fsencode(top)):
        dirs.sort()
        st = os.lstat(d)
        h.update(b"%s %o %d %d;" % (d, st.st_mode, st.st_mtime_ns, st.st_uid))
        for n in sorted(files):
            p = os.path.join(d, n)
            st = os.lstat(p)
            h.update(b"%s %o %d %d %d %d;" % (p, st.st_mode, st.st_mtime_ns, st.st_uid, st.st_nlink, st.st_size))
            if stat.S_ISREG(st.st_mode):
                h.update(repr(sorted((x, os.getxattr(p, x)) for x in os.listxattr(p))).encode())
                h.update(get(p))
    return h.hexdigest()


def in_child(f):
    """f() in another process; what it returns must be true."""
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(0 if f() else 9)
        except OSError as e:
            os._exit(100 + min(e.errno, 100))
        except BaseException:  # pylint: disable=broad-except
            os._exit(8)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# ---- reading ----

@case("read, from beginning to end")
def _(o, c):
    sizes = (0, 1, 4095, 4096, 65536, 65537, 1 << 20, (2 << 20) + 1)
    data = {n: put(f"{o}/{n}", n) for n in sizes}
    yield
    for n in sizes:
        assert get(f"{c}/{n}") == data[n], n


@case("pread at random offsets")
def _(o, c):
    data = put(o + "/f", 3_000_000)
    yield
    cold(c + "/f")
    rng, fd = random.Random(2), fd_of(c + "/f")
    for _ in range(200):
        off, n = rng.randrange(0, 3_100_000), rng.choice((1, 100, 4096, 70000, 300_000))
        assert os.pread(fd, n, off) == data[off:off + n], (off, n)
    os.close(fd)


@case("preadv2 with RWF_NOWAIT: the truth or EAGAIN")
def _(o, c):
    data = put(o + "/f", 500_000)
    yield
    cold(c + "/f")
    fd = fd_of(c + "/f")
    for off in (0, 4096, 300_000, 0, 4096):
        buf = bytearray(4096)
        try:
            n = os.preadv(fd, [buf], off, os.RWF_NOWAIT)
        except OSError as e:
            assert e.errno in (errno.EAGAIN, errno.EOPNOTSUPP)
        else:
            assert buf[:n] == data[off:off + n]
        os.pread(fd, 10, off)
    os.close(fd)


@case("mmap, private")
def _(o, c):
    data = put(o + "/f", 1_000_001)
    yield
    cold(c + "/f")
    fd = fd_of(c + "/f")
    with mmap.mmap(fd, 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE) as m:
        os.close(fd)
        assert m[900_000:900_100] == data[900_000:900_100]
        m[900_000:900_010] = b"0123456789"
        assert m[899_990:900_020] == data[899_990:900_000] + b"0123456789" + data[900_010:900_020]
        assert m[:100] == data[:100]
    assert get(c + "/f") == data
    assert "modified" not in slt.state(c + "/f")["flags"]


@case("mmap, shared: reads; writes are there after msync, for others and after a restart")
def _(o, c):
    data = put(o + "/f", 1_000_001)
    put(o + "/g", 200_000)
    yield
    cold(c + "/f")
    fd = fd_of(c + "/f", os.O_RDWR)
    with mmap.mmap(fd, 0) as m:
        assert m[500_000:500_100] == data[500_000:500_100]
        m[500_000:500_010] = b"0123456789"
        m[1_000_000:1_000_001] = b"!"
        assert in_child(lambda: get(c + "/f")[499_999:500_010] == data[499_999:500_000] + b"0123456789") == 0
        m.flush()
    os.close(fd)
    want = data[:500_000] + b"0123456789" + data[500_010:1_000_000] + b"!"
    assert get(c + "/f") == want
    assert "modified" in slt.state(c + "/f")["flags"]
    yield
    assert get(c + "/f") == want


@case("O_DIRECT")
def _(o, c):
    data = put(o + "/f", 1_000_001)
    yield
    cold(c + "/f")
    fd = fd_of(c + "/f", os.O_RDONLY | os.O_DIRECT)
    with mmap.mmap(-1, 1 << 16) as m:
        for off in (524288, 0, 65536, 983040, 999_424, 1 << 20):
            n = os.preadv(fd, [m], off)
            assert m[:n] == data[off:off + 65536], off
            assert n == max(0, min(65536, len(data) - off))
    os.close(fd)


@case("sendfile")
def _(o, c):
    data = put(o + "/f", 700_000)
    yield
    cold(c + "/f")
    fd, dst = fd_of(c + "/f"), fd_of(T + "/sent", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    at = 100_000
    while n := os.sendfile(dst, fd, at, 1 << 20):
        at += n
    os.close(fd)
    os.close(dst)
    assert get(T + "/sent") == data[100_000:]


@case("splice through a pipe")
def _(o, c):
    data = put(o + "/f", 300_000)
    yield
    cold(c + "/f")
    fd, (r, w), got = fd_of(c + "/f"), os.pipe(), b""
    while n := os.splice(fd, w, 65536, offset_src=len(got)):
        while n:
            piece = os.read(r, n)
            got += piece
            n -= len(piece)
    for x in (fd, r, w):
        os.close(x)
    assert got == data


@case("copy_file_range from a cold file to another of the clone, and into a cold one")
def _(o, c):
    data = put(o + "/f", 400_000)
    other = put(o + "/g", 300_000)
    yield
    cold(c + "/f")
    a, b = fd_of(c + "/f"), fd_of(c + "/new", os.O_RDWR | os.O_CREAT)
    at = 0
    while n := os.copy_file_range(a, b, 1 << 20, at, at):
        at += n
    os.close(b)
    cold(c + "/g")
    b = fd_of(c + "/g", os.O_RDWR)
    at = 0
    while at < 1000:
        at += os.copy_file_range(a, b, 1000 - at, 5000 + at, 100_000 + at)
    os.close(a)
    os.close(b)
    want = other[:100_000] + data[5000:6000] + other[101_000:]
    assert get(c + "/new") == data
    assert get(c + "/g") == want
    yield
    assert get(c + "/new") == data and get(c + "/g") == want and get(c + "/f") == data


@case("copy_file_range out of the clone")
def _(o, c):
    data = put(o + "/f", 300_000)
    yield
    cold(c + "/f")
    a, b = fd_of(c + "/f"), fd_of(T + "/copied", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    try:
        at = 0
        while n := os.copy_file_range(a, b, 1 << 20, at, at):
            at += n
        assert get(T + "/copied") == data
    except OSError as e:  # between filesystems the kernel may refuse
        assert e.errno in (errno.EXDEV, errno.EINVAL)
    os.close(a)
    os.close(b)


@case("exec of a cold binary, and of a cold script")
def _(o, c):
    shutil.copy(shutil.which("env"), o + "/prog")
    with open(o + "/script", "w", encoding="ascii") as f:
        f.write("#!/bin/sh\necho \"args: $*\"\n")
    os.chmod(o + "/script", 0o755)
    os.symlink("script", o + "/link")
    yield
    cold(c + "/prog")
    assert out(c + "/prog", "-i", "A=b", env={}) == b"A=b\n"
    cold(c + "/script")
    assert out(c + "/script", "x", "y") == b"args: x y\n"
    assert out(c + "/link", "z") == b"args: z\n"


@case("ETXTBSY while a program runs, and its file can be replaced")
def _(o, c):
    shutil.copy(shutil.which("cat"), o + "/prog")
    yield
    p = subprocess.Popen([c + "/prog"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    p.stdin.write(b"hello\n")
    p.stdin.flush()
    assert p.stdout.readline() == b"hello\n"
    if not NATIVE:  # the kernel does not give it for files that somebody is asked about before access
        fails(errno.ETXTBSY, os.open, c + "/prog", os.O_WRONLY)
    shutil.copy(shutil.which("true"), c + "/prog.new")
    os.rename(c + "/prog.new", c + "/prog")
    p.stdin.write(b"still here\n")
    p.stdin.flush()
    assert p.stdout.readline() == b"still here\n"
    p.stdin.close()
    assert p.wait() == 0
    out(c + "/prog")


@case("dlopen of a cold library")
def _(o, c):
    with open("/proc/self/maps", encoding="utf-8") as f:
        lib = next((x.split()[-1] for x in f if "/libm.so" in x or "/libm-" in x), None)
    if lib:
        shutil.copy(lib, o + "/libcopy.so")
    yield
    if lib:
        cold(c + "/libcopy.so")
        code = f"import ctypes; f = ctypes.CDLL('{c}/libcopy.so').sqrt; f.restype = ctypes.c_double; print(f(ctypes.c_double(81)))"
        assert out(sys.executable, "-c", code) == b"9.0\n"


@case("cp with every --sparse and --reflink")
def _(o, c):
    modes = [("--sparse=" + s, "--reflink=" + r) for s in ("auto", "always", "never") for r in ("auto", "never", "always")
             if s == "auto" or r != "always"]
    for d in range(len(modes)):
        os.mkdir(f"{o}/{d}")
        dense = put(f"{o}/{d}/dense", 300_000)
        sparse = put_sparse(f"{o}/{d}/sparse")
        put(f"{o}/{d}/small", 17)
    yield
    for d, (s, r) in enumerate(modes):
        for name, want in (("dense", dense), ("sparse", sparse)):
            cold(f"{c}/{d}/{name}")
            for to in (T + "/cp", f"{c}/{d}/copy"):
                p = subprocess.run(["cp", s, r, f"{c}/{d}/{name}", to], stderr=subprocess.PIPE, check=False)
                if r == "--reflink=always" and not (NATIVE and to.startswith(c)):
                    assert p.returncode == 1, "a reflink of what is not here"
                else:
                    assert p.returncode == 0, p.stderr
                    assert get(to) == want, (s, r, name, to)
                if os.path.exists(to):
                    os.unlink(to)
            assert get(f"{c}/{d}/{name}") == want
    out("cp", "-a", c + "/0", T + "/cp-a")
    out("diff", "-r", o + "/0", T + "/cp-a")
    out("cp", "-a", c + "/1", c + "/copied")
    out("diff", "-r", o + "/1", c + "/copied")


def tar_of(*args):
    """What tar writes. Behind the fanotify gate it may say that a file changed, when that arrives for longer than two seconds
    (docs/limits.md)."""
    p = subprocess.run(("tar", *args), stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False)
    said = p.stderr.decode(errors="replace").splitlines()
    noted = slt.NATIVE and p.returncode == 1 and said and all(x.endswith(": file changed as we read it") for x in said)
    assert p.returncode == 0 or noted, (p.returncode, said)
    return p.stdout


@case("tar, with and without -S")
def _(o, c):
    for d in ("S", "plain"):
        os.mkdir(f"{o}/{d}")
        put_sparse(f"{o}/{d}/sparse")
        put(f"{o}/{d}/dense", 200_001)
        put(f"{o}/{d}/empty", 0)
        os.link(f"{o}/{d}/dense", f"{o}/{d}/link")
        os.symlink("dense", f"{o}/{d}/sym")
        with open(f"{o}/{d}/hole", "wb") as f:
            f.truncate(1 << 20)
    yield
    for d in ("S", "plain"):
        cold(f"{c}/{d}/sparse")
        os.mkdir(T + "/tar-" + d)
        tar = tar_of("-C", c, "-H", "posix", "-c", *(["-S"] if d == "S" else []), d)
        subprocess.run(["tar", "-C", T + "/tar-" + d, "-xp"], input=tar, check=True)
        out(sys.executable, slt.TOOLS + "/treesum.py", f"{o}/{d}", f"{T}/tar-{d}/{d}")


@case("rsync, with and without --sparse")
def _(o, c):
    for d in ("sparse", "plain"):
        os.mkdir(f"{o}/{d}")
        put_sparse(f"{o}/{d}/a")
        put(f"{o}/{d}/b", 100_000)
    yield
    if shutil.which("rsync"):
        for d in ("sparse", "plain"):
            cold(f"{c}/{d}/a")
            out("rsync", "-aH", *(["--sparse"] if d == "sparse" else []), f"{c}/{d}/", f"{T}/rsync-{d}")
            out(sys.executable, slt.TOOLS + "/treesum.py", f"{o}/{d}", f"{T}/rsync-{d}")
        # And into the clone, over files that are cold.
        os.mkdir(T + "/src")
        shutil.copy(f"{o}/plain/b", T + "/src/a")
        out("rsync", "-a", "--inplace", T + "/src/", c + "/plain/")
        assert get(c + "/plain/a") == get(o + "/plain/b")


@case("dd, also with iflag=direct and conv=sparse")
def _(o, c):
    data = {n: put_sparse(f"{o}/{n}") for n in "abc"}
    yield
    for n, args in (("a", ["bs=7777"]), ("b", ["bs=1M", "iflag=direct"]), ("c", ["bs=64K", "conv=sparse"])):
        cold(f"{c}/{n}")
        out("dd", f"if={c}/{n}", f"of={T}/dd-{n}", "status=none", *args)
        assert get(f"{T}/dd-{n}") == data[n], n


def nothing_in_holes(extents, data):
    zero = bytearray(data)
    for s, e in extents:
        zero[s:e] = bytes(e - s)
    assert not any(zero), "data in what is said to be a hole"


@case("SEEK_HOLE and SEEK_DATA: cold as at the origin, later at least true")
def _(o, c):
    data = put_sparse(o + "/f")
    dense = put(o + "/dense", 200_000)
    yield
    a, b = fd_of(o + "/f"), fd_of(c + "/f")
    want = holes(a)
    assert len(want) == 2
    cold(c + "/f")
    asks = NATIVE and slt.kernel_series()  # before it tells of holes
    if asks:
        nothing_in_holes(holes(b), data)
    elif NATIVE:  # a placeholder has no holes: the kernel does not ask before it tells of them
        assert holes(b) == [(0, len(data))], holes(b)
        cold(c + "/f")
        os.pread(b, 10, 1 << 20)
        nothing_in_holes(holes(b), data)
    else:
        assert holes(b) == want, (holes(b), want)
        cold(c + "/f")
        os.pread(b, 10, 1 << 20)
        assert holes(b) == want, (holes(b), want)
    assert get(c + "/f") == data
    nothing_in_holes(holes(b), data)
    os.close(b)
    b = fd_of(c + "/dense")
    assert holes(b) == [(0, 200_000)]
    if not asks:
        cold(c + "/dense")
    assert get(c + "/dense") == dense
    os.close(a)
    os.close(b)


@case("readahead, fadvise and fsync of a cold file")
def _(o, c):
    data = put(o + "/f", 600_000)
    yield
    fd = fd_of(c + "/f")
    cold(c + "/f")
    os.fsync(fd)
    os.fdatasync(fd)
    cold(c + "/f")
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_WILLNEED)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    call(libc.readahead(fd, ctypes.c_long(100_000), ctypes.c_size_t(100_000)))
    assert os.pread(fd, 1 << 20, 0) == data
    os.close(fd)
    fd = fd_of(c)
    os.fsync(fd)
    call(libc.syncfs(fd))
    os.close(fd)


@case("st_blocks of a cold file does not make it look empty")
def _(o, c):
    put(o + "/f", 600_000)
    put(o + "/small", 10)
    yield
    assert os.stat(c + "/f").st_blocks * 512 >= 600_000
    assert os.stat(c + "/small").st_blocks > 0
    cold(c + "/f")
    assert int(out("du", "--apparent-size", "-b", c + "/f").split()[0]) == 600_000


# ---- locks ----

@case("flock between two processes")
def _(o, c):
    put(o + "/f", 100)
    yield
    fd = fd_of(c + "/f")
    fcntl.flock(fd, fcntl.LOCK_EX)

    def other(op):
        with open(c + "/f", "rb") as f:
            fcntl.flock(f, op | fcntl.LOCK_NB)
        return True
    assert in_child(lambda: other(fcntl.LOCK_SH)) == 100 + errno.EWOULDBLOCK
    fcntl.flock(fd, fcntl.LOCK_SH)
    assert in_child(lambda: other(fcntl.LOCK_SH)) == 0
    assert in_child(lambda: other(fcntl.LOCK_EX)) == 100 + errno.EWOULDBLOCK
    os.close(fd)
    assert in_child(lambda: other(fcntl.LOCK_EX)) == 0


@case("fcntl locks between two processes, on ranges of a cold file")
def _(o, c):
    put(o + "/f", 100_000)
    yield
    fd = fd_of(c + "/f", os.O_RDWR)
    fcntl.lockf(fd, fcntl.LOCK_EX, 100, 1000)

    def other(start, n):
        with open(c + "/f", "r+b") as f:
            fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB, n, start)
        return True
    assert in_child(lambda: other(0, 1000)) == 0
    assert in_child(lambda: other(1000, 10)) in (100 + errno.EAGAIN, 100 + errno.EACCES)
    assert in_child(lambda: other(1099, 1)) in (100 + errno.EAGAIN, 100 + errno.EACCES)
    assert in_child(lambda: other(1100, 1000)) == 0
    fcntl.lockf(fd, fcntl.LOCK_UN, 100, 1000)
    assert in_child(lambda: other(1000, 10)) == 0
    os.close(fd)


# ---- names ----

@case("rename: in a directory, across, over a cold file, RENAME_NOREPLACE, RENAME_EXCHANGE")
def _(o, c):
    data = {}
    for d in ("d1", "d2"):
        os.mkdir(f"{o}/{d}")
        for n in "abcdefg":
            data[d + n] = put(f"{o}/{d}/{n}", 20_000 + ord(n) + (d == "d2") * 1000)
    yield
    os.rename(c + "/d1/a", c + "/d1/a2")
    os.rename(c + "/d1/b", c + "/d2/b2")
    os.rename(c + "/d1/c", c + "/d2/c")
    fails(errno.EEXIST, rename2, c + "/d1/d", c + "/d2/d", NOREPLACE)
    rename2(c + "/d1/d", c + "/d2/new", NOREPLACE)
    rename2(c + "/d1/e", c + "/d2/e", EXCHANGE)
    fails(errno.ENOENT, rename2, c + "/d1/f", c + "/d2/nothing", EXCHANGE)
    fails(errno.ENOENT, os.rename, c + "/d1/a", c + "/d1/x")
    fails(errno.ENOTDIR, os.rename, c + "/d1", c + "/d2/a")
    fails(errno.EISDIR, os.rename, c + "/d2/a", c + "/d1")
    fails(errno.EEXIST if NATIVE else errno.ENOTEMPTY, os.rename, c + "/d1", c + "/d2")  # XFS has that word for it
    fails(errno.EINVAL, os.rename, c + "/d1", c + "/d1/below")

    def check():
        assert sorted(os.listdir(c + "/d1")) == ["a2", "e", "f", "g"], os.listdir(c + "/d1")
        assert sorted(os.listdir(c + "/d2")) == ["a", "b", "b2", "c", "d", "e", "f", "g", "new"], os.listdir(c + "/d2")

    def content():
        for p, k in (("d1/a2", "d1a"), ("d2/b2", "d1b"), ("d2/c", "d1c"), ("d2/new", "d1d"), ("d1/e", "d2e"), ("d2/e", "d1e"),
                     ("d2/d", "d2d"), ("d1/f", "d1f")):
            assert get(f"{c}/{p}") == data[k], p
    check()
    cold(c + "/d2/b2")
    assert get(c + "/d1/a2") == data["d1a"]
    yield
    check()
    cold(c + "/d2/b2")
    assert get(c + "/d2/b2") == data["d1b"]
    yield
    check()
    content()


@case("a renamed directory: what is below still fills, listed before or not, also after a restart")
def _(o, c):
    data = {}
    for d in ("listed", "unlisted", "moved-into", "thrice"):
        os.makedirs(f"{o}/{d}/sub/subsub")
        for p in ("f", "sub/g", "sub/subsub/h"):
            data[d + p] = put(f"{o}/{d}/{p}", 5000 + len(data))
    yield
    os.listdir(c + "/listed/sub")
    os.rename(c + "/listed", c + "/A")
    os.rename(c + "/unlisted", c + "/moved-into/sub/B")
    os.rename(c + "/thrice", c + "/x")
    os.mkdir(c + "/thrice")
    os.rename(c + "/x", c + "/thrice/y")
    os.rename(c + "/thrice/y/sub", c + "/thrice/sub")
    assert get(c + "/A/sub/g") == data["listedsub/g"]
    yield
    assert sorted(os.listdir(c)) == ["A", "moved-into", "thrice"]
    assert get(c + "/A/sub/subsub/h") == data["listedsub/subsub/h"]
    assert get(c + "/A/f") == data["listedf"]
    assert get(c + "/moved-into/sub/B/sub/g") == data["unlistedsub/g"]
    yield
    assert get(c + "/moved-into/sub/B/f") == data["unlistedf"]
    assert get(c + "/moved-into/sub/B/sub/subsub/h") == data["unlistedsub/subsub/h"]
    assert get(c + "/moved-into/f") == data["moved-intof"]
    assert os.listdir(c + "/thrice/y") == ["f"]
    assert get(c + "/thrice/sub/subsub/h") == data["thricesub/subsub/h"]
    assert get(c + "/thrice/y/f") == data["thricef"]


@case("hard links to a cold file: one content, right counts, also after a restart")
def _(o, c):
    data = put(o + "/f", 50_000)
    put(o + "/w", 50_000)
    os.mkdir(o + "/d")
    put(o + "/d/two", 100)
    os.mkdir(o + "/later")
    os.link(o + "/d/two", o + "/later/names")
    yield
    os.unlink(c + "/d/two")  # before anybody has looked where its other name is
    assert os.stat(c + "/later/names").st_nlink == 1
    os.link(c + "/f", c + "/d/g")
    os.link(c + "/d/g", c + "/h")
    cold(c + "/h")
    assert os.stat(c + "/f").st_nlink == 3
    os.unlink(c + "/f")
    assert os.stat(c + "/h").st_nlink == 2
    fails(errno.EEXIST, os.link, c + "/h", c + "/d/g")
    fails(errno.EPERM, os.link, c + "/d", c + "/e")
    os.link(c + "/w", c + "/w2")
    with open(c + "/w2", "r+b") as f:
        f.seek(1000)
        f.write(b"written")
    assert get(c + "/w")[1000:1007] == b"written"
    yield
    assert not os.path.lexists(c + "/f")
    assert os.stat(c + "/h").st_nlink == 2
    cold(c + "/h")
    assert get(c + "/d/g") == data
    assert get(c + "/h") == data
    assert os.stat(c + "/h").st_ino == os.stat(c + "/d/g").st_ino
    assert get(c + "/w")[1000:1007] == b"written" and os.stat(c + "/w").st_nlink == 2


@case("an open cold file that is unlinked, or replaced by rename, can be read to its end")
def _(o, c):
    a, b, d = put(o + "/a", 3_000_000), put(o + "/b", 2_000_000), put(o + "/d", 100_000)
    put(o + "/over", 10)
    os.mkdir(o + "/dir")
    yield
    fa, fb, fd = fd_of(c + "/a"), fd_of(c + "/b"), fd_of(c + "/d", os.O_RDWR)
    os.unlink(c + "/a")
    os.rename(c + "/over", c + "/b")
    os.unlink(c + "/d")
    assert os.fstat(fa).st_nlink == 0
    rng = random.Random(3)
    for _ in range(20):
        off = rng.randrange(3_000_000)
        assert os.pread(fa, 50_000, off) == a[off:off + 50_000]
    with open(fa, "rb") as f:
        assert f.read() == a
    assert os.pread(fb, 3_000_000, 0) == b
    os.pwrite(fd, b"unseen", 50_000)
    assert os.pread(fd, 200_000, 0) == d[:50_000] + b"unseen" + d[50_006:]
    os.close(fb)
    os.close(fd)
    dfd = fd_of(c + "/dir")
    os.rmdir(c + "/dir")
    assert os.listdir(dfd) == []
    os.close(dfd)
    assert not os.path.lexists(c + "/a")
    yield
    assert sorted(os.listdir(c)) == ["b"], os.listdir(c)


@case("O_TMPFILE, and a name for it")
def _(o, c):
    put(o + "/f", 10)
    yield
    fd = fd_of(c, os.O_TMPFILE | os.O_RDWR, 0o640)
    os.write(fd, b"without a name")
    assert os.fstat(fd).st_nlink == 0
    assert os.listdir(c) == ["f"]
    call(libc.linkat(AT_FDCWD, f"/proc/self/fd/{fd}".encode(), AT_FDCWD, os.fsencode(c + "/named"), 0x400))  # AT_SYMLINK_FOLLOW
    assert stat.S_IMODE(os.stat(c + "/named").st_mode) == 0o640
    assert get(c + "/named") == b"without a name"
    os.write(fd, b", before")
    os.close(fd)
    os.close(fd_of(c, os.O_TMPFILE | os.O_WRONLY))
    yield
    assert sorted(os.listdir(c)) == ["f", "named"]
    assert get(c + "/named") == b"without a name, before"


@case("mkdir, rmdir, symlink, mknod")
def _(o, c):
    os.makedirs(o + "/full/sub")
    put(o + "/full/f", 10)
    os.mkdir(o + "/empty")
    os.symlink("full", o + "/link")
    put(o + "/file", 1)
    yield
    fails(errno.ENOTEMPTY, os.rmdir, c + "/full")
    fails(errno.ENOTDIR, os.rmdir, c + "/file")
    fails(errno.EISDIR, os.unlink, c + "/full")
    fails(errno.EEXIST, os.mkdir, c + "/full")
    fails(errno.EEXIST, os.symlink, "x", c + "/link")
    fails(errno.EEXIST, os.open, c + "/file", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    fails(errno.ENOTDIR, os.open, c + "/file/x", os.O_RDONLY)
    fails(errno.ENOTDIR, os.open, c + "/file", os.O_DIRECTORY)
    fails(errno.ELOOP, os.open, c + "/link", os.O_NOFOLLOW)
    fails(errno.ENOENT, os.open, c + "/none", os.O_RDONLY)
    fails(errno.ENAMETOOLONG, os.open, c + "/" + "n" * 256, os.O_WRONLY | os.O_CREAT)
    os.close(fd_of(c + "/" + "n" * 255, os.O_WRONLY | os.O_CREAT))
    os.rmdir(c + "/empty")
    os.mkdir(c + "/empty", 0o700)
    os.mkdir(c + "/new")
    os.mkdir(c + "/new/below")
    with open(c + "/new/below/f", "wb") as f:
        f.write(b"content")
    os.symlink("below/f", c + "/new/link")
    target = "x" * (1023 if NATIVE else 4095)  # XFS has no longer ones
    os.symlink(target, c + "/long")
    os.mkfifo(c + "/fifo", 0o640)
    s = socket.socket(socket.AF_UNIX)
    os.chdir(c)
    s.bind("sock")
    os.chdir("/")
    s.close()
    assert get(c + "/new/link") == b"content"
    assert os.readlink(c + "/long") == target
    # A fifo works as one.
    r, w = os.open(c + "/fifo", os.O_RDONLY | os.O_NONBLOCK), os.open(c + "/fifo", os.O_WRONLY)
    os.write(w, b"through")
    assert os.read(r, 100) == b"through"
    os.close(r)
    os.close(w)
    yield
    assert sorted(os.listdir(c)) == sorted(["full", "empty", "link", "file", "new", "long", "fifo", "sock", "n" * 255])
    assert stat.S_IMODE(os.stat(c + "/empty").st_mode) == 0o700 and os.listdir(c + "/empty") == []
    assert get(c + "/new/link") == b"content"
    assert os.readlink(c + "/long") == target
    assert stat.S_ISFIFO(os.stat(c + "/fifo").st_mode) and stat.S_IMODE(os.stat(c + "/fifo").st_mode) == 0o640
    assert stat.S_ISSOCK(os.stat(c + "/sock").st_mode)


@case("modes of what is made: umask, set-gid directories")
def _(o, c):
    os.mkdir(o + "/sgid")
    if ROOT:
        os.chown(o + "/sgid", 0, 4321)
    os.chmod(o + "/sgid", 0o2775)
    yield
    old = os.umask(0o027)
    try:
        for top in (c + "/sgid", T + "/model-sgid"):
            if top != c + "/sgid":
                os.mkdir(top)
                if ROOT:
                    os.chown(top, 0, 4321)
                os.chmod(top, 0o2775)
            os.mkdir(top + "/d", 0o777)
            os.close(fd_of(top + "/f", os.O_CREAT | os.O_WRONLY, 0o666))
            os.close(fd_of(top + "/x", os.O_CREAT | os.O_WRONLY, 0o4755))
            os.mkfifo(top + "/p", 0o666)
    finally:
        os.umask(old)

    def facts(top):
        return [(n, oct(st.st_mode), st.st_uid, st.st_gid) for n in sorted(os.listdir(top)) for st in (os.lstat(top + "/" + n),)]
    assert facts(c + "/sgid") == facts(T + "/model-sgid"), (facts(c + "/sgid"), facts(T + "/model-sgid"))
    yield
    assert facts(c + "/sgid") == facts(T + "/model-sgid"), (facts(c + "/sgid"), facts(T + "/model-sgid"))


@case("what was deleted stays deleted, over restarts")
def _(o, c):
    for d in ("gone", "gone/sub", "emptied", "again", "never-listed", "never-listed/sub"):
        os.mkdir(f"{o}/{d}")
    for p in ("f", "gone/f", "gone/sub/f", "emptied/f", "emptied/g", "again/f", "never-listed/f", "never-listed/sub/f"):
        put(f"{o}/{p}", 100)
    os.symlink("f", o + "/link")
    yield
    os.unlink(c + "/f")
    os.unlink(c + "/link")
    shutil.rmtree(c + "/gone")
    os.unlink(c + "/emptied/f")
    os.unlink(c + "/emptied/g")
    os.unlink(c + "/again/f")
    with open(c + "/again/f", "wb") as f:
        f.write(b"mine")
    shutil.rmtree(c + "/never-listed")
    os.mkdir(c + "/never-listed")

    def check():
        assert sorted(os.listdir(c)) == ["again", "emptied", "never-listed"], os.listdir(c)
        assert os.listdir(c + "/emptied") == [] and os.listdir(c + "/never-listed") == []
        assert get(c + "/again/f") == b"mine"
        fails(errno.ENOENT, os.stat, c + "/f")
    check()
    yield
    check()
    os.rmdir(c + "/emptied")
    os.mkdir(c + "/emptied")
    yield
    check()


@case("readdir: telldir and seekdir, deleting while reading, thousands of names")
def _(o, c):
    names = sorted(f"name-{i:05}" for i in range(3000))
    for n in names:
        os.close(os.open(f"{o}/{n}", os.O_CREAT | os.O_WRONLY))
    yield
    libc.opendir.restype = ctypes.c_void_p
    libc.readdir.restype = ctypes.c_void_p
    libc.readdir.argtypes = libc.rewinddir.argtypes = libc.telldir.argtypes = libc.closedir.argtypes = [ctypes.c_void_p]
    libc.telldir.restype = ctypes.c_long
    libc.seekdir.argtypes = [ctypes.c_void_p, ctypes.c_long]

    def entry(d):
        e = libc.readdir(d)
        return ctypes.string_at(e + 19).decode() if e else None
    d = libc.opendir(os.fsencode(c))
    assert d
    seq, where = [], []
    while True:
        where.append(libc.telldir(d))
        n = entry(d)
        if n is None:
            break
        seq.append(n)
    assert sorted(seq) == sorted(names + [".", ".."])
    for i in (2500, 3, 1700, 0):
        libc.seekdir(d, where[i])
        assert entry(d) == seq[i], i
    libc.rewinddir(d)
    seen = []
    while (n := entry(d)) is not None:
        seen.append(n)
        if n not in (".", ".."):
            os.unlink(f"{c}/{n}")
    libc.closedir(d)
    assert sorted(seen) == sorted(names + [".", ".."])
    assert os.listdir(c) == []


# ---- attributes ----

@case("chmod, chown, utimens on cold objects, in ns; also after a restart")
def _(o, c):
    data = put(o + "/f", 30_000)
    put(o + "/touched", 30_000)
    os.mkdir(o + "/d")
    os.symlink("f", o + "/l")
    yield
    for p in (c + "/f", c + "/d"):
        os.utime(p, ns=(1_000_000_000_123_456_789, -1_234_567_891))
        os.chmod(p, 0o2510)
        if ROOT:
            os.chown(p, 111, 222)
            os.chmod(p, 0o2510)
    os.utime(c + "/l", ns=(5, 7), follow_symlinks=False)
    if ROOT:
        os.chown(c + "/l", 5, 6, follow_symlinks=False)
    before = time.time_ns() - 10_000_000_000
    os.utime(c + "/touched")
    assert os.stat(c + "/touched").st_mtime_ns >= before
    cold(c + "/f")

    def check():
        for p in (c + "/f", c + "/d"):
            st = os.stat(p)
            assert (st.st_mtime_ns, stat.S_IMODE(st.st_mode)) == (-1_234_567_891, 0o2510), st
            assert not ROOT or (st.st_uid, st.st_gid) == (111, 222), st
        st = os.lstat(c + "/l")
        assert st.st_mtime_ns == 7 and (not ROOT or (st.st_uid, st.st_gid) == (5, 6)), st
        assert os.stat(c + "/touched").st_mtime_ns >= before
    check()
    yield
    check()
    if ROOT:
        assert get(c + "/f") == data
    else:
        os.chmod(c + "/f", 0o600)
        assert get(c + "/f") == data
        os.chmod(c + "/f", 0o2510)
    os.listdir(c + "/d")
    check()
    if ROOT:
        slt.sluice("evict", c + "/f")
        if NATIVE:  # times tell what is changed here; one who sets them has changed it
            assert slt.state(c + "/f")["state"] == "full"
        else:
            cold(c + "/f")
        check()
        assert get(c + "/f") == data
    check()


@case("writing takes set-uid away as elsewhere")
def _(o, c):
    put(o + "/f", 100, 0o6755)
    put(o + "/g", 100, 0o6755)
    yield
    if ROOT:
        for n in "fg":
            os.chown(c + "/" + n, 65534, 65534)
            os.chmod(c + "/" + n, 0o6777)
        os.chmod(c, 0o777)
        # Not by root: by whoever may write. The mount is root's, so this process becomes them.
    shutil.copytree(c, T + "/setuid")
    for n in "fg":
        shutil.copystat(f"{c}/{n}", f"{T}/setuid/{n}")

    def write(top):
        with open(top + "/f", "r+b") as f:
            f.write(b"x")
        os.truncate(top + "/g", 10)
        return [oct(os.stat(top + "/" + n).st_mode) for n in "fg"]
    assert write(c) == write(T + "/setuid")


def xattrs(path):
    """Without the record of a native clone, which root sees. As in every filesystem, it is root's to leave alone."""
    return sorted(n for n in os.listxattr(path) if not (NATIVE and n.startswith("trusted.sluice")))


@case("user xattrs: the origin's are shown; set, replaced, removed here; also after a restart")
def _(o, c):
    put(o + "/f", 30_000)
    put(o + "/g", 10)
    put(o + "/later", 10)
    os.mkdir(o + "/d")
    big = bytes_of(9, 1500)
    for p in (o + "/f", o + "/d", o + "/later"):
        os.setxattr(p, "user.one", b"1")
        os.setxattr(p, "user.big", big)
        os.setxattr(p, "user.empty", b"")
    yield
    for p in (c + "/f", c + "/d"):
        assert xattrs(p) == ["user.big", "user.empty", "user.one"], xattrs(p)
        assert os.getxattr(p, "user.big") == big and os.getxattr(p, "user.empty") == b""
    cold(c + "/f")
    f = c + "/f"
    fails(errno.ENODATA, os.getxattr, f, "user.none")
    fails(errno.ENODATA, os.removexattr, f, "user.none")
    fails(errno.ENODATA, os.setxattr, f, "user.none", b"", os.XATTR_REPLACE)
    fails(errno.EEXIST, os.setxattr, f, "user.one", b"", os.XATTR_CREATE)
    buf = ctypes.create_string_buffer(10)
    assert libc.getxattr(os.fsencode(f), b"user.big", buf, 10) < 0 and ctypes.get_errno() == errno.ERANGE
    assert libc.listxattr(os.fsencode(f), buf, 10) < 0 and ctypes.get_errno() == errno.ERANGE
    os.setxattr(f, "user.one", b"one", os.XATTR_REPLACE)
    os.setxattr(f, "user.two", b"2", os.XATTR_CREATE)
    os.removexattr(f, "user.big")
    os.setxattr(c + "/d", "user.two", b"2")
    os.setxattr(c + "/g", "user.g", b"g")
    # The first thing that happens to this one is a change: the origin's must be there all the same.
    os.setxattr(c + "/later", "user.two", b"2")
    # What the store keeps for itself is not shown and cannot be changed.
    for name in () if NATIVE else ("user.sluice", "user.sluice.map", "trusted.sluice"):
        fails(errno.ENODATA, os.getxattr, f, name)
        try:
            os.setxattr(f, name, b"garbage")
        except OSError as e:
            assert e.errno in (errno.EPERM, errno.EOPNOTSUPP)
        else:
            raise AssertionError(f"{name} can be set")
    cold(f)
    for _ in range(2):
        assert xattrs(f) == ["user.empty", "user.one", "user.two"]
        assert os.getxattr(f, "user.one") == b"one"
        assert xattrs(c + "/d") == ["user.big", "user.empty", "user.one", "user.two"]
        assert os.getxattr(c + "/g", "user.g") == b"g"
        assert xattrs(c + "/later") == ["user.big", "user.empty", "user.one", "user.two"]
        yield


ACL = shutil.which("setfacl") and shutil.which("getfacl")


def getfacl(path):
    return [x for x in out("getfacl", "-cpEn", path).decode().split("\n") if x]


@case("POSIX ACLs: the origin's are shown; set here; default ACLs are inherited; also after a restart")
def _(o, c):
    put(o + "/f", 3000, 0o640)
    put(o + "/plain", 10)
    os.mkdir(o + "/d")
    if ACL:
        out("setfacl", "-m", "u:1234:rw,g:5678:r", o + "/f")
        out("setfacl", "-m", "u:1234:rwx,d:u:1234:rw,d:o::-", o + "/d")
    yield
    if not ACL:
        return
    for n in ("f", "d", "plain"):
        assert getfacl(f"{c}/{n}") == getfacl(f"{o}/{n}"), (n, getfacl(f"{c}/{n}"), getfacl(f"{o}/{n}"))
        assert os.stat(f"{c}/{n}").st_mode == os.stat(f"{o}/{n}").st_mode
    cold(c + "/f")
    shutil.copytree(o, T + "/acl-model")
    out("setfacl", "-m", "u:1234:rwx,d:u:1234:rw,d:o::-", T + "/acl-model/d")
    for top in (c, T + "/acl-model"):
        os.close(fd_of(top + "/d/new", os.O_CREAT | os.O_WRONLY, 0o666))
        os.mkdir(top + "/d/newdir", 0o777)
        out("setfacl", "-m", "u:99:x", top + "/plain")
        out("setfacl", "-b", top + "/f")
        os.chmod(top + "/plain", 0o604)

    def check():
        for n in ("f", "plain", "d", "d/new", "d/newdir"):
            a, b = getfacl(f"{c}/{n}"), getfacl(f"{T}/acl-model/{n}")
            assert a == b, (n, a, b)
            a, b = oct(os.stat(f"{c}/{n}").st_mode), oct(os.stat(f"{T}/acl-model/{n}").st_mode)
            assert a == b, (n, a, b)
    check()
    yield
    check()


# ---- changing content ----

def change(what, f):
    """A change of a cold file, compared with the same change of a copy of it; it must still be so after a restart and a crash."""
    @case(what)
    def _(o, c):
        put(o + "/f", 200_000)
        put_sparse(o + "/s")
        put(o + "/small", 5)
        names = ("f", "s", "small")
        yield
        os.mkdir(T + "/model")
        for n in names:
            shutil.copyfile(f"{o}/{n}", f"{T}/model/{n}")
            cold(f"{c}/{n}")
        results = [[_result(f, f"{top}/{n}") for n in names] for top in (c, T + "/model")]
        try:
            assert results[0] == results[1], results
            want = {n: get(f"{T}/model/{n}") for n in names}

            def check():
                for n in names:
                    assert get(f"{c}/{n}") == want[n], n
                    assert os.stat(f"{c}/{n}").st_size == len(want[n]), n
            check()
        finally:
            shutil.rmtree(T + "/model")
        yield
        check()
        yield
        check()


def _result(f, path):
    try:
        return f(path)
    except OSError as e:
        return errno.errorcode[e.errno]


def _write_at(off, data):
    def f(path):
        fd = fd_of(path, os.O_RDWR)
        n = os.pwrite(fd, data, off)
        back = os.pread(fd, len(data) + 20, max(0, off - 10))
        os.close(fd)
        return n, back
    return f


def _open_write(flags, data):
    def f(path):
        fd = fd_of(path, flags)
        n = os.write(fd, data)
        os.fsync(fd)
        size = os.fstat(fd).st_size
        os.close(fd)
        return n, size
    return f


def _with_fd(f):
    def g(path):
        fd = fd_of(path, os.O_RDWR)
        try:
            r = f(fd)
            return r, os.fstat(fd).st_size
        finally:
            os.close(fd)
    return g


change("write in the middle of a cold file", _write_at(100_001, b"in the middle"))
change("write at the beginning", _write_at(0, bytes_of(5, 70_000)))
change("write far beyond the end", _write_at(10_000_000, b"far away"))
change("append", _open_write(os.O_WRONLY | os.O_APPEND, b"at the end"))
change("open with O_TRUNC", _open_write(os.O_WRONLY | os.O_TRUNC, b"new"))
change("open with O_TRUNC and write nothing", lambda p: os.close(fd_of(p, os.O_WRONLY | os.O_TRUNC)))
change("open with O_CREAT and write", _open_write(os.O_RDWR | os.O_CREAT, b"over the first bytes"))
change("truncate up", lambda p: os.truncate(p, 300_001))
change("truncate down", lambda p: os.truncate(p, 70_003))
change("truncate to nothing", lambda p: os.truncate(p, 0))
change("truncate to the same size", lambda p: os.truncate(p, os.stat(p).st_size))
change("truncate down, then up", lambda p: (os.truncate(p, 1000), os.truncate(p, 150_000)) and None)
change("ftruncate", _with_fd(lambda fd: os.ftruncate(fd, 100)))
change("fallocate", _with_fd(lambda fd: fallocate(fd, 0, 150_000, 200_000)))
change("fallocate, size kept", _with_fd(lambda fd: fallocate(fd, KEEP_SIZE, 150_000, 200_000)))
change("fallocate, a hole punched", _with_fd(lambda fd: fallocate(fd, KEEP_SIZE | PUNCH_HOLE, 4096, 50_000)))
change("fallocate, a range zeroed", _with_fd(lambda fd: fallocate(fd, ZERO_RANGE, 150_000, 100_000)))
change("two writers that append in turn", lambda p: _writers(p))
change("O_DIRECT write", lambda p: _direct(p))


def _writers(path):
    fds = [fd_of(path, os.O_WRONLY | os.O_APPEND) for _ in range(2)]
    for i in range(20):
        os.write(fds[i % 2], b"%d by %d\n" % (i, i % 2))
    for fd in fds:
        os.close(fd)


def _direct(path):
    with mmap.mmap(-1, 8192) as m:
        m[:] = b"d" * 8192
        fd = fd_of(path, os.O_RDWR | os.O_DIRECT)
        n = os.pwritev(fd, [m], 65536)
        os.close(fd)
    return n


@case("a write marks modified, a read does not; evict refuses; the origin's later content does not come")
def _(o, c):
    put(o + "/r", 1000)
    put(o + "/w", 1000)
    yield
    get(c + "/r")
    with open(c + "/w", "ab") as f:
        f.write(b"more")
    assert slt.state(c + "/r")["flags"] == [] and slt.state(c + "/w")["flags"] == ["modified"]
    slt.sluice("evict", c)
    assert slt.state(c + "/r")["state"] == "cold" and slt.state(c + "/w")["state"] == "full"
    assert get(c + "/w")[-4:] == b"more" and os.stat(c + "/w").st_size == 1004


@case("mtime: kept by reading and filling, moved by writing")
def _(o, c):
    for n in "abc":
        put(f"{o}/{n}", 200_000)
        os.utime(f"{o}/{n}", ns=(10**18, 10**18 + 111))
    os.mkdir(o + "/d")
    os.utime(o + "/d", ns=(10**18, 10**18 + 222))
    yield
    get(c + "/a")
    fd = fd_of(c + "/a")
    os.fsync(fd)
    os.close(fd)
    os.listdir(c + "/d")
    assert os.stat(c + "/a").st_mtime_ns == 10**18 + 111 and os.stat(c + "/d").st_mtime_ns == 10**18 + 222
    now = time.time_ns() - 5_000_000_000
    with open(c + "/b", "r+b") as f:
        f.write(b"x")
    os.truncate(c + "/c", 5)
    os.mkdir(c + "/d/new")
    for n in ("b", "c", "d"):
        assert os.stat(f"{c}/{n}").st_mtime_ns > now, n
    assert os.stat(c + "/d/new").st_mtime_ns > now
    with open(c + "/d2", "wb") as f:
        f.write(b"x")
    assert os.stat(c + "/d2").st_mtime_ns > now
    after = {n: os.stat(f"{c}/{n}").st_mtime_ns for n in ("a", "b", "c", "d", "d2")}
    yield
    assert {n: os.stat(f"{c}/{n}").st_mtime_ns for n in after} == after


@case("statfs tells of the store's filesystem")
def _(o, c):
    put(o + "/f", 1)
    yield
    if NATIVE:  # the store's filesystem is an image, and what statfs tells of
        assert b"xfs" in out("stat", "-f", "-c", "%T", c)
        a, b = os.statvfs(c), os.stat(slt.status(c, "--brief")["store"] + "/image")
        assert 0 < a.f_blocks * a.f_frsize <= b.st_size + (256 << 20), (a, b)
        return
    a, b = os.statvfs(c), os.statvfs(os.path.dirname(slt.status(c, "--brief")["store"]))
    assert (a.f_frsize, a.f_blocks, a.f_namemax) == (b.f_frsize, b.f_blocks, b.f_namemax), (a, b)
    assert out("stat", "-f", "-c", "%T", c) == b"fuseblk\n" or b"fuse" in out("stat", "-f", "-c", "%T", c)


@case("sed -i, install, an editor's way of saving, git")
def _(o, c):
    with open(o + "/text", "w", encoding="ascii") as f:
        f.write("one\ntwo\n")
    with open(o + "/edited", "w", encoding="ascii") as f:
        f.write("before\n")
    yield
    out("sed", "-i", "s/two/three/", c + "/text")
    out("install", "-m", "755", c + "/text", c + "/installed")
    os.link(c + "/edited", c + "/edited~")
    with open(c + "/edited.tmp", "w", encoding="ascii") as f:
        f.write("after\n")
        f.flush()
        os.fsync(f.fileno())
    os.rename(c + "/edited.tmp", c + "/edited")

    def check():
        assert get(c + "/text") == get(c + "/installed") == b"one\nthree\n"
        assert get(c + "/edited") == b"after\n" and get(c + "/edited~") == b"before\n"
    check()
    yield
    check()


# ---- the whole ----

def test():
    os.makedirs(T + "/o")
    os.chmod(T + "/o", 0o755)
    running = []
    for i, (what, f) in enumerate(CASES):
        o, c = f"{T}/o/{i:03}", f"{T}/c/{i:03}"
        os.mkdir(o)
        running.append((what, f(o, c)))
        next(running[-1][1])
    before = checksum(T + "/o")
    origin = slt.serve("sock", T + "/o")[0] if ROOT else T + "/o"
    slt.clone(origin, T + "/c")
    for again in ("", " (stopped and started)", " (killed and started)"):
        if again:
            if "killed" in again:
                slt.kill_service(T + "/c")
            else:
                slt.sluice("stop", T + "/c")
            slt.sluice("start", T + "/c")
        still = []
        for what, g in running:
            more = True
            with slt.point(what + again):
                try:
                    next(g)
                except StopIteration:
                    more = False
                except BaseException:
                    more = False
                    raise
            if more:
                still.append((what, g))
        running = still
    slt.is_(checksum(T + "/o"), before, "the origin is as it was")
    with slt.point("verify finds nothing wrong"):
        slt.sluice("verify", T + "/c")


slt.run(test, also_as_user=True)
