#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the kernel does that the fanotify gate and the exporter stand on, tried with nothing of ours in between: if this fails, this
kernel does something else, and what was built on it has to be looked at again."""
# asan: no

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import select
import shutil
import signal
import struct
import subprocess
import sys
import threading

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tools"))
import heard  # noqa: E402
import minifuse  # noqa: E402
import slt  # noqa: E402
from slt import ROOT, T, error_of, is_, ok, out  # noqa: E402

libc = ctypes.CDLL(None, use_errno=True)

# fanotify_init(2), fanotify_mark(2)
CLOEXEC, NONBLOCK, PRE_CONTENT, UNLIMITED, FD_ERROR = 0x1, 0x2, 0x8, 0x10, 0x2000
FID, DIR_FID, NAME, TARGET_FID = 0x200, 0x400, 0x800, 0x1000
ADD, MOUNT, FILESYSTEM, EVICTABLE, IGNORE_SURV = 0x1, 0x10, 0x100, 0x200, 0x440
PRE_ACCESS, OPEN_PERM, RENAME, CREATE = 0x100000, 0x10000, 0x10000000, 0x100
ONDIR, ON_CHILD = 0x40000000, 0x08000000
ALLOW, DENY, RANGE = 1, 2, 6
# linux/fs.h
FICLONE, FICLONERANGE, FIEMAP = 0x40049409, 0x4020940d, 0xc020660b
PAGE = mmap.PAGESIZE
SIZE = 64 * PAGE


def check(r, what):
    if r < 0:
        e = ctypes.get_errno()
        raise OSError(e, f"{what}: {os.strerror(e)}")
    return r


class Group:
    """A pre-content group, without threads: who raises events is always another process."""

    def __init__(self, flags=UNLIMITED | FD_ERROR, event_flags=os.O_RDONLY):
        self.fd = check(libc.fanotify_init(PRE_CONTENT | CLOEXEC | NONBLOCK | flags, event_flags | 0o100000), "fanotify_init")

    def mark(self, how, mask, path):
        check(libc.fanotify_mark(self.fd, ADD | how, ctypes.c_uint64(mask), -100, os.fsencode(path)), "fanotify_mark")
        return self

    def read(self):
        """(descriptor, mask, (offset, count) or None) of what has been raised."""
        try:
            buf = os.read(self.fd, 1 << 16)
        except BlockingIOError:
            return []
        return [(fd, mask, next((struct.unpack_from("=QQ", r, 4) for kind, r in records if kind == RANGE), None))
                for mask, fd, _, records in heard.fanotify(buf)]

    def wait(self):
        """The next one, which has to come."""
        assert select.select([self.fd], [], [], 120)[0], "no event"
        one, = self.read()
        return one

    def answer(self, fd, how=ALLOW):
        os.write(self.fd, struct.pack("iI", fd, how))

    def close(self):
        os.close(self.fd)


class Actor:
    """A process that does something to which there may be events. Its end: 0, an errno, or -signal."""

    def __init__(self, act, *closed):
        self.pid = os.fork()
        if self.pid == 0:
            status = 255
            try:
                for fd in closed:
                    os.close(fd)
                act()
                status = 0
            except OSError as e:
                status = e.errno
            finally:
                os._exit(status)
        self.pidfd = os.pidfd_open(self.pid)

    def ended(self):
        assert select.select([self.pidfd], [], [], 120)[0], "it waits for ever"
        os.close(self.pidfd)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def during(g, act, ino=None, before=None, how=ALLOW):
    """((mask, range) of each event about @ino while @act runs in another process, how that ended); @before(fd) runs before an answer."""
    actor, got = Actor(act, g.fd), []
    while True:
        ready = select.select([g.fd, actor.pidfd], [], [], 120)[0]
        assert ready, "it waits for ever"
        for fd, mask, where in g.read():
            if ino in (None, os.fstat(fd).st_ino):
                got.append((mask, where))
            if before:
                before(fd)
            g.answer(fd, how)
            os.close(fd)
        if actor.pidfd in ready:
            return got, actor.ended()


@contextlib.contextmanager
def opened(path, flags=os.O_RDONLY):
    fd = os.open(path, flags, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)


# ---- what is done to a file ----

def using(path, f, flags=os.O_RDONLY):
    def act():
        with opened(path, flags) as fd:
            f(fd)
    return act


def read_direct(fd):
    os.preadv(fd, [mmap.mmap(-1, PAGE)], 2 * PAGE)


def splice(fd):
    r, w = os.pipe()
    os.splice(fd, w, PAGE, offset_src=0)
    os.close(r)


def copy_range(to):
    def f(fd):
        with opened(to, os.O_WRONLY | os.O_CREAT) as t:
            os.copy_file_range(fd, t, PAGE, 0, 0)
    return f


def sendfile(to):
    def f(fd):
        with opened(to, os.O_WRONLY | os.O_CREAT) as t:
            os.sendfile(t, fd, 0, PAGE)
    return f


def clone_to(to):
    def f(fd):
        with opened(to, os.O_WRONLY | os.O_CREAT) as t:
            fcntl.ioctl(t, FICLONE, fd)
    return f


def map_all(fd):
    m = mmap.mmap(fd, SIZE, prot=mmap.PROT_READ)
    assert len(bytes(m)) == SIZE


def fiemap(fd):
    fcntl.ioctl(fd, FIEMAP, struct.pack("=QQLLLL", 0, SIZE, 1, 0, 8, 0) + bytes(8 * 56), True)


def covers(events, start, end):
    return any(m & PRE_ACCESS and r and r[0] <= start and r[0] + r[1] >= end for m, r in events)


class Files:
    """A filesystem of its own, and in it a directory with files."""

    def __init__(self, kind):
        self.kind, self.top = kind, f"{T}/{kind}"
        image = self.top + ".img"
        with open(image, "wb") as f:
            f.truncate(400 << 20)
        out(*{"ext4": ["mkfs.ext4", "-q"], "xfs": ["mkfs.xfs", "-q"], "btrfs": ["mkfs.btrfs", "-q"]}[kind], image)
        os.mkdir(self.top)
        out("mount", "-o", "loop", image, self.top)
        slt._at_end.append(lambda: subprocess.run(["umount", "-R", "-l", self.top], check=False, stderr=subprocess.DEVNULL))  # pylint: disable=protected-access
        self.n, self.reflinks = 0, kind != "ext4"

    def file(self, size=SIZE, data=True):
        """A new one: its path, and its inode's number."""
        self.n += 1
        path = f"{self.top}/f{self.n}"
        with open(path, "wb") as f:
            f.truncate(size)
            if data:
                f.write(b"x" * size)
            os.fsync(f.fileno())
        return path, os.stat(path).st_ino


