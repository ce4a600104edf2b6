#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""If this fails, a service that is killed at the wrong moment gives a program wrong bytes or an error.

ROUNDS=200 SEED=… tests/t/storm-fuse.t is the long form."""
# long: yes

import ctypes
import mmap
import os
import random
import select
import subprocess
import sys
import time
import traceback

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tools"))
import slt  # noqa: E402
from slt import SLUICE, T, is_, note, ok, point  # noqa: E402

O, C = T + "/o", T + "/c"
SANITIZED = any(s in SLUICE for s in ("asan", "tsan"))
ROUNDS = int(os.environ.get("ROUNDS", 5 if SANITIZED else 20))


def files():
    return sorted(os.path.relpath(os.path.join(d, n), O) for d, _, names in os.walk(O) for n in names
                  if os.path.isfile(os.path.join(d, n)) and not os.path.islink(os.path.join(d, n)))


class Wrong(Exception):
    pass


def same(got, want, what):
    if got != want:
        first = next((i for i, (a, b) in enumerate(zip(got, want)) if a != b), min(len(got), len(want)))
        raise Wrong(f"{what}: {len(got)} bytes for {len(want)}, the first difference at {first}")


def reader(rng, whole, _):
    name = rng.choice(list(whole))
    want = whole[name]
    fd = os.open(f"{C}/{name}", os.O_RDONLY)
    try:
        for _ in range(rng.randrange(1, 8)):
            off, n = rng.randrange(len(want) + 1), rng.choice((1, 4096, 100_000, 1 << 20))
            same(os.pread(fd, n, off), want[off:off + n], f"{name} at {off}")
    finally:
        os.close(fd)


def mapper(rng, whole, _):
    name = rng.choice([n for n in whole if whole[n]])
    want = whole[name]
    with open(f"{C}/{name}", "rb") as f, mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ) as m:
        for _ in range(rng.randrange(1, 5)):
            off = rng.randrange(len(want))
            same(m[off:off + 65536], want[off:off + 65536], f"mapped {name} at {off}")


def walker(rng, whole, tree):
    top = rng.choice(list(tree))
    for d in [top] + [os.path.join(top, x) for x in tree[top][0]]:
        d = os.path.normpath(d)
        if d not in tree:
            continue
        got = sorted(os.listdir(f"{C}/{d}"))
        if got != sorted(tree[d][0] + tree[d][1]):
            raise Wrong(f"names of {d}: {len(got)}")
    for name in rng.sample(list(whole), 5):
        if os.stat(f"{C}/{name}").st_size != len(whole[name]):
            raise Wrong(f"size of {name}")


_libc = ctypes.CDLL(None, use_errno=True)


def exchange(a, b):
    if _libc.renameat2(-100, a.encode(), -100, b.encode(), 2) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), a)


def changer(rng, _whole, _tree):
    """Names and content of its own: each of these is done once, and only once, whoever is killed."""
    d = f"{C}/mine-{os.getpid()}"
    os.mkdir(d)
    texts = [rng.randbytes(rng.randrange(1, 20000)) for _ in range(2)]
    for i, text in enumerate(texts):
        fd = os.open(f"{d}/{i}", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o640)
        os.write(fd, text)
        if rng.random() < 0.05:
            os.fsync(fd)
        os.close(fd)
    exchange(f"{d}/0", f"{d}/1")
    os.rename(f"{d}/0", f"{d}/two")
    os.link(f"{d}/two", f"{d}/again")
    os.symlink("two", f"{d}/link")
    os.mkdir(f"{d}/sub", 0o700)
    os.truncate(f"{d}/1", len(texts[0]) // 2)
    got = sorted(os.listdir(d))
    if got != ["1", "again", "link", "sub", "two"]:
        raise Wrong(f"names made: {got}")
    for name, want in (("two", texts[1]), ("link", texts[1]), ("again", texts[1]), ("1", texts[0][:len(texts[0]) // 2])):
        with open(f"{d}/{name}", "rb") as f:
            same(f.read(), want, name)
    if os.stat(f"{d}/two").st_mode & 0o777 != 0o640 or os.stat(f"{d}/sub").st_mode & 0o777 != 0o700:
        raise Wrong("modes")
    with open(f"{d}/two", "rb") as f:
        for name in ("1", "again", "link", "two"):
            os.unlink(f"{d}/{name}")
        same(f.read(), texts[1], "an open file without name")
    os.rmdir(f"{d}/sub")
    os.rmdir(d)


def worker(job, seed, stop, told, whole, tree):
    """Do @job over and over until @stop is closed. Ends with 0, or 1 after an error, or 2 after a difference."""
    rng, n = random.Random(seed), 0
    try:
        while not select.select([stop], [], [], 0)[0]:
            job(rng, whole, tree)
            n += 1
        os.write(told, b"%s %d\n" % (job.__name__.encode(), n))
        return 0
    except Wrong as e:
        os.write(1, f"# WRONG: {job.__name__}: {e}\n".encode())
        return 2
    except BaseException as e:  # pylint: disable=broad-except
        text = traceback.format_exc().strip().replace("\n", "\n# ")
        os.write(1, f"# {job.__name__} after {n} turns: {text}\n".encode())
        os.write(told, f"! {job.__name__}: {e!r}"[:500].replace("\n", " ").encode() + b"\n")
        return 1


def service_of(pid):
    """Its child, also one that has just begun and answers nobody."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as f:
            return int((f.read().split() or ["0"])[0])
    except (FileNotFoundError, ProcessLookupError):
        return 0


