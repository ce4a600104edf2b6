#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Changes at the origin, seen at a clone: if this fails, a local watcher does not hear of one, or hears of another, or finds another
state than the event says, or something that was changed here is lost.

Each kind alone, local changes in the way, and what happens when events were lost."""

import errno
import os
import signal
import socket
import subprocess
import sys
import threading
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tools"))
import slt  # noqa: E402
from slt import NATIVE, ROOT, SLUICE, T, clone, exchange, is_, note, ok, point, read, status, wait_for, write  # noqa: E402
from watch import CHANGES, Watcher, kinds  # noqa: E402

O, C, OUT = T + "/o", T + "/c", T + "/out"


def run(*cmd):
    subprocess.run(cmd, check=True, stdin=subprocess.DEVNULL, timeout=120)


def quiet(path=C):
    """All that happened at the origin has arrived: it hears of a name that is made last, and that goes again."""
    n = f"quiet{time.monotonic_ns()}"
    write(f"{O}/{n}", "")
    wait_for(60, "the last event", lambda: os.path.lexists(f"{path}/{n}"))
    os.unlink(f"{O}/{n}")
    wait_for(60, "the last event", lambda: not os.path.lexists(f"{path}/{n}"))
    wait_for(60, "nothing is queued", lambda: not (e := status(path, "--brief")["events"])["queued"] and not e["comparing"])


def make_origin():
    os.mkdir(O)
    os.mkdir(OUT)
    for d in ("d", "e", "never", "d/deep", "d/deep/er"):
        os.mkdir(f"{O}/{d}")
    for f in ("a", "b", "x", "d/f", "d/g", "e/h", "never/n", "d/deep/er/f"):
        write(f"{O}/{f}", f"content of {f}\n")


# ---- each kind ----

def each_kind():
    def expect(what, do, *want, then=None):
        with point(what):
            w.take()
            do()
            got = kinds(w.wait(*want))
            got = [e for i, e in enumerate(got) if i == 0 or e != got[i - 1]]  # as the kernel does where nobody has read them
            # Who watches a directory and its parent is told twice, in an order of the watcher's own.
            assert [e for e in got if e in want and e[2]] == [e for e in want if e[2]], f"order: {got}"
            extra = [e for e in got if e not in want]
            assert not extra, f"and {extra}"
            if then:
                then()

    def same(name):
        a, b = os.lstat(f"{O}/{name}"), os.lstat(f"{C}/{name}")
        if NATIVE and os.path.isdir(f"{O}/{name}"):  # its times are those of the last change here
            assert a.st_mode == b.st_mode, (a, b)
            return
        if NATIVE:  # a file is made shorter, and then given its time: both are told
            wait_for(60, f"the time of {name}", lambda: os.lstat(f"{C}/{name}").st_mtime_ns == a.st_mtime_ns)
            b = os.lstat(f"{C}/{name}")
        assert (a.st_mode, a.st_mtime_ns, a.st_size if not os.path.isdir(f"{O}/{name}") else 0) == \
            (b.st_mode, b.st_mtime_ns, b.st_size if not os.path.isdir(f"{C}/{name}") else 0), (a, b)
        if os.path.isfile(f"{O}/{name}") and not os.path.islink(f"{O}/{name}"):
            assert read(f"{O}/{name}") == read(f"{C}/{name}")

    dirs = {"": C, "d": C + "/d", "e": C + "/e"}
    for d in dirs.values():
        os.listdir(d)
    w = Watcher(dirs)
    expect("create and write", lambda: write(f"{O}/new", "one"), ("", "CREATE", "new"), ("", "MODIFY", "new"), ("", "CLOSE_WRITE", "new"),
           then=lambda: same("new"))
    expect("create empty", lambda: os.mknod(f"{O}/empty"), ("", "CREATE", "empty"), then=lambda: same("empty"))
    expect("write", lambda: write(f"{O}/new", "two and more"), ("", "MODIFY", "new"), ("", "CLOSE_WRITE", "new"), then=lambda: same("new"))
    expect("append", lambda: write(f"{O}/d/f", "more", "a"), ("d", "MODIFY", "f"), ("d", "CLOSE_WRITE", "f"), then=lambda: same("d/f"))
    expect("truncate", lambda: os.truncate(f"{O}/d/f", 3), ("d", "MODIFY", "f"), then=lambda: same("d/f"))
    expect("chmod", lambda: os.chmod(f"{O}/new", 0o640), ("", "ATTRIB", "new"), then=lambda: same("new"))
    expect("times", lambda: os.utime(f"{O}/new", (1, 2)), ("", "ATTRIB", "new"), then=lambda: same("new"))
    expect("chmod of a directory", lambda: os.chmod(f"{O}/d", 0o750), ("", "ATTRIB", "d"), ("d", "ATTRIB", ""), then=lambda: same("d"))
    if not NATIVE:
        expect("an extended attribute", lambda: os.setxattr(f"{O}/new", "user.k", b"v"), ("", "ATTRIB", "new"),
               then=lambda: is_(os.getxattr(f"{C}/new", "user.k"), b"v", "its value"))
        expect("its removal", lambda: os.removexattr(f"{O}/new", "user.k"), ("", "ATTRIB", "new"),
               then=lambda: is_(os.listxattr(f"{C}/new"), [], "none is left"))
    expect("mkdir", lambda: os.mkdir(f"{O}/d/sub"), ("d", "CREATE", "sub"), then=lambda: same("d/sub"))
    expect("symlink", lambda: os.symlink("target", f"{O}/ln"), ("", "CREATE", "ln"), then=lambda: is_(os.readlink(f"{C}/ln"), "target", "target"))
    expect("fifo", lambda: os.mkfifo(f"{O}/fifo"), ("", "CREATE", "fifo"), then=lambda: same("fifo"))

    def sock():
        s = socket.socket(socket.AF_UNIX)
        s.bind(f"{O}/sock")
        s.close()
    expect("socket", sock, ("", "CREATE", "sock"), then=lambda: same("sock"))
    expect("hard link", lambda: os.link(f"{O}/new", f"{O}/hard"), ("", "CREATE", "hard"), then=lambda: is_(
        os.stat(f"{C}/hard").st_ino, os.stat(f"{C}/new").st_ino, "one object"))
    expect("rename", lambda: os.rename(f"{O}/new", f"{O}/d/moved"), ("", "MOVED_FROM", "new"), ("d", "MOVED_TO", "moved"), then=lambda: same("d/moved"))
    expect("rename over", lambda: os.rename(f"{O}/d/moved", f"{O}/e/h"), ("d", "MOVED_FROM", "moved"), ("e", "MOVED_TO", "h"),
           then=lambda: same("e/h"))
    expect("exchange", lambda: exchange(f"{O}/a", f"{O}/d/g"), ("", "MOVED_FROM", "a"), ("d", "MOVED_TO", "g"), ("d", "MOVED_FROM", "g"),
           ("", "MOVED_TO", "a"))
    with point("and who reads them then hears of no other change"):
        same("a")
        same("d/g")
        quiet()
        got = [e for e in kinds(w.take()) if e[2] in ("a", "g")]
        assert NATIVE or not got, got  # a watcher hears of fills there
    with point("directories that change places are heard of where they are now"):
        for d in ("p", "q", "p/below"):
            os.mkdir(f"{O}/{d}")
        w.wait(("", "CREATE", "p"), ("", "CREATE", "q"))
        wait_for(60, "what is below", lambda: os.path.exists(f"{C}/p/below"))
        for d in ("p", "q", "p/below"):
            os.listdir(f"{C}/{d}")
        exchange(f"{O}/p", f"{O}/q")
        w.wait(("", "MOVED_TO", "p"), ("", "MOVED_TO", "q"))
        for d in ("p", "q", "q/below"):
            write(f"{O}/{d}/n", d)
        for d in ("p", "q", "q/below"):
            wait_for(60, f"the file in {d}", lambda d=d: os.path.exists(f"{C}/{d}/n") and read(f"{C}/{d}/n") == d)
        run("rm", "-r", f"{O}/p", f"{O}/q")
        w.wait(("", "DELETE", "p"), ("", "DELETE", "q"))
    expect("a directory is renamed", lambda: os.rename(f"{O}/d/deep", f"{O}/e/deep2"), ("d", "MOVED_FROM", "deep"), ("e", "MOVED_TO", "deep2"),
           then=lambda: same("e/deep2/er/f"))
    expect("a directory leaves", lambda: os.rename(f"{O}/e/deep2", f"{OUT}/deep"), ("e", "MOVED_FROM", "deep2"),
           then=lambda: ok(not os.path.exists(f"{C}/e/deep2"), "it is gone"))
    expect("a directory comes in", lambda: os.rename(f"{OUT}/deep", f"{O}/d/back"), ("d", "MOVED_TO", "back"), then=lambda: same("d/back/er/f"))
    expect("a file leaves", lambda: os.rename(f"{O}/x", f"{OUT}/x"), ("", "MOVED_FROM", "x"))
    expect("a file comes in over another", lambda: os.rename(f"{OUT}/x", f"{O}/b"), ("", "MOVED_TO", "b"), then=lambda: same("b"))
    expect("unlink", lambda: os.unlink(f"{O}/b"), ("", "DELETE", "b"))
    expect("rmdir", lambda: os.rmdir(f"{O}/d/sub"), ("d", "DELETE", "sub"))
    expect("a directory that is watched is removed", lambda: run("rm", "-r", f"{O}/e"), ("e", "DELETE", "h"), ("e", "DELETE_SELF", ""),
           ("e", "IGNORED", ""), ("", "DELETE", "e"))
    with open(f"{C}/a", encoding="utf-8") as f:
        f.read(1)
        expect("unlink while it is open", lambda: os.unlink(f"{O}/a"), ("", "DELETE", "a"))
    with point("names of every kind of bytes"):
        names = ["with space", "new\nline", "\udcff\udcfe", "-x", "n" * 255, "\u00fc"]
        for n in names:
            write(f"{O}/d/{n}", n.encode(errors="surrogateescape"), "wb")
        w.wait(*[("d", "CLOSE_WRITE", n) for n in names])
        for n in names:
            with open(f"{C}/d/{n}", "rb") as f:
                assert f.read() == n.encode(errors="surrogateescape")
    w.close()
    same_trees("after each kind")


def same_trees(what):
    quiet()
    p = subprocess.run(["bash", "-c", f'. "{slt.TOOLS}/../t/lib.sh"; trap - EXIT; same_tree --no-dir-mtime "{O}" "{C}"'], check=False,
                       stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**os.environ, "TMPDIR": T}, timeout=600)
    ok(p.returncode == 0, f"the trees are equal {what}", p.stdout.decode(errors="replace")[:2000])


# ---- state and event ----

def in_step():
    def look(e):
        path = f"{C}/{e[2]}"
        try:
            if e[1] in ("CREATE", "MOVED_TO"):
                os.lstat(path)
                return True
            if e[1] in ("DELETE", "MOVED_FROM"):
                return e[2] in os.listdir(C) or os.path.lexists(path)
            return read(path)
        except OSError as x:
            return x
    w = Watcher({"": C}, look=look)
    wrong = []
    for i in range(100):
        w.take()
        write(f"{O}/s{i}", "")
        v = w.wait(("", "CREATE", f"s{i}"), ("", "CLOSE_WRITE", f"s{i}"))
        wrong += [e for e in v if e[1] == "CREATE" and e.seen is not True]
        write(f"{O}/s{i}", f"version {i}")
        v = w.wait(("", "CLOSE_WRITE", f"s{i}"))
        wrong += [e for e in v if e[1] == "CLOSE_WRITE" and e.seen != f"version {i}"]
        os.rename(f"{O}/s{i}", f"{O}/t{i}")
        v = w.wait(("", "MOVED_TO", f"t{i}"))
        wrong += [e for e in v if e[1].startswith("MOVED") and e.seen is not (e[1] == "MOVED_TO")]
        os.unlink(f"{O}/t{i}")
        v = w.wait(("", "DELETE", f"t{i}"))
        wrong += [e for e in v if e[1] == "DELETE" and e.seen is not False]
    is_([(tuple(e), e.seen) for e in wrong], [], "who reacts to an event finds the state it tells of")
    w.close()


def open_files():
    """A file that is here, and open while the origin writes to it: read by the kernel past the service, where it can do that."""
    write(f"{O}/log", "first line\n")
    quiet()
    read(f"{C}/log")
    w = Watcher({"": C})
    with open(f"{C}/log", encoding="utf-8") as f:
        is_(f.readline(), "first line\n", "a file is open")
        for i in range(20):
            w.take()
            write(f"{O}/log", f"line {i}\n", "a")
            w.wait(("", "CLOSE_WRITE", "log"))
            got = f.readline()
            if got != f"line {i}\n":
                break
        is_(got, "line 19\n", "who has it open reads what the origin appends, as soon as it hears of it")
        is_(read(f"{C}/log"), read(f"{O}/log"), "so does who opens it now")
        w.take()
        write(f"{O}/log", "short")
        w.wait(("", "CLOSE_WRITE", "log"))
        f.seek(0)
        is_(f.read(), "short", "and when it was cut off")
    w.close()


def cold_stays_cold():
    os.mkdir(f"{O}/cold")
    for i in range(200):
        write(f"{O}/cold/{i}", "x" * 10000)
    quiet()
    os.listdir(f"{C}/cold")
    w = Watcher({"cold": C + "/cold"})
    before = status(C, "--brief")["fetches"]
    for i in range(200):
        write(f"{O}/cold/{i}", "y" * 20000)
        os.rename(f"{O}/cold/{i}", f"{O}/cold/r{i}")
        os.chmod(f"{O}/cold/r{i}", 0o600)
    w.wait(("cold", "ATTRIB", "r199"))
    quiet()
    is_(status(C, "--brief")["fetches"], before, "changes of cold files fetch nothing")
    is_(sum(os.stat(f"{C}/cold/r{i}").st_size for i in range(200)), 200 * 20000, "their sizes are the new ones")
    is_(read(f"{C}/cold/r7"), "y" * 20000, "and so is the content when it is asked for")
    w.close()


def not_known(server):
    """Written by one of its names, which is gone before the exporter could look: the other name must not keep the old content."""
    def now():
        try:
            return read(f"{C}/{n}b")
        except OSError as e:
            # Behind the fuse gate the kernel may know it by the name that is gone.
            if e.errno == errno.ESTALE and not NATIVE:
                return "cannot be had"
            raise

    for held in (False, True):
        n = "held" if held else "closed"
        write(f"{O}/{n}a", "old content")
        os.link(f"{O}/{n}a", f"{O}/{n}b")
        quiet()
        with point(f"a file that was written by a name that is gone by now, {n}"):
            assert read(f"{C}/{n}a") == "old content"
            with open(f"{C}/{n}b", encoding="utf-8") as f:
                assert f.read() == "old content"
                if not held:
                    f.close()
                server[0].send_signal(signal.SIGSTOP)
                try:
                    write(f"{O}/{n}a", "new content")
                    os.unlink(f"{O}/{n}a")
                finally:
                    server[0].send_signal(signal.SIGCONT)
                quiet()
                assert not os.path.exists(f"{C}/{n}a"), "the name is still there"
            wait_for(60, "the new content", lambda: now() in ("new content", "cannot be had"))
        os.unlink(f"{O}/{n}b")
        quiet()


# ---- changed here ----

def conflicts():
    for n in ("mod", "gone", "away", "fine", "over"):
        write(f"{O}/{n}", "origin")
    os.mkdir(f"{O}/keep")
    os.mkdir(f"{O}/came")
    write(f"{O}/keep/f", "origin")
    quiet()
    os.listdir(f"{C}/keep")
    write(f"{C}/mod", "local")
    write(f"{C}/over", "local")
    os.unlink(f"{C}/gone")
    os.rename(f"{C}/away", f"{C}/away2")
    write(f"{C}/keep/mine", "local")
    write(f"{C}/made", "local")
    write(f"{O}/mod", "changed at the origin")
    write(f"{O}/gone", "changed at the origin")
    write(f"{O}/away", "changed at the origin")
    write(f"{O}/made", "made at the origin")
    run("rm", "-r", f"{O}/keep")
    os.rename(f"{O}/fine", f"{O}/mod")
    os.unlink(f"{O}/over")
    quiet()
    os.rename(f"{O}/came", f"{O}/over")
    quiet()
    is_(read(f"{C}/mod"), "local", "what was written here stays when the origin changes it, and when it is replaced there")
    is_(os.path.isfile(f"{C}/over") and read(f"{C}/over"), "local", "and where a directory takes its place there")
    ok(not os.path.exists(f"{C}/gone"), "what was deleted here stays deleted")
    ok(not os.path.exists(f"{C}/away"), "what was renamed here does not come back under its old name")
    is_(read(f"{C}/keep/mine"), "local", "a directory in which something was made here stays when it is removed there")
    is_(read(f"{C}/made"), "local", "what was made here stays when the origin makes something of that name")
    flags = {n: slt.state(f"{C}/{n}")["flags"] for n in ("mod", "made")}
    ok(all("conflict" in f for f in flags.values()), "both are conflicts", flags)
    listed = slt.sluice("status", "--conflicts", C).decode().split("\n")
    ok(any(x.endswith("mod") for x in listed) and any(x.endswith("made") for x in listed), "status --conflicts lists them", listed)
    for n in ("mod", "gone", "away", "away2", "made", "keep", "over", "came"):
        subprocess.run(["rm", "-rf", f"{O}/{n}", f"{C}/{n}"], check=True)


# ---- when events are lost ----

def after_an_outage(what, down, up):
    for n in ("stays", "goes", "grows", "renamed"):
        write(f"{O}/{n}", f"{what} {n}")
    os.mkdir(f"{O}/tree")
    write(f"{O}/tree/f", "f")
    links = [f"{n}-{what}" for n in ("ln-goes", "ln-linked", "ln-moved", "ln-swapped")]
    theirs = [f"{n}-{what}" for n in ("made", "hard", "moved", "swap")]
    for n in links:
        os.symlink("nowhere", f"{O}/{n}")
    quiet()
    os.listdir(f"{C}/tree")
    for n in ("stays", "grows", "renamed"):
        read(f"{C}/{n}")
    # Symlinks are told by their names alone where there is no privilege.
    made, hard, moved, swap = (f"{C}/{n}" for n in theirs)
    os.symlink("mine", made)
    os.link(f"{C}/{links[1]}", hard, follow_symlinks=False)
    os.rename(f"{C}/{links[2]}", moved)
    write(swap, "mine")
    exchange(swap, f"{C}/{links[3]}")
    w = Watcher({"": C, "tree": C + "/tree"}) if down is not None else None
    token = down() if down else None
    os.unlink(f"{O}/goes")
    for n in links:
        os.unlink(f"{O}/{n}")
    write(f"{O}/grows", "more of it", "a")
    write(f"{O}/comes", "new")
    os.rename(f"{O}/renamed", f"{O}/other name")
    write(f"{O}/tree/g", "g")
    before = None
    up(token)
    with point(f"{what}: watchers hear of what happened meanwhile"):
        if w and "service" not in what:
            got = kinds(w.wait(("", "DELETE", "goes"), ("", "MODIFY", "grows"), ("", "CREATE", "comes"), ("", "MOVED_TO", "other name"),
                               ("tree", "CREATE", "g"), seconds=120))
            assert not [e for e in got if e[2] == "stays"], got
            assert ("", "DELETE", "renamed") not in got, got
        wait_for(120, "the state", lambda: os.path.exists(f"{C}/comes") and os.path.exists(f"{C}/tree/g"))
    if w:
        w.close()
    quiet()
    # What a user gave another name may stay by both.
    is_([n for n in links if os.path.lexists(f"{C}/{n}") and n != links[1]], links[3:],
        f"{what}: symlinks that the origin removed are gone, and what a user put in the place of one is not")
    is_([os.path.islink(f"{C}/{n}") and os.readlink(f"{C}/{n}") for n in theirs], ["mine", "nowhere", "nowhere", "nowhere"],
        f"{what}: those that users made, linked and renamed stay")
    for n in (*theirs, links[1], links[3]):
        subprocess.run(["rm", "-f", f"{C}/{n}"], check=True)
    same_trees(what)
    del before
    for n in ("stays", "grows", "comes", "other name", "tree"):
        subprocess.run(["rm", "-rf", f"{O}/{n}"], check=True)
    quiet()


def second_name():
    """Of a file that the service has not had in memory since its start, while something changes all the time."""
    for d in ("l1", "l2"):
        os.mkdir(f"{O}/{d}")
    write(f"{O}/l1/first", "content")
    quiet()
    os.listdir(f"{C}/l2")
    is_(read(f"{C}/l1/first"), "content", "content")
    slt.sluice("stop", C)
    slt.sluice("start", C)
    quiet()
    stop = threading.Event()

    def busy():
        while not stop.is_set():
            os.mkdir(f"{O}/busy")
            time.sleep(0.01)
            os.rmdir(f"{O}/busy")
            time.sleep(0.01)
    t = threading.Thread(target=busy)
    t.start()
    with point("a file and its second name are one object"):
        os.link(f"{O}/l1/first", f"{O}/l2/second")
        wait_for(60, "the second name", lambda: os.path.exists(f"{C}/l2/second"))
        quiet()
        wait_for(60, "one object", lambda: os.stat(f"{C}/l1/first").st_ino == os.stat(f"{C}/l2/second").st_ino)
        write(f"{O}/l2/second", "changed by the other name")
        def now():
            try:
                return read(f"{C}/l1/first")
            except OSError:
                return ""  # it was changed in between
        wait_for(60, "the change", lambda: now() == "changed by the other name")
    stop.set()
    t.join()
    run("rm", "-r", f"{O}/l1", f"{O}/l2")
    quiet()


def killed_in_a_storm():
    """The service dies, again and again, while the origin changes: the helper may be in any of its calls."""
    os.mkdir(f"{O}/storm")
    for d in "abc":
        os.mkdir(f"{O}/storm/{d}")
    quiet()
    for d in "abc":
        os.listdir(f"{C}/storm/{d}")
    stop = threading.Event()

    def storm():
        i = 0
        while not stop.is_set():
            a, b = f"{O}/storm/{'abc'[i % 3]}/{i % 50}", f"{O}/storm/{'abc'[i // 3 % 3]}/{(i + 7) % 50}"
            try:
                if i % 11 == 0:
                    os.mkdir(a + "d")
                elif i % 11 == 5:
                    os.rmdir(b + "d")
                elif i % 2:
                    write(a, f"version {i}")
                else:
                    os.rename(a, b)
            except OSError:
                pass
            i += 1
            if i % 20 == 0:
                time.sleep(0.01)
    t = threading.Thread(target=storm)
    t.start()
    for _ in range(4):
        before = status(C, "--brief")["service_pid"]
        os.kill(before, 9)
        with point("another service takes over"):
            wait_for(60, "the next service", lambda b=before: status(C, "--brief")["service_pid"] != b)
            wait_for(60, "it is at work", lambda: "events" in status(C, "--brief"))
    stop.set()
    t.join()
    same_trees("after four deaths in a storm")


def test():
    make_origin()
    sock = T + "/s"

    def serve(_=None):
        p = subprocess.Popen([SLUICE, "serve", "--unix", sock, O], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        slt._at_end.append(p.kill)  # pylint: disable=protected-access
        assert p.stdout.readline().startswith(b"serving"), "no export"
        server[0] = p
        return p

    def kill(_=None):
        server[0].kill()
        server[0].wait()

    server = [None]
    serve()
    clone("unix:" + sock, C)
    each_kind()
    in_step()
    open_files()
    cold_stays_cold()
    not_known(server)
    conflicts()
    after_an_outage("the exporter is killed and comes again", kill, serve)

    def stop(_=None):
        slt.sluice("stop", C)

    def start(_=None):
        slt.sluice("start", C)
    after_an_outage("the service is stopped and started", None, lambda _: (stop(), start()))
    after_an_outage("the service is killed",
                    lambda: os.kill(status(C, "--brief")["service_pid"], 9), lambda _: None)
    second_name()
    killed_in_a_storm()


slt.run(test, also_as_user=True)
