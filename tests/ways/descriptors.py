# SPDX-License-Identifier: LGPL-2.1-or-later
"""Descriptors and users"""

import ctypes
import os
import socket
import struct
import subprocess
import threading
import time

from way import LIBC, NotHere, complain, in_child, read, read_fd, syscall, way

FAN_CLASS_NOTIF, FAN_CLASS_CONTENT, FAN_CLOEXEC = 0, 4, 1
FAN_MARK_ADD, FAN_OPEN, FAN_OPEN_PERM, FAN_ALLOW = 1, 0x20, 0x10000, 1
AT_FDCWD, CLONE_NEWUSER = -100, 0x10000000
LIBC.fanotify_mark.argtypes = ctypes.c_int, ctypes.c_uint, ctypes.c_uint64, ctypes.c_int, ctypes.c_char_p


@way("a descriptor passed through a socket", quick=True)
def passed(w):
    a, b = socket.socketpair()
    socket.send_fds(a, [b"x"], [os.open(w.path(), os.O_RDONLY)])

    def receive():
        _, fds, _, _ = socket.recv_fds(b, 1, 1)
        w.same(read_fd(fds[0]))

    in_child(receive)


@way("a descriptor that was inherited")
def inherited(w):
    fd = os.open(w.path(), os.O_RDONLY)
    in_child(lambda: w.same(read_fd(fd)))


@way("a descriptor as standard input of cat")
def standard_input(w):
    with open(w.path(), "rb") as f:
        w.same(w.run("cat", stdin=f))


@way("a descriptor taken with pidfd_getfd", may_refuse="not everybody may")
def pidfd(w):
    fd = os.open(w.path(), os.O_RDONLY)
    me = os.pidfd_open(os.getpid())
    in_child(lambda: w.same(read_fd(syscall("syscall", 438, me, fd, 0))))


@way("O_PATH, reopened through /proc/self/fd", quick=True)
def o_path(w):
    fd = os.open(w.path(), os.O_PATH)
    w.same(read(f"/proc/self/fd/{fd}"))


@way("O_PATH, reopened after its file was removed")
def o_path_removed(w):
    fd = os.open(w.path(), os.O_PATH)
    os.unlink(w.path())
    w.same(read(f"/proc/self/fd/{fd}"))


@way("read after its file was removed", quick=True)
def removed(w):
    fd = os.open(w.path(), os.O_RDONLY)
    os.unlink(w.path())
    w.same(read_fd(fd))


@way("/proc/PID/map_files", root=True)
def map_files(w):
    import mmap
    with open(w.path(), "rb") as f:
        m = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)
    where = next(line for line in open("/proc/self/maps", encoding="utf-8") if line.rstrip().endswith(w.path())).split()[0]
    a, b = (x.lstrip("0") for x in where.split("-"))
    w.same(read(f"/proc/self/map_files/{a}-{b}"))
    m.close()


@way("/proc/PID/cwd and /proc/PID/root")
def proc_links(w):
    os.chdir(w.dir)
    w.same(read("/proc/self/cwd/f"))
    w.same(read("/proc/self/root" + w.path()))


@way("open_by_handle_at", root=True, may_refuse="a gate may have no handles", quick=True)
def handle(w):
    class FileHandle(ctypes.Structure):
        _fields_ = [("bytes", ctypes.c_uint), ("type", ctypes.c_int), ("handle", ctypes.c_ubyte * 128)]

    h, mount = FileHandle(128), ctypes.c_int()
    syscall("name_to_handle_at", AT_FDCWD, w.path().encode(), ctypes.byref(h), ctypes.byref(mount), 0)
    top = os.open(w.dir, os.O_RDONLY | os.O_DIRECTORY)
    w.same(read_fd(syscall("open_by_handle_at", top, ctypes.byref(h), os.O_RDONLY)))


@way("read by another user", root=True, quick=True)
def other_user(w):
    def go():
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        w.same(read(w.path()))

    in_child(go)


