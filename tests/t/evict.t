#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Giving space back: if this fails, eviction takes what must stay, does not give back what it says, or a reader sees what is being taken away.
. "$(dirname "$0")/lib.sh"
. "$TOOLS/clone.sh"

o=$T/o c=$T/c
mkdir -p "$o/dir/sub" "$o/ages" "$o/links"
new() { head -c "$1" /dev/urandom >"$2"; }
for f in a b pinned modified opened mapped dir/1 dir/2 dir/sub/3; do new 300000 "$o/$f"; done
for f in old1 old2 new1 new2 new3; do new 500000 "$o/ages/$f"; done
new 100000 "$o/links/x"
ln "$o/links/x" "$o/links/y"
: >"$o/empty"
# What was evicted may still be in the kernel's cache of pages. same_fresh A B: reads B past it.
same_fresh() { dd if="$2" iflag=direct bs=64K status=none | cmp "$1" -; }
# evict [OPTION...] PATH: what it says
evict() { "$SLUICE" evict --json "$@"; }
said() { jget "$json" "$1"; }
clone "$o" "$c"

# ---- by path ----

cmp "$o/a" "$c/a" && cmp "$o/b" "$c/b"
is "$(state_of "$c/a") $(state_of "$c/b")" "full full" "what was read is here"
json=$(evict "$c/dir/sub/3")
is "$? $(said files)" "0 0" "a file whose name has not arrived has nothing to evict"
# Of a native clone all names are there from the beginning.
[ -n "$NATIVE" ] || is "$(field listings "$c")" 1 "and its name does not arrive for that"
# What it takes of the host's filesystem. A placeholder in an image has blocks, all of the same ones.
on_host() {
	local f
	f=$(store_of "$c")/image
	if [ -n "$NATIVE" ]; then sync -f "$c" "$f"; else f=$(store_of "$c")/tree/a; fi
	stat -c %b "$f"
}
gives_back() { [ "$(on_host)" -le $((on_disk - 300000 / 512 + (NATIVE ? 200 : 0))) ]; } # less what was noted meanwhile
before=$(stat -c '%A %s %Y %i' "$c/a")
on_disk=$(on_host)
json=$(evict "$c/a")
is "$(said files) $(said busy) $(said kept)" "1 0 0" "evict of a file says so"
ok "and that it gave space back" test "$(said bytes)" -ge 300000
ok "which it did" wait_for 30 gives_back
is "$(state_of "$c/a") $(state_of "$c/b")" "cold full" "that file is cold, and no other"
is "$(stat -c '%A %s %Y %i' "$c/a")" "$before" "its name and attributes stay"
ok "its content comes again" same_fresh "$o/a" "$c/a"
is "$(state_of "$c/a")" full "and stays"
json=$(evict "$c/empty")
is "$(said files) $(said busy)" "0 0" "an empty file has nothing to evict"
like "$("$SLUICE" evict "$c/none" 2>&1)" "No such file" "a name that is not there: an error"
nok "and a status" "$SLUICE" evict "$c/none"
# Where they can go tests/tools/lazy-evict is the test.
like "$("$SLUICE" evict --names "$c/dir" 2>&1)" "not lazy" "names that nobody would be asked for again stay"

# ---- hydrate, whole trees ----

json=$("$SLUICE" hydrate --json "$c/dir")
is "$(said files) $(said bytes)" "3 900000" "hydrate says what it brought"
is "$(state_of "$c/dir/1") $(state_of "$c/dir/sub/3") $(state_of "$c/opened")" "full full cold" "everything below, and nothing else"
json=$(evict "$c/dir")
is "$(said files)" 3 "evict of a directory takes everything below"
is "$(state_of "$c/dir/1") $(state_of "$c/dir/2") $(state_of "$c/dir/sub/3")" "cold cold cold" "which is cold then"
json=$(evict "$c/dir")
is "$(said files) $(said bytes)" "0 0" "and a second time nothing"
"$SLUICE" hydrate "$c/links" >"$T/.out"
json=$(evict "$c/links")
is "$(said files) $(said busy)" "1 0" "a file of two names is one file"
ok "hydrate of everything" "$SLUICE" hydrate "$c"
is "$(field cold "$c") $(field partial "$c")" "0 0" "brings everything"
fetched=$(field fetched_bytes "$c")
ok "all of it is right" same_tree "$o" "$c"
is "$(field fetched_bytes "$c")" "$fetched" "and here"
nok "hydrate of what is not there" "$SLUICE" hydrate "$c/none"

