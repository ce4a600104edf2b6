# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is done at the origin: one scenario a row of docs/fidelity.md.

A scenario works in a directory d of its own with the watched subdirectories d/a and d/b (and what prepare() makes there), and with
outside(d), which lies beside the export on the same filesystem. It is a generator: at each yield the watchers are given time to hear
of everything so far, so that what the kernel would merge in an unread queue is not merged differently from one watcher to the next.
"""

import ctypes
import mmap
import os
import stat

SCENARIOS = []
ROOT = os.geteuid() == 0
LIBC = ctypes.CDLL(None, use_errno=True)


class Scenario:
    def __init__(self, title, run, prepare, root):
        self.title, self.run, self.prepare, self.root = title, run, prepare, root


def scenario(title, prepare=None, root=False):
    def take(f):
        SCENARIOS.append(Scenario(title, f, prepare, root))
        return f
    return take


def outside(d):
    return os.path.join(os.path.dirname(os.path.dirname(d)), "out", os.path.basename(d))


def put(path, data=b"x"):
    with open(path, "wb") as f:
        f.write(data)


def files(*names):
    def prepare(d):
        for n in names:
            p = os.path.join(d, n)
            if n.endswith("/"):
                os.makedirs(p)
            else:
                os.makedirs(os.path.dirname(p), exist_ok=True)
                put(p, b"content of " + n.encode())
    return prepare


def exchange(a, b):
    if LIBC.renameat2(-100, os.fsencode(a), -100, os.fsencode(b), 2) < 0:
        raise OSError(ctypes.get_errno(), "renameat2")


@scenario("create an empty file")
def create(d):
    os.close(os.open(d + "/a/f", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o640))
    yield


@scenario("create and write a file")
def create_write(d):
    fd = os.open(d + "/a/f", os.O_CREAT | os.O_WRONLY, 0o644)
    yield
    os.write(fd, b"hello")
    yield
    os.close(fd)
    yield


@scenario("mkdir")
def mkdir(d):
    os.mkdir(d + "/a/n", 0o750)
    yield


@scenario("symlink")
def symlink(d):
    os.symlink("target of it", d + "/a/l")
    yield


@scenario("hard link", files("a/f"))
def link(d):
    os.link(d + "/a/f", d + "/a/f2")
    yield
    os.link(d + "/a/f", d + "/b/f3")
    yield


@scenario("fifo and socket")
def special(d):
    os.mkfifo(d + "/a/p", 0o600)
    yield
    os.mknod(d + "/a/s", stat.S_IFSOCK | 0o600)
    yield


@scenario("device", root=True)
def device(d):
    os.mknod(d + "/a/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    yield


@scenario("write to a file that is there", files("a/f"))
def write(d):
    fd = os.open(d + "/a/f", os.O_WRONLY)
    os.write(fd, b"first")
    yield
    os.write(fd, b"second")
    yield
    os.close(fd)
    yield


@scenario("append", files("a/f"))
def append(d):
    with open(d + "/a/f", "ab") as f:
        f.write(b"more")
    yield


@scenario("open for writing, close", files("a/f"))
def open_close(d):
    os.close(os.open(d + "/a/f", os.O_WRONLY))
    yield


@scenario("truncate", files("a/f"))
def truncate(d):
    os.truncate(d + "/a/f", 3)
    yield
    os.close(os.open(d + "/a/f", os.O_WRONLY | os.O_TRUNC))
    yield


@scenario("write through a mapping", files("a/f"))
def mapping(d):
    with open(d + "/a/f", "r+b") as f:
        with mmap.mmap(f.fileno(), 4) as m:
            m[:2] = b"mm"
            m.flush()
    yield


@scenario("chmod", files("a/f", "a/n/"))
def chmod(d):
    os.chmod(d + "/a/f", 0o600)
    yield
    os.chmod(d + "/a/n", 0o700)
    yield


@scenario("chown", files("a/f"), root=True)
def chown(d):
    os.chown(d + "/a/f", 1, 2)
    yield


@scenario("utimes", files("a/f", "a/n/"))
def utimes(d):
    os.utime(d + "/a/f", ns=(10**18, 10**18 + 7))
    yield
    os.utime(d + "/a/n", ns=(10**18, 10**18 + 9))
    yield


@scenario("set and remove an extended attribute", files("a/f"))
def xattr(d):
    os.setxattr(d + "/a/f", "user.colour", b"green")
    yield
    os.removexattr(d + "/a/f", "user.colour")
    yield


@scenario("unlink", files("a/f"))
def unlink(d):
    os.unlink(d + "/a/f")
    yield


@scenario("unlink one of two hard links", lambda d: (put(d + "/a/f"), os.link(d + "/a/f", d + "/b/g")))
def unlink_link(d):
    os.unlink(d + "/a/f")
    yield


@scenario("rmdir", files("a/n/"))
def rmdir(d):
    os.rmdir(d + "/a/n")
    yield


@scenario("unlink while it is open at the origin", files("a/f"))
def unlink_open(d):
    fd = os.open(d + "/a/f", os.O_RDWR)
    os.unlink(d + "/a/f")
    yield
    os.write(fd, b"late")
    yield
    os.close(fd)
    yield


@scenario("rename in a directory", files("a/f"))
def rename(d):
    os.rename(d + "/a/f", d + "/a/g")
    yield


@scenario("rename from one directory to another", files("a/f"))
def rename_across(d):
    os.rename(d + "/a/f", d + "/b/g")
    yield


@scenario("rename over an existing name", files("a/f", "a/g", "b/h"))
def rename_over(d):
    os.rename(d + "/a/f", d + "/a/g")
    yield
    os.rename(d + "/a/g", d + "/b/h")
    yield


@scenario("exchange two names", files("a/f", "a/g", "b/h"))
def rename_exchange(d):
    exchange(d + "/a/f", d + "/a/g")
    yield
    exchange(d + "/a/f", d + "/b/h")
    yield


@scenario("rename a directory", files("a/n/x", "a/n/y"))
def rename_dir(d):
    os.rename(d + "/a/n", d + "/a/m")
    yield
    os.rename(d + "/a/m", d + "/b/m")
    yield
    put(d + "/b/m/z")
    yield


@scenario("move a file into the export")
def move_in(d):
    put(outside(d) + "/f", b"from outside")
    os.rename(outside(d) + "/f", d + "/a/f")
    yield


@scenario("move a file out of the export", files("a/f"))
def move_out(d):
    os.rename(d + "/a/f", outside(d) + "/f")
    yield
    put(outside(d) + "/f", b"nobody hears of that")
    yield


@scenario("move a directory into the export")
def move_dir_in(d):
    os.mkdir(outside(d) + "/n")
    put(outside(d) + "/n/x", b"from outside")
    os.rename(outside(d) + "/n", d + "/a/n")
    yield


@scenario("move a directory out of the export", files("a/n/x"))
def move_dir_out(d):
    os.rename(d + "/a/n", outside(d) + "/n")
    yield


@scenario("remove a watched directory")
def remove_self(d):
    os.rmdir(d + "/a")
    yield


@scenario("rename a watched directory")
def move_self(d):
    os.rename(d + "/a", d + "/c")
    yield


@scenario("the same name, made and removed again and again")
def reuse(d):
    for n in range(3):
        put(d + "/a/f", b"%d" % n)
        yield
        os.unlink(d + "/a/f")
        yield


@scenario("replace a file by rename, as editors do", files("a/f"))
def replace(d):
    put(d + "/a/.f.tmp", b"a new version")
    yield
    os.rename(d + "/a/.f.tmp", d + "/a/f")
    yield


@scenario("save with a backup, as vim does", files("a/f"))
def backup(d):
    os.rename(d + "/a/f", d + "/a/f~")
    yield
    put(d + "/a/f", b"saved")
    yield
    os.chmod(d + "/a/f", 0o644)
    yield
    os.unlink(d + "/a/f~")
    yield


@scenario("rm -r", files("a/n/x", "a/n/m/y"))
def remove_tree(d):
    os.unlink(d + "/a/n/x")
    yield
    os.unlink(d + "/a/n/m/y")
    yield
    os.rmdir(d + "/a/n/m")
    yield
    os.rmdir(d + "/a/n")
    yield


@scenario("a file becomes a directory, and a symlink", files("a/f"))
def other_type(d):
    os.unlink(d + "/a/f")
    yield
    os.mkdir(d + "/a/f")
    yield
    os.rmdir(d + "/a/f")
    yield
    os.symlink("x", d + "/a/f")
    yield


@scenario("names that are odd")
def odd_names(d):
    for n in ("n" * 255, " ", "line\nbreak", "\udcff\udcfe", "-rf"):
        put(os.path.join(d, "a", n))
        yield
        os.unlink(os.path.join(d, "a", n))
        yield

