# SPDX-License-Identifier: LGPL-2.1-or-later
"""Mounts, namespaces, layers and devices"""

import contextlib
import fcntl
import mmap
import os
import shutil
import socket
import struct
import threading

from way import NotHere, Wrong, content, forked, in_child, program, read, read_fd, reap, syscall, way
from execs import payload

CLONE_NEWNS, MS_RDONLY = 0x20000, 1
SYS_OPEN_TREE, AT_FDCWD, OPEN_TREE_CLONE = 428, -100, 1
FS_IOC_ENABLE_VERITY = 0x40806685
BLOCKS = {"f": 64 * 4096}


def private_mounts():
    syscall("unshare", CLONE_NEWNS)
    program(["mount", "--make-rprivate", "/"])


@way("bind mount", root=True, quick=True)
def bind(w):
    w.same(read(w.mount("--bind", w.dir) + "/f"))


@way("bind mount, read-only", root=True)
def bind_read_only(w):
    m = w.mount("--bind", w.dir)
    program(["mount", "-o", "remount,bind,ro", m])
    w.same(read(m + "/f"))


@way("bind mount, read-only, mmap", root=True)
def bind_map(w):
    m = w.mount("--bind", w.dir)
    program(["mount", "-o", "remount,bind,ro", m])
    with open(m + "/f", "rb") as f, mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        w.same(mapped[:])


@way("bind mount of the file itself", root=True)
def bind_file(w):
    to = os.path.join(w.tmp, "file")
    open(to, "wb").close()
    program(["mount", "--bind", w.path(), to])
    w.same(read(to))


@way("another mount namespace", root=True, quick=True)
def namespace(w):
    def go():
        private_mounts()
        w.same(read(w.path()))

    in_child(go)


@way("another mount namespace, bind mount made there", root=True)
def namespace_bind(w):
    def go():
        private_mounts()
        w.same(read(w.mount("--bind", w.dir) + "/f"))

    in_child(go)


@way("a mount namespace older than the clone's last mount (unshare of a child that waits)", root=True)
def namespace_older(w):
    m = w.mount("--rbind", w.root)

    def go():
        private_mounts()
        w.same(read(os.path.join(m, os.path.relpath(w.path(), w.root))))

    in_child(go)


@way("a mount that is in no namespace (open_tree)", root=True)
def detached(w):
    tree = syscall("syscall", SYS_OPEN_TREE, AT_FDCWD, w.dir.encode(), OPEN_TREE_CLONE)
    w.same(read_fd(os.open("f", os.O_RDONLY, dir_fd=tree)))


@way("the clone's filesystem, mounted a second time", root=True, may_refuse="the kernel may say that it is mounted")
def second_mount(w):
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as f:
        source = next((line.split(" - ")[1].split()[1] for line in f if line.split(" ")[4] == w.root), "none")
    if not source.startswith("/dev/"):
        raise NotHere("it is not on a block device")
    w.same(read(os.path.join(w.mount(source), os.path.relpath(w.path(), w.root))))


@way("chroot", root=True)
def chroot(w):
    want = w.bytes()

    def go():
        os.chroot(w.dir)
        w.same(read("/f"), want)

    in_child(go)


@way("chroot into the clone, execution", root=True, make=payload)
def chroot_exec(w):
    r, p = os.pipe()

    def go():
        os.dup2(p, 1)
        os.chroot(w.dir)
        os.chdir("/")
        os.execv("/f", ["f"])

    pid = forked(go)
    os.close(p)
    got = os.read(r, 100)
    reap(pid)
    w.same(got, b"right\n")


# ---- overlayfs ----


def overlay(w, top=None):
    top = top or w.tmp
    for d in ("upper", "work"):
        os.mkdir(os.path.join(top, d))
    try:
        return w.mount("-t", "overlay", "-o", f"lowerdir={w.dir},upperdir={top}/upper,workdir={top}/work", "overlay")
    except (OSError, Wrong):
        raise NotHere("overlayfs does not take this filesystem for that layer") from None


@way("overlayfs, lower layer: read", root=True, quick=True)
def overlay_read(w):
    w.same(read(overlay(w) + "/f"))


@way("overlayfs, lower layer: O_DIRECT", root=True, files=BLOCKS)
def overlay_direct(w):
    fd = os.open(overlay(w) + "/f", os.O_RDONLY | os.O_DIRECT)
    with mmap.mmap(-1, BLOCKS["f"]) as buffer:
        n = os.preadv(fd, [buffer], 0)
        w.same(buffer[:n])


@way("overlayfs, lower layer: mmap", root=True, quick=True)
def overlay_map(w):
    with open(overlay(w) + "/f", "rb") as f, mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ) as m:
        w.same(m[:])


