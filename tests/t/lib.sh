# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=bash
# Helpers for system tests, sourced by each tests/t/*.t (bash, TAP):
#
#   #!/bin/bash
#   # SPDX-License-Identifier: LGPL-2.1-or-later
#   # One sentence: what would be broken if this failed.
#   . "$(dirname "$0")/lib.sh"
#   ok "it says its version" "$SLUICE" --version
#   is "$(cat f)" "content" "the file is whole"
#   done_testing
#
# $T is the test's own directory; everything below it is unmounted, detached and removed at the end, however the test
# ends. HOME and the XDG directories are below it. $SLUICE is the program, $BUILD its build directory, $TOP the source.

set -u
TOP=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)
BUILD=${SLUICE_BUILD:-$TOP/build}
SLUICE=${SLUICE:-$BUILD/sluice}
TOOLS=$TOP/tests/tools
# Short, because unix sockets are made below it (108 bytes).
T=$(cd "$(mktemp -d "${TMPDIR:-/tmp}/t.XXXXXX")" && pwd -P) || exit 1
chmod 755 "$T"
export TOP BUILD SLUICE T
export HOME=$T/home XDG_DATA_HOME=$T/home/share XDG_CONFIG_HOME=$T/home/config XDG_STATE_HOME=$T/home/state
export XDG_CACHE_HOME=$T/home/cache XDG_RUNTIME_DIR=$T/run
mkdir -p "$XDG_DATA_HOME" "$XDG_CONFIG_HOME" "$XDG_STATE_HOME" "$XDG_CACHE_HOME"
mkdir -m 700 "$XDG_RUNTIME_DIR"
export LC_ALL=C.UTF-8 TZ=UTC
unset NOTIFY_SOCKET JOURNAL_STREAM

_count=0 _failed=0 _done=
_at_exit=() _pids=()

# ---- TAP ----

# diag TEXT...: for who reads a failure.
diag() { printf '%s\n' "$*" | sed 's/^/# /'; }

_result() { # STATUS DESCRIPTION
	local _at=${BASH_SOURCE[2]-}
	_count=$((_count + 1))
	if [ "$1" = 0 ]; then
		echo "ok $_count - ${2//#/}"
	else
		_failed=$((_failed + 1))
		echo "not ok $_count - ${2//#/}"
		diag "at ${_at##*/} line ${BASH_LINENO[1]-}"
	fi
	return "$1"
}

# ok DESCRIPTION COMMAND...: the command ends with status 0. Its output is shown when not.
ok() {
	local d=$1 s
	shift
	"$@" >"$T/.out" 2>&1 </dev/null
	s=$?
	if ! _result "$((s != 0))" "$d"; then
		diag "status $s of: $*"
		head -n 40 "$T/.out" | sed 's/^/#   /'
		return 1
	fi
}

# nok DESCRIPTION COMMAND...: the command ends with a status that is not 0 and is no signal.
nok() {
	local d=$1 s
	shift
	"$@" >"$T/.out" 2>&1 </dev/null
	s=$?
	if ! _result "$((s == 0 || s >= 124))" "$d"; then
		diag "status $s of: $*"
		head -n 40 "$T/.out" | sed 's/^/#   /'
		return 1
	fi
}

# is GOT WANTED DESCRIPTION; isnt; like GOT REGEX DESCRIPTION; unlike.
is() {
	[ "$1" = "$2" ]
	_result $? "$3" || { diag "got:    $1"; diag "wanted: $2"; return 1; }
}
isnt() {
	[ "$1" != "$2" ]
	_result $? "$3" || { diag "got what it should not be: $1"; return 1; }
}
like() {
	[[ $1 =~ $2 ]]
	_result $? "$3" || { diag "got:     $1"; diag "matches: $2"; return 1; }
}
unlike() {
	! [[ $1 =~ $2 ]]
	_result $? "$3" || { diag "got:                 $1"; diag "should not match:    $2"; return 1; }
}
pass() { _result 0 "$1"; }
fail() { _result 1 "$1"; }