def raised(fs):
    """What asks, and for which range."""
    p, ino = fs.file()
    tmp, program = fs.top + "/tmp", fs.top + "/program"
    shutil.copy("/bin/true", program)
    g = Group().mark(FILESYSTEM, PRE_ACCESS, fs.top)
    cases = [
        ("read", using(p, lambda fd: os.read(fd, PAGE)), (0, PAGE)),
        ("pread, rounded to pages", using(p, lambda fd: os.pread(fd, 10, PAGE + 100)), (PAGE, 2 * PAGE)),
        ("read with O_DIRECT", using(p, read_direct, os.O_RDONLY | os.O_DIRECT), (2 * PAGE, 3 * PAGE)),
        ("read with RWF_NOWAIT", using(p, lambda fd: os.preadv(fd, [bytearray(PAGE)], 0, os.RWF_NOWAIT)), (0, PAGE)),
        ("sendfile", using(p, sendfile(tmp)), (0, PAGE)),
        ("splice", using(p, splice), (0, PAGE)),
        ("copy_file_range", using(p, copy_range(tmp)), (0, PAGE)),
        ("write", using(p, lambda fd: os.pwrite(fd, b"x", PAGE), os.O_WRONLY), (PAGE, PAGE + 1)),
        ("fallocate", using(p, lambda fd: os.posix_fallocate(fd, 0, PAGE), os.O_WRONLY), (0, PAGE)),
    ]
    for what, act, (start, end) in cases:
        got, status = during(g, act, ino)
        ok(covers(got, start, end) and status == 0, f"{fs.kind}: {what} asks first", got, status)
    got, status = during(g, using(p, map_all), ino)
    ok(len(got) == 1 and covers(got, 0, SIZE) and status == 0, f"{fs.kind}: mmap asks once for all of it, and a page that is touched does not", got)
    is_(during(g, lambda: os.truncate(p, SIZE - PAGE), ino), ([(PRE_ACCESS, (SIZE - PAGE, 0))], 0), f"{fs.kind}: truncate asks for no bytes at the new size")
    got, status = during(g, lambda: os.execv(program, [program]), os.stat(program).st_ino)
    ok(got and status == 0, f"{fs.kind}: execve asks", got, status)
    if fs.reflinks:
        is_(during(g, using(p, clone_to(tmp)), ino), ([(PRE_ACCESS, (0, 0))], 0), f"{fs.kind}: FICLONE asks for offset 0 and count 0, which is all of it")
    g.close()


