# SPDX-License-Identifier: LGPL-2.1-or-later
"""The smallest FUSE server: one directory, whose names are shown or hidden, thread by thread; it can stop answering. For facts about the
kernel, and for what must not wait for such a server. Numbers and layouts are those of linux/fuse.h (7.31)."""

import ctypes
import errno
import mmap
import os
import struct

LOOKUP, FORGET, GETATTR, SETATTR, MKNOD, UNLINK, STATFS, INIT, OPENDIR, INTERRUPT, BATCH_FORGET = 1, 2, 3, 4, 8, 10, 17, 26, 27, 36, 42
INVAL_INODE, INVAL_ENTRY, DELETE, RESEND = 2, 3, 6, 7
EXPIRE_ONLY, RESENT = 1, 1 << 63
libc = ctypes.CDLL(None, use_errno=True)


class Server:
    """Mounted at @path, as root; served by a process of its own. What it says is believed for @seconds. Without @others only its owner
    may look at it."""

    def __init__(self, path, names=(), seconds=3600, others=True):
        self.path, self.inodes, self.seconds = path, {n: i + 2 for i, n in enumerate(names)}, seconds
        self.shared = mmap.mmap(-1, mmap.PAGESIZE)  # the thread that names are hidden from; is it silent?
        self.fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        options = f"fd={self.fd},rootmode=40000,user_id=0,group_id=0{',allow_other,default_permissions' if others else ''}".encode()
        if libc.mount(b"facts", os.fsencode(path), b"fuse", 0, options) < 0:
            raise OSError(ctypes.get_errno(), "mount")
        self.log, log = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                self._serve(log)
            finally:
                os._exit(0)
        os.close(log)

    def stop(self):
        libc.umount2(os.fsencode(self.path), 3)  # MNT_FORCE, MNT_DETACH: who waits gets an error
        os.close(self.fd)
        os.waitpid(self.pid, 0)
        os.close(self.log)

    def hide(self, tid):
        """From this thread all names are hidden (0: from nobody)."""
        self.shared[:8] = struct.pack("Q", tid)

    def silence(self):
        """Nothing is answered from now on."""
        self.shared[8:9] = b"s"

    def asked_in_silence(self):
        """The opcodes of what was asked since the last call."""
        os.set_blocking(self.log, False)
        try:
            return [int(n) for n in os.read(self.log, 1 << 16).split()]
        except BlockingIOError:
            return []

    def notify(self, code, body):
        """Returns an errno, or 0."""
        try:
            os.write(self.fd, struct.pack("IiQ", 16 + len(body), code, 0) + body)
        except OSError as e:
            return e.errno
        return 0

    def inval_entry(self, name, flags=0):
        return self.notify(INVAL_ENTRY, struct.pack("QII", 1, len(name), flags) + name.encode() + b"\0")

    def inval_inode(self, name):
        return self.notify(INVAL_INODE, struct.pack("Qqq", self.inodes[name], 0, 0))

    def delete(self, name):
        return self.notify(DELETE, struct.pack("QQII", 1, self.inodes[name], len(name), 0) + name.encode() + b"\0")

    def asked(self):
        """The next LOOKUP: its thread and its name. (Other requests are not written down.)"""
        line = b""
        while not line.endswith(b"\n"):
            piece = os.read(self.log, 1)
            assert piece, "the server has ended"
            line += piece
        tid, name = line.decode().split()
        return int(tid), name

    # ---- the process that serves ----

    def _attr(self, ino):
        mode = 0o40755 if ino == 1 else 0o100644
        return struct.pack("QQQQQQIIIIIIIIII", ino, 0, 0, 1, 1, 1, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)

    def _entry(self, ino):
        return struct.pack("QQQQII", ino, 1, self.seconds, self.seconds, 0, 0) + self._attr(ino)

    def _answer(self, opcode, node, tid, unique, body, log):
        if opcode == INIT:
            major, _, readahead, _ = struct.unpack_from("IIII", body)
            return struct.pack("IIIIHHIIHH32x", major, 31, readahead, 0, 16, 12, 1 << 17, 1, 32, 0)
        if opcode == LOOKUP:
            name = body.rstrip(b"\0").decode()
            if not unique & RESENT:
                os.write(log, f"{tid} {name}\n".encode())
                if name == "held":
                    return None
            hidden, = struct.unpack("Q", self.shared[:8])
            return self._entry(self.inodes[name]) if name in self.inodes and tid != hidden else errno.ENOENT
        if opcode in (GETATTR, SETATTR):
            return struct.pack("QII", self.seconds, 0, 0) + self._attr(node)
        if opcode == MKNOD:
            return self._entry(self.inodes[body[16:].rstrip(b"\0").decode()])
        if opcode == STATFS:
            return struct.pack("QQQQQIII28x", 1, 1, 1, 9, 9, 4096, 255, 4096)
        if opcode == OPENDIR:
            return bytes(16)
        if opcode == UNLINK:
            return b""
        return None if opcode in (FORGET, BATCH_FORGET, INTERRUPT) else errno.ENOSYS

    def _serve(self, log):
        while True:
            try:
                request = os.read(self.fd, 1 << 20)
            except OSError as e:
                if e.errno in (errno.ENOENT, errno.EINTR, errno.EAGAIN):
                    continue
                return
            _, opcode, unique, node, _, _, tid = struct.unpack_from("IIQQIII", request)
            if self.shared[8:9] == b"s":
                os.write(log, f"{opcode}\n".encode())
                continue
            answer = self._answer(opcode, node, tid, unique, request[40:], log)
            if answer is None:
                continue
            err, out = (-answer, b"") if isinstance(answer, int) else (0, answer)
            try:
                os.write(self.fd, struct.pack("IiQ", 16 + len(out), err, unique) + out)
            except OSError as e:
                if e.errno != errno.ENOENT:  # it was given up
                    raise
