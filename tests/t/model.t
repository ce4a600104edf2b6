#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Random file operations on a clone and on a plain copy of its origin: if this fails, some sequence of operations has another
result on a clone than on an ordinary directory.

SEED=… repeats a run, STEPS=… makes it longer (default 3000; with a sanitizer 1500)."""

import collections
import ctypes
import errno
import hashlib
import mmap
import os
import random
import stat
import subprocess
import sys
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tools"))
import slt  # noqa: E402
from slt import NATIVE, ROOT, T, is_, note, ok, out  # noqa: E402

O, C, M = T + "/o", T + "/c", T + "/m"
NAMES = ["a", "b", "c", "d", "e", "f", "g", "with space", "new\nline", "\u00fc", "\udcff\udcfe", "-x", "n" * 255]
XATTRS = ["user.a", "user.b", "user.long"]
START = time.time_ns() - 2_000_000_000
libc = ctypes.CDLL(None, use_errno=True)


class Differ(Exception):
    pass


def call(r):
    if r < 0:
        e = ctypes.get_errno()
        raise OSError(e, os.strerror(e))
    return r


def make_origin(rng):
    def fill(path, depth):
        os.mkdir(path)
        for name in rng.sample(NAMES, rng.randrange(2, 9)):
            p = os.path.join(path, name)
            kind = rng.random()
            if kind < 0.3 and depth < 4:
                fill(p, depth + 1)
            elif kind < 0.4:
                os.symlink(rng.choice(NAMES), p)
            elif kind < 0.5 and made:
                os.link(rng.choice(made), p)
            else:
                size = rng.choice((0, 1, 100, 4096, 65536, 65537, rng.randrange(300_000), rng.randrange(2_000_000)))
                with open(p, "wb") as f:
                    if rng.random() < 0.2:
                        f.truncate(size + 100_000)
                        f.seek(rng.randrange(50_000))
                    f.write(rng.randbytes(size))
                made.append(p)
                if rng.random() < 0.2:
                    os.setxattr(p, rng.choice(XATTRS[:2]), rng.randbytes(20))
                os.chmod(p, rng.choice((0o644, 0o600, 0o444, 0o755)))
            ns = rng.randrange(-10**17, 15 * 10**17)
            os.utime(p, ns=(ns, ns), follow_symlinks=False)

    made = []
    fill(O, 0)
    for i in range(40):
        with open(f"{O}/sibling {i}", "wb") as f:
            f.write(rng.randbytes(rng.randrange(5000)))


def checksum(top):
    h = hashlib.sha256()
    for d, dirs, files in os.walk(os.fsencode(top)):
        dirs.sort()
        for n in sorted(files):
            p = os.path.join(d, n)
            st = os.lstat(p)
            h.update(repr((p, st.st_mode, st.st_mtime_ns, st.st_nlink, st.st_size)).encode())
            if stat.S_ISREG(st.st_mode):
                with open(p, "rb") as f:
                    h.update(f.read())
    return h.hexdigest()


def xattrs(path, **kw):
    """Without the record of a native clone, which root sees."""
    return sorted(x for x in os.listxattr(path, **kw) if not (NATIVE and x.startswith("trusted.sluice")))


class Pair:
    """The clone and the model, and what is open in both."""

    def __init__(self, rng):
        self.rng, self.fds, self.count, self.comparing = rng, [], collections.Counter(), False
        self.log = collections.deque(maxlen=int(os.environ.get("LOG", 25)))

    # ---- choosing ----

    def directory(self):
        path = ""
        while self.rng.random() < 0.65:
            try:
                below = sorted(e.name for e in os.scandir(os.path.join(M, path)) if e.is_dir(follow_symlinks=False))
            except OSError:
                break
            if not below:
                break
            path = os.path.join(path, self.rng.choice(below))
        return path

    def path(self, existing=0.85):
        d = self.directory()
        if self.rng.random() < existing:
            try:
                names = sorted(os.listdir(os.path.join(M, d)))
            except OSError:
                names = []
            if names:
                return os.path.join(d, self.rng.choice(names))
        return os.path.join(d, self.rng.choice(NAMES))

    def data(self):
        return self.rng.randbytes(self.rng.choice((1, 10, 4096, self.rng.randrange(1, 200_000))))

    def offset(self):
        return self.rng.choice((0, 1, 4096, 65536, self.rng.randrange(400_000), self.rng.randrange(3_000_000)))

    # ---- doing ----

    def both(self, what, f, *shown):
        """f(top) on both; the same result or the same error."""
        if self.comparing:
            self.log.pop()
        line = f"{what} {' '.join(repr(s) if not isinstance(s, bytes) else f'<{len(s)} bytes>' for s in shown)}"
        self.log.append(line.replace("n" * 255, "n…"))
        self.count[what] += 1
        results = []
        for top in (C, M):
            try:
                results.append(("ok", f(top)))
            except OSError as e:
                # XFS has another word for it than others.
                word = "ENOTEMPTY" if NATIVE and what == "rename" and e.errno == errno.EEXIST else errno.errorcode[e.errno]
                results.append(("error", word))
        if not self.comparing:
            self.log[-1] += f" -> {results[1][1]}" if results[1][0] == "error" else ""
        if results[0] != results[1]:
            def short(r):
                r = repr(r)
                return r if len(r) < 300 else f"{r[:300]}… ({len(r)})"
            a, b = results
            if a[0] == b[0] == "ok" and isinstance(a[1], bytes) and isinstance(b[1], bytes):
                at = next((i for i, (x, y) in enumerate(zip(a[1], b[1])) if x != y), min(len(a[1]), len(b[1])))
                raise Differ(f"content differs: {len(a[1])} bytes in the clone, {len(b[1])} in the model, first at {at}")
            raise Differ(f"clone {short(a)}, model {short(b)}")
        return results[1]

    def facts(self, st):
        m = st.st_mode
        return (oct(m), st.st_size if not stat.S_ISDIR(m) else 0, st.st_nlink if not stat.S_ISDIR(m) else 0, st.st_uid, st.st_gid,
                st.st_mtime_ns if st.st_mtime_ns < START else "new")

    def stat(self, p):
        return self.both("stat", lambda top: self.facts(os.lstat(os.path.join(top, p))), p)

    def read_path(self, p, off, n):
        def f(top):
            fd = os.open(os.path.join(top, p), os.O_RDONLY | os.O_NONBLOCK)
            try:
                return os.pread(fd, n, off)
            finally:
                os.close(fd)
        return self.both("read", f, p, off, n)

    def write_path(self, p, off, data, flags, mode):
        def f(top):
            fd = os.open(os.path.join(top, p), flags | os.O_NONBLOCK, mode)
            try:
                return os.write(fd, data) if flags & os.O_APPEND else os.pwrite(fd, data, off)
            finally:
                os.close(fd)
        return self.both("write", f, p, off, data, flags, oct(mode))

    def open_fd(self, p, flags):
        got = []
        r = self.both("open", lambda top: got.append(os.open(os.path.join(top, p), flags | os.O_NONBLOCK, 0o640)), p, flags)
        if r[0] == "ok":
            if stat.S_ISREG(os.fstat(got[0]).st_mode):
                self.fds.append((got[0], got[1], flags))
            else:
                self.close(got)

    def close(self, pair):
        for fd in pair[:2]:
            os.close(fd)

    def close_all(self):
        for pair in self.fds:
            self.close(pair)
        self.fds = []

    def on_fd(self, what, f, *shown):
        pair = self.rng.choice(self.fds)
        i = iter(pair[:2])
        return self.both(what, lambda top: f(next(i)), pair[0], *shown)

    def compare(self):
        """Everything."""
        todo, links = [""], {}
        self.log.append("")
        self.comparing = True  # of all these only the last is of interest
        while todo:
            d = todo.pop()
            r = self.both("list", lambda top, d=d: sorted((e.name, e.is_dir(follow_symlinks=False), e.is_symlink())
                                                          for e in os.scandir(os.path.join(top, d))), d)
            if r[0] != "ok":
                continue
            for name, is_dir, is_link in r[1]:
                p = os.path.join(d, name)
                self.stat(p)
                if is_dir:
                    todo.append(p)
                elif is_link:
                    self.both("readlink", lambda top, p=p: os.readlink(os.path.join(top, p)), p)
                else:
                    self.read_path(p, 0, 1 << 30)
                    self.both("xattrs", lambda top, p=p: sorted((x, os.getxattr(os.path.join(top, p), x))
                                                                for x in xattrs(os.path.join(top, p))), p)
                if not is_dir:
                    cst, mst = os.lstat(os.path.join(C, p)), os.lstat(os.path.join(M, p))
                    if links.setdefault(mst.st_ino, cst.st_ino) != cst.st_ino:
                        raise Differ(f"{p!r} is another inode than its other name")
        self.comparing = False

    # ---- one step ----

    def step(self):
        rng = self.rng
        x = rng.random()
        if x < 0.18:
            self.read_path(self.path(), self.offset(), rng.choice((1, 4096, 100_000, 3_000_000)))
        elif x < 0.25:
            self.stat(self.path())
        elif x < 0.29:
            d = self.directory()
            self.both("readdir", lambda top: sorted((e.name, e.is_dir(follow_symlinks=False), e.is_symlink())
                                                    for e in os.scandir(os.path.join(top, d))), d)
        elif x < 0.39:
            flags = rng.choice((os.O_WRONLY, os.O_RDWR)) | rng.choice((0, 0, os.O_CREAT, os.O_CREAT | os.O_EXCL)) | \
                rng.choice((0, 0, 0, os.O_APPEND, os.O_TRUNC, os.O_SYNC))
            self.write_path(self.path(0.7), self.offset(), self.data(), flags, rng.choice((0o644, 0o600, 0o666, 0o755)))
        elif x < 0.43:
            n, p = self.offset(), self.path()
            self.both("truncate", lambda top: os.truncate(os.path.join(top, p), n), p, n)
        elif x < 0.50:
            flags = rng.choice((0, 0, 0, 1, 2))
            a, b = self.path(), self.path(0.5)
            self.both("rename", lambda top: call(libc.renameat2(-100, os.fsencode(os.path.join(top, a)), -100,
                                                                os.fsencode(os.path.join(top, b)), flags)), a, b, flags)
        elif x < 0.54:
            a, b = self.path(), self.path(0.2)
            self.both("link", lambda top: os.link(os.path.join(top, a), os.path.join(top, b), follow_symlinks=False), a, b)
        elif x < 0.58:
            p = self.path(0.9)
            self.both("unlink", lambda top: os.unlink(os.path.join(top, p)), p)
        elif x < 0.61:
            p, mode = self.path(0.2), rng.choice((0o755, 0o700, 0o777, 0o2755, 0o1777))
            self.both("mkdir", lambda top: os.mkdir(os.path.join(top, p), mode), p, oct(mode))
        elif x < 0.63:
            p = self.directory() or "none"
            self.both("rmdir", lambda top: os.rmdir(os.path.join(top, p)), p)
        elif x < 0.65:
            p, t = self.path(0.2), rng.choice(NAMES)
            self.both("symlink", lambda top: os.symlink(t, os.path.join(top, p)), t, p)
        elif x < 0.66:
            p = self.path()
            self.both("readlink", lambda top: os.readlink(os.path.join(top, p)), p)
        elif x < 0.69:
            p, mode = self.path(), rng.choice((0o644, 0o600, 0o755, 0o444, 0o4755, 0o700, 0o777))
            if os.path.isdir(os.path.join(M, p)):
                mode |= 0o500 if rng.random() < 0.2 else 0o700
            self.both("chmod", lambda top: os.chmod(os.path.join(top, p), mode), p, oct(mode))
        elif x < 0.72:
            p, ns = self.path(), rng.randrange(-10**18, 15 * 10**17)
            self.both("utime", lambda top: os.utime(os.path.join(top, p), ns=(ns, ns), follow_symlinks=False), p, ns)
        elif x < 0.73 and ROOT:
            p, u, g = self.path(), rng.choice((-1, 0, 5, 1000)), rng.choice((-1, 0, 6, 1000))
            self.both("chown", lambda top: os.lchown(os.path.join(top, p), u, g), p, u, g)
        elif x < 0.77:
            self.xattr()
        elif x < 0.82:
            self.open_fd(self.path(), rng.choice((os.O_RDONLY, os.O_RDWR, os.O_RDWR | os.O_APPEND, os.O_RDONLY | os.O_DIRECTORY)))
            if len(self.fds) > 8:
                self.close(self.fds.pop(rng.randrange(len(self.fds))))
        elif x < 0.94:
            if self.fds:
                self.fd_step()
        elif x < 0.995:
            self.command()
        else:
            self.restart()

    def xattr(self):
        p, name, value = os.path.join(self.path()), self.rng.choice(XATTRS), self.rng.randbytes(self.rng.choice((0, 5, 100, 900)))
        flags = self.rng.choice((0, 0, os.XATTR_CREATE, os.XATTR_REPLACE))
        x = self.rng.random()
        if x < 0.4:
            self.both("setxattr", lambda top: os.setxattr(os.path.join(top, p), name, value, flags, follow_symlinks=False), p, name,
                      value, flags)
        elif x < 0.6:
            self.both("getxattr", lambda top: os.getxattr(os.path.join(top, p), name, follow_symlinks=False), p, name)
        elif x < 0.8:
            self.both("listxattr", lambda top: xattrs(os.path.join(top, p), follow_symlinks=False), p)
        else:
            self.both("removexattr", lambda top: os.removexattr(os.path.join(top, p), name, follow_symlinks=False), p, name)

    def fd_step(self):
        rng, off = self.rng, self.offset()
        x = rng.random()
        if x < 0.35:
            n = rng.choice((1, 4096, 100_000, 3_000_000))
            self.on_fd("pread", lambda fd: os.pread(fd, n, off), off, n)
        elif x < 0.55:
            data = self.data()
            self.on_fd("pwrite", lambda fd: os.pwrite(fd, data, off), data, off)
        elif x < 0.62:
            self.on_fd("ftruncate", lambda fd: os.ftruncate(fd, off), off)
        elif x < 0.70:
            self.on_fd("fstat", lambda fd: self.facts(os.fstat(fd)))
        elif x < 0.75:
            self.on_fd("fsync", os.fsync)
        elif x < 0.82:
            mode, n = rng.choice((0, 1, 3, 16)), rng.randrange(1, 200_000)
            self.on_fd("fallocate", lambda fd: call(libc.fallocate(fd, mode, ctypes.c_long(off), ctypes.c_long(n))), mode, off, n)
        elif x < 0.90:
            data = rng.randbytes(rng.randrange(1, 10_000))

            def write_mapped(fd):
                size = os.fstat(fd).st_size
                if size <= len(data):
                    return None
                with mmap.mmap(fd, 0) as m:
                    at = off % (size - len(data))
                    before = m[at:at + len(data)]
                    m[at:at + len(data)] = data
                    m.flush()
                    return bytes(before)
            pair = rng.choice(self.fds)
            if pair[2] & os.O_ACCMODE == os.O_RDWR:
                i = iter(pair[:2])
                self.both("mmap", lambda top: write_mapped(next(i)), off, data)
        elif x < 0.95 and len(self.fds) > 1:
            a, b = rng.sample(self.fds, 2)
            n, to, i = rng.randrange(1, 300_000), self.offset(), iter(range(2))

            def copy(_):
                k = next(i)
                left, src, dst = n, off, to
                while left:
                    r = os.copy_file_range(a[k], b[k], left, src, dst)
                    if not r:
                        break
                    left, src, dst = left - r, src + r, dst + r
                return n - left
            self.both("copy_file_range", copy, a[0], off, b[0], to, n)
        else:
            self.close(self.fds.pop(rng.randrange(len(self.fds))))

    def command(self):
        """What must not be seen by who uses the clone."""
        rng = self.rng
        cmd = rng.choice(("evict", "evict", "evict", "hydrate", "pin", "unpin"))
        p = os.path.join(C, rng.choice((self.path(1), "")))
        self.log.append(f"sluice {cmd} {p!r}")
        self.count[cmd] += 1
        # It may well be refused (a name that is gone, what the origin has no more); what it did is what the next steps show.
        subprocess.run([slt.SLUICE, cmd, p], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                       check=False, timeout=120)

    def restart(self):
        how = self.rng.choice(("stop", "kill"))
        self.log.append(how)
        self.count[how] += 1
        if how == "kill":
            slt.kill_service(C)
        self.close_all()
        if how == "stop":
            slt.sluice("stop", C)
        slt.sluice("start", C)


def test():
    seed = int(os.environ.get("SEED", random.randrange(1 << 30)))
    steps = int(os.environ.get("STEPS", 1500 if slt.SANITIZED else 3000))
    note(f"SEED={seed} STEPS={steps}")
    rng = random.Random(seed)
    make_origin(rng)
    if NATIVE:  # of the same kind: filesystems differ in when times change, and in errors
        os.mkdir(M)
        out("truncate", "-s", "1G", M + ".img")
        out("mkfs.xfs", "-q", M + ".img")
        out("mount", "-o", "loop", M + ".img", M)
    out("cp", "-a", *([O + "/."] if NATIVE else [O]), M)
    before = checksum(O)
    slt.clone(slt.serve("sock", O)[0] if ROOT else O, C)
    p = Pair(rng)
    at, every = 0, max(1, steps // 6)
    try:
        for at in range(1, steps + 1):
            p.step()
            if at % every == 0:
                ok(True, f"steps {at - every + 1} to {at}")
                if at % (2 * every) == 0:
                    p.compare()
                    ok(True, f"all is the same after step {at}")
        p.restart()
        p.compare()
        ok(True, "all is the same after a restart")
    except Differ as e:
        ok(False, f"step {at} of SEED={seed}", e, *p.log)
    finally:
        p.close_all()
    note(", ".join(f"{n} {c}" for c, n in sorted(p.count.items())))
    is_(checksum(O), before, "the origin is as it was")


slt.run(test, also_as_user=True)
