/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Many answers at once. For each answer the kernel wakes all that wait for one, who look, and go back to
 * sleep: with thousands of them that is nearly all the time there is. Whom it has woken it does not wake
 * again before that, so answers are cheap that are given in one call, after the first. What becomes ready
 * while others are being answered is answered with the next call.
 */
#include <string.h>
#include <sys/fanotify.h>
#include <sys/uio.h>

#include "base/log.h"
#include "base/time.h"
#include "gate/fanotify/internal.h"

#define BATCH	    512 /* answers in one call */
#define OBJECTS_MAX 64	/* that they are about */

struct batch {
	struct sl_fan *g;
	struct sl_object *held[OBJECTS_MAX]; /* whose io lock is held, shared */
	size_t nheld, n, nlater;
	struct waiter *v[BATCH], *later[BATCH];
	struct fanotify_response r[BATCH];
};

/* Two objects' locks: the second one only if nobody is in the way. */
static bool hold(struct batch *b, struct sl_object *o)
{
	for (size_t i = b->nheld; i > 0; i--)
		if (b->held[i - 1] == o)
			return true;
	if (b->nheld == OBJECTS_MAX ||
	    (b->nheld ? pthread_rwlock_tryrdlock(&o->io) : pthread_rwlock_rdlock(&o->io)) != 0)
		return false;
	b->held[b->nheld++] = o;
	return true;
}

/* Is what it waits for here, for as long as the io lock is held? As look() in events.c has it. */
static bool is_ready(struct waiter *w, struct sl_object *o)
{
	struct stat st;
	if (o->damaged || fstat(w->fd, &st) < 0)
		return false;
	pthread_mutex_lock(&o->lock);
	bool full = fan_full(o, &st);
	bool here = w->as_said && !o->evicting && !fan_cut(o, &st) && !sl_object_uncertain(o) &&
		    sl_chunkmap_test(&o->map, w->s.off, w->s.len);
	if (full) /* with the lock: whoever evicts it takes the mark away after this */
		fan_ignore(w->g, w->fd);
	else if (here)
		o->allowed = sl_now();
	pthread_mutex_unlock(&o->lock);
	return full || here;
}

static void add(struct batch *b, struct waiter *w)
{
	if (hold(b, w->want.o) && is_ready(w, w->want.o)) {
		b->r[b->n] = (struct fanotify_response){.fd = w->fd, .response = FAN_ALLOW};
		b->v[b->n++] = w;
	} else {
		b->later[b->nlater++] = w;
	}
}

static void answer(struct batch *b)
{
	struct iovec iov[BATCH];
	for (size_t i = 0; i < b->n; i++)
		iov[i] = (struct iovec){&b->r[i], sizeof(b->r[i])};
	for (size_t i = 0; i < b->n;) {
		ssize_t k = writev(b->g->group, iov + i, (int)(b->n - i));
		i += k > 0 ? (size_t)k / sizeof(b->r[0]) : 0;
		if (i < b->n) { /* one that was killed, mostly */
			fan_respond(b->g, b->r[i].fd, FAN_ALLOW);
			i++;
		}
	}
}

static void run(struct sl_work *work)
{
	struct sl_fan *g = sl_container_of(work, struct sl_fan, answers);
	struct batch *b = &(struct batch){.g = g};
	for (;;) {
		size_t n = 0;
		b->n = b->nlater = b->nheld = 0;
		struct waiter *taken[BATCH];
		pthread_mutex_lock(&g->lock);
		for (; n < BATCH && !sl_list_empty(&g->ready); n++) {
			taken[n] = sl_list_entry(g->ready.next, struct waiter, work.link);
			sl_list_del(&taken[n]->work.link);
		}
		g->answering = n > 0;
		pthread_mutex_unlock(&g->lock);
		if (n == 0)
			return;
		for (size_t i = 0; i < n; i++)
			add(b, taken[i]);
		answer(b);
		for (size_t i = 0; i < b->nheld; i++)
			pthread_rwlock_unlock(&b->held[i]->io);
		for (size_t i = 0; i < b->n; i++) {
			struct waiter *w = b->v[i];
			sl_fill_note_read(g->fill, w->want.o, w->s.off, w->s.len);
			sl_object_put(w->want.o);
			fan_waiter_end(w, 0);
		}
		for (size_t i = 0; i < b->nlater; i++) {
			sl_object_put(b->later[i]->want.o);
			fan_dispatch(b->later[i]);
		}
	}
}

void fan_ready(struct waiter *w)
{
	struct sl_fan *g = w->g;
	pthread_mutex_lock(&g->lock);
	bool start = !g->answering;
	g->answering = true;
	sl_list_add_tail(&g->ready, &w->work.link);
	if (start) {
		g->answers.run = run;
		sl_pool_push(g->pool, &g->answers);
	}
	pthread_mutex_unlock(&g->lock);
}

bool fan_answering(struct sl_fan *g)
{
	pthread_mutex_lock(&g->lock);
	bool is = g->answering;
	pthread_mutex_unlock(&g->lock);
	return is;
}
