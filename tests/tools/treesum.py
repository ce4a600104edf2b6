#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Compare two trees: names, types, modes, sizes, mtimes in ns, symlink targets, device numbers, hard links, bytes.

Usage: treesum.py [--owners] [--xattrs] [--no-mtime] [--no-dir-mtime] [--no-content] A B
Prints up to 20 differences and ends with 1 when there are any. Names are bytes; nothing is followed.
"""

import os
import stat
import sys


def text(b):
    return b.decode("utf-8", "backslashreplace")


class Tree:
    def __init__(self, root, opts):
        self.root, self.opts, self.first = root, opts, {}

    def facts(self, st, rel):
        """What two objects must have in common, as (what, value) pairs."""
        m = st.st_mode
        out = [("type", stat.S_IFMT(m)), ("mode", oct(stat.S_IMODE(m)))]
        if stat.S_ISREG(m):
            out.append(("size", st.st_size))
        if stat.S_ISCHR(m) or stat.S_ISBLK(m):
            out.append(("device", st.st_rdev))
        if "--no-mtime" not in self.opts and not (stat.S_ISDIR(m) and "--no-dir-mtime" in self.opts):
            out.append(("mtime", st.st_mtime_ns))
        if "--owners" in self.opts:
            out.append(("owner", (st.st_uid, st.st_gid)))
        if not stat.S_ISDIR(m) and st.st_nlink > 1:
            out.append(("hard link to", text(self.first.setdefault((st.st_dev, st.st_ino), rel))))
        return out


def xattrs(path):
    return {n: os.getxattr(path, n, follow_symlinks=False)
            for n in os.listxattr(path, follow_symlinks=False)
            if n.startswith("user.") and not n.startswith("user.sluice")}


def differ(a, b, size):
    """The offset of the first difference of two files, or None."""
    with open(a, "rb", buffering=0) as fa, open(b, "rb", buffering=0) as fb:
        at = 0
        while True:
            x, y = fa.read(1 << 20), fb.read(1 << 20)
            while len(x) < len(y) and (more := fa.read(len(y) - len(x))):
                x += more
            while len(y) < len(x) and (more := fb.read(len(x) - len(y))):
                y += more
            if x != y:
                n = next((i for i, (p, q) in enumerate(zip(x, y)) if p != q), min(len(x), len(y)))
                return at + n
            if not x:
                return None if at == size else at
            at += len(x)


def compare(a, b, opts, found):
    ta, tb = Tree(a, opts), Tree(b, opts)
    todo = [b""]
    while todo and len(found) < 20:
        rel = todo.pop()
        da, db = os.path.join(a, rel), os.path.join(b, rel)
        try:
            na, nb = sorted(os.listdir(da)), sorted(os.listdir(db))
        except OSError as e:
            found.append(f"{text(rel) or '.'}: {e}")
            continue
        if na != nb:
            sa, sb = set(na), set(nb)
            found.extend(f"only in {text(a)}: {text(os.path.join(rel, n))}" for n in sorted(sa - sb)[:10])
            found.extend(f"only in {text(b)}: {text(os.path.join(rel, n))}" for n in sorted(sb - sa)[:10])
            if sa == sb:
                found.append(f"{text(rel) or '.'}: a name is listed twice")
            na = sorted(sa & sb)
        for n in na:
            r = os.path.join(rel, n)
            pa, pb = os.path.join(da, n), os.path.join(db, n)
            try:
                st, su = os.lstat(pa), os.lstat(pb)
                fa, fb = ta.facts(st, r), tb.facts(su, r)
                if fa != fb:
                    x, y = dict(fa), dict(fb)
                    found.append(f"{text(r)}: " + ", ".join(
                        f"{k} {x.get(k)} / {y.get(k)}" for k in dict(fa + fb) if x.get(k) != y.get(k)))
                    continue
                if "--xattrs" in opts and (xa := xattrs(pa)) != (xb := xattrs(pb)):
                    found.append(f"{text(r)}: xattrs {xa} / {xb}")
                if stat.S_ISDIR(st.st_mode):
                    todo.append(r)
                elif stat.S_ISLNK(st.st_mode):
                    if os.readlink(pa) != os.readlink(pb):
                        found.append(f"{text(r)}: target {text(os.readlink(pa))} / {text(os.readlink(pb))}")
                elif stat.S_ISREG(st.st_mode) and "--no-content" not in opts:
                    at = differ(pa, pb, st.st_size)
                    if at is not None:
                        found.append(f"{text(r)}: content differs at {at}")
            except OSError as e:
                found.append(f"{text(r)}: {e}")


def main():
    opts = [x for x in sys.argv[1:] if x.startswith("--")]
    roots = [os.fsencode(x) for x in sys.argv[1:] if not x.startswith("--")]
    known = {"--owners", "--xattrs", "--no-mtime", "--no-dir-mtime", "--no-content"}
    if len(roots) != 2 or set(opts) - known:
        sys.exit(__doc__)
    found = []
    compare(roots[0], roots[1], set(opts), found)
    for line in found[:20]:
        print(line)
    sys.exit(1 if found else 0)


main()