# skip REASON [COUNT]: these points cannot be tested here. One is enough for points that belong together.
skip() {
	local n=${2:-1}
	for ((; n > 0; n--)); do
		_count=$((_count + 1))
		echo "ok $_count # SKIP $1"
	done
}
# skip_root WHAT: points for root only. None at all where also_as_user repeats a file: root has just been there.
skip_root() { [ -n "${SLUICE_AS_USER-}" ] || skip "$1: needs root"; }
# skip_all REASON: none of this file's can; before the first point.
skip_all() {
	echo "1..0 # SKIP $1"
	_done=1
	exit 0
}
done_testing() {
	echo "1..$_count"
	_done=1
	[ "$_failed" = 0 ]
	exit
}
bail() {
	echo "Bail out! $*"
	_done=1
	exit 1
}

# import_tap PREFIX COMMAND...: its points are points of this file.
import_tap() {
	local prefix=$1 line plan='' status=none n=0
	shift
	while IFS= read -r line; do
		case $line in
		ok\ *SKIP*) n=$((n + 1)) && skip "$prefix${line#*SKIP }" ;;
		ok\ *) n=$((n + 1)) && pass "$prefix${line#* - }" ;;
		not\ ok\ *) n=$((n + 1)) && fail "$prefix${line#* - }" ;;
		1..*) plan=${line#1..} ;;
		"ended with "*) status=${line#ended with } ;;
		*) echo "# ${line#\# }" ;;
		esac
	done < <("$@" </dev/null 2>&1
		echo "ended with $?")
	case $plan in
	0*SKIP*) skip "$prefix${plan#*SKIP }" ;;
	"$n") ;;
	*) fail "${prefix}all points are reached (planned '$plan', seen $n, status $status)" ;;
	esac
}

# need COMMAND...: skip the file where one is missing. need_root, need_fuse likewise.
need() {
	local c
	for c; do
		command -v "$c" >/dev/null || skip_all "$c is not installed"
	done
}
need_root() { [ "$(id -u)" = 0 ] || skip_all "needs root"; }
need_fuse() { [ -r /dev/fuse ] && [ -w /dev/fuse ] || skip_all "/dev/fuse cannot be opened"; }

# sanitized: the program is built with a sanitizer, and five to thirty times slower: do less of what goes by numbers.
sanitized() { [ -n "${SLUICE_SANITIZER-}" ]; }

# ---- waiting, background ----

# wait_for SECONDS COMMAND...: until the command succeeds; its last status when it never does. What takes long to ask (with a sanitizer,
# in an emulated machine, on a busy one) is asked less often: who asks all the time keeps from working what he waits for.
wait_for() {
	local end=$((SECONDS + $1 + 1)) s began pause
	shift
	while :; do
		began=${EPOCHREALTIME/./}
		"$@" >/dev/null 2>&1 && return 0
		s=$?
		[ "$SECONDS" -ge "$end" ] && { diag "waited in vain for: $*"; return $s; }
		pause=$((2 * (${EPOCHREALTIME/./} - began)))
		((pause < 20000)) && pause=20000
		((pause > 500000)) && pause=500000
		printf -v pause '0.%06d' "$pause"
		sleep "$pause"
	done
}

