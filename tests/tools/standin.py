# SPDX-License-Identifier: LGPL-2.1-or-later
"""For share.t and mount.t: a tree mounted without a clone, the cases of fileops.t in it, and what programs do with whole trees."""

import os
import random
import re
import shutil
import subprocess
import sys

sys.dont_write_bytecode = True
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
