#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# If this fails, users other than root cannot use clones, or get at each other's.
. "$(dirname "$0")/lib.sh"
. "$TOOLS/clone.sh"

# What a user does, from beginning to end. Prints one line per fact.
flow='
set -e
umask 022
cd "$1"
mkdir -p o/locked
printf readonly >o/r; chmod 0444 o/r
printf nobody >o/n; chmod 0000 o/n
printf exec >o/x; chmod 0751 o/x
mkdir o/d; printf inside >o/d/f; chmod 0555 o/d
mkfifo o/fifo
printf "#!/bin/sh\necho ran\n" >o/run; chmod 0755 o/run
touch -d "2001-02-03 04:05:06.789012345" o/r
"$SLUICE" clone "$PWD/o" c >/dev/null
stat -c "%n %a %F" c/r c/n c/x c/d c/fifo
stat -c "%y" c/r
cat c/r; echo
cat c/d/f; echo
c/run
cat c/n 2>/dev/null && echo "read without permission" || echo denied
(echo x >c/d/g) 2>/dev/null && echo "made without permission" || echo denied
(echo x >c/r) 2>/dev/null && echo "written without permission" || echo denied
chmod u+w c/r && echo new >c/r && cat c/r
stat -c "%a" c/r
"$SLUICE" stop c
"$SLUICE" start c >/dev/null
cat c/r
stat -c "%a" c/n c/d
store=$("$SLUICE" status --json c | sed "s/.*\"store\":\"\([^\"]*\)\".*/\1/")
echo "$store" >store
stat -c "%a" "$store" "$store/control"
'
if [ "$(id -u)" = 0 ]; then
	dir=$(user_dir)
	out=$(as_user bash -c "$flow" flow "$dir" 2>&1)
	at_exit as_user "$SLUICE" remove --force --discard "$dir/c"
else
	dir=$T/u
	mkdir "$dir"
	out=$(bash -c "$flow" flow "$dir" 2>&1)
	at_exit "$SLUICE" remove --force --discard "$dir/c"
fi
want='c/r 444 regular file
c/n 0 regular empty file
c/x 751 regular file
c/d 555 directory
c/fifo 644 fifo
2001-02-03 04:05:06.789012345
readonly
inside
ran
denied
denied
denied
new
644
new
0
555
700
600'
# stat calls a file of size 0 "empty"; this one has 6 bytes. The time zone is the machine's.
want=${want/regular empty file/regular file}
out=$(printf '%s\n' "$out" | sed 's/\(\.789012345\) .*/\1/')
is "$out" "$want" "a user's whole way: modes, special files, rights, changes, a restart"

store=$(cat "$dir/store")
if [ "$(id -u)" = 0 ]; then
	other() { setpriv --reuid=65533 --regid=65533 --clear-groups "$@"; }
	nok "another user does not get into the store" other ls "$store"
	nok "nor into the clone" other ls "$dir/c"
	nok "nor to the service" other "$SLUICE" status "$store"
	ok "the clone is there for its owner" as_user ls "$dir/c"
	nok "and not even root looks into it by accident" ls "$dir/c"
else
	skip_root "being another user"
fi
done_testing