@way("overlayfs, lower layer: mmap, MAP_POPULATE", root=True)
def overlay_populate(w):
    with open(overlay(w) + "/f", "rb") as f:
        w.same(mmap.mmap(f.fileno(), 0, flags=mmap.MAP_PRIVATE | mmap.MAP_POPULATE, prot=mmap.PROT_READ)[:])


@way("overlayfs, lower layer: execution", root=True, make=payload)
def overlay_exec(w):
    w.same(w.run(overlay(w) + "/f", ok=(0, 1)), b"right\n")


@way("overlayfs, lower layer: sendfile", root=True)
def overlay_sendfile(w):
    fd = os.open(overlay(w) + "/f", os.O_RDONLY)
    to = os.open(w.tmp + "/out", os.O_WRONLY | os.O_CREAT)
    at = 0
    while n := os.sendfile(to, fd, at, 1 << 20):
        at += n
    w.same(read(w.tmp + "/out"))


@way("overlayfs, copy-up by a write", root=True, quick=True)
def copy_up(w):
    m, want = overlay(w), bytearray(w.bytes())
    with open(m + "/f", "r+b", buffering=0) as f:
        f.seek(1000)
        f.write(b"here")
    want[1000:1004] = b"here"
    w.same(read(m + "/f"), want)
    w.same(read(w.path()))


@way("overlayfs, copy-up by chmod", root=True)
def copy_up_mode(w):
    m = overlay(w)
    os.chmod(m + "/f", 0o600)
    w.same(read(w.tmp + "/upper/f"))
    w.same(read(m + "/f"))


@way("overlayfs, copy-up within the clone", root=True)
def copy_up_inside(w):
    # Where there are reflinks, they are what is made.
    top = os.path.join(w.root, os.path.basename(w.tmp) + ".upper")
    os.mkdir(top)
    m = overlay(w, top)
    os.chmod(m + "/f", 0o600)
    w.same(read(top + "/upper/f"))
    w.same(read(m + "/f"))


@way("overlayfs, copy-up by rename", root=True)
def copy_up_rename(w):
    m = overlay(w)
    os.rename(m + "/f", m + "/g")
    w.same(read(m + "/g"))


# ---- block devices, swap, verity ----


def loop(w, *options):
    try:
        return program(["losetup", "-f", "--show", *options, w.path()]).decode().strip()
    except FileNotFoundError:
        raise NotHere("no loop devices") from None


@way("loop device on a cold file", root=True, files=BLOCKS)
def loop_read(w):
    w.same(read(loop(w, "-r")))


@way("loop device on a cold file, direct I/O", root=True, files=BLOCKS, may_refuse="not every filesystem has it")
def loop_direct(w):
    w.same(read(loop(w, "-r", "--direct-io=on")))


def image(directory):
    os.mkdir(directory + "/tree")
    for n in range(5):
        with open(f"{directory}/tree/{n}", "wb") as f:
            f.write(content(100000))
    program(["mkfs.ext4", "-q", "-d", directory + "/tree", directory + "/f", "8M"])
    with open(directory + "/sum", "wb") as f:
        f.write(b"".join(read(f"{directory}/tree/{n}") for n in range(5)))
    shutil.rmtree(directory + "/tree")


@way("mount of a cold filesystem image", root=True, make=image)
def mount_image(w):
    m = w.mount("-o", "loop,ro", w.path())
    w.same(b"".join(read(f"{m}/{n}") for n in range(5)), w.bytes("sum"))


def erofs(directory):
    os.mkdir(directory + "/tree")
    with open(directory + "/tree/f", "wb") as f:
        f.write(content(300001))
    program(["mkfs.erofs", "--quiet", directory + "/f", directory + "/tree"])
    shutil.move(directory + "/tree/f", directory + "/inside")
    os.rmdir(directory + "/tree")


@way("erofs, mounted from a cold file without a device", root=True, make=erofs, may_refuse="not from every filesystem")
def mount_erofs(w):
    def mounted(image_file, name): # mount(8) would take a loop device
        os.mkdir(os.path.join(w.tmp, name))
        syscall("mount", image_file.encode(), os.path.join(w.tmp, name).encode(), b"erofs", MS_RDONLY, None)
        return os.path.join(w.tmp, name, "f")

    try:
        mounted(os.path.join(w.want, "f"), "m0")
    except OSError as e:
        raise NotHere(f"this kernel does not: {e}") from None
    w.same(read(mounted(w.path(), "m1")), w.bytes("inside"))


def swap(directory):
    with open(directory + "/f", "wb") as f:
        f.write(content(2 << 20))
    os.chmod(directory + "/f", 0o600)
    program(["mkswap", directory + "/f"])


@way("swapon of a cold file", root=True, make=swap, may_refuse="swap goes past all gates", blind="it reads a header only")
def swapon(w):
    try:
        program(["swapon", w.path()])
    except Wrong as e:
        if "read swap header failed" in str(e): # swapon(8) looks before it asks the kernel
            raise OSError(22, str(e)) from None
        raise
    try: # it has to be here as a whole
        w.same(read(w.path()))
    finally:
        program(["swapoff", w.path()])


