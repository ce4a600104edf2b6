# SPDX-License-Identifier: LGPL-2.1-or-later
"""Programs"""

import hashlib
import os
import shutil

from way import NotHere, content, program, read, way

MANY = {f"{n:02}": 1000 + 7001 * n for n in range(40)}


def compare(w, directory):
    for n in MANY:
        w.same(read(os.path.join(directory, n)), name=n)


@way("cat", quick=True)
def cat(w):
    w.same(w.run("cat", w.path()))


@way("cmp with the origin")
def cmp(w):
    w.run("cmp", w.path(), os.path.join(w.want, "f"))


@way("sha256sum")
def sha(w):
    w.same(w.run("sha256sum", "-b", w.path())[:64], hashlib.sha256(w.bytes()).hexdigest().encode())


@way("head and tail")
def head_tail(w):
    w.same(w.run("tail", "-c", "100001", w.path()), w.bytes()[-100001:])
    w.same(w.run("head", "-c", "50001", w.path()), w.bytes()[:50001])


def add_tar(options, title, quick=False):
    @way(title, files=MANY, quick=quick)
    def one(w):
        w.run("tar", *options, "-C", w.dir, "-cf", w.tmp + "/t.tar", ".", ok=(0, 1)) # see below
        os.mkdir(w.tmp + "/out")
        w.run("tar", "-C", w.tmp + "/out", "-xf", w.tmp + "/t.tar")
        compare(w, w.tmp + "/out")


add_tar([], "tar c", True)
add_tar(["-S"], "tar c -S", True)
add_tar(["-S", "--hole-detection=seek"], "tar c -S --hole-detection=seek")
add_tar(["-S", "--hole-detection=raw"], "tar c -S --hole-detection=raw")


@way("tar c, which says that a file changed if its ctime did", files=MANY, blind="it looks at ctime")
def tar_status(w):
    w.run("tar", "-C", w.dir, "-cf", w.tmp + "/t.tar", ".")


def add_rsync(options, title):
    @way(title, files=MANY)
    def one(w):
        w.run("rsync", "-a", *options, w.dir + "/", w.tmp + "/out/")
        compare(w, w.tmp + "/out")


add_rsync([], "rsync")
add_rsync(["--sparse"], "rsync --sparse")
add_rsync(["--inplace", "--whole-file"], "rsync --inplace")


@way("rsync -c, which believes that what is equal need not be copied", files=MANY)
def rsync_checksum(w):
    shutil.copytree(w.want, w.tmp + "/out")
    for n in ("03", "17"):
        size = os.path.getsize(f"{w.tmp}/out/{n}")
        with open(f"{w.tmp}/out/{n}", "wb") as f:
            f.write(bytes(size))
    w.run("rsync", "-a", "-c", w.dir + "/", w.tmp + "/out/")
    compare(w, w.tmp + "/out")


def add_dd(options, title):
    @way(title)
    def one(w):
        out = w.tmp + "/out"
        w.run("dd", "if=" + w.path(), "of=" + out, "status=none", *options)
        w.same(read(out))


add_dd(["bs=64K"], "dd")
add_dd(["bs=4K", "conv=sparse"], "dd conv=sparse")
add_dd(["bs=64K", "iflag=direct"], "dd iflag=direct")
add_dd(["bs=4K", "iflag=nocache"], "dd iflag=nocache")


def needles(directory):
    for n in range(40):
        with open(os.path.join(directory, f"{n:02}"), "w", encoding="ascii") as f:
            f.write("".join(f"line {n} {i} needle\n" if i % 97 == n else f"line {n} {i} hay\n" for i in range(500)))


@way("grep -r", make=needles, quick=True)
def grep(w):
    got = w.run("grep", "-r", "needle", ".", cwd=w.dir, ok=(0, 1))
    want = program(["grep", "-r", "needle", "."], cwd=w.want)
    w.same(b"\n".join(sorted(got.split(b"\n"))), b"\n".join(sorted(want.split(b"\n"))))


@way("diff -r with the origin", make=needles)
def diff(w):
    w.same(w.run("diff", "-r", w.dir, w.want, ok=(0, 1)), b"")


def archive(directory):
    os.mkdir(directory + "/in")
    needles(directory + "/in")
    program(["tar", "-C", directory + "/in", "-czf", directory + "/f.tgz", "."])
    shutil.rmtree(directory + "/in")


