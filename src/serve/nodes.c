/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "serve/nodes.h"

#include <assert.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <xxhash.h>

#include "base/list.h"

struct node {
	struct sl_hnode by_id;	 /* key: the node id */
	struct sl_hnode by_name; /* key: parent and name; of directories that have a parent */
	struct sl_hnode by_obj;	 /* key: the generation, or the inode number where there is none */
	struct node *parent;	 /* NULL for the root alone */
	char *name;
	uint64_t ino, generation;
	uint64_t nlookup;
	uint64_t mask;	    /* of the mark; 0: none. Only while nlookup is above 0 */
	uint32_t nchildren; /* nodes whose parent this is */
	uint32_t type;
	bool foreign;
	bool indexed;  /* by_name is in its table */
	bool detached; /* left the place where it was, to one that is not known */
	uint8_t handle_len;
	int handle_type;
	unsigned char handle[];
};

struct sl_nodes {
	pthread_mutex_t lock; /* protects everything, nodes included */
	struct sl_htab by_id, by_obj, by_name;
	uint64_t max, next_id, nmarks;
	struct node *root;
};

static struct node *find_id(struct sl_nodes *n, uint64_t id)
{
	struct sl_hnode *h = sl_htab_find(&n->by_id, id);
	struct node *o = h ? sl_container_of(h, struct node, by_id) : NULL;
	return o && o->nlookup ? o : NULL;
}

static uint64_t obj_key(uint64_t generation, uint64_t ino)
{
	return generation ? generation : ino;
}

static struct node *find_object(struct sl_nodes *n, const struct sl_found *o)
{
	for (struct sl_hnode *h = sl_htab_find(&n->by_obj, obj_key(o->generation, o->attr.ino)); h;
	     h = sl_htab_next(h)) {
		struct node *x = sl_container_of(h, struct node, by_obj);
		if (x->ino == o->attr.ino && x->generation == o->generation &&
		    x->type == (o->attr.mode & S_IFMT) && x->foreign == o->foreign)
			return x;
	}
	return NULL;
}

static int add_node(struct sl_nodes *n, const char *name, const struct sl_found *o, struct node **ret)
{
	if (n->by_id.n >= n->max)
		return -ENFILE;
	struct node *x = malloc(sizeof(*x) + o->handle.len);
	char *copy = strdup(name);
	if (!x || !copy) {
		free(x);
		free(copy);
		return -ENOMEM;
	}
	*x = (struct node){.name = copy,
			   .ino = o->attr.ino,
			   .generation = o->generation,
			   .type = o->attr.mode & S_IFMT,
			   .foreign = o->foreign,
			   .handle_len = (uint8_t)o->handle.len,
			   .handle_type = o->handle.type};
	memcpy(x->handle, o->handle.bytes, o->handle.len);
	if (sl_htab_add(&n->by_id, &x->by_id, n->next_id) < 0) {
		free(copy);
		free(x);
		return -ENOMEM;
	}
	if (sl_htab_add(&n->by_obj, &x->by_obj, obj_key(o->generation, o->attr.ino)) < 0) {
		sl_htab_del(&n->by_id, &x->by_id);
		free(copy);
		free(x);
		return -ENOMEM;
	}
	n->next_id++;
	*ret = x;
	return 0;
}

static uint64_t name_key(const struct node *parent, const char *name)
{
	return XXH3_64bits_withSeed(name, strlen(name), parent->by_id.key);
}

/* Without memory a directory is not found by its name: only who hears nothing but names misses it. */
static void index_name(struct sl_nodes *n, struct node *x)
{
	if (x->type != S_IFDIR || !x->parent || x->indexed)
		return;
	x->indexed = sl_htab_add(&n->by_name, &x->by_name, name_key(x->parent, x->name)) == 0;
}

static void unindex_name(struct sl_nodes *n, struct node *x)
{
	if (x->indexed)
		sl_htab_del(&n->by_name, &x->by_name);
	x->indexed = false;
}

