# SPDX-License-Identifier: LGPL-2.1-or-later
"""An inotify watcher: what the kernel says of some directories, in order, read by a thread of its own."""

import ctypes
import os
import threading
import time

import heard

ACCESS, MODIFY, ATTRIB, CLOSE_WRITE, CLOSE_NOWRITE, OPEN = 1, 2, 4, 8, 16, 32
MOVED_FROM, MOVED_TO, CREATE, DELETE, DELETE_SELF, MOVE_SELF = 64, 128, 256, 512, 1024, 2048
ISDIR, IGNORED, Q_OVERFLOW = 0x40000000, 0x8000, 0x4000
CHANGES = MODIFY | ATTRIB | CLOSE_WRITE | MOVED_FROM | MOVED_TO | CREATE | DELETE | DELETE_SELF | MOVE_SELF
NAMES = {MODIFY: "MODIFY", ATTRIB: "ATTRIB", CLOSE_WRITE: "CLOSE_WRITE", MOVED_FROM: "MOVED_FROM", MOVED_TO: "MOVED_TO",
         CREATE: "CREATE", DELETE: "DELETE", DELETE_SELF: "DELETE_SELF", MOVE_SELF: "MOVE_SELF", IGNORED: "IGNORED", OPEN: "OPEN",
         ACCESS: "ACCESS", CLOSE_NOWRITE: "CLOSE_NOWRITE", Q_OVERFLOW: "Q_OVERFLOW"}
libc = ctypes.CDLL(None, use_errno=True)


class Event(tuple):
    """(where, kind, name); .cookie, .isdir, .when, .seen: what `look` returned when it was read"""


def kinds(events, *names):
    """Of these names, or of all, without what merely was used; one that is told twice in a row is one (the kernel may merge them, or not)."""
    v = [(w, k, n) for w, k, n in events if k not in ("OPEN", "ACCESS", "CLOSE_NOWRITE") and (not names or n in names)]
    return [e for i, e in enumerate(v) if i == 0 or v[i - 1] != e]


class Watcher:
    def __init__(self, dirs, mask=CHANGES, look=None):
        """@dirs: label -> path. @look(event) is called as each event is read."""
        self.fd = libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        self.where, self.events, self.look, self.lock = {}, [], look, threading.Lock()
        self.mask, self.ended, self.idle = mask, False, 0
        for label, path in dirs.items():
            self.add(label, path)
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def add(self, label, path):
        wd = libc.inotify_add_watch(self.fd, os.fsencode(path), self.mask)
        if wd < 0:
            raise OSError(ctypes.get_errno(), path)
        self.where[wd] = label

    def run(self):
        while not self.ended:
            try:
                data = os.read(self.fd, 1 << 16)
            except BlockingIOError:
                self.idle += 1
                time.sleep(0.0005)
                continue
            except OSError:
                return
            for wd, mask, cookie, name in heard.inotify(data):
                for bit, kind in NAMES.items():
                    if mask & bit:
                        e = Event((self.where.get(wd, "?"), kind, name))
                        e.cookie, e.isdir, e.when = cookie, bool(mask & ISDIR), time.monotonic_ns()
                        e.seen = self.look(e) if self.look else None
                        with self.lock:
                            self.events.append(e)

    def take(self):
        """All events until now."""
        n = self.idle
        while self.idle < n + 2 and self.thread.is_alive():
            time.sleep(0.0005)
        with self.lock:
            v, self.events = self.events, []
        return v

    def wait(self, *want, seconds=60):
        """Until all of @want, which are (where, kind, name), were seen; all events until then."""
        end = time.monotonic() + seconds
        while True:
            with self.lock:
                if all(w in self.events for w in want):
                    v, self.events = self.events, []
                    return v
                got = list(self.events)
            assert time.monotonic() < end, f"waited {seconds} s for {want}, got {got}"
            time.sleep(0.002)

    def close(self):
        self.ended = True
        self.thread.join(10)
        os.close(self.fd)