def test():
    seed = int(os.environ.get("SEED", random.randrange(1 << 30)))
    note(f"SEED={seed} ROUNDS={ROUNDS}")
    rng = random.Random(seed)
    slt.out(sys.executable, slt.TOOLS + "/maketree.py", O, "400")
    for i in range(4):
        with open(f"{O}/large{i}", "wb") as f:
            f.write(rng.randbytes(6 << 20))
    whole = {}
    for name in files():
        with open(f"{O}/{name}", "rb") as f:
            whole[name] = f.read()
    tree = {os.path.relpath(d, O): (dirs, names) for d, dirs, names in os.walk(O)}
    tree.pop(".")  # where the changers work
    tree = {d: v for d, v in tree.items() if not any(os.path.islink(f"{O}/{d}/{x}") for x in v[0])}
    slt.clone(slt.serve("sock", O)[0], C)

    stop, end = os.pipe()
    hear, told = os.pipe()
    pids = {}
    for i, job in enumerate([reader] * 7 + [mapper] * 4 + [walker] * 3 + [changer] * 2):
        pid = os.fork()
        if pid == 0:
            os.close(end)
            os._exit(worker(job, seed + i, stop, told, whole, tree))
        pids[pid] = job.__name__
    os.close(stop)

    kills = keepers = last = 0
    keeper = slt.status(C, "--brief")["keeper_pid"]
    evict = None
    began = time.monotonic()
    while kills < ROUNDS and time.monotonic() < began + 60 + ROUNDS * 8:
        # Mostly at work, sometimes while the last one is just being followed.
        pause = rng.choice((0.01, 0.3, 1.2)) * rng.random()
        select.select([], [], [], pause)
        if evict is None or evict.poll() is not None:
            evict = subprocess.Popen([SLUICE, "evict", C], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                     stderr=subprocess.DEVNULL)
        if rng.random() < 0.1:  # the keeper dies, not both at once: another one comes
            old = slt.status(C, "--brief")["keeper_pid"]  # so there is a service now
            os.kill(old, 9)
            slt.wait_for(60, "a new keeper", lambda k=old: slt.status(C, "--brief")["keeper_pid"] != k)
            keeper = slt.status(C, "--brief")["keeper_pid"]
            keepers += 1
            last = 0
        pid = service_of(keeper) if last else slt.status(C, "--brief")["service_pid"]
        if pid and pid != last:
            os.kill(pid, 9)
            kills += 1
            last = pid
    note(f"{kills} kills, {keepers} of keepers, in {time.monotonic() - began:.1f} s")
    ok(kills == ROUNDS, f"{ROUNDS} times the service was killed")
    os.close(end)
    codes = {}
    deadline = time.monotonic() + 300
    while len(codes) < len(pids) and time.monotonic() < deadline:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid in pids:
            codes[pid] = os.waitstatus_to_exitcode(status)
        elif pid == 0:
            select.select([], [], [], 0.05)
    os.close(told)
    turns, failed = {}, []
    for line in os.fdopen(hear):
        if line.startswith("! "):
            failed.append(line[2:].strip())
            continue
        name, n = line.split()
        turns[name] = turns.get(name, 0) + int(n)
    note(f"turns: {turns}")
    stuck = [f"{pids[p]} {p}" for p in pids if p not in codes]
    for p in pids:
        if p not in codes:
            os.kill(p, 9)
    is_(stuck, [], "nobody waits for ever")
    is_([pids[p] for p, c in codes.items() if c == 2], [], "no byte and no name was wrong")
    is_(failed + [pids[p] for p, c in codes.items() if c == 1], [], "no access failed")
    st = slt.status(C, "--brief")
    is_(st["service_restarts"], kills, "each was followed by another")
    is_(st["keeper_pid"], keeper, "and the keeper is the last one")
    with point("afterwards the clone is as the origin"):
        # What the changers left is theirs.
        left = [n for n in os.listdir(C) if n.startswith("mine-")]
        assert not left, left
        slt.sluice("verify", C)
    with point("nothing is left open, and the clone stops in good order"):
        slt.wait_for(60, "it can be stopped", lambda: subprocess.run([SLUICE, "stop", C], check=False, stderr=subprocess.DEVNULL,
                                                                      stdout=subprocess.DEVNULL).returncode == 0)
        slt.sluice("start", C)
        assert not slt.status(C)["unclean_start"]


slt.run(test, also_as_user=True)
