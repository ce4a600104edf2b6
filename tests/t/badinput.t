#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# What is refused, and how: if this fails, a mistake or a broken peer gives no clear message, leaves something half made behind, or harms what is there.
. "$(dirname "$0")/lib.sh"
. "$TOOLS/clone.sh"

o=$T/o c=$T/c s=$T/store
mkdir "$o"
echo content >"$o/f"

# refused DESCRIPTION REGEX ARGUMENT...: sluice fails with status 1, says why, and leaves nothing: no $c, no $s, no mount, no entry.
refused() {
	local d=$1 re=$2 left=
	shift 2
	[ "$1" = clone ] && [ -n "$NATIVE" ] && shift && set -- clone --gate "$GATE" "$@"
	timeout 100 "${run[@]}" "$SLUICE" "$@" >"$T/out" 2>"$T/err" </dev/null
	is $? 1 "$d: status 1"
	like "$(<"$T/err")" "$re" "$d: says why"
	[ -e "$c" ] && left+=" $c"
	[ -e "$s" ] && left+=" $s"
	left+=$(_mounts_below "$T" | grep -v "^$T/keep")
	[ "$("$SLUICE" list --json)" = "$listed" ] || left+=" an entry in the list"
	[ -z "$(ls -A "$XDG_STATE_HOME/sluice/data" 2>/dev/null)" ] || left+=" a store"
	is "$left" "" "$d: leaves nothing"
}
run=() listed="[]"

# ---- origins that are none ----

refused "an origin that is not there" "$T/none.*No such file" clone "$T/none" "$c"
refused "an origin that is a file" "not a directory|Not a directory" clone "$o/f" "$c"
refused "a socket that is not there" "sluice serve.* running" clone "unix:$T/none" "$c"
refused "a host that is an option" "not a host name" clone -- "-oProxyCommand=touch:$T/evil" "$c"
nok "which is not run" test -e "$T/evil"
refused "tcp without saying so" "encrypted" clone tcp:localhost:1 "$c"
refused "no machine" "expected vsock:CID:PORT" clone vsock:nas:5000 "$c"
refused "no port of a machine" "expected vsock:CID:PORT" clone vsock:2:0 "$c"
refused "a device that is a file" "not a character device" clone "dev:/dev/../$o/f" "$c"
refused "no command" "needs a command" clone exec: "$c"
refused "a command that fails" "the peer (ended|does not)" clone --timeout 2s exec:false "$c"
refused "a command that is not there" "the peer (ended|does not)" clone --timeout 2s "exec:$T/none" "$c"
refused "a peer that says what it is told" "the peer (ended|does not)" clone --timeout 2s exec:cat "$c"
refused "a peer that says hello" "the peer (ended|does not)" clone --timeout 2s "exec:echo hello" "$c"
refused "a peer that says nonsense" "the peer (ended|does not)" clone --timeout 2s "exec:head -c 100000 /dev/urandom" "$c"
refused "a peer that says nothing" "the peer (ended|does not)" clone --timeout 1s "exec:exec sleep 12345.$$" "$c"
wait_for 30 eval "! pgrep -f '^sleep 12345[.]$$\$'"
is $? 0 "and does not live on"

# A peer that answers INIT with a version of its own.
cat >"$T/peer.py" <<'EOP'
import struct, sys
major, minor = int(sys.argv[1]), int(sys.argv[2])
i, o = sys.stdin.buffer, sys.stdout.buffer
while True:
    head = i.read(40)
    if len(head) < 40:
        break
    n, op, unique = struct.unpack("<IIQ", head[:16])
    i.read(n - 40)
    body = struct.pack("<II", major, minor) + bytes(56) if op == 26 else b""
    o.write(struct.pack("<IiQ", 16 + len(body), 0 if op == 26 else -38, unique) + body)
    o.flush()
EOP
refused "a peer of protocol 6" "version|protocol" clone --timeout 2s "exec:python3 $T/peer.py 6 40" "$c"
refused "a peer of protocol 7.5" "version|protocol" clone --timeout 2s "exec:python3 $T/peer.py 7 5" "$c"
refused "a peer of protocol 8" "version|protocol" clone --timeout 2s "exec:python3 $T/peer.py 8 0" "$c"

# Sockets of something else.
cat >"$T/listen.py" <<'EOP'
import os, socket, sys, time
s = socket.socket(socket.AF_UNIX)
s.bind(sys.argv[1])
s.listen()
open(sys.argv[1] + ".ready", "w").close()
kept = []
while True:
    c, _ = s.accept()
    if sys.argv[2] == "close":
        c.close()
    else:
        if sys.argv[2] == "talk":
            c.sendall(b"SSH-2.0-OpenSSH_9.2p1\r\n" * 10)
        kept.append(c)
EOP
for how in close talk silent; do
	background python3 "$T/listen.py" "$T/s-$how" $how
	wait_for 30 test -e "$T/s-$how.ready"
	refused "a socket of something else ($how)" "the peer (ended|does not)" clone --timeout 1s "unix:$T/s-$how" "$c"
