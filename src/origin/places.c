/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "origin/places.h"

#include <string.h>
#include <xxhash.h>

#include "wire/proto.h"

static uint64_t key(const struct sl_pname *dir, const char *name, size_t len)
{
	return XXH3_64bits_withSeed(name, len, (uint64_t)(uintptr_t)dir);
}

int sl_places_init(struct sl_places *p)
{
	*p = (struct sl_places){0};
	sl_list_init(&p->lru);
	p->root = calloc(2, sizeof(*p->root));
	if (!p->root)
		return -ENOMEM;
	p->nowhere = p->root + 1;
	p->root->n.nodeid = p->max_node = FUSE_ROOT_ID;
	for (int i = 0; i < 2; i++) {
		sl_list_init(&p->root[i].children);
		sl_list_init(&p->root[i].sibling);
		sl_list_init(&p->root[i].lru);
	}
	return 0;
}

void sl_places_forget(struct sl_places *p, uint64_t nodeid, uint64_t nlookup)
{
	p->max_node = SL_MAX(p->max_node, nodeid);
	if (p->nforget == p->cap) {
		size_t cap = p->cap ? p->cap * 2 : 64;
		struct sl_place_forget *f = reallocarray(p->forget, cap, sizeof(*f));
		if (!f)
			return; /* the server keeps the node until we disconnect */
		p->forget = f;
		p->cap = cap;
	}
	p->forget[p->nforget++] = (struct sl_place_forget){nodeid, nlookup};
}

/* Only what has neither children nor a mark may be thrown out. */
static void touch(struct sl_places *p, struct sl_pname *e)
{
	sl_list_del(&e->lru);
	if (e->parent && !e->marked && sl_list_empty(&e->children))
		sl_list_add_tail(&p->lru, &e->lru);
}

static void count_marks(struct sl_pname *e, int n)
{
	for (; e; e = e->parent)
		e->marks += (unsigned)n;
}

void sl_places_unmark(struct sl_places *p, struct sl_pname *e)
{
	if (!e->marked)
		return;
	e->marked = false;
	count_marks(e, -1);
	sl_htab_del(&p->nodes, &e->by_node);
	touch(p, e);
}

/* One that has no children. */
static void drop(struct sl_places *p, struct sl_pname *e, bool tell)
{
	struct sl_pname *parent = e->parent;
	sl_places_unmark(p, e);
	if (tell)
		sl_places_forget(p, e->n.nodeid, e->nlookup);
	sl_htab_del(&p->table, &e->by_name);
	sl_list_del(&e->lru);
	sl_list_del(&e->sibling);
	free(e->name);
	free(e);
	touch(p, parent);
}

static void drop_all(struct sl_places *p, struct sl_pname *top, bool tell)
{
	for (struct sl_pname *e = top;;) {
		while (!sl_list_empty(&e->children))
			e = sl_list_entry(e->children.next, struct sl_pname, sibling);
		if (!e->parent)
			return;
		struct sl_pname *parent = e->parent;
		bool last = e == top;
		drop(p, e, tell);
		if (last)
			return;
		e = parent;
	}
}

void sl_places_remove(struct sl_places *p, struct sl_pname *name)
{
	drop_all(p, name, true);
}

void sl_places_clear(struct sl_places *p, bool tell)
{
	drop_all(p, p->root, tell);
	drop_all(p, p->nowhere, tell);
	sl_places_unmark(p, p->root);
	if (tell)
		return;
	p->max_node = FUSE_ROOT_ID;
	free(p->forget);
	p->forget = NULL;
	p->nforget = p->cap = 0;
}

void sl_places_fini(struct sl_places *p)
{
	if (!p->root)
		return;
	sl_places_clear(p, false);
	sl_htab_fini(&p->table);
	sl_htab_fini(&p->nodes);
	free(p->root);
}