def not_raised(fs):
    """What asks nobody."""
    p, ino = fs.file()
    other, _ = fs.file()
    sparse, hole = fs.file(data=False)
    g = Group().mark(FILESYSTEM, PRE_ACCESS, fs.top)
    cases = [
        ("open, stat, fsync", using(p, lambda fd: (os.fstat(fd), os.fsync(fd)))),
        ("extended attributes", lambda: (os.setxattr(p, "user.a", b"b"), os.getxattr(p, "user.a"), os.listxattr(p), os.removexattr(p, "user.a"))),
        ("readahead, posix_fadvise", using(p, lambda fd: (libc.readahead(fd, ctypes.c_int64(0), SIZE), os.posix_fadvise(fd, 0, SIZE, os.POSIX_FADV_WILLNEED)))),
        ("link, rename, unlink", lambda: (os.link(p, p + "l"), os.rename(p + "l", p + "m"), os.unlink(p + "m"), os.unlink(other))),
    ]
    for what, act in cases:
        is_(during(g, act, ino), ([], 0), f"{fs.kind}: {what}: nobody is asked")
    # A kernel of the series asks for these, so that the next three are no holes there.
    lifted = slt.kernel_series()
    holes = [("SEEK_DATA and SEEK_HOLE", using(p, lambda fd: (os.lseek(fd, 0, os.SEEK_DATA), os.lseek(fd, 0, os.SEEK_HOLE)))), ("FIEMAP", using(p, fiemap))]
    for what, act in holes:
        got, status = during(g, act, ino)
        ok((not got or lifted) and status == 0, f"{fs.kind}: {what}: nobody is asked, so placeholders have no holes", got, status)
    copies = [("cp", ["cp", sparse, T + "/copy"])] if fs.kind == "ext4" else [("cp --reflink=never", ["cp", "--reflink=never", sparse, T + "/copy"]),
                                                                            ("tar -S", ["tar", "-S", "-cf", T + "/copy", sparse])]
    for what, args in copies:
        got, status = during(g, lambda args=args: os._exit(subprocess.run(args, check=False, stderr=subprocess.DEVNULL).returncode), hole)
        ok((not got or lifted) and status == 0, f"{fs.kind}: {what} copies a sparse file without asking", got, status)
    is_(during(g, lambda: os.close(os.open(p, os.O_WRONLY | os.O_TRUNC)), ino), ([], 0), f"{fs.kind}: open with O_TRUNC: nobody is asked")
    g.close()


def armour(fs):
    """A range that is a reflink is read like any other."""
    cold, _ = fs.file(1 << 20)
    p, ino = fs.file(1 << 20, data=False)
    with opened(cold) as c, opened(p, os.O_WRONLY) as t:
        fcntl.ioctl(t, FICLONERANGE, struct.pack("=qQQQ", c, 0, 1 << 20, 0))
    g = Group().mark(FILESYSTEM, PRE_ACCESS, fs.top)
    got, status = during(g, lambda: os._exit(subprocess.run(["cp", "--reflink=never", p, T + "/copy"], check=False).returncode), ino)
    ok(covers(got, 0, PAGE) and status == 0, f"{fs.kind}: cp of a file whose blocks are a reflink asks before it reads", got)
    g.close()


def past_the_gate(fs):
    """Overlayfs and loop devices: what they read through is not what is marked."""
    p, ino = fs.file(data=False)
    g = Group().mark(FILESYSTEM, PRE_ACCESS, fs.top)
    merged = T + "/merged"
    os.makedirs(merged, exist_ok=True)
    lifted = slt.kernel_series()
    out("mount", "-t", "overlay", "-o", f"lowerdir={fs.top}:{T}/empty", "overlay", merged)
    try:
        got, status = during(g, using(merged + "/" + os.path.basename(p), map_all), ino)
        ok((not [e for e in got if e[0] & PRE_ACCESS] or lifted) and status == 0, f"{fs.kind}: mmap through overlayfs asks nobody", got, status)
        g.mark(FILESYSTEM, OPEN_PERM, fs.top)
        got, _ = during(g, using(merged + "/" + os.path.basename(p), lambda fd: None), ino)
        ok([e for e in got if e[0] & OPEN_PERM], f"{fs.kind}: FAN_OPEN_PERM is raised for the file below, when it is opened through overlayfs", got)
        check(libc.fanotify_mark(g.fd, 2 | FILESYSTEM, ctypes.c_uint64(OPEN_PERM), -100, os.fsencode(fs.top)), "fanotify_mark")
    finally:
        out("umount", merged)
    loop = 'd=$(losetup -r -f --show "$1") && { cmp -n 65536 $d /dev/zero; s=$?; losetup -d $d; exit $s; }'
    got, status = during(g, lambda: os.execv("/bin/bash", ["bash", "-c", loop, "loop", p]), ino)
    ok((not got or lifted) and status == 0, f"{fs.kind}: a loop device on a file that is not here asks nobody", got, status)
    g.close()


