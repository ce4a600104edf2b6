# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=bash
# Sourced by tests/t/NAME-native.t: NAME.t once more, with clones on the fanotify gate. Where that gate differs for a good reason
# the test says so beside the point (NATIVE in slt.py, $NATIVE in clone.sh).
#   . native.sh            runs NAME.t
#   . native.sh OTHER      runs OTHER.t
#   . native.sh --self     returns: the file itself is a test of native clones
# Skips the file where there is no fanotify gate.

skip_native() {
	echo "1..0 # SKIP $1"
	exit 0
}
[ "$(id -u)" = 0 ] || skip_native "the fanotify gate needs root"
TOP=$(cd "$(dirname "$0")/../.." && pwd -P)
_why=$("${SLUICE:-${SLUICE_BUILD:-$TOP/build}/sluice}" doctor --json | python3 -c '
import json, sys
gate = json.load(sys.stdin)["gates"]["fanotify"]
print("" if gate["ok"] else next((f.get("why") or f["what"] for f in gate["features"] if f["needed"] and not f["ok"]), "no fanotify gate"))') ||
	{ echo "Bail out! doctor does not say whether there is a fanotify gate" && exit 1; }
[ -z "$_why" ] || skip_native "no fanotify gate here: $_why"
export GATE=fanotify
case ${1-} in
--self) ;;
'') exec "${0%-native.t}.t" ;;
*) exec "$(dirname "$0")/$1.t" ;;
esac
