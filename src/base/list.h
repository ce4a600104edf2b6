/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Intrusive doubly linked lists and hash tables keyed by a 64-bit number. Neither allocates per element (the
 * hash table allocates its bucket array) and neither locks: the owner does.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>

#include "base/macros.h"

struct sl_list {
	struct sl_list *next, *prev;
};

static inline void sl_list_init(struct sl_list *l)
{
	l->next = l->prev = l;
}

static inline bool sl_list_empty(const struct sl_list *l)
{
	return l->next == l;
}

/** Insert @e before @at: at the tail when @at is the head. */
static inline void sl_list_add_tail(struct sl_list *at, struct sl_list *e)
{
	e->prev = at->prev;
	e->next = at;
	at->prev->next = e;
	at->prev = e;
}

static inline void sl_list_add(struct sl_list *head, struct sl_list *e)
{
	sl_list_add_tail(head->next, e);
}

/** Remove @e and leave it initialised, so that removing twice is harmless. */
static inline void sl_list_del(struct sl_list *e)
{
	e->prev->next = e->next;
	e->next->prev = e->prev;
	sl_list_init(e);
}

/** Move everything of @from to the tail of @to. */
static inline void sl_list_splice(struct sl_list *to, struct sl_list *from)
{
	if (sl_list_empty(from))
		return;
	from->next->prev = to->prev;
	to->prev->next = from->next;
	from->prev->next = to;
	to->prev = from->prev;
	sl_list_init(from);
}

#define sl_list_entry(p, type, m)  sl_container_of(p, type, m)
#define sl_list_for_each(it, head) for (struct sl_list *it = (head)->next; it != (head); it = it->next)
#define sl_list_for_each_safe(it, head)                                                                      \
	for (struct sl_list *it = (head)->next, *it##_n = it->next; it != (head);                            \
	     it = it##_n, it##_n = it->next)

/* Hash table: an element embeds a struct sl_hnode; several elements may have the same key. */
struct sl_hnode {
	struct sl_hnode *next;
	uint64_t key;
};

struct sl_htab {
	struct sl_hnode **b;
	size_t size; /* a power of two, or 0 before the first insertion */
	size_t n;
};

static inline size_t sl_htab_slot(const struct sl_htab *t, uint64_t key)
{
	key *= 0x9e3779b97f4a7c15ull;
	return (key ^ (key >> 32)) & (t->size - 1);
}

static inline struct sl_hnode *sl_htab_find(const struct sl_htab *t, uint64_t key)
{
	struct sl_hnode *h = t->size ? t->b[sl_htab_slot(t, key)] : NULL;
	while (h && h->key != key)
		h = h->next;
	return h;
}

/** The next element after @h with the same key, or NULL. */
static inline struct sl_hnode *sl_htab_next(const struct sl_hnode *h)
{
	uint64_t key = h->key;
	do
		h = h->next;
	while (h && h->key != key);
	return (struct sl_hnode *)h;
}

/** Add @h under @key. Returns 0 or -ENOMEM (only while the table is still empty; growing may fail silently).
 */
static inline int sl_htab_add(struct sl_htab *t, struct sl_hnode *h, uint64_t key)
{
	if (t->n >= t->size) {
		struct sl_htab g = {.size = t->size ? t->size * 2 : 64};
		g.b = calloc(g.size, sizeof(*g.b));
		if (!g.b && !t->size)
			return -ENOMEM;
		if (g.b) {
			for (size_t i = 0; i < t->size; i++)
				for (struct sl_hnode *e = t->b[i], *n; e; e = n) {
					size_t s = sl_htab_slot(&g, e->key);
					n = e->next;
					e->next = g.b[s];
					g.b[s] = e;
				}
			free(t->b);
			t->b = g.b;
			t->size = g.size;
		}
	}
	size_t s = sl_htab_slot(t, key);
	h->key = key;
	h->next = t->b[s];
	t->b[s] = h;
	t->n++;
	return 0;
}

/** Remove @h, which must be in the table. */
static inline void sl_htab_del(struct sl_htab *t, struct sl_hnode *h)
{
	struct sl_hnode **p = &t->b[sl_htab_slot(t, h->key)];
	while (*p != h)
		p = &(*p)->next;
	*p = h->next;
	h->next = NULL;
	t->n--;
}

static inline void sl_htab_fini(struct sl_htab *t)
{
	free(t->b);
	*t = (struct sl_htab){0};
}

/** Walk every element: for (h = sl_htab_first(t, &i); h; h = sl_htab_step(t, &i, h)). Do not change the table
 * meanwhile. */
static inline struct sl_hnode *sl_htab_scan(const struct sl_htab *t, size_t *i)
{
	while (*i < t->size)
		if (t->b[(*i)++])
			return t->b[*i - 1];
	return NULL;
}

static inline struct sl_hnode *sl_htab_first(const struct sl_htab *t, size_t *i)
{
	*i = 0;
	return sl_htab_scan(t, i);
}

static inline struct sl_hnode *sl_htab_step(const struct sl_htab *t, size_t *i, const struct sl_hnode *h)
{
	return h->next ? h->next : sl_htab_scan(t, i);
}
