#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# long: yes
# The way to the origin: if this fails, a cut connection gives wrong content, an error too early or none at all, or ssh origins do not work.
. "$(dirname "$0")/lib.sh"
. "$TOOLS/clone.sh"

o=$T/o c=$T/c
make_tree "$o" 60
head -c 20000000 /dev/urandom >"$o/large"
head -c 300000 /dev/urandom >"$o/later"
serve_again() { # the export, at the same place
	serve s "$o"
	server=$BG
}
stop_server() {
	kill -9 "$server"
	wait "$server" 2>/dev/null
}
# fails_with REGEX SECONDS COMMAND...: fails, says so, and not before or long after that time
fails_with() {
	local re=$1 least=$2 out start=$SECONDS
	shift 2
	out=$("$@" 2>&1 >"$T/.out") && { echo "it succeeded"; return 1; }
	[[ $out =~ $re ]] || { echo "$out"; return 1; }
	[ $((SECONDS - start)) -ge $((least - 1)) ] && [ $((SECONDS - start)) -le $((least + 30)) ] || { echo "after $((SECONDS - start)) s"; return 1; }
}

# ---- cut while somebody reads ----

serve_again
clone --timeout 60s "unix:$T/s" "$c"
ls "$c" >"$T/.out"
cat "$c/large" >"$T/copy" &
reader=$!
_pids+=("$reader")
wait_for 60 eval '[ "$(field fetches "$c")" -gt 0 ] || gone $reader'
stop_server
find "$c/deep" "$c/many" >"$T/found" 2>"$T/err" &
finder=$!
_pids+=("$finder")
# Not by the deadline of what was asked for, which is a minute. Until then a reader only waits for what he has asked for.
wait_for 30 eval '[ "$(field connected "$c")" = false ]'
is $? 0 "the connection is cut: status says so"
wait_for 60 eval '[ "$(field waiting "$c")" -gt 0 ]'
is $? 0 "accesses wait"
ok "what is here can be used meanwhile" test -d "$c/sizes"
serve_again
wait "$finder"
is "$? $(sort "$T/found")" "0 $(cd "$o" && find deep many | sed "s|^|$c/|" | sort)" "it comes back: the listing goes on and is complete"
wait "$reader"
is $? 0 "the read goes on"
ok "and is right" cmp "$o/large" "$T/copy"
is "$(field connected "$c")" true "status says that it is back"
for i in 1 2 3 4 5; do
	"$SLUICE" evict "$c" >"$T/.out"
	dd if="$c/large" iflag=direct bs=1M status=none >"$T/copy" &
	reader=$!
	stop_server
	serve_again
	wait "$reader" && cmp "$o/large" "$T/copy" || break
done
is "$? $i" "0 5" "cut five times more at other moments: every byte is right"
ok "so is the whole tree" same_tree "$o" "$c"
"$SLUICE" remove "$c"

# ---- deadline ----

clone --timeout 1s "unix:$T/s" "$c"
ls "$c" "$c/sizes" >"$T/.out"
cat "$c/sizes/65537" >"$T/.out"
stop_server
ok "down: a read fails with EIO after the deadline" fails_with "Input/output error" 1 cat "$c/later"
ok "a listing too" fails_with "Input/output error" 1 ls "$c/modes"
ok "what is here can be read" cmp "$o/sizes/65537" "$c/sizes/65537"
ok "and written" eval 'echo mine >"$c/mine"'
ok "hydrate fails" fails_with "Input/output error" 1 "$SLUICE" hydrate "$c/later"
ok "status works" "$SLUICE" status "$c"
ok "stop works" "$SLUICE" stop "$c"
ok "start works without the origin" "$SLUICE" start "$c"
ok "with what is here" cmp "$o/sizes/65537" "$c/sizes/65537"
ok "and EIO for what is not" fails_with "Input/output error" 1 cat "$c/later"
serve_again
wait_for 60 cmp "$o/later" "$c/later"
is $? 0 "it comes back: what failed works"
ok "listings as well" ls "$c/modes"
is "$(cat "$c/mine")" mine "with what was written meanwhile"
"$SLUICE" remove --discard "$c"
stop_server

# ---- a reader can be killed while it waits ----

