# SPDX-License-Identifier: LGPL-2.1-or-later
"""System tests in Python: TAP, clones, waiting. What it stands on (directories, cleaning up) is lib.sh's: run() starts it.

A test file is
    import slt
    def test(): ...
    slt.run(test, also_as_user=True)
"""

import contextlib
import ctypes
import errno
import json
import os
import subprocess
import sys
import time
import traceback

TOOLS = os.path.dirname(os.path.abspath(__file__))
ROOT = os.geteuid() == 0
NATIVE = os.environ.get("GATE") == "fanotify"  # clones are native ones, see native.sh
SANITIZED = bool(os.environ.get("SLUICE_SANITIZER"))  # the program is slow: do less of what goes by numbers
T = os.environ.get("T", "")
SLUICE = os.environ.get("SLUICE", "")

_count = 0
_at_end = []


def run(test, also_as_user=False):
    """Run @test below lib.sh, and once more as a user without privilege when we are root."""
    if os.environ.get("SL_TEST") == sys.argv[0]:
        try:
            test()
            print(f"1..{_count}", flush=True)
        finally:
            for f in reversed(_at_end):
                f()
        sys.exit(0)
    script = f'. "{TOOLS}/../t/lib.sh"; . "$TOOLS/clone.sh"; import_tap "" env SL_TEST="$0" PYTHONUNBUFFERED=1 python3 "$0"; '
    if also_as_user:
        script += "also_as_user; "
    os.execvp("bash", ["bash", "-c", script + "done_testing", sys.argv[0]])


def kernel_series():
    """Has this kernel the patches of kernel/? Then who looks for holes is asked for, too."""
    group = _libc.syscall(300, 0x9, os.O_RDONLY)  # fanotify_init: FAN_CLASS_PRE_CONTENT, FAN_CLOEXEC
    if group < 0:
        return False
    try:
        # fanotify_mark: FAN_PRE_DIR_ACCESS, which others do not know; whether the filesystem can do it is another question.
        return _libc.syscall(301, group, 1, ctypes.c_uint64(0x200000), -100, b"/") == 0 or ctypes.get_errno() != errno.EINVAL
    finally:
        os.close(group)


# ---- files ----

_libc = ctypes.CDLL(None, use_errno=True)


def write(path, data, mode="w"):
    with open(path, mode, encoding=None if "b" in mode else "utf-8") as f:
        f.write(data)


def read(path):
    with open(path, encoding="utf-8", errors="backslashreplace") as f:
        return f.read()


def exchange(a, b):
    if _libc.renameat2(-100, os.fsencode(a), -100, os.fsencode(b), 2) < 0:
        raise OSError(ctypes.get_errno(), "renameat2")


# ---- TAP ----

def note(text):
    for line in str(text).rstrip("\n").split("\n"):
        print("# " + line, flush=True)


def ok(good, what, *more):
    global _count
    _count += 1
    print(f"{'ok' if good else 'not ok'} {_count} - {what.replace('#', '')}", flush=True)
    if not good:
        f = sys._getframe(1)
        while f.f_code.co_filename == __file__ and f.f_back:
            f = f.f_back
        note(f"at {os.path.basename(f.f_code.co_filename)} line {f.f_lineno}")
        for m in more:
            note(m)
    return bool(good)


def known(good, what, why, *more):
    """A point that is known to fail now and then, for the reason @why that docs/limits.md explains: then it is not counted as passed."""
    if good:
        return ok(True, what)
    note(f"{what}:")
    for m in more:
        note(m)
    skip(f"known failure: {what.replace('#', '')}: {why}")
    return False


def is_(got, want, what):
    return ok(got == want, what, f"got:    {got!r}", f"wanted: {want!r}")


def skip(why, count=1):
    global _count
    for _ in range(count):
        _count += 1
        print(f"ok {_count} # SKIP {why}", flush=True)


@contextlib.contextmanager
def point(what):
    """One test point: passed if the block ends without an exception."""
    try:
        yield
    except Exception:  # pylint: disable=broad-except
        ok(False, what, traceback.format_exc())
    else:
        ok(True, what)


def error_of(f, *args, **kw):
    """The number of the error that it ends with, or 0."""
    try:
        f(*args, **kw)
    except OSError as e:
        return e.errno
    return 0


def fails(err, f, *args, **kw):
    """It must fail with just this."""
    got = error_of(f, *args, **kw)
    assert got == err, f"{errno.errorcode.get(got, 'no error')}, not {errno.errorcode[err]}"


# ---- programs and clones ----

def out(*args, **kw):
    """Standard output of a program that must succeed."""
    p = subprocess.run(args, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False, **kw)
    if p.returncode:
        raise AssertionError(f"status {p.returncode} of {args}: {(p.stdout + p.stderr).decode(errors='replace')[-2000:]}")
    return p.stdout


def sluice(*args):
    return out(SLUICE, *args)


def status(path, *args):
    return json.loads(sluice("status", "--json", *args, path))


def state(path):
    """What status says of one object. Its name must be here for that."""
    os.lstat(path)
    return status(path)["paths"][0]


def clone(origin, path, *options):
    gate = ("--gate", os.environ["GATE"]) if os.environ.get("GATE") else ()
    sluice("clone", *gate, *options, origin, path)
    _at_end.append(lambda: subprocess.run([SLUICE, "remove", "--force", "--discard", path], check=False, timeout=60,
                                          stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
    return path


def serve(name, tree, *options):
    """An export on a unix socket: its origin's name, and the process."""
    sock = os.path.join(T, name)
    p = subprocess.Popen([SLUICE, "serve", *options, "--unix", sock, tree], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    _at_end.append(p.kill)
    assert p.stdout.readline().startswith(b"serving"), "no export"
    return "unix:" + sock, p


def wait_for(seconds, what, cond):
    """What takes long to ask is asked less often, as in lib.sh."""
    now = time.monotonic()
    end = now + seconds
    while not (r := cond()):
        began, now = now, time.monotonic()
        assert now < end, f"waited {seconds} s in vain: {what}"
        time.sleep(min(max(2 * (now - began), 0.02), 0.5))
        now = time.monotonic()
    return r


def gone(pid):
    """No such process, or a zombie of which no other thread is left."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as f:
            return f.read().rsplit(b")", 1)[1].split()[0] == b"Z" and len(os.listdir(f"/proc/{pid}/task")) == 1
    except (FileNotFoundError, ProcessLookupError):
        return True


def kill_service(path):
    """Service and keeper at once; the service is stopped first, or it would make a new keeper."""
    st = status(path, "--brief")
    os.kill(st["service_pid"], 19)
    for pid in (st["keeper_pid"], st["service_pid"]):
        os.kill(pid, 9)
    for pid in (st["keeper_pid"], st["service_pid"]):
        wait_for(30, "the service is gone", lambda pid=pid: gone(pid))
