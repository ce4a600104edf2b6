#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# If this fails, a program that looks for holes in a file of a native clone may find one where the origin's bytes are just being written, and takes it for zeros.
. "$(dirname "$0")/../tools/native.sh" --self
. "$(dirname "$0")/lib.sh"
. "$TOOLS/clone.sh"

o=$T/o c=$T/c
mkdir "$o"
for i in {1..150}; do head -c $((i * 331 % 9000 + 1)) /dev/urandom >"$o/$i"; done
head -c 3000001 /dev/urandom >"$o/151"
clone --gate fanotify "$o" "$c"
cat >"$T/look.py" <<'EOP'
# While another process reads a file for the first time, or none does and it comes ahead: is there ever a hole in it?
import os, subprocess, sys
o, c = sys.argv[1:]
reader = subprocess.Popen([sys.executable, "-c", "import sys\nfor l in sys.stdin:\n print(open(l[:-1], 'rb').read().hex(), flush=True)"],
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
looks = 0
for name in sorted(os.listdir(c), key=int):
    fd = os.open(f"{c}/{name}", os.O_RDONLY)
    size = os.fstat(fd).st_size
    reader.stdin.write(f"{c}/{name}\n")
    reader.stdin.flush()
    os.set_blocking(reader.stdout.fileno(), False)
    got = ""
    while not got.endswith("\n"):
        for _ in range(100):
            looks += 1
            hole = os.lseek(fd, size - 1, os.SEEK_HOLE)
            if hole != size:
                sys.exit(f"{name}: a hole at {hole} of {size} bytes")
        try:
            piece = os.read(reader.stdout.fileno(), 1 << 20).decode()
        except BlockingIOError:
            continue
        if not piece:
            sys.exit(f"{name}: the reader failed")
        got += piece
    with open(f"{o}/{name}", "rb") as f:
        if bytes.fromhex(got) != f.read():
            sys.exit(f"{name}: wrong content")
    os.close(fd)
print(looks, "looks")
EOP
ok "no hole while 151 files are read" python3 "$T/look.py" "$o" "$c"
diag "$(cat "$T/.out")"

# It becomes shorter at the origin, and is not here.
"$SLUICE" evict "$c/151" >"$T/.out" || bail "evict"
cat >"$T/shorter.py" <<'EOP'
import os, sys
o, c = sys.argv[1:]
fd = os.open(c, os.O_RDONLY)
for size in (2000001, 1000001, 1000000, 5, 3):
    os.truncate(o, size)
    had = size + 1
    while had > size:
        had = os.fstat(fd).st_size
        hole = os.lseek(fd, min(size, had) - 1, os.SEEK_HOLE)
        now = os.fstat(fd).st_size
        if hole < min(had, now):
            sys.exit(f"a hole at {hole} of {had} to {now} bytes")
with open(o, "rb") as a, open(c, "rb") as b:
    sys.exit(0 if a.read() == b.read() else "wrong content")
EOP
ok "no hole when the origin cuts a file off that is not here" python3 "$T/shorter.py" "$o/151" "$c/151"

# What a service leaves that is killed, or a machine that loses its power, while the last block of a file that nobody has open gives
# way to the origin's: done here through the service's own mount, which nobody is asked about.
evict_all() { "$SLUICE" evict "$c"; }
ok "nothing is here" evict_all
tree=
for fd in /proc/"$("$SLUICE" status --json "$c" | sed -n 's/.*"service_pid": *\([0-9]*\).*/\1/p')"/fd/*; do
	[ -d "$fd/whiteouts" ] && tree=$fd/tree
done
punch() { fallocate -p -o $(($(stat -c %s "$1") / 4096 * 4096)) -l 4096 "$1"; }
for i in {1..20}; do punch "$tree/$i"; done
cat >"$T/first.py" <<'EOP'
# Who opens it, and looks for holes before he reads anything.
import os, sys
o, c = sys.argv[1:]
for i in range(1, 21):
    fd = os.open(f"{c}/{i}", os.O_RDONLY)
    size = os.fstat(fd).st_size
    if os.lseek(fd, 0, os.SEEK_HOLE) != size or os.lseek(fd, size - 1, os.SEEK_DATA) != size - 1:
        sys.exit(f"{i}: a hole in {size} bytes")
    with open(f"{o}/{i}", "rb") as f:
        if os.pread(fd, 1 << 20, 0) != f.read():
            sys.exit(f"{i}: wrong content")
EOP
ok "no hole is left where a last block was lost" python3 "$T/first.py" "$o" "$c"
done_testing