def before_the_mark(fs):
    """Descriptors that are older than the mark; a lease says whether there are any."""
    p, ino = fs.file()
    with opened(p) as fd:
        g = Group().mark(FILESYSTEM, PRE_ACCESS, fs.top)
        is_(during(g, lambda: os.pread(fd, PAGE, 0), ino), ([], 0), f"{fs.kind}: a descriptor from before the mark never asks")
        with opened(p, os.O_RDWR) as mine:
            is_(_lease(mine), errno.EAGAIN, f"{fs.kind}: no lease for writing while another descriptor is open")
    with opened(p, os.O_RDWR) as mine:
        is_(_lease(mine), 0, f"{fs.kind}: but when there is none")
    got, _ = during(g, using(p, lambda fd: os.pread(fd, PAGE, 0)), ino)
    ok(covers(got, 0, PAGE), f"{fs.kind}: who opens it later asks")
    r, w = os.pipe()

    def hold():
        with opened(p) as fd:
            m = mmap.mmap(fd, PAGE, prot=mmap.PROT_READ)
        os.write(w, b"m")
        signal.pause()
        m.close()
    actor = Actor(hold, g.fd)
    fd, _, _ = g.wait()
    g.answer(fd)
    os.close(fd)
    os.read(r, 1)
    with opened(p, os.O_RDWR) as mine:
        is_(_lease(mine), errno.EAGAIN, f"{fs.kind}: nor while it is mapped by somebody")
    os.kill(actor.pid, signal.SIGKILL)
    actor.ended()
    os.close(r)
    os.close(w)
    g.close()


def _lease(fd):
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    except OSError as e:
        return e.errno
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return 0


def marks(fs):
    p, ino = fs.file()
    name = os.path.basename(p)
    late, read_only, elsewhere = (f"{T}/{n}" for n in ("late", "ro", "elsewhere"))
    for d in (late, read_only, elsewhere):
        os.makedirs(d, exist_ok=True)
    out("mount", "--bind", fs.top, elsewhere)
    whole, mount = Group().mark(FILESYSTEM, PRE_ACCESS, fs.top), Group().mark(MOUNT, PRE_ACCESS, fs.top)
    out("mount", "--bind", fs.top, late)
    out("mount", "--bind", "-o", "ro", fs.top, read_only)
    out("mount", "-o", "remount,bind,ro", read_only)
    for what, path in (("the mount", fs.top), ("a bind mount", elsewhere), ("one that came later", late), ("a read-only one", read_only)):
        act = using(path + "/" + name, lambda fd: os.read(fd, PAGE))
        for g, kind, hears in ((whole, "filesystem", True), (mount, "mount", path == fs.top)):
            # Both hear of it, and the other one allows.
            got, status = _of_two(g, mount if g is whole else whole, act, ino)
            ok(covers(got, 0, PAGE) == hears and status == 0, f"{fs.kind}: a {kind} mark hears of a read through {what}" if hears else
               f"{fs.kind}: a {kind} mark does not hear of a read through {what}", got, status)
    act = lambda: os.execvp("unshare", ["unshare", "-m", "cat", p])  # noqa: E731
    got, _ = _of_two(whole, mount, _quietly(act), ino)
    ok(covers(got, 0, PAGE), f"{fs.kind}: a filesystem mark hears of another mount namespace", got)
    got, _ = _of_two(mount, whole, _quietly(act), ino)
    is_([e for e in got if e[0] & PRE_ACCESS], [], f"{fs.kind}: a mount mark does not")
    for g in (whole, mount):
        g.close()
    for d in (late, read_only, elsewhere):
        out("umount", d)
    g = Group()
    os.makedirs(fs.top + "/dir", exist_ok=True)
    with open(fs.top + "/dir/f", "wb") as f:
        f.write(b"x" * PAGE)
    g.mark(0, PRE_ACCESS | ON_CHILD, fs.top + "/dir")
    got, _ = during(g, using(fs.top + "/dir/f", lambda fd: os.read(fd, PAGE)))
    ok(covers(got, 0, PAGE), f"{fs.kind}: FAN_EVENT_ON_CHILD on a directory hears of its files", got)
    g.close()
    g = Group().mark(FILESYSTEM, PRE_ACCESS, fs.top)
    g.mark(EVICTABLE | IGNORE_SURV, PRE_ACCESS, p)
    is_(during(g, using(p, lambda fd: (os.pread(fd, PAGE, 0), os.pwrite(fd, b"x", 0), os.pread(fd, PAGE, 0)), os.O_RDWR), ino), ([], 0),
        f"{fs.kind}: with an ignore mark nobody is asked, also after a change")
    g.close()