@way("fs-verity of a cold file", may_refuse="it needs a filesystem with verity")
def verity(w):
    fd = os.open(w.path(), os.O_RDONLY)
    fcntl.ioctl(fd, FS_IOC_ENABLE_VERITY, struct.pack("IIIIQIIQ88x", 1, 1, 4096, 0, 0, 0, 0, 0))
    w.same(read(w.path()))


NFSD, FOREVER = "/proc/fs/nfsd", 0x7fffffff


def say_yes(connection):
    """Of each call of the kernel to its rpcbind: it is accepted, and what has a result is true."""
    with connection, connection.makefile("rb") as f:
        while len(mark := f.read(4)) == 4:
            call = f.read(int.from_bytes(mark, "big") & 0x7fffffff)
            result = b"" if call[20:24] == bytes(4) else b"\0\0\0\1"
            reply = call[:4] + struct.pack(">5I", 1, 0, 0, 0, 0) + result
            connection.sendall(struct.pack(">I", 0x80000000 | len(reply)) + reply)


def rpcbind(server):
    with contextlib.suppress(OSError):
        while True:
            threading.Thread(target=say_yes, args=(server.accept()[0],), daemon=True).start()


def tell(path, text):
    """What nfs-utils tells the kernel's server; its answer."""
    fd = os.open(path, os.O_RDWR)
    try:
        os.write(fd, text.encode())
        return os.read(fd, 4096) if path.startswith(NFSD) else b""
    finally:
        os.close(fd)


def nfs_mount(handle, where):
    """Version 3, over TCP, of the file handle that the server would give: struct nfs_mount_data of <linux/nfs_mount.h>. Nothing is
    cached, nor locked."""
    noac, tcp, v3, nonlm, noacl, flavour = 0x20, 0x40, 0x80, 0x200, 0x800, 0x2000
    address = struct.pack("=H", 2) + struct.pack(">H4B8x", 2049, 127, 0, 0, 1)
    data = struct.pack("=ii32x9i16s256siIH64s2xi260x", 6, -1, noac | tcp | v3 | nonlm | noacl | flavour, 0, 0, 600, 3, 0, 0, 0, 0, address,
                       b"127.0.0.1", 0, 0, len(handle), handle, 1)
    syscall("mount", b"127.0.0.1:/", os.fsencode(where), b"nfs", 0, data)


@way("NFS export of the clone, on the same machine", root=True, quick=True)
def nfs(w):
    with open("/proc/filesystems", encoding="ascii") as f:
        have = f.read().split()
    if "nfsd" not in have or "nfs" not in have:
        raise NotHere("this kernel has no NFS server and client")
    server = os.path.exists(NFSD + "/threads")
    if not server:
        program(["mount", "-t", "nfsd", "nfsd", NFSD])
    where = os.path.join(w.tmp, "nfs")
    os.mkdir(where)
    portmap = socket.socket(socket.AF_UNIX)
    try:
        portmap.bind("\0/run/rpcbind.sock")
        portmap.listen()
        threading.Thread(target=rpcbind, args=(portmap,), daemon=True).start()
        with open(NFSD + "/threads", encoding="ascii") as f:
            if int(f.read()):
                raise NotHere("an NFS server is at work here")
        with open(NFSD + "/portlist", "w", encoding="ascii") as f:
            f.write("tcp 2049\n")
        with open(NFSD + "/threads", "w", encoding="ascii") as f:
            f.write("2\n")
        tell("/proc/net/rpc/auth.unix.ip/channel", f"nfsd 127.0.0.1 {FOREVER} all\n")
        # async, no_subtree_check, fsid=0; root is root
        tell("/proc/net/rpc/nfsd.export/channel", f"all {w.dir} {FOREVER} {0x10 | 0x400 | 0x2000} 65534 65534 0\n")
        tell("/proc/net/rpc/nfsd.fh/channel", f"all 1 \\x00000000 {FOREVER} {w.dir}\n")
        nfs_mount(bytes.fromhex(tell(NFSD + "/filehandle", f"all {w.dir} 64\n").decode().strip().removeprefix("\\x")), where)
        try:
            w.same(read(where + "/f"))
        finally:
            program(["umount", "-l", where])
    finally:
        with open(NFSD + "/threads", "w", encoding="ascii") as f:
            f.write("0\n")
        for cache in ("nfsd.fh", "nfsd.export", "auth.unix.ip"):
            with open(f"/proc/net/rpc/{cache}/flush", "w", encoding="ascii") as f:
                f.write(f"{FOREVER}\n")
        portmap.close()
        if not server:
            program(["umount", "-l", NFSD])
