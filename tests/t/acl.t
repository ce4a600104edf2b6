#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# If this fails, an ACL of the origin lets the wrong users in, or keeps the right ones out.
. "$(dirname "$0")/lib.sh"
. "$TOOLS/clone.sh"
need setfacl
[ "$(id -u)" = 0 ] || skip_all "being two users needs root"
chmod 755 "$T"
mkdir "$T/o"
for f in plain granted refused; do echo "$f" >"$T/o/$f"; done
chmod 600 "$T/o/plain" "$T/o/granted"
chmod 644 "$T/o/refused"
setfacl -m u:65534:r "$T/o/granted" || skip_all "no ACLs here"
setfacl -m u:65534:- "$T/o/refused"
clone --allow-other "$T/o" "$T/c"
other() { setpriv --reuid=65534 --regid=65534 --clear-groups "$@"; }
nok "a user without rights does not get in" other cat "$T/c/plain"
ok "one whom an ACL grants them does" other cat "$T/c/granted"
nok "one whom an ACL refuses them does not" other cat "$T/c/refused"
ok "another does" setpriv --reuid=65533 --regid=65533 --clear-groups cat "$T/c/refused"
setfacl -x u:65534 "$T/c/granted"
nok "an ACL that is taken away in the clone counts at once" other cat "$T/c/granted"
ok "and the origin keeps its own" other cat "$T/o/granted"
"$SLUICE" remove --force "$T/c" >"$T/.out" 2>&1
done_testing