@way("mmap by another user through a descriptor of root's", root=True)
def other_user_map(w):
    import mmap
    fd = os.open(w.path(), os.O_RDONLY)

    def go():
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        w.same(mmap.mmap(fd, 0, prot=mmap.PROT_READ)[:])

    in_child(go)


@way("read in another user namespace")
def user_namespace(w):
    def go():
        try:
            syscall("unshare", CLONE_NEWUSER)
        except OSError as e:
            raise NotHere(f"no user namespaces: {e}") from None
        w.same(read(w.path()))

    in_child(go)


@way("read in a process with no memory to spare (cgroup)", root=True, files={"f": 8 << 20})
def small_memory(w):
    where = "/sys/fs/cgroup/memory" if os.path.exists("/sys/fs/cgroup/memory/cgroup.procs") else None
    limit = "memory.limit_in_bytes"
    if not where:
        if not os.path.exists("/sys/fs/cgroup/cgroup.procs"):
            raise NotHere("no cgroups")
        where, limit = "/sys/fs/cgroup", "memory.max"
    group = os.path.join(where, f"sluice-way-{os.getpid()}")
    try:
        os.mkdir(group)
        with open(os.path.join(group, limit), "w", encoding="ascii") as f:
            f.write(str(4 << 20))
    except OSError as e:
        if os.path.isdir(group):
            os.rmdir(group)
        raise NotHere(f"no memory cgroup: {e}") from None

    try:
        with open(os.path.join(group, "cgroup.procs"), "w", encoding="ascii") as f:
            child = subprocess.Popen(["sh", "-c", 'read x; exec cmp "$1" "$2"', "-", w.path(), os.path.join(w.want, "f")], stdin=subprocess.PIPE,
                                     stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            f.write(str(child.pid))
        said = child.communicate(b"go\n")[0]
    finally:
        end = time.monotonic() + 30
        while os.path.isdir(group) and time.monotonic() < end: # it is in use until its process is forgotten
            try:
                os.rmdir(group)
            except OSError:
                time.sleep(0.01)
    if child.returncode:
        complain("cmp", child.returncode, said)


# ---- another listener of fanotify, such as a virus scanner: its descriptors come from the kernel ----


def listener(w, how, mask):
    fan = syscall("fanotify_init", how | FAN_CLOEXEC, os.O_RDONLY)
    syscall("fanotify_mark", fan, FAN_MARK_ADD, mask, AT_FDCWD, w.path().encode())
    return fan


def event(fan):
    said = os.read(fan, 4096)
    return struct.unpack_from("=IBBHQii", said)[5]


@way("the descriptor of another listener's event (FAN_OPEN)", root=True)
def scanner(w):
    fan = listener(w, FAN_CLASS_NOTIF, FAN_OPEN)
    os.close(os.open(w.path(), os.O_RDONLY))
    w.same(read_fd(event(fan)))


@way("mmap of the descriptor of another listener's event", root=True)
def scanner_map(w):
    import mmap
    fan = listener(w, FAN_CLASS_NOTIF, FAN_OPEN)
    os.close(os.open(w.path(), os.O_RDONLY))
    w.same(mmap.mmap(event(fan), 0, prot=mmap.PROT_READ)[:])


@way("a scanner that reads before it allows the open (FAN_OPEN_PERM)", root=True)
def scanner_perm(w):
    fan, scanned, errors = listener(w, FAN_CLASS_CONTENT, FAN_OPEN_PERM), [], []

    def scan(): # every open, as a gate may open the file as well
        while True:
            fd = event(fan)
            try:
                scanned.append(read_fd(fd))
            except OSError as e:
                errors.append(e)
            finally:
                os.write(fan, struct.pack("=iI", fd, FAN_ALLOW))
                os.close(fd)

    threading.Thread(target=scan, daemon=True).start()
    got = w.run("cat", w.path())
    for s in scanned:
        w.same(s)
    w.same(got)
    if errors:
        raise errors[0]
