/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "replay/peers.h"

#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>

#include "base/log.h"
#include "base/time.h"
#include "store/walk.h"

/* Of one number no more are kept, for most files have one. */
#define SAME_MAX 8

struct peer {
	struct sl_hnode node; /* key: inode number at the origin */
	struct sl_handle h;
};

struct sl_peers {
	struct sl_store *store;
	pthread_mutex_t lock; /* protects all below; objects' locks are taken after it */
	pthread_cond_t cond;  /* it is no longer being made */
	struct sl_htab table;
	enum { NOT_MADE, BEING_MADE, SPOILT, MADE } state; /* SPOILT: being made, and something is missing */
};

int sl_peers_new(struct sl_store *s, struct sl_peers **ret)
{
	*ret = calloc(1, sizeof(**ret));
	if (!*ret)
		return -ENOMEM;
	(*ret)->store = s;
	pthread_mutex_init(&(*ret)->lock, NULL);
	pthread_cond_init(&(*ret)->cond, NULL);
	return 0;
}

void sl_peers_free(struct sl_peers *p)
{
	struct sl_hnode *h;
	size_t i;
	if (!p)
		return;
	while ((h = sl_htab_first(&p->table, &i))) {
		sl_htab_del(&p->table, h);
		free(sl_container_of(h, struct peer, node));
	}
	sl_htab_fini(&p->table);
	pthread_mutex_destroy(&p->lock);
	pthread_cond_destroy(&p->cond);
	free(p);
}

/* Those files of one number that are gone. */
static void forget_gone(struct sl_peers *p, uint64_t ino)
{
	struct sl_hnode *next;
	for (struct sl_hnode *h = sl_htab_find(&p->table, ino); h; h = next) {
		struct peer *x = sl_container_of(h, struct peer, node);
		next = sl_htab_next(h);
		_cleanup_close_ int fd = sl_handle_open(sl_store_tree_fd(p->store), &x->h, O_PATH);
		if (fd != -ESTALE)
			continue;
		sl_htab_del(&p->table, h);
		free(x);
	}
}

/* Is @o noted? *@n: how many are. */
static bool is_noted(struct sl_peers *p, uint64_t ino, struct sl_object *o, unsigned *n)
{
	*n = 0;
	for (struct sl_hnode *h = sl_htab_find(&p->table, ino); h; h = sl_htab_next(h), (*n)++)
		if (sl_handle_eq(&sl_container_of(h, struct peer, node)->h, &o->handle))
			return true;
	return false;
}

/* With the lock held. */
static int note(struct sl_peers *p, struct sl_object *o)
{
	pthread_mutex_lock(&o->lock);
	uint64_t ino = sl_object_is_reg(o) && o->has_record ? o->rec.origin.ino : 0;
	pthread_mutex_unlock(&o->lock);
	unsigned n;
	if (!ino || is_noted(p, ino, o, &n))
		return 0;
	if (n == SAME_MAX) {
		forget_gone(p, ino);
		(void)is_noted(p, ino, o, &n);
	}
	struct peer *x;
	if (n == SAME_MAX) { /* one makes room */
		struct sl_hnode *h = sl_htab_find(&p->table, ino);
		x = sl_container_of(h, struct peer, node);
		sl_htab_del(&p->table, h);
	} else {
		x = calloc(1, sizeof(*x));
	}
	if (!x)
		return -ENOMEM;
	x->h = o->handle;
	int r = sl_htab_add(&p->table, &x->node, ino);
	if (r < 0)
		free(x);
	return r;
}

/* Records that could not be noted are read anew. */
static void spoil(struct sl_peers *p)
{
	p->state = p->state == MADE ? NOT_MADE : p->state == BEING_MADE ? SPOILT : p->state;
}

static int note_one(void *arg, const char *path, struct sl_object *o, int err)
{
	struct sl_peers *p = arg;
	(void)path;
	(void)err;
	pthread_mutex_lock(&p->lock);
	int r = o ? note(p, o) : 0;
	pthread_mutex_unlock(&p->lock);
	return r;
}

void sl_peers_note(struct sl_peers *p, struct sl_object *o)
{
	pthread_mutex_lock(&p->lock);
	if (p->state != NOT_MADE && note(p, o) < 0)
		spoil(p);
	pthread_mutex_unlock(&p->lock);
}

