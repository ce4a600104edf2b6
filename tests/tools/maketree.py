#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Make a tree for tests: odd names, sizes around boundaries, links, modes, times in the past. The same every time.

Usage: maketree.py DIR [FILES]   (FILES: how many small files beside the special ones; default 200)
"""

import os
import random
import sys

TIME = 1_600_000_000_123_456_789


def main():
    top = os.fsencode(sys.argv[1])
    files = int(sys.argv[2]) if len(sys.argv) > 2 else 200
    rng = random.Random(4711)
    made = []

    def file(rel, size, mode=0o644):
        path = os.path.join(top, rel)
        with open(path, "wb") as f:
            while size > 0:
                n = min(size, 1 << 20)
                f.write(rng.randbytes(n))
                size -= n
        os.chmod(path, mode)
        made.append(path)

    def folder(rel, mode=0o755):
        path = os.path.join(top, rel)
        os.makedirs(path, exist_ok=True)
        os.chmod(path, mode)
        made.append(path)

    folder(b"")
    folder(b"sizes")
    for size in (0, 1, 511, 4095, 4096, 4097, 65535, 65536, 65537, 131072, 1 << 20, (1 << 20) + 1, 3 * (1 << 20) + 17):
        file(b"sizes/%d" % size, size)
    with open(os.path.join(top, b"sizes/sparse"), "wb") as f:
        f.truncate(5 << 20)
        f.seek(2 << 20)
        f.write(b"in the middle")
    made.append(os.path.join(top, b"sizes/sparse"))

    folder(b"names")
    for name in (b"with space", b"new\nline", b"tab\there", b"quote'\"", b"back\\slash", b"\xff\xfe not utf-8", b"-rf", b"*",
                 "ü ß 漢".encode(), b"...", b".hidden", b"n" * 255, b"\x01\x7f", b"$(true)", b"a=b", b"#"):
        file(b"names/" + name, 20 + len(name))

    folder(b"modes")
    for mode in (0o400, 0o600, 0o640, 0o755, 0o444, 0o777, 0o4755, 0o2755):
        file(b"modes/%o" % mode, 100, mode)
    folder(b"modes/sticky", 0o1777)
    folder(b"modes/setgid", 0o2755)

    folder(b"links")
    for name, target in ((b"to-file", b"../sizes/4096"), (b"to-dir", b"../names"), (b"absolute", b"/etc/hostname"),
                         (b"dangling", b"no/such/thing"), (b"loop", b"loop"), (b"long", b"x/" * 500), (b"up", b"../../../..")):
        os.symlink(target, os.path.join(top, b"links", name))
        made.append(os.path.join(top, b"links", name))
    file(b"links/hard1", 5000)
    os.link(os.path.join(top, b"links/hard1"), os.path.join(top, b"links/hard2"))
    os.mkfifo(os.path.join(top, b"links/fifo"))
    made.append(os.path.join(top, b"links/fifo"))

    folder(b"empty")
    folder(b"deep")
    deep = b"deep"
    for i in range(12):
        deep += b"/level%d" % i
        folder(deep)
        file(deep + b"/file", 300 + i)
    folder(b"many")
    for i in range(files):
        if i % 100 == 0:
            folder(b"many/%d" % (i // 100))
        file(b"many/%d/f%05d" % (i // 100, i), rng.randrange(0, 9000))

    for i, path in enumerate(reversed(made)):  # directories after what is in them
        ns = TIME + i * 1_000_000_007
        os.utime(path, ns=(ns, ns), follow_symlinks=False)


main()
