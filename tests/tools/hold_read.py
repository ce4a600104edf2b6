#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""hold_read.py SOCKET HELD: a connection to an export, for `exec:`. The answer to the first READ of the beginning of a file is held back, which
is written to the file HELD, until half a second after the answer to a LOOKUP or GETATTR passed that was asked for after that was there."""

import os
import select
import socket
import struct
import sys
import time

LOOKUP, GETATTR, READ = 1, 3, 15
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
buf = {0: b"", s.fileno(): b""}
read, asked, kept, until = None, set(), b"", None


def message(fd, at):
    """The next whole message that came from @fd, or None."""
    b = buf[fd]
    n = struct.unpack_from("I", b)[0] if len(b) >= at else 0
    if not n or len(b) < n:
        return None
    buf[fd] = b[n:]
    return b[:n]


while True:
    ready, _, _ = select.select(list(buf), [], [], None if until is None else max(0, until - time.monotonic()))
    for fd in ready:
        got = os.read(fd, 1 << 20)
        if not got:
            sys.exit(0)
        buf[fd] += got
    while m := message(0, 40):
        opcode, unique = struct.unpack_from("=IQ", m, 4)
        if opcode == READ and read is None and struct.unpack_from("=Q", m, 48)[0] == 0:
            read = unique
        elif opcode in (LOOKUP, GETATTR) and kept and os.path.exists(sys.argv[2] + ".grown"):
            asked.add(unique)
        s.sendall(m)
    while m := message(s.fileno(), 16):
        unique = struct.unpack_from("=Q", m, 8)[0]
        if unique == read and not kept and until is None:
            kept = m
            with open(sys.argv[2], "w", encoding="ascii"):
                pass
            continue
        sys.stdout.buffer.write(m)
        sys.stdout.buffer.flush()
        if unique in asked and until is None:
            until = time.monotonic() + 0.5
    if kept and until is not None and time.monotonic() >= until:
        sys.stdout.buffer.write(kept)
        sys.stdout.buffer.flush()
        kept, until, read = b"", None, 0
