# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=bash
# For system tests that use clones; sourced after lib.sh.

# Not empty where clones are native ones ($GATE, see native.sh).
NATIVE=
[ "${GATE-}" = fanotify ] && NATIVE=1

[ -n "$NATIVE" ] || need_fuse
[ "$(id -u)" = 0 ] || command -v fusermount3 >/dev/null || skip_all "fusermount3 is not installed"
# udev makes it so; without udev, as in containers, nobody has.
[ "$(id -u)" != 0 ] || chmod 666 /dev/fuse

# clone [OPTION...] ORIGIN DIR: `sluice clone`, with the gate $GATE if that is set, without which the test cannot go on. Removed at the end, however that comes.
clone() {
	local out
	out=$("$SLUICE" clone ${GATE:+--gate "$GATE"} "$@" 2>&1) || bail "sluice clone $*: $out"
	at_exit timeout 60 "$SLUICE" remove --force --discard "${!#}"
}

# serve NAME TREE [OPTION...]: an export on the unix socket $T/NAME; its number is in $BG.
serve() {
	local sock=$T/$1 tree=$2
	shift 2
	background "$SLUICE" serve --unix "$sock" "$@" "$tree" >"$sock.log" 2>&1
	wait_for 30 grep -q . "$sock.log" || bail "no export on $sock: $(cat "$sock.log")"
}

# jget JSON NAME: the first value of that name.
jget() {
	[[ $1 =~ \"$2\":(\"([^\"]*)\"|[^],}]*) ]] || return 1
	printf '%s\n' "${BASH_REMATCH[2]:-${BASH_REMATCH[1]}}"
}
# field NAME PATH...: of `sluice status --json`.
field() {
	local j
	j=$("$SLUICE" status --json "${@:2}" 2>&1) || { echo "status failed: $j"; return 1; }
	jget "$j" "$1"
}
# state_of PATH: cold, partial, full; unpopulated, populated.
state_of() {
	local j
	stat "$1" >"$T/.stat" || return # or its name may not have arrived
	j=$("$SLUICE" status --json "$1" 2>&1) || { echo "status failed: $j"; return 1; }
	jget "${j#*\"paths\":}" state
}
flags_of() {
	local j
	stat "$1" >"$T/.stat" || return
	j=$("$SLUICE" status --json "$1" 2>&1) || { echo "status failed: $j"; return 1; }
	[[ $j =~ \"flags\":\[([^]]*)\] ]] && echo "${BASH_REMATCH[1]//\"/}"
}
store_of() { field store "$1"; }

# all_gone PID: gone, and so are its other threads.
all_gone() {
	local tasks
	gone "$1" || return
	tasks=(/proc/"$1"/task/*)
	[ ${#tasks[@]} = 1 ]
}
# kill_service DIR: as a crash would that takes the keeper as well; returns when both are gone. The service is stopped
# first, or it would make a new keeper.
kill_service() {
	local pid keeper
	pid=$(field service_pid "$1") && keeper=$(field keeper_pid "$1") || return
	kill -STOP "$pid" && kill -9 "$keeper" && kill -9 "$pid" && wait_for 30 all_gone "$keeper" && wait_for 30 all_gone "$pid"
}

# attributes DIR: one line (ended by NUL) per object: name, type, mode, links, size, mtime, owner, target; sorted.
attributes() {
	(cd "$1" && find . \( -type d -printf '%P|d|%m|%T@|%U:%G\0' \) -o \( -type f -printf '%P|f|%m|%n|%s|%T@|%U:%G\0' \) -o \
		-printf '%P|%y|%m|%n|%T@|%U:%G|%l\0') | sort -z
}
# same_attributes A B: prints the first differences.
same_attributes() {
	attributes "$1" >"$T/.attr1"
	attributes "$2" >"$T/.attr2"
	[ -s "$T/.attr1" ] || return 1
	cmp -s "$T/.attr1" "$T/.attr2" && return
	diff <(tr '\n\0' '?\n' <"$T/.attr1") <(tr '\n\0' '?\n' <"$T/.attr2") | head -n 20
	return 1
}
# checksum DIR: of all names, attributes and bytes.
checksum() {
	(attributes "$1"
		cd "$1" && find . -type f -print0 | sort -z | xargs -0 sha256sum) | sha256sum
}

# also_as_user [NAME=VALUE...]: the points of this file once more, as somebody without privilege, when we are root.
also_as_user() {
	[ "$(id -u)" = 0 ] && [ -z "$NATIVE" ] || return 0
	if as_user test -r "$0" && as_user test -x "$SLUICE"; then
		import_tap "as a user: " as_user env TMPDIR="$(user_dir)" SLUICE_AS_USER=1 "$@" "$0"
	else
		skip "other users cannot read the source tree"
	fi
}
