# SPDX-License-Identifier: LGPL-2.1-or-later
"""Mounts, namespaces, layers and devices"""

import fcntl
import mmap
import os
import shutil
import struct

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


@way("swapon of a cold file", root=True, make=swap, must_refuse="swap goes past all gates", blind="it reads a header only")
def swapon(w):
    try:
        program(["swapon", w.path()])
    except Wrong as e:
        if "read swap header failed" in str(e): # swapon(8) looks before it asks the kernel
            raise OSError(22, str(e)) from None
        raise
    program(["swapoff", w.path()])
    raise Wrong("it was taken")


@way("fs-verity of a cold file", may_refuse="it needs a filesystem with verity")
def verity(w):
    fd = os.open(w.path(), os.O_RDONLY)
    fcntl.ioctl(fd, FS_IOC_ENABLE_VERITY, struct.pack("IIIIQIIQ88x", 1, 1, 4096, 0, 0, 0, 0, 0))
    w.same(read(w.path()))


@way("NFS export of the clone, on the same machine", root=True)
def nfs(w):
    with open("/proc/filesystems", encoding="ascii") as f:
        have = f.read().split()
    if "nfsd" not in have or not ("nfs4" in have or "nfs" in have):
        raise NotHere("this kernel has no nfsd")
    if not os.path.exists("/proc/fs/nfsd/threads"):
        program(["mount", "-t", "nfsd", "nfsd", "/proc/fs/nfsd"])
    export = "127.0.0.1:" + w.dir
    program(["exportfs", "-i", "-o", "rw,no_root_squash,insecure,fsid=77", export])
    try:
        with open("/proc/fs/nfsd/threads", encoding="ascii") as f:
            running = int(f.read())
        if not running:
            program(["rpc.nfsd", "2"])
        w.same(read(w.mount("-t", "nfs", "-o", "vers=4.2", "127.0.0.1:" + w.dir) + "/f"))
    finally:
        program(["exportfs", "-u", export])
