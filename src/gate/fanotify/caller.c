/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Who asks, and how. The kernel tells the range of an access and not what it is for; but the thread that asks
 * stands still, and procfs says in which system call.
 */
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "gate/fanotify/internal.h"

#define YIELDS 50
#define TRIES  (YIELDS + 200) /* of 50 us */

/* Of these the range is all that is needed; of some, unless it is their output, whose argument that is. */
static const struct {
	long nr;
	int out; /* argument with a descriptor that is written to, or -1 */
	enum fan_need need;
} calls[] = {
    {SYS_read, -1, FAN_RANGE},		 {SYS_pread64, -1, FAN_RANGE},
    {SYS_readv, -1, FAN_RANGE},		 {SYS_preadv, -1, FAN_RANGE},
    {SYS_preadv2, -1, FAN_RANGE},	 {SYS_mmap, -1, FAN_MAPPED},
    {SYS_execve, -1, FAN_MAPPED},	 {SYS_execveat, -1, FAN_MAPPED},
    {SYS_sendfile, 0, FAN_RANGE},	 {SYS_splice, 2, FAN_RANGE},
    {SYS_copy_file_range, 2, FAN_RANGE}, {SYS_io_uring_enter, -1, FAN_RANGE_AND_END}, /* it may be a write */
};

static bool is_file(int tid, unsigned long fd, const struct stat *st)
{
	char path[64];
	struct stat other;
	snprintf(path, sizeof(path), "/proc/%d/fd/%d", tid, (int)fd);
	return stat(path, &other) < 0 || (other.st_ino == st->st_ino && other.st_dev == st->st_dev);
}

static int open_syscall(int tid)
{
	char path[48];
	snprintf(path, sizeof(path), "/proc/%d/syscall", tid);
	int fd = tid > 0 ? open(path, O_RDONLY | O_CLOEXEC) : -EBADF;
	return fd < 0 ? -EBADF : fd;
}

/* Most accesses are by the thread that made the last one: its file stays open. Another thread of the same
 * number is not found by it. */
static ssize_t read_syscall(struct sl_fan *g, int tid, char *text, size_t size)
{
	ssize_t n = -1;
	if (pthread_mutex_trylock(&g->caller_lock) != 0) {
		_cleanup_close_ int fd = open_syscall(tid);
		return pread(fd, text, size, 0);
	}
	if (g->caller_tid == tid)
		n = pread(g->caller_fd, text, size, 0);
	if (n <= 0) {
		if (g->caller_fd >= 0)
			close(g->caller_fd);
		g->caller_tid = tid;
		g->caller_fd = open_syscall(tid);
		n = pread(g->caller_fd, text, size, 0);
	}
	pthread_mutex_unlock(&g->caller_lock);
	return n;
}

/* Argument @n of what is behind the number in "NR 0xARG 0xARG 0xARG …"; sscanf() takes several times as long.
 */
static bool argument(const char *text, int n, unsigned long *ret)
{
	char *end = (char *)(uintptr_t)text;
	for (int i = 0; i <= n; i++) {
		text = end;
		*ret = strtoul(text, &end, 16);
		if (end == text)
			return false;
	}
	return true;
}

enum fan_need fan_need(struct sl_fan *g, int tid, const struct stat *st)
{
	char text[256];
	for (int tries = 0; tries < TRIES; tries++) {
		ssize_t n = read_syscall(g, tid, text, sizeof(text) - 1);
		if (n <= 0)
			return FAN_WHOLE;
		text[n] = '\0';
		if (!strncmp(text, "running", 7)) {
			/* It is about to stand still. */
			if (tries < YIELDS)
				sched_yield();
			else
				usleep(50);
			continue;
		}
		char *args;
		long nr = strtol(text, &args, 10);
		unsigned long out;
		for (size_t i = 0; i < SL_ARRAY_SIZE(calls) && args != text; i++)
			if (nr == calls[i].nr)
				return calls[i].out >= 0 && (!st || !argument(args, calls[i].out, &out) ||
							     is_file(tid, out, st))
					   ? FAN_WHOLE
					   : calls[i].need;
		return FAN_WHOLE;
	}
	return FAN_WHOLE;
}
