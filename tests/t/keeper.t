#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""If this fails, a service that dies takes something with it: the mount, what is open, or who waits."""
# long: yes

import array
import contextlib
import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tools"))
import slt  # noqa: E402
from slt import SLUICE, T, is_, ok, out, point  # noqa: E402

O, C = T + "/o", T + "/c"


def brief(path=C):
    return slt.status(path, "--brief")


def comm(pid):
    with open(f"/proc/{pid}/comm", encoding="ascii") as f:
        return f.read().strip()


def oom(pid):
    with open(f"/proc/{pid}/oom_score_adj", encoding="ascii") as f:
        return int(f.read())


def kill_and_follow(path=C):
    """Kill the service, and return the status of the next one."""
    before = brief(path)
    os.kill(before["service_pid"], 9)
    after = slt.wait_for(60, "the next service", lambda: (s := brief(path)) and s["service_pid"] != before["service_pid"] and s)
    assert after["keeper_pid"] == before["keeper_pid"] and after["service_restarts"] == before["service_restarts"] + 1, after
    return after


def get(path):
    with open(path, "rb") as f:
        return f.read()


class Reader(threading.Thread):
    """A read in a process of its own, that can wait."""

    def __init__(self, path):
        super().__init__()
        self.p = subprocess.Popen(["cat", path], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.got = self.err = None
        self.start()

    def run(self):
        self.got, self.err = self.p.communicate()

    def waits(self):
        with open(f"/proc/{self.p.pid}/syscall", encoding="ascii") as f:
            return f.read().split()[0] in ("0", "17", "257")  # read, pread64, openat


def restarts():
    st = brief()
    is_((comm(st["keeper_pid"]), comm(st["service_pid"])), ("sl-keeper", "sluice"), "keeper and service have names of their own")
    if subprocess.run(["sh", "-c", "echo -1000 >/proc/self/oom_score_adj"], check=False, stderr=subprocess.DEVNULL).returncode == 0:
        ok(oom(st["keeper_pid"]) == -1000 and oom(st["service_pid"]) == oom(os.getpid()), "the keeper is not killed for its memory",
           oom(st["keeper_pid"]), oom(st["service_pid"]))
    else:
        slt.skip("nobody here may be protected from the OOM killer")
    dev, data = os.stat(C).st_dev, get(O + "/large")
    with point("an open file, a listing, a current directory and a mapping survive the service"):
        a, b = os.open(C + "/large", os.O_RDONLY), os.open(C + "/many/0", os.O_RDONLY)
        w = os.open(C + "/written", os.O_RDWR | os.O_CREAT)
        os.write(w, b"before ")
        t = os.open(C + "/gone", os.O_RDWR | os.O_CREAT)
        os.write(t, b"no name")
        os.unlink(C + "/gone")
        here = os.getcwd()
        os.chdir(C + "/sizes")
        names = os.scandir(b)
        seen = [next(names).name]
        assert os.pread(a, 1000, 0) == data[:1000]
        for _ in range(2):
            kill_and_follow()
            assert os.stat(C).st_dev == dev
            assert os.pread(a, 5000, 3_000_000) == data[3_000_000:3_005_000]
        seen += [e.name for e in names]
        assert sorted(seen) == sorted(os.listdir(O + "/many/0")), len(seen)
        os.write(w, b"and after")
        assert get(C + "/written") == b"before and after"
        assert os.pread(t, 100, 0) == b"no name" and os.fstat(t).st_nlink == 0
        assert sorted(os.listdir(".")) == sorted(os.listdir(O + "/sizes"))
        os.chdir(here)
        for fd in (a, b, w, t):
            os.close(fd)
        os.unlink(C + "/written")
    with point("an open file of the origin that was deleted here still gets what had not arrived"):
        with open(C + "/doomed", "rb") as f:
            assert f.read(10) == get(O + "/doomed")[:10]
            os.unlink(C + "/doomed")
            kill_and_follow()
            f.seek(2_000_000)
            assert f.read() == get(O + "/doomed")[2_000_000:]
    with point("a full file stays in passthrough mode, and is not evicted, while it is open"):
        name = "/sizes/65537"
        assert get(C + name) == get(O + name)
        with open(C + name, "rb") as f:
            kill_and_follow()
            slt.sluice("evict", C + name)
            # Without passthrough nobody needs all of it at once: what was not committed is fetched again.
            assert slt.state(C + name)["state"] == "full" or not brief()["passthrough"]
            assert f.read() == get(O + name)
        # The kernel tells of the close when it likes.
        slt.wait_for(60, "it can be evicted", lambda: slt.sluice("evict", C + name) and slt.state(C + name)["state"] == "cold")
    with point("commands that come while no service runs are answered by the next one"):
        for _ in range(5):
            os.kill(brief()["service_pid"], 9)
            slt.sluice("status", C)
    is_(slt.gone(st["keeper_pid"]), False, "the keeper is still the same")
    ok("restarted" in slt.sluice("status", C).decode(), "status says how often")


def waiting():
    """The origin does not answer; whoever waits goes on waiting, and is answered once it does."""
    origin, server = slt.serve("sock2", O)
    slt.clone(origin, T + "/c2")
    os.listdir(T + "/c2/sizes")
    server.send_signal(signal.SIGSTOP)
    readers = [Reader(f"{T}/c2/sizes/{n}") for n in ("65537", "1048577", "65536")] + [Reader(T + "/c2/large")]
    try:
        slt.wait_for(60, "they wait", lambda: brief(T + "/c2")["waiting"] >= 4)
        kill_and_follow(T + "/c2")
        slt.wait_for(60, "they wait again", lambda: brief(T + "/c2")["waiting"] >= 4)
        with point("a waiting reader can be killed after a restart"):
            readers[3].p.kill()
            readers[3].join(60)
            assert not readers[3].is_alive()
        kill_and_follow(T + "/c2")
    finally:
        server.send_signal(signal.SIGCONT)
    with point("who waited when the service died is answered by the next one"):
        for r, n in zip(readers, ("65537", "1048577", "65536")):
            r.join(60)
            assert r.err == b"" and r.got == get(f"{O}/sizes/{n}"), (n, r.err, len(r.got or b""))
    slt.sluice("stop", T + "/c2")


def keepers():
    with point("a keeper that dies is followed by another one"):
        st = brief()
        with open(C + "/large", "rb") as f:
            for _ in range(3):
                os.kill(st["keeper_pid"], 9)
                new = slt.wait_for(60, "a new keeper", lambda: (s := brief()) and s["keeper_pid"] != st["keeper_pid"] and s)
                assert new["service_pid"] == st["service_pid"], new
                slt.wait_for(60, "it has its name", lambda: comm(new["keeper_pid"]) == "sl-keeper")
                st = new
            st = kill_and_follow()
            os.kill(st["keeper_pid"], 9)
            slt.wait_for(60, "a new keeper", lambda: brief()["keeper_pid"] != st["keeper_pid"])
            kill_and_follow()
            f.seek(4_000_000)
            assert f.read(100) == get(O + "/large")[4_000_000:4_000_100]
    with point("a signal to the keeper ends both in good order"):
        st = brief()
        os.kill(st["keeper_pid"], signal.SIGTERM)
        for p in ("service_pid", "keeper_pid"):
            slt.wait_for(60, "they are gone", lambda p=p: slt.gone(st[p]))
        assert not os.path.ismount(C)
        slt.sluice("start", C)
        assert not brief()["unclean_start"]
    if slt.ROOT:
        with point("an unmount while no service runs ends the clone in good order"):
            st = brief()
            os.kill(st["keeper_pid"], signal.SIGSTOP)
            os.kill(st["service_pid"], 9)
            slt.wait_for(60, "the service is gone", lambda: slt.gone(st["service_pid"]))
            # Not umount(8), which asks the filesystem this and that, and would wait.
            gone = ctypes.CDLL(None, use_errno=True).umount2(C.encode(), 0)
            os.kill(st["keeper_pid"], signal.SIGCONT)
            assert gone == 0, ctypes.get_errno()
            slt.wait_for(60, "the keeper is gone", lambda: slt.gone(st["keeper_pid"]))
            assert not os.path.ismount(C)
            slt.sluice("start", C)
            assert not brief()["unclean_start"]
    with point("an object without name keeps its number, and is no other one, across restarts"):
        os.mkdir(C + "/cwd")
        with open(C + "/held", "wb") as f:
            f.write(b"old content")
        assert get(C + "/held") == b"old content"
        kill_and_follow()
        fd, here = os.open(C + "/held", os.O_PATH), os.getcwd()
        os.chdir(C + "/cwd")
        os.unlink(C + "/held")
        os.rmdir(C + "/cwd")
        kill_and_follow()
        for i in range(20):
            with open(f"{C}/new{i}", "wb") as f:
                f.write(b"new content")
            os.mkdir(f"{C}/newdir{i}")
        assert get(f"/proc/self/fd/{fd}") == b"old content"
        assert os.listdir(".") == []
        numbers = {os.stat(f"{C}/{n}{i}").st_ino for n in ("new", "newdir") for i in range(20)}
        assert os.fstat(fd).st_ino not in numbers and os.stat(".").st_ino not in numbers
        os.chdir(here)
        os.close(fd)
        for i in range(20):
            os.unlink(f"{C}/new{i}")
            os.rmdir(f"{C}/newdir{i}")
    with point("a service that cannot start takes its keeper with it"):
        os.mkdir(T + "/o3")
        slt.clone(T + "/o3", T + "/c3")
        slt.sluice("stop", T + "/c3")
        with open(T + "/c3/in the way", "w", encoding="ascii"):
            pass
        p = subprocess.run([SLUICE, "start", "--foreground", T + "/c3"], stderr=subprocess.PIPE, check=False, timeout=60)
        assert p.returncode == 1 and b"not empty" in p.stderr, p
        p = subprocess.run([SLUICE, "start", T + "/c3"], stderr=subprocess.PIPE, check=False, timeout=60)
        assert p.returncode == 1 and b"not empty" in p.stderr, p
        os.unlink(T + "/c3/in the way")


def upgrades():
    other = T + "/sluice-next"
    shutil.copy(SLUICE, other)
    with open(T + "/broken", "w", encoding="ascii") as f:
        f.write(f"#!/bin/sh\n[ \"$1\" = --state-version ] && exec {SLUICE} --state-version\nexit 1\n")
    with open(T + "/older", "w", encoding="ascii") as f:
        f.write("#!/bin/sh\necho 0.1\n")
    os.chmod(T + "/broken", 0o755)
    os.chmod(T + "/older", 0o755)
    names = [f"sizes/{n}" for n in os.listdir(O + "/sizes")] + ["large"]
    script = f"""set -e; while [ ! -e {T}/enough ]; do for f in {' '.join(names)}; do cmp {O}/$f {C}/$f; done; done"""
    slt.sluice("evict", C)
    readers = [subprocess.Popen(["sh", "-c", script], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
               for _ in range(4)]
    keeper = brief()["keeper_pid"]
    for program in (other, SLUICE, other):
        with point(f"{os.path.basename(program)} takes over from what ran before"):
            got = json.loads(slt.sluice("upgrade", "--json", "--program", program, C))
            assert got["keeper_pid"] == keeper and got["program"] == os.path.realpath(program), got
            for pid in (got["keeper_pid"], got["service_pid"]):
                assert os.readlink(f"/proc/{pid}/exe") == os.path.realpath(program)
            slt.sluice("evict", C)
    before = brief()
    for program, say in (("/bin/true", b"no version"), ("/etc/passwd", b"cannot be run"), (T + "/older", b"another layout"),
                         (T + "/nothing", b"No such file")):
        p = subprocess.run([SLUICE, "upgrade", "--program", program, C], stderr=subprocess.PIPE, check=False)
        ok(p.returncode == 1 and say in p.stderr, f"{program} is refused", p)
    is_(brief()["service_pid"], before["service_pid"], "and the old one goes on")
    with point("a program that goes away in the last moment is not missed"):
        # It answers, and is not there any more when it is to be executed.
        with open(T + "/fleeting", "w", encoding="ascii") as f:
            f.write(f"#!/bin/sh\nrm {T}/fleeting\nexec {SLUICE} --state-version\n")
        os.chmod(T + "/fleeting", 0o755)
        p = subprocess.run([SLUICE, "upgrade", "--program", T + "/fleeting", C], stderr=subprocess.PIPE, check=False)
        assert p.returncode == 1 and b"goes on" in p.stderr, p
        assert brief()["program"] == os.path.realpath(other), brief()
    with open(T + "/enough", "w", encoding="ascii"):
        pass
    with point("four readers noticed nothing"):
        for r in readers:
            o, e = r.communicate(timeout=120)
            assert r.returncode == 0 and o == e == b"", (r.returncode, o, e)


# Become the program with these descriptors as 3, 4, …, as sd_listen_fds(3) has it.
LISTEN = """
import fcntl, os, sys
high = [fcntl.fcntl(int(fd), fcntl.F_DUPFD, 100) for fd in sys.argv[3:]]
for i, fd in enumerate(high):
    os.dup2(fd, 3 + i)
    os.close(fd)
os.closerange(3 + len(high), 100)
if high:
    os.environ.update(LISTEN_FDS=str(len(high)), LISTEN_PID=str(os.getpid()))
os.execv(sys.argv[1], [sys.argv[1], "start", "--foreground", sys.argv[2]])
"""


class Manager:
    """What systemd does for a unit with a descriptor store."""

    def __init__(self, path):
        self.path, self.stored, self.said = path, {}, []
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.bind(T + "/notify")
        self.log = open(T + "/manager.log", "wb")

    def start(self):
        env = dict(os.environ, NOTIFY_SOCKET=T + "/notify", LISTEN_FDNAMES=":".join(self.stored))
        fds = list(self.stored.values())
        self.p = subprocess.Popen([sys.executable, "-c", LISTEN, SLUICE, self.path, *map(str, fds)], env=env, pass_fds=fds,
                                  stdin=subprocess.DEVNULL, stderr=self.log, start_new_session=True)

    def hear(self, until):
        self.sock.settimeout(60)
        while not until():
            size = array.array("i").itemsize
            msg, anc, _, _ = self.sock.recvmsg(4096, socket.CMSG_SPACE(size))
            fds = [int.from_bytes(data[:size], sys.byteorder) for _, _, data in anc]
            fields = dict(line.split("=", 1) for line in msg.decode().split("\n") if "=" in line)
            if fields.get("FDSTORE") == "1":
                old = self.stored.pop(fields["FDNAME"], None)
                if old is not None:
                    os.close(old)
                self.stored[fields["FDNAME"]] = fds.pop()
            if fields.get("FDSTOREREMOVE") == "1" and fields["FDNAME"] in self.stored:
                os.close(self.stored.pop(fields["FDNAME"]))
            self.said += [f"{k}={v}" for k, v in fields.items()]
            for fd in fds:
                os.close(fd)

    def kill(self):
        """Keeper and service at once. A service manager starts nothing before all that belonged to it are gone: one that still reads
        takes an access with it."""
        st = brief()
        os.killpg(self.p.pid, 9)
        self.p.wait(60)
        for pid in (st["service_pid"], st["keeper_pid"]):
            slt.wait_for(60, "they are gone", lambda pid=pid: slt.gone(pid))

    def end(self):
        for fd in self.stored.values():
            os.close(fd)
        self.sock.close()
        self.log.close()


def managed(server):
    slt.sluice("stop", C)
    m = Manager(C)
    m.start()
    with point("the manager is told, and given what it shall hold"):
        m.hear(lambda: "READY=1" in m.said)
        assert ({"state", "lock"} | ({"group", "notify", "work"} if slt.NATIVE else {"fuse"})) <= set(m.stored), m.stored
        assert brief()["keeper_pid"] == m.p.pid
    dev = os.stat(C).st_dev
    with open(C + "/large", "rb") as f, open(C + "/written", "wb", buffering=0) as w:
        assert f.read(10) == get(O + "/large")[:10]
        w.write(b"before ")
        with point("after keeper and service were killed at once the manager's next start goes on where they were"):
            m.kill()
            r = Reader(C + "/sizes/1048577")
            m.said.clear()
            m.start()
            m.hear(lambda: "READY=1" in m.said)
            r.join(60)
            assert r.err == b"" and r.got == get(O + "/sizes/1048577"), r.err
            assert os.stat(C).st_dev == dev
            f.seek(5_000_000)
            assert f.read(100) == get(O + "/large")[5_000_000:5_000_100]
            w.write(b"and after")
            assert get(C + "/written") == b"before and after"
            assert brief()["service_restarts"] == 1
        with point("who waited when they were killed is answered"):
            slt.sluice("evict", C + "/sizes/65537", C + "/sizes/65536")
            server.send_signal(signal.SIGSTOP)
            try:
                waiters = [Reader(f"{C}/sizes/{n}") for n in ("65537", "65536")]
                slt.wait_for(60, "they wait", lambda: brief()["waiting"] >= 2)
                m.kill()
                m.said.clear()
                m.start()
                m.hear(lambda: "READY=1" in m.said)
            finally:
                server.send_signal(signal.SIGCONT)
            for n, r in zip(("65537", "65536"), waiters):
                r.join(60)
                # Of a native clone nobody knows any more which file it was.
                assert r.err == b"" and r.got == get(f"{O}/sizes/{n}") or slt.NATIVE and b"Input/output error" in r.err, (r.err, r.got)
                assert get(f"{C}/sizes/{n}") == get(f"{O}/sizes/{n}")
        if slt.NATIVE:
            with point("who waited for services that did not come to be ready is answered by the one that does"):
                slt.sluice("evict", C + "/sizes/65537")
                control = slt.status(C)["store"] + "/control"
                server.send_signal(signal.SIGSTOP)
                try:
                    m.kill()
                    os.unlink(control)
                    os.mkdir(control)
                    r = Reader(C + "/sizes/65537")
                    m.said.clear()
                    m.start()
                    slt.wait_for(60, "two have failed", lambda: get(T + "/manager.log").count(b"cannot take over") >= 2)
                    os.rmdir(control)
                    m.hear(lambda: "READY=1" in m.said)
                finally:
                    server.send_signal(signal.SIGCONT)
                r.join(60)
                assert r.err == b"" and r.got == get(O + "/sizes/65537"), (r.err, len(r.got or b""))
        with point("and a service that is killed then is followed as ever"):
            kill_and_follow()
            f.seek(4_000_000)
            assert f.read(100) == get(O + "/large")[4_000_000:4_000_100]
    os.unlink(C + "/written")
    with point("at the end nothing is held any more"):
        m.said.clear()
        m.p.terminate()
        m.hear(lambda: not m.stored)
        assert m.p.wait(60) == 0 and "STOPPING=1" in m.said, m.said
        assert not os.path.ismount(C)
    m.end()
    slt.sluice("start", C)


def test():
    out(sys.executable, slt.TOOLS + "/maketree.py", O, "300")
    for name, size in (("large", 6 << 20), ("doomed", 3 << 20)):
        with open(f"{O}/{name}", "wb") as f:
            f.write(os.urandom(size))
    origin, server = slt.serve("sock", O)
    slt.clone(origin, C)
    restarts()
    waiting()
    keepers()
    upgrades()
    managed(server)
    with point("all is well at the end"):
        slt.sluice("verify", C)
        slt.sluice("stop", C)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(T + "/enough")


slt.run(test, also_as_user=True)
