/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Reading, keeping and handing on.
 *
 * The kernel's queue has room for some 16,000 events and loses the rest. A storm fills it while a callback
 * runs, so there are two threads: `main` reads and calls back, one after the other, with nobody between the
 * kernel and the callback; when a read brings much, it wakes `relief`, which from then on does all the
 * reading, into a bounded queue, until `main` has caught up. A full queue stops relief: then the kernel's
 * queue overflows, which the kernel says in its place among the events.
 *
 * Settling needs no event of our own: the kernel says how much is in its queue (FIONREAD), which it gives out
 * in order. Of fanotify's events older kernels count the headers, newer ones (7.3 does) all of them. So it is
 * headers that we count, what the kernel says is that much or more, and as it may be more it is asked again
 * as long as somebody waits.
 */
#include "notify/backend.h"

#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>

#include "base/list.h"
#include "base/log.h"
#include "base/time.h"
#include "base/why.h"
#include "notify/internal.h"

/* What waits for the callback takes so much memory at most: some 500,000 changes. */
#define QUEUE_MAX (64u << 20)
/* A read of more than this wakes relief: some 180 events. */
#define RELIEF_FROM (16u << 10)
/* How long an event that wants to be seen with the next one is kept back at most. */
#define MORE_NS	       (20 * SL_NS_PER_MS)
#define MORE_ROOM      (32u << 10) /* behind a chunk, for what comes until then */
#define COMPLAIN_NS    (60 * SL_NS_PER_SEC)
#define AFTER_ERROR_MS 1000
#define QUIET_MS       20

struct chunk {
	struct sl_list link;
	size_t len; /* 0: there was an error: an unknown number of changes was lost */
	uint64_t units, when;
	_Alignas(8) char data[SL_NOTIFY_CHUNK + MORE_ROOM];
};

struct sl_backend {
	struct sl_backend_config cfg;
	struct sl_source *src;
	int stop_fd; /* readable: end */
	pthread_t main, relief;
	unsigned started; /* threads */

	/* Held around each read of the kernel's queue, which does not block, with its count. Before `lock`.
	 */
	pthread_mutex_t read_lock;
	uint64_t units_read;

	pthread_mutex_t lock; /* protects all below */
	pthread_cond_t main_cond, relief_cond, room_cond, settle_cond;
	struct sl_list queue; /* of chunks, in order */
	size_t queued;	      /* bytes of memory in it, at least half of them used */
	struct chunk *spare;
	bool stop;
	bool relieved;	/* relief has the reading, else main */
	bool main_idle; /* main waits for relief */
	bool drained;	/* the last read took all that was there */
	uint64_t units_done;
	struct sl_backend_stats stats;

	/* main only */
	struct sl_changes out;
	bool owe_quiet;
	uint64_t complained;
};

struct sl_change *sl_changes_add(struct sl_changes *c)
{
	if (c->n == c->size) {
		size_t size = c->size ? c->size * 2 : 64;
		struct sl_change *v = reallocarray(c->v, size, sizeof(*v));
		if (!v) {
			c->lost = true;
			return NULL;
		}
		c->v = v;
		c->size = size;
	}
	c->v[c->n] = (struct sl_change){0};
	return &c->v[c->n++];
}

static struct chunk *chunk_new(struct sl_backend *b)
{
	pthread_mutex_lock(&b->lock);
	struct chunk *c = sl_steal_ptr(&b->spare);
	pthread_mutex_unlock(&b->lock);
	return c ? c : malloc(sizeof(*c));
}

static void chunk_free(struct sl_backend *b, struct chunk *c)
{
	pthread_mutex_lock(&b->lock);
	if (!b->spare)
		b->spare = sl_steal_ptr(&c);
	pthread_mutex_unlock(&b->lock);
	free(c);
}

/* Wait for events, at most @ms (-1: as long as it takes). True if there are any. */
static bool wait_readable(struct sl_backend *b, int ms)
{
	struct pollfd p[2] = {{.fd = b->src->fd, .events = POLLIN}, {.fd = b->stop_fd, .events = POLLIN}};
	int r = poll(p, 2, ms);
	return r > 0 && p[0].revents && !p[1].revents;
}

static void pause_for(struct sl_backend *b, int ms)
{
	poll(&(struct pollfd){.fd = b->stop_fd, .events = POLLIN}, 1, ms);
}

/* Append what the kernel has to @c, up to @max in all. Returns how many bytes, -EAGAIN if there is nothing,
 * -errno. */
