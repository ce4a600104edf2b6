#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
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
nok "what the origin adds later is not seen" test -e "$c/late"
rm "$o/late"
ok "all content is the origin's" same_tree --owners --xattrs --no-dir-mtime "$o" "$c"
"$SLUICE" evict "$c" >"$T/.out"
ok "and again, after all of it was evicted" same_tree --owners --xattrs --no-dir-mtime "$o" "$c"
"$SLUICE" remove "$c"
is "$? $([ -e "$c" ] && echo there) $(losetup -n -O BACK-FILE -l | grep -c "^$T")" "0  0" "remove leaves no directory and no loop device"

# ---- names, interrupted ----

# An origin that stops talking after so many bytes, as long as there is a limit.
cat >"$T/talk" <<'EOS'
#!/bin/bash
[ -e "$1/limit" ] || exec "$2" serve --stdio "$3"
"$2" serve --stdio "$3" | { head -c "$(<"$1/limit")"; touch "$1/stopped"; exec sleep 12345; }
EOS
chmod +x "$T/talk"
mkdir "$T/names"
python3 - "$T/names" <<'EOP'
import os, sys
for i in range(400):
    d = f"{sys.argv[1]}/{i}"
    os.mkdir(d)
    for j in range(20):
        os.close(os.open(f"{d}/{j}", os.O_CREAT | os.O_WRONLY))
EOP
# What runs of this clone: not its exporter.
members() {
	local p
	for p in /proc/[0-9]*; do
		[ "$(readlink "$p/exe" 2>/dev/null)" = "$SLUICE" ] && grep -qzxF "T=$T" "$p/environ" 2>/dev/null &&
			! grep -qzxF serve "$p/cmdline" 2>/dev/null && echo "${p#/proc/}"
	done
}
nobody() { [ -z "$(members)" ]; }
"$SLUICE" clone --gate fanotify --no-start --store "$T/st" "exec:$T/talk $T $SLUICE $T/names" "$c" >"$T/.out"
at_exit "$SLUICE" remove --force --discard "$c"
for limit in 200000 500000; do
	echo "$limit" >"$T/limit"
	rm -f "$T/stopped"
	"$SLUICE" start "$c" >"$T/.out" 2>&1 &
	wait_for 60 test -e "$T/stopped"
	nok "while names are missing nothing is shown ($limit bytes came)" mounted "$c"
	members | xargs kill -STOP
	members | xargs kill -9
	wait
	wait_for 30 nobody
done
rm "$T/limit"
pkill -f '^sleep 12345$' -P "$(pgrep -d, -f "^/bin/bash $T/talk")" 2>"$T/.out"
ok "after service and keeper died twice while they made names, it starts" "$SLUICE" start "$c"
ok "with all names" same_attributes "$T/names" "$c"
n=$(field listings "$c")
ok "of which many were there already ($n of 401 listings)" test "$n" -lt 350 -a "$n" -gt 10
"$SLUICE" remove --discard "$c"
