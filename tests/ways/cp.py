# SPDX-License-Identifier: LGPL-2.1-or-later
"""cp"""

import os

from way import SIZE, NotHere, read, way


def add(sparse, reflink, inside):
    where = "within the clone" if inside else "out of the clone"
    may_refuse = "only filesystems with reflinks can, within one" if reflink == "always" else None

    @way(f"cp --sparse={sparse} --reflink={reflink}, {where}", files={"f": SIZE, "g": 1 << 20}, may_refuse=may_refuse,
         quick=inside and sparse == reflink == "auto")
    def one(w):
        if reflink == "always" and sparse != "auto":
            raise NotHere("cp knows --reflink=always with --sparse=auto only")
        for n in "fg":
            to = w.path(n + ".copy") if inside else os.path.join(w.tmp, n)
            w.run("cp", "--sparse=" + sparse, "--reflink=" + reflink, w.path(n), to)
            w.same(read(to), name=n)


for i in (True, False):
    for s in ("auto", "always", "never"):
        for r in ("auto", "always", "never"):
            add(s, r, i)


@way("cp -a of a directory")
def archive(w):
    w.run("cp", "-a", w.dir, os.path.join(w.tmp, "copy"))
    w.same(read(os.path.join(w.tmp, "copy", "f")))


@way("mv to another filesystem")
def moved(w):
    to = os.path.join(w.tmp, "f")
    w.run("mv", w.path(), to)
    w.same(read(to))
