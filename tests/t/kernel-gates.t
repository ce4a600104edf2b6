#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# If this fails, clones are not right on a kernel with the series, or that kernel complained while it had them: system tests of both
# gates once more, inside a User-Mode Linux.
# long: yes
# asan: no
# Where the kernel is: lib.sh gives us another home.
export SLUICE_KERNEL_CACHE=${SLUICE_KERNEL_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/sluice-kernel}
. "$(dirname "$0")/lib.sh"

mkdir "$T/um"
linux=$("$TOP/kernel/build" 2>"$T/build.log")
case $? in
0) ;;
77) skip_all "$(tail -n 1 "$T/build.log")" ;;
*) bail "kernel/build: $(tail -n 3 "$T/build.log")" ;;
esac
TMPDIR=$T/um timeout 120 "$TOP/kernel/run" -k "$linux" true >"$T/build.log" 2>&1
[ $? = 77 ] && skip_all "$(tail -n 1 "$T/build.log")"

# machine LABEL COMMAND...: a machine of its own for it; all of them run at once. Its points come later, in this order.
labels=()
machine() {
	local to=$T/um.${#labels[@]}
	labels+=("$1")
	shift
	{
		TMPDIR=$T/um "$TOP/kernel/tests/gates" -k "$linux" "$@" </dev/null >"$to" 2>"$to.err"
		echo $? >"$to.status"
	} &
	_pids+=($!)
}

machine "file operations, fanotify gate: " tests/t/fileops-native.t
mkdir "$T/kept"
machine "lazy directories: " tests/tools/lazy-native
machine "names that are evicted: " tests/tools/lazy-evict
machine "a store that is kept: " tests/tools/lazy-kept make "$T/kept"
machine "exports over vsock: " tests/t/vsock.t
machine "conformance, fanotify gate: " tests/tools/conformance --gate fanotify --quick --tap
machine "conformance, fuse gate: " tests/tools/conformance --gate fuse --quick --tap
# The clock of a machine that others use is not set.
for gate in '' -native; do
	machine "a clock that is set back$gate: " env ONLY=clock_set_back tests/t/odd-days$gate.t
done
wait "${_pids[@]}"

for i in "${!labels[@]}"; do
	import_tap "${labels[i]}" cat "$T/um.$i"
	is "$(cat "$T/um.$i.status")" 0 "${labels[i]}it ends well, and the kernel has not complained" || diag "$(head -n 150 "$T/um.$i.err")"
done
# That store once more, without the series.
if [ "$(id -u)" = 0 ] && [ "$("$SLUICE" doctor --json | python3 -c 'import json, sys; g = json.load(sys.stdin)["gates"]["fanotify"]; print(g["ok"] and not g["lazy"])')" = True ]; then
	import_tap "the store, on this kernel: " "$TOOLS/lazy-kept" use "$T/kept"
else
	skip "there is no fanotify gate here, or this kernel has the series"
fi
done_testing