# ---- what stays ----

evict "$c" >"$T/.out"
json=$("$SLUICE" pin --json "$c/pinned")
is "$(said pinned) $(state_of "$c/pinned") $(flags_of "$c/pinned")" "1 full pinned" "pin hydrates and pins"
echo more >>"$c/modified"
echo mine >"$c/made-here"
exec 8<"$c/opened"
dd bs=10 count=1 status=none <&8 >"$T/.out"
cat >"$T/map.py" <<'EOP'
import mmap, os, sys
f = os.open(sys.argv[1], os.O_RDONLY)
m = mmap.mmap(f, 0, prot=mmap.PROT_READ)
os.close(f)
m[0]
open(sys.argv[2], "w").close()
sys.stdin.read()
with open(sys.argv[3], "rb") as g:
    sys.exit(m[:] != g.read())
EOP
mkfifo "$T/hold"
python3 "$T/map.py" "$c/mapped" "$T/mapped" "$o/mapped" <"$T/hold" &
mapper=$!
_pids+=("$mapper")
exec 9>"$T/hold"
wait_for 30 test -e "$T/mapped"
"$SLUICE" hydrate "$c" >"$T/.out"
json=$(evict "$c")
is "$(said busy) $(said kept)" "2 3" "evict of everything leaves two in use, three that are pinned or ours"
is "$(state_of "$c/pinned") $(state_of "$c/modified") $(state_of "$c/made-here")" "full full full" "pinned, modified and own files stay"
is "$(state_of "$c/opened") $(state_of "$c/mapped")" "full full" "open and mapped files stay"
is "$(state_of "$c/a") $(state_of "$c/dir/1")" "cold cold" "others do not"
is "$(tail -c 5 "$c/modified") $(cat "$c/made-here")" "more mine" "with what was written"
ok "the open file reads to its end" cmp <(tail -c +11 "$o/opened") <(cat <&8)
for f in pinned modified made-here opened mapped; do
	evict "$c/$f" >"$T/.out"
done
is "$(state_of "$c/pinned") $(state_of "$c/modified") $(state_of "$c/made-here") $(state_of "$c/opened") $(state_of "$c/mapped")" \
	"full full full full full" "nor are they evicted by name"
exec 8<&- 9>&-
wait "$mapper"
is $? 0 "the mapping showed the right content all the time"
wait_for 30 eval '[ "$(evict "$c/opened" "$c/mapped" >"$T/.out"; state_of "$c/opened"; state_of "$c/mapped")" = "cold
cold" ]'
is "$(state_of "$c/opened") $(state_of "$c/mapped")" "cold cold" "once closed they can be evicted"
"$SLUICE" stop "$c" && "$SLUICE" start "$c" >"$T/.out"
evict "$c" >"$T/.out"
is "$(state_of "$c/pinned") $(flags_of "$c/pinned")" "full pinned" "pinned stays so over a restart"
json=$("$SLUICE" unpin --json "$c/pinned")
is "$(said unpinned) $(flags_of "$c/pinned")" "1 " "unpin"
evict "$c" >"$T/.out"
is "$(state_of "$c/pinned") $(state_of "$c/modified")" "cold full" "lets it be evicted"
"$SLUICE" pin "$c/dir" >"$T/.out"
json=$(evict "$c")
is "$(said kept) $(state_of "$c/dir/sub/3")" "5 full" "a directory is pinned with all that is in it"
"$SLUICE" unpin "$c/dir" >"$T/.out"

# ---- by age and size ----

