#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Origins that change while they are read: if this fails, a reader gets bytes of two versions in one answer, or zeros that no version has.
# tsan: yes
. "$(dirname "$0")/lib.sh"
. "$TOOLS/clone.sh"

mkdir "$T/u" "$T/w"
cat >"$T/shrink.py" <<'EOP'
import os, sys, threading
o, c = sys.argv[1:3]
N, SIZE, NEW = 150, 400_000, 1000
for i in range(N):
    with open(f"{o}/{i}", "wb") as f:
        f.write(b"A" * SIZE)
os.listdir(c)
bad = []
def read(path, off):
    try:
        with open(path, "rb", buffering=0) as f:
            got = os.pread(f.fileno(), 60_000, off)
    except OSError:
        return
    # The file is truncated before it is written: what is not A is B, or not there. Nothing ever was zero.
    if b"\0" in got:
        bad.append(f"{path} at {off}: {len(got)} bytes of {sorted(set(got))}")
for i in range(N):
    path = f"{c}/{i}"
    read(path, 0)
    with open(f"{o}/{i}", "wb") as f:
        f.write(b"B" * NEW)
    threads = [threading.Thread(target=read, args=(path, off)) for off in (300_000, 200_000, 0, 350_000)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
print("\n".join(bad[:5]))
sys.exit(bool(bad))
EOP
cat >"$T/answers.py" <<'EOP'
import mmap, os, random, sys, threading
o, c = sys.argv[1:3]
SIZE = 1 << 20
def version(i):
    with open(o + "/f.new", "wb") as f:
        f.write(bytes([i % 251 + 1]) * SIZE)
    os.rename(o + "/f.new", o + "/f")
version(0)
os.listdir(c)
bad, errors, answers, done = [], [], [0] * 4, threading.Event()
def read(k):
    rng, buf = random.Random(k), mmap.mmap(-1, 262144)
    while not done.is_set():
        try:
            fd = os.open(c + "/f", os.O_RDONLY | os.O_DIRECT)
            try:
                for _ in range(5):
                    n = os.preadv(fd, [buf], rng.randrange(SIZE // 4096) * 4096)
                    if n and buf[:n] != buf[:1] * n:
                        bad.append(set(buf[:n]))
                    answers[k] += 1
            finally:
                os.close(fd)
        except OSError as e:
            errors.append(e.errno)
threads = [threading.Thread(target=read, args=(i,)) for i in range(4)]
for t in threads:
    t.start()
i = 0
while i < 300 or (sum(answers) < 1000 and len(errors) < 100_000):
    i += 1
    version(i)
done.set()
for t in threads:
    t.join()
print(f"{i} versions, {sum(answers)} answers, mixed: {bad[:3]}, errors: {sorted(set(errors))}")
sys.exit(bool(bad) or sum(answers) < 1000)
EOP
for kind in local unix; do
	u=$T/u w=$T/w
	rm -f "$u"/* "$w"/*
	if [ $kind = unix ]; then
		serve u.sock "$u"
		serve w.sock "$w"
		u=unix:$T/u.sock w=unix:$T/w.sock
	fi
	clone "$u" "$T/c"
	ok "$kind: files shrink at the origin while they are read: nobody sees zeros" timeout 300 python3 "$T/shrink.py" "$T/u" "$T/c"
	ok "$kind: it was noticed" test "$(field restarts "$T/c")" -gt 0
	"$SLUICE" remove "$T/c"
	clone "$w" "$T/c"
	ok "$kind: the origin is replaced all the time: no answer has bytes of two versions" timeout 300 python3 "$T/answers.py" "$T/w" "$T/c"
	diag "$(head -n 1 "$T/.out")"
	"$SLUICE" remove "$T/c"
done
also_as_user
done_testing