/* Free @x if nothing holds it, and then its parent if nothing else held that, and so on. */
static void drop(struct sl_nodes *n, struct node *x)
{
	while (x && x != n->root && !x->nlookup && !x->nchildren) {
		struct node *parent = x->parent;
		unindex_name(n, x);
		sl_htab_del(&n->by_id, &x->by_id);
		sl_htab_del(&n->by_obj, &x->by_obj);
		free(x->name);
		free(x);
		if (parent) {
			assert(parent->nchildren > 0);
			parent->nchildren--;
		}
		x = parent;
	}
}

/* @x was seen as @name in @parent. */
static void place_at(struct sl_nodes *n, struct node *x, struct node *parent, const char *name)
{
	if (x == n->root)
		return;
	/* Directories that change places may look, one at a time, as if one were in itself: the chain must
	 * end at the root. */
	for (struct node *p = parent; x->parent != parent && p; p = p->parent)
		if (p == x)
			return;
	x->detached = false;
	if (x->parent == parent && !strcmp(x->name, name))
		return;
	char *copy = strdup(name);
	if (!copy)
		return; /* the old place is tried, then the handle */
	struct node *old = x->parent;
	unindex_name(n, x);
	free(x->name);
	x->name = copy;
	x->parent = parent;
	index_name(n, x);
	if (old == parent)
		return;
	parent->nchildren++;
	if (old) {
		old->nchildren--;
		drop(n, old);
	}
}

int sl_nodes_lookup(struct sl_nodes *n, uint64_t parent, const char *name, const struct sl_found *o,
		    uint64_t *ret)
{
	int r = 0;
	pthread_mutex_lock(&n->lock);
	struct node *dir = find_id(n, parent), *x = NULL;
	if (!dir || dir->type != S_IFDIR)
		r = -ESTALE;
	else if (!(x = find_object(n, o)))
		r = add_node(n, name, o, &x);
	if (r == 0) {
		x->nlookup++;
		place_at(n, x, dir, name);
		*ret = x->by_id.key;
	}
	pthread_mutex_unlock(&n->lock);
	return r;
}

void sl_nodes_seen(struct sl_nodes *n, uint64_t parent, const char *name, const struct sl_found *o)
{
	pthread_mutex_lock(&n->lock);
	struct node *dir = find_id(n, parent), *x = find_object(n, o);
	if (dir && dir->type == S_IFDIR && x)
		place_at(n, x, dir, name);
	pthread_mutex_unlock(&n->lock);
}

/* Take the mark of @x away. Returns whether there was one. */
static bool unmark(struct sl_nodes *n, struct node *x, struct sl_evid *was)
{
	if (!x->mask)
		return false;
	*was = (struct sl_evid){.generation = x->generation, .ino = x->ino};
	x->mask = 0;
	n->nmarks--;
	return true;
}

bool sl_nodes_forget(struct sl_nodes *n, uint64_t id, uint64_t count, struct sl_evid *was)
{
	bool marked = false;
	pthread_mutex_lock(&n->lock);
	struct node *x = find_id(n, id);
	if (x && x != n->root) {
		x->nlookup -= SL_MIN(count, x->nlookup);
		if (!x->nlookup)
			marked = unmark(n, x, was);
		drop(n, x);
	}
	pthread_mutex_unlock(&n->lock);
	return marked;
}

/* Whether the way up from @x ends at the root. */
static bool in_reach(const struct sl_nodes *n, const struct node *x)
{
	while (x != n->root && !x->detached && x->parent)
		x = x->parent;
	return x == n->root;
}

int sl_nodes_mark(struct sl_nodes *n, uint64_t id, uint64_t mask, uint64_t max, uint64_t *old,
		  struct sl_evid *obj)
{
	int r = 0;
	pthread_mutex_lock(&n->lock);
	struct node *x = find_id(n, id);
	if (!x || (mask && !in_reach(n, x))) {
		r = -ESTALE;
	} else if (x->type != S_IFDIR) {
		r = -ENOTDIR;
	} else if (mask && !x->mask && n->nmarks >= max) {
		r = -ENOSPC;
	} else {
		*obj = (struct sl_evid){.generation = x->generation, .ino = x->ino};
		*old = x->mask;
		n->nmarks += (mask != 0) - (x->mask != 0);
		x->mask = mask;
	}
	pthread_mutex_unlock(&n->lock);
	return r;
}

