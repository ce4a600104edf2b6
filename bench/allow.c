/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The smallest service there can be: allow DIR marks the filesystem of DIR and allows every access. Prints
 * "ready"; ends when it is killed. */
#include <err.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/fanotify.h>
#include <unistd.h>

#include "gate/fanotify/abi.h"

int main(int argc, char **argv)
{
	static _Alignas(8) char buf[32768];
	int g = fanotify_init(FAN_CLASS_PRE_CONTENT | FAN_CLOEXEC | FAN_UNLIMITED_QUEUE |
				  FAN_REPORT_FD_ERROR | FAN_REPORT_TID,
			      O_RDONLY | O_LARGEFILE | O_CLOEXEC);
	if (g < 0 || argc != 2 ||
	    fanotify_mark(g, FAN_MARK_ADD | FAN_MARK_FILESYSTEM, FAN_PRE_ACCESS | FAN_OPEN_PERM, AT_FDCWD,
			  argv[1]) < 0)
		err(2, "usage: allow DIR");
	puts("ready");
	fflush(stdout);
	for (;;) {
		ssize_t n = read(g, buf, sizeof(buf));
		if (n < 0)
			err(1, "read");
		for (struct fanotify_event_metadata *m = (void *)buf; FAN_EVENT_OK(m, n);
		     m = FAN_EVENT_NEXT(m, n)) {
			struct fanotify_response r = {.fd = m->fd, .response = FAN_ALLOW};
			if (m->fd < 0 || write(g, &r, sizeof(r)) < 0)
				continue;
			close(m->fd);
		}
	}
}
