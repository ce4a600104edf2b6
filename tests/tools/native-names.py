# SPDX-License-Identifier: LGPL-2.1-or-later
"""Names that users take away in a native clone; run by names-native.t."""

import os
import signal
import subprocess
import threading
import time

import slt
from slt import NATIVE, T, is_, ok, read, status, wait_for, write

assert NATIVE
O, C = T + "/o", T + "/c"


def quiet():
    """All that happened at the origin has arrived."""
    n = f"quiet{time.monotonic_ns()}"
    write(f"{O}/{n}", "")
    wait_for(60, "the last event", lambda: os.path.lexists(f"{C}/{n}"))
    os.unlink(f"{O}/{n}")
    wait_for(60, "the last event", lambda: not os.path.lexists(f"{C}/{n}"))
    compared()


def compared():
    wait_for(60, "all is compared", lambda: (e := status(C, "--brief").get("events")) and not e["queued"] and not e["comparing"])


def stopped():
    """The service does nothing from now on, not even hear of anything."""
    pid = status(C, "--brief")["service_pid"]
    os.kill(pid, signal.SIGSTOP)
    return pid


def killed(pid):
    os.kill(pid, signal.SIGKILL)
    wait_for(60, "another service", lambda: status(C, "--brief")["service_pid"] != pid)
    compared()


def shown(*names):
    return [n for n in names if os.path.lexists(f"{C}/{n}")]


class Noise:
    """The origin is never quiet, so nothing counts as all that has come."""

    def __enter__(self):
        self.end = threading.Event()
        self.thread = threading.Thread(target=self.run)
        self.thread.start()
        return self

    def run(self):
        i = 0
        while not self.end.wait(0.005):
            write(f"{O}/noise/{i % 8}", str(i))
            i += 1

    def __exit__(self, *_):
        self.end.set()
        self.thread.join()


def taken_at_once():
    """Taken as soon as they came, by a user whom the service that dies has not heard."""
    with Noise():
        for n in ("new", "newer", "unseen"):
            write(f"{O}/d/{n}", n)
        os.mkdir(f"{O}/d/tree")
        write(f"{O}/d/tree/f", "f")
        wait_for(60, "they have come", lambda: len(shown("d/new", "d/newer", "d/unseen", "d/tree/f")) == 4)
        pid = stopped()
        os.unlink(f"{C}/d/new")
        os.rename(f"{C}/d/newer", f"{C}/d/elsewhere")
        subprocess.run(["rm", "-r", f"{C}/d/tree"], check=True)
        os.unlink(f"{C}/d/old")
        killed(pid)
        is_(shown("d/new", "d/newer", "d/tree", "d/old"), [], "what was taken away before a service was killed does not come back")
        is_(read(f"{C}/d/elsewhere"), "newer", "and what was renamed is there, with its content")
        ok(shown("d/unseen"), "and what nobody took is there")
    quiet()
    is_(shown("d/new", "d/newer", "d/tree", "d/old"), [], "nor when all has arrived")


def made_anew():
    for n in ("again", "instead"):
        write(f"{O}/d/{n}", "before")
    quiet()
    os.unlink(f"{C}/d/again")
    os.unlink(f"{O}/d/again")
    write(f"{O}/d/again", "after")
    quiet()  # it was empty when it was made
    is_(read(f"{C}/d/again"), "after", "what the origin makes anew is shown, although its name was deleted here")
    os.unlink(f"{C}/d/instead")
    quiet()
    pid = stopped()
    os.unlink(f"{O}/d/instead")
    write(f"{O}/d/instead", "after")
    killed(pid)
    wait_for(60, "it has come again", lambda: shown("d/instead"))
    is_(read(f"{C}/d/instead"), "after", "also if nobody has heard of it")


def changed_there():
    write(f"{O}/d/written", "before")
    quiet()
    os.unlink(f"{C}/d/written")
    write(f"{O}/d/written", "after")
    quiet()
    is_(shown("d/written"), [], "what was deleted here and is written to at the origin stays deleted")
    killed(stopped())
    is_(shown("d/written"), [], "also after another service has compared it")