cat "$c"/ages/* >"$T/.out"
# used AGE FILE. Not by touch(1), which opens the file for writing: for the fanotify gate it is changed then.
used() {
	python3 -c 'import os, sys; os.utime(sys.argv[2], ns=(int(sys.argv[1]) * 10**9, os.stat(sys.argv[2]).st_mtime_ns))' \
		"$(date -d "$1" +%s)" "$2"
}
used '10 days ago' "$c/ages/old1"
used '9 days ago' "$c/ages/old2"
json=$(evict --older-than 7d "$c/ages")
is "$(said files)" 2 "evict --older-than 7d takes what was not used for that long"
is "$(cd "$c/ages" && for f in *; do state_of "$f"; done | tr '\n' ' ')" "full full full cold cold " "and nothing else"
ok "it comes again" same_fresh "$o/ages/old1" "$c/ages/old1"
json=$(evict --older-than 7d "$c/ages")
is "$(state_of "$c/ages/old1")" "full" "reading is using" # its neighbour may have been fetched ahead, and that is none
same_fresh "$o/ages/old2" "$c/ages/old2"
i=20
for f in old1 old2 new1 new2 new3; do used "$((i--)) minutes ago" "$c/ages/$f"; done
json=$(evict --to-free 700000 "$c/ages")
is "$(said files)" 2 "evict --to-free takes no more than needed"
is "$(cd "$c/ages" && for f in *; do state_of "$f"; done | tr '\n' ' ')" "full full full cold cold " "and the longest unused first"
for x in "--older-than 5x" "--to-free many" "--to-free 0" "--frob 1"; do
	# shellcheck disable=SC2086
	"$SLUICE" evict $x "$c" >"$T/.out" 2>&1
	is $? 2 "evict $x is a usage error"
done
"$SLUICE" evict >"$T/.out" 2>&1
is $? 2 "evict of nothing is a usage error"

# ---- readers meanwhile ----

cat >"$T/race.py" <<'EOP'
import os, random, subprocess, sys, threading
origin, clone, sluice = sys.argv[1:4]
names = ["a", "b", "dir/1", "dir/2", "dir/sub/3", "opened", "mapped"]
data = {n: open(f"{origin}/{n}", "rb").read() for n in names}
stop, wrong, reads = threading.Event(), [], [0] * 4
def read(i):
    rng = random.Random(i)
    while not stop.is_set() and not wrong:
        n = rng.choice(names)
        with open(f"{clone}/{n}", "rb", buffering=0) as f:
            os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            for _ in range(rng.randrange(1, 5)):
                off, k = rng.randrange(300000), rng.choice((1, 4096, 65536, 300000))
                if os.pread(f.fileno(), k, off) != data[n][off:off + k]:
                    wrong.append((n, off, k))
        reads[i] += 1
threads = [threading.Thread(target=read, args=(i,)) for i in range(4)]
for t in threads:
    t.start()
evicted = 0
for i in range(60):
    out = subprocess.run([sluice, "evict", "--json", clone], capture_output=True, check=True, text=True).stdout
    evicted += int(out.split('"files":')[1].split(",")[0])
stop.set()
for t in threads:
    t.join()
print(f"{sum(reads)} reads, {evicted} evictions")
sys.exit(1 if wrong or evicted < 30 or sum(reads) < 60 else 0)
EOP
ok "four readers and an eviction after the other: every byte is right" python3 "$T/race.py" "$o" "$c" "$SLUICE"
ok "verify finds nothing wrong" "$SLUICE" verify "$c"
"$SLUICE" remove --discard "$c"

# ---- a limit ----

mkdir "$T/many"
for i in {10..49}; do new 1048576 "$T/many/$i"; done
new 12000000 "$T/many/too-large"
clone --limit 8M "$T/many" "$c"
most=0 wrong=
for i in {10..49}; do
	cmp -s "$T/many/$i" "$c/$i" || wrong+=" $i"
	here=$(field bytes_here "$c")
	[ "$here" -le "$most" ] || most=$here
done
is "$wrong" "" "a clone with --limit 8M reads 40 MiB, all right"
ok "and never has more than that here (at most $most)" test "$most" -le $((8 << 20)) -a "$most" -gt $((4 << 20))
is "$(state_of "$c/49")" full "what was read last is here"
printf '%s\n' {10..49} | xargs -P 4 -I{} cmp "$T/many/{}" "$c/{}"
is $? 0 "four readers at a time: all right"
here=$(field bytes_here "$c")
ok "within the limit ($here)" test "$here" -le $((8 << 20))
"$SLUICE" stop "$c" && "$SLUICE" start "$c" >"$T/.out"
for i in 20 21 22 23; do cmp "$T/many/$i" "$c/$i"; done
here=$(field bytes_here "$c")
ok "also after a restart ($here)" test "$here" -le $((8 << 20)) -a "$here" -ge $((4 << 20))
cat "$c/too-large" >"$T/out" 2>"$T/err"
status=$?
if [ $status = 0 ]; then
	ok "a file larger than the limit is read right" cmp "$T/out" "$T/many/too-large"
else
	like "$(<"$T/err")" "No space left" "a file larger than the limit gives ENOSPC"
fi
ok "and what fits still works" cmp "$T/many/30" "$c/30"
"$SLUICE" pin "$c/10" "$c/11" "$c/12" "$c/13" "$c/14" >"$T/.out"
wrong=
for i in {15..30}; do cmp -s "$T/many/$i" "$c/$i" || wrong+=" $i"; done
is "$wrong" "" "with 5 MiB pinned the rest goes through what is left"
is "$(for i in 10 11 12 13 14; do state_of "$c/$i"; done | sort -u)" full "and what is pinned stays"
"$SLUICE" remove "$c"

# ---- a store that is full ----

if [ "$(id -u)" = 0 ] && ! losetup -f >"$T/.out" 2>&1; then
	skip "a store that is full: no loop devices"
elif [ -n "$NATIVE" ]; then
	: # An XFS takes 300 MiB: bad-days-native.t has one that is full.
elif [ "$(id -u)" = 0 ]; then
	truncate -s 40M "$T/img"
	mkfs.ext4 -q -m 0 -N 400 "$T/img"
	mkdir "$T/small"
	mount -o loop "$T/img" "$T/small" || bail "mount"
	mkdir "$T/many/names"
	(cd "$T/many/names" && touch {1..600})
	new 50000000 "$T/many/huge"
	clone --reserve 0 --store "$T/small/store" "$T/many" "$c"
	wrong=
	for i in {10..49} {10..49}; do cmp -s "$T/many/$i" "$c/$i" || wrong+=" $i"; done
	is "$wrong" "" "80 MiB go through a store on 40 MiB, all right"
	cat "$c/huge" >"$T/out" 2>"$T/err"
	is $? 1 "a file that is larger than the store cannot be read"
	like "$(<"$T/err")" "No space left" "and the reader is told ENOSPC"
	ok "what had been read of it is right" cmp -n "$(stat -c %s "$T/out")" "$T/out" "$T/many/huge"
	ls "$c/names" >"$T/out" 2>"$T/err"
	status=$?
	like "$(<"$T/err")" "No space left" "a directory for which there are no inodes: ENOSPC"
	isnt "$status" 0 "and no short listing"
	ok "what fits still works" cmp "$T/many/17" "$c/17"
	dd if=/dev/zero of="$c/mine" bs=1M 2>"$T/err"
	isnt $? 0 "writing until the store is full ends with an error"
	like "$(<"$T/err")" "No space left" "which is ENOSPC"
	mine=$(stat -c %s "$c/mine")
	ok "what was written is there ($mine)" cmp -n "$mine" "$c/mine" /dev/zero
	bad=
	for i in {10..20}; do
		cat "$c/$i" >"$T/out" 2>"$T/err"
		if [ $? = 0 ]; then
			cmp -s "$T/out" "$T/many/$i" || bad+=" $i"
		else
			grep -q "No space left" "$T/err" || bad+=" $i: $(<"$T/err")"
		fi
	done
	is "$bad" "" "reads in a full store are right or say ENOSPC"
	ok "status works in a full store" "$SLUICE" status "$c"
	ok "stop works in a full store" "$SLUICE" stop "$c"
	ok "start works in a full store" "$SLUICE" start "$c"
	is "$(stat -c %s "$c/mine")" "$mine" "with what was written"
	ok "deleting it" rm "$c/mine"
	wrong=
	for i in {10..49}; do cmp -s "$T/many/$i" "$c/$i" || wrong+=" $i"; done
	is "$wrong" "" "gives room for all the others again"
	ok "verify finds nothing wrong" "$SLUICE" verify "$c"
	"$SLUICE" remove --discard "$c"
	umount "$T/small"
else
	skip_root "a store that is full"
fi

also_as_user
done_testing
