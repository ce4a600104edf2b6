/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "mount/stream.h"

#include <pthread.h>
#include <string.h>

#include "base/list.h"
#include "base/macros.h"
#include "base/time.h"

/* How long the other half of an exchange may take, which is sent with the first. */
#define NEXT_MS 50
/* For so long after a change the helper keeps the mount busy. */
#define REST_MS 5

#define FIFO_MAX       (64u << 10)
#define FIFO_MAX_BYTES (16u << 20)

/* ---- raising ---- */

struct item {
	void *buf;
	struct sl_fsnotify_msg m;
};

static int receive(const struct sl_stream *s, int timeout_ms, struct item *it)
{
	const void *body;
	size_t len;
	int r = s->next(s->arg, timeout_ms, &it->buf, &body, &len);
	if (r < 0)
		return r;
	r = sl_fsnotify_parse(body, len, &it->m);
	if (r < 0) {
		free(it->buf);
		it->buf = NULL;
	}
	return r;
}

int sl_stream_raise(const struct sl_stream *s, struct sl_raise *r)
{
	struct item cur = {0}, next = {0};
	int err = 0;
	while (err == 0) {
		if (!cur.buf) {
			err = receive(s, REST_MS, &cur);
			if (err == -EAGAIN) {
				sl_raise_rest(r);
				err = receive(s, -1, &cur);
			}
			if (err < 0)
				break;
		}
		if (sl_raise_needs_next(&cur.m)) {
			err = receive(s, NEXT_MS, &next);
			if (err == -EAGAIN)
				err = 0;
		}
		int used = sl_raise_notify(r, &cur.m, next.buf ? &next.m : NULL);
		free(cur.buf);
		cur.buf = NULL;
		if (used)
			free(next.buf);
		else
			cur = next;
		next.buf = NULL;
	}
	free(cur.buf);
	sl_raise_rest(r);
	return err;
}

/* ---- fifo ---- */

struct body {
	struct sl_list link;
	size_t len;
	char bytes[];
};

struct sl_fifo {
	pthread_mutex_t lock; /* protects all */
	pthread_cond_t cond;
	struct sl_list list;
	size_t n, bytes;
	bool end;
};

int sl_fifo_new(struct sl_fifo **ret)
{
	struct sl_fifo *f = calloc(1, sizeof(*f));
	if (!f)
		return -ENOMEM;
	pthread_condattr_t a;
	pthread_condattr_init(&a);
	pthread_condattr_setclock(&a, CLOCK_MONOTONIC);
	pthread_cond_init(&f->cond, &a);
	pthread_condattr_destroy(&a);
	pthread_mutex_init(&f->lock, NULL);
	sl_list_init(&f->list);
	*ret = f;
	return 0;
}

static void clear(struct sl_fifo *f)
{
	while (!sl_list_empty(&f->list)) {
		struct body *b = sl_list_entry(f->list.next, struct body, link);
		sl_list_del(&b->link);
		free(b);
	}
	f->n = f->bytes = 0;
}

void sl_fifo_free(struct sl_fifo *f)
{
	if (!f)
		return;
	clear(f);
	pthread_cond_destroy(&f->cond);
	pthread_mutex_destroy(&f->lock);
	free(f);
}

static bool add(struct sl_fifo *f, const void *bytes, size_t len)
{
	struct body *b = malloc(sizeof(*b) + len);
	if (!b)
		return false;
	b->len = len;
	memcpy(b->bytes, bytes, len);
	sl_list_add_tail(&f->list, &b->link);
	f->n++;
	f->bytes += len;
	return true;
}

void sl_fifo_put(struct sl_fifo *f, const void *body, size_t len)
{
	pthread_mutex_lock(&f->lock);
	if (f->n >= FIFO_MAX || f->bytes + len > FIFO_MAX_BYTES || !add(f, body, len)) {
		const struct fuse_notify_fsnotify_out lost = {.flags = FUSE_FSNOTIFY_OVERFLOW};
		clear(f);
		(void)add(f, &lost, sizeof(lost));
	}
	pthread_cond_signal(&f->cond);
	pthread_mutex_unlock(&f->lock);
}

void sl_fifo_end(struct sl_fifo *f)
{
	pthread_mutex_lock(&f->lock);
	f->end = true;
	pthread_cond_signal(&f->cond);
	pthread_mutex_unlock(&f->lock);
}

int sl_fifo_next(void *arg, int timeout_ms, void **buf, const void **body, size_t *len)
{
	struct sl_fifo *f = arg;
	struct timespec until = sl_ns_to_timespec(sl_now() + (uint64_t)SL_MAX(timeout_ms, 0) * SL_NS_PER_MS);
	int r = 0;
	pthread_mutex_lock(&f->lock);
	while (sl_list_empty(&f->list) && !f->end && r == 0)
		r = timeout_ms < 0 ? -pthread_cond_wait(&f->cond, &f->lock)
				   : -pthread_cond_timedwait(&f->cond, &f->lock, &until);
	if (f->end) {
		r = -ENODATA;
	} else if (sl_list_empty(&f->list)) {
		r = -EAGAIN;
	} else {
		struct body *b = sl_list_entry(f->list.next, struct body, link);
		sl_list_del(&b->link);
		f->n--;
		f->bytes -= b->len;
		*buf = b;
		*body = b->bytes;
		*len = b->len;
		r = 0;
	}
	pthread_mutex_unlock(&f->lock);
	return r;
}
