/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "serve/files.h"

#include <errno.h>
#include <pthread.h>

#include "base/list.h"
#include "base/time.h"

#define IDLE (5 * SL_NS_PER_SEC)

struct entry {
	struct sl_file file;
	struct sl_hnode node; /* key: the inode number */
	uint64_t generation;
	struct sl_list idle; /* in files.idle while refs is 0 */
	uint64_t used;	     /* when refs became 0 */
	unsigned refs;
	bool hashed; /* still to be found */
};

struct sl_files {
	pthread_mutex_t lock; /* protects all below and the entries */
	pthread_cond_t cond;  /* the sweeper's: the list is not empty any more, or stop */
	struct sl_htab tab;
	struct sl_list idle; /* the least recently used first */
	unsigned max;
	bool stop;
	pthread_t sweeper;
};

static struct entry *find(struct sl_files *c, uint64_t ino, uint64_t generation)
{
	for (struct sl_hnode *h = sl_htab_find(&c->tab, ino); h; h = sl_htab_next(h)) {
		struct entry *e = sl_container_of(h, struct entry, node);
		if (e->generation == generation)
			return e;
	}
	return NULL;
}

static void hold(struct entry *e)
{
	if (e->refs++ == 0)
		sl_list_del(&e->idle);
}

/* Close an entry that nobody uses. */
static void discard(struct sl_files *c, struct entry *e)
{
	if (e->hashed)
		sl_htab_del(&c->tab, &e->node);
	sl_list_del(&e->idle);
	close(e->file.fd);
	free(e);
}

static void trim(struct sl_files *c, size_t max)
{
	while (c->tab.n > max && !sl_list_empty(&c->idle))
		discard(c, sl_list_entry(c->idle.next, struct entry, idle));
}

struct sl_file *sl_files_get(struct sl_files *c, uint64_t ino, uint64_t generation)
{
	pthread_mutex_lock(&c->lock);
	struct entry *e = find(c, ino, generation);
	if (e)
		hold(e);
	pthread_mutex_unlock(&c->lock);
	return e ? &e->file : NULL;
}

struct sl_file *sl_files_add(struct sl_files *c, uint64_t ino, uint64_t generation, int fd)
{
	struct entry *n = calloc(1, sizeof(*n));
	pthread_mutex_lock(&c->lock);
	struct entry *e = find(c, ino, generation);
	if (e) {
		hold(e);
	} else if (n) {
		trim(c, c->max - 1);
		n->file.fd = fd;
		n->generation = generation;
		n->refs = 1;
		sl_list_init(&n->idle);
		if (sl_htab_add(&c->tab, &n->node, ino) == 0) {
			n->hashed = true;
			e = n;
		}
	}
	pthread_mutex_unlock(&c->lock);
	if (!e || e != n) {
		close(fd);
		free(n);
	}
	return e ? &e->file : NULL;
}

void sl_files_put(struct sl_files *c, struct sl_file *f, int stale)
{
	struct entry *e = sl_container_of(f, struct entry, file);
	pthread_mutex_lock(&c->lock);
	if (stale && e->hashed) {
		sl_htab_del(&c->tab, &e->node);
		e->hashed = false;
	}
	if (--e->refs == 0) {
		if (!e->hashed) {
			discard(c, e);
		} else {
			if (sl_list_empty(&c->idle))
				pthread_cond_signal(&c->cond);
			e->used = sl_now();
			sl_list_add_tail(&c->idle, &e->idle);
			trim(c, c->max);
		}
	}
	pthread_mutex_unlock(&c->lock);
}

static void *sweep(void *arg)
{
	struct sl_files *c = arg;
	pthread_mutex_lock(&c->lock);
	while (!c->stop) {
		if (sl_list_empty(&c->idle)) {
			pthread_cond_wait(&c->cond, &c->lock);
			continue;
		}
		struct entry *e = sl_list_entry(c->idle.next, struct entry, idle);
		uint64_t due = e->used + IDLE;
		if (due <= sl_now()) {
			discard(c, e);
			continue;
		}
		struct timespec ts = sl_ns_to_timespec(due);
		pthread_cond_timedwait(&c->cond, &c->lock, &ts);
	}
	pthread_mutex_unlock(&c->lock);
	return NULL;
}

int sl_files_new(unsigned max, struct sl_files **ret)
{
	struct sl_files *c = calloc(1, sizeof(*c));
	if (!c)
		return -ENOMEM;
	pthread_condattr_t a;
	pthread_condattr_init(&a);
	pthread_condattr_setclock(&a, CLOCK_MONOTONIC);
	pthread_cond_init(&c->cond, &a);
	pthread_condattr_destroy(&a);
	pthread_mutex_init(&c->lock, NULL);
	sl_list_init(&c->idle);
	c->max = SL_MAX(max, 1u);
	int r = pthread_create(&c->sweeper, NULL, sweep, c);
	if (r != 0) {
		pthread_cond_destroy(&c->cond);
		pthread_mutex_destroy(&c->lock);
		free(c);
		return -r;
	}
	pthread_setname_np(c->sweeper, "file-sweeper");
	*ret = c;
	return 0;
}

void sl_files_free(struct sl_files *c)
{
	if (!c)
		return;
	pthread_mutex_lock(&c->lock);
	c->stop = true;
	pthread_cond_signal(&c->cond);
	pthread_mutex_unlock(&c->lock);
	pthread_join(c->sweeper, NULL);
	trim(c, 0);
	sl_htab_fini(&c->tab);
	pthread_cond_destroy(&c->cond);
	pthread_mutex_destroy(&c->lock);
	free(c);
}
