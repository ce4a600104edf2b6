#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Programs that watch files, as they come: if this fails, one of them does not notice what somebody changes at the origin of a clone.

STANDIN=share has them watch a share, STANDIN=none the origin itself, which tries the test.
"""
# long: yes
# asan: no

import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

sys.dont_write_bytecode = True
TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
sys.path.insert(0, os.path.join(TOP, "tests", "tools"))
import slt  # noqa: E402
from slt import ROOT, T, ok, out, skip, wait_for  # noqa: E402
from standin import Mount  # noqa: E402

NODE = os.path.join(os.environ.get("SLUICE_BUILD", os.path.join(TOP, "build")), "node")


class Program:
    """A program that prints what it hears."""

    def __init__(self, *argv, cwd=None, env=None):
        self.text, self.seen = "", 0
        self.p = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=cwd, env=env, text=True, bufsize=1,
                                  errors="replace", start_new_session=True)
        slt._at_end.append(self.end)
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def read(self):
        for line in self.p.stdout:
            self.text += line

    def hears(self, pattern, what):
        """Wait for @pattern in what it says after the last that was waited for."""
        def there():
            m = re.compile(pattern).search(self.text, self.seen)
            if m:
                self.seen = m.end()
            return m or self.p.poll() is not None
        try:
            wait_for(120, what, there)
        except AssertionError:
            return ok(False, what, "it said: " + self.text[-1500:])
        m = re.compile(pattern).search(self.text[:self.seen] + " ") if self.p.poll() is not None else True
        return ok(bool(m), what, "it said: " + self.text[-1500:])

    def until(self, act, pattern, what):
        """Call @act(1), @act(2) … until it says @pattern. Some wait for silence before they say anything: it becomes longer each time."""
        end, pause, n = time.monotonic() + 120, 0.1, 0
        while time.monotonic() < end and self.p.poll() is None and not re.search(pattern, self.text):
            n += 1
            act(n)
            try:
                wait_for(pause, what, lambda: re.search(pattern, self.text))
            except AssertionError:
                pause = min(pause * 2, 10)
        ok(bool(re.search(pattern, self.text)), what, "it said: " + self.text[-1500:])

    def end(self):
        if self.p.poll() is None:
            os.killpg(self.p.pid, signal.SIGTERM)
            try:
                self.p.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(self.p.pid, signal.SIGKILL)
                self.p.wait()


def put(path, text):
    with open(path, "w", encoding="utf-8") as f:
        f.write(text)


def usual(name, program, origin, ready, create, change, rename, remove):
    """The life of a file, each step heard before the next."""
    if ready:
        program.hears(ready, f"{name} watches")
    put(origin + "/hello.txt", "one\n")
    program.hears(create, f"{name} hears of a new file")
    with open(origin + "/hello.txt", "a", encoding="utf-8") as f:
        f.write("two\n")
    program.hears(change, f"{name} hears that it is written to")
    os.rename(origin + "/hello.txt", origin + "/moved.txt")
    program.hears(rename, f"{name} hears that it is renamed")
    os.unlink(origin + "/moved.txt")
    program.hears(remove, f"{name} hears that it is removed")
    program.end()


def node_modules():
    """Why there are none, or None."""
    if not shutil.which("node") or not shutil.which("npm"):
        return "node and npm are not installed"
    os.makedirs(NODE, exist_ok=True)
    lock = os.open(NODE, os.O_RDONLY)  # another test installs the same
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        return install()
    finally:
        os.close(lock)


def install():
    want = os.path.join(TOP, "tests", "node", "package.json")
    have = os.path.join(NODE, "package.json")
    with open(want, encoding="utf-8") as f:
        text = f.read()
    if not os.path.exists(NODE + "/done") or open(have, encoding="utf-8").read() != text:
        put(have, text)
        p = subprocess.run(["npm", "install", "--no-audit", "--no-fund", "--no-package-lock", "--loglevel=error"], cwd=NODE, check=False,
                           stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=600, text=True)
        if p.returncode:
            return "npm cannot fetch them: " + " ".join(p.stdout.split())[-200:]
        put(NODE + "/done", "")
    return None


def directory(c, o, name):
    """A directory of the origin for one program, which the clone has listed."""
    os.mkdir(f"{o}/{name}")
    put(f"{o}/{name}/main.js", "export const n = 1\n")
    put(f"{o}/{name}/index.html", "<script type=module src=/main.js></script>\n")
    wait_for(120, f"{name} appears in the clone", lambda: os.path.isdir(f"{c}/{name}"))
    wait_for(120, "and what is in it", lambda: sorted(os.listdir(f"{c}/{name}")) == ["index.html", "main.js"])
    out("ls", "-lR", f"{c}/{name}")
    return f"{c}/{name}", f"{o}/{name}"


def test():
    o, c = T + "/o", T + "/c"
    os.mkdir(o)
    out("chmod", "755", o)
    standin = os.environ.get("STANDIN", "clone")
    if standin == "none":
        c = o
    elif standin == "share":
        Mount("share", o, c).start()
    else:
        origin, _ = slt.serve("s", o)
        slt.clone(origin, c)
    os.listdir(c)

    here, there = directory(c, o, "inotifywait")
    usual("inotifywait", Program("inotifywait", "-m", "-r", here), there, "Watches established", "CREATE hello.txt", "MODIFY hello.txt(.|\n)*CLOSE_WRITE",
          "MOVED_FROM hello.txt\n.*MOVED_TO moved.txt", "DELETE moved.txt")

    if ROOT:
        here, there = directory(c, o, "fsnotifywait")
        usual("fsnotifywait", Program("fsnotifywait", "--fanotify", "-m", "-r", here), there, "established", "CREATE\\S* hello.txt",
              "MODIFY\\S* hello.txt", "MOVED_TO\\S* moved.txt", "DELETE\\S* moved.txt")  # what nobody has read yet the kernel merges
    else:
        skip("fsnotifywait needs root")

    if shutil.which("watchman"):
        here, there = directory(c, o, "watchman")
        state = T + "/watchman"
        os.mkdir(state, 0o700)
        base = ["watchman"]
        for _ in range(3):  # that it starts is not what is tested
            server = Program(*base, "--foreground", f"--sockname={state}/sock", f"--logfile={state}/log", f"--statefile={state}/state",
                             env=dict(os.environ, HOME=state, USER="test"))
            wait_for(120, "watchman listens, or ends", lambda s=server: os.path.exists(state + "/sock") or s.p.poll() is not None)
            if os.path.exists(state + "/sock"):
                break
        assert os.path.exists(state + "/sock"), "watchman does not start: " + server.text[-1500:]
        w = Program(*base, f"--sockname={state}/sock", "--no-spawn", "-p", "-j", "--server-encoding=json",
                    env=dict(os.environ, HOME=state, USER="test"))
        subprocess.run([*base, f"--sockname={state}/sock", "--no-spawn", "watch", here], check=True, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
        w.p.stdin.write(f'["subscribe", "{here}", "s", {{"fields": ["name", "exists", "size"]}}]\n')
        w.p.stdin.flush()
        w.hears('"subscribe": ?"s"', "watchman watches")
        usual("watchman", w, there, None, 'hello.txt', '"size": ?8', 'moved.txt', 'moved.txt')
        server.end()
    else:
        skip("watchman is not installed")

    if not slt.NATIVE and standin != "none":
        skip("fatrace marks mounts, which the kernel refuses for FUSE (ENODEV)")
    elif ROOT and shutil.which("fatrace", path=os.environ["PATH"] + ":/usr/sbin"):
        here, there = directory(c, o, "fatrace")
        w = Program("/usr/sbin/fatrace", "-c", "-f", "CW+<>D", cwd=here)
        w.until(lambda n: put(f"{there}/probe{n}", "x"), "/probe\\d+\n", "fatrace hears of files that are written at the origin")
        w.end()
    else:
        skip("fatrace needs root")

    here, there = directory(c, o, "entr")
    p = subprocess.run(["entr", "-V"], check=False, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) if shutil.which("entr") else None
    if p is not None:
        w = Program("entr", "-n", "-p", "cat", here + "/main.js")
        w.p.stdin.write(here + "/main.js\n")
        w.p.stdin.close()
        # entr takes a moment until it minds what it watches, and does not say when.
        w.until(lambda n: put(there + "/main.js", f"export const n = {n}\n"), "export const n = \\d+\n", "entr runs its command when a file changed")
        w.end()
    else:
        skip("entr is not installed")

    here, there = directory(c, o, "tail")
    put(there + "/log", "first\n")
    wait_for(120, "the log appears", lambda: os.path.exists(here + "/log"))
    w = Program("tail", "-n", "+1", "-F", here + "/log")
    w.hears("first", "tail -F shows what is there")
    with open(there + "/log", "a", encoding="utf-8") as f:
        f.write("second\n")
    w.hears("second", "and what is appended at the origin")
    os.rename(there + "/log", there + "/log.1")
    put(there + "/log", "third\n")
    w.hears("third", "and goes on with a new file when the log was rotated")
    w.end()

    here, there = directory(c, o, "make")
    put(there + "/Makefile", "result: source\n\tcp source result\n")
    put(there + "/source", "one\n")
    wait_for(120, "the Makefile appears", lambda: os.path.exists(here + "/source") and os.stat(here + "/source").st_size == 4)
    result = lambda: out("make", "-C", here, "result") and open(here + "/result", encoding="utf-8").read()  # noqa: E731
    ok(result() == "one\n", "make makes")
    ok(b"up to date" in out("make", "-C", here, "result"), "and nothing twice")
    os.utime(there + "/source")  # newer than the result
    put(there + "/source", "two!\n")
    wait_for(120, "the source is new", lambda: os.stat(here + "/source").st_size == 5)
    ok(result() == "two!\n", "and again, when its source has changed at the origin")

    why = node_modules()
    if why:
        skip(why, 4)
        return
    env = dict(os.environ, NODE_PATH=NODE + "/node_modules")
    script = os.path.join(TOP, "tests", "node", "watch.js")
    here, there = directory(c, o, "chokidar")
    usual("chokidar", Program("node", script, "chokidar", here, env=env), there, "ready", "add hello.txt", "change hello.txt",
          "(add moved.txt(.|\n)*unlink hello.txt|unlink hello.txt(.|\n)*add moved.txt)", "unlink moved.txt")
    here, there = directory(c, o, "parcel")
    usual("@parcel/watcher", Program("node", script, "parcel", here, env=env), there, "ready", "create hello.txt", "update hello.txt",
          "(create moved.txt(.|\n)*delete hello.txt|delete hello.txt(.|\n)*create moved.txt)", "delete moved.txt")
    here, there = directory(c, o, "watchpack")
    usual("watchpack", Program("node", script, "watchpack", here, env=env), there, "ready", "change-.* hello.txt", "change-.* hello.txt",
          "(remove-.* hello.txt|change-.* moved.txt)", "remove-.* moved.txt")
    here, there = directory(c, o, "vite")
    w = Program("node", script, "vite", here, T + "/vite", env=env)
    w.hears("ready", "a vite development server runs in the clone")
    # It listens before its watcher has seen the whole tree, and does not say when that has.
    w.until(lambda n: put(there + "/main.js", f"export const n = 42 - {n}\n"), "tells .*(reload|update)",
            "it tells browsers to load again what changed at the origin")
    # It reads at the first event, maybe before the file is written, and does not mind a second one within some milliseconds.
    w.until(lambda n: put(there + "/main.js", f"export const n = 42 + {n}\n"), "serves .*n = 42 \\+", "and serves the new content")
    w.end()


slt.run(test)