def _quietly(act):
    def f():
        with opened("/dev/null", os.O_WRONLY) as null:
            os.dup2(null, 1)
        act()
    return f


def _of_two(g, other, act, ino):
    """As during(), where another group allows everything."""
    actor, got = Actor(act, g.fd, other.fd), []
    while True:
        ready = select.select([g.fd, other.fd, actor.pidfd], [], [], 120)[0]
        assert ready, "it waits for ever"
        for x in (g, other):
            for fd, mask, where in x.read():
                if x is g and os.fstat(fd).st_ino == ino:
                    got.append((mask, where))
                x.answer(fd)
                os.close(fd)
        if actor.pidfd in ready:
            return got, actor.ended()


def refused(fs):
    """What a stock kernel does not take. (With the series it does.)"""
    lifted = slt.kernel_series()
    for what, f in (("FAN_PRE_ACCESS with FAN_ONDIR", lambda: Group().mark(FILESYSTEM, PRE_ACCESS | ONDIR, fs.top)),
                    ("FAN_REPORT_FID", lambda: Group(UNLIMITED | FID)), ("FAN_REPORT_DIR_FID", lambda: Group(UNLIMITED | DIR_FID)),
                    ("FAN_REPORT_DFID_NAME", lambda: Group(UNLIMITED | DIR_FID | NAME)),
                    ("FAN_REPORT_DFID_NAME_TARGET", lambda: Group(UNLIMITED | FID | DIR_FID | NAME | TARGET_FID)),
                    ("O_PATH", lambda: Group(event_flags=os.O_PATH))):
        e = error_of(f)
        ok(e == errno.EINVAL or lifted, f"a pre-content group with {what} is EINVAL", e)


def directories(fs):
    d = fs.top + "/listed"
    os.mkdir(d)
    ino = os.stat(d).st_ino
    g = Group().mark(FILESYSTEM, OPEN_PERM | ONDIR, fs.top)
    r, w = os.pipe()
    got, status = during(g, lambda: os.write(w, ",".join(os.listdir(d)).encode()), ino, before=lambda fd: os.mkdir(d + "/made"))
    ok([e for e in got if e[0] & OPEN_PERM] and status == 0, f"{fs.kind}: opendir raises FAN_OPEN_PERM with FAN_ONDIR", got, status)
    is_(os.read(r, 100), b"made", f"{fs.kind}: and what is made before the answer is listed")
    is_(during(g, lambda: (os.stat(d + "/made"), os.access(d + "/made", os.R_OK), os.path.lexists(d + "/none"))), ([], 0),
        f"{fs.kind}: a lookup raises nothing")
    os.close(r)
    os.close(w)
    g.close()


