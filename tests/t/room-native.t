#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# long: yes
# asan: no
# No room: if this fails, a native clone whose image, or what that lies on, is full gives wrong bytes, loses what was written, fails
# otherwise than any filesystem would, or does not recover.
. "$(dirname "$0")/../tools/native.sh" --self
. "$(dirname "$0")/lib.sh"
. "$TOOLS/clone.sh"

o=$T/o c=$T/c
new() { head -c "$1" /dev/urandom >"$2"; }
avail() { echo $(($(stat -f -c '%a * %S' "$1"))); }

# right_or RE FILE...: each reads right, or fails with an error that matches; what came before the error is right.
right_or() {
	local re=$1 f bad=
	shift
	for f; do
		if cat "$c/$f" >"$T/got" 2>"$T/err"; then
			cmp -s "$T/got" "$o/$f" || bad+=" $f"
		else
			refused=$((refused + 1))
			grep -qE "$re" "$T/err" || bad+=" $f: $(<"$T/err")"
			cmp -s -n "$(stat -c %s "$T/got")" "$T/got" "$o/$f" || bad+=" $f (a part)"
		fi
	done
	[ -z "$bad" ] || { echo "$bad"; return 1; }
}
all_right() { right_or 'nothing is expected' "$@"; }

# until_full FILE: write until there is no room; what was written is beside it, in $T. Says how that ended.
until_full() {
	python3 - "$1" "$T/${1##*/}" <<'EOP'
import errno, os, sys
try:
    b, a = (os.open(p, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600) for p in sys.argv[:0:-1])
except OSError as e:
    sys.exit(print(errno.errorcode[e.errno]))
piece = os.urandom(1 << 20)
how, left = None, 4 << 30
while not how:
    if left <= 0:
        how = "no end"
        break
    try:
        n = os.write(a, piece)
        assert os.write(b, piece[:n]) == n
        left -= n
    except OSError as e:
        if len(piece) == 4096 or e.errno != errno.ENOSPC:
            how = errno.errorcode[e.errno]
        piece = piece[:len(piece) // 2]
try:
    os.fsync(a)
except OSError as e:
    how += ", and fsync " + errno.errorcode[e.errno]
print(how)
EOP
}

# ---- the image is full; what it lies on has room ----

mkdir "$o"
for i in {1..8}; do new 20000000 "$o/$i"; done
new 3000 "$o/small"
nok "a capacity that is all reserve is refused" "$SLUICE" clone --gate fanotify --capacity 32M --reserve 32M "$o" "$c"
like "$(<"$T/.out")" "capacity" "and says why"
clone --capacity 128M --reserve 32M "$o" "$c"
room=$(avail "$c")
ok "--capacity 128M leaves room for that much ($room)" test "$room" -le 135300000 -a "$room" -gt 120000000
ok "160 MB go through it, all right" all_right {1..8} small {1..8}
is "$(until_full "$c/mine")" ENOSPC "who writes is told that there is no room"
ok "what was written until then is there" cmp "$T/mine" "$c/mine"
ok "reads evict what was read before, and are right" all_right {1..8}
evict_and_fill() { "$SLUICE" evict "$c" && until_full "$c/mine"; }
for i in 1 2 3; do evict_and_fill >"$T/.out"; done
is "$(tail -n 1 "$T/.out")" ENOSPC "full of what was written here"
ok "and all of it is there" cmp "$T/mine" "$c/mine"
refused=0
ok "with nothing left to evict reads are right, or say that there is no room" right_or "No space left" {1..8}
ok "and some do ($refused)" test "$refused" -gt 0
nok "a cold file that cannot be filled cannot be written to either" sh -c 'echo more >>"$1"' sh "$c/8"
# Past the gate: what was armoured when there was no room must not read as zeros.
kill_service "$c"
bad=
for i in {1..8} small; do
	dd if="$c/$i" iflag=direct bs=1M status=none >"$T/got" 2>"$T/err" || grep -q "Input/output error" "$T/err" || bad+=" $i: $(<"$T/err")"
	cmp -s -n "$(stat -c %s "$T/got")" "$T/got" "$o/$i" || bad+=" $i"
done
is "$bad" "" "service and keeper killed: right bytes, or EIO"
ok "it starts again" "$SLUICE" start "$c"
ok "what was written is there" cmp "$T/mine" "$c/mine"
ok "there is no more room than before" test "$(avail "$c")" -lt 33000000
rm "$c/mine"
ok "after room was made everything is right" wait_for 60 all_right {1..8} small
ok "and can be written to" sh -c 'echo more >>"$1"' sh "$c/8"
ok "nothing is wrong here" "$SLUICE" verify "$c"

# ---- as many files as there is room for ----

is "$(python3 - "$c" <<'EOP'
import errno, os, sys
os.mkdir(sys.argv[1] + "/many")
n = 0
try:
    while True:
        os.close(os.open(f"{sys.argv[1]}/many/{n}", os.O_CREAT | os.O_WRONLY))
        n += 1
except OSError as e:
    print(errno.errorcode[e.errno] if n > 5000 else n)
EOP
)" ENOSPC "files without content are made until there is no room for one more"
ok "reads are right, or say that there is no room" right_or "No space left" {1..7}
rm -r "$c/many"
ok "and it goes on when they are gone" wait_for 60 touch "$c/one"
ok "all is right" wait_for 60 all_right {1..7}
"$SLUICE" remove --force --discard "$c"

