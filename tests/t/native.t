#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# long: yes
# What only clones on the fanotify gate have: if this fails, a name is missing, a filesystem of another kind does not serve, what is
# in use goes away or stays when it should not, or after a crash somebody reads zeros.
. "$(dirname "$0")/../tools/native.sh" --self
. "$(dirname "$0")/lib.sh"
. "$TOOLS/clone.sh"

o=$T/o c=$T/c
mkdir "$o" "$T/outside"
make_tree "$o/base" 200 || bail "make_tree"
python3 "$TOOLS/oddtree.py" "$o/odd" "$T/outside" || bail "oddtree.py"
mv "$o/odd/deep" "$T/deep" # paths longer than a record has room for
rm "$T/outside/two"        # links are real ones: no name outside the tree counts
setfattr -n user.one -v 1 "$o/base"
setfattr -n user.two -v 2 "$o/base/sizes/4096"
for f in a b d e; do head -c 3000000 /dev/urandom >"$o/$f"; done
tree_before=$(checksum "$o")

# cat_direct FILE: past the page cache.
cat_direct() { dd if="$1" iflag=direct bs=1M status=none; }
# EIO, or the right bytes; never others. $read_errors counts the errors.
honest() { # ORIGIN CLONE
	if cat_direct "$2" >"$T/got" 2>"$T/err"; then
		cmp "$1" "$T/got"
	else
		read_errors=$((read_errors + 1))
		grep -q "Input/output error" "$T/err" || cat "$T/err"
		cmp -n "$(stat -c %s "$T/got")" "$1" "$T/got"
	fi
}

# ---- names ----

began=$(date +%s%N)
clone "$o" "$c"
took=$((($(date +%s%N) - began) / 1000000))
names=$(find "$o" | wc -l)
diag "$names names in $took ms"
ok "$names names are shown within a minute" test "$took" -lt 60000
ok "names, types, modes, links, sizes, times, owners and targets are the origin's" same_attributes "$o" "$c"
is "$(field fetched_bytes "$c")" 0 "which took no content"
is "$(getfattr --only-values -n user.one "$c/base") $(getfattr --only-values -n user.two "$c/base/sizes/4096")" "1 2" "extended attributes are there as well"
is "$(stat -c '%F %t:%T' "$c/odd/types/null") $(stat -c %F "$c/odd/types/fifo") $(stat -c %F "$c/odd/types/socket")" \
	"character special file 1:3 fifo socket" "special files are shown as what they are"
nok "a device cannot be opened" cat "$c/odd/types/null"
nok "root's own records are not shown to others" as_user sh -c "getfattr -d -m - '$c/a' | grep -q sluice"
mkdir "$T/moved"
echo new >"$o/late"
ok "what the origin adds later comes" wait_for 60 test -e "$c/late"
rm "$o/late"
ok "and goes again with it" wait_for 60 test ! -e "$c/late"
ok "all content is the origin's" same_tree --owners --xattrs --no-dir-mtime "$o" "$c"
"$SLUICE" evict "$c" >"$T/.out"
ok "and again, after all of it was evicted" same_tree --owners --xattrs --no-dir-mtime "$o" "$c"
"$SLUICE" remove "$c"
is "$? $([ -e "$c" ] && echo there) $(losetup -n -O BACK-FILE -l | grep -c "^$T")" "0  0" "remove leaves no directory and no loop device"

# ---- names, interrupted ----

# An origin that stops talking after so many bytes, as long as there is a limit.
cat >"$T/talk" <<'EOS'
#!/usr/bin/env python3
import os, subprocess, sys
top, sluice, tree = sys.argv[1:]
p = subprocess.Popen([sluice, "serve", "--stdio", tree], stdout=subprocess.PIPE)
left = int(open(top + "/limit").read()) if os.path.exists(top + "/limit") else 1 << 40
while left and (piece := os.read(p.stdout.fileno(), min(left, 65536))):
    left -= len(piece)
    while piece:
        piece = piece[os.write(1, piece):]
