# SPDX-License-Identifier: LGPL-2.1-or-later
"""The systems under test: how each makes a fresh, cold stand-in of a directory at a directory.

To add one: a class with up() and what differs, and its name in GATES.
"""

import json
import os
import shutil
import socket
import subprocess
import time

SLUICE = os.environ.get("SLUICE", "")
ROOT = os.geteuid() == 0


class Gate:
    """origin: a directory of ours alone, which a gate may write to. dir: where the stand-in is to be. tmp: for the rest."""

    ours = False  # a WRONG of it is a failure of ours

    def __init__(self, origin, directory, tmp):
        self.origin, self.dir, self.tmp, self.children = origin, directory, tmp, []

    def why_not(self):
        """Why it cannot be had here, or None."""
        return None

    def up(self):
        raise NotImplementedError

    def down(self):
        unmount(self.dir)
        for c in reversed(self.children):
            c.terminate()
            try:
                c.wait(20)
            except subprocess.TimeoutExpired:
                c.kill()
                c.wait()

    def states(self, paths):
        """cold, partial or full for each; None where nobody can tell."""
        return None

    def evict(self, path):
        """Take the bytes away. False if it cannot be done now; None if there is no such thing."""
        return None

    def hydrate(self):
        """Fetch everything. None if there is no such thing."""
        return None

    def version(self):
        return ""

    def spawn(self, *argv, **kw):
        kw.setdefault("stdout", subprocess.DEVNULL)
        kw.setdefault("stderr", subprocess.DEVNULL)
        c = subprocess.Popen(argv, stdin=subprocess.DEVNULL, **kw)
        self.children.append(c)
        return c


