# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the benchmarks of the native gate share."""

import json
import os
import subprocess

import common
from common import run

CAPACITY = "8G"


def tool(name):
    """bench/NAME.c, as it was built beside the program, or built now."""
    build = os.path.dirname(common.SLUICE)
    path = os.path.join(build, "bench", "bench-" + name)
    if not os.access(path, os.X_OK):
        subprocess.run(["ninja", "-C", build, "bench/bench-" + name], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    if not os.access(path, os.X_OK):
        common.die(f"{path} is not there, and cannot be built")
    return path


def need(b):
    """End here where this machine has no native gate."""
    why = common.native_missing(b)
    if why:
        common.note(f"{b.name}: not measured: {why}")
        b.emit(skipped=why)
        raise SystemExit(0)


class Clone:
    """A native clone of a directory of this machine."""

    def __init__(self, b, tree, name="clone"):
        self.b, self.dir, self.store = b, b.path(name), b.path(name + ".store")
        run(common.SLUICE, "clone", "--no-start", "--gate", "fanotify", "--capacity", CAPACITY, "--store", self.store, tree, self.dir)
        self.seconds = self.start()

    def start(self):
        """In the foreground: the kernel may give what is started in the background another share of the processor."""
        t0 = common.CLOCK()
        self.child = self.b.spawn(common.SLUICE, "start", "--foreground", self.dir)
        common.wait_for("the clone", lambda: self.dir in common.mounts() or self.child.poll() is not None, 3600)
        if self.child.poll() is not None:
            common.die("the clone did not start")
        return common.CLOCK() - t0

    def stop(self):
        run(common.SLUICE, "stop", self.dir)
        self.child.wait()

    def status(self):
        """The mount is there a moment before somebody answers."""
        return common.wait_for("the service", self.running, 60)

    def running(self):
        st = json.loads(run(common.SLUICE, "status", "--json", "--brief", self.dir))
        return st if st["state"] == "running" else None

    def service(self):
        return self.status()["service_pid"]

    def remove(self):
        run(common.SLUICE, "remove", "--force", "--discard", self.dir)


def cpu_seconds(pid):
    with open(f"/proc/{pid}/stat", encoding="utf-8") as f:
        v = f.read().rpartition(")")[2].split()
    return (int(v[11]) + int(v[12])) / os.sysconf("SC_CLK_TCK")


class Image:
    """The filesystem of a native clone, without the clone."""

    def __init__(self, b, name="bare"):
        self.b, self.dir, self.file, self.service = b, b.path(name), b.path(name + ".image"), None
        os.mkdir(self.dir)
        run(tool("image"), self.file, self.dir)

    def allow(self, *how):
        """bench/allow.c answers for it, until remove()."""
        p = self.b.spawn(tool("allow"), self.dir, *how, stdout=subprocess.PIPE)
        if not p.stdout.readline():
            common.die("bench-allow did not start")
        self.service = p
        return p.pid

    def remove(self):
        if self.service:
            self.b.stop(self.service)
        run("umount", self.dir)
        os.unlink(self.file)


def make_names(root, files, seed=1):
    """Directories of 25 files, with the sizes of a source tree and no content: for what only looks at names."""
    import random
    rnd = random.Random(seed)
    dirs = [root]
    os.makedirs(root)
    fd = -1
    for n in range(files):
        if n % 25 == 0:
            if n:
                dirs.append(os.path.join(rnd.choice(dirs[:2000]), f"part-{len(dirs)}"))
                os.mkdir(dirs[-1])
                os.close(fd)
            fd = os.open(dirs[-1], os.O_RDONLY | os.O_DIRECTORY)
        f = os.open(f"file-{n}.c", os.O_WRONLY | os.O_CREAT, 0o644, dir_fd=fd)
        os.ftruncate(f, min(int(rnd.lognormvariate(8.3, 1.48)), 1 << 20))
        os.close(f)
    os.close(fd)