if not left:
    open(top + "/stopped", "w").close()
    os.execvp("sleep", ["sleep", "12345"])
EOS
chmod +x "$T/talk"
mkdir "$T/names"
python3 - "$T/names" <<'EOP'
import os, sys
for i in range(1200):
    d = f"{sys.argv[1]}/{i}"
    os.mkdir(d)
    for j in range(20):
        os.close(os.open(f"{d}/{j}", os.O_CREAT | os.O_WRONLY))
EOP
# members [sleep]: what runs of this clone, but for its exporter; or what keeps that from going on.
members() {
	local p
	for p in /proc/[0-9]*; do
		grep -qzxF "T=$T" "$p/environ" 2>/dev/null || continue
		if [ "${1-}" = sleep ]; then
			grep -qzxF 12345 "$p/cmdline" && echo "${p#/proc/}"
		elif [ "$(readlink "$p/exe" 2>/dev/null)" = "$SLUICE" ]; then
			grep -qzxF serve "$p/cmdline" || echo "${p#/proc/}"
		fi
	done
}
nobody() { [ -z "$(members)" ]; }
"$SLUICE" clone --gate fanotify --no-start --store "$T/st" "exec:$T/talk $T $SLUICE $T/names" "$c" >"$T/.out"
at_exit "$SLUICE" remove --force --discard "$c"
for limit in 1500000 3000000; do
	echo "$limit" >"$T/limit"
	rm -f "$T/stopped"
	"$SLUICE" start "$c" >"$T/.out" 2>&1 &
	wait_for 60 test -e "$T/stopped"
	nok "while names are missing nothing is shown ($limit bytes came)" mounted "$c"
	members | xargs kill -STOP
	members | xargs kill -9
	members sleep | xargs kill
	wait
	wait_for 30 nobody
done
rm "$T/limit"
ok "after service and keeper died twice while they made names, it starts" "$SLUICE" start "$c"
ok "with all names" same_attributes "$T/names" "$c"
n=$(field listings "$c")
ok "of which many were there already ($n of 1201 listings)" test "$n" -lt 1100 -a "$n" -gt 10
"$SLUICE" remove --discard "$c"

# ---- filesystems: an image of a size, a device, filesystems of their own ----

s=$T/small
mkdir "$s" "$s/sub"
for f in a b d e sub/f; do head -c 1500000 /dev/urandom >"$s/$f"; done
truncate -s 3000000 "$s/zeros"

# in_use DIR: reads, writes, evicts, restarts; then it is as it must be.
in_use() {
	local c=$1 what=$2
	ok "$what: names and attributes" same_attributes "$s" "$c"
	ok "$what: a cold file is read right" cmp "$s/a" "$c/a"
	ok "$what: and by cp --sparse=always" sh -c 'cp --sparse=always "$1" "$2" && cmp "$2" "$3"' sh "$c/b" "$T/copy" "$s/b"
	ok "$what: and mapped" python3 -c '
import mmap, sys
with open(sys.argv[1], "rb") as f, open(sys.argv[2], "rb") as g:
    assert mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)[:] == g.read()' "$c/sub/f" "$s/sub/f"
	echo more >>"$c/d"
	echo mine >"$c/mine"
	"$SLUICE" evict "$c" >"$T/.out"
	is "$(state_of "$c/a") $(state_of "$c/sub/f") $(state_of "$c/d") $(state_of "$c/mine")" "cold cold full full" "$what: evict takes what it may"
	ok "$what: stop" wait_for 30 "$SLUICE" stop "$c"
	nok "$what: nothing is shown then" mounted "$c"
	ok "$what: start" "$SLUICE" start "$c"
	is "$(tail -c 5 "$c/d") $(cat "$c/mine")" "more mine" "$what: what was written is there"
	ok "$what: also in front of it" cmp -n 1500000 "$s/d" "$c/d"
	for f in a b e sub/f zeros; do
		ok "$what: $f is right" cmp "$s/$f" "$c/$f"
	done
	nok "$what: remove does not throw away what was written" "$SLUICE" remove "$c"
	ok "$what: remove --discard does" "$SLUICE" remove --discard "$c"
}

