#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Our client against a libfuse server: if this fails, our reading of the protocol is not the one that others have.
# tsan: yes
. "$(dirname "$0")/lib.sh"

hello=$BUILD/tests/libfuse_hello client=$BUILD/tests/wire_client relay=$BUILD/tests/relay
[ -x "$hello" ] || skip_all "libfuse3-dev is not installed"
ok "the client is built" test -x "$client" || bail "no client"

serve() { # a libfuse server for one connection
	rm -f "$T/s"
	"$hello" "$T/s" >"$T/server" 2>&1 </dev/null &
	server=$!
	_pids+=("$server")
	wait_for 20 test -S "$T/s"
}
ended() { # the server, as it does when its client has gone
	wait_for 60 gone "$server" || kill -9 "$server"
	wait "$server"
}
left="status 0, 0 lookups and 0 handles left"

serve
like "$("$client" "$T/s" flags)" "^flags 0x[0-9a-f]+ max_data [0-9]+$" "INIT is agreed on"
ended
is "$(cat "$T/server")" "$left" "the server saw the end"

serve
"$client" "$T/s" tree 2>&1 | sort -k 4 >"$T/tree"
like "$(cat "$T/tree")" "^100444 300000 [0-9a-f]{16} big
40755 0 0{16} dir
100444 0 [0-9a-f]{16} dir/empty
100444 7 [0-9a-f]{16} dir/inner
100444 14 [0-9a-f]{16} hello$" "lookup, readdir, open, read, release"
ended
is "$(cat "$T/server")" "$left" "everything was given back"

serve
is "$("$client" "$T/s" cat dir/inner)" "inside" "a file's content"
ended

serve
"$client" "$T/s" cat big >"$T/big"
ok "a file of many reads" python3 -c '
import sys
b = open(sys.argv[1], "rb").read()
assert b == bytes(i % 251 for i in range(300000)), len(b)' "$T/big"
ended

serve
nok "a name that is not there" "$client" "$T/s" cat nothing
like "$(cat "$T/.out")" "No such file" "says so"
ended
is "$(cat "$T/server")" "$left" "and leaves nothing"

# The same through a slow link, which tests the relay on the way.
serve
"$relay" --rtt-ms 20 --mbit 100 --listen "unix:$T/r" --connect "unix:$T/s" &
_pids+=($!)
wait_for 20 test -S "$T/r"
is "$("$client" "$T/r" tree 2>&1 | sort -k 4)" "$(cat "$T/tree")" "the same tree through a slow link"
ended
is "$(cat "$T/server")" "$left" "the end came through as well"

# A link that breaks in the middle of a file.
serve
"$relay" --cut-after 150000 --listen "unix:$T/r2" --connect "unix:$T/s" &
_pids+=($!)
wait_for 20 test -S "$T/r2"
nok "a broken link is an error" "$client" "$T/r2" cat big
like "$(tr -d "\0" <"$T/.out" | tail -c 100)" "not connected" "and says so"
ended

done_testing
