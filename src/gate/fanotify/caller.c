/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Who asks, and how. The kernel tells the range of an access and not what it is for; but the thread that asks
 * stands still, and procfs says in which system call.
 */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>

#include "gate/fanotify/internal.h"

#define TRIES 200 /* of 50 us */

/* None of these makes a file shorter or moves its content: the range is all that they need. */
static const long ranged[] = {
    SYS_read,	  SYS_pread64,	       SYS_readv,	   SYS_preadv,	 SYS_preadv2,  SYS_write,
    SYS_pwrite64, SYS_writev,	       SYS_pwritev,	   SYS_pwritev2, SYS_sendfile, SYS_mmap,
    SYS_splice,	  SYS_copy_file_range, SYS_io_uring_enter, SYS_execve,	 SYS_execveat,
};

bool fan_ranged(int tid)
{
	char path[48], text[64];
	snprintf(path, sizeof(path), "/proc/%d/syscall", tid);
	_cleanup_close_ int fd = tid > 0 ? open(path, O_RDONLY | O_CLOEXEC) : -EBADF;
	for (int tries = 0; fd >= 0 && tries < TRIES; tries++) {
		ssize_t n = pread(fd, text, sizeof(text) - 1, 0);
		if (n <= 0)
			return false;
		text[n] = '\0';
		if (!strncmp(text, "running", 7)) {
			usleep(50); /* it is about to stand still */
			continue;
		}
		char *end;
		long nr = strtol(text, &end, 10);
		for (size_t i = 0; end != text && i < SL_ARRAY_SIZE(ranged); i++)
			if (nr == ranged[i])
				return true;
		return false;
	}
	return false;
}
