# SPDX-License-Identifier: LGPL-2.1-or-later
"""For share.t and mount.t: a tree mounted without a clone, the cases of fileops.t in it, and what programs do with whole trees."""

import os
import random
import re
import shutil
import subprocess
import sys

sys.dont_write_bytecode = True
import heard  # noqa: E402
import slt  # noqa: E402
from slt import ROOT, SLUICE, T, TOOLS, out  # noqa: E402

# Cases of fileops.t that are about clones.
CLONES_ONLY = {
    "st_blocks of a cold file does not make it look empty",
    "a write marks modified, a read does not; evict refuses; the origin's later content does not come",
    "statfs tells of the store's filesystem",
}


class Mount:
    """`sluice share TREE DIR` or `sluice mount ORIGIN DIR`."""

    def __init__(self, command, what, path, *options):
        self.command, self.what, self.path, self.options = command, what, path, options
        self.p = None
        slt._at_end.append(self.kill)  # pylint: disable=protected-access

    def start(self):
        self.p = subprocess.Popen([SLUICE, self.command, *self.options, self.what, self.path], stdin=subprocess.DEVNULL,
                                  stdout=subprocess.PIPE)
        line = self.p.stdout.readline()
        assert b" shows " in line, (line, self.p.poll())
        return self

    def stop(self):
        self.p.terminate()
        assert self.p.wait(120) == 0, self.p.returncode
        assert not os.path.ismount(self.path)

    def again(self):
        self.stop()
        self.start()

    def kill(self):
        if self.p and self.p.poll() is None:
            self.p.kill()
            self.p.wait()
        subprocess.run(["umount", "-l", self.path] if ROOT else ["fusermount3", "-u", "-z", self.path], check=False,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def cases():
    """The cases of fileops.t, where nothing is ever cold."""
    path = os.path.join(TOOLS, "..", "t", "fileops.t")
    with open(path, encoding="utf-8") as f:
        text = f.read()
    ns = {"__name__": "fileops", "__file__": path}
    text = text[:text.rindex("\nslt.run(")]
    # What the state of a clone's object is has no meaning here.
    text = re.sub(r"^( +)(?:assert .*slt\.state\(|slt\.sluice\().*$", r"\1pass", text, flags=re.M)
    exec(compile(text, path, "exec"), ns)  # pylint: disable=exec-used
    ns["cold"] = lambda path: None
    return [(what, f) for what, f in ns["CASES"] if what not in CLONES_ONLY]


def fileops(mount, tree, skip=()):
    """Each case in a directory of its own; whatever is done in the mount is in the tree."""
    running = []
    for i, (what, f) in enumerate(cases()):
        if what in skip:
            continue
        os.mkdir(f"{tree}/{i:03}")
        running.append((what, f(f"{tree}/{i:03}", f"{mount.path}/{i:03}")))
        next(running[-1][1])
    for phase in ("", " (mounted again)", " (and once more)"):
        if phase:
            mount.again()
        still = []
        for what, g in running:
            more = True
            with slt.point(what + phase):
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


def same(a, b, what):
    """Byte for byte, name for name, attribute for attribute."""
    p = subprocess.run([sys.executable, TOOLS + "/treesum.py", a, b], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    slt.ok(p.returncode == 0, what, p.stdout.decode(errors="replace")[-2000:])


def make_tree(top, seed=1, files=300):
    rng = random.Random(seed)
    dirs = [top]
    os.makedirs(top, exist_ok=True)
    for i in range(files):
        if i % 10 == 0:
            dirs.append(f"{rng.choice(dirs)}/d{i}")
            os.mkdir(dirs[-1])
        p = f"{rng.choice(dirs)}/f{i}"
        with open(p, "wb") as f:
            f.write(rng.randbytes(rng.choice((0, 1, 100, 4096, 5000, 70000))))
        os.chmod(p, rng.choice((0o644, 0o600, 0o755)))
        os.utime(p, ns=(10**18, 10**18 + rng.randrange(10**9)))
        if i % 17 == 0:
            os.symlink(f"f{i}", p + ".link")
            os.utime(p + ".link", ns=(10**18, 10**18 + i), follow_symlinks=False)
        if i % 23 == 0:
            os.link(p, p + ".hard")
    for d in dirs:
        os.utime(d, ns=(10**18, 10**18 + rng.randrange(10**9)))
    return top


def programs(mount, tree):
    """git, tar, rsync and cp, into the mount and out of it."""
    c = mount.path
    src = make_tree(T + "/src")
    with slt.point("tar unpacks into the mount"):
        os.mkdir(c + "/tar")
        tar = out("tar", "-C", src, "-H", "posix", "-c", ".")
        subprocess.run(["tar", "-C", c + "/tar", "-xp"], input=tar, check=True)
    same(src, tree + "/tar", "tar: the tree has what was packed")
    same(src, c + "/tar", "tar: the mount shows it")
    with slt.point("cp -a into the mount, and out of it"):
        out("cp", "-a", src, c + "/cp")
        out("cp", "-a", c + "/cp", T + "/cp-out")
    same(src, tree + "/cp", "cp: the tree has what was copied")
    same(src, T + "/cp-out", "cp: and so has the copy of the copy")
    if shutil.which("rsync"):
        with slt.point("rsync into the mount"):
            out("rsync", "-aH", src + "/", c + "/rsync/")
        same(src, tree + "/rsync", "rsync: the tree is as the source")
        with slt.point("rsync of something else over it"):
            other = make_tree(T + "/other", seed=2)
            out("rsync", "-aHc", "--delete", other + "/", c + "/rsync/")
            out("diff", "-r", "--no-dereference", other, tree + "/rsync")
    if shutil.which("git"):
        env = dict(os.environ, GIT_AUTHOR_NAME="a", GIT_AUTHOR_EMAIL="a@b", GIT_COMMITTER_NAME="a", GIT_COMMITTER_EMAIL="a@b",
                   GIT_CONFIG_NOSYSTEM="1")
        with slt.point("git: commit in a repository, clone it within the mount, commit, pull back"):
            shutil.copytree(src, T + "/repo", symlinks=True)
            for args in (["init", "-q", "-b", "m"], ["add", "-A"], ["commit", "-qm", "one"]):
                out("git", "-C", T + "/repo", *args, env=env)
            out("git", "clone", "-q", T + "/repo", c + "/git", env=env)
            with open(c + "/git/new", "w", encoding="ascii") as f:
                f.write("new\n")
            out("git", "-C", c + "/git", "add", "-A", env=env)
            out("git", "-C", c + "/git", "commit", "-qm", "two", env=env)
            out("git", "-C", c + "/git", "gc", "-q", env=env)
            out("git", "-C", c + "/git", "fsck", "--strict", env=env)
            assert out("git", "-C", c + "/git", "status", "--porcelain", env=env) == b""
            out("git", "-C", T + "/repo", "pull", "-q", c + "/git", "m", env=env)
            assert os.path.exists(T + "/repo/new")
            out("git", "-c", "safe.directory=*", "-C", tree + "/git", "fsck", "--strict", env=env)
    out("rm", "-r", c + "/tar")
    slt.ok(not os.path.exists(tree + "/tar"), "rm -r")
    same(tree, c, "at the end both are the same")


# ---- events ----

def rename2(a, b, flags):
    if heard.libc.renameat2(-100, os.fsencode(a), -100, os.fsencode(b), flags):
        raise OSError("renameat2")


def _write(p, data, mode="wb"):
    with open(p, mode) as f:
        f.write(data)


def _kinds(away):
    """(what, function of the directory) for each kind of change; each goes on from where the one before ended."""
    return [
        ("a new file", lambda d: _write(d + "/f", b"")),
        ("a new file with content", lambda d: _write(d + "/g", b"x" * 100)),
        ("a new directory", lambda d: os.mkdir(d + "/new")),
        ("a symlink", lambda d: os.symlink("f", d + "/l")),
        ("a hard link", lambda d: os.link(d + "/f", d + "/f2")),
        ("a fifo", lambda d: os.mkfifo(d + "/p")),
        ("a write", lambda d: _write(d + "/f", b"more", "ab")),
        ("a write in a directory", lambda d: _write(d + "/sub/h", b"h")),
        ("a truncation", lambda d: os.truncate(d + "/g", 7)),
        ("chmod", lambda d: os.chmod(d + "/f", 0o600)),
        ("utimens", lambda d: os.utime(d + "/f", ns=(10**18, 10**18))),
        ("chmod of a directory", lambda d: os.chmod(d + "/sub", 0o700)),
        ("a rename", lambda d: os.rename(d + "/f", d + "/f1")),
        ("a rename into a directory", lambda d: os.rename(d + "/f1", d + "/sub/f1")),
        ("a rename out of it, over another", lambda d: os.rename(d + "/sub/f1", d + "/g")),
        ("a rename of a directory", lambda d: os.rename(d + "/new", d + "/sub/new")),
        ("an exchange", lambda d: rename2(d + "/g", d + "/f2", 2)),
        ("an exchange of a file and a directory", lambda d: rename2(d + "/g", d + "/sub/new", 2)),
        ("a rename out of the tree", lambda d: os.rename(d + "/f2", away + "/f2")),
        ("a rename into the tree", lambda d: os.rename(away + "/f2", d + "/f3")),
        ("a directory out of the tree", lambda d: os.rename(d + "/g", away + "/g")),
        ("a directory into the tree", lambda d: os.rename(away + "/g", d + "/g2")),
        ("a symlink is deleted", lambda d: os.unlink(d + "/l")),
        ("a file is deleted", lambda d: os.unlink(d + "/f3")),
        ("a directory is deleted", lambda d: os.rmdir(d + "/g2")),
        ("a name used again at once, as another kind",
         lambda d: (os.unlink(d + "/p"), os.mkdir(d + "/p"), os.rmdir(d + "/p"), _write(d + "/p", b""))),
    ]


def simple(events):
    """Without repetitions in a row, and with cookies that count up."""
    seen, got = {0: 0}, []
    for kind, path, isdir, cookie in events:
        e = (kind, path, isdir, seen.setdefault(cookie, len(seen)))
        if not got or got[-1] != e:
            got.append(e)
    return got


def events(mount, tree, away):
    """Changes behind the mount are heard of on it as on the tree itself; changes through it are heard of once."""
    c = mount.path
    for d in (tree, tree + "/sub"):
        os.makedirs(d, exist_ok=True)
    os.makedirs(away, exist_ok=True)
    here, there = heard.Watcher(c), heard.Watcher(tree)
    for what, f in _kinds(away):
        f(tree)
        a, b = simple(here.round(tree)), simple(there.until(lambda e: e[1].startswith("marker-") and e[0] == "delete"))
        b = [e for e in b if not e[1].startswith("marker-")]
        slt.is_(a, b, f"behind the mount: {what}")
    same(tree, c, "and the mount shows what is there")

    for d in (tree, plain := tree + "-plain"):
        shutil.rmtree(d + "/sub", ignore_errors=True)
        os.makedirs(d + "/sub")
    os.unlink(tree + "/p")
    assert os.listdir(tree) == ["sub"], os.listdir(tree)
    here.round(tree)
    here.close()
    there.close()
    assert os.listdir(c) == ["sub"], os.listdir(c)
    here, there = heard.Watcher(c), heard.Watcher(plain)
    for d in (c, plain):
        os.mkdir(d + "/unwatched")
    for (what, f), (_, g) in zip(_kinds(c + "/unwatched"), _kinds(plain + "/unwatched")):
        f(c)
        g(plain)
        os.mkdir(plain + "/end")
        a, b = simple(here.round(tree)), simple(there.until(lambda e: e[1] == "end"))
        os.rmdir(plain + "/end")
        there.until(lambda e: e[1] == "end")
        if ROOT:
            slt.is_(a, b, f"through the mount, once: {what}")
        else:
            slt.known(a == b, f"through the mount, once: {what}", "inotify does not say who changed something", f"got: {a}", f"wanted: {b}")
    here.close()
    there.close()


def fanotify(mount, tree):
    """A fanotify listener on directories of the mount hears of names as well, and of a rename as one event."""
    if not ROOT:
        return
    c, libc = mount.path, heard.libc
    rename, create, delete, modify, on_child, ondir = 0x10000000, 0x100, 0x200, 0x2, 0x08000000, 0x40000000
    fd = libc.fanotify_init(0x00000001 | 0x00000002 | 0x400 | 0x800, os.O_RDONLY)  # CLOEXEC NONBLOCK, DIR_FID and NAME
    assert fd >= 0, os.strerror(heard.ctypes.get_errno())
    mask = heard.ctypes.c_uint64(rename | create | delete | modify | on_child | ondir)
    for d in (c, c + "/sub"):
        assert libc.fanotify_mark(fd, 1, mask, -100, os.fsencode(d)) == 0, os.strerror(heard.ctypes.get_errno())

    def until(last):
        got = []
        while not got or not got[-1][0] & last:
            assert heard.select.select([fd], [], [], 120)[0], ("nothing more", got)
            for mask, _, _, records in heard.fanotify(os.read(fd, 65536)):
                # DFID_NAME, and of a rename OLD and NEW
                got.append((mask & ~ondir, *(heard.name_in(r) for kind, r in records if kind in (2, 10, 12))))
        return got

    with slt.point("fanotify: create, modify, rename, delete"):
        _write(tree + "/fan", b"")
        assert until(create) == [(create, "fan")]
        _write(tree + "/fan", b"x")
        assert set(until(modify)) == {(modify, "fan")}
        os.rename(tree + "/fan", tree + "/sub/fan2")
        assert [e for e in until(rename) if e[0] != modify] == [(rename, "fan", "fan2")]  # it was truncated as well
        os.unlink(tree + "/sub/fan2")
        assert until(delete) == [(delete, "fan2")]
        _write(c + "/through", b"")
        assert until(create) == [(create, "through")]
    os.close(fd)


def storm(mount, tree, seed=None):
    """Random changes of names at full speed behind the mount: what was heard leads from the first listing to the last."""
    seed = seed or int(os.environ.get("SEED", "0")) or random.randrange(1 << 30)
    slt.note(f"SEED={seed}")
    rng = random.Random(seed)
    dirs = ["a", "b", "c"]
    for d in dirs:
        os.makedirs(f"{tree}/{d}")
    w = heard.Watcher(mount.path)
    names = set()
    for _ in range(300 if slt.SANITIZED else 3000):
        d, n = rng.choice(dirs), f"n{rng.randrange(20)}"
        p, k = f"{tree}/{d}/{n}", rng.randrange(6)
        try:
            if k == 0:
                _write(p, rng.randbytes(rng.randrange(100)))
            elif k == 1:
                os.mkdir(p)
            elif k == 2:
                os.unlink(p)
            elif k == 3:
                os.rmdir(p)
            else:
                os.rename(p, f"{tree}/{rng.choice(dirs)}/n{rng.randrange(20)}")
        except OSError:
            pass
    for kind, path, _, _ in w.round(tree):
        if "/" not in path:
            continue
        if kind in ("create", "to"):
            names.add(path)
        elif kind in ("delete", "from"):
            names.discard(path)
    w.close()
    slt.is_(names, {f"{d}/{n}" for d in dirs for n in os.listdir(f"{tree}/{d}")}, "a storm: what was heard leads to what is there")
    same(tree, mount.path, "and the mount shows it")
