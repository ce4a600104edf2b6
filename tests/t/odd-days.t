#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Origins and clients on which odd things happen: if this fails, a clone shows what is not so, or its watchers are not told.

Directories that are renamed while they are listed, inode numbers that are used again, an exporter that is not given a processor, a client that
stands still for longer than it is remembered, clocks that are wrong, filesystems that are mounted in the tree, uses that are told when somebody asks, and what a watcher
hears on a directory that nobody has listed. With exporters that listen with fanotify, and with inotify.

ONLY=a,b runs some of them, BACKENDS=inotify chooses."""
# long: yes

import array
import contextlib
import errno
import fcntl
import os
import signal
import subprocess
import sys
import termios
import threading
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tools"))
import slt  # noqa: E402
from slt import NATIVE, ROOT, SLUICE, T, exchange, is_, note, ok, point, read, skip, status, wait_for, write  # noqa: E402
from watch import Watcher, kinds, libc  # noqa: E402

BUILD = os.environ.get("SLUICE_BUILD", "build")
BACKENDS = os.environ.get("BACKENDS", "fanotify inotify" if ROOT else "inotify").split()


class Days:
    """An origin, its exporter and a clone of it, which goes at the end of the block."""

    def __init__(self, name, backend, *options, env=None, small=False):
        """@small: the origin is on a filesystem of its own, with few inodes, if we may make one."""
        self.what = f"{backend}: "
        self.backend, self.options, self.env = backend, options, env
        self.top = f"{T}/{name}-{backend}"
        self.o, self.c, self.out = self.top + "/o", self.top + "/c", self.top + "/out"
        self.sock, self.p, self.have = self.top + "/s", None, False
        os.makedirs(self.top)
        if small and ROOT:
            with open(self.top + ".img", "w", encoding="ascii") as f:
                f.truncate(16 << 20)
            slt.out("mkfs.ext4", "-q", "-b", "4096", "-N", "1024", "-O", "^has_journal", "-F", f.name)
            slt.out("mount", "-o", "loop", f.name, self.top)
        os.mkdir(self.o)
        os.mkdir(self.out)
        slt._at_end.append(self.kill)  # pylint: disable=protected-access

    def serve(self):
        # Without this capability an exporter listens with inotify.
        less = ["setpriv", "--bounding-set=-sys_admin"] if self.backend == "inotify" and ROOT else []
        self.p = subprocess.Popen([*less, SLUICE, "serve", *self.options, "--unix", self.sock, self.o], stdin=subprocess.DEVNULL,
                                  stdout=subprocess.PIPE, env={**os.environ, **(self.env or {})})
        assert self.p.stdout.readline().startswith(b"serving"), "no export"
        return self

    def clone(self, origin=None):
        slt.clone(origin or "unix:" + self.sock, self.c)
        self.have = True
        return self

    def kill(self):
        if self.p and self.p.poll() is None:
            self.p.send_signal(signal.SIGCONT)
            self.p.kill()
            self.p.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.have:
            subprocess.run([SLUICE, "remove", "--force", "--discard", self.c], check=False, timeout=120, stdout=subprocess.DEVNULL,
                           stderr=subprocess.DEVNULL)
        self.kill()

    def events(self):
        return wait_for(240, "the service is at work", lambda: status(self.c, "--brief").get("events"))

    def quiet(self):
        """All that happened at the origin has arrived: the clone hears of a name that is made last, and that goes again."""
        n = f"quiet{time.monotonic_ns()}"
        write(f"{self.o}/{n}", "")
        wait_for(240, "the last event", lambda: os.path.lexists(f"{self.c}/{n}"))
        os.unlink(f"{self.o}/{n}")
        wait_for(240, "the last event", lambda: not os.path.lexists(f"{self.c}/{n}"))
        wait_for(240, "nothing is queued", lambda: not (e := self.events())["queued"] and not e["comparing"])

    def same(self, what):
        self.quiet()
        p = subprocess.run(["bash", "-c", f'. "{slt.TOOLS}/../t/lib.sh"; trap - EXIT; same_tree --no-dir-mtime "{self.o}" "{self.c}"'],
                           check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**os.environ, "TMPDIR": T}, timeout=600)
        said = p.stdout.decode(errors="replace")[:2000]
        return ok(p.returncode == 0, f"{self.what}the trees are equal {what}", said)


# ---- directories that are renamed while they are listed ----

def renamed_while_populated(backend):
    """A directory's names and the content of its files say whose they are, so that a listing of two directories is seen."""
    trees, files = (3 if backend == "fanotify" else 1), 15

    def make(top, k):
        os.mkdir(top)
        for i in range(files):
            write(f"{top}/{k}-{i}", f"{k}-{i}")

    def tree(n):
        os.mkdir(f"{d.o}/{n}")
        for a in "ab":
            make(f"{d.o}/{n}/{a}", f"{n}{a}")
            for b in "xyz":
                make(f"{d.o}/{n}/{a}/{b}", f"{n}{a}{b}")

    def renames():
        """Within a directory, to another one, and exchanges: a place means one directory now and another one then."""
        for n in range(trees):
            while now[0] < n:
                time.sleep(0.001)
            t = f"{d.o}/{n}"
            for i in range(48):
                try:
                    if i % 3 == 0:
                        exchange(f"{t}/a", f"{t}/b")
                    elif i % 3 == 1:
                        exchange(f"{t}/a/{'xyz'[i // 3 % 3]}", f"{t}/b/{'xyz'[i // 5 % 3]}")
                    else:
                        for x, y in (("a", "tmp"), ("b", "a"), ("tmp", "b")):
                            os.rename(f"{t}/{x}", f"{t}/{y}")
                except OSError as e:
                    failed.append(e)
                time.sleep(0.001)

    def here(path, fd):
        try:  # the number of one that is gone may be another's by now
            return os.stat(path).st_ino == os.fstat(fd).st_ino and not os.readlink(f"/proc/self/fd/{fd}").endswith(" (deleted)")
        except OSError:
            return False

    def look(path, below):
        """One directory: all that is in it is of one, and nothing is missing. Then what is below."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as e:
            count[errno.errorcode[e.errno]] = count.get(errno.errorcode[e.errno], 0) + 1
            return
        try:
            names = os.listdir(fd)
            ids = {n.split("-")[0] for n in names if "-" in n}
            have = {n for n in names if "-" in n}
            if not names and not here(path, fd):
                raise FileNotFoundError(errno.ENOENT, "it was removed under its reader, who is told that it is empty")
            if len(ids) != 1 or have != {f"{k}-{i}" for k in ids for i in range(files)}:
                wrong.append((path, sorted(names)))
            count["listed"] = count.get("listed", 0) + 1
            for n in sorted(have)[:4]:
                f = os.open(n, os.O_RDONLY, dir_fd=fd)
                try:
                    if (got := os.read(f, 100).decode()) != n:
                        wrong.append((path, n, got))
                finally:
                    os.close(f)
        except OSError as e:
            # What moved while it was looked at cannot be had; that is no wrong answer.
            count[errno.errorcode[e.errno]] = count.get(errno.errorcode[e.errno], 0) + 1
            names = []
        finally:
            os.close(fd)
        for n in below:
            look(f"{path}/{n}", "xyz" if len(n) == 1 and n in "ab" else ())

    with Days("renamed", backend) as d:
        now, failed, wrong, count = [0], [], [], {}
        for n in range(trees):
            tree(n)
        d.serve()
        d.clone()
        os.listdir(d.c)
        t = threading.Thread(target=renames)
        t.start()
        try:
            for n in range(trees):
                now[0] = n
                for a in "ab":
                    look(f"{d.c}/{n}/{a}", "xyz")
        finally:
            now[0] = trees
            t.join()
        note(f"{d.what}{count}")
        is_(failed, [], f"{d.what}all renames were done")
        is_(wrong, [], f"{d.what}directories that are renamed while they are listed: nobody sees a wrong or a short listing")
        ok(count.get("listed", 0) > 0, f"{d.what}and most can be listed", count)
        d.same("afterwards")


def cloned_while_renamed(backend):
    """A clone behind the fanotify gate, for which all names are fetched first, can be made while the origin renames directories all the
    time; afterwards it has all of them."""
    if not NATIVE or backend != "fanotify":
        return
    stop, count = threading.Event(), [0]

    def renames():
        dirs = [f"{d.o}/{a}/{b}" for a in range(6) for b in range(6)]
        while not stop.is_set():
            i = count[0] = count[0] + 1
            a, b = dirs[i * 7 % len(dirs)], dirs[(i * 11 + 5) % len(dirs)]
            try:
                if i % 3 and a != b:
                    exchange(a, b)
                else:
                    os.rename(a, f"{d.o}/tmp")
                    os.rename(f"{d.o}/tmp", f"{a}-{i % 2}" if os.path.lexists(a) else a)
                    dirs[i * 7 % len(dirs)] = f"{a}-{i % 2}" if not os.path.lexists(a) else a
            except OSError:
                pass
            time.sleep(0.003)

    with Days("cloned", backend) as d:
        for a in range(6):
            for b in range(6):
                os.makedirs(f"{d.o}/{a}/{b}/deep/deeper")
                for n in ("f", "g", "deep/f", "deep/deeper/f"):
                    write(f"{d.o}/{a}/{b}/{n}", f"{a}/{b}/{n}")
        d.serve()
        t = threading.Thread(target=renames)
        begin = time.monotonic()
        t.start()
        try:
            with point(f"{d.what}a clone is made while directories are renamed"):
                d.clone()
                for _, dirs, _ in os.walk(d.c):
                    dirs.sort()
        finally:
            stop.set()
            t.join()
        note(f"{d.what}{count[0]} renames until {time.monotonic() - begin:.1f} s")
        if d.have:
            d.same("when it is quiet again")


# ---- inode numbers that are used again ----

def inode_reused(backend):
    """What has the number of another object is another object: under the same name and another, a file and a directory."""
    def again(how, old, name, make):
        """Delete @old, and make @name with its inode number, if the filesystem uses it again: the lowest that is free."""
        ino, spares = os.lstat(f"{d.o}/{old}").st_ino, []
        os.unlink(f"{d.o}/{old}")
        rounds = 0
        while ROOT and rounds < (3 if how == "away" else 1) and (not spares or os.lstat(spares[-1]).st_ino != ino):
            if len(spares) == 500:  # the exporter may have had it open
                for x in spares:
                    os.unlink(x)
                spares, rounds = [], rounds + 1
            spares.append(f"{d.out}/{len(spares)}")
            write(spares[-1], "")
        if spares:
            os.unlink(spares.pop())
        make(f"{d.o}/{name}")
        for x in spares:
            os.unlink(x)
        return os.lstat(f"{d.o}/{name}").st_ino == ino

    def new_file(path):
        write(path, "new content")
        os.utime(path, ns=(when, when))  # as old as the one before, and as large

    def new_dir(path):
        os.mkdir(path)
        write(path + "/in", "in it")

    def check(name, is_dir):
        if is_dir:
            wait_for(240, "a directory", lambda: os.path.isdir(f"{d.c}/{name}") and os.path.exists(f"{d.c}/{name}/in"))
            assert read(f"{d.c}/{name}/in") == "in it"
        else:
            wait_for(240, "the new content", lambda: content(f"{d.c}/{name}") == "new content")

    def content(path):
        try:
            return read(path)
        except OSError:
            return None

    when = 10**18
    cases = [(f"{how}-{warm}-{what}", how, warm, what) for how in ("live", "behind", "away") for warm in ("warm", "cold")
             for what in ("same", "other", "dir")]
    with Days("inode", backend, small=True) as d:
        for case, _, _, _ in cases:
            os.mkdir(f"{d.o}/{case}")
            write(f"{d.o}/{case}/f", "old content")
            os.utime(f"{d.o}/{case}/f", ns=(when, when))
        d.serve().clone()
        same = all_told = 0
        for how in ("live", "behind", "away"):
            mine = [c for c in cases if c[1] == how]
            held = {}
            for case, _, warm, _ in mine:
                os.listdir(f"{d.c}/{case}")
                if warm == "warm":
                    assert read(f"{d.c}/{case}/f") == "old content"
                held[case] = os.open(f"{d.c}/{case}/f", os.O_RDONLY)
            w = Watcher({case: f"{d.c}/{case}" for case, *_ in mine})
            if how == "behind":  # the kernel may merge what nobody reads
                d.p.send_signal(signal.SIGSTOP)
            elif how == "away":
                d.kill()
            for case, _, _, what in mine:
                name = f"{case}/{'g' if what == 'other' else 'f'}"
                same += again(how, f"{case}/f", name, new_dir if what == "dir" else new_file)
            if how == "behind":
                d.p.send_signal(signal.SIGCONT)
            elif how == "away":
                d.serve()
            d.quiet()
            for case, _, warm, what in mine:
                name = "g" if what == "other" else "f"
                with point(f"{d.what}an inode number is used again: {case}"):
                    check(f"{case}/{name}", what == "dir")
                    assert what != "other" or not os.path.exists(f"{d.c}/{case}/f"), "the old name is still there"
                    try:
                        had = os.pread(held[case], 100, 0)
                    except OSError:
                        had = b""
                    # What is not here is what is at that place of the origin, until the replay comes.
                    assert had == b"old content" or (warm == "cold" and had in (b"", b"new content")), had
                os.close(held[case])
            got = kinds(w.take(), "f", "g")
            w.close()
            for case, _, _, what in mine:
                told = [(k, n) for c, k, n in got if c == case]
                new = "g" if what == "other" else "f"
                gone = [i for i, (k, n) in enumerate(told) if n == "f" and k in ("DELETE", "MOVED_FROM")]
                come = [i for i, (k, n) in enumerate(told) if n == new and k in ("CREATE", "MOVED_TO")]
                # Where all is compared a file takes the place of another at once; for who reads it before the replay
                # has come to that, it has.
                at_once, met = how == "away" and what == "same", what == "same" and ("MODIFY", "f") in told
                ok((come and (gone or at_once)) or met, f"{d.what}and is told as another object: {case}", told)
        d.same("after inode numbers were used again")
        note(f"{d.what}{same} of {len(cases)} numbers were used again")
        if not ROOT:
            skip("whether inode numbers are used again is left to the filesystem: needs root")


def read_before_told(backend):
    """A reader comes to a new version before the replay does: watchers have to hear of it all the same."""
    if backend != BACKENDS[0]:  # this exporter tells nothing
        return
    with Days("first", backend, "--no-events") as d:
        for n in ("written", "replaced", "stays"):
            write(f"{d.o}/{n}", "old content")
        d.serve().clone()
        os.listdir(d.c)
        write(f"{d.o}/written", "new content")
        write(f"{d.o}/tmp", "new content")
        os.rename(f"{d.o}/tmp", f"{d.o}/replaced")
        w = Watcher({"": d.c})
        for n in ("written", "replaced"):
            is_(read(f"{d.c}/{n}"), "new content", f"a new version is read before it is told of: {n}")
        is_(read(f"{d.c}/stays"), "old content", "and what has not changed")
        pid = status(d.c, "--brief")["service_pid"]
        os.kill(pid, signal.SIGKILL)  # the next one compares
        with point("and is told when all is compared"):
            # Where a reader was first it is not told that it is another file by now. Who met that may have had the directory compared
            # before he went on, and the service was not killed yet: then it is told as what it was.
            got = []
            def told():
                got.extend(kinds(w.take()))
                return ("", "MODIFY", "written") in got and any((("", k, "replaced") in got) for k in ("MODIFY", "MOVED_TO"))
            wait_for(240, "both are told", told)
            assert NATIVE or not [e for e in got if e[2] == "stays"], got  # there fills are heard of
        wait_for(240, "the next service", lambda: status(d.c, "--brief")["service_pid"] != pid)
        wait_for(240, "the comparison", lambda: d.events()["comparisons"] and not d.events()["comparing"])
        is_([read(f"{d.c}/{n}") for n in ("written", "replaced", "stays")], ["new content", "new content", "old content"], "and is right")
        w.close()


# ---- an exporter that has no processor for a while ----

def unread(pid):
    """Bytes that were sent to a process and that it has not read."""
    n, p = 0, os.pidfd_open(pid)
    for fd in os.listdir(f"/proc/{pid}/fd"):
        if os.readlink(f"/proc/{pid}/fd/{fd}").startswith("socket:"):
            k = libc.syscall(438, p, int(fd), 0)  # pidfd_getfd
            if k >= 0:
                size = array.array("i", [0])
                with contextlib.suppress(OSError):  # it listens
                    fcntl.ioctl(k, termios.FIONREAD, size)
                n += size[0]
                os.close(k)
    os.close(p)
    return n


def not_told_yet(backend):
    """A directory is in doubt and is compared, while the exporter has not told yet what has come to it: that must not be overtaken."""
    files = 400
    with Days("told", backend) as d:
        for n in "de":
            os.mkdir(f"{d.o}/{n}")
        for i in range(files):
            write(f"{d.o}/d/{i}", str(i))
        d.serve().clone()
        for n in "de":
            os.listdir(f"{d.c}/{n}")
        d.quiet()
        w = Watcher({n: f"{d.c}/{n}" for n in "de"})
        d.p.send_signal(signal.SIGSTOP)
        with open(f"{d.o}/d/x", "w", encoding="utf-8"):  # its number is not used again
            os.unlink(f"{d.o}/d/x")
            write(f"{d.o}/d/x", "another")
            write(f"{d.o}/d/seen", "")
            d.p.send_signal(signal.SIGCONT)
            w.wait(("d", "CREATE", "seen"))
            d.p.send_signal(signal.SIGSTOP)
        for i in range(files):
            os.rename(f"{d.o}/d/{i}", f"{d.o}/e/{i}")
        end = time.monotonic() + 5
        while not unread(d.p.pid) and time.monotonic() < end:  # it may have been compared before it stood still
            time.sleep(0.01)
        note(f"asked meanwhile: {unread(d.p.pid)} bytes")
        d.p.send_signal(signal.SIGCONT)
        got = w.wait(("e", "MOVED_TO", str(files - 1)))
        odd = [e for e in got if e[1] in ("CREATE", "DELETE") and e[2].isdigit()]
        is_((len(kinds(got, *map(str, range(files)))), odd), (2 * files, []), f"{d.what}what was renamed is told as that")
        w.close()
        d.same("when it has gone on")


def of_two_names(d, n, text):
    """A clone of n files, each with the text of its number, by one name in d and by one in e, both of which have been listed."""
    for k in "de":
        os.mkdir(f"{d.o}/{k}")
    for i in range(n):
        write(f"{d.o}/d/{i}", text(i))
        os.link(f"{d.o}/d/{i}", f"{d.o}/e/{i}")
    d.serve().clone()
    for k in "de":
        os.listdir(f"{d.c}/{k}")


def name_that_goes(backend):
    """A file of two names is changed, and the name by which that was done is gone before anybody could ask what it is like now."""
    with Days("goes", backend) as d:
        of_two_names(d, 6, lambda i: "a long text" * 1000)
        for i in (0, 1, 4):
            slt.read(f"{d.c}/e/{i}")
        d.quiet()
        d.p.send_signal(signal.SIGSTOP)
        for i in range(4, 6):
            os.chmod(f"{d.o}/d/{i}", 0o600)
            os.unlink(f"{d.o}/d/{i}")
        d.p.send_signal(signal.SIGCONT)
        d.quiet()
        is_([os.stat(f"{d.c}/e/{i}").st_mode & 0o777 for i in range(4, 6)], [0o600] * 2, f"{d.what}a file has the mode that it has at the origin, by its other name")
        d.p.send_signal(signal.SIGSTOP)
        for i in range(4):
            with open(f"{d.o}/d/{i}", "w", encoding="utf-8") as f:
                f.write("short" if i % 2 else "a longer text" * 1000)
            os.unlink(f"{d.o}/d/{i}")
        d.p.send_signal(signal.SIGCONT)
        d.quiet()
        is_([os.stat(f"{d.c}/e/{i}").st_size for i in range(4)], [13000, 5, 13000, 5], f"{d.what}a file is as long as it is at the origin, by its other name")
        d.same("when one of two names is gone")


def read_by_the_other(backend):
    """Many read a file that is not here by the one of its names that is left: where it is at the origin is found out once."""
    with Days("other", backend) as d:
        of_two_names(d, 30, lambda i: chr(65 + i) * (1 << 20))
        d.quiet()
        for i in range(30):
            os.unlink(f"{d.o}/d/{i}")
        d.quiet()
        wrong = []

        def read(i, at):
            try:
                fd = os.open(f"{d.c}/e/{i}", os.O_RDONLY)
                got = os.pread(fd, 1000, at)
                os.close(fd)
                if got != bytes([65 + i]) * 1000:
                    wrong.append((i, at, len(got)))
            except OSError as e:
                wrong.append((i, at, e))
        for i in range(30):
            threads = [threading.Thread(target=read, args=(i, k << 17)) for k in range(8)]
            for t in threads:
                t.start()
            for t in threads:
                t.join()
        is_(wrong, [], f"{d.what}all can read it")


# ---- a client that stands still ----

def suspended(backend):
    """The service stands still, and its connection breaks, for longer than the exporter remembers; and for less."""
    with Days("suspended", backend, "--grace", "1") as d:
        os.makedirs(f"{d.o}/tree/deep")
        for n in ("stays", "grows", "goes", "renamed", "tree/f", "tree/deep/g"):
            write(f"{d.o}/{n}", n)
        d.serve()
        relay = subprocess.Popen([f"{BUILD}/tests/relay", "--listen", f"unix:{d.top}/r", "--connect", f"unix:{d.sock}"], stdin=subprocess.DEVNULL)
        slt._at_end.append(relay.kill)  # pylint: disable=protected-access
        wait_for(60, "the relay", lambda: os.path.exists(f"{d.top}/r"))
        d.clone(f"unix:{d.top}/r")
        for n in ("", "/tree", "/tree/deep"):
            os.listdir(d.c + n)
        for n in ("grows", "renamed", "tree/f"):
            read(f"{d.c}/{n}")
        d.quiet()
        pid, lost = status(d.c, "--brief")["service_pid"], d.events()["lost"]
        w = Watcher({"": d.c, "tree": d.c + "/tree", "deep": d.c + "/tree/deep"})
        os.kill(pid, signal.SIGSTOP)
        relay.send_signal(signal.SIGUSR1)
        end = time.monotonic() + 3  # of the exporter's time, and a little
        os.unlink(f"{d.o}/goes")
        write(f"{d.o}/grows", "more", "a")
        write(f"{d.o}/comes", "new")
        write(f"{d.o}/passing", "")
        os.unlink(f"{d.o}/passing")
        os.rename(f"{d.o}/renamed", f"{d.o}/other")
        write(f"{d.o}/tree/f", "changed")
        os.mkdir(f"{d.o}/tree/deep/new")
        wait_for(60, "the grace time", lambda: time.monotonic() > end)
        os.kill(pid, signal.SIGCONT)
        want = [("", "DELETE", "goes"), ("", "MODIFY", "grows"), ("", "CREATE", "comes"), ("", "MOVED_FROM", "renamed"),
                ("", "MOVED_TO", "other"), ("tree", "MODIFY", "f"), ("deep", "CREATE", "new")]
        with point(f"{d.what}a client stood still for longer than the grace time: watchers hear of the net change"):
            got = kinds(w.wait(*want, seconds=240))
            # Of what came and went it may have been told before the connection broke.
            assert not [e for e in got if e[2] == "stays"], got
        ok(d.events()["lost"] > lost, f"{d.what}by a comparison", d.events())
        d.same("after it")
        ok(status(d.c, "--brief")["service_pid"] == pid, f"{d.what}and it is the same service")
        w.close()

        lost = d.events()["lost"]
        w = Watcher({"": d.c})
        os.kill(pid, signal.SIGSTOP)
        for i in range(300):
            write(f"{d.o}/s{i}", "")
        os.kill(pid, signal.SIGCONT)
        with point(f"{d.what}it stood still, and the connection did not break: nothing is lost"):
            w.wait(*[("", "CLOSE_WRITE", f"s{i}") for i in range(300)], seconds=240)
            assert d.events()["lost"] == lost, d.events()
        w.close()
        relay.kill()
        relay.wait()


# ---- clocks ----

def clocks(backend):
    """Nothing is older or newer than something else because of what a clock says: files from the past and the future, times that go back,
    changes that leave size and time as they were."""
    times = {"future": 7 * 10**18, "next": 10**9 * 2**32, "now": None, "zero": 0, "past": -10**18}

    def put(n, text):
        """Of the same size and time as before."""
        write(f"{d.o}/{n}", text)
        if (ns := times[n.split("-")[0]]) is not None:
            os.utime(f"{d.o}/{n}", ns=(ns, ns))

    def shows(text, n):
        try:
            a, b = os.stat(f"{d.o}/{n}"), os.stat(f"{d.c}/{n}")
            return read(f"{d.c}/{n}") == text and a.st_mtime_ns == b.st_mtime_ns
        except OSError:
            return False

    with Days("clocks", backend) as d:
        files = [f"{t}-{warm}" for t in times for warm in ("warm", "cold")]
        for n in files:
            put(n, "version 1")
        d.serve().clone()
        with point(f"{d.what}files of any time are shown with it"):
            for n in files:
                assert os.stat(f"{d.o}/{n}").st_mtime_ns == os.stat(f"{d.c}/{n}").st_mtime_ns, n
        for n in files:
            if n.endswith("warm"):
                read(f"{d.c}/{n}")
        d.quiet()
        w = Watcher({"": d.c})
        for n in files:
            put(n, "version 2")
        with point(f"{d.what}a change that leaves size and time as they were is told, and seen"):
            w.wait(*[("", "MODIFY", n) for n in files], seconds=240)
            for n in files:
                wait_for(240, f"the new content of {n}", lambda n=n: shows("version 2", n))
        for i, n in enumerate(files):  # a day forward for some, and back for others
            t = 10**18 + (1 if i % 2 else -1) * 86400 * 10**9
            os.utime(f"{d.o}/{n}", ns=(t, t))
        with point(f"{d.what}times that go forward and back are followed"):
            w.wait(*[("", "ATTRIB", n) for n in files], seconds=240)
            for n in files:
                wait_for(240, f"the time of {n}", lambda n=n: shows("version 2", n))
        for n in files:
            put(n, "version 3")
        for n in files:
            wait_for(240, f"the new content of {n}", lambda n=n: shows("version 3", n))
        d.quiet()
        w.take()
        d.kill()
        for n in files:
            put(n, "version 4")
        d.serve()
        for n in files:
            wait_for(240, f"the content of {n} after an outage", lambda n=n: shows("version 4", n))
        ok(True, f"{d.what}also when nobody was there to tell")
        w.close()
        d.same("whatever the clocks say")


# ---- a clock that is set back ----

def in_a_machine_of_its_own():
    with open("/proc/cpuinfo", encoding="ascii") as f:
        return "User Mode Linux" in f.read()


def clock_set_back(backend):
    """What happens after the origin's clock was set back by an hour is not taken for older than what happened before: changes that are
    told, that nobody was there to tell of, and that happened while the clone was away."""
    if not in_a_machine_of_its_own():
        slt.skip(f"{backend}: nobody sets the clock of a machine that others use (kernel-gates.t does, in one of its own)")
        return

    def set_clock(hours):
        now = time.time()
        time.clock_settime(time.CLOCK_REALTIME, now + 3600 * hours)
        assert abs(time.time() - now - 3600 * hours) < 600, "the clock was not set"

    def change(n):
        """Every kind of change; the content of two files with its size and time of modification as they were."""
        for f in (f"{d.o}/sub/kept-warm", f"{d.o}/sub/kept-cold"):
            st = os.stat(f)
            write(f, f"version {n}")
            os.utime(f, ns=(st.st_atime_ns, st.st_mtime_ns))
        write(f"{d.o}/sub/warm", f"version {n}, longer and longer{'!' * n}")
        write(f"{d.o}/new{n}", f"new {n}")
        write(f"{d.o}/sub/new{n}", f"new {n}")
        os.mkdir(f"{d.o}/sub/dir{n}")
        write(f"{d.o}/sub/dir{n}/f", f"{n}")
        os.chmod(f"{d.o}/sub/mode", 0o600 + n)
        os.rename(f"{d.o}/sub/moves{n - 1}", f"{d.o}/sub/moves{n}")
        os.unlink(f"{d.o}/sub/goes{n}")
        os.symlink(f"target{n}", f"{d.o}/sub/link{n}")
        write(f"{d.o}/sub/tmp", f"replaced {n}")
        os.rename(f"{d.o}/sub/tmp", f"{d.o}/sub/replaced")

    def look():
        for top, _, files in os.walk(d.c):
            for f in files:
                if "warm" in f or f == "replaced":
                    read(os.path.join(top, f))

    with Days("back", backend) as d:
        os.mkdir(f"{d.o}/sub")
        for n in ("kept-warm", "kept-cold", "warm", "mode", "moves0", "replaced", *(f"goes{i}" for i in range(1, 6))):
            write(f"{d.o}/sub/{n}", "version 0")
        d.serve().clone()
        look()
        d.quiet()
        set_clock(-1)
        change(1)
        d.same("when changes are told after the clock was set back")
        look()
        d.quiet()
        d.kill()
        set_clock(-1)
        change(2)
        d.serve()
        d.same("when nobody was there to tell")
        look()
        d.quiet()
        slt.sluice("stop", d.c)
        set_clock(-1)
        change(3)
        slt.sluice("start", d.c)
        d.same("when the clone was away")
        look()
        d.quiet()
        set_clock(5)
        change(4)
        d.same("when the clock has gone forward again")
        d.kill()
        change(5)
        d.serve()
        d.same("and after an outage")


# ---- what is mounted in the tree ----

def mounts(backend):
    """What is mounted below an export is left out: it shows empty, and nothing is told of it. What it covers is not shown for it."""
    if not ROOT:
        skip(f"{backend}: mounts in the tree: needs root")
        return
    with Days("mounts", backend) as d:
        for n in ("before", "during", "bound"):
            os.mkdir(f"{d.o}/{n}")
            write(f"{d.o}/{n}/covered", "what is covered")
        for n in ("other", "third"):
            os.mkdir(f"{d.out}/{n}")
            write(f"{d.out}/{n}/foreign", "of the other directory")
        slt.out("mount", "--bind", f"{d.out}/other", f"{d.o}/before")
        slt._at_end.append(lambda: [subprocess.run(["umount", "-l", f"{d.o}/{n}"], check=False, stderr=subprocess.DEVNULL) for n in  # pylint: disable=protected-access
                                    ("before", "during", "bound")])
        d.serve().clone()
        w = Watcher({n: f"{d.c}/{n}" for n in ("before", "during", "bound")})
        is_(os.listdir(f"{d.c}/before"), [], f"{d.what}what was mounted before shows empty")
        is_(os.listdir(f"{d.c}/during") + os.listdir(f"{d.c}/bound"), ["covered"] * 2, f"{d.what}and nothing else does")
        slt.out("mount", "--bind", f"{d.out}/third", f"{d.o}/during")
        slt.out("mount", "--bind", f"{d.o}/bound", f"{d.o}/before")  # a second one on top, of a directory that is exported itself
        write(f"{d.o}/during/foreign", "changed")
        write(f"{d.o}/during/new", "new")
        write(f"{d.o}/before/new", "by another way")
        with point(f"{d.what}a directory that is exported hears of what comes by another mount of it"):
            w.wait(("bound", "CREATE", "new"), seconds=240)
            wait_for(240, "its content", lambda: read(f"{d.c}/bound/new") == "by another way")
        d.quiet()
        is_([e for e in kinds(w.take(), "foreign", "new") if e[0] != "bound"], [], f"{d.what}nothing is told of what is mounted")
        ok("foreign" not in os.listdir(f"{d.c}/during") + os.listdir(f"{d.c}/before"), f"{d.what}nor shown")
        try:
            got = read(f"{d.c}/during/covered")
        except OSError as e:
            got = errno.errorcode[e.errno]
        ok(got in ("what is covered", "ENOENT", "ESTALE", "EIO"), f"{d.what}a file below a mount is what it was, or an error", got)
        for n in ("before", "before", "during"):
            slt.out("umount", f"{d.o}/{n}")
        d.kill()  # nobody tells of mounts; the next comparison finds what they covered
        d.serve()
        d.quiet()
        for n in ("before", "during"):
            wait_for(240, f"what was covered: {n}", lambda n=n: os.listdir(f"{d.c}/{n}") == ["covered"])
        d.same("when nothing is mounted any more")
        w.close()


# ---- watchers on what nobody has listed ----

def not_listed(backend):
    """A directory behind the fuse gate is heard of from its first listing on. Behind the fanotify gate all directories are listed."""
    with Days("listed", backend) as d:
        os.makedirs(f"{d.o}/up/dir")
        write(f"{d.o}/up/dir/old", "old")
        d.serve().clone()
        p = subprocess.Popen(["inotifywait", "-m", "-e", "create,delete,delete_self,move_self,attrib", "--format", "%e %f", f"{d.c}/up/dir"],
                             stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        slt._at_end.append(p.kill)  # pylint: disable=protected-access
        heard = []
        t = threading.Thread(target=lambda: [heard.append(line.decode().strip()) for line in p.stdout], daemon=True)
        while b"Watches established" not in (line := p.stderr.readline()):
            assert line, "inotifywait ended"
        t.start()
        before = d.events()["received"]
        write(f"{d.o}/up/dir/first", "")
        write(f"{d.o}/up/beside", "")  # what is above it was looked into, and is heard of
        wait_for(240, "the directory above is heard of", lambda: d.events()["received"] > before and os.path.exists(f"{d.c}/up/beside"))
        if not slt.status(d.c, "--brief")["lazy"]:
            with point(f"{d.what}a watcher on a directory that nobody has listed hears of it: all are listed"):
                wait_for(240, "CREATE", lambda: "CREATE first" in heard)
        else:
            is_([x for x in heard if "ISDIR" not in x], [], f"{d.what}a watcher on a directory that nobody has listed hears of no names in it")
        os.chmod(f"{d.o}/up/dir", 0o700)
        with point(f"{d.what}but of the directory itself"):
            wait_for(240, "ATTRIB", lambda: any(x.startswith("ATTRIB") for x in heard))
        is_(sorted(os.listdir(f"{d.c}/up/dir")), ["first", "old"], f"{d.what}what happened before is in the first listing")
        write(f"{d.o}/up/dir/second", "")
        os.unlink(f"{d.o}/up/dir/old")
        with point(f"{d.what}and from then on it hears of everything"):
            wait_for(240, "CREATE", lambda: "CREATE second" in heard)
            wait_for(240, "DELETE", lambda: "DELETE old" in heard)
        ok(NATIVE or "CREATE first" not in heard, f"{d.what}not of what the listing showed", heard)
        subprocess.run(["rm", "-r", f"{d.o}/up/dir"], check=True)
        with point(f"{d.what}and of its end"):
            wait_for(240, "DELETE_SELF", lambda: "DELETE_SELF" in heard)
        p.kill()
        p.wait()
        t.join(60)


TESTS = (renamed_while_populated, cloned_while_renamed, inode_reused, read_before_told, not_told_yet, name_that_goes, read_by_the_other, suspended, clocks, clock_set_back, mounts, not_listed)


def test():
    only = os.environ.get("ONLY", "").split(",")
    for f in TESTS:
        for backend in BACKENDS:
            if only == [""] or f.__name__ in only:
                start = time.monotonic()
                try:
                    f(backend)
                except Exception:  # pylint: disable=broad-except
                    import traceback
                    ok(False, f"{backend}: {f.__name__} comes to its end", traceback.format_exc())
                note(f"{f.__name__}, {backend}: {time.monotonic() - start:.1f} s")


slt.run(test)