int sl_nodes_unmark_all(struct sl_nodes *n, struct sl_evid **ret, size_t *count)
{
	size_t i, k = 0;
	int r = 0;
	pthread_mutex_lock(&n->lock);
	struct sl_evid *v = calloc(n->nmarks + 1, sizeof(*v));
	if (!v)
		r = -ENOMEM;
	for (struct sl_hnode *h = sl_htab_first(&n->by_id, &i); h && v && n->nmarks;
	     h = sl_htab_step(&n->by_id, &i, h))
		k += unmark(n, sl_container_of(h, struct node, by_id), &v[k]);
	pthread_mutex_unlock(&n->lock);
	*ret = v;
	*count = k;
	return r;
}

static struct node *find_evid(struct sl_nodes *n, const struct sl_evid *id)
{
	for (int by_ino = 0; by_ino < 2; by_ino++) {
		/* Where the tree has no generations the one that the backend knows finds nothing. */
		uint64_t key = by_ino ? id->ino : id->generation;
		for (struct sl_hnode *h = key ? sl_htab_find(&n->by_obj, key) : NULL; h;
		     h = sl_htab_next(h)) {
			struct node *x = sl_container_of(h, struct node, by_obj);
			if (!x->foreign && x->generation == (by_ino ? 0 : id->generation) &&
			    (!id->ino || x->ino == id->ino))
				return x;
		}
	}
	return NULL;
}

static bool make_ref(const struct sl_nodes *n, const struct node *x, struct sl_noderef *r)
{
	*r = (struct sl_noderef){0};
	if (x)
		*r = (struct sl_noderef){.id = x->by_id.key,
					 .generation = x->generation,
					 .known = x->nlookup > 0,
					 .mask = in_reach(n, x) ? x->mask : 0};
	return x;
}

bool sl_nodes_ref(struct sl_nodes *n, const struct sl_evid *id, struct sl_noderef *r)
{
	pthread_mutex_lock(&n->lock);
	bool has = make_ref(n, find_evid(n, id), r);
	pthread_mutex_unlock(&n->lock);
	return has;
}

bool sl_nodes_dir_at(struct sl_nodes *n, uint64_t parent, const char *name, struct sl_noderef *r)
{
	struct node *oldest = NULL;
	pthread_mutex_lock(&n->lock);
	struct sl_hnode *p = sl_htab_find(&n->by_id, parent), *h = NULL;
	struct node *dir = p ? sl_container_of(p, struct node, by_id) : NULL;
	if (dir)
		h = sl_htab_find(&n->by_name, name_key(dir, name));
	for (; h; h = sl_htab_next(h)) {
		struct node *x = sl_container_of(h, struct node, by_name);
		if (x->parent == dir && !strcmp(x->name, name) && !x->detached &&
		    (!oldest || x->by_id.key < oldest->by_id.key))
			oldest = x;
	}
	bool has = make_ref(n, oldest, r);
	pthread_mutex_unlock(&n->lock);
	return has;
}

int sl_nodes_parent(struct sl_nodes *n, uint64_t id, struct sl_noderef *dir, struct sl_evid *obj, char **name)
{
	int r = 0;
	pthread_mutex_lock(&n->lock);
	struct sl_hnode *h = sl_htab_find(&n->by_id, id);
	struct node *x = h ? sl_container_of(h, struct node, by_id) : NULL;
	if (!x || !x->parent || x->detached || !make_ref(n, x->parent, dir)) {
		r = -ENOENT;
	} else {
		*obj = (struct sl_evid){.generation = x->parent->generation, .ino = x->parent->ino};
		*name = strdup(x->name);
		r = *name ? 0 : -ENOMEM;
	}
	pthread_mutex_unlock(&n->lock);
	return r;
}

void sl_nodes_moved(struct sl_nodes *n, uint64_t id, uint64_t parent, const char *name, uint64_t newparent,
		    const char *newname)
{
	pthread_mutex_lock(&n->lock);
	struct sl_hnode *h = sl_htab_find(&n->by_id, id), *to = sl_htab_find(&n->by_id, newparent);
	struct node *x = h ? sl_container_of(h, struct node, by_id) : NULL;
	if (x && x->parent && x->parent->by_id.key == parent && !strcmp(x->name, name)) {
		if (to)
			place_at(n, x, sl_container_of(to, struct node, by_id), newname);
		else
			x->detached = true;
	}
	pthread_mutex_unlock(&n->lock);
}

