# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the kernel's events say, and what a recursive inotify watcher on a mount hears."""

import ctypes
import os
import select
import struct
import time

MODIFY, ATTRIB, CLOSE_WRITE, FROM, TO, CREATE, DELETE = 0x2, 0x4, 0x8, 0x40, 0x80, 0x100, 0x200
Q_OVERFLOW, IGNORED, ISDIR = 0x4000, 0x8000, 0x40000000
ALL = MODIFY | ATTRIB | CLOSE_WRITE | FROM | TO | CREATE | DELETE
KINDS = {MODIFY: "modify", ATTRIB: "attrib", CLOSE_WRITE: "close", FROM: "from", TO: "to", CREATE: "create", DELETE: "delete",
         Q_OVERFLOW: "OVERFLOW"}
libc = ctypes.CDLL(None, use_errno=True)


def inotify(buf):
    """(watch, mask, cookie, name) of each event that was read."""
    at = 0
    while at < len(buf):
        wd, mask, cookie, n = struct.unpack_from("iIII", buf, at)
        yield wd, mask, cookie, os.fsdecode(buf[at + 16:at + 16 + n].rstrip(b"\0"))
        at += 16 + n


def fanotify(buf):
    """(mask, descriptor, pid, [(type, record)]) of each event that was read; a record is what follows its header."""
    at = 0
    while at < len(buf):
        n, _, _, meta, mask, fd, pid = struct.unpack_from("=IBBHQii", buf, at)
        records, info = [], at + meta
        while info < at + n:
            kind, _, size = struct.unpack_from("=BBH", buf, info)
            records.append((kind, buf[info + 4:info + size]))
            info += size
        yield mask, fd, pid, records
        at += n


def name_in(record):
    """The name in a record that has a handle and one."""
    handle, = struct.unpack_from("=I", record, 8)
    return os.fsdecode(record[16 + handle:].split(b"\0")[0])


class Watcher:
    """Of the directory @top and the directories in it that are there now; marker files end a round."""

    def __init__(self, top):
        self.top, self.names, self.rounds = top, {}, 0
        self.fd = libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        assert self.fd >= 0
        for d, _, _ in os.walk(top):
            self.add(os.path.relpath(d, top))

    def add(self, path):
        wd = libc.inotify_add_watch(self.fd, os.fsencode(os.path.join(self.top, path)), ALL)
        assert wd >= 0, os.strerror(ctypes.get_errno())
        self.names[wd] = "" if path == "." else path + "/"

    def read(self, seconds):
        """What there is: (kind, path, is a directory, cookie)."""
        if not select.select([self.fd], [], [], seconds)[0]:
            return []
        got = []
        for wd, mask, cookie, name in inotify(os.read(self.fd, 1 << 16)):
            if mask & IGNORED:
                continue
            kind = next(k for b, k in KINDS.items() if mask & b)
            got.append((kind, self.names.get(wd, "?") + name, bool(mask & ISDIR), cookie))
        return got

    def until(self, stop, seconds=120):
        """Everything before the event that @stop says is the last."""
        got, end = [], time.monotonic() + seconds
        while True:
            for i, e in enumerate(more := self.read(0.5)):
                if stop(e):
                    assert all(x[1] == e[1] for x in more[i:]), more[i:]
                    return got + more[:i]
            got += more
            assert time.monotonic() < end, ("the last event never came", got)

    def round(self, tree):
        """Everything until now: a marker is made behind the mount, and taken away again."""
        self.rounds += 1
        marker = f"marker-{self.rounds}"
        os.mkdir(os.path.join(tree, marker))
        got = self.until(lambda e: e[0] == "create" and e[1] == marker)
        os.rmdir(os.path.join(tree, marker))
        assert self.until(lambda e: e[0] == "delete" and e[1] == marker) == []
        return got

    def close(self):
        os.close(self.fd)
