/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "serve/dirs.h"

#include <errno.h>
#include <unistd.h>

#include "base/time.h"

#define BUF_SIZE 32768

struct sl_dirs {
	pthread_mutex_t lock; /* protects the table, and refs of the handles */
	struct sl_htab tab;
	unsigned max;
	atomic_uint *total; /* handles of all connections; those released but still in use are not counted */
	unsigned max_total;
	uint64_t next_fh;
};

int sl_dirs_new(unsigned max, atomic_uint *total, unsigned max_total, struct sl_dirs **ret)
{
	struct sl_dirs *d = calloc(1, sizeof(*d));
	if (!d)
		return -ENOMEM;
	pthread_mutex_init(&d->lock, NULL);
	d->max = max;
	d->total = total;
	d->max_total = max_total;
	d->next_fh = 1;
	*ret = d;
	return 0;
}

static void dir_free(struct sl_dir *h)
{
	sl_closep(&h->fd);
	pthread_mutex_destroy(&h->lock);
	free(h->buf);
	free(h);
}

void sl_dirs_free(struct sl_dirs *d)
{
	if (!d)
		return;
	size_t i;
	for (struct sl_hnode *n = sl_htab_first(&d->tab, &i), *next; n; n = next) {
		next = sl_htab_step(&d->tab, &i, n);
		dir_free(sl_container_of(n, struct sl_dir, node));
	}
	*d->total -= (unsigned)d->tab.n;
	sl_htab_fini(&d->tab);
	pthread_mutex_destroy(&d->lock);
	free(d);
}

int sl_dirs_add(struct sl_dirs *d, uint64_t nodeid, int fd, uint64_t *ret_fh)
{
	struct sl_dir *h = calloc(1, sizeof(*h));
	int r = 0;
	if (!h) {
		sl_closep(&fd);
		return -ENOMEM;
	}
	pthread_mutex_init(&h->lock, NULL);
	h->refs = 1; /* the client's */
	h->nodeid = nodeid;
	h->fd = fd;
	h->checked = sl_now();
	pthread_mutex_lock(&d->lock);
	if (d->tab.n >= d->max || *d->total >= d->max_total)
		r = -ENFILE;
	else
		r = sl_htab_add(&d->tab, &h->node, d->next_fh);
	if (r == 0) {
		*ret_fh = d->next_fh++;
		++*d->total;
	}
	pthread_mutex_unlock(&d->lock);
	if (r < 0)
		dir_free(h);
	return r;
}

static struct sl_dir *find(struct sl_dirs *d, uint64_t nodeid, uint64_t fh)
{
	struct sl_hnode *n = sl_htab_find(&d->tab, fh);
	struct sl_dir *h = n ? sl_container_of(n, struct sl_dir, node) : NULL;
	return h && h->nodeid == nodeid ? h : NULL;
}

struct sl_dir *sl_dirs_get(struct sl_dirs *d, uint64_t nodeid, uint64_t fh)
{
	pthread_mutex_lock(&d->lock);
	struct sl_dir *h = find(d, nodeid, fh);
	if (h)
		h->refs++;
	pthread_mutex_unlock(&d->lock);
	return h;
}

struct sl_dir *sl_dirs_of(struct sl_dirs *d, uint64_t nodeid)
{
	struct sl_dir *h = NULL;
	size_t i;
	pthread_mutex_lock(&d->lock);
	for (struct sl_hnode *n = sl_htab_first(&d->tab, &i); n && !h; n = sl_htab_step(&d->tab, &i, n)) {
		struct sl_dir *x = sl_container_of(n, struct sl_dir, node);
		if (x->nodeid == nodeid && x->fd >= 0)
			h = x;
	}
	if (h)
		h->refs++;
	pthread_mutex_unlock(&d->lock);
	return h;
}

void sl_dirs_put(struct sl_dirs *d, struct sl_dir *h)
{
	pthread_mutex_lock(&d->lock);
	bool last = --h->refs == 0;
	pthread_mutex_unlock(&d->lock);
	if (last)
		dir_free(h);
}

int sl_dirs_release(struct sl_dirs *d, uint64_t nodeid, uint64_t fh)
{
	pthread_mutex_lock(&d->lock);
	struct sl_dir *h = find(d, nodeid, fh);
	if (h) {
		sl_htab_del(&d->tab, &h->node);
		--*d->total;
	}
	pthread_mutex_unlock(&d->lock);
	if (!h)
		return -EBADF;
	sl_dirs_put(d, h);
	return 0;
}

int sl_dir_seek(struct sl_dir *h, uint64_t off)
{
	/* From the start, the directory is read anew even if it was only begun: a rewind shows what is new.
	 */
	if (off == h->pos && off != 0)
		return 0;
	if (off > INT64_MAX)
		return -EINVAL;
	if (lseek(h->fd, (off_t)off, SEEK_SET) < 0)
		return -errno;
	h->pos = off;
	h->at = h->len = 0;
	return 0;
}

int sl_dir_peek(struct sl_dir *h, const struct dirent64 **ret)
{
	if (h->at == h->len) {
		if (!h->buf && !(h->buf = malloc(BUF_SIZE)))
			return -ENOMEM;
		ssize_t n = getdents64(h->fd, h->buf, BUF_SIZE);
		h->at = 0;
		h->len = n > 0 ? (size_t)n : 0;
		if (n <= 0)
			return n < 0 ? -errno : 0;
	}
	*ret = (const struct dirent64 *)(h->buf + h->at);
	return 1;
}

void sl_dir_skip(struct sl_dir *h)
{
	const struct dirent64 *e = (const struct dirent64 *)(h->buf + h->at);
	h->pos = (uint64_t)e->d_off;
	h->at += e->d_reclen;
}