static ssize_t read_some(struct sl_backend *b, struct chunk *c, size_t max)
{
	pthread_mutex_lock(&b->read_lock);
	ssize_t n;
	do
		n = read(b->src->fd, c->data + c->len, max - c->len);
	while (n < 0 && errno == EINTR);
	if (n <= 0) {
		n = n < 0 ? -errno : -EAGAIN;
	} else {
		uint64_t units = b->src->ops->units(c->data + c->len, (size_t)n);
		b->units_read += units;
		c->units += units;
		c->len += (size_t)n;
	}
	pthread_mutex_unlock(&b->read_lock);
	return n;
}

/* Read into the empty chunk @c. Returns 0; -EAGAIN if there is nothing. @drained: nothing was left. */
static int fill(struct sl_backend *b, struct chunk *c, bool *drained)
{
	const struct sl_source_ops *ops = b->src->ops;
	size_t max = SL_NOTIFY_CHUNK;
	c->len = 0;
	c->units = 0;
	c->when = sl_now(); /* before: what happens until then is in it */
	ssize_t n = read_some(b, c, max);
	*drained = n == -EAGAIN || (n > 0 && max - c->len >= ops->room);
	if (n == -EAGAIN)
		return -EAGAIN;
	uint64_t now = sl_now(), end = now + MORE_NS;
	if (n < 0) {
		sl_err("reading changes of the tree failed: %s", strerror((int)-n));
		pause_for(b, AFTER_ERROR_MS);
		return 0;
	}
	max = sizeof(c->data);
	while (max - c->len >= ops->room && now < end && ops->more(c->data, c->len)) {
		if (!wait_readable(b, (int)SL_DIV_UP(end - now, SL_NS_PER_MS)) || read_some(b, c, max) < 0)
			break;
		*drained = max - c->len >= ops->room;
		now = sl_now();
	}
	return 0;
}

/* Many small reads do not take many chunks: append @c to the last one that waits, if it has room. */
static bool join(struct sl_backend *b, const struct chunk *c)
{
	struct chunk *last = sl_list_entry(b->queue.prev, struct chunk, link);
	if (sl_list_empty(&b->queue) || !last->len || !c->len || c->len > sizeof(last->data) - last->len)
		return false;
	memcpy(last->data + last->len, c->data, c->len);
	last->len += c->len;
	last->units += c->units;
	return true;
}

/* Read what there is into the queue. */
static void take(struct sl_backend *b)
{
	bool drained = false;
	struct chunk *c = chunk_new(b);
	if (!c) {
		pause_for(b, AFTER_ERROR_MS); /* what is lost by that the kernel will say */
		return;
	}
	int r = fill(b, c, &drained);
	pthread_mutex_lock(&b->lock);
	b->drained = drained;
	if (r == 0 && !join(b, c)) {
		b->queued += sizeof(*c);
		sl_list_add_tail(&b->queue, &c->link);
		c = NULL;
	}
	if (c && !b->spare)
		b->spare = sl_steal_ptr(&c);
	free(c);
	pthread_cond_signal(&b->main_cond);
	pthread_mutex_unlock(&b->lock);
}

/* With the lock held: the next chunk, or NULL. */
static struct chunk *pop(struct sl_backend *b)
{
	if (sl_list_empty(&b->queue))
		return NULL;
	struct chunk *c = sl_list_entry(b->queue.next, struct chunk, link);
	sl_list_del(&c->link);
	b->queued -= sizeof(*c);
	pthread_cond_signal(&b->room_cond);
	return c;
}

static void complain(struct sl_backend *b)
{
	uint64_t now = sl_now();
	if (b->complained && now - b->complained < COMPLAIN_NS)
		return;
	b->complained = now;
	sl_warn("changes of the tree came faster than they could be read, and some were lost: all is "
		"compared (a larger %s loses fewer)",
		b->src->ops->limit);
}

static void call(struct sl_backend *b, const struct sl_change *v, size_t n, bool idle)
{
	uint64_t lost = 0;
	for (size_t i = 0; i < n; i++)
		lost += v[i].mask == FAN_Q_OVERFLOW;
	if (lost)
		complain(b);
	pthread_mutex_lock(&b->lock);
	b->stats.changes += n - lost;
	b->stats.overflows += lost;
	pthread_mutex_unlock(&b->lock);
	b->owe_quiet = n > 0;
	b->cfg.changes(b->cfg.arg, v, (unsigned)n, idle);
}