static char *make_path(const struct node *x)
{
	size_t len = 0;
	for (const struct node *p = x; p->parent; p = p->parent)
		len += strlen(p->name) + 1;
	char *path = malloc(len + 1);
	if (!path)
		return NULL;
	char *at = path + len;
	*at = '\0';
	if (len)
		*--at = '\0'; /* where the first name's slash would be */
	for (const struct node *p = x; p->parent; p = p->parent) {
		size_t k = strlen(p->name);
		at -= k;
		memcpy(at, p->name, k);
		if (at > path)
			*--at = '/';
	}
	return path;
}

int sl_nodes_place(struct sl_nodes *n, uint64_t id, struct sl_place *p)
{
	int r = 0;
	*p = (struct sl_place){0};
	pthread_mutex_lock(&n->lock);
	const struct node *x = find_id(n, id);
	if (!x) {
		r = -ESTALE;
	} else if (!(p->path = make_path(x))) {
		r = -ENOMEM;
	} else {
		p->ino = x->ino;
		p->generation = x->generation;
		p->type = x->type;
		p->foreign = x->foreign;
		p->handle.type = x->handle_type;
		p->handle.len = x->handle_len;
		memcpy(p->handle.bytes, x->handle, x->handle_len);
	}
	pthread_mutex_unlock(&n->lock);
	return r;
}

bool sl_nodes_where(struct sl_nodes *n, uint64_t id, struct sl_evid *obj, struct sl_noderef *parent,
		    char *name)
{
	pthread_mutex_lock(&n->lock);
	const struct node *x = find_id(n, id), *up = x ? x->parent : NULL;
	if (x) {
		*obj = (struct sl_evid){.generation = x->generation, .ino = x->ino};
		*parent = (struct sl_noderef){.id = up && up->nlookup ? up->by_id.key : 0};
		if (name)
			snprintf(name, 256, "%s", x->name);
	}
	pthread_mutex_unlock(&n->lock);
	return x;
}

uint64_t *sl_nodes_dirs(struct sl_nodes *n, size_t *ret)
{
	size_t i;
	*ret = 0;
	pthread_mutex_lock(&n->lock);
	uint64_t *v = malloc(sizeof(*v) * n->by_id.n);
	for (struct sl_hnode *h = v ? sl_htab_first(&n->by_id, &i) : NULL; h;
	     h = sl_htab_step(&n->by_id, &i, h)) {
		const struct node *x = sl_container_of(h, struct node, by_id);
		if (x->nlookup && x->type == S_IFDIR && !x->foreign)
			v[(*ret)++] = x->by_id.key;
	}
	pthread_mutex_unlock(&n->lock);
	return v;
}

uint64_t sl_nodes_count(struct sl_nodes *n)
{
	pthread_mutex_lock(&n->lock);
	uint64_t k = n->by_id.n;
	pthread_mutex_unlock(&n->lock);
	return k;
}

int sl_nodes_new(uint64_t max, const struct sl_found *root, struct sl_nodes **ret)
{
	struct sl_nodes *n = calloc(1, sizeof(*n));
	if (!n)
		return -ENOMEM;
	pthread_mutex_init(&n->lock, NULL);
	n->max = max;
	n->next_id = FUSE_ROOT_ID;
	int r = add_node(n, "", root, &n->root);
	if (r < 0) {
		sl_nodes_free(n);
		return r;
	}
	n->root->nlookup = 1;
	*ret = n;
	return 0;
}

void sl_nodes_free(struct sl_nodes *n)
{
	if (!n)
		return;
	size_t i;
	for (struct sl_hnode *h = sl_htab_first(&n->by_id, &i), *next; h; h = next) {
		struct node *x = sl_container_of(h, struct node, by_id);
		next = sl_htab_step(&n->by_id, &i, h);
		free(x->name);
		free(x);
	}
	sl_htab_fini(&n->by_id);
	sl_htab_fini(&n->by_obj);
	sl_htab_fini(&n->by_name);
	pthread_mutex_destroy(&n->lock);
	free(n);
}
