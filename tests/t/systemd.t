#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# asan: no
# The installed units in real managers: systemd as the first process of namespaces of its own, and its `systemd --user` for somebody
# without privilege. If this fails, a clone that systemd runs does not come up, or does not survive what it should.
. "$(dirname "$0")/lib.sh"
need_root
. "$TOOLS/clone.sh"
need systemctl systemd-escape nsenter setpriv meson
program=
for p in /lib/systemd/systemd /usr/lib/systemd/systemd; do [ ! -x "$p" ] || program=$p; done
[ -n "$program" ] || skip_all "systemd is not installed"

mkdir "$T/cg"
# A group of control that is the manager's alone.
unshare -fpmCun --mount-proc true 2>"$T/.out" || skip_all "no namespaces: $(cat "$T/.out")"
mount -t cgroup2 cgroup2 "$T/cg" 2>"$T/.out" || skip_all "no cgroup2: $(cat "$T/.out")"
group=$T/cg$(sed -n 's/^0:://p' /proc/self/cgroup)/sluice-${T##*.}
all_end() {
	echo 1 >"$group/cgroup.kill"
	wait_for 60 grep -q "populated 0" "$group/cgroup.events"
	find "$group" -depth -type d -exec rmdir {} +
}
at_exit all_end
mkdir "$group" 2>"$T/.out" || skip_all "no control group can be made: $(cat "$T/.out")"

ok "install" env DESTDIR="$T/dest" meson install -C "$BUILD" --no-rebuild --quiet
prefix=$(meson introspect --buildoptions "$BUILD" | python3 -c '
import json, sys
print(next(o["value"] for o in json.load(sys.stdin) if o["name"] == "prefix"))')

# What units depend on unless they say otherwise, without what a machine does there.
mkdir "$T/units"
for u in sysinit basic shutdown ready; do printf '[Unit]\nDefaultDependencies=no\n' >"$T/units/$u.target"; done
user_dir >"$T/.out"
cat >"$T/units/manager.service" <<END
[Service]
User=65534
Group=65534
Type=notify
TimeoutStartSec=60s
Delegate=yes
KillMode=mixed
Environment=HOME=$T/user XDG_RUNTIME_DIR=$T/user/run SYSTEMD_UNIT_PATH=$T/units:$prefix/lib/systemd/user SYSTEMD_GENERATOR_PATH=/nonexistent
ExecStart=$program --user --unit=ready.target
END

background bash -c 'echo $$ >"$1/cgroup.procs" && shift && exec "$@"' - "$group" \
	unshare -fpmCun --kill-child=KILL --mount-proc "$TOOLS/systemd-init" "$T/dest" "$T/units" "$prefix" "$program" >"$T/manager.log" 2>&1
manager=$BG
first() { first=$(cat "/proc/$manager/task/$manager/children") && [ -n "${first% }" ] && first=${first% }; }
inside() { nsenter -t "$first" -m -p -C -u -n "$@"; }
is_up() { gone "$manager" || { first && inside systemctl is-active ready.target; }; }
wait_for 60 is_up && ! gone "$manager" || bail "$program does not come up: $(tail -n 5 "$T/manager.log")"
diag "$("$program" --version | head -n 1)"

# managed PREFIX [COMMAND...] -- GATE...: tests/tools/managed.py, inside.
managed() {
	local prefix=$1 as=()
	shift
	while [ "$1" != -- ]; do as+=("$1") && shift; done
	shift
	import_tap "$prefix" inside "${as[@]}" SL_TEST="$TOOLS/managed.py" PYTHONUNBUFFERED=1 python3 "$TOOLS/managed.py" "$@"
}
gates=(fuse)
why=$(. "$TOOLS/native.sh" --self)
if [ -z "$why" ]; then gates+=(fanotify); else skip "${why#*SKIP }"; fi
managed "" env -u HOME -u XDG_STATE_HOME -u XDG_RUNTIME_DIR -- "${gates[@]}"
inside systemctl start manager.service || bail "no manager for a user"
managed "a user's: " setpriv --reuid=65534 --regid=65534 --clear-groups --inh-caps=-all \
	env -u XDG_STATE_HOME T="$T/user" HOME="$T/user" XDG_RUNTIME_DIR="$T/user/run" -- fuse
[ "$_failed" = 0 ] || diag "$(tail -n 40 "$T/manager.log")"
done_testing
