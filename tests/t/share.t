#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""sluice share: if this fails, programs that work in a directory do not work in a mount of it, or the two differ."""
# long: yes

import errno
import os
import subprocess
import sys
import threading
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tools"))
import slt  # noqa: E402
from slt import ROOT, SLUICE, T, out  # noqa: E402
import standin  # noqa: E402


def command_line():
    os.makedirs(T + "/x/in")
    for args, what in ((["share"], "nothing"), (["share", T + "/x"], "no mount"), (["share", T + "/none", T + "/m"], "no tree")):
        p = subprocess.run([SLUICE, *args], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False)
        slt.ok(p.returncode in (1, 2) and p.stderr and not p.stdout, f"share of {what} is refused", p)
    for a, b, what in (("x", "x/in", "in the tree"), ("x/in", "x", "around it"), ("x/in", "o", "that is not empty")):
        p = subprocess.run([SLUICE, "share", "-b", f"{T}/{a}", f"{T}/{b}"], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False)
        slt.ok(p.returncode == 1 and p.stderr, f"a mount {what} is refused", p)
    line = out(SLUICE, "share", "--background", "--json", T + "/x", T + "/made")
    pid = __import__("json").loads(line)["pid"]
    slt.is_(os.listdir(T + "/made"), ["in"], "in the background it is there when the command comes back")
    out(*(["umount"] if ROOT else ["fusermount3", "-u"]), T + "/made")
    slt.wait_for(60, "the process ends with the mount", lambda: slt.gone(pid))
    slt.ok(not os.path.exists(T + "/made"), "the directory that it made is gone")


def busy():
    m = standin.Mount("share", T + "/o", T + "/c").start()
    fd = os.open(T + "/c", os.O_RDONLY)
    m.p.terminate()
    slt.is_(m.p.wait(60), 0, "SIGTERM ends it also while it is in use")
    slt.ok(not os.path.ismount(T + "/c"), "and nothing is mounted")
    with slt.point("what is open there gets errors"):
        slt.fails(errno.ENOTCONN, os.listdir, fd)
    os.close(fd)


def read_only():
    with open(T + "/o/ro", "w", encoding="ascii") as f:
        f.write("text")
    m = standin.Mount("share", T + "/o", T + "/c", "--ro").start()
    with slt.point("--ro: what is there can be read, and nothing can be changed"):
        with open(T + "/c/ro", encoding="ascii") as f:
            assert f.read() == "text"
        slt.fails(errno.EROFS, os.mkdir, T + "/c/new")
        slt.fails(errno.EROFS, os.open, T + "/c/ro", os.O_WRONLY)
        slt.fails(errno.EROFS, os.unlink, T + "/c/ro")
        slt.fails(errno.EROFS, os.truncate, T + "/c/ro", 0)
    m.stop()


def two_writers(mount, tree):
    """At full speed on both sides: appended lines are all there, in whole, and names are those that were made."""
    n, dirs = (300 if slt.SANITIZED else 2000), (tree + "/two", mount.path + "/two")
    os.mkdir(dirs[0])
    errors = []

    def writer(me):
        try:
            for i in range(n):
                with open(dirs[me] + "/log", "ab", buffering=0) as f:
                    f.write(b"%d %06d %s\n" % (me, i, b"x" * (i % 300)))
                p = f"{dirs[me]}/{me}-{i}"
                with open(p + ".tmp", "wb") as f:
                    f.write(b"%d" % i * 100)
                os.rename(p + ".tmp", p)
                if i % 3 == 0:
                    os.unlink(p)
                if i % 5 == 0:
                    os.listdir(dirs[me])
        except BaseException as e:  # pylint: disable=broad-except
            errors.append(repr(e))
    th = [threading.Thread(target=writer, args=(i,)) for i in (0, 1)]
    for t in th:
        t.start()
    for t in th:
        t.join()
    slt.is_(errors, [], "two writers, one on each side: no errors")
    want = {f"{me}-{i}" for me in (0, 1) for i in range(n) if i % 3} | {"log"}
    slt.is_(set(os.listdir(dirs[0])) ^ want, set(), "the names in the tree are those that were made")
    slt.wait_for(60, "the mount shows them too", lambda: set(os.listdir(dirs[1])) == want)
    with slt.point("what both appended to one file is all there"):
        with open(dirs[0] + "/log", "rb") as f:
            lines = f.read().split(b"\n")[:-1]
        for me in (0, 1):
            assert [x for x in lines if x[:1] == b"%d" % me] == [b"%d %06d %s" % (me, i, b"x" * (i % 300)) for i in range(n)], me
        assert len(lines) == 2 * n
    with slt.point("and so is each file"):
        for d in dirs:
            for name in want - {"log"}:
                with open(f"{d}/{name}", "rb") as f:
                    assert f.read() == name.split("-")[1].encode() * 100, name


def others():
    """Users other than the one who mounted, by permission; what they make is theirs."""
    if not ROOT:
        return
    os.makedirs(T + "/u/free")
    os.chmod(T + "/u/free", 0o1777)
    os.mkdir(T + "/u/closed", 0o700)
    m = standin.Mount("share", T + "/u", T + "/uc", "--allow-other").start()
    run = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    with slt.point("another user makes files that are hers, and is kept out where she is not allowed"):
        out(*run, "sh", "-ec", f"umask 027; cd {T}/uc/free; echo x >f; mkdir d; ln -s f l; mkfifo p; ! ls ../closed 2>/dev/null")
        for name in "fdlp":
            st = os.lstat(f"{T}/u/free/{name}")
            assert (st.st_uid, st.st_gid) == (65534, 65534), name
        assert os.stat(T + "/u/free/f").st_mode & 0o777 == 0o640
        p = subprocess.run([*run, "rm", "-f", T + "/uc/closed/x"], stderr=subprocess.DEVNULL, check=False)
        assert p.returncode == 1
    m.stop()


def test():
    os.makedirs(T + "/o/something")
    command_line()
    busy()
    read_only()
    others()
    os.mkdir(T + "/tree")
    os.chmod(T + "/tree", 0o755)
    m = standin.Mount("share", T + "/tree", T + "/mnt").start()
    standin.fileops(m, T + "/tree")
    os.mkdir(T + "/tree2")
    m2 = standin.Mount("share", T + "/tree2", T + "/mnt2").start()
    standin.programs(m2, T + "/tree2")
    two_writers(m2, T + "/tree2")
    m2.stop()
    m.stop()
    m3 = standin.Mount("share", T + "/tree3", T + "/mnt3")
    os.mkdir(T + "/tree3")
    os.mkdir(T + "/tree3/sub")
    m3.start()
    standin.events(m3, T + "/tree3", T + "/away")
    standin.fanotify(m3, T + "/tree3")
    m3.stop()
    m4 = standin.Mount("share", T + "/tree4", T + "/mnt4")
    os.mkdir(T + "/tree4")
    m4.start()
    standin.storm(m4, T + "/tree4")
    m4.stop()


slt.run(test, also_as_user=True)
