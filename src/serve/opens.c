/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "serve/opens.h"

#include <pthread.h>

#include "base/time.h"

struct sl_opens {
	pthread_mutex_t lock; /* protects the tables, and refs of the handles */
	struct sl_htab by_fh, by_node;
	unsigned max;
	atomic_uint *total; /* handles of all connections; those released but still in use are not counted */
	unsigned max_total;
	uint64_t next_fh;
};

int sl_opens_new(unsigned max, atomic_uint *total, unsigned max_total, struct sl_opens **ret)
{
	struct sl_opens *t = calloc(1, sizeof(*t));
	if (!t)
		return -ENOMEM;
	pthread_mutex_init(&t->lock, NULL);
	t->max = max;
	t->total = total;
	t->max_total = max_total;
	t->next_fh = 1;
	*ret = t;
	return 0;
}

static void open_free(struct sl_open *h)
{
	sl_closep(&h->fd);
	free(h);
}

void sl_opens_free(struct sl_opens *t)
{
	if (!t)
		return;
	size_t i;
	for (struct sl_hnode *n = sl_htab_first(&t->by_fh, &i), *next; n; n = next) {
		next = sl_htab_step(&t->by_fh, &i, n);
		open_free(sl_container_of(n, struct sl_open, by_fh));
	}
	*t->total -= (unsigned)t->by_fh.n;
	sl_htab_fini(&t->by_fh);
	sl_htab_fini(&t->by_node);
	pthread_mutex_destroy(&t->lock);
	free(t);
}

static int insert(struct sl_opens *t, struct sl_open *h)
{
	if (t->by_fh.n >= t->max || *t->total >= t->max_total)
		return -ENFILE;
	if (sl_htab_add(&t->by_fh, &h->by_fh, t->next_fh) < 0)
		return -ENOMEM;
	if (sl_htab_add(&t->by_node, &h->by_node, h->nodeid) < 0) {
		sl_htab_del(&t->by_fh, &h->by_fh);
		return -ENOMEM;
	}
	++*t->total;
	return 0;
}

int sl_opens_add(struct sl_opens *t, uint64_t nodeid, int fd, uint64_t *ret_fh)
{
	struct sl_open *h = calloc(1, sizeof(*h));
	if (!h) {
		sl_closep(&fd);
		return -ENOMEM;
	}
	h->refs = 1; /* the client's */
	h->nodeid = nodeid;
	h->fd = fd;
	h->checked = sl_now();
	pthread_mutex_lock(&t->lock);
	int r = insert(t, h);
	if (r == 0)
		*ret_fh = t->next_fh++;
	pthread_mutex_unlock(&t->lock);
	if (r < 0)
		open_free(h);
	return r;
}

static struct sl_open *find(struct sl_opens *t, uint64_t nodeid, uint64_t fh)
{
	struct sl_hnode *n = sl_htab_find(&t->by_fh, fh);
	struct sl_open *h = n ? sl_container_of(n, struct sl_open, by_fh) : NULL;
	return h && h->nodeid == nodeid ? h : NULL;
}

struct sl_open *sl_opens_get(struct sl_opens *t, uint64_t nodeid, uint64_t fh)
{
	pthread_mutex_lock(&t->lock);
	struct sl_open *h = find(t, nodeid, fh);
	if (h)
		h->refs++;
	pthread_mutex_unlock(&t->lock);
	return h;
}

struct sl_open *sl_opens_of(struct sl_opens *t, uint64_t nodeid)
{
	pthread_mutex_lock(&t->lock);
	struct sl_hnode *n = sl_htab_find(&t->by_node, nodeid);
	struct sl_open *h = n ? sl_container_of(n, struct sl_open, by_node) : NULL;
	if (h)
		h->refs++;
	pthread_mutex_unlock(&t->lock);
	return h;
}

void sl_opens_put(struct sl_opens *t, struct sl_open *h)
{
	pthread_mutex_lock(&t->lock);
	bool last = --h->refs == 0;
	pthread_mutex_unlock(&t->lock);
	if (last)
		open_free(h);
}

int sl_opens_release(struct sl_opens *t, uint64_t nodeid, uint64_t fh)
{
	pthread_mutex_lock(&t->lock);
	struct sl_open *h = find(t, nodeid, fh);
	if (h) {
		sl_htab_del(&t->by_fh, &h->by_fh);
		sl_htab_del(&t->by_node, &h->by_node);
		--*t->total;
	}
	pthread_mutex_unlock(&t->lock);
	if (!h)
		return -EBADF;
	sl_opens_put(t, h);
	return 0;
}
