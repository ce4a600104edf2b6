#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Make a tree of what maketree.py leaves out: rare modes, types and times, names by the thousand, paths beyond PATH_MAX.

Usage: oddtree.py DIR OUTSIDE   (OUTSIDE: a directory on the same filesystem that gets one more name of a file)
"""

import os
import random
import socket
import sys


def file(path, data=b"", mode=None):
    with open(path, "wb") as f:
        f.write(data)
    if mode is not None:
        os.chmod(path, mode)


def main():
    top, outside = sys.argv[1], os.path.abspath(sys.argv[2])
    rng = random.Random(815)
    os.makedirs(top, exist_ok=True)
    os.chdir(top)
    root = os.geteuid() == 0

    os.mkdir("types")
    s = socket.socket(socket.AF_UNIX)
    s.bind("types/socket")
    s.close()
    os.chmod("types/socket", 0o751)
    os.mkfifo("types/fifo", 0o604)
    if root:
        os.mknod("types/null", 0o020666, os.makedev(1, 3))
        os.mknod("types/block", 0o060640, os.makedev(7, 200000))
        file("types/owned", b"not root's")
        os.chown("types/owned", 12345, 54321)
        os.symlink("owned", "types/owned-link")
        os.chown("types/owned-link", 12345, 54321, follow_symlinks=False)
        file("types/none", b"nobody may", 0)
        os.chown("types/socket", 7, 8)

    os.mkdir("modes")
    for mode in (0o444, 0o4711, 0o2711, 0o6755, 0o1644, 0o200 if root else 0o600, 0o111 if root else 0o511):
        file(f"modes/{mode:o}", b"%o" % mode, mode)
    for mode in (0o555, 0o700, 0o1777, 0o2775):
        os.mkdir(f"modes/d{mode:o}")
        file(f"modes/d{mode:o}/file", b"in %o" % mode)
        os.chmod(f"modes/d{mode:o}", mode)

    os.makedirs("hard/sub")
    file("hard/a", rng.randbytes(70000))
    os.link("hard/a", "hard/b")
    os.link("hard/a", "hard/sub/c")
    file("hard/two", b"one of its names is elsewhere")
    os.link("hard/two", os.path.join(outside, "two"))

    os.mkdir("times")
    for ns in (0, 1, -1, -1_000_000_001, -86400 * 365 * 40 * 10**9 - 123, 999_999_999, 10**18 + 987_654_321, 2**31 * 10**9,
               4_102_444_800_000_000_001):
        file(f"times/{ns}", b"%d" % ns)
        os.utime(f"times/{ns}", ns=(ns, ns))
        os.mkdir(f"times/d{ns}")
        os.symlink("x", f"times/l{ns}")
        for p in (f"times/d{ns}", f"times/l{ns}"):
            os.utime(p, ns=(ns, ns), follow_symlinks=False)

    os.mkdir("names")
    for i in range(1, 256):
        if i not in (0x2f,):
            file(b"names/" + bytes([i]) + b"x", b"%d" % i)
    file("names/" + "\u00e9" * 127, b"254 bytes")
    file(b"names/" + b"\xff" * 255, b"255 bytes")
    os.symlink(b"\xff\n-" * 300, "names/target")

    os.mkdir("thousands")
    for i in range(5000):
        file(f"thousands/name of a file that is not very short {i:06}", b"" if i % 7 else b"%d" % i)

    # 20 * 255 bytes: no system call takes that in one path.
    os.mkdir("deep")
    fd = os.open("deep", os.O_RDONLY)
    for i in range(20):
        name = b"%02d" % i + b"d" * 253
        os.mkdir(name, dir_fd=fd)
        nfd = os.open(name, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = nfd
        w = os.open("file", os.O_WRONLY | os.O_CREAT, 0o644, dir_fd=fd)
        os.write(w, b"level %d" % i)
        os.close(w)
    os.close(fd)


main()
