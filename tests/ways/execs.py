# SPDX-License-Identifier: LGPL-2.1-or-later
"""Execution"""

import ctypes
import mmap
import os
import resource
import shutil
import signal
import struct
import subprocess
import sys

from way import LIBC, NotHere, Wrong, forked, read_fd, reap, syscall, tool, way

PTRACE_PEEKTEXT, PTRACE_ATTACH, PTRACE_DETACH = 1, 16, 17
AT_EMPTY_PATH = 0x1000
LIBC.ptrace.restype = ctypes.c_long
LIBC.ptrace.argtypes = ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p
COUNT = 65536
TABLE = struct.pack(f"{COUNT}I", *(((i + 1) * 2654435761 ^ (i >> 3) * 40503) & 0xFFFFFFFF for i in range(COUNT))) # of payload.c


def payload(directory):
    shutil.copy(tool("payload"), directory + "/f")


def library(directory):
    shutil.copy(tool("libpayload.so"), directory + "/f")


def right(w, *argv, **kw):
    w.same(w.run(*argv, ok=(0, 1), **kw), b"right\n")


@way("execution of a cold program", make=payload, quick=True)
def execute(w):
    right(w, w.path())


@way("execution by descriptor (fexecve)", make=payload)
def fexecve(w):
    fd = os.open(w.path(), os.O_RDONLY)
    right(w, f"/proc/self/fd/{fd}", pass_fds=[fd])


@way("execution by O_PATH descriptor (execveat)", make=payload)
def execveat(w):
    r, p = os.pipe()

    def go():
        os.dup2(p, 1)
        argv = (ctypes.c_char_p * 2)(b"payload", None)
        syscall("execveat", os.open(w.path(), os.O_PATH), b"", argv, (ctypes.c_char_p * 1)(None), AT_EMPTY_PATH)

    pid = forked(go)
    os.close(p)
    got = read_fd(r)
    reap(pid)
    w.same(got, b"right\n")


def script(directory):
    with open(directory + "/f", "w", encoding="ascii") as f:
        f.write("#!/bin/sh\n" + "# a line\n" * 20000 + "echo right\n")
    os.chmod(directory + "/f", 0o755)


@way("execution of a cold script", make=script, quick=True)
def run_script(w):
    right(w, w.path())


def interpreter(directory):
    payload(directory)
    with open(directory + "/x", "w", encoding="ascii") as f:
        f.write("#!./f\n")
    os.chmod(directory + "/x", 0o755)


@way("a script whose interpreter is cold", make=interpreter)
def run_interpreter(w):
    # The interpreter gets the script's name as an argument: it runs, and ends with its standard input.
    w.same(w.run("./x", cwd=w.dir), b"running\n")


@way("python module that is cold", make=lambda d: _module(d))
def module(w):
    w.same(w.run(sys.executable, "-B", "-I", "-c", f"import sys; sys.path.insert(0, {w.dir!r}); import cold; print(cold.answer())"), b"20000\n")


def _module(directory):
    with open(directory + "/cold.py", "w", encoding="ascii") as f:
        f.write("x = 0\n" + "x += 1\n" * 20000 + "def answer():\n    return x\n")


@way("dlopen of a cold library", make=library, quick=True)
def dlopen(w):
    w.same(w.run(sys.executable, "-c", f"import ctypes; print(ctypes.CDLL({w.path()!r}).payload_wrong())"), b"-1\n")


@way("LD_PRELOAD of a cold library", make=library)
def preload(w):
    w.same(w.run(sys.executable, "-c", "import ctypes; print(ctypes.CDLL(None).payload_wrong())", env={"LD_PRELOAD": w.path()}), b"-1\n")


def loader(directory):
    maps = open("/proc/self/maps", encoding="utf-8").read()
    ld = next((word for word in maps.split() if "/ld-linux" in word or "/ld-musl" in word), None)
    if not ld:
        raise NotHere("no dynamic loader is known")
    shutil.copy(ld, directory + "/ld")
    shutil.copy(shutil.which("true") or "/bin/true", directory + "/f")
    os.chmod(directory + "/ld", 0o755)


@way("a cold program by a cold dynamic loader", make=loader)
def by_loader(w):
    w.run(w.path("ld"), w.path("f"))


# ---- looking into a process that runs a cold program and has not touched its table ----