def put_in_its_place():
    """What users make and take away themselves is theirs; but a name of the origin's may be below it."""
    write(f"{O}/d/replaced", "origin")
    quiet()
    write(f"{C}/d/.tmp", "user")
    os.rename(f"{C}/d/.tmp", f"{C}/d/replaced")
    os.unlink(f"{C}/d/replaced")
    killed(stopped())
    is_(shown("d/replaced"), [], "what users have put in the place of the origin's and then deleted stays deleted")
    for n in ("one", "other"):
        write(f"{O}/d/{n}", n)
    quiet()
    pid = stopped()
    slt.exchange(f"{C}/d/one", f"{C}/d/other")
    os.unlink(f"{C}/d/one")
    killed(pid)
    is_(shown("d/one", "d/other"), ["d/other"], "also one of two that they exchanged")


def renamed_there():
    for n in ("x", "y"):
        write(f"{O}/d/{n}", n)
    quiet()
    os.rename(f"{O}/d/x", f"{O}/d/x2")
    slt.exchange(f"{O}/d/y", f"{O}/d/x2")
    wait_for(60, "they are renamed", lambda: shown("d/x2") and read(f"{C}/d/x2") == "y" and read(f"{C}/d/y") == "x")
    pid = stopped()
    os.unlink(f"{C}/d/x2")
    os.unlink(f"{C}/d/y")
    write(f"{O}/d/x", "new")
    killed(pid)
    wait_for(60, "a new one has come", lambda: shown("d/x"))
    is_(shown("d/x2", "d/y"), [], "what the origin renamed, and was then deleted here, stays deleted")


def several_names():
    """Of a file of several names those are the origin's that have come, by a listing or later; users may give it one more."""
    os.link(f"{O}/d/many", f"{O}/d/late")
    quiet()
    os.link(f"{C}/d/many", f"{C}/d/mine")
    slt.sluice("stop", C)
    for n in ("listed", "late", "third"):
        os.unlink(f"{O}/d/{n}")
    write(f"{O}/d/third", "another")
    slt.sluice("start", C)
    compared()
    is_(shown("d/listed", "d/late"), [], "of a file of several names those go that the origin took away unheard")
    is_(read(f"{C}/d/third"), "another", "and where it has another file by now that is shown")
    is_((read(f"{C}/d/many"), read(f"{C}/d/mine")), ("many", "many"), "and the name that a user gave it stays")


def both_killed():
    for n in ("deaf", "heard"):
        write(f"{O}/d/{n}", n)
    quiet()
    # Until then nothing counts as all that has come.
    slt.sluice("stop", C)
    slt.sluice("start", C)
    compared()
    slt.kill_service(C)
    os.unlink(f"{C}/d/deaf")
    slt.sluice("start", C)
    compared()
    is_(shown("d/deaf", "d/heard"), ["d/heard"], "what was deleted while nobody was there stays deleted")
    killed(stopped())
    slt.sluice("stop", C)
    slt.sluice("start", C)
    compared()
    is_(shown("d/deaf", "d/heard"), ["d/heard"], "also when it is compared again")


def test():
    for d in ("", "/d", "/noise"):
        os.mkdir(O + d)
    for i in range(8):
        write(f"{O}/noise/{i}", "")
    write(f"{O}/d/old", "old")
    write(f"{O}/d/stays", "stays")
    write(f"{O}/d/many", "many")
    for n in ("listed", "third"):
        os.link(f"{O}/d/many", f"{O}/d/{n}")
    slt.clone(slt.serve("sock", O)[0], C)
    taken_at_once()
    made_anew()
    changed_there()
    put_in_its_place()
    renamed_there()
    several_names()
    both_killed()
    is_(read(f"{C}/d/stays"), "stays", "and what nobody touched is there")


slt.run(test)
