#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# long: yes
# A clone shows its origin: if this fails, a name, an attribute or a byte is not what the origin has, or more travels than is looked at.
. "$(dirname "$0")/lib.sh"
. "$TOOLS/clone.sh"

mkdir "$T/tree" "$T/outside"
make_tree "$T/tree/base" || bail "make_tree"
python3 "$TOOLS/oddtree.py" "$T/tree/odd" "$T/outside" || bail "oddtree.py"
mv "$T/tree/odd/deep" "$T/deep"
# The links of a native clone are real ones: names outside the tree cannot count.
[ -z "$NATIVE" ] || rm "$T/outside/two"
origin_before=$(checksum "$T/tree")
# Modes that keep their owner out keep a comparison by content out as well.
unreadable() { find "$1" -type f ! -perm -u+r -print -quit; }
[ "$(id -u)" = 0 ] || is "$(unreadable "$T/tree")" "" "the comparison can read everything"

serve s "$T/tree"
printf -v shown '%q serve --stdio %q' "$SLUICE" "$T/tree"
for origin in "$T/tree" "unix:$T/s" "exec:$shown"; do
	kind=${origin%%:*}
	[ "$kind" = "$origin" ] && kind=local
	c=$T/$kind
	out=$("$SLUICE" clone ${GATE:+--gate "$GATE"} "$origin" "$c") || bail "clone of $origin: $out"
	at_exit "$SLUICE" remove --force --discard "$c"
	like "$out" "is a clone of $kind|is a clone of $T" "$kind: clone says what it made"
	ok "$kind: it is mounted" mounted "$c"
	# Of a native clone all names are there from the beginning, where directories are not lazy.
	lazy=$(field lazy "$c")
	[ "$lazy" = false ] || is "$(field listings "$c") $(field files "$c") $(field directories "$c")" "0 0 1" "$kind: nothing has arrived yet"
	listings=$(field listings "$c")
	is "$(cd "$c" && ls -A | sort)" "$(cd "$T/tree" && ls -A | sort)" "$kind: ls shows the root"
	is $(($(field listings "$c") - listings))  $([ "$lazy" = true ] && echo 1 || echo 0) "$kind: and that took what it takes"
	ok "$kind: all names and attributes are the origin's" same_attributes "$T/tree" "$c"
	is "$(stat -c '%A %s' "$c/base/sizes/4096")" "$(stat -c '%A %s' "$T/tree/base/sizes/4096")" "$kind: stat"
	is "$(stat -c %i "$c/odd/hard/a")" "$(stat -c %i "$c/odd/hard/sub/c")" "$kind: hard links are one inode"
	[ -n "$NATIVE" ] || is "$(stat -c %h "$c/odd/hard/two")" 2 "$kind: a name outside the tree counts as a link"
	is "$(find "$c/odd/thousands" -type f | wc -l)" 5000 "$kind: a directory of 5,000 names"
	is "$(field fetched_bytes "$c") $(field fetches "$c")" "0 0" "$kind: no content has travelled for ls, find and stat"
	is "$(field files "$c")" "$(find "$T/tree" -type f -printf '%i\n' | sort -u | wc -l)" "$kind: status knows all files"
	if [ "$kind" != exec ] || [ "$(id -u)" = 0 ]; then
		ok "$kind: all content is the origin's" same_tree --owners --xattrs "$T/tree" "$c"
		[ "$kind" = unix ] || ok "$kind: and again from what is here" same_tree --xattrs "$T/tree" "$c"
		bytes=$(find "$T/tree" -type f -printf '%i %s\n' | sort -u | awk '{ s += $2 } END { print s }')
		is "$(field fetched_bytes "$c")" "$bytes" "$kind: every byte travelled once"
		is "$(field cold "$c") $(field partial "$c") $(field unpopulated "$c")" "0 0 0" "$kind: everything is here"
	fi
	n=$(stat -c %i "$c/base/links/hard1")
	is "$(stat -c %i "$c/base/links/hard2")" "$n" "$kind: hard links are still one inode"
	is "$(readlink "$c/base/links/absolute") $(readlink "$c/base/links/dangling")" "/etc/hostname no/such/thing" "$kind: targets of symlinks are as they were"
	ok "$kind: what is not there is not there" test ! -e "$c/base/nothing"
	ok "$kind: a symlink is followed inside the clone" cmp "$c/base/links/to-file" "$T/tree/base/sizes/4096"
	ok "$kind: remove" "$SLUICE" remove "$c"
	ok "$kind: leaves no directory" test ! -e "$c"
	is "$("$SLUICE" list --json)" "[]" "$kind: and no entry in the list"
done

# ---- special files are shown, not opened ----

clone "$T/tree" "$T/c"
is "$(stat -c %F "$T/c/odd/types/socket")" "socket" "a socket is shown as one"
is "$(stat -c %F "$T/c/odd/types/fifo")" "fifo" "a fifo is shown as one"
if [ "$(id -u)" = 0 ]; then
	is "$(stat -c '%F %t:%T' "$T/c/odd/types/null")" "character special file 1:3" "a device is shown with its number"
	nok "and cannot be opened" cat "$T/c/odd/types/null"
