# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the benchmarks share: a place of their own, ways to reach a tree, medians, tables.

Each benchmark is a program that asks one question. It prints one JSON object per line while it measures (the first says
where it was measured), then a table. Every way to reach the tree is measured in the same run, in turns, on the same data.
"""

import argparse
import atexit
import contextlib
import getpass
import json
import os
import platform
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

TOP = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SLUICE = os.path.abspath(os.environ.get("SLUICE", os.path.join(TOP, "build", "sluice")))
CLOCK = time.perf_counter


def die(text):
    sys.exit(f"{os.path.basename(sys.argv[0])}: {text}")


def note(text):
    """For who watches; not part of the results."""
    print(text, file=sys.stderr, flush=True)


def wait_for(what, condition, seconds=30):
    end = CLOCK() + seconds
    while not (got := condition()):
        if CLOCK() > end:
            die(f"waited in vain for {what}")
        time.sleep(0.005)
    return got


def run(*argv, env=None, check=True):
    p = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env, text=True)
    if check and p.returncode != 0:
        die(f"'{' '.join(argv)}' failed: {p.stdout.strip()}")
    return p.stdout


def is_root():
    return os.geteuid() == 0


def mounts():
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as f:
        return [line.split(" ")[4] for line in f]


def unmount(path):
    if path not in mounts():
        return
    argv = ["umount", "-l", path] if is_root() else ["fusermount3", "-u", "-z", "--", path]
    subprocess.run(argv, stderr=subprocess.DEVNULL, check=False)


class Bench:
    """One program: its arguments, its temporary directory, its figures."""

    def __init__(self, name, question, runs, full_runs, more=None):
        p = argparse.ArgumentParser(prog=name, description=question)
        p.add_argument("--full", action="store_true", help="the whole measurement; without it a quick one")
        p.add_argument("--runs", type=int, metavar="N", help=f"repeat everything N times (default {runs}, with --full {full_runs})")
        p.add_argument("--only", metavar="TEXT", help="only the ways whose name contains TEXT")
        if more:
            more(p)
        self.args = p.parse_args()
        self.name, self.question = name, question
        self.full = self.args.full
        self.runs = self.args.runs or (full_runs if self.full else runs)
        self.values = {}  # (way, metric) -> [value]
        self.children = []
        if not os.access(SLUICE, os.X_OK):
            die(f"{SLUICE} is not there: 'make' builds it")
        # Below bench/run's directory, which is removed after all of them; see Sluice.mount().
        shared = os.environ.get("SLUICE_BENCH_DIR")
        self.tmp = os.path.realpath(tempfile.mkdtemp(prefix="sluice-bench.", dir=shared or os.environ.get("TMPDIR", "/var/tmp")))
        self.remove = not shared
        atexit.register(self.close)
        for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(s, lambda n, _: sys.exit(128 + n))
        os.environ["XDG_STATE_HOME"] = self.path("state")
        os.environ["LC_ALL"] = "C.UTF-8"
        self.emit(machine=self.machine(), question=question, full=self.full, runs=self.runs)

    def path(self, *names):
        return os.path.join(self.tmp, *names)

    def close(self):
        for m in mounts():
            if m.startswith(self.tmp + "/"):
                unmount(m)
        for c in reversed(self.children):
            self.stop(c)
        if self.remove:
            subprocess.run(["rm", "-rf", "--one-file-system", "--", self.tmp], check=False)

    def spawn(self, *argv, **kw):
        kw.setdefault("stdout", subprocess.DEVNULL)
        kw.setdefault("stderr", subprocess.DEVNULL)
        c = subprocess.Popen(argv, stdin=subprocess.DEVNULL, **kw)
        self.children.append(c)
        return c

    def stop(self, child):
        if child.poll() is None:
            child.terminate()
            try:
                child.wait(10)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        if child.stdout:
            child.stdout.close()
        if child in self.children:
            self.children.remove(child)

    def machine(self):
        memory = next(int(line.split()[1]) for line in open("/proc/meminfo", encoding="ascii") if line.startswith("MemTotal"))
        return {
            "cpus": len(os.sched_getaffinity(0)),
            "memory_gib": round(memory / 2**20, 1),
            "kernel": platform.release(),
            "filesystem": run("stat", "-f", "-c", "%T", self.tmp).strip(),
            "root": is_root(),
            "load": os.getloadavg()[0],
            "sluice": run(SLUICE, "--version").split()[-1],
        }

    def emit(self, **fields):
        print(json.dumps({"bench": self.name, **fields}), flush=True)

    def add(self, way, metric, value):
        self.values.setdefault((way, metric), []).append(value)

    def median(self, way, metric):
        v = self.values.get((way, metric))
        return statistics.median(v) if v else None

    def report(self, way, metric, unit, ratio_to=None, **fields):
        """One line of figures. ratio_to: (way, metric) that the ratio refers to."""
        v = self.values.get((way, metric))
        if not v:
            return None
        m = statistics.median(v)
        line = {"way": way, "metric": metric, "unit": unit, "median": rounded(m), "runs": [rounded(x) for x in v], **fields}
        base = self.median(*ratio_to) if ratio_to else None
        ratio = None
        if base:
            ratio = m / base
            line.update(ratio=rounded(ratio), ratio_to=" ".join(ratio_to))
        self.emit(**line)
        return ratio

    def wanted(self, way):
        return not self.args.only or way == "bare" or self.args.only in way


def rounded(x):
    return float(f"{x:.4g}")


def seconds(x):
    if x is None:
        return "-"
    if x < 1e-5:
        return f"{x * 1e6:.2f} µs"
    return f"{x * 1e6:.0f} µs" if x < 1e-3 else f"{x * 1e3:.1f} ms" if x < 0.1 else f"{x:.2f} s" if x < 100 else f"{x:.0f} s"


def times(x):
    return "-" if x is None else f"{x:.2f}×" if x < 100 else f"{x:.0f}×"


def table(title, head, rows):
    rows = [[str(c) for c in r] for r in [head, *rows]]
    width = [max(len(r[i]) for r in rows) for i in range(len(head))]
    print(f"\n{title}\n")
    for n, r in enumerate(rows):
        cells = [c.ljust(width[i]) if i == 0 else c.rjust(width[i]) for i, c in enumerate(r)]
        print("| " + " | ".join(cells) + " |")
        if n == 0:
            print("|" + "|".join("-" * (w + 2) if i == 0 else "-" * (w + 1) + ":" for i, w in enumerate(width)) + "|")
    print(flush=True)


def drop_caches():
    """Forget everything that is cached of files. False where that needs root."""
    os.sync()
    if not is_root():
        return False
    try:
        with open("/proc/sys/vm/drop_caches", "w", encoding="ascii") as f:
            f.write("3\n")
    except OSError:
        return False
    return True


def cannot_drop():
    return "" if is_root() else " Caches can be dropped by root only: what comes from the disk was not measured."


# ---- trees ----

LISTED = 100  # files in the directory of make_levels() that is listed


def make_levels(root, files):
    """Ten names in the root: the listed directory, and nine over which the other files are spread, a hundred in each directory."""
    listed = os.path.join(root, "listed")
    os.makedirs(listed)
    for i in range(LISTED):
        with open(os.path.join(listed, f"file-{i:03}"), "w", encoding="ascii") as f:
            f.write("small\n")
    tops = [os.path.join(root, f"part-{i}") for i in range(9)]
    for t in tops:
        os.mkdir(t)
    left = files - LISTED
    for n in range((left + 99) // 100):
        # Two more levels, of at most 34 and 34 names.
        middle = os.path.join(tops[n % 9], f"middle-{n // 9 // 34:02}")
        if n // 9 % 34 == 0:
            os.mkdir(middle)
        leaf = os.path.join(middle, f"leaf-{n // 9 % 34:02}")
        os.mkdir(leaf)
        fd = os.open(leaf, os.O_RDONLY | os.O_DIRECTORY)
        for i in range(min(100, left - n * 100)):
            os.close(os.open(f"file-{i:03}", os.O_WRONLY | os.O_CREAT, 0o644, dir_fd=fd))
        os.close(fd)


# ---- ways to reach a tree ----


def native_missing(bench):
    """Why there is no native gate here, or None."""
    if not is_root():
        return "the native gate needs root"
    p = subprocess.run([SLUICE, "doctor", "--json"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                       env=dict(os.environ, TMPDIR=bench.tmp), check=False)
    try:
        gate = json.loads(p.stdout)["gates"]["fanotify"]
    except (ValueError, KeyError):
        return "sluice doctor does not know"
    return None if gate["ok"] else gate.get("why", "sluice doctor says no")


def find_relay():
    """tests/tools/relay, as it was built beside the program, or built now."""
    build = os.path.dirname(SLUICE)
    relay = os.path.join(build, "tests", "relay")
    if not os.access(relay, os.X_OK) and os.path.exists(os.path.join(build, "build.ninja")):
        subprocess.run(["ninja", "-C", build, "tests/relay"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    return relay if os.access(relay, os.X_OK) else None


def find_sftp_server():
    for d in ("/usr/lib/openssh", "/usr/libexec/openssh", "/usr/libexec", "/usr/lib/ssh"):
        if os.access(f"{d}/sftp-server", os.X_OK):
            return f"{d}/sftp-server"
    return None


class Way:
    """A way to reach the tree: mount() makes it usable at .dir, with nothing of it here yet; unmount() undoes that."""

    def __init__(self, bench, name, tree):
        self.bench, self.name, self.tree = bench, name, tree
        self.id = f"way{id(self):x}"
        self.dir = bench.path(self.id, "d")

    def why_not(self):
        return None

    def prepare(self):
        """What is there before the clock runs: a server, a link."""

    def mount(self):
        raise NotImplementedError

    def unmount(self):
        raise NotImplementedError

    def fetched(self):
        """Bytes of content that came from the origin since mount(), if it can tell."""
        return None

    @contextlib.contextmanager
    def mounted(self):
        self.mount()
        try:
            yield self.dir
        finally:
            self.unmount()

    def script(self, text):
        path = self.bench.path(self.id, "command")
        with open(path, "w", encoding="utf-8") as f:
            f.write("#!/bin/sh\n" + text + "\n")
        os.chmod(path, 0o755)
        return path


class Bare(Way):
    """The directory itself."""

    def __init__(self, bench, tree):
        super().__init__(bench, "bare", tree)
        self.dir = tree

    def mount(self):
        pass

    def unmount(self):
        pass


class Remote(Way):
    def __init__(self, bench, program, tree, transport, rtt_ms=0, ssh=None):
        name = f"{program}, {transport}" + (f", {rtt_ms} ms" if rtt_ms else "")
        super().__init__(bench, name, tree)
        self.transport, self.rtt_ms, self.ssh = transport, rtt_ms, ssh
        self.relay = find_relay() if rtt_ms else None

    def why_not(self):
        if self.rtt_ms and not self.relay:
            return "tests/tools/relay is not built"
        if self.transport == "ssh" and not (self.ssh and self.ssh.usable()):
            return "sshd cannot be run here"
        return None

    def prepare(self):
        os.makedirs(self.bench.path(self.id), exist_ok=True)
        if self.transport == "ssh":
            self.port = self.ssh.port
            if self.relay:
                relay = self.bench.spawn(self.relay, "--rtt-ms", str(self.rtt_ms), "--listen", "tcp:0", "--connect",
                                         f"tcp:127.0.0.1:{self.ssh.port}", stdout=subprocess.PIPE, text=True)
                self.port = int("".join(c if c.isdigit() else " " for c in relay.stdout.readline()).split()[-1])
            self.ssh_config = self.ssh.config(self.bench.path(self.id, "ssh_config"), self.port)

    def through_relay(self, command):
        return f"exec '{self.relay}' --rtt-ms {self.rtt_ms} -- {command}" if self.relay else f"exec {command}"


class Sluice(Remote):
    def __init__(self, bench, tree, transport="unix", rtt_ms=0, ssh=None, gate="fuse"):
        super().__init__(bench, "sluice" if gate == "fuse" else "native", tree, transport, rtt_ms, ssh)
        self.gate = gate

    def why_not(self):
        return super().why_not() or (native_missing(self.bench) if self.gate == "fanotify" else None)

    def prepare(self):
        super().prepare()
        self.env = dict(os.environ)
        if self.transport == "ssh":
            self.origin = f"bench:{self.tree}"
            self.env["SLUICE_SSH"] = self.script(f"exec ssh -F '{self.ssh_config}' \"$@\"")
            self.env["SLUICE_REMOTE_COMMAND"] = SLUICE
            return
        # Unix sockets have short names.
        direct = self.bench.path(f"s{len(os.listdir(self.bench.tmp))}")
        self.bench.spawn(SLUICE, "serve", "--unix", direct, self.tree)
        wait_for("sluice serve", lambda: os.path.exists(direct))
        self.origin = "unix:" + direct
        if self.relay:
            self.bench.spawn(self.relay, "--rtt-ms", str(self.rtt_ms), "--listen", f"unix:{direct}r", "--connect", f"unix:{direct}")
            wait_for("the relay", lambda: os.path.exists(direct + "r"))
            self.origin += "r"

    def mount(self):
        # A new directory and store each time. Nothing is deleted before the end: ext4 gives the number of a deleted inode to
        # no new file for some minutes, and looks at each of them for every file that is made meanwhile. With ten thousand
        # of them that costs more than all that is measured here.
        self.count = getattr(self, "count", 0) + 1
        self.dir = self.bench.path(self.id, f"d{self.count}")
        run(SLUICE, "clone", "--gate", self.gate, self.origin, self.dir, env=self.env)

    def unmount(self):
        run(SLUICE, "stop", "--force", self.dir)

    def status(self):
        return json.loads(run(SLUICE, "status", "--json", "--brief", self.dir))

    def fetched(self):
        return self.status()["fetched_bytes"]


class Sshfs(Remote):
    """As it comes, without options. Over a pipe: its sftp server without ssh between them, so without encryption."""

    def __init__(self, bench, tree, transport="pipe", rtt_ms=0, ssh=None):
        super().__init__(bench, "sshfs", tree, transport, rtt_ms, ssh)

    def why_not(self):
        if not shutil.which("sshfs"):
            return "sshfs is not installed"
        if self.transport == "pipe" and not find_sftp_server():
            return "there is no sftp-server"
        return super().why_not()

    def prepare(self):
        super().prepare()
        os.makedirs(self.dir, exist_ok=True)
        if self.transport == "ssh":
            self.options = ["-F", self.ssh_config]
        else:
            self.options = ["-o", "ssh_command=" + self.script(self.through_relay(find_sftp_server()))]

    def mount(self):
        run("sshfs", *self.options, f"bench:{self.tree}", self.dir)

    def unmount(self):
        run("fusermount3", "-u", "--", self.dir)
        wait_for("the unmount", lambda: self.dir not in mounts())


class Rclone(Remote):
    """With its full cache, whose files stay on disk as those of a clone do. Without a shell: with one it runs md5sum over ssh for
    each file that it has fetched, which takes twenty times as long as fetching a small one."""

    def __init__(self, bench, tree, rtt_ms=0, ssh=None):
        super().__init__(bench, "rclone", tree, "ssh", rtt_ms, ssh)

    def why_not(self):
        return super().why_not() if shutil.which("rclone") else "rclone is not installed"

    def prepare(self):
        super().prepare()
        os.makedirs(self.dir, exist_ok=True)
        self.env = dict(os.environ, RCLONE_CONFIG="/dev/null", RCLONE_CONFIG_BENCH_TYPE="sftp", RCLONE_CONFIG_BENCH_HOST="127.0.0.1",
                        RCLONE_CONFIG_BENCH_PORT=str(self.port), RCLONE_CONFIG_BENCH_USER=getpass.getuser(),
                        RCLONE_CONFIG_BENCH_KEY_FILE=self.ssh.key, RCLONE_CONFIG_BENCH_SHELL_TYPE="none")

    def mount(self):
        self.cache = self.bench.path(self.id, f"cache{len(os.listdir(self.bench.path(self.id)))}")
        self.child = self.bench.spawn("rclone", "mount", "--vfs-cache-mode", "full", "--cache-dir", self.cache,
                                      f"bench:{self.tree}", self.dir, env=self.env)
        wait_for("rclone mount", lambda: self.dir in mounts() or self.child.poll() is not None)
        if self.child.poll() is not None:
            die("rclone mount failed")

    def unmount(self):
        self.bench.stop(self.child)
        unmount(self.dir)


class Sshd:
    """A server for this run alone: own port, own keys, this user."""

    def __init__(self, bench):
        self.bench, self.state = bench, None

    def usable(self):
        if self.state is None:
            self.state = self.start()
        return self.state

    def start(self):
        sshd = shutil.which("sshd", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
        sftp = find_sftp_server()
        if not sshd or not sftp or not shutil.which("ssh-keygen"):
            return False
        d = self.bench.path("sshd")
        os.makedirs(d)
        self.key = f"{d}/key"
        for k in ("key", "host"):
            run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", f"{d}/{k}")
        # It changes to this directory before anybody is who they say; ours goes away again, if it was not there.
        if is_root() and not os.path.isdir("/run/sshd"):
            os.mkdir("/run/sshd", 0o755)
            atexit.register(os.rmdir, "/run/sshd")
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        with open(f"{d}/config", "w", encoding="utf-8") as f:
            f.write(f"ListenAddress 127.0.0.1\nPort {self.port}\nHostKey {d}/host\nAuthorizedKeysFile {d}/key.pub\nPidFile none\n"
                    f"StrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin prohibit-password\n"
                    f"Subsystem sftp {sftp}\nLogLevel ERROR\n")
        child = self.bench.spawn(sshd, "-D", "-e", "-f", f"{d}/config", stderr=open(f"{d}/log", "w", encoding="utf-8"))

        def up():
            with socket.socket() as s:
                return s.connect_ex(("127.0.0.1", self.port)) == 0 or child.poll() is not None

        wait_for("sshd", up)
        if child.poll() is not None:
            return False
        cfg = self.config(f"{d}/probe", self.port)
        return subprocess.run(["ssh", "-F", cfg, "bench", "true"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                              stderr=subprocess.DEVNULL, check=False).returncode == 0

    def config(self, path, port):
        with open(path, "w", encoding="utf-8") as f:
            f.write(f"Host bench\n HostName 127.0.0.1\n Port {port}\n User {getpass.getuser()}\n IdentityFile {self.key}\n IdentitiesOnly yes\n"
                    f" UserKnownHostsFile /dev/null\n StrictHostKeyChecking no\n BatchMode yes\n LogLevel ERROR\n")
        return path


def usable(bench, ways):
    """Those of the ways that are wanted and possible here; says why the others are not."""
    ok = []
    for w in ways:
        if not bench.wanted(w.name):
            continue
        why = w.why_not()
        if why:
            note(f"{bench.name}: without {w.name}: {why}")
            bench.emit(way=w.name, skipped=why)
        else:
            w.prepare()
            ok.append(w)
    return ok