done

# ---- places ----

mkdir "$T/full" "$T/full/sub" "$T/p"
echo precious >"$T/full/f"
refused "a directory that is not empty" "not empty" clone "$o" "$T/full"
is "$(cat "$T/full/f")" precious "which stays as it is"
refused "a file" "not a directory" clone "$o" "$T/full/f"
refused "a parent that is not there" "No such file" clone "$o" "$T/none/c"
mkdir "$s"
refuse_inside=$("$SLUICE" clone --store "$s" "$o" "$s/c" 2>&1)
is "$? $(ls -A "$s")" "1 " "a directory inside the store: status 1, and nothing is made"
like "$refuse_inside" "inside" "a directory inside the store: says why"
rmdir "$s"
refused "a store inside the directory" "inside" clone --store "$c/store" "$o" "$c"
refused "a directory inside the origin" "inside" clone "$o" "$o/c"
refused "a directory around the origin" "inside|not empty" clone "$o" "$T"
refused "a store inside the origin" "inside" clone --store "$o/store" "$o" "$c"
refused "a store where something is" "not empty|store" clone --store "$T/full" "$o" "$c"
is "$(cat "$T/full/f") $(ls "$o")" "precious f" "all of which stay as they are"
mkdir "$T/ro"
chmod 555 "$T/ro"
if [ "$(id -u)" != 0 ]; then
	refused "a directory that cannot be made" "Permission denied" clone "$o" "$T/ro/c"
	refused "a store that cannot be made" "Permission denied" clone --store "$T/ro/s" "$o" "$c"
fi

# ---- one that is there already ----

clone "$o" "$T/keep"
listed=$("$SLUICE" list --json)
store=$(store_of "$T/keep")
"$SLUICE" status "$T/keep" >"$T/.out"
hidden=$XDG_STATE_HOME/sluice/data
refuse_beside() { # with a clone in the list
	local d=$1 re=$2
	shift 2
	"$SLUICE" "$@" >"$T/out" 2>"$T/err" </dev/null
	is $? 1 "$d: status 1"
	like "$(<"$T/err")" "$re" "$d: says why"
	is "$("$SLUICE" list --json) $(ls -A "$hidden" | wc -l) $(cat "$T/keep/f") $([ -e "$c" ] && echo made)" "$listed 1 content " "$d: harms nothing"
}
refuse_beside "a directory where a clone is" "mounted|not empty" clone "$o" "$T/keep"
refuse_beside "the store of another clone" "store" clone --store "$store" "$o" "$c"
refuse_beside "start of what runs" "running already" start "$T/keep"
refuse_beside "start of a store in use" "running already|in use" start "$store"
refuse_beside "remove of something inside a clone" "inside" remove "$T/keep/f"
refuse_beside "status of what is no clone" "no clone" status "$T/full"
refuse_beside "stop of what is no clone" "no clone" stop "$T/full"
refuse_beside "evict of what is no clone" "no clone" evict "$T/full/f"
exec 9<"$T/keep/f"
refuse_beside "stop while a file is open" "in use" stop "$T/keep"
exec 9<&-

# ---- stores ----

cp "$store/sluice.json" "$T/json"
wait_for 30 "$SLUICE" stop "$T/keep"
like "$("$SLUICE" start "$T/keep" 2>&1)" "is up" "it starts"
"$SLUICE" stop "$T/keep"
broken() { # DESCRIPTION REGEX
	local out
	out=$("$SLUICE" start "$store" 2>&1)
	is $? 1 "$1: start fails"
	like "$out" "$2" "$1: says why"
	nok "$1: nothing is mounted" mounted "$T/keep"
	cp "$T/json" "$store/sluice.json"
}
sed 's/"format": *1/"format": 99/' "$T/json" >"$store/sluice.json"
broken "a store of a newer version" "newer version"
echo '{"format": 1, "ori' >"$store/sluice.json"
broken "a configuration that is cut off" "damaged"
echo '[]' >"$store/sluice.json"
broken "a configuration that is none" "damaged"
echo '{"format": 1}' >"$store/sluice.json"
broken "a configuration without fields" "damaged"
part=tree
[ -z "$NATIVE" ] || part=image
mv "$store/$part" "$store/away"
broken "a store without its $part" "$part"
mv "$store/away" "$store/$part"
touch "$T/keep/in-the-way"
broken "a mount point that is not empty" "not empty"
rm "$T/keep/in-the-way"
mv "$T/keep" "$T/keep.away"
broken "a mount point that is gone" "No such file"
mv "$T/keep.away" "$T/keep"
ok "after all that it still starts" "$SLUICE" start "$store"
is "$(cat "$T/keep/f")" content "with what was in it"
"$SLUICE" remove "$T/keep"

# ---- records ----

