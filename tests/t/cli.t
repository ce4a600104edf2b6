#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# If this fails, the command line is not as its help, its man pages and programs that call it expect.
. "$(dirname "$0")/lib.sh"
. "$TOOLS/clone.sh"

commands="clone serve share mount start stop remove list status hydrate evict pin unpin verify upgrade doctor"

ok "--version" "$SLUICE" --version
like "$(cat "$T/.out")" '^sluice [0-9]+\.[0-9]+' "which is a version"
ok "--help" "$SLUICE" --help
help=$(cat "$T/.out")
for c in $commands; do
	like "$help" "  $c +[A-Z]" "--help lists $c"
	ok "$c --help" "$SLUICE" "$c" --help
	text=$(cat "$T/.out")
	like "$text" "^Usage: sluice $c " "$c --help begins with its usage"
	like "$text" "Example:" "$c --help has an example"
	like "$text" "--json" "$c has --json"
	"$SLUICE" "$c" --no-such-option >"$T/out" 2>"$T/err"
	is $? 2 "$c: an unknown option is exit status 2"
	isnt "$(cat "$T/err")" "" "and says something"
	is "$(cat "$T/out")" "" "but not on standard output"
	ok "$c has a man page" test -s "$TOP/docs/man/sluice-$c.1"
done
"$SLUICE" nonsense >"$T/out" 2>"$T/err"
is $? 2 "an unknown command is exit status 2"
like "$(cat "$T/err")" nonsense "which is named"

is "$("$SLUICE" list --json)" "[]" "no clones: an empty list"
is "$("$SLUICE" list)" "" "and nothing to say for people"

make_tree "$T/o" 50
json() { python3 -c 'import json, sys; [json.loads(l) for l in sys.stdin if l.strip()]'; }
out=$("$SLUICE" clone --json "$T/o" "$T/c")
is $? 0 "clone --json"
at_exit "$SLUICE" remove --force --discard "$T/c"
ok "prints JSON" json <<<"$out"
cat "$T/c"/* >/dev/null 2>&1
for c in status hydrate evict pin unpin verify; do
	out=$("$SLUICE" "$c" --json "$T/c" 2>"$T/err")
	is $? 0 "$c --json"
	ok "$c prints JSON" json <<<"$out"
	is "$(cat "$T/err")" "" "$c says nothing else"
done
ok "list --json prints JSON" json <<<"$("$SLUICE" list --json)"
like "$("$SLUICE" list)" "running +$T/c" "list for people"
out=$("$SLUICE" doctor --json)
ok "doctor --json prints JSON" json <<<"$out"
like "$out" '"name":"fuse","ok":true' "doctor has tried FUSE"
like "$out" '"name":"resend","ok":' "and what becomes of what waits"
# The verdict says why, and is the same for people; each feature that was not found has a reason.
gates() { python3 -c 'import json, sys; j = json.load(sys.stdin); g = j["gates"]; print(eval(sys.argv[1]))' "$1" <<<"$out"; }
auto=$(gates 'g["auto"]')
is "$(gates 'j["gate"]')" "$auto" "doctor's verdict is in one place"
is "$(gates 'g["auto"] == ("fanotify" if g["fanotify"]["ok"] else "fuse")')" True "which goes by what was found"
is "$(gates 'g["fanotify"]["ok"] == all(f["ok"] for f in g["fanotify"]["features"] if f["needed"])')" True "all of it"
is "$(gates '[f["name"] for f in g["fanotify"]["features"] if f["tried"] and not f["ok"] and not f.get("why")]')" "[]" \
	"what is missing has a reason"
isnt "$(gates 'g["why"]')" "" "and so has the verdict"
like "$("$SLUICE" doctor)" "gate auto would choose: $auto, because " "doctor tells people"
mkdir "$T/scratch"
ok "and leaves nothing" env TMPDIR="$T/scratch" "$SLUICE" doctor
ok "behind" rmdir "$T/scratch"
if [ "$(id -u)" = 0 ]; then
	out=$(setpriv --reuid 65534 --regid 65534 --clear-groups env HOME="$T/none" "$SLUICE" doctor --json 2>/dev/null)
	like "$(gates 'g["fanotify"]["features"][0]["why"]')" "needs root" "without privilege there is no fanotify gate"
	is "$(gates 'any(f["tried"] for f in g["fanotify"]["features"][1:])')" False "and nothing more is tried"
fi
out=$("$SLUICE" stop --json "$T/c")
ok "stop --json prints JSON" json <<<"$out"
like "$("$SLUICE" list)" "stopped +$T/c" "list says stopped"
like "$("$SLUICE" status "$T/c")" "stopped" "status says stopped"
out=$("$SLUICE" start --json "$T/c")
ok "start --json prints JSON" json <<<"$out"
nok "a second start fails" "$SLUICE" start "$T/c"
like "$(cat "$T/.out")" "running already" "and says why"
(cd "$T/c" && "$SLUICE" status >"$T/out")
ok "status of the current directory" grep -q "$T/c" "$T/out"
cd "$T/c" || bail "cd"
nok "stop while it is in use fails" "$SLUICE" stop "$T/c"
cd /
like "$(cat "$T/.out")" "in use" "and says why"
ok "but nothing has changed" ls "$T/c"
nok "a path of no clone" "$SLUICE" status "$T/o"
like "$(cat "$T/.out")" "belongs to no clone" "says so"
out=$("$SLUICE" remove --json "$T/c")
ok "remove --json prints JSON" json <<<"$out"
nok "the directory that clone made is gone" test -e "$T/c"
is "$("$SLUICE" list --json)" "[]" "and the clone is"

# Completion.
bash -c '. "$1"; complete -p sluice' complete "$TOP/packaging/completions/sluice" >"$T/out" 2>&1
is $? 0 "bash completion loads"

# What is installed.
if [ -f "$BUILD/build.ninja" ] && [ -w "$BUILD" ]; then
	ok "install" env DESTDIR="$T/root" meson install -C "$BUILD" --no-rebuild --quiet
	ok "the program" test -x "$(find "$T/root" -path '*/bin/sluice')"
	for f in sluice.1 sluice-clone.1 'sluice@.service'; do
		ok "$f is installed" test -n "$(find "$T/root" -name "$f*" -print -quit)"
	done
	ok "the completion is installed" test -n "$(find "$T/root" -path '*bash-completion*' -name sluice -print -quit)"
else
	skip "no build directory to install from"
fi
done_testing