else
	skip_root "devices"
fi
"$SLUICE" remove "$T/c"

# ---- ranges ----

mkdir "$T/big"
python3 - "$T/big" <<'EOP' || bail "cannot make the large files"
import os, random, sys
rng = random.Random(1)
os.chdir(sys.argv[1])
with open("64M", "wb") as f:
    for _ in range(64):
        f.write(rng.randbytes(1 << 20))
with open("sparse", "wb") as f:
    f.write(rng.randbytes(10000))
    f.seek((4 << 30) + 17)
    f.write(rng.randbytes(1 << 20))
    f.seek(6 << 30)
    f.write(b"the end")
EOP
cat >"$T/parts.py" <<'EOP'
import os, sys
a, b = (os.open(p, os.O_RDONLY) for p in sys.argv[1:3])
for off, n in ((0, 20000), ((4 << 30) - 5, 100), ((4 << 30) + 17, 1 << 20), ((6 << 30) - 3, 50), (5 << 30, 4096), (1 << 40, 10)):
    x, y = os.pread(a, n, off), os.pread(b, n, off)
    assert x == y, (off, n, len(x), len(y))
def holes(fd):
    out, at, end = [], 0, os.fstat(fd).st_size
    while at < end:
        try:
            data = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:
            break
        at = os.lseek(fd, data, os.SEEK_HOLE)
        out.append((data, at))
    return out
if sys.argv[3:]:
    # A placeholder of a native clone has no holes. What was fetched of one has them where the origin has.
    for s, e in holes(a):
        assert any(x <= s and e <= y for x, y in holes(b)), (holes(a), holes(b))
else:
    assert holes(a) == holes(b), (holes(a), holes(b))
EOP
serve b "$T/big"
for origin in "$T/big" "unix:$T/b"; do
	kind=${origin%%:*}
	[ "$kind" = "$origin" ] && kind=local
	c=$T/c-$kind
	clone "$origin" "$c"
	piece() { dd if="$1" bs=4096 skip="$2" count=1 iflag=fullblock status=none | sha256sum; }
	is "$(piece "$c/64M" 8000)" "$(piece "$T/big/64M" 8000)" "$kind: 4 KiB from the middle of 64 MiB"
	got=$(field fetched_bytes "$c")
	ok "$kind: took less than 1 MiB of it ($got)" test "$got" -ge 4096 -a "$got" -lt 1048576
	is "$(state_of "$c/64M")" partial "$kind: the file is partial"
	is "$(piece "$c/64M" 16383)" "$(piece "$T/big/64M" 16383)" "$kind: its last 4 KiB"
	got=$(field fetched_bytes "$c")
	ok "$kind: took less than 2 MiB together ($got)" test "$got" -lt 2097152
	is "$(field bytes_here "$c")" "$got" "$kind: status says how much is here"
	is "$(stat -c %s "$c/sparse")" 6442450951 "$kind: a file over 4 GiB has its size"
	ok "$kind: its parts and holes are right" python3 "$T/parts.py" "$T/big/sparse" "$c/sparse" $NATIVE
	got=$(($(field fetched_bytes "$c") - got))
	ok "$kind: which took little of it ($got)" test "$got" -lt 20000000
	ok "$kind: the whole of the other" cmp "$T/big/64M" "$c/64M"
	is "$(state_of "$c/64M")" full "$kind: which is full now"
	"$SLUICE" remove "$c"
done

# ---- paths that no system call takes at once ----

cat >"$T/deep.py" <<'EOP'
import os, sys
def walk(path):
    fd, out = os.open(path, os.O_RDONLY), []
    while True:
        names = sorted(os.listdir(fd))
        f = os.open("file", os.O_RDONLY, dir_fd=fd) if "file" in names else None
        out.append((names, f and os.read(f, 100)))
        if f:
            os.close(f)
        below = [n for n in names if n != "file"]
        if not below:
            return out
        nfd = os.open(below[0], os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = nfd
a, b = walk(sys.argv[1]), walk(sys.argv[2])
assert len(a) == 21, len(a)
assert a == b
EOP
serve d "$T/deep"
for origin in "$T/deep" "unix:$T/d"; do
	if [ -n "$NATIVE" ]; then
		# Each record has the place in it, and there is no room for such a one.
		out=$("$SLUICE" clone --gate "$GATE" "$origin" "$T/c-deep" 2>&1)
		is "$? $(mounted "$T/c-deep" && echo mounted)" "1 " "${origin%$T*}${origin##*/}: 20 directories with names of 255 bytes each, one in the other: no clone"
		like "$out" "too long" "${origin%$T*}${origin##*/}: and it says why"
		continue
	fi
	clone "$origin" "$T/c-deep"
	ok "${origin%$T*}${origin##*/}: 20 directories with names of 255 bytes each, one in the other" python3 "$T/deep.py" "$T/deep" "$T/c-deep"
	"$SLUICE" remove "$T/c-deep"
done

is "$(checksum "$T/tree")" "$origin_before" "the origin is as it was"
also_as_user
done_testing