# ---- the capacity is changed ----

long=many/$(printf '%0200d/%0200d' 0 0) # their records have blocks of their own
mkdir -p "$o/$long"
rm -f "$T/mine"
head -c 16384000 /dev/urandom | tee "$T/long" | split -b 8192 -a 4 - "$o/$long/$(printf '%0200d' 0)"
clone --reserve 16M "$o" "$c"
ok "all of it is fetched, and something is written" all_right {1..8} small
head -c 30000000 /dev/urandom | tee "$T/own" >"$c/own"
bounded() { [ $(($(avail "$c") + $(field bytes_here "$c"))) -lt "$1" ]; } # BYTES: what is free, and what is in use
"$SLUICE" start --capacity 100M "$c" >"$T/said" 2>&1
is "$? $(<"$T/said")" "0 $c has room for 100 MiB" "a clone that is running is given less room"
is "$(field capacity "$c")" 104857600 "status says how much"
ok "what is beyond it is evicted at once" bounded 110000000
ok "reads evict what was read before, and are right" all_right {1..8} small
"$SLUICE" evict "$c" >"$T/.out"
is "$(until_full "$c/mine")" ENOSPC "who writes is told where that ends"
ok "which is where it should ($(stat -c %s "$c/mine"))" test "$(stat -c %s "$c/mine")" -gt 60000000 -a "$(stat -c %s "$c/mine")" -lt 80000000
"$SLUICE" start --capacity 40M "$c" >"$T/said" 2>&1
is "$?" 0 "it is given less than is in use"
like "$(<"$T/said")" "room for 40.0 MiB.*MiB more is in use and cannot be evicted" "which is said"
cannot_write() { [ "$(until_full "$c/none")" = ENOSPC ] && ! [ -s "$c/none" ]; }
ok "nothing more can be written" cannot_write
ok "what was written is there" cmp "$T/mine" "$c/mine"
ok "all of it" cmp "$T/own" "$c/own"
refused=0
ok "reads are right, or say that there is no room" right_or "No space left" {1..8}
ok "and some do ($refused)" test "$refused" -gt 0
rm -f "$c/mine" "$T/mine" "$c/none"
little() { [ "$(avail "$c")" -lt 12000000 ]; }
ok "what is deleted makes up for it first" wait_for 60 little
is "$("$SLUICE" start --capacity 400M "$c")" "$c has room for 400 MiB" "it is given more"
ok "which can be used at once" all_right {1..8} small
is "$(field bytes_here "$c")" 190003000 "and nothing had to go"
"$SLUICE" evict "$c" >"$T/.out"
small() { (cd "$c/$long" && cat -- *) | cmp - "$T/long"; }
ok "small files are fetched, which will be the first to go" small
ok "and the large ones" all_right {1..8}
is "$("$SLUICE" start --capacity 44M "$c")" "$c has room for 44.0 MiB" "and much less, to which it is evicted where no block is free"
is "$("$SLUICE" start --capacity 100M "$c")" "$c has room for 100 MiB" "and more"
kill -9 "$(field service_pid "$c")"
ok "the next service keeps it" bounded 110000000
ok "and all is right" all_right {1..8}
ok "stop" "$SLUICE" stop "$c"
store=$(field store "$c")
room=$(sed -n 's/.*"room": \([0-9]*\).*/\1/p' "$store/sluice.json")
sed -i "s/\"room\": [0-9]*/\"spare\": $((room - 104857600))/" "$store/sluice.json" # as it was noted once
"$SLUICE" start --capacity 200M "$c" >"$T/said" 2>&1
is "$? $(<"$T/said")" "0 $c is up
$c has room for 200 MiB" "also one that is not running"
ok "that much" bounded 230000000
ok "and all is right" all_right {1..8} small
nok "a capacity that is all reserve is refused" "$SLUICE" start --capacity 16M "$c"
nok "one that the image was not made for is refused" "$SLUICE" start --capacity 5000T "$c"
like "$(<"$T/.out")" "does not grow" "which is said"
nok "so is one of a clone that has no image" sh -c '"$SLUICE" clone --no-start "$1" "$2" && "$SLUICE" start --capacity 1G "$2"' sh "$o" "$T/fuse"
like "$(<"$T/.out")" "is for an image" "which is said"
nok "and it is not started" mounted "$T/fuse"
"$SLUICE" remove --force --discard "$T/fuse"
is "$(field capacity "$c")" 209715200 "nothing of that has changed anything"
is "$("$SLUICE" start --capacity 0 "$c")" "$c has as much room as there is" "without a bound"
ok "there is more" test "$(avail "$c")" -gt 400000000
ok "what was written is there" cmp "$T/own" "$c/own"
ok "nothing is wrong here" "$SLUICE" verify "$c"
"$SLUICE" remove --force --discard "$c"
rm -r "$o/many"

