#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# `sluice serve` on the command line: if this fails, an export starts where it should refuse, or cannot be relied on to start and end.
# tsan: yes
. "$(dirname "$0")/lib.sh"

mkdir "$T/tree" && echo hello >"$T/tree/file"
sock=$T/s

# status N DESCRIPTION ARGUMENT...: ends with exactly that status, says something on stderr, nothing on stdout.
status() {
	local want=$1 d=$2
	shift 2
	timeout 30 "$SLUICE" serve "$@" >"$T/out" 2>"$T/err" </dev/null
	is $? "$want" "$d: status $want"
	[ -s "$T/err" ] && [ ! -s "$T/out" ]
	is $? 0 "$d: says why, on standard error only"
}

# start ARGUMENT...: in the background; returns when it is ready or gone. Its line is in $line, its number in $BG.
start() {
	: >"$T/log"
	background "$SLUICE" serve "$@" >"$T/log" 2>"$T/errlog"
	wait_for 30 eval "grep -q . '$T/log' || gone $BG"
	line=$(head -n 1 "$T/log")
}

# stop SIGNAL: and its status is in $code.
stop() {
	kill "-$1" "$BG"
	wait "$BG"
	code=$?
}

# hello: what a client of FUSE 7.41 says first (INIT).
hello() { printf '\x38\0\0\0\x1a\0\0\0\x02\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x07\0\0\0\x29\0\0\0\0\0\x10\0\0\0\0\0'; }

help=$("$SLUICE" serve --help)
is $? 0 "--help succeeds"
like "$help" "Example:" "--help has an example"
like "$help" "same user and root are accepted" "--help says who may connect"

status 2 "no arguments"
status 2 "no tree" --unix "$sock"
status 2 "nowhere to listen" "$T/tree"
status 2 "two places" --stdio --unix "$sock" "$T/tree"
status 2 "two trees" --unix "$sock" "$T/tree" "$T"
status 2 "an unknown option" --frobnicate "$T/tree"
status 2 "an option without its value" "$T/tree" --unix
status 2 "no number of threads" --stdio --threads many "$T/tree"
status 2 "no threads" --stdio --threads 0 "$T/tree"
status 2 "too many threads" --stdio --threads 65 "$T/tree"
status 2 "--json with --stdio" --stdio --json "$T/tree"
status 2 "two kinds of ports" --listen 127.0.0.1:0 --insecure-plain --vsock 0 --from 2 "$T/tree"
status 2 "a vsock port that is none" --vsock 4294967295 --from 2 "$T/tree"
status 2 "a machine that is none" --vsock 0 --from 0 "$T/tree"
status 2 "--from without --vsock" --unix "$sock" --from 2 "$T/tree"
status 2 "--vsock for all users of this machine" --vsock 0 --from 1 "$T/tree"
like "$(<"$T/err")" "unix" "and names --unix instead"
status 2 "--vsock alone" --vsock 0 "$T/tree"
like "$(<"$T/err")" "--from" "and names --from instead"
status 2 "--listen alone" --listen 127.0.0.1:0 "$T/tree"
like "$(<"$T/err")" "ssh" "and names ssh instead"

status 1 "a tree that is not there" --stdio "$T/none"
like "$(<"$T/err")" "$T/none" "and names it"
status 1 "a tree that is a file" --stdio "$T/tree/file"
status 1 "a socket in no directory" --unix "$T/none/s" "$T/tree"
status 1 "a port that is none" --listen 127.0.0.1:http-or-so --insecure-plain "$T/tree"
status 1 "no port" --listen 127.0.0.1 --insecure-plain "$T/tree"
echo precious >"$T/precious"
status 1 "a socket where a file is" --unix "$T/precious" "$T/tree"
is "$(<"$T/precious")" precious "and leaves the file alone"

# ---- a unix socket ----

start --unix "$sock" "$T/tree"
is "$line" "serving $T/tree on unix:$sock" "it says what it serves and where"
is "$(stat -c %a "$sock")" 600 "the socket is for its owner only"
status 1 "a second one on the same socket" --unix "$sock" "$T/tree"
ok "the first one is not disturbed" test -S "$sock"
stop TERM
is "$code" 0 "SIGTERM ends it with status 0"
nok "and the socket is gone" test -e "$sock"

cd "$T" || bail "cd"
start --unix rel.sock --json tree
cd / || bail "cd"
is "$(python3 -c 'import json,sys; d=json.loads(sys.argv[1]); print(d["ready"], d["listen"], d["tree"])' "$line")" \
	"True unix:$T/rel.sock $T/tree" "--json prints one line with absolute paths"
is "$(wc -l <"$T/log")" 1 "and only that line"
stop INT
is "$code" 0 "SIGINT ends it with status 0"
nok "and the socket is gone" test -e "$T/rel.sock"

start --unix "$sock" "$T/tree"
stop KILL
ok "a killed one leaves its socket" test -S "$sock"
start --unix "$sock" "$T/tree"
is "$line" "serving $T/tree on unix:$sock" "the next one takes it over"
mv "$sock" "$sock.moved"
echo other >"$sock"
stop TERM
is "$(<"$sock")" other "what is not its socket is not removed"
rm -f "$sock" "$sock.moved"

# ---- who may connect ----

