# SPDX-License-Identifier: LGPL-2.1-or-later
"""Asynchronous reads"""

import subprocess

from way import NotHere, program, tool, way


def add(how, title, quick=False):
    @way(title, quick=quick)
    def one(w):
        p = subprocess.run([tool("aread"), how, w.path()], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False)
        if p.returncode == 77:
            raise NotHere(p.stderr.decode().strip())
        w.same(p.stdout if p.returncode == 0 else program([tool("aread"), how, w.path()]))


add("aio", "io_submit")
add("aio-direct", "io_submit, O_DIRECT")
add("uring", "io_uring read", True)
add("nowait", "io_uring read, RWF_NOWAIT", True)
add("async", "io_uring read, by a worker (IOSQE_ASYNC)")
add("sqpoll", "io_uring read, by the polling thread (SQPOLL)")
add("fixed", "io_uring read, registered file and buffer")
add("splice", "io_uring splice")
