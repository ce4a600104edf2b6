#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Origins that change while they are read: if this fails, a reader gets bytes of two versions in one answer, or zeros that no version has.
# tsan: yes
. "$(dirname "$0")/lib.sh"
. "$TOOLS/clone.sh"

mkdir "$T/u" "$T/w"
cat >"$T/shrink.py" <<'EOP'
import errno, os, sys, threading, time
o, c, N = sys.argv[1], sys.argv[2], int(sys.argv[3])
SIZE, NEW = 400_000, 1000
for i in range(N):
    with open(f"{o}/{i}", "wb") as f:
        f.write(b"A" * SIZE)
while len(os.listdir(c)) < N:  # behind the fanotify gate the root was listed before they were made
    time.sleep(0.01)
bad = []
def read(path, off):
    try:
        with open(path, "rb", buffering=0) as f:
            got = os.pread(f.fileno(), 60_000, off)
    except OSError as e:
        if e.errno != errno.EIO:  # of the version before
            bad.append(f"{path} at {off}: {e}")
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
import errno, mmap, os, random, sys, threading, time
o, c, N = sys.argv[1], sys.argv[2], int(sys.argv[3])
SIZE, PIECE, READERS, BURSTS = 2 << 20, 1 << 17, 4, 8
versions = 0
def version(i):
    global versions
    versions += 1
    with open(f"{o}/new", "wb") as f:
        f.write(bytes([versions % 251 + 1]) * SIZE)
    os.rename(f"{o}/new", f"{o}/{i}")
for i in range(N):
    version(i)
# From here on each name has something at every moment.
while not {str(i) for i in range(N)} <= set(os.listdir(c)):
    time.sleep(0.01)
