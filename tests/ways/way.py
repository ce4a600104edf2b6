# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a way is: one way of getting at the bytes of files that are not here yet.

A file of this directory holds the ways of one kind; its docstring is their heading in docs/conformance.md. A way is a function

    @way("mmap, private", files={"f": 300001})
    def private(w):
        w.same(...the bytes as this way shows them...)

It finds its files, which nothing else has touched, cold in the clone (w.path()), and knows what they are at the origin
(w.bytes()). What it does with them decides the result:

    it returns                             right
    OSError, SIGBUS, a program's message   error ERRNO     refused: the reader knows that it has nothing
    Wrong, or any other exception          WRONG           the reader believes what is not so
    NotHere                                not here        this machine or this gate lacks what the way needs

Each way runs in a process of its own (tests/tools/conformance), with a scratch directory outside of the clone (w.tmp).
Mounts below that are taken away afterwards, and so are loop devices on its files and its processes.
"""

import ctypes
import errno
import os
import re
import shutil
import signal
import subprocess

SIZE = 300001  # not a multiple of anything
LIBC = ctypes.CDLL(None, use_errno=True)
WAYS = []
POOL = bytearray()


class Wrong(Exception):
    pass


class NotHere(Exception):
    pass


class Way:
    """title: its name in tables and in docs/limits.md. files: name -> size of random content; make(dir) makes others.
    may_refuse, must_refuse: why an error is as good as the right bytes, or the only good answer. blind: why this way
    cannot tell a file of zeros from the right one. quick: belongs to the short run under sanitizers."""

    def __init__(self, run, title, files=None, make=None, root=False, quick=False, may_refuse=None, must_refuse=None, blind=None):
        self.run, self.title, self.make, self.root, self.quick = run, title, make, root, quick
        self.files = files if files is not None else {} if make else {"f": SIZE}
        self.may_refuse, self.must_refuse, self.blind = may_refuse, must_refuse, blind
        self.module = run.__module__

    def prepare(self, directory):
        os.makedirs(directory)
        for name, size in self.files.items():
            with open(os.path.join(directory, name), "wb") as f:
                for at in range(0, size, 1 << 20):
                    f.write(content(min(1 << 20, size - at)))
        if self.make:
            self.make(directory)


def way(title, **more):
    """Makes a function a way."""
    def add(run):
        WAYS.append(Way(run, title, **more))
        return run
    return add


class Here:
    """What a way is given. dir: its files, cold. want: the same as they are at the origin. tmp: its own, elsewhere.
    root: of the clone. gate: see gates.py."""

    def __init__(self, gate, directory, want, tmp):
        self.gate, self.dir, self.want, self.tmp, self.root = gate, directory, want, tmp, gate.dir

    def path(self, name="f"):
        return os.path.join(self.dir, name)

    def bytes(self, name="f"):
        return read(os.path.join(self.want, name))

    def twin(self, name="f"):
        """A copy of the origin's file, to do the same to."""
        return shutil.copy2(os.path.join(self.want, name), os.path.join(self.tmp, name + ".twin"))

    def same(self, got, want=None, name="f"):
        if want is None:
            want = self.bytes(name)
        got = bytes(got)
        if got != want:
            raise Wrong(difference(got, want))

    def run(self, *argv, **kw):
        """Standard output of a program. Its complaint becomes the error that it names, if it names one."""
        return program(argv, **kw)

    def mount(self, *argv):
        """mount(8) on a new directory of ours, whose path it returns."""
        where = os.path.join(self.tmp, f"m{len(os.listdir(self.tmp))}")
        os.mkdir(where)
        try:
            program(["mount", *argv, where])
        except Wrong as e: # it is refused, whatever mount(8) makes of it
            raise OSError(errno.EBUSY if "already mounted" in str(e) else errno.EIO, str(e)) from None
        return where


def content(size):
    """Random, and without the byte that holes are made of: from a random place on in bytes that are random, for these take long to make."""
    while len(POOL) < size + (1 << 22):
        POOL.extend(os.urandom(1 << 22).replace(b"\0", b"\1"))
    at = int.from_bytes(os.urandom(8), "little") % (len(POOL) - size)  # children of one process do not have the same
    return bytes(memoryview(POOL)[at:at + size])


