#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Exports over vsock: if this fails, another machine gets in that was not meant to, or trees, changes and broken connections are not over a
# vsock what they are over a unix socket. Between this machine and itself; kernel-gates.t runs it where the kernel can do that.
. "$(dirname "$0")/lib.sh"
. "$TOOLS/clone.sh"
need inotifywait

# A number that can be bound is one that there is a way to.
python3 -c 'import socket; socket.socket(40, socket.SOCK_STREAM).bind((1, 0xffffffff))' 2>/dev/null ||
	skip_all "this kernel has no vsock loopback"
alone=$(python3 -c '
import fcntl, struct
try:
    print(struct.unpack("I", fcntl.ioctl(open("/dev/vsock"), 0x7b9, bytes(4)))[0] in (1, 0xffffffff))
except OSError:
    print()')

o=$T/o m=$T/m c=$T/c
make_tree "$o" 60
head -c 3000000 /dev/urandom >"$o/large"
mkdir "$o/apart" && head -c 300000 /dev/urandom >"$o/apart/later"

# vserve PORT [OPTION...]: an export of $o; what it says first is in $line, its number in $BG.
vserve() {
	: >"$T/log"
	background "$SLUICE" serve --vsock "$@" "$o" >"$T/log" 2>"$T/errlog"
	wait_for 60 eval "grep -q . '$T/log' || gone $BG"
	line=$(head -n 1 "$T/log")
}
# stop SIGNAL: its status is in $code.
stop() {
	kill "-$1" "$BG"
	wait "$BG" 2>/dev/null
	code=$?
}
# listen DIR: what watchers in it hear goes to $T/heard.
listen() {
	: >"$T/heard"
	background inotifywait -m -r --format '%w%f %e' -o "$T/heard" "$1" 2>"$T/watching"
	watcher=$BG
	wait_for 60 grep -q established "$T/watching"
}
# heard TEXT DESCRIPTION
heard() {
	wait_for 60 grep -qxF -- "$1" "$T/heard"
	is $? 0 "$2" || diag "$(<"$T/heard")"
}

ok "doctor finds it" eval '"$SLUICE" doctor --json | python3 -c "import json, sys; sys.exit(not [c for c in json.load(sys.stdin)[\"checks\"] if c[\"name\"] == \"vsock\" and c[\"ok\"]])"'

# ---- who may connect ----

vserve 0 --from 3
like "$line" "on vsock:2:[1-9][0-9]*$" "it says how a guest reaches it"
port=${line##*:}
nok "a machine that was not named is refused" "$SLUICE" clone --timeout 2s "vsock:1:$port" "$c"
ok "and the exporter says so" grep -q "refused a connection of machine 1: only machine 3" "$T/errlog"
nok "no mount either" "$SLUICE" mount --timeout 2s "vsock:1:$port" "$m"
like "$(<"$T/.out")" "no export answers" "and says so"
nok "nothing is left behind" test -e "$m" -o -e "$c"
nok "the port is taken" timeout 30 "$SLUICE" serve --vsock "$port" --from 3 "$o"
like "$(<"$T/.out")" "vsock port $port.*in use" "and says so"
stop TERM
is "$code" 0 "SIGTERM ends it with status 0"
nok "nobody listens: refused at once" "$SLUICE" mount "vsock:1:$port" "$m"
like "$(<"$T/.out")" "sluice serve --vsock' running" "and says so"
if [ "$(id -u)" = 0 ]; then
	nok "a port below 1024 is for root" as_user timeout 30 "$SLUICE" serve --vsock 1000 --from 3 "$o"
	like "$(<"$T/.out")" "for root" "and says so"
else
	skip_root "a port below 1024"
fi
if [ "$alone" = True ]; then
	nok "a machine that is not there" "$SLUICE" mount vsock:77:5000 "$m"
	like "$(<"$T/.out")" "no such machine" "and says so"
else
	skip "there are other machines here: which ones, a test does not try"
fi

# ---- mount ----

vserve 0 --from 1 --insecure-plain --rw
like "$line" "on vsock:1:[1-9][0-9]*$" "for this machine itself"
port=${line##*:}
background "$SLUICE" mount "vsock:1:$port" "$m" >"$T/mount.out" 2>"$T/mount.err"
mount=$BG server=${_pids[-2]}
wait_for 60 grep -q shows "$T/mount.out"
ok "a mount is the tree, byte for byte" same_tree "$o" "$m"
listen "$m"
mkdir "$o/new" && echo text >"$o/new/file"
heard "$m/new CREATE,ISDIR" "a watcher hears of what others make"
ok "and it is there" cmp "$o/new/file" "$m/new/file"
mv "$o/new" "$o/newer"
heard "$m/newer MOVED_TO,ISDIR" "and of what they rename"
cp -r "$m/deep" "$m/copied" && head -c 700000 /dev/urandom >"$m/written"
ok "what is written there is in the tree" eval 'same_tree --no-mtime --no-dir-mtime "$o/deep" "$o/copied" && cmp "$o/written" "$m/written"'
kill "$watcher"
exec 9<"$m/large"
BG=$server
stop KILL
wait "$mount"
is $? 1 "the exporter is killed: the mount ends, and says so in its status"
like "$(<"$T/mount.err")" "connection.*broke" "and in words"
nok "and is gone" mounted "$m"
exec 9<&-

# ---- clone ----

vserve "$port" --from 1 --insecure-plain
server=$BG
clone --timeout 60s "vsock:1:$port" "$c"
ok "the same port again: a clone is the tree, byte for byte" same_tree "$o" "$c"
"$SLUICE" evict "$c" >"$T/.out"
listen "$c"
dd if="$c/large" iflag=direct bs=1M status=none >"$T/copy" & # the kernel may have it still
reader=$!
_pids+=("$reader")
wait_for 60 eval '[ "$(field fetches "$c")" -gt 0 ] || gone $reader'
BG=$server
stop KILL
rm "$o/sizes/65537"
echo more >"$o/more"
dd if="$c/apart/later" iflag=direct bs=1M status=none >"$T/later" & # not read ahead with what is beside it
waits=$!
_pids+=("$waits")
wait_for 60 eval '[ "$(field waiting "$c")" -gt 0 ] && [ "$(field connected "$c")" = false ]'
is $? 0 "the exporter is killed: accesses wait"
vserve "$port" --from 1 --insecure-plain
wait "$reader" && wait "$waits"
is $? 0 "it is back: they go on"
ok "and are right" eval 'cmp "$o/large" "$T/copy" && cmp "$o/apart/later" "$T/later"'
heard "$c/sizes/65537 DELETE" "a watcher hears of what was removed meanwhile"
heard "$c/more CREATE" "and of what was made"
ok "the clone is the tree again" same_tree "$o" "$c"
ok "verify says so" "$SLUICE" verify "$c"
"$SLUICE" remove --discard "$c" >"$T/.out" 2>&1
stop TERM
is "$code" 0 "the exporter ends with status 0"
done_testing