class Running:
    def __init__(self, w):
        self.child = subprocess.Popen([w.path(), "wait"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        if self.child.stdout.readline() != b"running\n":
            self.child.wait()
            raise Wrong(f"it does not run: status {self.child.returncode}")
        self.pid = self.child.pid
        # Where the table is: where it is in the file, and where that is mapped.
        offset = w.bytes().index(TABLE[:64])
        with open(f"/proc/{self.pid}/maps", encoding="utf-8") as maps:
            for line in maps:
                range_, _, start, _, _, *name = line.split(None, 5)
                a, b = (int(x, 16) for x in range_.split("-"))
                start = int(start, 16)
                if name and name[0].strip() == w.path() and start <= offset < start + b - a:
                    self.table = a + offset - start
                    return
        raise Wrong("its table is not mapped")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.child.stdin.close()
        self.child.kill()
        self.child.wait()


@way("ptrace (PEEKTEXT) of a process that runs a cold program", make=payload, quick=True)
def peek(w):
    with Running(w) as r:
        syscall("ptrace", PTRACE_ATTACH, r.pid, None, None)
        os.waitpid(r.pid, 0)
        got = bytearray()
        for at in range(0, len(TABLE), 8):
            ctypes.set_errno(0)
            word = LIBC.ptrace(PTRACE_PEEKTEXT, r.pid, r.table + at, None)
            if word == -1 and ctypes.get_errno():
                raise OSError(ctypes.get_errno(), "PTRACE_PEEKTEXT")
            got += struct.pack("q", word)
        LIBC.ptrace(PTRACE_DETACH, r.pid, None, None)
        w.same(got, TABLE)


@way("/proc/PID/mem of a process that runs a cold program", make=payload)
def proc_mem(w):
    with Running(w) as r:
        fd = os.open(f"/proc/{r.pid}/mem", os.O_RDONLY)
        w.same(os.pread(fd, len(TABLE), r.table), TABLE)


@way("process_vm_readv of a process that runs a cold program", make=payload)
def vm_read(w):
    with Running(w) as r:
        buffer = ctypes.create_string_buffer(len(TABLE))
        here = (ctypes.c_size_t * 2)(ctypes.addressof(buffer), len(TABLE))
        there = (ctypes.c_size_t * 2)(r.table, len(TABLE))
        LIBC.process_vm_readv.argtypes = ctypes.c_int, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong
        n = syscall("process_vm_readv", r.pid, here, 1, there, 1, 0)
        w.same(buffer.raw[:n], TABLE)


@way("/proc/PID/exe of a process that runs a cold program", make=payload)
def proc_exe(w):
    with Running(w) as r:
        w.same(read_fd(os.open(f"/proc/{r.pid}/exe", os.O_RDONLY)))


@way("gdb: a backtrace and a breakpoint in a cold program", make=payload, may_refuse="gdb may not be allowed to")
def gdb(w):
    commands = [x for c in ("break payload_wrong", "run", "print table[65535]", "bt") for x in ("-ex", c)]
    said = w.run("gdb", "-nx", "-batch", "-iex", "set debuginfod enabled off", *commands, w.path())
    last = struct.unpack("I", TABLE[-4:])[0]
    if f"$1 = {last}".encode() not in said or b"main" not in said:
        raise Wrong(said.decode(errors="replace")[-200:])


# ---- core dumps ----


def dumped(w, flags):
    if not os.path.exists("/proc/sys/kernel/core_pattern"):
        raise NotHere("this kernel writes no core dumps")
    with open("/proc/sys/kernel/core_pattern", encoding="utf-8") as f:
        if "/" in (pattern := f.read()) or pattern.startswith("|"):
            raise NotHere(f"core_pattern is {pattern.strip()}")
    r, p = os.pipe()

    def go():
        with open(w.path(), "rb") as f:
            m = mmap.mmap(f.fileno(), 0, flags=flags, prot=mmap.PROT_READ)
        where = next(line for line in open("/proc/self/maps", encoding="utf-8") if line.rstrip().endswith(w.path()))
        os.write(p, where.split("-")[0].encode())
        with open("/proc/self/coredump_filter", "w", encoding="ascii") as f:
            f.write("0xc\n")
        resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        signal.signal(signal.SIGABRT, signal.SIG_DFL)
        os.abort()
        m.close() # which is never reached: it is mapped up to there

    pid = forked(go)
    os.close(p)
    where = int(read_fd(r), 16)
    _, status = os.waitpid(pid, 0)
    cores = [n for n in os.listdir(w.tmp) if n.startswith("core")]
    if not cores or not os.WCOREDUMP(status):
        raise NotHere("no core was written (limits?)")
    with open(os.path.join(w.tmp, cores[0]), "rb") as f:
        core = f.read()
    size = len(w.bytes())
    phoff, phentsize, phnum = struct.unpack_from("<Q", core, 32)[0], *struct.unpack_from("<HH", core, 54)
    for i in range(phnum):
        kind, _, offset, vaddr, _, filesz, _, _ = struct.unpack_from("<IIQQQQQQ", core, phoff + i * phentsize)
        if kind == 1 and vaddr == where:
            w.same(core[offset:offset + min(filesz, size)])
            return
    raise Wrong("the mapping is not in the core")


@way("core dump of a process that maps a cold file, private")
def core_private(w):
    dumped(w, mmap.MAP_PRIVATE)


@way("core dump of a process that maps a cold file, shared")
def core_shared(w):
    dumped(w, mmap.MAP_SHARED)


@way("a cold program that is being executed, opened for writing", make=payload,
     may_refuse="ETXTBSY; since 6.14 not where somebody asks for pre-content events")
def busy(w):
    with Running(w) as r:
        os.close(os.open(w.path(), os.O_WRONLY))
        w.same(os.pread(os.open(f"/proc/{r.pid}/mem", os.O_RDONLY), len(TABLE), r.table), TABLE)
