/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Changes of content: the kernel tells of them after the fact, and of each before whoever made it can close
 * the file. */
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/fanotify.h>
#include <sys/ioctl.h>

#include "base/log.h"
#include "gate/fanotify/internal.h"

static bool ours(struct sl_fan *g, int32_t pid)
{
	for (size_t i = 0; i < SL_ARRAY_SIZE(g->area->pids); i++)
		if (g->area->pids[i] == pid)
			return true;
	return false;
}

static void changed(struct sl_fan *g, const struct fanotify_event_metadata *m)
{
	const struct fanotify_event_info_fid *x = (const void *)((const char *)m + m->metadata_len);
	const struct file_handle *raw = (const void *)x->handle;
	struct sl_handle h;
	if (ours(g, m->pid) || m->event_len < m->metadata_len + sizeof(*x) + sizeof(*raw) ||
	    x->hdr.info_type != FAN_EVENT_INFO_TYPE_FID || raw->handle_bytes > sizeof(h.b) ||
	    m->event_len < m->metadata_len + sizeof(*x) + sizeof(*raw) + raw->handle_bytes)
		return;
	h = (struct sl_handle){.len = raw->handle_bytes, .type = raw->handle_type};
	memcpy(h.b, raw->f_handle, h.len);
	_cleanup_close_ int fd = sl_handle_open(sl_store_fs_fd(g->store), &h, O_PATH);
	_cleanup_object_ struct sl_object *o = NULL;
	if (fd < 0 || sl_object_of_fd(g->store, fd, &o) < 0)
		return; /* it is gone */
	sl_fill_written(g->fill, o);
	pthread_mutex_lock(&o->lock);
	bool known = o->rec.flags & (SL_MODIFIED | SL_LOCAL);
	pthread_mutex_unlock(&o->lock);
	char p[SL_PROC_FD_MAX];
	/* Once is enough. */
	if (known)
		(void)fanotify_mark(g->notify, FAN_MARK_ADD | FAN_MARK_EVICTABLE | SL_FAN_IGNORE, FAN_TOLD,
				    AT_FDCWD, sl_proc_fd_path(p, fd, NULL));
}

/* One of these, with the largest handle that there is. */
#define EVENT_MAX 256

static void handle(struct sl_fan *g, size_t n)
{
	const char *p = g->area->changes;
	union {
		struct fanotify_event_metadata m;
		char b[EVENT_MAX];
	} e;
	/* Copied: they follow one another at multiples of four bytes (ext4's handles have eight). */
	for (size_t len; n >= sizeof(e.m); p += len, n -= len) {
		memcpy(&e.m, p, sizeof(e.m));
		len = e.m.event_len;
		if (len < sizeof(e.m) || len > n)
			break;
		memcpy(e.b, p, SL_MIN(len, sizeof(e.b)));
		if (len > sizeof(e.b))
			sl_err("the kernel told of a change with a handle that is too long");
		else if (e.m.mask & FAN_TOLD)
			changed(g, &e.m);
		else if (e.m.mask & FAN_Q_OVERFLOW)
			sl_err("the kernel's queue of changes overflowed, although it has no limit");
	}
}

/* The headers of the events in @n bytes. */
static uint64_t headers(const char *p, size_t n)
{
	uint64_t k = 0;
	for (uint32_t len; n >= FAN_EVENT_METADATA_LEN; p += len, n -= len) {
		memcpy(&len, p, sizeof(len)); /* the first member */
		if (len < FAN_EVENT_METADATA_LEN || len > n)
			break;
		k += FAN_EVENT_METADATA_LEN;
	}
	return k;
}

void *fan_changes(void *arg)
{
	struct sl_fan *g = arg;
	struct pollfd p[2] = {{.fd = g->notify, .events = POLLIN}, {.fd = g->stop_fd, .events = POLLIN}};
	handle(g, READ_BYTES); /* what an earlier service had read, and maybe not got to */
	for (;;) {
		pthread_mutex_lock(&g->lock);
		memset(g->area->changes, 0, READ_BYTES);
		ssize_t n = read(g->notify, g->area->changes, READ_BYTES);
		int e = errno;
		if (n > 0)
			g->told += headers(g->area->changes, (size_t)n);
		pthread_mutex_unlock(&g->lock);
		if (n > 0) {
			handle(g, (size_t)n);
			pthread_mutex_lock(&g->lock);
			g->handled = g->told;
			pthread_cond_broadcast(&g->cond);
			pthread_mutex_unlock(&g->lock);
		} else if (e == EAGAIN) {
			if (poll(p, 2, -1) > 0 && p[1].revents && !p[0].revents)
				return NULL;
		} else if (e != EINTR) {
			sl_err("cannot read what was changed: %s", strerror(e));
			return NULL;
		}
	}
}

/* The kernel says that much of what is queued, or more, and is asked again: see notify/backend.c. */
int sl_fan_settle(struct sl_fan *g)
{
	uint64_t until = UINT64_MAX;
	int left = 0, r = 0;
	pthread_mutex_lock(&g->lock);
	for (;;) {
		if (ioctl(g->notify, FIONREAD, &left) < 0)
			r = -errno;
		until = SL_MIN(until, g->told + (uint64_t)left);
		if (r < 0 || g->handled >= until || !g->started)
			break;
		pthread_cond_wait(&g->cond, &g->lock);
	}
	pthread_mutex_unlock(&g->lock);
	return r;
}