void sl_peers_note_names(struct sl_peers *p, struct sl_object *dir)
{
	struct sl_name *v = NULL;
	size_t n = 0;
	pthread_mutex_lock(&p->lock);
	bool made = p->state != NOT_MADE;
	pthread_mutex_unlock(&p->lock);
	if (!made) /* it will find them */
		return;
	if (sl_names_read(dir, &v, &n) < 0) {
		pthread_mutex_lock(&p->lock);
		spoil(p);
		pthread_mutex_unlock(&p->lock);
		return;
	}
	for (size_t i = 0; i < n; i++) {
		_cleanup_object_ struct sl_object *o = NULL;
		if ((v[i].type == DT_REG || v[i].type == DT_UNKNOWN) &&
		    sl_object_lookup(dir, v[i].name, &o) == 0)
			sl_peers_note(p, o);
	}
	sl_names_free(v, n);
}

/* With the lock held, which is given up meanwhile: names that come must not wait for the whole tree to be
 * read. What comes is noted, and found by the walk besides. */
static void make(struct sl_peers *p)
{
	uint64_t began = sl_now();
	p->state = BEING_MADE;
	pthread_mutex_unlock(&p->lock);
	int r = sl_walk(sl_object_root(p->store), note_one, p);
	pthread_mutex_lock(&p->lock);
	if (r < 0)
		sl_warn("other names of files cannot be told: %s", strerror(-r));
	else
		sl_info("read %zu records for hard links, in %llu ms", p->table.n,
			(unsigned long long)(sl_now() - began) / SL_NS_PER_MS);
	p->state = r < 0 || p->state == SPOILT ? NOT_MADE : MADE;
	pthread_cond_broadcast(&p->cond);
}

/* With the lock held: what was noted of @v, to @ret[SAME_MAX]. Returns how many. */
static unsigned find(struct sl_peers *p, const struct sl_version *v, struct sl_handle *ret)
{
	unsigned n = 0;
	while (p->state == BEING_MADE || p->state == SPOILT)
		pthread_cond_wait(&p->cond, &p->lock);
	if (p->state == NOT_MADE)
		make(p);
	for (struct sl_hnode *h = sl_htab_find(&p->table, v->ino); h; h = sl_htab_next(h))
		ret[n++] = sl_container_of(h, struct peer, node)->h;
	return n;
}

bool sl_peers_made(struct sl_peers *p)
{
	pthread_mutex_lock(&p->lock);
	bool made = p->state == MADE;
	pthread_mutex_unlock(&p->lock);
	return made;
}

/* The file that has the handle @at, if it is a version of the same object as @v; else NULL. */
static struct sl_object *open_peer(struct sl_peers *p, const struct sl_handle *at, const struct sl_version *v)
{
	struct sl_object *o = NULL;
	struct stat st;
	_cleanup_close_ int fd = sl_handle_open(sl_store_tree_fd(p->store), at, O_PATH);
	if (fd < 0 || fstat(fd, &st) < 0 || st.st_nlink == 0 || sl_object_of_fd(p->store, fd, &o) < 0)
		return NULL;
	pthread_mutex_lock(&o->lock);
	bool same = o->has_record && !o->damaged && sl_version_same_object(&o->rec.origin, v);
	pthread_mutex_unlock(&o->lock);
	if (same)
		return o;
	sl_object_put(o);
	return NULL;
}

struct sl_object *sl_peers_find(struct sl_peers *p, const struct sl_version *v, struct sl_object **more)
{
	struct sl_handle at[SAME_MAX];
	pthread_mutex_lock(&p->lock);
	unsigned n = find(p, v, at);
	pthread_mutex_unlock(&p->lock);
	struct sl_object *first = NULL, *other = NULL;
	for (unsigned i = 0; i < n; i++) {
		struct sl_object *o = open_peer(p, &at[i], v);
		if (!o)
			continue;
		struct sl_object *less = o, *greater = first;
		if (first && sl_object_ino(first) < sl_object_ino(o)) {
			less = first;
			greater = o;
		}
		sl_object_put(greater ? other : NULL);
		other = greater ? greater : other;
		first = less;
	}
	if (more)
		*more = other;
	else
		sl_object_put(other);
	return first;
}