struct sl_pname *sl_places_child(struct sl_places *p, struct sl_pname *dir, const char *name, size_t len)
{
	for (struct sl_hnode *h = sl_htab_find(&p->table, key(dir, name, len)); h; h = sl_htab_next(h)) {
		struct sl_pname *e = sl_container_of(h, struct sl_pname, by_name);
		if (e->parent == dir && e->len == len && !memcmp(e->name, name, len))
			return e;
	}
	return NULL;
}

/* The longest part of @place that is remembered; its length in *@at. */
static struct sl_pname *walk(struct sl_places *p, const char *place, size_t len, size_t *at)
{
	struct sl_pname *e = p->root, *next;
	for (*at = 0; *at < len; e = next) {
		const char *comp = place + *at + (*at > 0), *end = place + len;
		if (comp >= end)
			break;
		const char *slash = memchr(comp, '/', (size_t)(end - comp));
		size_t n = (size_t)((slash ? slash : end) - comp);
		next = sl_places_child(p, e, comp, n);
		if (!next)
			break;
		*at = (size_t)(comp - place) + n;
	}
	return e;
}

size_t sl_places_find(struct sl_places *p, const char *place, size_t len, struct sl_place_node *n)
{
	size_t at;
	struct sl_pname *e = walk(p, place, len, &at);
	touch(p, e);
	*n = e->n;
	return at;
}

struct sl_pname *sl_places_at(struct sl_places *p, const char *place)
{
	size_t at, len = strlen(place);
	struct sl_pname *e = walk(p, place, len, &at);
	return at == len ? e : NULL;
}

struct sl_pname *sl_places_marked(struct sl_places *p, uint64_t nodeid)
{
	struct sl_hnode *h = sl_htab_find(&p->nodes, nodeid);
	return h ? sl_container_of(h, struct sl_pname, by_node) : NULL;
}

void sl_places_add(struct sl_places *p, struct sl_pname *dir, const char *name, size_t len,
		   struct sl_place_node n)
{
	p->max_node = SL_MAX(p->max_node, n.nodeid);
	struct sl_pname *e = sl_places_child(p, dir, name, len), *other = sl_places_marked(p, n.nodeid);
	if (e && e->n.nodeid == n.nodeid) {
		e->nlookup++;
		e->n = n;
		return;
	}
	if ((e && e->marks) || other || !len || len > 255) {
		sl_places_forget(p, n.nodeid, 1);
		return;
	}
	if (e)
		drop_all(p, e, true);
	e = malloc(sizeof(*e));
	char *copy = malloc(len);
	if (!e || !copy || sl_htab_add(&p->table, &e->by_name, key(dir, name, len)) < 0) {
		free(e);
		free(copy);
		sl_places_forget(p, n.nodeid, 1);
		return;
	}
	const struct sl_hnode h = e->by_name;
	*e = (struct sl_pname){
	    .by_name = h, .n = n, .nlookup = 1, .parent = dir, .len = (uint8_t)len, .name = copy};
	memcpy(copy, name, len);
	sl_list_init(&e->children);
	sl_list_init(&e->lru);
	sl_list_add_tail(&dir->children, &e->sibling);
	touch(p, dir);
	touch(p, e);
	struct sl_pname *oldest =
	    sl_list_empty(&p->lru) ? e : sl_list_entry(p->lru.next, struct sl_pname, lru);
	if (p->table.n > SL_PLACES_MAX && oldest != e)
		drop(p, oldest, true);
}

void sl_places_put(struct sl_places *p, const char *place, size_t len, struct sl_place_node n)
{
	size_t at, cut = len;
	while (cut > 0 && place[cut - 1] != '/')
		cut--;
	size_t dirlen = cut ? cut - 1 : 0;
	struct sl_pname *dir = walk(p, place, dirlen, &at);
	if (at == dirlen && len > cut)
		sl_places_add(p, dir, place + cut, len - cut, n);
	else
		sl_places_forget(p, n.nodeid, 1);
}

void sl_places_drop(struct sl_places *p, const char *place)
{
	size_t at;
	struct sl_pname *e = walk(p, place, strlen(place), &at);
	/* Upwards, what is not held by a mark. */
	while (e != p->root) {
		struct sl_pname *parent = e->parent;
		if (!e->marks)
			drop_all(p, e, true);
		e = parent;
	}
}

