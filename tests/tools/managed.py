#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Clones that systemd runs, by the project's own units: what systemd.t tries inside a manager's namespaces."""

import errno
import mmap
import os
import signal
import subprocess
import sys
import time

sys.dont_write_bytecode = True
import slt  # noqa: E402
from slt import T, is_, ok, out, point  # noqa: E402

O = T + "/o"
CTL = ("systemctl",) if slt.ROOT else ("systemctl", "--user")
# What the keeper has names for and each gate has: state, lock; fuse; group, notify, work.
HELD = {"fuse": 3, "fanotify": 5}


def get(path):
    with open(path, "rb") as f:
        return f.read()


class Reader(subprocess.Popen):
    """A read in a process of its own, that can wait."""

    def __init__(self, path):
        super().__init__(["cat", path], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.name = path

    def ended(self):
        """What it got, and what it complained of."""
        return self.communicate(timeout=120)


class Unit:
    """A clone, and the manager's service for it."""

    def __init__(self, what, name, gate):
        self.what, self.gate, self.dir = what, gate, f"{T}/{name}"
        self.name = out("systemd-escape", "--path", "--template=sluice@.service", self.dir).decode().strip()
        origin, self.server = slt.serve(name + ".sock", O)
        self.sluice("clone", "--no-start", "--gate", gate, "--store", f"{T}/{name}.store", origin, self.dir)

    def sluice(self, *args):
        return out("sluice", *args)  # the installed one

    def status(self):
        return slt.json.loads(self.sluice("status", "--json", "--brief", self.dir))

    def ctl(self, verb, *args):
        return out(*CTL, verb, *args, self.name)

    def show(self, name):
        return self.ctl("show", "--value", "-p", name).decode().strip()

    def held(self):
        return int(self.show("NFileDescriptorStore"))

    def active(self, pid=None):
        """It is up, with another keeper than @pid."""
        return self.show("ActiveState") == "active" and self.show("MainPID") != str(pid or 0)

    def kill(self):
        """All of its processes at the very same moment. Returns when they are gone."""
        st = self.status()
        slt.write("/sys/fs/cgroup" + self.show("ControlGroup") + "/cgroup.kill", "1")
        for pid in (st["keeper_pid"], st["service_pid"]):
            slt.wait_for(60, "they are gone", lambda pid=pid: slt.gone(pid))
        return st


def comes_up(u):
    with point(f"{u.what}: it is up when the manager says so, and the keeper is its main process"):
        if u.gate == "fanotify":  # all names come first, and no manager's patience (see systemd-init) is the end of that
            u.server.send_signal(signal.SIGSTOP)
            u.ctl("start", "--no-block")
            began = time.monotonic()
            slt.wait_for(60, "it takes longer than that", lambda: u.show("MainPID") != "0" and time.monotonic() > began + 1.5)
            u.server.send_signal(signal.SIGCONT)
        u.ctl("start")
        st = u.status()
        assert u.active() and int(u.show("MainPID")) == st["keeper_pid"], st
        assert u.show("Type") == "notify" and u.show("NRestarts") == "0"
        assert sorted(os.listdir(u.dir)) == sorted(os.listdir(O))
    held = HELD[u.gate]
    slt.wait_for(60, "they are held", lambda: u.held() >= held)
    is_(u.held(), held, f"{u.what}: its descriptors are in the manager's store")
    if subprocess.run(["sh", "-c", "echo -1000 >/proc/self/oom_score_adj"], check=False, stderr=subprocess.DEVNULL).returncode == 0:
        is_([slt.read(f"/proc/{st[p]}/oom_score_adj").strip() for p in ("keeper_pid", "service_pid")], ["-1000", "-500"],
            f"{u.what}: keeper and service are not what the kernel kills first")


def service_dies(u):
    with point(f"{u.what}: a service that dies is the keeper's business, not the manager's"):
        before = u.status()
        with open(u.dir + "/large", "rb") as f:
            assert f.read(10) == get(O + "/large")[:10]
            os.kill(before["service_pid"], 9)
            slt.wait_for(60, "the next service", lambda: u.status()["service_pid"] != before["service_pid"])
            assert f.read(1000) == get(O + "/large")[10:1010]
        assert u.active() and u.show("NRestarts") == "0" and u.status()["keeper_pid"] == before["keeper_pid"]
    with point(f"{u.what}: an upgrade is not, either"):
        u.sluice("upgrade", u.dir)
        assert u.active() and u.show("NRestarts") == "0" and u.status()["keeper_pid"] == before["keeper_pid"]
    # The manager does not forget what has the same name as something newer.
    is_(u.held(), HELD[u.gate], f"{u.what}: the manager holds as many descriptors as before")


def both_die(u, cold, how):
    """@how: what is killed. @cold: a directory of files that nobody has read. Who reads what is here, and who has something open, notices nothing but a delay."""
    data = get(O + "/large")
    u.sluice("evict", u.dir)
    assert get(u.dir + "/warm") == get(O + "/warm")
    restarts = int(u.show("NRestarts"))
    loop = f"while [ ! -e {T}/enough ]; do cmp {O}/warm {u.dir}/warm && ls {u.dir}/many/0 >/dev/null || exit; done"
    loops = [subprocess.Popen(["sh", "-c", loop], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
             for _ in range(2)]
    dev, waiters, late = os.stat(u.dir).st_dev, [], []
    try:
        with open(u.dir + "/large", "rb") as f, open(u.dir + "/warm", "rb") as m, mmap.mmap(m.fileno(), 0, prot=mmap.PROT_READ) as mm:
            assert f.read(10) == data[:10]
            u.server.send_signal(signal.SIGSTOP)
            waiters = [Reader(f"{u.dir}/{cold}/{n}") for n in range(3)]
            slt.wait_for(60, "they wait", lambda: u.status()["waiting"] >= len(waiters))
            old = how(u)
            late = [Reader(f"{u.dir}/{cold}/{n}") for n in range(3, 6)]
            with point(f"{u.what}: the manager starts it again"):
                slt.wait_for(60, "it is up", lambda: u.active(old["keeper_pid"]))
                assert int(u.show("NRestarts")) == restarts + 1, u.show("NRestarts")
            u.server.send_signal(signal.SIGCONT)
            with point(f"{u.what}: who waited for a cold file gets it" + (", or EIO" if u.gate == "fanotify" else "")):
                for r in waiters:
                    got, err = r.ended()
                    eio = u.gate == "fanotify" and b"Input/output error" in err
                    assert eio or err == b"" and got == get(r.name.replace(u.dir, O)), (r.name, err, len(got))
                    assert get(r.name) == get(r.name.replace(u.dir, O))
            with point(f"{u.what}: who came while nobody was there waited, and gets it"):
                for r in late:
                    got, err = r.ended()
                    assert err == b"" and got == get(r.name.replace(u.dir, O)), (r.name, err, len(got))
            with point(f"{u.what}: what was open is still the same, and goes on being fetched"):
                assert os.stat(u.dir).st_dev == dev
                f.seek(4_000_000)
                assert f.read(100_000) == data[4_000_000:4_100_000]
                assert mm[:] == get(O + "/warm")
    finally:
        u.server.send_signal(signal.SIGCONT)
        slt.write(T + "/enough", "")
        said = [p.communicate(timeout=120)[0] for p in loops]
        os.unlink(T + "/enough")
    ok([p.returncode for p in loops] == [0, 0] and not any(said), f"{u.what}: who read what is here noticed nothing", said)
    slt.wait_for(60, "they are held", lambda: u.held() >= HELD[u.gate])
    is_(u.held(), HELD[u.gate], f"{u.what}: and its descriptors are held as before")


def keeper_dies(u):
    """The main process alone: the manager ends the other one as well."""
    st = u.status()
    os.kill(st["keeper_pid"], 9)
    for pid in (st["keeper_pid"], st["service_pid"]):
        slt.wait_for(60, "they are gone", lambda pid=pid: slt.gone(pid))
    return st


def ends(u):
    with point(f"{u.what}: there is nothing to reload, and nothing happens"):
        p = subprocess.run([*CTL, "reload", u.name], stderr=subprocess.PIPE, check=False)
        assert p.returncode and b"not applicable" in p.stderr, p
        assert u.active()
    with point(f"{u.what}: a restart is one in good order"):
        before, restarts = u.status(), u.show("NRestarts")
        slt.write(u.dir + "/mine", "written here")
        u.ctl("restart")
        st = u.status()
        assert u.active(before["keeper_pid"]) and u.show("NRestarts") in (restarts, "0"), u.show("NRestarts")
        assert not st["unclean_start"] and st["service_restarts"] == 0, st
        assert slt.read(u.dir + "/mine") == "written here"
    slt.wait_for(60, "they are held", lambda: u.held() >= HELD[u.gate])
    is_(u.held(), HELD[u.gate], f"{u.what}: with descriptors of its own")
    for how, stop in (("the manager stops it", lambda: u.ctl("stop")), ("it is stopped by hand", lambda: u.sluice("stop", u.dir)),
                      ("it is unmounted", lambda: out(*(("umount",) if slt.ROOT else ("fusermount3", "-u")), u.dir))):
        with point(f"{u.what}: when {how} it ends in good order, and nothing is left"):
            if u.show("ActiveState") != "active":
                u.ctl("start")
            slt.wait_for(60, "they are held", lambda: u.held() >= HELD[u.gate])
            st, held_open = u.status(), how.startswith("the manager") and open(u.dir + "/large", "rb")
            stop()
            if held_open:
                slt.fails(errno.EIO if u.gate == "fanotify" else errno.ENOTCONN, os.pread, held_open.fileno(), 10, 1_000_000)
                held_open.close()
            slt.wait_for(60, "the unit has ended", lambda: u.show("ActiveState") in ("inactive", "failed"))
            assert (u.show("ActiveState"), u.show("Result")) == ("inactive", "success"), u.show("Result")
            assert u.held() == 0 and not os.path.ismount(u.dir) and os.listdir(u.dir) == []
            assert slt.gone(st["keeper_pid"]) and slt.gone(st["service_pid"])
            assert u.dir + ".store" not in out("losetup", "-l", "-n", "-O", "BACK-FILE").decode()


def test():
    out(sys.executable, slt.TOOLS + "/maketree.py", O, "100")
    for name, size in (("large", 6 << 20), ("warm", 300_000)):
        slt.write(f"{O}/{name}", os.urandom(size), "wb")
    for name in ("cold0", "cold1"):
        os.mkdir(f"{O}/{name}")
        for i in range(6):
            slt.write(f"{O}/{name}/{i}", os.urandom(4097 + i * 100_000), "wb")
    for gate in sys.argv[1:]:
        u = Unit(f"{gate} gate", "c-" + gate, gate)
        comes_up(u)
        service_dies(u)
        both_die(u, "cold0", Unit.kill)
        out(*CTL, "daemon-reexec")  # as upgrades of systemd do
        both_die(u, "cold1", keeper_dies)
        ends(u)
        with point(f"{u.what}: all that is here is right"):
            u.ctl("start")
            u.sluice("verify", u.dir)
            u.ctl("stop")
            u.sluice("remove", "--discard", u.dir)


slt.run(test)