# ---- names that there is no room for ----

mkdir "$T/many"
(cd "$T/many" && seq 40000 | xargs touch)
nok "a clone whose names do not fit is not made" "$SLUICE" clone --gate fanotify --capacity 24M --reserve 16M "$T/many" "$c"
like "$(<"$T/.out")" "No space left.*--capacity" "which says why, and what helps"
nok "nothing is shown" mounted "$c"
is "$("$SLUICE" list) $(losetup -n -O BACK-FILE -l | grep -c "^$T")" " 0" "and nothing is left"
truncate -s 400M "$T/ext4.img"
mkfs.ext4 -q -N 2000 "$T/ext4.img"
mkdir "$T/ext4"
mount -o loop "$T/ext4.img" "$T/ext4" || bail "mount"
rmdir "$T/ext4/lost+found"
nok "nor on a filesystem that has too few inodes" "$SLUICE" clone --gate fanotify --reserve 16M --store "$T/ext4" "$T/many" "$c"
like "$(<"$T/.out")" "No space left" "which says why"
nok "nothing is shown" mounted "$c"
umount "$T/ext4"

# ---- what the image lies on is full ----

truncate -s 240M "$T/host.img"
mkfs.ext4 -q -m 0 -b 4096 "$T/host.img"
mkdir "$T/host"
mount -o loop "$T/host.img" "$T/host" || bail "mount"
clone --reserve 16M --store "$T/host/store" --capacity 2G "$o" "$c"
ok "there is no more room than there" test "$(avail "$c")" -lt "$(avail "$T/host")"
echo mine >"$c/mine"
sync -f "$c"
ok "200 MB go through an image on a host with 110 MB, all right" all_right {1..8} 1 2
"$SLUICE" evict "$c" >"$T/.out"
enough() { [ "$(avail "$c")" -gt 80000000 ]; }
ok "after all was evicted there is room" wait_for 60 enough
is "$(until_full "$c/written")" ENOSPC "who writes is told that there is no room, before the host is full"
# Of the reserve, as much as was not written between two looks at it.
ok "which it is not ($(avail "$T/host"))" test "$(avail "$T/host")" -gt 1000000
ok "and what was written until then is there" cmp "$T/written" "$c/written"
ok "stop" wait_for 30 "$SLUICE" stop "$c"
ok "start" "$SLUICE" start "$c"
ok "also after a restart" cmp "$T/written" "$c/written"
rm "$c/written"
roomy() { [ "$(avail "$c")" -gt 70000000 ]; }
ok "what is deleted makes room, on the host as well" wait_for 60 roomy
ok "all is right" all_right {1..8}
at_exit rm -f "$T/host/filler"
fallocate -l "$(avail "$T/host")" "$T/host/filler" 2>"$T/.out"
small() { [ "$(avail "$c")" -lt 1000000 ]; }
ok "when others take it the clone has no more either" wait_for 60 small
like "$(until_full "$c/more")" ^ENOSPC "who writes is told"
ok "what is here or not here is right, or there is no room" right_or "No space left|Input/output error" {1..8}
rm "$T/host/filler"
ok "with room again all is right" wait_for 60 all_right {1..8}
is "$(cat "$c/mine")" "mine" "and what was written is there"
ok "verify finds nothing wrong" "$SLUICE" verify "$c"

