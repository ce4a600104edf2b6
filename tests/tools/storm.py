#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Read, map and walk a clone from all sides while a command is run over and over, and compare every byte and name with the origin.

    storm.py [OPTION...] ORIGIN CLONE -- COMMAND...

The command is run ROUNDS times at random moments (STORM_ROUND is its number). Afterwards each worker must get something done once more.
Prints one JSON object; status 0 if nothing was wrong and nothing failed. A worker that a signal ends (SIGBUS) counts as failed."""

import argparse
import errno
import json
import mmap
import os
import random
import select
import signal
import subprocess
import sys
import tempfile
import time

PAGE = mmap.PAGESIZE


class Wrong(Exception):
    pass


def same(got, want, what):
    if got != want:
        at = next((i for i, (a, b) in enumerate(zip(got, want)) if a != b), min(len(got), len(want)))
        raise Wrong(f"{what}: {len(got)} bytes, wanted {len(want)}, the first difference at {at}" +
                    (", zeros" if at < len(got) and not any(got[at:at + 512]) else ""))


def part(path, offset, count):
    fd = os.open(path, os.O_RDONLY)
    try:
        return os.pread(fd, count, offset)
    finally:
        os.close(fd)


def some_range(rng, size):
    count = rng.choice((1, 4096, 65536, 1 << 20))
    return rng.randrange(max(size, 1)), count


def read(rng, origin, clone, names):
    name = rng.choice(names)
    offset, count = some_range(rng, os.path.getsize(f"{origin}/{name}"))
    how = rng.choice(("whole", "range", "direct", "again"))
    fd = os.open(f"{clone}/{name}", os.O_RDONLY | (os.O_DIRECT if how == "direct" else 0))
    try:
        if how == "whole":
            offset, count = 0, 1 << 30
            got = b""
            while piece := os.read(fd, 1 << 17):
                got += piece
        elif how == "direct":
            offset, count = offset // PAGE * PAGE, -(-count // PAGE) * PAGE
            with mmap.mmap(-1, count) as buffer:
                n = os.preadv(fd, [buffer], offset)
                while n and n % PAGE == 0 and n < count and (more := os.preadv(fd, [memoryview(buffer)[n:]], offset + n)):
                    n += more
                got = buffer[:n]
        else:
            if how == "again": # from below the kernel's cache
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            got = b"" # a read may end early, before an error for one
            while piece := os.pread(fd, count - len(got), offset + len(got)):
                got += piece
    finally:
        os.close(fd)
    same(got, part(f"{origin}/{name}", offset, count), f"read ({how}) of {name} at {offset}")


def map_(rng, origin, clone, names):
    name = rng.choice(names)
    size = os.path.getsize(f"{origin}/{name}")
    if size == 0:
        return
    fd = os.open(f"{clone}/{name}", os.O_RDONLY)
    try:
        m = mmap.mmap(fd, 0, flags=rng.choice((mmap.MAP_PRIVATE, mmap.MAP_SHARED)), prot=mmap.PROT_READ)
    finally:
        os.close(fd)
    with m:
        for _ in range(rng.randrange(1, 8)):
            offset, count = some_range(rng, size)
            same(m[offset:offset + count], part(f"{origin}/{name}", offset, count), f"mapping of {name} at {offset}")
            if rng.randrange(4) == 0:
                m.madvise(mmap.MADV_DONTNEED)


def listing(top):
    def refuse(e):
        raise e

    return sorted((os.path.relpath(os.path.join(d, n), top), 0 if n in dirs else os.lstat(os.path.join(d, n)).st_size)
                  for d, dirs, files in os.walk(top, onerror=refuse) for n in dirs + files)


def walk(_, origin, clone, __):
    got, want = listing(clone), listing(origin)
    if got != want:
        raise Wrong(f"names or sizes: {sorted(set(got) ^ set(want))[:4]}")


KINDS = {"reader": read, "mapper": map_, "walker": walk}


def work(kind, seed, args, names, out):
    rng = random.Random(seed)
    while True:
        begin = time.monotonic()
        said = {"kind": kind}
        try:
            KINDS[kind](rng, args.origin, args.clone, names)
        except Wrong as e:
            said["wrong"] = str(e)
        except OSError as e:
            name = errno.errorcode.get(e.errno, str(e.errno))
            if name not in args.allow:
                said["failed"] = f"{kind}: {name} {e.filename or ''}"
        said["seconds"] = time.monotonic() - begin
        os.write(out, json.dumps(said).encode() + b"\n")


class Workers:
    def __init__(self, args, names):
        self.pipes, self.pids, self.kinds = {}, {}, {}
        for kind, n in (("reader", args.readers), ("mapper", args.mappers), ("walker", args.walkers)):
            for i in range(n):
                r, w = os.pipe()
                pid = os.fork()
                if pid == 0:
                    try:
                        for fd in self.pipes:
                            os.close(fd)
                        os.close(r)
                        signal.signal(signal.SIGINT, signal.SIG_DFL)
                        work(kind, f"{args.seed} {kind} {i}", args, names, w)
                    finally:
                        os._exit(1)
                os.close(w)
                self.pipes[r], self.pids[r], self.kinds[r] = b"", pid, kind
        self.done = dict.fromkeys(self.pipes, 0)
        self.count, self.wrong, self.failed, self.longest = {k: 0 for k in KINDS}, [], [], 0.0

    def listen(self, seconds):
        """Take what they say for so long."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 and self.pipes:
            for fd in select.select(list(self.pipes), [], [], left)[0]:
                data = os.read(fd, 65536)
                if not data:
                    self.ended(fd)
                    continue
                *lines, self.pipes[fd] = (self.pipes[fd] + data).split(b"\n")
                for line in lines:
                    self.hear(fd, json.loads(line))

    def hear(self, fd, said):
        self.done[fd] += 1
        self.count[said["kind"]] += 1
        self.longest = max(self.longest, said["seconds"])
        if "wrong" in said:
            self.wrong.append(said["wrong"])
        if "failed" in said:
            self.failed.append(said["failed"])

    def ended(self, fd):
        _, status = os.waitpid(self.pids.pop(fd), 0)
        os.close(fd)
        del self.pipes[fd]
        self.failed.append(f"{self.kinds[fd]}: " + (signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else f"status {status}"))

    def all_move(self, limit):
        """Whether each of them gets something done that was begun from now on: the second that it reports."""
        before, end = dict(self.done), time.monotonic() + limit
        while any(self.done[fd] < before[fd] + 2 for fd in self.pipes):
            if time.monotonic() > end:
                return False
            self.listen(0.05)
        return True

    def stop(self):
        for fd, pid in self.pids.items():
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            os.close(fd)
        self.pipes, self.pids = {}, {}


