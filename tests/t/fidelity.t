#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# What watchers hear: if this fails, a program that watches a clone or a share hears something else than it would at the origin, or
# nothing, and docs/limits.md does not say so.
#
# GATE="fuse share" chooses gates. The same by hand, with more to choose from: tests/tools/fidelity. The page: make fidelity.
#
# asan: no
. "$(dirname "$0")/lib.sh"
. "$TOOLS/clone.sh"

# The watchers themselves: nothing must differ where both watch the same.
[ -n "${GATE-}" ] || import_tap "the origin itself: " env TMPDIR="$T" "$TOOLS/fidelity" --tap --gate same
for g in ${GATE-fuse fanotify share unprivileged}; do
	import_tap "$g: " env TMPDIR="$T" "$TOOLS/fidelity" --tap --gate "$g"
done
done_testing