static void deliver(struct sl_backend *b, struct chunk *c, bool idle)
{
	b->out.n = 0;
	b->out.lost = c->len == 0;
	b->src->ops->parse(b->src, c->data, c->len, c->when, &b->out);
	if (!b->out.lost) {
		if (b->out.n > 0)
			call(b, b->out.v, b->out.n, idle);
		return;
	}
	/* The room that there is must do for what there is no room for. */
	const struct sl_change overflow = {.mask = FAN_Q_OVERFLOW, .when = c->when};
	if (b->out.n > 0)
		call(b, b->out.v, b->out.n, false);
	call(b, &overflow, 1, idle);
}

/* Main: take the next chunk in order, and read it if need be. NULL: quiet (and @idle), or the end. */
static struct chunk *next(struct sl_backend *b, bool *idle)
{
	struct chunk *c = NULL;
	*idle = false;
	pthread_mutex_lock(&b->lock);
	while (!b->stop && !*idle && !(c = pop(b))) {
		if (b->relieved) {
			b->main_idle = true;
			pthread_cond_wait(&b->main_cond, &b->lock);
			b->main_idle = false;
			continue;
		}
		bool drained = b->drained;
		pthread_mutex_unlock(&b->lock);
		bool quiet = drained && !wait_readable(b, b->owe_quiet ? QUIET_MS : -1);
		if (!quiet)
			take(b);
		pthread_mutex_lock(&b->lock);
		*idle = quiet && b->owe_quiet && !b->stop;
	}
	if (c) {
		*idle = sl_list_empty(&b->queue) && b->drained;
		if (c->len >= RELIEF_FROM && !b->relieved) {
			b->relieved = true;
			pthread_cond_signal(&b->relief_cond);
		}
	}
	pthread_mutex_unlock(&b->lock);
	return c;
}

static void *main_thread(void *arg)
{
	struct sl_backend *b = arg;
	for (;;) {
		bool idle = false;
		struct chunk *c = next(b, &idle);
		if (c) {
			deliver(b, c, idle);
			pthread_mutex_lock(&b->lock);
			b->units_done += c->units;
			pthread_cond_broadcast(&b->settle_cond);
			pthread_mutex_unlock(&b->lock);
			chunk_free(b, c);
		} else if (idle) {
			call(b, NULL, 0, true);
		} else {
			return NULL;
		}
	}
}

/* Has main caught up, so that it can do the reading again? With the lock held. */
static bool hand_back(struct sl_backend *b)
{
	if (!b->main_idle || !sl_list_empty(&b->queue))
		return false;
	b->relieved = false;
	pthread_cond_signal(&b->main_cond);
	return true;
}

static void *relief_thread(void *arg)
{
	struct sl_backend *b = arg;
	pthread_mutex_lock(&b->lock);
	while (!b->stop) {
		if (!b->relieved) {
			pthread_cond_wait(&b->relief_cond, &b->lock);
			continue;
		}
		if (hand_back(b))
			continue;
		if (b->queued >= QUEUE_MAX) {
			pthread_cond_wait(&b->room_cond, &b->lock);
			continue;
		}
		bool drained = b->drained;
		pthread_mutex_unlock(&b->lock);
		if (drained)
			wait_readable(b, -1);
		pthread_mutex_lock(&b->lock);
		if (b->stop || (drained && hand_back(b)))
			continue;
		pthread_mutex_unlock(&b->lock);
		take(b);
		pthread_mutex_lock(&b->lock);
	}
	pthread_mutex_unlock(&b->lock);
	return NULL;
}

static int open_source(struct sl_backend *b, char **why)
{
	const struct sl_backend_config *cfg = &b->cfg;
	int r = -EOPNOTSUPP;
	if (cfg->kind != SL_BACKEND_INOTIFY) {
		_cleanup_free_ char *no = NULL;
		r = sl_fanotify_source.open(cfg, &b->src, &no);
		if (r == 0 || cfg->kind == SL_BACKEND_FANOTIFY)
			return r == 0 ? 0 : sl_fail(why, r, "%s", no ? no : strerror(-r));
		sl_debug("no fanotify for changes of the tree (%s): inotify", no ? no : strerror(-r));
	}
	return sl_inotify_source.open(cfg, &b->src, why);
}