serve_again
clone --timeout 100s "unix:$T/s" "$c"
ls "$c" >"$T/.out"
stop_server
cat "$c/later" >"$T/.out" 2>&1 &
reader=$!
wait_for 60 eval '[ "$(field waiting "$c")" -gt 0 ]'
kill -9 "$reader"
wait_for 30 gone "$reader"
is $? 0 "a reader that waits can be killed"
serve_again
ok "and the clone works on" cmp "$o/later" "$c/later"
"$SLUICE" remove "$c"

# ---- a command as origin dies ----

printf -v cmd '%q serve --stdio %q' "$SLUICE" "$o"
clone --timeout 30s "exec:$cmd" "$c"
ls "$c" >"$T/.out"
children() { pgrep -P "$(field service_pid "$c")"; }
for p in $(children); do kill -9 "$p"; done
ok "a command that speaks for the origin is killed: another is started" cmp "$o/later" "$c/later"
pids=$(children)
"$SLUICE" remove "$c"
for p in $pids; do wait_for 30 gone "$p"; done
is $? 0 "and does not outlive the clone"

# ---- ssh ----

sshd=$(PATH=$PATH:/usr/sbin command -v sshd)
shell=$(getent passwd "$(id -un)" | cut -d : -f 7)
if ! grep -qxF "${shell:-/bin/sh}" /etc/shells; then
	[ -n "${SLUICE_AS_USER-}" ] || skip "origins by ssh: this user has no shell to log in with"
elif [ -n "$sshd" ]; then
	mkdir -m 700 "$T/ssh"
	ssh-keygen -q -t ed25519 -N '' -f "$T/ssh/host" && ssh-keygen -q -t ed25519 -N '' -f "$T/ssh/key"
	cp "$T/ssh/key.pub" "$T/ssh/authorized"
	port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
	cat >"$T/ssh/sshd_config" <<-EOF
		ListenAddress 127.0.0.1:$port
		HostKey $T/ssh/host
		AuthorizedKeysFile $T/ssh/authorized
		PidFile none
		StrictModes no
		UsePAM no
		PasswordAuthentication no
		KbdInteractiveAuthentication no
		PermitRootLogin yes
		SetEnv T=$T
	EOF
	[ "$(id -u)" != 0 ] || mkdir -p /run/sshd
	background "$sshd" -D -e -f "$T/ssh/sshd_config" 2>"$T/ssh/log"
	# What ~/.ssh/config would say; ssh takes the home directory from the password file, not from HOME.
	cat >"$T/ssh/config" <<-EOF
		Host testhost 127.0.0.1
		HostName 127.0.0.1
		Port $port
		User $(id -un)
		IdentityFile $T/ssh/key
		IdentitiesOnly yes
		StrictHostKeyChecking no
		UserKnownHostsFile $T/ssh/known
		LogLevel ERROR
	EOF
	printf '#!/bin/sh\nexec ssh -F %q "$@"\n' "$T/ssh/config" >"$T/ssh/ssh"
	chmod 755 "$T/ssh/ssh"
	export SLUICE_SSH=$T/ssh/ssh SLUICE_REMOTE_COMMAND=$SLUICE
	if wait_for 15 "$SLUICE_SSH" testhost true; then
		odd="$T/with space and 'quotes' \$HOME \"x\" ;"
		mkdir "$odd"
		cp -a "$o/names" "$o/large" "$odd"
		for origin in "testhost:$odd" "ssh://testhost$odd" "ssh://$(id -un)@127.0.0.1:$port$odd"; do
			what=${origin%%$T*}
			ok "$what: a clone by ssh" "$SLUICE" clone "$origin" "$c"
			at_exit timeout 60 "$SLUICE" remove --force --discard "$c"
			ok "$what: is its origin" same_tree "$odd" "$c"
			"$SLUICE" remove "$c"
		done
		like "$("$SLUICE" clone "testhost:$T/none" "$c" 2>&1)" "." "a directory that is not there: an error"
		nok "and no clone" test -e "$c"
		like "$(SLUICE_REMOTE_COMMAND=/none "$SLUICE" clone "testhost:$odd" "$c" 2>&1)" "." "no sluice there: an error"
		nok "and no clone" test -e "$c"
		clone "testhost:$odd" "$c"
		ls "$c" >"$T/.out"
		for p in $(children); do kill -9 "$p"; done
		ok "ssh is killed: it is started again" cmp "$odd/large" "$c/large"
		"$SLUICE" remove "$c"
	else
		skip "the ssh server does not let this user in: $(tail -n 1 "$T/ssh/log")"
	fi
else
	skip "openssh-server is not installed"
fi

also_as_user
done_testing