def answers(fs):
    p, ino = fs.file()
    empty, hole = fs.file(data=False)
    act = using(p, lambda fd: os.read(fd, PAGE))
    g = Group().mark(FILESYSTEM, PRE_ACCESS, fs.top)
    for name in ("EPERM", "EIO", "EBUSY", "ETXTBSY", "EAGAIN", "ENOSPC", "EDQUOT"):
        e = getattr(errno, name)
        is_(during(g, act, ino, how=DENY | e << 24)[1], e, f"an access can be refused with {name}")
    for name in ("ENOENT", "EACCES", "ENOMEM", "ETIMEDOUT", "ESTALE"):
        actor = Actor(act, g.fd)
        fd, _, _ = g.wait()
        is_(error_of(lambda fd=fd, name=name: g.answer(fd, DENY | getattr(errno, name) << 24)), errno.EINVAL, f"but not with {name}")
        g.answer(fd, DENY)
        os.close(fd)
        is_(actor.ended(), errno.EPERM, "and who waits goes on waiting, until there is an answer")

    # By its number, whoever writes it.
    actor = Actor(act, g.fd)
    fd, _, _ = g.wait()
    os.close(fd)
    is_(Actor(lambda: g.answer(fd)).ended(), 0, "another process answers, by the number, the descriptor being closed")
    is_(actor.ended(), 0, "and it is let through")

    def stubborn():
        signal.signal(signal.SIGUSR1, lambda *_: None)
        act()
    actor = Actor(stubborn, g.fd)
    fd, _, _ = g.wait()
    os.kill(actor.pid, signal.SIGUSR1)
    g.answer(fd)
    os.close(fd)
    is_(actor.ended(), 0, "who waits is not interrupted by a signal")
    actor = Actor(act, g.fd)
    fd, _, _ = g.wait()
    os.kill(actor.pid, signal.SIGKILL)
    is_(actor.ended(), -signal.SIGKILL, "but killed")
    is_(error_of(lambda: g.answer(fd)), 0, "and an answer to it is no error")
    os.close(fd)

    # A rename while somebody waits.
    actor = Actor(act, g.fd)
    fd, _, _ = g.wait()
    os.rename(p, p + ".renamed")
    is_(os.fstat(fd).st_ino, ino, "a file that somebody waits for can be renamed: it is the descriptor that says which one it is")
    os.rename(p + ".renamed", p)
    g.answer(fd)
    os.close(fd)
    actor.ended()

    # The group in two processes.
    go, end = os.pipe()
    keeper = Actor(lambda: os.read(go, 1), end)
    actor = Actor(act, g.fd)
    fd, _, _ = g.wait()
    os.close(fd)
    again = os.open(f"/proc/{keeper.pid}", os.O_RDONLY | os.O_DIRECTORY)
    pidfd, number = keeper.pidfd, g.fd
    g.close()
    g.fd = check(libc.syscall(438, pidfd, number, 0), "pidfd_getfd")
    is_(error_of(lambda: g.answer(fd)), 0, "while another process has the group open too, who waits goes on waiting")
    is_(actor.ended(), 0, "and is answered by that number")
    os.close(again)
    os.close(end)
    keeper.ended()
    os.close(go)

    r, w = os.pipe()
    got, _ = during(g, using(empty, lambda fd: os.write(w, str(sum(os.read(fd, SIZE))).encode())), hole)
    is_((len(got), os.read(r, 100)), (1, b"0"), "who is let through too early reads zeros, and does not ask again")
    os.close(r)
    os.close(w)
    actor = Actor(act, g.fd)
    fd, _, _ = g.wait()
    os.close(fd)
    g.close()
    is_(actor.ended(), 0, "when the last descriptor of a group is closed everybody is let through")


def event_descriptors(fs):
    p, ino = fs.file(data=False)
    g = Group(event_flags=os.O_RDWR).mark(FILESYSTEM, PRE_ACCESS, fs.top)
    before = os.stat(p)
    filled = []

    def fill(fd):
        if os.fstat(fd).st_ino == ino and not filled:
            filled.append(os.pwrite(fd, b"content!", 0))
            os.utime(fd, ns=(before.st_atime_ns, before.st_mtime_ns))
    r, w = os.pipe()
    got, _ = during(g, using(p, lambda fd: os.write(w, os.read(fd, 8))), ino, before=fill)
    is_((len(got), os.read(r, 8)), (1, b"content!"), "writing through the descriptor of an event raises none, and the reader has it")
    after = os.stat(p)
    ok(after.st_mtime_ns == before.st_mtime_ns and after.st_ctime_ns > before.st_ctime_ns, "the time of the last change can be set back, that of the inode's cannot")
    g.close()
    read_only = T + "/ro"
    out("mount", "--bind", fs.top, read_only)
    out("mount", "-o", "remount,bind,ro", read_only)
    act = using(read_only + "/" + os.path.basename(p), lambda fd: os.read(fd, 8))
    g = Group(UNLIMITED, os.O_RDWR).mark(FILESYSTEM, PRE_ACCESS, fs.top)
    actor = Actor(act, g.fd)
    select.select([g.fd], [], [], 120)
    e = error_of(g.read)
    ok(e, "with O_RDWR a reader through a read-only mount makes read() of the group fail", e)
    os.kill(actor.pid, signal.SIGKILL)
    actor.ended()
    g.close()
    g = Group().mark(FILESYSTEM, PRE_ACCESS, fs.top)
    got, status = during(g, act, ino)
    ok(got and status == 0, "with O_RDONLY it is an event as any other", got, status)
    g.close()
    out("umount", read_only)
    os.close(r)
    os.close(w)


def work_mount(fs):
    p, ino = fs.file()
    g = Group().mark(FILESYSTEM, PRE_ACCESS | OPEN_PERM, fs.top)
    tree = check(libc.syscall(428, -100, os.fsencode(fs.top), 1 | os.O_CLOEXEC), "open_tree")  # OPEN_TREE_CLONE
    g.mark(MOUNT | IGNORE_SURV, PRE_ACCESS | OPEN_PERM, f"/proc/self/fd/{tree}")

    def work():
        at = f"/proc/self/fd/{tree}/"
        with opened(at + os.path.basename(p), os.O_RDWR) as fd:
            os.pread(fd, PAGE, 0)
            os.pwrite(fd, b"x", 0)
            check(libc.fallocate(fd, 3, ctypes.c_int64(0), ctypes.c_int64(PAGE)), "fallocate")  # FALLOC_FL_PUNCH_HOLE, _KEEP_SIZE
        with opened(at + "made", os.O_RDWR | os.O_CREAT) as fd:
            os.write(fd, b"x")
    is_(during(g, work), ([], 0), f"{fs.kind}: through a detached mount with an ignore mark nobody is asked: open, read, write, punch, create")
    got, _ = during(g, using(p, lambda fd: os.read(fd, PAGE)), ino)
    ok(covers(got, 0, PAGE), f"{fs.kind}: and through the other mount as before")
    os.close(tree)
    g.close()