mkdir "$o/d"
for f in garbage newer short long gone fine d/below; do head -c 100000 /dev/urandom >"$o/$f"; done
mkdir "$o/dir"
echo x >"$o/dir/f"
clone "$o" "$T/keep"
ok "all is well at first" same_tree "$o" "$T/keep"
store=$(store_of "$T/keep")
tree=$store/tree
# Root sees the records of a native clone, and may change them. Nothing more is written to them after a restart.
wait_for 30 "$SLUICE" stop "$T/keep"
if [ -n "$NATIVE" ]; then tree=$T/keep && "$SLUICE" start "$T/keep" >"$T/.out"; fi
name=user.sluice
getfattr -n trusted.sluice "$tree" >"$T/.out" 2>&1 && name=trusted.sluice
record() { setfattr -n $name -v "0x$2" "$tree/$1"; }
record garbage "01$(head -c 63 /dev/urandom | od -An -tx1 | tr -d ' \n')"
record newer "63$(head -c 95 /dev/urandom | od -An -tx1 | tr -d ' \n')"
record short 0102
record long "01$(head -c 300 /dev/zero | od -v -An -tx1 | tr -d ' \n')"
record dir "01$(head -c 63 /dev/urandom | od -An -tx1 | tr -d ' \n')"
[ -z "$NATIVE" ] || "$SLUICE" stop "$T/keep"
ok "a clone with damaged records starts" "$SLUICE" start "$T/keep"
damaged=(garbage newer short long)
[ -n "$NATIVE" ] || damaged+=(dir) # native: nobody is asked about directories
for f in "${damaged[@]}"; do
	like "$(cat "$T/keep/$f" 2>&1)" "Input/output error" "$f: access is refused with EIO"
done
for f in fine d/below f; do
	ok "$f: is not concerned" cmp "$o/$f" "$T/keep/$f"
done
is "$(ls "$T/keep" 2>/dev/null | sort | tr '\n' ' ')" "d dir f fine garbage gone long newer short " "all names are still shown"
if [ -n "$NATIVE" ]; then # by inode, which is what a native clone knows
	for f in "${damaged[@]}"; do
		like "$(<"$store/log")" "inode $(stat -c %i "$T/keep/$f") of the store" "the log names $f"
	done
else
	like "$(<"$store/log")" "'garbage'.*damaged" "the log names a damaged one"
	like "$(<"$store/log")" "'newer'.*newer version" "and one of a newer version"
fi
is "$(field damaged "$T/keep")" 5 "status counts them"
ok "a damaged one can be deleted" rm -f "$T/keep/garbage"
nok "and is gone" test -e "$T/keep/garbage"
"$SLUICE" remove --discard "$T/keep"
listed="[]"
rm -r "$o/dir" "$o/d"

# ---- machines ----

if [ -n "$NATIVE" ]; then
	: # its store is in an image, and takes nothing of the host's filesystem but room
elif [ "$(id -u)" = 0 ]; then
	run=(unshare -m sh -c 'mount -t tmpfs none /dev && exec "$@"' sh)
	refused "no /dev/fuse" "no /dev/fuse" clone "$o" "$c"
	run=()
	mkdir "$T/keep.fs"
	mount -t ramfs none "$T/keep.fs" || bail "mount"
	refused "a store where there are no extended attributes" "extended attributes" clone --store "$T/keep.fs/s" "$o" "$c"
	is "$(ls -A "$T/keep.fs")" "" "and nothing is left there"
	umount "$T/keep.fs"
	mount -t tmpfs -o size=64k,nr_inodes=4 none "$T/keep.fs" || bail "mount"
	refused "a store for which there is no room" "No space left" clone --store "$T/keep.fs/s" "$o" "$c"
	is "$(ls -A "$T/keep.fs")" "" "and nothing is left there either"
	umount "$T/keep.fs"
else
	run=(env PATH=/nowhere)
	refused "no fusermount3" "fusermount3 is not installed" clone "$o" "$c"
	run=()
	skip_root "machines without /dev/fuse, attributes or room"
fi

# ---- command lines ----

for args in "frobnicate" "" "clone" "clone $o" "clone $o $c $c" "clone --frob $o $c" "clone --limit many $o $c" "clone --timeout 0 $o $c" \
	"clone --timeout soon $o $c" "clone --gate iron $o $c" "clone --store" "start" "start a b" "stop" "remove" "hydrate" "pin" "unpin" "verify" \
	"list x" "doctor x" "status --frob" "evict --older-than"; do
	# shellcheck disable=SC2086
	"$SLUICE" $args >"$T/out" 2>"$T/err" </dev/null
	status=$?
	[ "$status" = 2 ] && [ -s "$T/err" ] && [ ! -s "$T/out" ]
	is "$? $status" "0 2" "'sluice ${args//$T/}' is a usage error, said on standard error"
done
is "$(ls -A "$XDG_STATE_HOME/sluice/clones" "$XDG_STATE_HOME/sluice/data" | grep -cv '^$')" 2 "nothing is left in the user's state"

also_as_user
done_testing
