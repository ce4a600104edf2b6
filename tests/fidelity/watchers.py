# SPDX-License-Identifier: LGPL-2.1-or-later
"""Watchers of directories, with the kernel's own interfaces: what an inotify or a fanotify program hears, as plain tuples.

An event is (directory, kind, name): the directory is the label under which it was watched, kind is like "CREATE|ISDIR".
The two halves of a rename that inotify reports have a number after their kind that pairs them: "MOVED_FROM 1", "MOVED_TO 1".
fanotify's rename is one event: (directory, "RENAME", name, directory, name); a directory that nobody watches is "?".
"""

import ctypes
import os
import select
import struct
import time

import heard

LIBC = ctypes.CDLL(None, use_errno=True)

KINDS = {0x1: "ACCESS", 0x2: "MODIFY", 0x4: "ATTRIB", 0x8: "CLOSE_WRITE", 0x10: "CLOSE_NOWRITE", 0x20: "OPEN", 0x40: "MOVED_FROM",
         0x80: "MOVED_TO", 0x100: "CREATE", 0x200: "DELETE", 0x400: "DELETE_SELF", 0x800: "MOVE_SELF", 0x2000: "UNMOUNT",
         0x4000: "Q_OVERFLOW", 0x8000: "IGNORED", 0x10000000: "RENAME"}
ISDIR = 0x40000000
CHANGES = 0x2 | 0x4 | 0x8 | 0x40 | 0x80 | 0x100 | 0x200 | 0x400 | 0x800

ORDER = (0x100, 0x80, 0x20, 0x1, 0x2, 0x4, 0x8, 0x10, 0x40, 0x200, 0x800, 0x400)  # one after the other, as things usually go

FAN_CLASS_NOTIF, FAN_CLOEXEC, FAN_NONBLOCK = 0, 0x1, 0x2
FAN_REPORT_FID, FAN_REPORT_DIR_FID, FAN_REPORT_NAME = 0x200, 0x400, 0x800
FAN_MARK_ADD, FAN_ONDIR, FAN_EVENT_ON_CHILD, FAN_RENAME = 0x1, 0x40000000, 0x08000000, 0x10000000
AT_FDCWD, AT_EMPTY_PATH = -100, 0x1000
INFO_FID, INFO_DFID_NAME, INFO_DFID, INFO_OLD_DFID_NAME, INFO_NEW_DFID_NAME = 1, 2, 3, 10, 12


def fail(what):
    e = ctypes.get_errno()
    raise OSError(e, f"{what}: {os.strerror(e)}")


def kind(mask):
    words = [w for bit, w in KINDS.items() if mask & bit]
    return "|".join(words + ["ISDIR"] * bool(mask & ISDIR))


class Watcher:
    """@dirs: label -> path. Events are collected by read() and settle()."""

    def __init__(self, dirs):
        self.events = []
        self.dirs = dict(dirs)
        self.fd = -1

    def read(self):
        """What the kernel has now. True if there was something."""
        try:
            data = os.read(self.fd, 1 << 18)
        except BlockingIOError:
            return False
        self.parse(data)
        return True

    def wait(self, cond, seconds=120):
        """Read until @cond(self.events); False if that takes longer."""
        end = time.monotonic() + seconds
        while not cond(self.events):
            left = end - time.monotonic()
            if left <= 0:
                return False
            select.select([self.fd], [], [], min(left, 1))
            while self.read():
                pass
        return True

    def take(self):
        v, self.events = self.events, []
        return v

    def close(self):
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def parse(self, data):
        raise NotImplementedError


class Inotify(Watcher):
    def __init__(self, dirs, mask=CHANGES):
        super().__init__(dirs)
        self.mask, self.labels, self.cookies = mask, {}, {}
        self.fd = LIBC.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self.fd < 0:
            fail("inotify_init1")
        for label, path in dirs.items():
            self.add(label, path)

    def add(self, label, path):
        wd = LIBC.inotify_add_watch(self.fd, os.fsencode(path), self.mask | 0x01000000)
        if wd < 0:
            fail(f"inotify_add_watch {path}")
        self.labels[wd] = label

    def parse(self, data):
        for wd, mask, cookie, name in heard.inotify(data):
            text = kind(mask)
            if cookie:
                text += f" {self.cookies.setdefault(cookie, len(self.cookies) + 1)}"
            self.events.append((self.labels.get(wd, "?"), text, name))

    def take(self):
        self.cookies = {}
        return super().take()


def handle_of(path):
    """Type and bytes of an object's handle, as fanotify reports them."""
    buf = ctypes.create_string_buffer(8 + 128)
    struct.pack_into("Ii", buf, 0, 128, 0)
    mnt = ctypes.c_int()
    if LIBC.name_to_handle_at(AT_FDCWD, os.fsencode(path), buf, ctypes.byref(mnt), 0) < 0:
        fail(f"name_to_handle_at {path}")
    n, t = struct.unpack_from("Ii", buf, 0)
    return t, buf.raw[8:8 + n]


class Fanotify(Watcher):
    """Marks on the directories' inodes, as any user may set them."""

    def __init__(self, dirs, mask=CHANGES):
        super().__init__(dirs)
        self.labels = {}
        self.mask = (mask & ~0xC0) | FAN_RENAME | FAN_ONDIR | FAN_EVENT_ON_CHILD
        self.fd = LIBC.fanotify_init(FAN_CLASS_NOTIF | FAN_CLOEXEC | FAN_NONBLOCK | FAN_REPORT_FID | FAN_REPORT_DIR_FID | FAN_REPORT_NAME, os.O_RDONLY)
        if self.fd < 0:
            fail("fanotify_init")
        for label, path in dirs.items():
            self.add(label, path)

    def add(self, label, path):
        if LIBC.fanotify_mark(self.fd, FAN_MARK_ADD, ctypes.c_uint64(self.mask), AT_FDCWD, os.fsencode(path)) < 0:
            fail(f"fanotify_mark {path}")
        self.labels[handle_of(path)] = label

    def parse(self, data):
        for mask, _, _, records in heard.fanotify(data):
            places = {}
            for what, record in records:
                n, t = struct.unpack_from("Ii", record, 8)
                name = heard.name_in(record) if what in (INFO_DFID_NAME, INFO_OLD_DFID_NAME, INFO_NEW_DFID_NAME) else ""
                places[what] = (self.labels.get((t, record[16:16 + n]), "?"), name)
            old, new = places.get(INFO_OLD_DFID_NAME), places.get(INFO_NEW_DFID_NAME)
            if mask & FAN_RENAME and (old or new):
                self.events.append((old or ("?", ""))[:1] + (kind(mask), (old or ("?", ""))[1]) + (new or ("?", "")))
                continue
            where = places.get(INFO_DFID_NAME) or places.get(INFO_DFID) or places.get(INFO_FID) or ("?", "")
            # What nobody had read yet is merged: events of one name become one of many kinds, without their order.
            for bit in ORDER:
                if mask & bit:
                    self.events.append((where[0], kind(bit | mask & ISDIR), "" if where[1] == "." else where[1]))