class Sluice(Gate):
    ours = True
    options = ()
    exporter = ()  # before the command

    def why_not(self):
        if not os.access("/dev/fuse", os.R_OK | os.W_OK):
            return "/dev/fuse cannot be opened"
        return None

    def up(self):
        sock = os.path.join(self.tmp, "s")
        serve = self.spawn(*self.exporter, SLUICE, "serve", "--unix", sock, self.origin, stdout=subprocess.PIPE)
        assert serve.stdout.readline().startswith(b"serving"), "no export"
        out(SLUICE, "clone", *self.options, "unix:" + sock, self.dir)

    def down(self):
        try:
            subprocess.run([SLUICE, "remove", "--force", "--discard", self.dir], check=False, timeout=120, stdin=subprocess.DEVNULL,
                           stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        finally:
            super().down()

    def states(self, paths):
        for p in paths:
            os.lstat(p)  # its name must be here for that
        return [p["state"] for p in json.loads(out(SLUICE, "status", "--json", *paths))["paths"]] if paths else []

    def evict(self, path):
        said = json.loads(out(SLUICE, "evict", "--json", path))
        return not said["busy"] and not said["kept"]

    def hydrate(self):
        out(SLUICE, "hydrate", self.dir)
        return True

    def version(self):
        return out(SLUICE, "--version").strip()


class Fuse(Sluice):
    name = "fuse"
    options = ("--gate", "fuse", "--allow-other") if ROOT else ("--gate", "fuse")


class Fanotify(Sluice):
    name = "fanotify"
    options = ("--gate", "fanotify")

    def why_not(self):
        if not ROOT:
            return "needs root"
        said = json.loads(subprocess.run([SLUICE, "doctor", "--json"], check=False, stdout=subprocess.PIPE).stdout)
        for c in said["checks"]:
            if c["name"] == "fanotify-pre-content" and not c["ok"]:
                return c.get("why", "this kernel has no pre-content events")
        # Whether this program has it at all: it is a mistake on the command line then, and nothing else is.
        none = os.path.join(self.tmp, "none")
        p = subprocess.run([SLUICE, "clone", *self.options, none, none], check=False, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                           stderr=subprocess.STDOUT, text=True)
        return "this sluice has no such gate" if p.returncode == 2 or "--gate" in p.stdout else None


class Sshfs(Gate):
    """Over a pipe to the sftp server. What ssh would put in between knows nothing of files."""

    name = "sshfs"

    def why_not(self):
        if not shutil.which("sshfs"):
            return "sshfs is not installed"
        return None if sftp_server() else "there is no sftp-server"

    def up(self):
        command = os.path.join(self.tmp, "command")
        with open(command, "w", encoding="utf-8") as f:
            f.write(f"#!/bin/sh\nexec {sftp_server()}\n")
        os.chmod(command, 0o755)
        os.makedirs(self.dir, exist_ok=True)
        out("sshfs", "-o", f"ssh_command={command}", *(["-o", "allow_other,default_permissions"] if ROOT else []), "peer:" + self.origin, self.dir)

    def version(self):
        return next(line for line in out("sshfs", "--version").split("\n") if line.startswith("SSHFS")) + ", as it comes"


class Rclone(Gate):
    """mount --vfs-cache-mode full, by sftp from a real sshd. Its files are shown executable, so that they can be executed."""

    name = "rclone"

    def why_not(self):
        for c in ("rclone", "sshd", "ssh-keygen"):
            if not which(c):
                return f"{c} is not installed"
        return None if ROOT else "sshd needs root"

    def up(self):
        os.makedirs(self.dir, exist_ok=True)
        port = self.sshd()
        env = dict(os.environ, RCLONE_CONFIG="/dev/null", RCLONE_CONFIG_PEER_TYPE="sftp", RCLONE_CONFIG_PEER_HOST="127.0.0.1",
                   RCLONE_CONFIG_PEER_PORT=str(port), RCLONE_CONFIG_PEER_USER="root", RCLONE_CONFIG_PEER_KEY_FILE=self.tmp + "/key",
                   RCLONE_CONFIG_PEER_SHELL_TYPE="none")
        child = self.spawn("rclone", "mount", "--vfs-cache-mode", "full", "--cache-dir", self.tmp + "/cache", "--file-perms", "0777",
                           "--allow-other", "peer:" + self.origin, self.dir, env=env)
        wait_for("rclone mount", lambda: os.path.ismount(self.dir) or child.poll() is not None)
        assert child.poll() is None, "rclone mount failed"

    def sshd(self):
        for k in ("key", "host"):
            out("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", f"{self.tmp}/{k}")
        os.makedirs("/run/sshd", exist_ok=True)
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        with open(self.tmp + "/config", "w", encoding="utf-8") as f:
            f.write(f"ListenAddress 127.0.0.1:{port}\nHostKey {self.tmp}/host\nAuthorizedKeysFile {self.tmp}/key.pub\nPidFile none\n"
                    f"StrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin prohibit-password\n"
                    f"Subsystem sftp {sftp_server()}\nLogLevel ERROR\n")
        child = self.spawn(which("sshd"), "-D", "-e", "-f", self.tmp + "/config")

        def up():
            with socket.socket() as s:
                return s.connect_ex(("127.0.0.1", port)) == 0 or child.poll() is not None

        wait_for("sshd", up)
        return port

    def version(self):
        return out("rclone", "--version").split("\n")[0] + ", mount --vfs-cache-mode full, sftp"


class Plain(Gate):
    """A copy: a way that is not right here is wrong itself."""

    name = "plain"

    def up(self):
        out("cp", "-a", self.origin, self.dir)


class Holes(Gate):
    """A copy without its bytes, as clones would be that nothing guards: a way that is right here looks at nothing."""

    name = "holes"

    def up(self):
        out("cp", "-a", self.origin, self.dir)
        for d, _, names in os.walk(self.dir):
            for n in names:
                p = os.path.join(d, n)
                if os.path.isfile(p) and not os.path.islink(p):
                    st = os.stat(p)
                    os.chmod(p, 0o600)
                    os.truncate(p, 0)
                    os.truncate(p, st.st_size)
                    os.chmod(p, st.st_mode & 0o7777)


GATES = {g.name: g for g in (Fuse, Fanotify, Sshfs, Rclone, Plain, Holes)}


def out(*argv):
    p = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False, text=True)
    if p.returncode:
        raise RuntimeError(f"status {p.returncode} of {' '.join(argv)}: {p.stdout[-2000:]}")
    return p.stdout


def which(name):
    return shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin:/sbin")


def sftp_server():
    return next((p for d in ("/usr/lib/openssh", "/usr/libexec/openssh", "/usr/libexec", "/usr/lib/ssh")
                 if os.access(p := d + "/sftp-server", os.X_OK)), None)


def wait_for(what, condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.02)


def unmount(path):
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as f:
        mounted = [line.split(" ")[4] for line in f]
    for m in sorted((m for m in mounted if m == path or m.startswith(path + "/")), reverse=True):
        subprocess.run(["umount", "-l", m] if ROOT else ["fusermount3", "-u", "-z", "--", m], check=False, stdin=subprocess.DEVNULL,
                       stderr=subprocess.DEVNULL)