@way("tar x of a cold archive", make=archive)
def untar(w):
    for d, a in (("got", w.dir), ("want", w.want)):
        os.mkdir(f"{w.tmp}/{d}")
        w.run("tar", "-C", f"{w.tmp}/{d}", "-xzf", a + "/f.tgz")
    w.same(w.run("diff", "-r", w.tmp + "/got", w.tmp + "/want", ok=(0, 1)), b"")


# Modes are not bytes: not every gate shows those of the origin.
GIT = {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null", "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b",
       "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b", "GIT_CONFIG_COUNT": "2", "GIT_CONFIG_KEY_0": "safe.directory", "GIT_CONFIG_VALUE_0": "*",
       "GIT_CONFIG_KEY_1": "core.fileMode", "GIT_CONFIG_VALUE_1": "false"}


def repository(directory):
    def git(*argv):
        program(["git", "-C", directory, *argv], env=GIT)

    git("init", "-q")
    for n in range(3):
        needles(directory)
        with open(f"{directory}/{n}.bin", "wb") as f:
            f.write(content(50000))
        git("add", ".")
        git("commit", "-q", "-m", f"commit {n}")
        if n == 1:
            git("repack", "-q", "-a", "-d")


def git(w, *argv):
    return w.run("git", "-C", w.dir, *argv, env=GIT)


@way("git status", make=repository)
def git_status(w):
    w.same(git(w, "status", "--porcelain"), b"")


@way("git fsck and log", make=repository)
def git_fsck(w):
    git(w, "fsck", "--full", "--strict")
    w.same(git(w, "log", "-p", "--format=%H"), program(["git", "-C", w.want, "log", "-p", "--format=%H"], env=GIT))


@way("git clone of a cold repository", make=repository)
def git_clone(w):
    w.run("git", "clone", "-q", w.dir, w.tmp + "/out", env=GIT)
    w.same(w.run("diff", "-r", "-x", ".git", w.tmp + "/out", w.want, ok=(0, 1)), b"")


def database(directory):
    rows = "".join(f"insert into t values ({i}, '{hashlib.sha256(b'%d' % i).hexdigest()}');" for i in range(3000))
    program(["sqlite3", directory + "/f.db"],
            pipe_in=f"create table t (a integer primary key, b text); begin;{rows}commit;create index i on t (b);".encode())


ASK = "pragma integrity_check; select count(*), sum(a), max(b), min(b) from t; select a from t order by b limit 5;"


@way("sqlite3, reading", make=database)
def sqlite(w):
    w.same(w.run("sqlite3", w.path("f.db"), ASK), program(["sqlite3", w.want + "/f.db", ASK]))


@way("sqlite3, writing, with a memory-mapped file", make=database)
def sqlite_write(w):
    shutil.copy2(w.want + "/f.db", w.tmp + "/f.db")
    do = "pragma mmap_size=10000000; update t set b = b || 'x' where a % 7 = 0; delete from t where a % 11 = 0;" + ASK
    w.same(w.run("sqlite3", w.path("f.db"), do), program(["sqlite3", w.tmp + "/f.db", do]))


def big_text(directory):
    with open(directory + "/f", "w", encoding="ascii") as f:
        f.writelines(f"{i * 7919 % 20011} {i}\n" for i in range(20011))


@way("sort and wc", make=big_text)
def sort(w):
    w.same(w.run("sort", "-n", w.path()), program(["sort", "-n", w.want + "/f"]))
    w.same(w.run("wc", w.path()).split()[0], b"20011")


@way("sed -i", make=big_text)
def sed(w):
    w.run("sed", "-i", "s/7/seven/g", w.path())
    w.same(read(w.path()), w.bytes().replace(b"7", b"seven"))


def xattrs(directory):
    with open(directory + "/f", "wb") as f:
        f.write(content(1000))
    try:
        for n in range(3):
            os.setxattr(directory + "/f", f"user.way.{n}", content(100))
    except OSError as e:
        raise NotHere(f"no extended attributes: {e}") from None


@way("getxattr of a cold file", make=xattrs, may_refuse="not every gate has them", blind="it reads attributes")
def getxattr(w):
    for n in range(3):
        w.same(os.getxattr(w.path(), f"user.way.{n}"), os.getxattr(w.want + "/f", f"user.way.{n}"))
