# SPDX-License-Identifier: LGPL-2.1-or-later
"""Sizes"""

import mmap
import os

from way import Wrong, read, way


def add(size, text):
    @way(f"read and mmap, {text}", files={"f": size, "g": size}, blind="an empty file has no bytes" if size == 0 else None, quick=size == 1)
    def one(w):
        if os.stat(w.path()).st_size != size:
            raise Wrong(f"its size is {os.stat(w.path()).st_size}")
        w.same(read(w.path()))
        if size:
            with open(w.path("g"), "rb") as f, mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ) as m:
                w.same(m[:], name="g")


for n, t in ((0, "0 bytes"), (1, "1 byte"), (4095, "4095 bytes"), (4096, "4096 bytes"), (4097, "4097 bytes"), (65535, "64 KiB less 1"),
             (65536, "64 KiB"), (65537, "64 KiB and 1"), (1 << 20, "1 MiB"), (40 << 20, "40 MiB"), ((40 << 20) + 1, "40 MiB and 1")):
    add(n, t)
