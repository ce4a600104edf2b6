#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""sluice mount: if this fails, programs that work in a directory do not work in a mount of an export, or the two differ."""
# long: yes

import contextlib
import errno
import os
import signal
import subprocess
import sys
import threading

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tools"))
import slt  # noqa: E402
from slt import SLUICE, T  # noqa: E402
import standin  # noqa: E402


def serve(name, tree, *options):
    """An export; its origin's name, and the process."""
    sock = f"{T}/{name}"
    p = subprocess.Popen([SLUICE, "serve", *options, "--unix", sock, tree], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    slt._at_end.append(p.kill)  # pylint: disable=protected-access
    assert p.stdout.readline().startswith(b"serving"), "no export"
    return "unix:" + sock, p


def mounted(name, *options, serving=("--rw",)):
    """A tree, an export of it, and a mount of that."""
    tree = f"{T}/tree-{name}"
    os.makedirs(tree + "/sub", exist_ok=True)
    origin, _ = serve("s-" + name, tree, *serving)
    return standin.Mount("mount", origin, f"{T}/mnt-{name}", *options).start(), tree


def command_line():
    os.makedirs(T + "/x")
    for args, what in ((["mount"], "nothing"), (["mount", "unix:/none"], "no mount"), (["mount", "unix:" + T + "/none", T + "/m"],
                       "no export"), (["mount", T + "/x", T + "/m"], "a local tree"), (["mount", "-b", "exec:cat", T + "/m"],
                       "what is no export"), (["mount", "exec:false", T + "/m"], "what ends at once"), (["mount", "tcp:127.0.0.1:1", T + "/m"], "a plain connection unasked for")):
        p = subprocess.run([SLUICE, *args], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False,
                           timeout=120)
        slt.ok(p.returncode in (1, 2) and p.stderr and not p.stdout, f"mount of {what} is refused", p)
        slt.ok(not os.path.exists(T + "/m"), "and leaves nothing behind")
        slt.ok(b"not mounted any more" not in p.stderr, "and was not mounted", p)


def refused():
    for what, options, serving in (("a read-only export", (), ()), ("--ro", ("--ro",), ("--rw",))):
        m, tree = mounted("ro" + str(len(options)), *options, serving=serving)
        with open(tree + "/f", "w", encoding="ascii") as f:
            f.write("text")
        with slt.point(f"{what}: what is there can be read, and nothing can be changed"):
            c = m.path
            with open(c + "/f", encoding="ascii") as f:
                assert f.read() == "text"
            slt.fails(errno.EROFS, os.mkdir, c + "/new")
            slt.fails(errno.EROFS, os.open, c + "/f", os.O_WRONLY)
            slt.fails(errno.EROFS, os.unlink, c + "/f")
            slt.fails(errno.EROFS, os.rename, c + "/f", c + "/g")
            slt.fails(errno.EROFS, os.truncate, c + "/f", 0)
            slt.fails(errno.EROFS, os.chmod, c + "/f", 0o600)
            assert os.listdir(tree) == ["sub", "f"] or os.listdir(tree) == ["f", "sub"]
        m.stop()


def broken():
    """The export dies: what is under way fails, nobody hangs, and the mount is gone."""
    os.makedirs(T + "/dying")
    with open(T + "/dying/f", "wb") as f:
        f.write(b"x" * 100000)
    origin, p = serve("s-dying", T + "/dying", "--rw")
    m = standin.Mount("mount", origin, T + "/mnt-dying").start()
    fd = os.open(m.path + "/f", os.O_RDONLY)
    p.send_signal(signal.SIGSTOP)
    got = []

    def read():
        try:
            got.append(os.pread(fd, 100, 0))
        except OSError as e:
            got.append(e.errno)
    t = threading.Thread(target=read)
    t.start()
    p.kill()
    p.wait()
    t.join(120)
    slt.ok(got and got[0] in (errno.EIO, errno.ENOTCONN, errno.ECONNABORTED), "a read under way fails", got)
    slt.is_(m.p.wait(120), 1, "the mount ends, and says so in its status")
    slt.ok(not os.path.ismount(m.path), "and is gone")
    with contextlib.suppress(OSError):
        os.close(fd)


def two_mounts():
    """Two mounts of one export: what is changed through one is heard of through the other."""
    tree = T + "/shared"
    os.makedirs(tree + "/sub")
    origin, _ = serve("s-shared", tree, "--rw")
    a = standin.Mount("mount", origin, T + "/mnt-a").start()
    b = standin.Mount("mount", origin, T + "/mnt-b").start()
    with slt.point("changes through one mount are heard of, once, through another"):
        w = standin.heard.Watcher(b.path)
        with open(a.path + "/sub/f", "w", encoding="ascii") as f:
            f.write("text")
        # The kernel says that a file was closed when it likes, also after the next calls.
        got = [e[:2] for e in standin.simple(w.until(lambda e: e[:2] == ("close", "sub/f")))]
        assert got == [("create", "sub/f"), ("modify", "sub/f")], got
        os.rename(a.path + "/sub/f", a.path + "/g")
        os.unlink(a.path + "/g")
        got = [e[:2] for e in standin.simple(w.round(tree))]
        assert got == [("from", "sub/f"), ("to", "g"), ("delete", "g")], got
        w.close()
    a.stop()
    b.stop()


def growing():
    """A file grows at the export while a part of it is on its way: the kernel keeps the page that ends with the old end meanwhile, with
    zeros behind that, and nobody may be told the new size then."""
    size, more, tree, held = 1_000_100, 1700, T + "/growing", T + "/held"
    os.makedirs(tree)
    with open(tree + "/f", "wb") as f:
        f.write(b"A" * size)
    origin, _ = serve("s-growing", tree, "--rw")
    m = standin.Mount("mount", f"exec:{sys.executable} {slt.TOOLS}/hold_read.py {origin[5:]} {held}", T + "/mnt-growing").start()
    got, reads, over = set(), 0, False

    def read_end():
        nonlocal reads
        fd = os.open(m.path + "/f", os.O_RDONLY)
        while not over:
            got.add(os.pread(fd, 4096, size - 100))
            reads += 1
        os.close(fd)

    def stat():
        while os.stat(m.path + "/f").st_size == size:
            pass

    def read_begin():
        with open(m.path + "/f", "rb", buffering=0) as f:
            got.add(f.read(100))
    # The kernel lets the one wait that tells it of the new size; the others go on.
    begin, ends = threading.Thread(target=read_begin), [threading.Thread(target=f) for f in (read_end, read_end, read_end, stat)]
    for t in ends[:3]:
        t.start()
    slt.wait_for(60, "the end was read", lambda: got)
    begin.start()
    slt.wait_for(60, "the beginning was asked for", lambda: os.path.exists(held))
    before = reads  # opening it had the kernel drop the end
    slt.wait_for(60, "the end was read again", lambda: reads > before + 10)
    with open(tree + "/f", "ab") as f:
        f.write(b"A" * more)
    with open(held + ".grown", "w", encoding="ascii"):
        pass
    ends[3].start()
    begin.join(120)
    ends[3].join(120)
    slt.wait_for(60, "the new end is seen", lambda: b"A" * (100 + more) in got)
    over = True
    for t in ends[:3]:
        t.join(120)
    slt.is_({len(x): set(x) for x in got}, {100: {65}, 100 + more: {65}}, "a file grows while a part of it comes: nobody sees zeros behind the old end")
    m.stop()


def test():
    command_line()
    growing()
    refused()
    broken()
    two_mounts()
    m, tree = mounted("ops")
    os.rmdir(tree + "/sub")
    standin.fileops(m, tree)
    m.stop()
    m, tree = mounted("programs")
    standin.programs(m, tree)
    m.stop()
    m, tree = mounted("events")
    standin.events(m, tree, T + "/away")
    standin.fanotify(m, tree)
    m.stop()
    m, tree = mounted("storm")
    standin.storm(m, tree)
    m.stop()


slt.run(test, also_as_user=True)