# ---- the exporter's side ----

def inotify(fd):
    """(watch, mask, name) of what is there."""
    buf = b""
    with contextlib.suppress(BlockingIOError):
        buf = os.read(fd, 1 << 16)
    return [(wd, mask, name) for wd, mask, _, name in heard.inotify(buf)]


def hearing(fs):
    """fanotify and inotify of changes."""
    a, b = fs.top + "/a", fs.top + "/b"
    for d in (a, b):
        os.mkdir(d)
    fd = check(libc.fanotify_init(CLOEXEC | NONBLOCK | FID | DIR_FID | NAME | TARGET_FID, os.O_RDONLY), "fanotify_init")
    check(libc.fanotify_mark(fd, ADD | FILESYSTEM, ctypes.c_uint64(RENAME | CREATE | ONDIR), -100, os.fsencode(fs.top)), "fanotify_mark")
    actor = Actor(lambda: (os.close(os.open(a + "/x", os.O_WRONLY | os.O_CREAT, 0o600)), os.rename(a + "/x", b + "/y")), fd)
    who = actor.pid
    is_(actor.ended(), 0, "a file is made and renamed")
    got = [(mask, pid, sorted((kind, heard.name_in(r) if kind in (2, 10, 12) else None) for kind, r in records))
           for mask, _, pid, records in heard.fanotify(os.read(fd, 1 << 16))]
    is_(got, [(CREATE, who, [(1, None), (2, "x")]), (RENAME, who, [(1, None), (10, "x"), (12, "y")])],
        "fanotify says who it was, of a rename both directories and names in one event, and which object it was")
    os.close(fd)

    p, _ = fs.file()
    watch = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    libc.inotify_add_watch(watch, os.fsencode(p), 0xc04)  # IN_ATTRIB, IN_DELETE_SELF, IN_MOVE_SELF

    with opened(p):
        os.unlink(p)
        is_([e[1] for e in inotify(watch)], [0x4], "unlink of a watched file that is open is IN_ATTRIB")
    is_([e[1] for e in inotify(watch)], [0x400, 0x8000], "and IN_DELETE_SELF and IN_IGNORED when it is closed")
    os.close(watch)


def without_privilege(fs):
    p, _ = fs.file()
    os.chmod(fs.top, 0o755)
    os.chmod(p, 0o644)

    def as_user(f):
        def act():
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            f()
        return Actor(act).ended()
    handle = ctypes.create_string_buffer(struct.pack("Ii", 128, 0) + bytes(128))
    mount_id = ctypes.c_int()

    def name_to_handle():
        check(libc.name_to_handle_at(-100, os.fsencode(p), handle, ctypes.byref(mount_id), 0), "name_to_handle_at")
    is_(as_user(name_to_handle), 0, "name_to_handle_at needs no privilege")
    name_to_handle()

    def open_handle():
        with opened(fs.top) as top:
            os.close(check(libc.open_by_handle_at(top, handle, os.O_RDONLY), "open_by_handle_at"))
    is_(as_user(open_handle), errno.EPERM, "open_by_handle_at does")
    is_(Actor(open_handle).ended(), 0, "with it, it opens the file")

    def listen(how):
        def f():
            fd = check(libc.fanotify_init(CLOEXEC | FID | DIR_FID | NAME, os.O_RDONLY), "fanotify_init")
            check(libc.fanotify_mark(fd, ADD | how, ctypes.c_uint64(CREATE), -100, os.fsencode(fs.top)), "fanotify_mark")
        return f
    is_([as_user(listen(how)) for how in (0, FILESYSTEM)], [0, errno.EPERM], "a user may mark directories with fanotify, and no filesystem")


# ---- FUSE ----

