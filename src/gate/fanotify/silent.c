/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "gate/fanotify/silent.h"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/fanotify.h>

#include "base/log.h"
#include "gate/fanotify/abi.h"
#include "store/fs.h"

struct sl_silent {
	int dir; /* the root of a mount that is ours alone */
	int group, stop;
	pthread_t thread;
	bool started;
	_Atomic int fd; /* of the last event */
};

/* Every event is the begin of one of our own truncations. */
static void *events(void *arg)
{
	struct sl_silent *x = arg;
	struct pollfd p[2] = {{.fd = x->group, .events = POLLIN}, {.fd = x->stop, .events = POLLIN}};
	_Alignas(struct fanotify_event_metadata) char buf[4096];
	for (;;) {
		if (poll(p, 2, -1) > 0 && p[1].revents)
			return NULL;
		ssize_t n = read(x->group, buf, sizeof(buf));
		if (n < 0)
			continue;
		for (struct fanotify_event_metadata *m = (void *)buf; FAN_EVENT_OK(m, n);
		     m = FAN_EVENT_NEXT(m, n)) {
			struct fanotify_response r = {.fd = m->fd, .response = FAN_DENY};
			x->fd = m->fd;
			if (write(x->group, &r, sizeof(r)) < 0 && errno != ENOENT)
				sl_err("an access of our own cannot be refused: %s", strerror(errno));
		}
	}
}

int sl_silent_open(struct sl_silent *x, struct sl_object *o)
{
	char p[SL_PROC_FD_MAX];
	struct stat st;
	_cleanup_close_ int path = sl_handle_open(x->dir, &o->handle, O_PATH);
	if (path < 0)
		return path;
	if (fstat(path, &st) < 0)
		return -errno;
	if (!S_ISREG(st.st_mode))
		return -EINVAL;
	x->fd = -EBADF;
	if (fanotify_mark(x->group, FAN_MARK_ADD | FAN_MARK_MOUNT, FAN_PRE_ACCESS, x->dir, NULL) < 0)
		return -errno;
	/* To the size that it has, in case that nobody refuses. */
	int r = truncate(sl_proc_fd_path(p, path, NULL), st.st_size);
	/* Who makes the file shorter through the descriptor is not to be asked. */
	if (fanotify_mark(x->group, FAN_MARK_REMOVE | FAN_MARK_MOUNT, FAN_PRE_ACCESS, x->dir, NULL) < 0)
		return -errno;
	if (r == 0)
		return -EOPNOTSUPP;
	int fd = atomic_exchange(&x->fd, -EBADF);
	return fd < 0 ? -EOPNOTSUPP : fd;
}

int sl_silent_new(struct sl_fan *g, struct sl_store *s, int mode, struct sl_silent **ret)
{
	struct sl_silent *x = calloc(1, sizeof(*x));
	if (!x)
		return -ENOMEM;
	x->dir = x->group = x->stop = -EBADF;
	_cleanup_close_ int mnt = -EBADF;
	int r = sl_mount_clone(sl_store_work_fd(s), "", &mnt);
	if (r == 0) {
		x->dir = openat(mnt, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		r = x->dir < 0 ? -errno : sl_fan_exempt(g, x->dir);
	}
	if (r == 0) {
		x->stop = eventfd(0, EFD_CLOEXEC);
		x->group = fanotify_init(FAN_CLASS_PRE_CONTENT | FAN_CLOEXEC | FAN_NONBLOCK |
					     FAN_UNLIMITED_QUEUE | FAN_REPORT_FD_ERROR,
					 (unsigned)mode | O_LARGEFILE | O_CLOEXEC | O_NOATIME);
		if (x->stop < 0 || x->group < 0)
			r = -errno;
	}
	if (r == 0) {
		r = -pthread_create(&x->thread, NULL, events, x);
		x->started = r == 0;
	}
	if (r < 0) {
		sl_silent_free(x);
		return r;
	}
	*ret = x;
	return 0;
}

void sl_silent_free(struct sl_silent *x)
{
	if (!x)
		return;
	uint64_t one = 1;
	if (x->started) {
		(void)!write(x->stop, &one, sizeof(one));
		pthread_join(x->thread, NULL);
	}
	int fds[] = {x->fd, x->group, x->stop, x->dir};
	for (size_t i = x->started ? 0 : 1; i < SL_ARRAY_SIZE(fds); i++)
		if (fds[i] >= 0)
			close(fds[i]);
	free(x);
}