# hello_talk unix|tcp ADDRESS [UID]: connect, say INIT, print the first answer's error number, "closed" or "refused".
cat >"$T/talk.py" <<'EOF'
import os, socket, struct, sys
if len(sys.argv) > 3:
    os.setgroups([])
    os.setuid(int(sys.argv[3]))
kind, address = sys.argv[1:3]
if kind == "unix":
    s = socket.socket(socket.AF_UNIX)
else:
    s = socket.socket()
    host, port = address.rsplit(":", 1)
    address = (host, int(port))
s.settimeout(30)
try:
    s.connect(address)
    s.sendall(sys.stdin.buffer.read())
    b = b""
    while len(b) < 16:
        k = s.recv(65536)
        if not k:
            print("closed")
            sys.exit()
        b += k
    print(struct.unpack("<IiQ", b[:16])[1])
except OSError as e:
    print("closed" if isinstance(e, ConnectionResetError) or isinstance(e, BrokenPipeError) else "refused")
EOF
chmod 644 "$T/talk.py"
hello_talk() { hello | python3 "$T/talk.py" "$@"; }

start --unix "$sock" "$T/tree"
is "$(hello_talk unix "$sock")" 0 "its own user may connect"
is "$(head -c 2000 /dev/zero | python3 "$T/talk.py" unix "$sock")" closed "nonsense ends a connection"
is "$(hello_talk unix "$sock")" 0 "but no other connection"
if [ "$(id -u)" = 0 ]; then
	is "$(hello_talk unix "$sock" 65534)" refused "another user cannot reach it"
	chmod 666 "$sock"
	is "$(hello_talk unix "$sock" 65534)" closed "and is not served where the mode was changed"
else
	skip_root "connecting as another user"
fi

# 64 at a time; the next is refused, and served once there is room.
cat >"$T/many.py" <<'EOF'
import socket, sys, time
hello = sys.stdin.buffer.read()
def connect():
    s = socket.socket(socket.AF_UNIX)
    s.settimeout(30)
    s.connect(sys.argv[1])
    try:
        s.sendall(hello)
        return s if s.recv(65536) else None
    except OSError:
        return None
end = time.monotonic() + 30
def until(want):
    while time.monotonic() < end:
        s = connect()
        if bool(s) == want:
            return s
    sys.exit("never")
open_ = [until(True) for _ in range(64)]
print("64", connect() is None)
open_.pop().close()
print(until(True) is not None)
EOF
is "$(hello | python3 "$T/many.py" "$sock" | tr '\n' ' ')" "64 True True " "64 connections are served, no more"

# A client that does not go away does not keep it from ending.
python3 - "$sock" "$T/connected" <<'EOF' &
import socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
open(sys.argv[2], "w").close()
s.settimeout(60)
try:
    s.recv(1)
except ConnectionResetError:
    pass  # it ended before it took the connection
EOF
client=$!
wait_for 30 test -e "$T/connected"
stop TERM
is "$code" 0 "SIGTERM with a client connected: status 0"
ok "and the client is let go" wait "$client"

# ---- TCP ----

start --listen 127.0.0.1:0 --insecure-plain --json "$T/tree"
address=$(python3 -c 'import json,sys; print(json.loads(sys.argv[1])["listen"])' "$line")
like "$address" '^tcp:127\.0\.0\.1:[1-9][0-9]*$' "the port that was chosen is printed"
is "$(hello_talk tcp "${address#tcp:}")" 0 "and answers"
stop TERM
is "$code" 0 "SIGTERM ends it with status 0"

# ---- standard input and output ----

hello | timeout 30 "$SLUICE" serve --stdio "$T/tree" >"$T/answer" 2>"$T/err"
is "${PIPESTATUS[1]}" 0 "--stdio: the end of input is a clean end"
is "$(head -c 8 "$T/answer" | od -An -tx1 | tr -d ' ')" 5000000000000000 "and standard output has the answer to INIT"
is "$(stat -c %s "$T/answer")" 80 "and nothing else"
is "$(<"$T/err")" "" "and standard error nothing"
timeout 30 "$SLUICE" serve --stdio "$T/tree" </dev/null >"$T/answer" 2>"$T/err"
is $? 0 "--stdio: no request at all is a clean end"
hello | head -c 20 | timeout 30 "$SLUICE" serve --stdio "$T/tree" >"$T/answer" 2>"$T/err"
is "${PIPESTATUS[2]}" 1 "--stdio: an end inside a message is not"
mkfifo "$T/in" "$T/outp"
"$SLUICE" serve --stdio "$T/tree" <"$T/in" >"$T/outp" 2>"$T/err" &
BG=$!
_pids+=("$BG")
exec 8>"$T/in" 9<"$T/outp"
hello >&8
is "$(head -c 80 <&9 | wc -c)" 80 "--stdio through pipes answers"
stop TERM
is "$code" 0 "--stdio: SIGTERM while it waits for requests: status 0"
exec 8>&- 9<&-

# A name that is no UTF-8 still gives JSON.
bad=$T/$'b\xffd'
mkdir "$bad"
start --unix "$sock" --json "$bad"
ok "--json is JSON whatever the tree is called" python3 -c 'import json,sys; json.loads(sys.argv[1])' "$line"
stop TERM

done_testing
