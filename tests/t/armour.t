#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# If this fails, placeholders in a store with reflinks have holes, which programs take for zeros, or eviction does not give space back.
. "$(dirname "$0")/lib.sh"
. "$TOOLS/clone.sh"
need mkfs.xfs filefrag
[ "$(id -u)" = 0 ] || skip_all "making a filesystem needs root"
truncate -s 512M "$T/img"
mkfs.xfs -q -m reflink=1 "$T/img" || bail "mkfs.xfs"
mkdir "$T/xfs" "$T/o"
mount -o loop "$T/img" "$T/xfs" || skip_all "no loop devices"
at_exit umount -l "$T/xfs"

head -c 20000000 /dev/urandom >"$T/o/big"
head -c 100000 /dev/urandom >"$T/o/odd"
printf x >"$T/o/one"
: >"$T/o/empty"
truncate -s 300M "$T/o/sparse"
printf end >>"$T/o/sparse"
# hole FILE: where the first hole is.
hole() { python3 -c 'import os, sys; f = os.open(sys.argv[1], os.O_RDONLY); print(os.lseek(f, 0, os.SEEK_HOLE))' "$1"; }
used() { df --output=used -B1024 "$T/xfs" | tail -n 1; }

sync -f "$T/xfs"
empty=$(used)
clone --store "$T/xfs/store" "$T/o" "$T/c"
ls -l "$T/c" >"$T/.out"
is "$(field armoured "$T/c")" true "a store on XFS is armoured"
store=$T/xfs/store/tree
for f in big odd one sparse; do
	is "$(hole "$store/$f")" "$(stat -c %s "$T/o/$f")" "the placeholder of $f has no hole"
	is "$(stat -c %s "$store/$f")" "$(stat -c %s "$T/o/$f")" "and its size"
done
# A file's last block is shared as well: truncating a clone to its size would make it private, and wait for that.
for f in odd one; do
	ok "$f has no block of its own" python3 -c '
import subprocess, sys
out = subprocess.run(["filefrag", "-v", sys.argv[1]], capture_output=True, text=True, check=True).stdout
extents = [l for l in out.splitlines() if l.lstrip()[:1].isdigit()]
assert extents and all("shared" in l for l in extents), out' "$store/$f"
done
sync -f "$T/xfs"
before=$(used)
# One cold extent of 64 MiB is shared by all of them; XFS keeps as much again behind it for some minutes.
ok "placeholders of 320 MB take next to no room" test $((before - empty)) -lt 160000
ok "content is right" cmp "$T/o/big" "$T/c/big"
ok "of a size that is no multiple of a block" cmp "$T/o/odd" "$T/c/odd"
ok "of one byte" cmp "$T/o/one" "$T/c/one"
ok "cp that looks for holes" cp --sparse=auto --reflink=never "$T/c/big" "$T/copy"
ok "copies what is there" cmp "$T/o/big" "$T/copy"
"$SLUICE" evict "$T/c/big" >"$T/.out"
is "$(state_of "$T/c/big")" cold "evicted"
is "$(hole "$store/big")" 20000000 "the file is armoured again"
sync -f "$T/xfs"
ok "and its space is given back" test "$(used)" -lt $((before + 10000))
ok "its content comes again" cmp "$T/o/big" "$T/c/big"
"$SLUICE" stop "$T/c"
"$SLUICE" start "$T/c" >"$T/.out"
is "$(state_of "$T/c/big")" full "after a restart it is here"
ok "and right" cmp "$T/o/big" "$T/c/big"
ok "verify agrees" "$SLUICE" verify "$T/c"
"$SLUICE" remove "$T/c"
done_testing
