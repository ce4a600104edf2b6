/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* An ioctl() of the test's own: of a queue of events newer kernels say that more is in it than older ones. */
#pragma once

#include <stdarg.h>
#include <stdatomic.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

static atomic_int queue_times = 1; /* so many times as much as this kernel says */
static atomic_uint queue_asked;	   /* how often it was asked */

int ioctl(int fd, unsigned long request, ...)
{
	va_list ap;
	va_start(ap, request);
	void *arg = va_arg(ap, void *);
	va_end(ap);
	int r = (int)syscall(SYS_ioctl, fd, request, arg);
	if (r == 0 && request == FIONREAD) {
		*(int *)arg *= queue_times;
		queue_asked++;
	}
	return r;
}
