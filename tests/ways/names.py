# SPDX-License-Identifier: LGPL-2.1-or-later
"""Names: other ways to the same file"""

import os

from way import SIZE, NotHere, Wrong, content, program, read, syscall, way

IN_ACCESS, AT_FDCWD, RENAME_EXCHANGE = 1, -100, 2


def several(directory):
    with open(directory + "/f", "wb") as f:
        f.write(content(SIZE))
    os.link(directory + "/f", directory + "/g")
    os.symlink("f", directory + "/s")
    os.mkdir(directory + "/d")
    os.symlink("../s", directory + "/d/t")


@way("the second of two hard links of the origin", make=several)
def second(w):
    w.same(read(w.path("g")))
    w.same(read(w.path("f")))


@way("a symbolic link to a symbolic link to a cold file", make=several)
def symlink(w):
    w.same(read(w.path("d/t")))


@way("a new hard link to a cold file", quick=True)
def link(w):
    os.link(w.path(), w.path("g"))
    w.same(read(w.path("g")))


@way("a new hard link, its first name removed")
def link_only(w):
    os.link(w.path(), w.path("g"))
    os.unlink(w.path())
    w.same(read(w.path("g")))


@way("a cold file, renamed", quick=True)
def renamed(w):
    os.rename(w.path(), w.path("g"))
    w.same(read(w.path("g")))


@way("a cold file, renamed while it is open")
def renamed_open(w):
    with open(w.path(), "rb") as f:
        os.rename(w.path(), w.path("g"))
        w.same(f.read())


@way("a cold file, moved to another directory", quick=True)
def moved(w):
    os.mkdir(w.path("d"))
    os.rename(w.path(), w.path("d/f"))
    w.same(read(w.path("d/f")))


@way("a cold file, renamed over another cold file", files={"f": SIZE, "g": 100})
def over(w):
    os.rename(w.path("f"), w.path("g"))
    w.same(read(w.path("g")))


@way("two cold files, exchanged (RENAME_EXCHANGE)", files={"f": SIZE, "g": 70000}, may_refuse="not every filesystem has it")
def exchanged(w):
    syscall("renameat2", AT_FDCWD, w.path("f").encode(), AT_FDCWD, w.path("g").encode(), RENAME_EXCHANGE)
    w.same(read(w.path("f")), name="g")
    w.same(read(w.path("g")), name="f")


def deep(directory):
    os.makedirs(directory + "/a/b/c")
    for p in ("a/f", "a/b/f", "a/b/c/f"):
        with open(f"{directory}/{p}", "wb") as f:
            f.write(content(SIZE))


@way("a cold file, below a directory that was renamed", make=deep)
def below_renamed(w):
    os.rename(w.path("a"), w.path("x"))
    os.rename(w.path("x/b"), w.path("y"))
    for there, name in (("x/f", "a/f"), ("y/f", "a/b/f"), ("y/c/f", "a/b/c/f")):
        w.same(read(w.path(there)), name=name)


@way("a cold file, whose place was taken by a new one")
def taken(w):
    os.rename(w.path(), w.path("g"))
    with open(w.path(), "wb") as f:
        f.write(b"new")
    w.same(read(w.path("g")))
    w.same(read(w.path()), b"new")


@way("a cold file that chmod, chown and utime were done to")
def attributes(w):
    os.chmod(w.path(), 0o640)
    os.chown(w.path(), -1, os.getgid())
    os.utime(w.path(), (1, 2))
    w.same(read(w.path()))


@way("a cold file with a new extended attribute", may_refuse="not every gate has them")
def xattr(w):
    os.setxattr(w.path(), "user.way", b"x")
    w.same(read(w.path()))


def flagged(w, flag):
    """What can be neither changed nor filled by ordinary means."""
    try:
        program(["chattr", "+" + flag, w.path()])
    except (OSError, Wrong) as e:
        raise NotHere(f"no such attribute: {e}") from None
    try:
        w.same(read(w.path()))
    finally:
        program(["chattr", "-" + flag, w.path()])
    w.same(read(w.path()))


@way("a cold file that was made immutable", root=True, may_refuse="nobody may write to it, and a fill is a write")
def immutable(w):
    flagged(w, "i")


@way("a cold file that was made append-only", root=True, may_refuse="nobody may write to it, and a fill is a write")
def append_only(w):
    flagged(w, "a")


def tree(directory):
    for n in range(300):
        os.makedirs(f"{directory}/{n % 7}/{n % 3}", exist_ok=True)
        with open(f"{directory}/{n % 7}/{n % 3}/{n}", "wb") as f:
            f.write(b"%d" % n)


@way("the names and sizes of a tree", make=tree, blind="it reads names")
def names(w):
    def listed(top):
        return sorted((os.path.relpath(d, top), sorted((n, os.path.getsize(os.path.join(d, n))) for n in files), sorted(dirs))
                      for d, dirs, files in os.walk(top))

    if listed(w.dir) != listed(w.want):
        raise Wrong("they differ")


@way("a name that nobody has listed, and one that is not there", make=tree)
def lookup(w):
    w.same(read(w.path("3/1/10")), b"10")
    if os.path.exists(w.path("3/1/none")):
        raise Wrong("what is not there is there")


@way("find -size and -empty", make=tree, blind="it reads names")
def find(w):
    w.same(sorted(w.run("find", ".", "-type", "f", "-size", "-2c", cwd=w.dir).split()).__repr__().encode(),
           sorted(program(["find", ".", "-type", "f", "-size", "-2c"], cwd=w.want).split()).__repr__().encode())
    w.same(w.run("find", ".", "-type", "f", "-empty", cwd=w.dir), b"")


@way("a cold file that inotify watches")
def watched(w):
    fd = syscall("inotify_init")
    syscall("inotify_add_watch", fd, w.path().encode(), IN_ACCESS)
    w.same(read(w.path()))
    os.close(fd)
