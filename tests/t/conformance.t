#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# long: yes
# Every way of getting at bytes: if this fails, there is one on which a program is given what is not the file's content.
#
# GATE="fuse fanotify" chooses gates, WAYS="mmap cp" the ways whose names contain one of these words. The same by hand, with more to
# choose from: tests/tools/conformance. With sanitizers only the ways that stand for the others are tried.
. "$(dirname "$0")/lib.sh"
. "$TOOLS/clone.sh"

quick=
[ -z "${ASAN_OPTIONS-}${TSAN_OPTIONS-}" ] || quick=--quick
# conformance [OPTION...]: as points
conformance() { # shellcheck disable=SC2086
	TMPDIR=$T "$TOOLS/conformance" --tap $quick "$@" ${WAYS-}
}

for p in payload aread libpayload.so; do
	ok "tests/ways/$p is built" test -e "$BUILD/tests/ways/$p"
done

# part LABEL COMMAND...: all parts run at once, since most ways wait; their points come in this order.
labels=() pids=()
part() {
	local to=$T/part.${#labels[@]}
	labels+=("$1")
	shift
	{
		"$@" </dev/null >"$to" 2>&1
		echo $? >"$to.status"
	} &
	pids+=($!)
}
# What a part said, with its status.
said() { cat "$T/part.$1" && return "$(cat "$T/part.$1.status")"; }

# The ways themselves: all must be right where the files simply are there, and none where they are not.
if [ -z "$quick${GATE-}" ]; then
	part "a plain copy: " conformance --gate plain
	part "nothing but holes: " conformance --gate holes
fi

for g in ${GATE-fuse fanotify}; do
	part "$g: " conformance --gate "$g" --share 1/2
	part "$g: " conformance --gate "$g" --share 2/2
	[ -n "$quick" ] || part "$g, evicted before: " conformance --gate "$g" --evicted --quick
done

if [ "$(id -u)" = 0 ] && [[ " ${GATE-fuse} " == *" fuse "* ]]; then
	if as_user test -r "$0" && as_user test -x "$SLUICE"; then
		# shellcheck disable=SC2086
		part "fuse, as a user: " as_user env TMPDIR="$(user_dir)" "$TOOLS/conformance" --tap $quick --gate fuse ${WAYS-}
	else
		skip "other users cannot read the source tree"
	fi
fi
_pids+=("${pids[@]}") # should this be ended before
wait "${pids[@]}"
for i in "${!labels[@]}"; do import_tap "${labels[i]}" said "$i"; done
done_testing