# What is here is not asked for again, and when all of a file is here nothing is noticed any more: all go on to the next file then.
now, begun, answers, more = 0, [0] * N, [0] * N, threading.Condition()
bad, errors = [], set()
def read(k):
    rng, buf = random.Random(k), mmap.mmap(-1, PIECE)
    while (i := now) < N:
        try:
            fd = os.open(f"{c}/{i}", os.O_RDONLY | os.O_DIRECT)
            try:
                for _ in range(5):
                    with more:
                        begun[i] += 1
                        more.notify_all()
                    off = rng.randrange(SIZE // 4096) * 4096
                    n = os.preadv(fd, [buf], off)
                    if n != min(PIECE, SIZE - off) or buf[:n] != buf[:1] * n:
                        bad.append((i, off, n, set(buf[:n])))
                    with more:
                        answers[i] += 1
                        more.notify_all()
            finally:
                os.close(fd)
        except OSError as e:
            errors.add(e.errno)
threads = [threading.Thread(target=read, args=(i,)) for i in range(READERS)]
for t in threads:
    t.start()
# Bursts of versions while reads are under way. After each the origin keeps still until somebody got an answer: what all of this
# does is bounded, however slow the clone is compared with the writer.
rng, starved = random.Random(), False
for i in range(N):
    with more:
        now = i
        starved = not more.wait_for(lambda: begun[i] >= rng.choice((1, READERS)) or answers[i], 100)
    for _ in range(BURSTS):
        for _ in range(rng.choice((1, 1, 2, 3, 10))):
            version(i)
        with more:
            seen = answers[i]
            starved = starved or not more.wait_for(lambda: answers[i] > seen, 100)
    if starved or bad:
        break
now = N
for t in threads:
    t.join()
print(f"{versions} versions, {sum(answers)} answers, mixed or short: {bad[:3]}, errors: {[errno.errorcode[e] for e in errors]}, starved: {starved}")
sys.exit(bool(bad) or starved or not errors <= {errno.EIO, errno.ESTALE})
EOP
cat >"$T/names.py" <<'EOP'
import os, shutil, sys, threading, time
import slt, watch
o, c, N = sys.argv[1], sys.argv[2], int(sys.argv[3])
def file(p):
    slt.write(p, os.urandom(8), "wb")
def link(p):
    file(p + "2")
    os.rename(p + "2", p + "1")
    os.link(p + "1", p)
def symlink(p):
    os.symlink(os.urandom(8).hex(), p)
def directory(p):
    os.mkdir(p)
def full(p):
    os.mkdir(p)
    file(p + "/file")
    os.mkdir(p + "/below")
    symlink(p + "/below/symlink")
def remove(p):
    (shutil.rmtree if os.path.isdir(p) and not os.path.islink(p) else os.unlink)(p)
def exchange(a, b):
    slt.exchange(a, b)
    remove(a)
def outside(a, b):
    x = o + ".outside"
    os.rename(a, x)
    slt.exchange(b, x)
    remove(x)
cases = [(os.rename, [x]) for x in (file, link, symlink, directory)]
# With inotify a busy machine makes a deletion and a creation of half an exchange: see limits.md.
if slt.ROOT:
    cases += [(exchange, [x]) for x in (file, symlink, full)]
    cases += [(exchange, [file, full, symlink]), (outside, [file]), (outside, [full])]
bad = []
for how, what in cases:
    label = f"{how.__name__} of " + ", ".join(x.__name__ for x in what)
    there, here = f"{o}/{label}", f"{c}/{label}"
    def wait_for(name):
        end = time.monotonic() + 100
        while not os.path.lexists(f"{here}/{name}"):
            assert time.monotonic() < end, f"{here}/{name} does not come"
            time.sleep(0.01)
    os.mkdir(there)
    what[0](f"{there}/it")
    wait_for("it")
    gone, over = 0, False
    def look():
        global gone
        while not over:
            gone += not os.path.lexists(f"{here}/it")
    w, reader = watch.Watcher({"": here}), threading.Thread(target=look, daemon=True)
    reader.start()
    for i in range(1, N + 1):
        what[i % len(what)](f"{there}/new")
        how(f"{there}/new", f"{there}/it")
    file(f"{there}/end")
    wait_for("end")
    over = True
    reader.join()
    # At the origin it was replaced, and never deleted.
    deleted = sum(e == ("", "DELETE", "it") for e in w.take())
    w.close()
    if gone or deleted:
        bad.append(f"{label}: not there for {gone} looks, deleted {deleted} times")
print("\n".join(bad))
sys.exit(bool(bad))
EOP
# By a fill, or by events that were faster than all fills.
noticed() { [ "$(field restarts "$1")" -gt 0 ] || [ "$(field applied "$1")" -gt 0 ]; }
# The way is the same with a sanitizer, only longer.
files=150 replaced=20 rounds=40
sanitized && files=40 replaced=8 rounds=15
for kind in local unix; do
	u=$T/u w=$T/w
	rm -rf "$u"/* "$w"/*
	if [ $kind = unix ]; then
		serve u.sock "$u"
		serve w.sock "$w"
		u=unix:$T/u.sock w=unix:$T/w.sock
	fi
	clone "$u" "$T/c"
	ok "$kind: files shrink at the origin while they are read: nobody sees zeros" timeout --foreground 300 python3 "$T/shrink.py" "$T/u" "$T/c" $files
	ok "$kind: it was noticed" noticed "$T/c"
	wait_for 60 "$SLUICE" remove "$T/c" || bail "it is not removed: $(cat "$T/.out")"
	clone "$w" "$T/c"
	ok "$kind: the origin is replaced all the time: no answer has bytes of two versions, and each name is there" \
		timeout --foreground 300 python3 "$T/answers.py" "$T/w" "$T/c" $replaced
	diag "$(head -n 1 "$T/.out")"
	diag "$(field restarts "$T/c") restarts"
	ok "$kind: it was replaced while it was read" noticed "$T/c"
	ok "$kind: what takes the place of something does so at once, whatever they are" \
		env PYTHONPATH="$TOOLS" PYTHONDONTWRITEBYTECODE=1 timeout --foreground 300 python3 "$T/names.py" "$T/w" "$T/c" $rounds
	wait_for 60 "$SLUICE" remove "$T/c" || bail "it is not removed: $(cat "$T/.out")"
done

# A file grows at the origin, and a reader finds that out before the event comes. While he waits for what he reads, the kernel keeps the
# page that ends with the old end, with zeros behind it: nobody may be told the new size then.
cat >"$T/grow.py" <<'EOP'
import os, sys, threading
o, c, N, SIZE, MORE = sys.argv[1], sys.argv[2], int(sys.argv[3]), 1_000_100, 1700
bad = []
for i in range(N):
    fd = os.open(f"{c}/{i}", os.O_RDONLY)
    if os.pread(fd, 4096, SIZE - 100) != b"A" * 100:
        bad.append(f"{i}: the end of it is not right")
    def cold():
        with open(f"{c}/{i}", "rb", buffering=0) as f:
            if f.read(4096) != b"A" * 4096:
                bad.append(f"{i}: the beginning of it is not right")
    with open(f"{o}/{i}", "ab") as f:
        f.write(b"A" * MORE)
    reader = threading.Thread(target=cold)
    reader.start()
    got = b""
    while len(got) < 100 + MORE and b"\0" not in got:
        try:
            os.stat(f"{c}/{i}")
            got = os.pread(fd, 4096, SIZE - 100)
        except OSError: # of the version before: not any more
            pass
    if got != b"A" * (100 + MORE):
        bad.append(f"{i}: {len(got)} bytes of {sorted(set(got))} at the end")
    reader.join()
    os.close(fd)
print("\n".join(bad))
sys.exit(bool(bad))
EOP
mkdir "$T/g"
for i in 0 1 2; do head -c 1000100 /dev/zero | tr '\0' A >"$T/g/$i"; done
serve g.sock "$T/g"
background "$BUILD/tests/relay" --mbit 4 --listen "unix:$T/g.relay" --connect "unix:$T/g.sock"
wait_for 30 test -e "$T/g.relay"
clone "unix:$T/g.relay" "$T/c"
ls -l "$T/c" >"$T/.out"
ok "a file grows at the origin while a part of it comes: nobody sees zeros behind the old end" timeout --foreground 300 python3 "$T/grow.py" "$T/g" "$T/c" 3
wait_for 60 "$SLUICE" remove --discard "$T/c" || bail "it is not removed: $(cat "$T/.out")"

# Who waits for the size of such a file can be killed, however long it takes.
cat >"$T/killed.py" <<'EOP'
import os, signal, subprocess, sys, time
sys.path.insert(0, os.environ["TOOLS"])
from slt import status, wait_for
o, c, relay, SIZE = sys.argv[1], sys.argv[2], int(sys.argv[3]), 1_000_100
fd = os.open(f"{c}/0", os.O_RDONLY)
assert os.pread(fd, 4096, SIZE - 100) == b"A" * 100
def waits(p): # for an answer, or not any more
    with open(f"/proc/{p.pid}/wchan") as f:
        return f.read() == "request_wait_answer" or p.poll() is not None
def link(): # stops, and goes on
    os.kill(relay, signal.SIGUSR2)
link()
reader = subprocess.Popen(["head", "-c", "4096", f"{c}/0"], stdout=subprocess.DEVNULL)
wait_for(60, "the reader waits", lambda: status(c)["waiting"] > 0)
with open(f"{o}/0", "ab") as f:
    f.write(b"A" * 1700)
link()
wait_for(60, "the event", lambda: status(c)["events"]["received"] > 0)
link()
asker = subprocess.Popen(["stat", f"{c}/0"], stdout=subprocess.DEVNULL)
wait_for(60, "who asks waits", lambda: waits(asker))
asker.kill()
try:
    asker.wait(30)
finally:
    link()
sys.exit(reader.wait())
EOP
if [ -z "$NATIVE" ]; then
	head -c 1000100 /dev/zero | tr '\0' A >"$T/g/0"
	background "$BUILD/tests/relay" --mbit 1 --listen "unix:$T/h.relay" --connect "unix:$T/g.sock"
	relay=$BG
	wait_for 30 test -e "$T/h.relay"
	clone "unix:$T/h.relay" "$T/c"
	ls -l "$T/c" >"$T/.out"
	ok "who waits for the size of a file that is coming can be killed" timeout --foreground 300 env TOOLS="$TOOLS" python3 "$T/killed.py" "$T/g" "$T/c" "$relay"
	wait_for 60 "$SLUICE" remove --discard "$T/c" || bail "it is not removed: $(cat "$T/.out")"
fi

# What is being filled is replaced: its reader gets an error, or all of what took its place; nobody finds anything else there afterwards.
# Each is in a directory of its own, so that none is fetched ahead with another.
o=$T/r
declare -A at=([file]=a/file [directory]=b/c/directory [symlink]=d/e/f/symlink)
mkdir -p "$o"/a "$o"/b/c "$o"/d/e/f
for f in "${at[@]}"; do head -c 400001 /dev/urandom >"$o/$f"; done
head -c 300001 /dev/urandom >"$T/other"
serve r.sock "$o"
background "$BUILD/tests/relay" --listen "unix:$T/relay.sock" --connect "unix:$T/r.sock"
relay=$BG
wait_for 30 test -e "$T/relay.sock"
clone "unix:$T/relay.sock" "$T/c"
replace() {
	case $1 in
	file) mv "$T/other" "$o/${at[file]}" ;;
	directory) rm "$o/${at[directory]}" && mkdir "$o/${at[directory]}" && echo below >"$o/${at[directory]}/below" ;;
	symlink) ln -sfn below "$o/${at[symlink]}" ;;
	esac
}
is_same() {
	case $1 in
	file) cmp "$o/${at[file]}" "$T/c/${at[file]}" ;;
	directory) [ "$(cat "$T/c/${at[directory]}/below")" = below ] ;;
	symlink) [ "$(readlink "$T/c/${at[symlink]}")" = below ] ;;
	esac
}
waits() { [ "$(field waiting "$T/c")" -gt 0 ]; }
right() { [ "$2" != 0 ] || { [ "$1" = file ] && cmp "$T/got" "$o/${at[file]}"; }; }
for kind in file directory symlink; do
	stat "$T/c/${at[$kind]}" >"$T/.out" || bail "no $kind"
	kill -USR2 "$relay"
	background cat "$T/c/${at[$kind]}" >"$T/got" 2>"$T/cat.err"
	reader=$BG
	ok "$kind: a reader waits" wait_for 60 waits
	replace $kind
	kill -USR2 "$relay"
	wait "$reader"
	ok "$kind: it is put in its place: the reader gets an error, or what is there now" right $kind $?
	ok "$kind: and that is what the clone shows then" wait_for 60 is_same $kind
done
also_as_user
done_testing
