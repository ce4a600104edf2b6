#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# A tree shared into a virtual machine: if this fails, a guest with a stock kernel, FUSE, and a virtio port as the stream does not see the host's
# tree as it is, does not hear of its changes, or does not come back when the stream breaks.
# long: yes
# asan: no
# Where the kernel is: lib.sh gives us another home.
kernel=$("$(dirname "$0")/../vm/kernel" 2>&1) || kernel="!${kernel##*$'\n'}"
. "$(dirname "$0")/lib.sh"
. "$TOOLS/clone.sh"
need qemu-system-x86_64 inotifywait gcc
[[ $kernel != !* ]] || skip_all "${kernel#!}"

o=$T/o
make_tree "$o" 60
before=$(checksum "$o")
{
	declare -f attributes checksum
	cat "$TOP/tests/vm/guest"
} >"$T/guest"
gcc -static -O1 -Wall -Wextra -Werror -o "$T/init" "$TOP/tests/vm/init.c" || bail "init"
"$TOP/tests/vm/image" "$T/image" "$T/init" "$kernel" "$T/guest" "$SLUICE" bash cat cp find grep head inotifywait mkdir mv rm sha256sum sleep \
	sort tr umount xargs || bail "image"

serve s "$o" --rw
background qemu-system-x86_64 -machine pc,accel=tcg -m 512M -nodefaults -display none -no-reboot -serial "file:$T/console" -kernel "$kernel/vmlinuz" \
	-initrd "$T/image" -append "console=ttyS0 quiet panic=-1" -device virtio-serial-pci \
	-chardev "socket,id=sluice,path=$T/s,reconnect=1" -device virtserialport,chardev=sluice,name=sluice
qemu=$BG server=${_pids[-2]}

# said WORD: waits until the guest has said it, to the end of the line; what follows is in $said.
said() {
	wait_for 150 eval "grep -q '^=> $1\\>.*'$'\r''\$' '$T/console' || grep -q '^=> failed' '$T/console' || gone $qemu"
	said=$(tr -d '\r' <"$T/console" | sed -n "s/^=> $1\\> *//p")
	tr -d '\r' <"$T/console" | grep -q "^=> $1\\>"
	is $? 0 "the guest comes to '$1'" && return
	diag "$(tail -n 30 "$T/console")"
	bail "the guest is stuck"
}

said tree
is "$said" "$before" "its mount is the tree, with every attribute and byte"
like "$(<"$T/s.log")" "a connection ended" "the exporter survived nonsense from the guest before"
said ready
ok "what the guest writes is here" same_tree --no-mtime --no-dir-mtime "$o/deep" "$o/copied"
mkdir "$o/new" && echo text >"$o/new/file"
mv "$o/new" "$o/newer" && chmod 700 "$o/newer" && rm "$o/sizes/1" && echo last >"$o/last"
said heard
for event in "new CREATE,ISDIR" "new MOVED_FROM,ISDIR" "newer MOVED_TO,ISDIR" "newer ATTRIB,ISDIR" "sizes/1 DELETE" "last CREATE"; do
	like ";$said" ";/m/$event;" "a watcher in the guest hears of what is changed here: $event"
done
said again
is "$said" "$(checksum "$o")" "a second mount over the same port is the tree as it is now"
said clone
is "$said" "$(checksum "$o")" "so is a clone"
said cut
kill -9 "$server"
said down
pass "the exporter is killed: the guest notices"
serve s "$o"
said back
is "$said" "$(sha256sum <"$o/sizes/65537")" "it is back: what the guest waits for is right"
said over
wait "$qemu"
is $? 0 "the machine ends"
unlike "$(<"$T/console")" "=> failed" "and nothing failed in it"
done_testing