def command(args, n, workers):
    """Run it, and say why that failed. The workers are listened to meanwhile: nobody stops because nobody takes what he says."""
    with tempfile.TemporaryFile() as said:
        p = subprocess.Popen(args.command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, env=dict(os.environ, STORM_ROUND=str(n)))
        end = time.monotonic() + args.limit
        while p.poll() is None:
            if time.monotonic() > end:
                p.kill()
                p.wait()
                return f"not done after {args.limit} s"
            workers.listen(0.005)
        said.seek(0)
        return f"status {p.returncode}: {said.read()[-300:].decode(errors='replace')}" if p.returncode else None


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    p.add_argument("--rounds", type=int, default=20)
    p.add_argument("--pause", type=float, default=0.5, metavar="SECONDS", help="the longest between two rounds")
    p.add_argument("--limit", type=float, default=120, metavar="SECONDS", help="for the command, and for the workers afterwards")
    p.add_argument("--readers", type=int, default=8)
    p.add_argument("--mappers", type=int, default=4)
    p.add_argument("--walkers", type=int, default=2)
    p.add_argument("--allow", default="", metavar="ERRNO,...", help="errors that are no failure")
    p.add_argument("--seed", default=str(random.SystemRandom().randrange(1 << 32)))
    p.add_argument("origin")
    p.add_argument("clone")
    p.add_argument("command", nargs="+")
    args = p.parse_args()
    args.allow = set(filter(None, args.allow.split(",")))
    names = [n for n, _ in listing(args.origin) if os.path.isfile(f"{args.origin}/{n}") and not os.path.islink(f"{args.origin}/{n}")]
    rng = random.Random(args.seed)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    workers = Workers(args, names)
    broken = []
    try:
        for n in range(args.rounds):
            workers.listen(rng.random() * args.pause)
            why = command(args, n, workers)
            if why:
                broken.append(f"round {n}: {why}")
        moving = workers.all_move(args.limit)
    finally:
        workers.stop()
    good = moving and not (workers.wrong or workers.failed or broken) and all(workers.count[k] for k, n in (
        ("reader", args.readers), ("mapper", args.mappers), ("walker", args.walkers)) if n)
    print(json.dumps({"good": good, "rounds": args.rounds, "seed": args.seed, **workers.count, "longest_seconds": round(workers.longest, 3),
                      "wrong": len(workers.wrong), "failed": len(workers.failed), "moving": moving, "first_wrong": workers.wrong[:5],
                      "first_failed": workers.failed[:5], "command_failed": broken[:5]}, ensure_ascii=False))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