static bool below(const struct sl_pname *e, const struct sl_pname *top)
{
	while (e && e != top)
		e = e->parent;
	return e;
}

/* @e is in @dir from now on, as @name, which is taken over; NULL: under the name it has. */
static void reparent(struct sl_places *p, struct sl_pname *e, struct sl_pname *dir, char *name, size_t len)
{
	struct sl_pname *old = e->parent;
	if (name) {
		free(e->name);
		e->name = name;
		e->len = (uint8_t)len;
	}
	sl_htab_del(&p->table, &e->by_name);
	/* It was there: needs no memory. */
	(void)sl_htab_add(&p->table, &e->by_name, key(dir, e->name, e->len));
	count_marks(old, -(int)e->marks);
	count_marks(dir, (int)e->marks);
	e->parent = dir;
	sl_list_del(&e->sibling);
	sl_list_add_tail(&dir->children, &e->sibling);
	touch(p, old);
	touch(p, dir);
	touch(p, e);
}

void sl_places_oust(struct sl_places *p, struct sl_pname *e)
{
	if (e->marks)
		reparent(p, e, p->nowhere, NULL, 0);
	else
		drop_all(p, e, true);
}

int sl_places_move(struct sl_places *p, struct sl_pname *e, struct sl_pname *dir, const char *newname,
		   size_t len)
{
	struct sl_pname *there = sl_places_child(p, dir, newname, len);
	if (there == e)
		return 0;
	if (below(dir, e) || (there && (below(dir, there) || below(e->parent, there))))
		return -EINVAL;
	char *copy = malloc(len);
	if (!copy)
		return -ENOMEM;
	if (there)
		sl_places_oust(p, there);
	reparent(p, e, dir, memcpy(copy, newname, len), len);
	return 0;
}

bool sl_places_nowhere(const struct sl_places *p, const struct sl_pname *e)
{
	return e && below(e, p->nowhere);
}

bool sl_places_correct(struct sl_places *p, const char *place, uint64_t nodeid)
{
	const char *slash = strrchr(place, '/'), *name = slash ? slash + 1 : place;
	_cleanup_free_ char *up = slash ? strndup(place, (size_t)(slash - place)) : strdup("");
	struct sl_pname *dir = up ? sl_places_at(p, up) : NULL, *e = sl_places_marked(p, nodeid), *there;
	size_t len = strlen(name);
	if (!dir || !len || len > 255)
		return false;
	if (e)
		return sl_places_move(p, e, dir, name, len) == 0;
	there = sl_places_child(p, dir, name, len);
	if (!there || there->n.nodeid == nodeid)
		return false;
	sl_places_oust(p, there);
	return true;
}

int sl_places_mark(struct sl_places *p, const char *place, uint64_t nodeid)
{
	struct sl_pname *e = sl_places_at(p, place), *other = sl_places_marked(p, nodeid);
	if (!e || e->n.nodeid != nodeid || (other && other != e))
		return -ESTALE;
	if (e->marked)
		return 0;
	if (sl_htab_add(&p->nodes, &e->by_node, nodeid) < 0)
		return -ENOMEM;
	e->marked = true;
	count_marks(e, 1);
	touch(p, e);
	return 0;
}

char *sl_places_path(const struct sl_pname *dir, const char *name, size_t len)
{
	size_t n = len;
	for (const struct sl_pname *d = dir; d->parent && n <= SL_PLACES_MAX_LEN; d = d->parent)
		n += d->len + (n > 0);
	char *path = n > SL_PLACES_MAX_LEN ? NULL : malloc(n + 1);
	if (!path)
		return NULL;
	char *at = path + n;
	*at = '\0';
	at -= len;
	if (len)
		memcpy(at, name, len);
	for (const struct sl_pname *d = dir; d->parent; d = d->parent) {
		if (at != path + n)
			*--at = '/';
		at -= d->len;
		memcpy(at, d->name, d->len);
	}
	return path;
}