# ---- others fill it, and the clone has to be started again ----

"$SLUICE" evict "$c" >"$T/.out"
ok "after all was evicted there is room" wait_for 60 roomy
head -c 3000000 /dev/urandom >"$T/synced"
cp "$T/synced" "$c/synced"
name() { seq "$2" | sed "s/^/$1, a long name that makes the directory larger /"; }
for d in {1..40}; do mkdir "$c/dir$d" && (cd "$c/dir$d" && name one 40 | xargs -d '\n' touch); done
sync -f "$c"
# What is in the filesystem's log only has no place on the host any more.
cat /dev/zero >"$T/host/filler" 2>"$T/.out"
for d in {1..40}; do (cd "$c/dir$d" && name two 40 | xargs -d '\n' touch) 2>"$T/.out"; done
sync -f "$c"
kill_service "$c"
ok "a clone on a full host starts" timeout 60 "$SLUICE" start "$c"
ok "what was synced is there" cmp "$T/synced" "$c/synced"
is "$(find "$c"/dir* -name 'one*' | wc -l)" 1600 "with all the names"
ok "what is here or not here is right, or there is no room" right_or "No space left|Input/output error" {1..8}
ok "it stops" timeout 60 "$SLUICE" stop "$c"
ok "and starts" timeout 60 "$SLUICE" start "$c"
rm "$T/host/filler"
ok "with room again all is right" wait_for 60 all_right {1..8}
"$SLUICE" evict "$c" >"$T/.out" # or there may be no room for it
ok "and there is ballast for the next time" wait_for 60 test -s "$T/host/store/ballast"

# ---- what the image lies on gets larger ----

ok "stop" timeout 60 "$SLUICE" stop "$c"
umount "$T/host"
truncate -s 600M "$T/host.img"
ok "it is made larger" sh -c 'e2fsck -fy "$1"; resize2fs "$1"' sh "$T/host.img"
mount -o loop "$T/host.img" "$T/host" || bail "mount"
ok "start" timeout 60 "$SLUICE" start "$c"
larger() { [ "$(avail "$c")" -gt 350000000 ]; }
ok "and so does the room of a clone that was made with more" wait_for 60 larger
ok "all is right" all_right {1..8}
"$SLUICE" remove --force --discard "$c"
umount "$T/host"
done_testing
