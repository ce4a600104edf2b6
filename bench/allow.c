/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The smallest service there can be: allow DIR [ask|marks] marks the filesystem of DIR and allows every
 * access. ask: finds out before which object it is, and in which system call the reader stands, as nobody can
 * do without who may have to fetch something. marks: as a clone that is here; a group for changes as well,
 * and an ignore mark on every file that was opened. Prints "ready"; ends when it is killed.
 */
#include <err.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/fanotify.h>
#include <unistd.h>

#include "base/handle.h"
#include "gate/fanotify/abi.h"

#define ASKED (FAN_PRE_ACCESS | FAN_OPEN_PERM)

static bool ask(int fd, int tid)
{
	static int last, file = -1;
	struct sl_handle h;
	char text[256];
	if (tid != last) {
		snprintf(text, sizeof(text), "/proc/%d/syscall", tid);
		if (file >= 0)
			close(file);
		file = open(text, O_RDONLY | O_CLOEXEC);
		last = tid;
	}
	return sl_handle_get(fd, "", &h) == 0 && pread(file, text, sizeof(text), 0) > 0;
}

static void ignore(int g, int fd)
{
	char path[32];
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	(void)fanotify_mark(g, FAN_MARK_ADD | FAN_MARK_EVICTABLE | SL_FAN_IGNORE, ASKED, AT_FDCWD, path);
}

int main(int argc, char **argv)
{
	static _Alignas(8) char buf[32768];
	const char *more = argc == 3 ? argv[2] : "";
	bool asks = !strcmp(more, "ask"), marks = !strcmp(more, "marks");
	if (argc < 2 || (argc > 2 && !asks && !marks))
		errx(2, "usage: allow DIR [ask|marks]");
	int told = marks ? fanotify_init(FAN_CLASS_NOTIF | FAN_REPORT_FID | FAN_CLOEXEC, O_RDONLY) : -1;
	int g = fanotify_init(FAN_CLASS_PRE_CONTENT | FAN_CLOEXEC | FAN_UNLIMITED_QUEUE |
				  FAN_REPORT_FD_ERROR | FAN_REPORT_TID,
			      O_RDONLY | O_LARGEFILE | O_CLOEXEC);
	if (g < 0 || fanotify_mark(g, FAN_MARK_ADD | FAN_MARK_FILESYSTEM, ASKED, AT_FDCWD, argv[1]) < 0 ||
	    (marks && fanotify_mark(told, FAN_MARK_ADD | FAN_MARK_FILESYSTEM, FAN_MODIFY | FAN_CLOSE_WRITE,
				    AT_FDCWD, argv[1]) < 0))
		err(1, "%s", argv[1]);
	puts("ready");
	fflush(stdout);
	for (;;) {
		ssize_t n = read(g, buf, sizeof(buf));
		if (n < 0)
			err(1, "read");
		for (struct fanotify_event_metadata *m = (void *)buf; FAN_EVENT_OK(m, n);
		     m = FAN_EVENT_NEXT(m, n)) {
			struct fanotify_response r = {.fd = m->fd, .response = FAN_ALLOW};
			if (m->fd < 0)
				continue;
			if (asks && !ask(m->fd, m->pid))
				r.response = FAN_DENY;
			if (write(g, &r, sizeof(r)) < 0)
				continue;
			if (marks)
				ignore(g, m->fd);
			close(m->fd);
		}
	}
}
