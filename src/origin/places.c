/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "origin/places.h"

#include <string.h>
#include <xxhash.h>

struct place {
	struct sl_hnode node;
	struct sl_list link;
	struct sl_place_node n;
	uint64_t nlookup;
	size_t len;
	char name[];
};

void sl_places_init(struct sl_places *p)
{
	*p = (struct sl_places){0};
	sl_list_init(&p->lru);
}

static struct place *find(struct sl_places *p, const char *place, size_t len)
{
	for (struct sl_hnode *h = sl_htab_find(&p->table, XXH3_64bits(place, len)); h; h = sl_htab_next(h)) {
		struct place *e = sl_container_of(h, struct place, node);
		if (e->len == len && !memcmp(e->name, place, len))
			return e;
	}
	return NULL;
}

void sl_places_forget(struct sl_places *p, uint64_t nodeid, uint64_t nlookup)
{
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

static void drop(struct sl_places *p, struct place *e, bool tell)
{
	if (tell)
		sl_places_forget(p, e->n.nodeid, e->nlookup);
	sl_htab_del(&p->table, &e->node);
	sl_list_del(&e->link);
	free(e);
}

void sl_places_clear(struct sl_places *p)
{
	while (!sl_list_empty(&p->lru))
		drop(p, sl_list_entry(p->lru.next, struct place, link), false);
	sl_htab_fini(&p->table);
	free(p->forget);
	p->forget = NULL;
	p->nforget = p->cap = 0;
}

bool sl_places_get(struct sl_places *p, const char *place, size_t len, struct sl_place_node *n)
{
	struct place *e = find(p, place, len);
	if (!e)
		return false;
	sl_list_del(&e->link);
	sl_list_add_tail(&p->lru, &e->link);
	*n = e->n;
	return true;
}

void sl_places_put(struct sl_places *p, const char *place, size_t len, struct sl_place_node n)
{
	struct place *e = find(p, place, len);
	if (e && e->n.nodeid == n.nodeid) {
		e->nlookup++;
		e->n = n;
		return;
	}
	if (e)
		drop(p, e, true);
	e = malloc(sizeof(*e) + len);
	if (!e) {
		sl_places_forget(p, n.nodeid, 1);
		return;
	}
	*e = (struct place){.n = n, .nlookup = 1, .len = len};
	memcpy(e->name, place, len);
	if (sl_htab_add(&p->table, &e->node, XXH3_64bits(place, len)) < 0) {
		free(e);
		sl_places_forget(p, n.nodeid, 1);
		return;
	}
	sl_list_add_tail(&p->lru, &e->link);
	if (p->table.n > SL_PLACES_MAX)
		drop(p, sl_list_entry(p->lru.next, struct place, link), true);
}

void sl_places_drop(struct sl_places *p, const char *place)
{
	for (size_t len = strlen(place); len; len--) {
		if (place[len] != '\0' && place[len] != '/')
			continue;
		struct place *e = find(p, place, len);
		if (e)
			drop(p, e, true);
	}
}
