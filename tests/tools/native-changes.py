# SPDX-License-Identifier: LGPL-2.1-or-later
"""The points of tests/t/changes-native.t."""

import ctypes
import errno
import mmap
import os
import random
import shutil
import subprocess
import threading

import slt
from slt import SLUICE, T, note, out, point

O, C = T + "/o", T + "/c"
SIZE = 3_000_000
TRIES = 4 if slt.SANITIZED else 12
libc = ctypes.CDLL(None, use_errno=True)


def put(path, data):
    with open(path, "wb") as f:
        f.write(data)
    return data


def get(path):
    with open(path, "rb") as f:
        return f.read()


def fresh(path):
    """Its content past the page cache; or the error's number."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
        try:
            size, got = os.fstat(fd).st_size, b""
            with mmap.mmap(-1, 1 << 20) as m:
                while len(got) < size and (n := os.preadv(fd, [m], len(got))):
                    got += m[:n]
            return got
        finally:
            os.close(fd)
    except OSError as e:
        return e.errno


def fallocate(path, mode, off, n):
    fd = os.open(path, os.O_RDWR)
    r = libc.fallocate(fd, mode, ctypes.c_long(off), ctypes.c_long(n))
    e = ctypes.get_errno()
    os.close(fd)
    if r < 0:
        raise OSError(e, os.strerror(e))


# ---- every kind of local change, each done the same way to a model ----

def write_and_touch(p):
    st = os.stat(p)
    with open(p, "r+b") as f:
        f.seek(100_000)
        f.write(b"written")
    os.utime(p, ns=(st.st_atime_ns, st.st_mtime_ns))


def mapped(p):
    with open(p, "r+b") as f, mmap.mmap(f.fileno(), 0) as m:
        m[2_000_000:2_000_007] = b"through"


def mapped_and_touched(p):
    st = os.stat(p)
    mapped(p)
    os.utime(p, ns=(st.st_atime_ns, st.st_mtime_ns))


def rewritten(p):
    put(p, random.Random(77).randbytes(SIZE))


def down_up(p):
    os.truncate(p, 1000)
    os.truncate(p, SIZE)


CHANGES = {
    "write": lambda p: write_and_touch(p) or os.utime(p),
    "write, old mtime": write_and_touch,
    "mmap": mapped,
    "mmap, old mtime": mapped_and_touched,
    "O_TRUNC and the same size": rewritten,
    "truncated down and up": down_up,
    "truncated": lambda p: os.truncate(p, 123_456),
    "longer": lambda p: os.truncate(p, SIZE + 100_000),
    "a hole punched": lambda p: fallocate(p, 3, 40_960, 1 << 20),
    "collapsed": lambda p: fallocate(p, 8, 40_960, 1 << 20),
    "a range inserted": lambda p: fallocate(p, 0x20, 40_960, 1 << 20),
    "zeroed": lambda p: fallocate(p, 16, 1_000_000, 1_000_000),
    "sed": lambda p: out("sed", "-i", "1s/^/before/", p),
    "appended": lambda p: out("sh", "-c", 'echo more >>"$1"', "sh", p),
    "replaced": lambda p: out("sh", "-c", 'echo new >"$1.new" && mv "$1.new" "$1"', "sh", p),
}


def local_changes():
    os.makedirs(O)
    model = T + "/model"
    os.makedirs(model)
    rng = random.Random(5)
    names = {}
    for i, (what, f) in enumerate(CHANGES.items()):
        for warm in (False, True):
            n = f"{i:02}-{warm:d}"
            names[n] = (what + (", of what is here" if warm else ", of what is cold"), f, warm)
            put(f"{O}/{n}", rng.randbytes(SIZE))
    for n in ("linked", "renamed", "deleted", "kept"):
        names[n] = None
        put(f"{O}/{n}", rng.randbytes(SIZE))
    shutil.copytree(O, model, dirs_exist_ok=True)
    slt.clone(O, C)
    for n, x in names.items():
        if x and x[2]:
            get(f"{C}/{n}")
        if x:
            for top in (C, model):
                x[1](f"{top}/{n}")
    for top in (C, model):
        os.link(top + "/linked", top + "/link")
        os.rename(top + "/renamed", top + "/moved")
        os.unlink(top + "/deleted")

    def check(when):
        bad = [names.get(n, n) and (names.get(n) or (n,))[0] for n in sorted(os.listdir(model))
               if fresh(f"{C}/{n}") != get(f"{model}/{n}")]
        slt.is_(bad, [], f"every change is there {when}")
        slt.is_(sorted(os.listdir(C)), sorted(os.listdir(model)), f"and so are the names {when}")
    check("at once")
    slt.sluice("evict", C)
    check("after everything was evicted")
    slt.sluice("stop", C)
    slt.sluice("start", C)
    slt.sluice("evict", C)
    check("after a restart")
    for n in os.listdir(O):
        put(f"{O}/{n}", b"another version at the origin")
    slt.sluice("evict", C)
    left = [n for n in os.listdir(model) if n not in ("link", "linked", "moved", "kept")]
    bad = [names[n][0] for n in left if fresh(f"{C}/{n}") != get(f"{model}/{n}")]
    slt.is_(bad, [], "every change is there after the origin changed as well")
    slt.is_(get(C + "/kept"), b"another version at the origin", "and what was not changed here follows")
    # Where their names were before, the origin has something else now: they follow it, as they have its place.
    for n in ("link", "linked", "moved"):
        slt.ok(get(f"{C}/{n}") in (b"another version at the origin", get(f"{model}/{n}")), f"{n}: right content of one version")
    p = subprocess.run([SLUICE, "remove", C], stderr=subprocess.PIPE, check=False)
    slt.ok(p.returncode == 1 and b"--discard" in p.stderr, "remove does not throw them away", p.stderr)
    slt.sluice("remove", "--discard", C)
    shutil.rmtree(O)
    shutil.rmtree(model)


# ---- the origin changes a file that is partly here ----

def origin_changes():
    os.makedirs(O)
    kinds = ("replaced", "rewritten", "truncated", "deleted", "directory", "symlink", "longer")
    for k in kinds:
        for i in range(TRIES):
            put(f"{O}/{k}-{i}", b"A" * SIZE)
    slt.clone(slt.serve("changes.sock", O)[0], C)

    def change(kind, p):
        if kind == "replaced":
            put(p + ".new", b"B" * SIZE)
            os.rename(p + ".new", p)
        elif kind == "rewritten":
            put(p, b"B" * SIZE)
        elif kind == "truncated":
            os.truncate(p, 70_000)
        elif kind == "longer":
            with open(p, "ab") as f:
                f.write(b"B" * 500_000)
        else:
            os.unlink(p)
            if kind == "directory":
                os.mkdir(p)
            elif kind == "symlink":
                os.symlink("elsewhere", p)
    for kind in kinds:
        bad, errors, good = [], set(), [0]

        def read(i, off, piece=60_000, kind=kind, bad=bad, errors=errors, good=good):
            try:
                fd = os.open(f"{C}/{kind}-{i}", os.O_RDONLY)
                try:
                    got = os.pread(fd, piece, off)
                finally:
                    os.close(fd)
            except OSError as e:
                errors.add(errno.errorcode[e.errno])
                return
            # One read is of one version: all A, all B; of the longer one A and then B at 3,000,000.
            mixed = kind != "longer" and len(set(got)) > 1
            if b"\0" in got or mixed:
                bad.append((i, off, len(got), sorted(set(got))[:4]))
            good[0] += bool(got)
        for i in range(TRIES):
            read(i, 0)
            change(kind, f"{O}/{kind}-{i}")
            threads = [threading.Thread(target=read, args=(i, off)) for off in (1_500_000, 2_900_000, 0, 800_000, 2_000_000)]
            for t in threads:
                t.start()
            for t in threads:
                t.join()
        note(f"{kind}: {good[0]} reads, errors {sorted(errors)}")
        # What goes there goes here as well, a moment later.
        gone = {"ENOENT", "EISDIR"} if kind in ("replaced", "deleted", "directory", "symlink") else set()
        slt.ok(not bad and errors <= {"EIO"} | gone, f"{kind} at the origin while it is partly here: no zeros, no mixture, or EIO", bad[:5], errors)
    slt.sluice("remove", "--force", "--discard", C)
    shutil.rmtree(O)


# ---- in use ----

def stop(*options):
    p = subprocess.run([SLUICE, "stop", *options, C], stderr=subprocess.PIPE, check=False)
    return p.returncode, p.stderr.decode()


def in_use():
    os.makedirs(O)
    os.mkdir(O + "/dir")
    data = {n: put(f"{O}/{n}", os.urandom(SIZE)) for n in "abcd"}
    slt.clone(O, C)
    fd = os.open(C + "/a", os.O_RDONLY)
    assert os.pread(fd, 1000, 0) == data["a"][:1000]
    with point("stop is refused while a file is open, and nothing changes"):
        code, why = stop()
        assert code == 1 and "in use" in why, (code, why)
        assert os.pread(fd, 1000, 2_000_000) == data["a"][2_000_000:2_001_000]
        assert get(C + "/b") == data["b"]
    slt.sluice("evict", C)
    os.mkdir(T + "/bound")
    for how in ("bind", "rbind,ro"):
        os.close(fd)
        out("mount", "-o", how, C, T + "/bound")
        with point(f"stop is refused while it is mounted elsewhere ({how}), and it is still shown"):
            code, why = stop()
            assert code == 1 and "bound" in why, (code, why)
            assert os.path.ismount(C) and fresh(C + "/c") == data["c"] == fresh(T + "/bound/c")
        out("umount", T + "/bound")
        fd = os.open(C + "/a", os.O_RDONLY)
    os.close(fd)
    p = subprocess.Popen(["unshare", "-m", "--propagation", "private", "sh", "-c", 'echo there; read x; cat "$1"', "sh", C + "/d"],
                         stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert p.stdout.readline() == b"there\n"
    with point("stop is refused while another mount namespace has it"):
        code, why = stop()
        assert code == 1 and "mounted" in why, (code, why)
        assert os.path.ismount(C) and get(C + "/c") == data["c"]
    with point("and there it can be read"):
        assert p.communicate(b"\n")[0] == data["d"]
    with point("stop waits for a mount namespace that soon is no more"):
        p = subprocess.Popen(["unshare", "-m", "--propagation", "private", "sh", "-c", "echo there; exec sleep 0.5"], stdout=subprocess.PIPE)
        assert p.stdout.readline() == b"there\n"
        slt.sluice("stop", C)
        p.wait()
        slt.sluice("start", C)
    with point("stop --force: what is open gets errors or the right bytes, and start makes all good"):
        fd = os.open(C + "/a", os.O_RDONLY)
        code, why = stop("--force")
        assert code == 0, why
        assert not os.path.ismount(C)
        for off in (0, 1_000_000, 2_500_000):
            try:
                got = os.pread(fd, 1000, off)
            except OSError as e:
                assert e.errno == errno.EIO, e
            else:
                assert got == data["a"][off:off + 1000], "wrong content"
        os.close(fd)
        slt.sluice("start", C)
        assert all(fresh(f"{C}/{n}") == data[n] for n in data)

    # ---- both are killed at the same moment ----
    for turn in range(1 if slt.SANITIZED else 3):
        slt.sluice("evict", C)
        get(C + "/b")
        with point("service and keeper killed at once: what is cold gives EIO, what is here is right (or EIO as well); then start makes all good"
                   + (" (again)" if turn else "")):
            fds = {n: os.open(f"{C}/{n}", os.O_RDONLY) for n in data}
            wrong, stop_now = [], threading.Event()

            def read(k, wrong=wrong, stop_now=stop_now, fds=fds):
                rng = random.Random(k)
                while not stop_now.is_set():
                    n, off = rng.choice("abcd"), rng.randrange(SIZE)
                    try:
                        got = os.pread(fds[n], 5000, off)
                    except OSError as e:
                        if e.errno != errno.EIO:
                            wrong.append(e)
                    else:
                        # It may end where the next page is not here.
                        want = data[n][off:off + 5000]
                        if got != want[:len(got)] or not got:
                            wrong.append((n, off, len(got), set(got[i] for i in range(len(got)) if got[i] != want[i])))
            threads = [threading.Thread(target=read, args=(k,)) for k in range(4)]
            for t in threads[:2] if turn else []:
                t.start()
            slt.kill_service(C)
            for t in threads[2:] if turn else threads:
                t.start()
            seen = [fresh(f"{C}/{n}") for n in "abcd"]
            assert seen[1] == (errno.EIO if slt.kernel_series() else data["b"]), "what is here is not"
            assert all(s in (errno.EIO, data[n]) for n, s in zip("abcd", seen)), "wrong content"
            stop_now.set()
            for t in threads:
                t.join()
            for fd in fds.values():
                os.close(fd)
            assert not wrong, wrong[:3]
            slt.sluice("start", C)
            assert all(fresh(f"{C}/{n}") == data[n] for n in data)

    # ---- records that are copied ----
    with point("a copied record makes no other file cold, or lost"):
        slt.sluice("evict", C)
        out("cp", "-a", "--preserve=xattr", C + "/a", C + "/copy")
        with open(C + "/mine", "wb") as f:
            f.write(b"my own content")
        slt.sluice("evict", C)
        value = os.getxattr(C + "/c", "trusted.sluice")
        os.setxattr(C + "/mine", "trusted.sluice", value)
        slt.sluice("evict", C)
        slt.sluice("stop", C)
        slt.sluice("start", C)
        slt.sluice("evict", C)
        assert fresh(C + "/copy") == data["a"]
        assert get(C + "/mine") == b"my own content"
        assert all(fresh(f"{C}/{n}") == data[n] for n in data)
    with point("an owner that was given to a directory and a file stays when they are compared with the origin"):
        for n in ("dir", "d"):
            os.chown(f"{C}/{n}", 1000, 1001)
        slt.sluice("stop", C)
        slt.sluice("start", C)
        slt.wait_for(120, "they were compared", lambda: (e := slt.status(C, "--brief")["events"])["compared"] and not e["comparing"])
        assert all((os.stat(f"{C}/{n}").st_uid, os.stat(f"{C}/{n}").st_gid) == (1000, 1001) for n in ("dir", "d"))
    slt.sluice("remove", "--discard", C)

    # ---- and looked at once more, while it is on its way out ----
    slt.clone(O, C)
    fd = os.open(C + "/a", os.O_RDONLY)
    keeper = slt.status(C, "--brief")["keeper_pid"]
    with point("remove --force waits for a program that still has something open"):
        p = subprocess.Popen([SLUICE, "remove", "--force", C], stderr=subprocess.PIPE)
        slt.wait_for(120, "it is shut down", lambda: slt.gone(keeper))
        assert os.path.exists(C)
        os.close(fd)
        assert p.wait(120) == 0, p.stderr.read()
        assert not os.path.exists(C)
    shutil.rmtree(O)


def test():
    local_changes()
    origin_changes()
    in_use()


slt.run(test)
