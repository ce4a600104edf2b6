#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""If this fails, `sluice verify` says that a clone is right when it is not, or an old version of a file is mixed with a new one."""

import json
import os
import subprocess
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tools"))
import slt  # noqa: E402
from slt import is_, ok  # noqa: E402

O, C = os.path.join(slt.T, "o"), os.path.join(slt.T, "c")


def write(path, data):
    with open(path, "wb") as f:
        f.write(data)


def read(path):
    with open(path, "rb") as f:
        return f.read()


def verify(*paths):
    """Exit status, the differences by path, and the final line."""
    p = subprocess.run([slt.SLUICE, "verify", "--json", *paths], stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False)
    lines = [json.loads(x) for x in p.stdout.splitlines()]
    return p.returncode, {x["path"]: x["kind"] for x in lines[:-1]}, lines[-1]


def rot(path):
    """One byte of it, with its times kept."""
    st = os.stat(path)
    data = bytearray(read(path))
    data[4321] ^= 1
    write(path, bytes(data))
    os.utime(path, ns=(st.st_atime_ns, st.st_mtime_ns))


def rot_in_image(store, name):
    """The same in the image of a native clone, which is mounted for that while no service runs."""
    image, mnt = store + "/image", os.path.join(slt.T, "mnt")
    slt.sluice("stop", C)
    with open(image, "rb") as f:  # how long the filesystem says that it is: the file ends before
        head = f.read(16)
    os.truncate(image, int.from_bytes(head[4:8], "big") * int.from_bytes(head[8:16], "big"))
    os.mkdir(mnt)
    slt.out("mount", "-o", "loop", image, mnt)
    rot(f"{mnt}/tree/{name}")
    slt.out("umount", mnt)
    slt.sluice("start", C)


def test():
    os.makedirs(os.path.join(O, "d/sub"))
    big = os.urandom(8 << 20)
    write(os.path.join(O, "big"), big)
    for i in range(20):
        write(os.path.join(O, f"d/f{i}"), os.urandom(1000 * i))
    os.symlink("f1", os.path.join(O, "d/link"))
    slt.clone(slt.serve("s", O, "--no-events")[0], C)  # nobody tells the clone what differs

    for i in range(20):
        read(os.path.join(C, f"d/f{i}"))
    with open(os.path.join(C, "big"), "rb") as f:
        f.seek(3 << 20)
        f.read(70000)
    status, items, last = verify(C)
    is_((status, items), (0, {}), "what is here is equal")
    ok(last["files"] == 20 and last["bytes"] >= sum(1000 * i for i in range(20)) + 65536, "and was compared", last)

    # Local changes are no differences.
    write(os.path.join(C, "d/mine"), b"mine")
    write(os.path.join(C, "d/f2"), b"changed here")
    os.unlink(os.path.join(C, "d/f3"))
    os.rename(os.path.join(C, "d/f4"), os.path.join(C, "d/moved"))
    is_(verify(C)[:2], (0, {}), "what was changed here is no difference")

    # The origin moves on.
    write(os.path.join(O, "d/f5"), b"new content of f5")
    os.unlink(os.path.join(O, "d/f6"))
    write(os.path.join(O, "d/new"), b"new")
    status, items, last = verify(C)
    is_(status, 3, "differences: exit status 3")
    is_(items, {"d/f5": "changed", "d/f6": "changed", "d/new": "changed"}, "each is named as changed at the origin")
    is_(last["wrong"], 0, "and nothing is called wrong")

    # A byte rots in the store, behind our back, with the file's times kept.
    store = slt.status(C)["store"]
    if slt.NATIVE:
        rot_in_image(store, "d/f7")
    else:
        rot(f"{store}/tree/d/f7")
    status, items, last = verify(os.path.join(C, "d"))
    is_((status, items.get("d/f7")), (3, "wrong"), "one wrong byte is found")

    # A file that changes at the origin between two reads of parts of it.
    new = os.urandom(8 << 20)
    write(os.path.join(O, "big"), new)
    # What is here of the old version may answer the first of the requests that the kernel makes of one large read(2); what is asked
    # of the origin then tells.
    read(os.path.join(C, "big"))
    got = read(os.path.join(C, "big"))
    ok(new == got, "after a change at the origin a partly fetched file is read entirely anew",
       f"equal to the old in {sum(a == b for a, b in zip(got[::4096], big[::4096]))} of 2048 pages")
    ok(slt.status(C, "--brief")["restarts"] >= 1, "because the version was compared")

    # Replaced by another file, of another size, under the same name.
    write(os.path.join(O, "x"), b"y" * 100000)
    os.rename(os.path.join(O, "x"), os.path.join(O, "d/f9"))
    slt.sluice("evict", os.path.join(C, "d/f9"))

    def new_file():
        try:
            return read(os.path.join(C, "d/f9")) == b"y" * 100000
        except OSError:  # opened before it was replaced here, and nothing of it was here: see limits.md
            return False
    slt.wait_for(60, "the new file", new_file)
    ok(True, "a file that was replaced at the origin is the new one once it is fetched again")
    is_(os.stat(os.path.join(C, "d/f9")).st_size, 100000, "with its size")

    p = subprocess.run([slt.SLUICE, "verify", C], stdout=subprocess.PIPE, check=False)
    ok(p.returncode == 3 and b"wrong" in p.stdout and b"d/f7" in p.stdout, "without --json for people", p.stdout)


slt.run(test, also_as_user=True)