# background COMMAND...: start it; its number is in $! (and in $BG); killed at the end.
background() {
	"$@" </dev/null &
	BG=$!
	_pids+=("$BG")
}
# at_exit COMMAND...: run at the end, last first, also after a failure or a signal.
at_exit() {
	local q
	printf -v q '%q ' "$@"
	_at_exit+=("$q")
}
# gone PID: there is no such process (a zombie counts as gone).
gone() {
	local stat=
	{ read -r stat <"/proc/$1/stat"; } 2>/dev/null || return 0
	[[ ${stat##*) } == Z* ]]
}

# mounted PATH
mounted() { mountpoint -q "$1" 2>/dev/null || grep -qF " $1 " /proc/self/mounts; }

_mounts_below() { awk -v d="$1/" 'index($2, d) == 1 { print $2 }' /proc/self/mounts | sort -r | sed 's/\\040/ /g; s/\\011/\t/g; s/\\134/\\/g'; }

_unmount() {
	umount -l "$1" 2>/dev/null || fusermount3 -u -z "$1" 2>/dev/null
}

_cleanup() {
	local status=$? i p m l
	trap - EXIT
	trap '' INT TERM HUP
	for ((i = ${#_at_exit[@]} - 1; i >= 0; i--)); do
		eval "${_at_exit[i]}" >/dev/null 2>&1
	done
	for p in "${_pids[@]}"; do
		kill "$p" 2>/dev/null
	done
	for p in "${_pids[@]}"; do
		for ((i = 0; i < 250; i++)); do
			gone "$p" && break
			sleep 0.02
		done
		gone "$p" || kill -9 "$p" 2>/dev/null
	done
	for i in 1 2 3; do # one may hide another
		_mounts_below "$T" | while IFS= read -r m; do _unmount "$m"; done
		[ -z "$(_mounts_below "$T")" ] && break
	done
	# Daemons of ours that live in $T or whose environment says so: what no unmount ended.
	# Where a program lies is read, not looked for: that may be on a mount whose service stands still.
	for p in $(find /proc/[0-9]*/exe -maxdepth 0 -lname "$SLUICE" -printf '%h\n' 2>/dev/null); do
		if grep -qzxF "T=$T" "$p/environ" 2>/dev/null; then
			for ((i = 0; i < 250; i++)); do
				gone "${p#/proc/}" && break
				[ $i = 50 ] && kill "${p#/proc/}" 2>/dev/null
				sleep 0.02
			done
			gone "${p#/proc/}" || { kill -9 "${p#/proc/}" 2>/dev/null; diag "had to kill ${p#/proc/}"; }
		fi
	done
	if command -v losetup >/dev/null; then
		losetup -l -n -O NAME,BACK-FILE 2>/dev/null | while read -r l m; do
			case $m in "$T"/*) losetup -d "$l" ;; esac
		done
	fi
	if [ -n "${T_KEEP-}" ]; then
		diag "kept: $T"
	elif ! rm -rf --one-file-system "$T" 2>/dev/null; then
		chattr -R -i "$T" 2>/dev/null
		chmod -R u+rwX "$T" 2>/dev/null
		rm -rf --one-file-system "$T"
	fi
	[ -n "$_done" ] || echo "# ended before done_testing"
	exit $status
}
trap _cleanup EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

# ---- users ----

# as_user COMMAND...: as somebody without privilege, when we are root. What they write goes to $T/user (their HOME).
as_user() {
	if [ "$(id -u)" != 0 ]; then
		"$@"
		return
	fi
	local uid=65534 d=$T/user
	if [ ! -d "$d" ]; then
		mkdir -p "$d/share" "$d/config" "$d/state" "$d/cache" "$d/run"
		chown -R $uid:$uid "$d"
		chmod 700 "$d/run"
	fi
	# The bounding set stays: it is what the set-id fusermount3 gets its capabilities from.
	setpriv --reuid=$uid --regid=$uid --clear-groups --inh-caps=-all env HOME="$d" XDG_DATA_HOME="$d/share" \
		XDG_CONFIG_HOME="$d/config" XDG_STATE_HOME="$d/state" XDG_CACHE_HOME="$d/cache" XDG_RUNTIME_DIR="$d/run" \
		USER=nobody LOGNAME=nobody "$@"
}
# The directory that as_user's commands may write to.
user_dir() {
	as_user true
	[ "$(id -u)" = 0 ] && echo "$T/user" || echo "$T"
}

# ---- trees ----

# same_tree [--owners] [--no-mtime] [--no-dir-mtime] A B: same names, types, modes, mtimes (ns), targets, sizes, bytes,
# extended attributes of the user namespace with --xattrs. Prints the first differences. See tests/tools/treesum.py.
same_tree() { python3 "$TOOLS/treesum.py" "$@"; }

# make_tree DIR [FILES]: some hundred files with odd names, sizes around chunk boundaries, links, times in the past.
make_tree() { python3 "$TOOLS/maketree.py" "$@"; }