# by_hand DIR WHAT: unmounted by hand, the service serves as long as somebody can ask, and then ends in good order.
by_hand() {
	local c=$1 what=$2 pid keeper fd
	served() { ! gone "$pid" || ! gone "$keeper"; }
	ended() { ! served; }
	pids() { pid=$(field service_pid "$c") keeper=$(field keeper_pid "$c"); }
	again() {
		ok "$what: $1" wait_for 60 ended
		ok "$what: then it can be started" "$SLUICE" start "$c"
		is "$(field unclean_start "$c")" "false" "$what: after an end in good order"
		"$SLUICE" evict "$c" >"$T/.out"
		pids
	}
	pids
	"$SLUICE" evict "$c" >"$T/.out"
	wait_for 60 umount "$c" || fail "$what: umount" # the service may still have the file of an event
	again "unmounted by hand it ends"
	exec {fd}<"$c/a"
	umount -l "$c"
	is "$(sha256sum <&"$fd")" "$(sha256sum <"$s/a")" "$what: unmounted lazily, what is open is read right"
	ok "$what: by its service" served
	exec {fd}<&-
	again "when it is closed, it ends"
	mkdir -p "$T/second"
	mount --bind "$c" "$T/second"
	mount --make-private "$T/second"
	umount "$c"
	ok "$what: unmounted, but bound elsewhere, it is read right there" cmp "$s/b" "$T/second/b"
	ok "$what: by its service" served
	wait_for 60 umount "$T/second" || fail "$what: umount"
	again "unmounted there as well, it ends"
}

clone --capacity 700M "$s" "$c"
bytes=$(($(stat -f -c '%a * %S' "$c")))
ok "--capacity 700M leaves room for that much ($bytes)" test "$bytes" -gt 700000000 -a "$bytes" -lt 735100000
by_hand "$c" "image"
in_use "$c" "image"

truncate -s 600M "$T/disk"
loop=$(losetup -f --show "$T/disk") || bail "no loop device"
clone --device "$loop" "$s" "$c"
in_use "$c" "device"
losetup -d "$loop"

own() { # KIND MKFS...
	local kind=$1
	shift
	rm -f "$T/disk"
	truncate -s 600M "$T/disk"
	"$@" "$T/disk" >"$T/.out" 2>&1 || bail "$*: $(<"$T/.out")"
	mkdir -p "$T/fs"
	mount -o loop "$T/disk" "$T/fs" || bail "mount"
	rmdir "$T/fs/lost+found" 2>"$T/.out"
	clone --store "$T/fs" "$s" "$c"
	[ "$kind" = xfs ] || by_hand "$c" "$kind"
	in_use "$c" "$kind"
	is "$(ls -A "$T/fs")" "" "$kind: nothing is left on it"
	ok "$kind: it can be unmounted" umount "$T/fs"
}
own xfs mkfs.xfs -q
own btrfs mkfs.btrfs -q
own ext4 mkfs.ext4 -q

# ---- what the origin refuses ----

# The kernel passes on few errors: another one would be no answer, and who waits would wait for ever.
mkdir "$T/refusing"
echo secret >"$T/refusing/secret"
chmod 600 "$T/refusing/secret"
echo here >"$T/refusing/here"
as_user true
background as_user "$SLUICE" serve --unix "$T/user/refusing.sock" "$T/refusing"
wait_for 30 test -S "$T/user/refusing.sock" || bail "no export"
clone "unix:$T/user/refusing.sock" "$c"
nok "what the exporter may not read cannot be read" timeout 60 cat "$c/secret"
like "$(<"$T/.out")" "Operation not permitted" "which is said so"
ok "what it may is" cmp "$T/refusing/here" "$c/here"
"$SLUICE" remove --force "$c"
done_testing
