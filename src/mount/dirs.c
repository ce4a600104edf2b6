/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "mount/dirs.h"

#include <pthread.h>
#include <string.h>
#include <xxhash.h>

#include "base/fd.h"
#include "base/list.h"
#include "wire/proto.h"

/* More levels than any path has. */
#define DEPTH_MAX 4096

struct dir {
	struct sl_hnode by_id;	 /* key: the node id */
	struct sl_hnode by_name; /* key: of parent and name */
	uint64_t parent;	 /* 0: nobody knows */
	uint64_t nlookup;
	char *name;
};

struct sl_mdirs {
	pthread_mutex_t lock; /* protects all */
	struct sl_htab by_id, by_name;
};

static uint64_t name_key(uint64_t parent, const char *name)
{
	return XXH64(name, strlen(name), parent);
}

static struct dir *find_id(struct sl_mdirs *d, uint64_t id)
{
	struct sl_hnode *h = sl_htab_find(&d->by_id, id);
	return h ? sl_container_of(h, struct dir, by_id) : NULL;
}

static struct dir *find_name(struct sl_mdirs *d, uint64_t parent, const char *name)
{
	for (struct sl_hnode *h = sl_htab_find(&d->by_name, name_key(parent, name)); h; h = sl_htab_next(h)) {
		struct dir *x = sl_container_of(h, struct dir, by_name);
		if (x->parent == parent && !strcmp(x->name, name))
			return x;
	}
	return NULL;
}

/* Without memory the directory is nowhere: its events are not raised. */
static void place(struct sl_mdirs *d, struct dir *x, uint64_t parent, const char *name)
{
	if (x->parent == parent && x->name && !strcmp(x->name, name))
		return;
	if (x->name)
		sl_htab_del(&d->by_name, &x->by_name);
	free(x->name);
	x->parent = 0;
	x->name = parent ? strdup(name) : NULL;
	if (!x->name)
		return;
	x->parent = parent;
	if (sl_htab_add(&d->by_name, &x->by_name, name_key(parent, name)) == 0)
		return;
	free(x->name);
	x->name = NULL;
	x->parent = 0;
}

int sl_mdirs_add(struct sl_mdirs *d, uint64_t id, uint64_t parent, const char *name)
{
	int r = 0;
	if (id == FUSE_ROOT_ID)
		return 0;
	pthread_mutex_lock(&d->lock);
	struct dir *x = find_id(d, id);
	if (!x) {
		x = calloc(1, sizeof(*x));
		r = x && sl_htab_add(&d->by_id, &x->by_id, id) == 0 ? 1 : -ENOMEM;
		if (r < 0) {
			free(x);
			x = NULL;
		}
	}
	if (x) {
		x->nlookup++;
		place(d, x, parent, name);
	}
	pthread_mutex_unlock(&d->lock);
	return r;
}

void sl_mdirs_forget(struct sl_mdirs *d, uint64_t id, uint64_t count)
{
	pthread_mutex_lock(&d->lock);
	struct dir *x = find_id(d, id);
	if (x) {
		x->nlookup -= SL_MIN(count, x->nlookup);
		if (!x->nlookup) {
			place(d, x, 0, NULL);
			sl_htab_del(&d->by_id, &x->by_id);
			free(x);
		}
	}
	pthread_mutex_unlock(&d->lock);
}

void sl_mdirs_move(struct sl_mdirs *d, uint64_t parent, const char *name, uint64_t newparent,
		   const char *newname, bool exchange)
{
	pthread_mutex_lock(&d->lock);
	struct dir *x = find_name(d, parent, name), *y = newparent ? find_name(d, newparent, newname) : NULL;
	if (y && y != x)
		place(d, y, exchange ? parent : 0, name);
	if (x)
		place(d, x, newparent, newname);
	pthread_mutex_unlock(&d->lock);
}

char *sl_mdirs_path(struct sl_mdirs *d, uint64_t id)
{
	char *path = strdup("");
	pthread_mutex_lock(&d->lock);
	for (int depth = 0; path && id != FUSE_ROOT_ID; depth++) {
		const struct dir *x = find_id(d, id);
		char *up = NULL;
		if (x && x->name && depth < DEPTH_MAX)
			up = *path ? sl_path_join(x->name, path) : strdup(x->name);
		free(path);
		path = up;
		id = x ? x->parent : 0;
	}
	pthread_mutex_unlock(&d->lock);
	return path;
}

uint64_t *sl_mdirs_all(struct sl_mdirs *d, size_t *n)
{
	size_t i;
	*n = 0;
	pthread_mutex_lock(&d->lock);
	uint64_t *v = malloc(sizeof(*v) * (d->by_id.n + 1));
	for (struct sl_hnode *h = v ? sl_htab_first(&d->by_id, &i) : NULL; h;
	     h = sl_htab_step(&d->by_id, &i, h))
		v[(*n)++] = h->key;
	pthread_mutex_unlock(&d->lock);
	return v;
}

int sl_mdirs_new(struct sl_mdirs **ret)
{
	struct sl_mdirs *d = calloc(1, sizeof(*d));
	if (!d)
		return -ENOMEM;
	pthread_mutex_init(&d->lock, NULL);
	*ret = d;
	return 0;
}

void sl_mdirs_free(struct sl_mdirs *d)
{
	if (!d)
		return;
	size_t i;
	for (struct sl_hnode *h; (h = sl_htab_first(&d->by_id, &i));) {
		struct dir *x = sl_container_of(h, struct dir, by_id);
		place(d, x, 0, NULL);
		sl_htab_del(&d->by_id, h);
		free(x);
	}
	sl_htab_fini(&d->by_id);
	sl_htab_fini(&d->by_name);
	pthread_mutex_destroy(&d->lock);
	free(d);
}