def fuse():
    names = ["seen", "gone", "deleted", "x"]
    os.mkdir(T + "/fuse")
    s = minifuse.Server(T + "/fuse", names)
    slt._at_end.append(lambda: libc.umount2(os.fsencode(s.path), 2))  # pylint: disable=protected-access
    at = s.path + "/"
    me = threading.get_native_id()
    is_(os.path.exists(at + "none"), False, "FUSE: a name is looked up")
    is_(s.asked(), (me, "none"), "with the number of the thread that asks")

    watch = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    which = {libc.inotify_add_watch(watch, os.fsencode(p), 0xfff): p[len(at):] for p in [at] + [at + n for n in names]}
    is_(sorted(which.values()), sorted(names + [""]), "FUSE: inotify watches")

    def heard():
        return [(which[wd], mask) for wd, mask, _ in inotify(watch)]
    r = [f(n) for n in ("seen", "gone") for f in (s.inval_inode, s.inval_entry, lambda n: s.inval_entry(n, minifuse.EXPIRE_ONLY))]
    ok(set(r) <= {0, errno.ENOENT}, "FUSE: the kernel is told to forget names, inodes, or when they expire", r)
    is_(heard(), [], "which raises no event")
    is_(s.notify(99, bytes(64)), errno.EINVAL, "FUSE: a notification that the kernel does not know is EINVAL")
    os.stat(at + "deleted")
    is_(s.delete("deleted"), 0, "FUSE: FUSE_NOTIFY_DELETE")
    is_(heard(), [("deleted", 0x400), ("deleted", 0x8000)], "is heard of at the child (IN_DELETE_SELF, IN_IGNORED), and not at its directory")

    # What the echo of the fuse gate does.
    before = os.stat(at + "seen")
    is_(error_of(lambda: os.mknod(at + "seen")), errno.EEXIST, "FUSE: mknod of a name that is shown is EEXIST")
    is_(heard(), [], "and raises nothing")
    other = Actor(lambda: os.stat(at + "seen"))
    is_(other.ended(), 0, "another process has it in the cache")
    s.hide(me)
    is_(error_of(lambda: os.mknod(at + "seen")), 0, "FUSE: of one that is hidden from who makes it, it is not")
    is_(heard(), [("", 0x100)], "and raises IN_CREATE")
    is_(error_of(lambda: os.unlink(at + "x")) if s.inval_entry("x") in (0, errno.ENOENT) else None, errno.ENOENT, "FUSE: unlink of a name that is hidden is ENOENT")
    s.hide(0)
    is_(os.stat(at + "seen").st_ino, before.st_ino, "it is the same object")
    heard()
    is_(error_of(lambda: os.unlink(at + "x")), 0, "FUSE: of one that is shown, it is not, although the origin may have none")
    ok(("", 0x200) in heard(), "and raises IN_DELETE")
    os.close(watch)

    def listen(flags, how, mask):
        fd = check(libc.fanotify_init(CLOEXEC | flags, os.O_RDONLY), "fanotify_init")
        check(libc.fanotify_mark(fd, ADD | how, ctypes.c_uint64(mask), -100, os.fsencode(at)), "fanotify_mark")
        os.close(fd)
    fids = (FID, DIR_FID | NAME, FID | DIR_FID | NAME | TARGET_FID)
    is_([error_of(lambda f=f: listen(f, 0, CREATE)) for f in fids] + [error_of(lambda: listen(DIR_FID | NAME, 0, RENAME))], [0] * 4,
        "FUSE: fanotify marks inodes, also for names and renames")
    is_([error_of(lambda f=f, h=h: listen(f, h, 0x2)) for f in fids for h in (MOUNT, FILESYSTEM)], [errno.ENODEV] * 6, "but with handles no mounts and filesystems")
    is_(error_of(lambda: listen(0, MOUNT, 0x2)), 0, "with descriptors mounts as well")

    actor = Actor(lambda: os.stat(at + "held"))
    while s.asked()[1] != "held":
        pass
    is_(s.notify(minifuse.RESEND, b""), 0, "FUSE: requests that nobody has answered are asked for again")
    is_(actor.ended(), errno.ENOENT, "and are answered then")
    s.stop()


def test():
    if not ROOT:
        print("1..0 # SKIP marks on filesystems need root", flush=True)
        os._exit(0)
    probe = Files("ext4")
    e = error_of(lambda: Group().mark(FILESYSTEM, PRE_ACCESS, probe.top).close())
    if e:
        print(f"1..0 # SKIP this kernel has no pre-content events: {os.strerror(e)}", flush=True)
        out("umount", probe.top)
        os._exit(0)
    os.mkdir(T + "/empty")
    for kind in ("ext4", "xfs", "btrfs"):
        fs = probe if kind == "ext4" else Files(kind)
        for f in (raised, not_raised, past_the_gate, before_the_mark, marks, directories, work_mount):
            f(fs)
        if fs.reflinks:
            armour(fs)
        if kind == "xfs":
            for f in (refused, answers, event_descriptors, hearing, without_privilege):
                f(fs)
        out("umount", fs.top)
    fuse()


slt.run(test)