def read(path, flags=0):
    fd = os.open(path, os.O_RDONLY | flags)
    try:
        return read_fd(fd)
    finally:
        os.close(fd)


def read_fd(fd, count=1 << 17):
    parts = []
    while part := os.read(fd, count):
        parts.append(part)
    return b"".join(parts)


def difference(got, want):
    at = next((i for i, (a, b) in enumerate(zip(got, want)) if a != b), min(len(got), len(want)))
    size = "" if len(got) == len(want) else f"{len(got)} bytes instead of {len(want)}, "
    if at == min(len(got), len(want)):
        return size.rstrip(", ")
    what = "zeros" if not any(got[at:at + 512]) else "other bytes"
    return f"{size}{what} from {at} on"


COMPLAINTS = re.compile("|".join(re.escape(os.strerror(n)) for n in sorted(errno.errorcode, key=lambda n: -len(os.strerror(n)))), re.I)


def program(argv, ok=(0,), pipe_in=None, **kw):
    if not shutil.which(argv[0], path=os.environ["PATH"] + ":/usr/sbin:/sbin") and "/" not in argv[0]:
        raise NotHere(f"{argv[0]} is not installed")
    kw["env"] = dict(os.environ, PATH=os.environ["PATH"] + ":/usr/sbin:/sbin", **kw.get("env", {}))
    stdin = {"input": pipe_in} if pipe_in is not None else {} if "stdin" in kw else {"stdin": subprocess.DEVNULL}
    p = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False, **stdin, **kw)
    if p.returncode in ok:
        return p.stdout
    if p.returncode == -signal.SIGBUS:
        raise OSError(errno.EIO, "SIGBUS")
    complain(argv[0], p.returncode, p.stderr.strip() or p.stdout)


def complain(name, status, said):
    """Raise what a program says that failed: the error that it names, if it names one."""
    said = said.decode(errors="replace").strip()
    named = COMPLAINTS.search(said)
    if named:
        n = next(n for n in errno.errorcode if os.strerror(n).lower() == named.group().lower())
        raise OSError(n, said[:1000])
    raise Wrong(f"{name} ended with {status}: {said[-200:]}")


def syscall(function, *args):
    """A function of the C library that returns -1 and sets errno."""
    r = getattr(LIBC, function)(*args)
    if r == -1:
        n = ctypes.get_errno()
        raise OSError(n, f"{function}: {os.strerror(n)}")
    return r


def tool(name):
    """A program of ours, from tests/ways/*.c."""
    path = os.path.join(os.environ["SLUICE_BUILD"], "tests", "ways", name)
    if not os.path.exists(path):
        raise NotHere(f"{path} is not built")
    return path


def in_child(f):
    """f() in a process of its own; what it raises is raised here. For what a process cannot take back."""
    r, w = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(r)
        said = b""
        try:
            f()
        except NotHere as e:
            said = b"N" + str(e).encode()
        except OSError as e:
            said = b"E%d " % (e.errno or errno.EIO) + str(e).encode()
        except BaseException as e:  # pylint: disable=broad-except
            said = b"W" + str(e).encode()
        finally:
            os.write(w, said or b"R")
            os._exit(0)
    os.close(w)
    said = read_fd(r).decode(errors="replace")
    os.close(r)
    _, status = os.waitpid(pid, 0)
    if said[:1] == "N":
        raise NotHere(said[1:])
    if said[:1] == "E":
        n, text = said[1:].split(" ", 1)
        raise OSError(int(n), text)
    if os.WIFSIGNALED(status):
        died(os.WTERMSIG(status))
    if said[:1] != "R":
        raise Wrong(said[1:])


def forked(f):
    """The pid of a child that does f() and ends, with errno as its status if that fails."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            f()
        except OSError as e:
            status = e.errno or 1
        finally:
            os._exit(status)
    return pid


def reap(pid):
    """The end of such a child that should end well."""
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        died(os.WTERMSIG(status))
    if os.WEXITSTATUS(status):
        raise OSError(os.WEXITSTATUS(status), os.strerror(os.WEXITSTATUS(status)))


def died(number):
    if number == signal.SIGBUS:
        raise OSError(errno.EIO, "SIGBUS")
    raise Wrong("ended by " + signal.Signals(number).name)
