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

# The ways themselves: all must be right where the files simply are there, and none where they are not.
if [ -z "$quick${GATE-}" ]; then
	import_tap "a plain copy: " conformance --gate plain
	import_tap "nothing but holes: " conformance --gate holes
fi

for g in ${GATE-fuse fanotify}; do
	import_tap "$g: " conformance --gate "$g"
	[ -n "$quick" ] || import_tap "$g, evicted before: " conformance --gate "$g" --evicted --quick
done

if [ "$(id -u)" = 0 ] && [[ " ${GATE-fuse} " == *" fuse "* ]]; then
	if as_user test -r "$0" && as_user test -x "$SLUICE"; then
		# shellcheck disable=SC2086
		import_tap "fuse, as a user: " as_user env TMPDIR="$(user_dir)" "$TOOLS/conformance" --tap $quick --gate fuse ${WAYS-}
	else
		skip "other users cannot read the source tree"
	fi
fi
done_testing