int sl_backend_open(const struct sl_backend_config *cfg, struct sl_backend **ret, char **why)
{
	struct sl_backend *b = calloc(1, sizeof(*b));
	if (!b)
		return sl_fail(why, -ENOMEM, "no memory");
	b->cfg = *cfg;
	pthread_mutex_init(&b->read_lock, NULL);
	pthread_mutex_init(&b->lock, NULL);
	pthread_cond_init(&b->main_cond, NULL);
	pthread_cond_init(&b->relief_cond, NULL);
	pthread_cond_init(&b->room_cond, NULL);
	pthread_cond_init(&b->settle_cond, NULL);
	sl_list_init(&b->queue);
	b->drained = true;
	b->stop_fd = eventfd(0, EFD_CLOEXEC);
	int r = b->stop_fd < 0 ? sl_fail(why, -errno, "eventfd: %s", strerror(errno)) : open_source(b, why);
	if (r == 0 && (r = -pthread_create(&b->main, NULL, main_thread, b)) == 0) {
		pthread_setname_np(b->main, "notify");
		b->started++;
		r = -pthread_create(&b->relief, NULL, relief_thread, b);
	}
	if (r == 0) {
		pthread_setname_np(b->relief, "notify-relief");
		b->started++;
		*ret = b;
		return 0;
	}
	sl_fail(why, r, "changes of the tree cannot be listened for: %s", strerror(-r));
	sl_backend_close(b);
	return r;
}

void sl_backend_close(struct sl_backend *b)
{
	if (!b)
		return;
	pthread_mutex_lock(&b->lock);
	b->stop = true;
	pthread_cond_broadcast(&b->main_cond);
	pthread_cond_broadcast(&b->relief_cond);
	pthread_cond_broadcast(&b->room_cond);
	pthread_cond_broadcast(&b->settle_cond);
	pthread_mutex_unlock(&b->lock);
	if (b->stop_fd >= 0)
		eventfd_write(b->stop_fd, 1);
	if (b->started > 0)
		pthread_join(b->main, NULL);
	if (b->started > 1)
		pthread_join(b->relief, NULL);
	struct chunk *c;
	while ((c = pop(b)))
		free(c);
	free(b->spare);
	free(b->out.v);
	if (b->src)
		b->src->ops->close(b->src);
	sl_closep(&b->stop_fd);
	pthread_cond_destroy(&b->main_cond);
	pthread_cond_destroy(&b->relief_cond);
	pthread_cond_destroy(&b->room_cond);
	pthread_cond_destroy(&b->settle_cond);
	pthread_mutex_destroy(&b->lock);
	pthread_mutex_destroy(&b->read_lock);
	free(b);
}

enum sl_backend_kind sl_backend_kind(const struct sl_backend *b)
{
	return b->src->ops->kind;
}

int sl_backend_mark(struct sl_backend *b, int fd, const struct sl_evid *id)
{
	return b->src->ops->mark(b->src, fd, id);
}

void sl_backend_unmark(struct sl_backend *b, const struct sl_evid *id)
{
	b->src->ops->unmark(b->src, id);
}

int sl_backend_use(struct sl_backend *b, uint64_t mask)
{
	mask &= SL_CHANGE_USE;
	int r = mask == b->src->use ? 0 : b->src->ops->use(b->src, mask);
	if (r == 0)
		b->src->use = mask;
	return r;
}

int sl_backend_settle(struct sl_backend *b)
{
	uint64_t target = UINT64_MAX; /* it is no later than that */
	for (;;) {
		int waiting = 0;
		pthread_mutex_lock(&b->read_lock); /* what was taken out of the queue has been counted */
		int r = ioctl(b->src->fd, FIONREAD, &waiting) < 0 ? -errno : 0;
		target = SL_MIN(target, b->units_read + (unsigned)waiting);
		pthread_mutex_lock(&b->lock); /* what waits is done after that, and says so */
		pthread_mutex_unlock(&b->read_lock);
		bool done = b->units_done >= target, stop = b->stop;
		if (r == 0 && !done && !stop)
			pthread_cond_wait(&b->settle_cond, &b->lock);
		pthread_mutex_unlock(&b->lock);
		if (r < 0 || done || stop)
			return r < 0 ? r : done ? 0 : -ESHUTDOWN;
	}
}

void sl_backend_get_stats(struct sl_backend *b, struct sl_backend_stats *st)
{
	pthread_mutex_lock(&b->lock);
	*st = b->stats;
	sl_list_for_each (it, &b->queue)
		st->waiting += sl_list_entry(it, struct chunk, link)->len;
	pthread_mutex_unlock(&b->lock);
	st->marks = atomic_load(&b->src->marks);
}
