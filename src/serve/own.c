/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "serve/own.h"

#include <pthread.h>
#include <string.h>
#include <xxhash.h>

#include "base/list.h"
#include "base/time.h"

#define CONTENT (FAN_MODIFY | FAN_ATTRIB | FAN_CLOSE_WRITE | SL_CHANGE_USE)

#define NOTES_KEPT 65536

struct note {
	struct sl_hnode node; /* key: of identity and name */
	struct sl_list link;  /* in the order of their begin */
	struct sl_evid dir;
	uint64_t id, mask;
	uint64_t done; /* when; 0: it is being made */
	char *name;    /* NULL: the object itself */
};

struct sl_own {
	pthread_mutex_t lock; /* protects all */
	struct sl_htab tab;
	struct sl_list list;
	uint64_t next_id;
};

static uint64_t key_of(const struct sl_evid *dir, const char *name)
{
	return XXH64(name ? name : "", name ? strlen(name) : 0, dir->generation ? dir->generation : dir->ino);
}

static void drop(struct sl_own *o, struct note *n)
{
	sl_htab_del(&o->tab, &n->node);
	sl_list_del(&n->link);
	free(n->name);
	free(n);
}

/* Without memory it is heard of as somebody else's. */
static void add(struct sl_own *o, uint64_t id, const struct sl_own_note *v)
{
	struct note *n = calloc(1, sizeof(*n));
	if (!n)
		return;
	*n = (struct note){.dir = v->dir, .id = id, .mask = v->mask};
	n->name = v->name ? strdup(v->name) : NULL;
	if ((v->name && !n->name) || sl_htab_add(&o->tab, &n->node, key_of(&v->dir, v->name)) < 0) {
		free(n->name);
		free(n);
		return;
	}
	sl_list_add_tail(&o->list, &n->link);
}

uint64_t sl_own_begin(struct sl_own *o, const struct sl_own_note *v, unsigned n)
{
	pthread_mutex_lock(&o->lock);
	uint64_t id = o->next_id++;
	for (unsigned i = 0; i < n; i++)
		add(o, id, &v[i]);
	/* Where nothing is heard of nobody takes them out. One that goes counts as somebody else's, if it is
	 * heard of after all. */
	while (o->tab.n > NOTES_KEPT && sl_list_entry(o->list.next, struct note, link)->done)
		drop(o, sl_list_entry(o->list.next, struct note, link));
	pthread_mutex_unlock(&o->lock);
	return id;
}

void sl_own_done(struct sl_own *o, uint64_t id, bool made)
{
	uint64_t now = sl_now();
	pthread_mutex_lock(&o->lock);
	/* From the end: it has just begun. */
	for (struct sl_list *l = o->list.prev, *prev; l != &o->list; l = prev) {
		struct note *n = sl_list_entry(l, struct note, link);
		prev = l->prev;
		if (n->id < id)
			break;
		if (n->id != id)
			continue;
		n->done = now;
		if (!made)
			drop(o, n);
	}
	pthread_mutex_unlock(&o->lock);
}

static struct note *find(struct sl_own *o, const struct sl_evid *dir, const char *name, uint64_t mask)
{
	for (struct sl_hnode *h = sl_htab_find(&o->tab, key_of(dir, name)); h; h = sl_htab_next(h)) {
		struct note *n = sl_container_of(h, struct note, node);
		if (n->dir.generation == dir->generation && (dir->generation || n->dir.ino == dir->ino) &&
		    (n->mask & mask) && (name ? n->name && !strcmp(n->name, name) : !n->name))
			return n;
	}
	return NULL;
}

/* Whether the kind @bit of @c was noted; takes it out if it comes only once. */
static bool take(struct sl_own *o, const struct sl_evid *dir, const char *name, uint64_t bit)
{
	struct note *n = find(o, dir, name, bit);
	if (n && !(bit & CONTENT))
		drop(o, n);
	return n;
}

uint64_t sl_own_filter(struct sl_own *o, const struct sl_change *c)
{
	uint64_t left = c->mask;
	pthread_mutex_lock(&o->lock);
	if (sl_list_empty(&o->list)) {
		/* nothing */
	} else if (c->mask & FAN_RENAME) {
		if (take(o, &c->dir, c->name, FAN_MOVED_FROM)) {
			(void)take(o, &c->newdir, c->newname, FAN_MOVED_TO);
			left &= ~(uint64_t)FAN_RENAME;
		}
	} else {
		static const uint64_t names[] = {FAN_CREATE, FAN_DELETE, FAN_MOVED_FROM, FAN_MOVED_TO};
		static const uint64_t content[] = {FAN_MODIFY, FAN_ATTRIB, FAN_CLOSE_WRITE,
						   FAN_OPEN,   FAN_ACCESS, FAN_CLOSE_NOWRITE};
		for (size_t i = 0; i < SL_ARRAY_SIZE(names) && c->name; i++)
			if (left & names[i] && take(o, &c->dir, c->name, names[i]))
				left &= ~names[i];
		/* By the object, or, where that is gone, by the name that it had. */
		bool has = c->child.generation || c->child.ino;
		for (size_t i = 0; i < SL_ARRAY_SIZE(content); i++)
			if (left & content[i] && ((has && take(o, &c->child, NULL, content[i])) ||
						  (!c->name && take(o, &c->dir, NULL, content[i])) ||
						  (c->name && take(o, &c->dir, c->name, content[i]))))
				left &= ~content[i];
	}
	pthread_mutex_unlock(&o->lock);
	return left;
}

void sl_own_heard(struct sl_own *o, uint64_t when)
{
	pthread_mutex_lock(&o->lock);
	sl_list_for_each_safe (l, &o->list) {
		struct note *n = sl_list_entry(l, struct note, link);
		if (n->done && n->done < when)
			drop(o, n);
	}
	pthread_mutex_unlock(&o->lock);
}

int sl_own_new(struct sl_own **ret)
{
	struct sl_own *o = calloc(1, sizeof(*o));
	if (!o)
		return -ENOMEM;
	pthread_mutex_init(&o->lock, NULL);
	o->next_id = 1;
	sl_list_init(&o->list);
	*ret = o;
	return 0;
}

void sl_own_free(struct sl_own *o)
{
	if (!o)
		return;
	sl_list_for_each_safe (l, &o->list)
		drop(o, sl_list_entry(l, struct note, link));
	sl_htab_fini(&o->tab);
	pthread_mutex_destroy(&o->lock);
	free(o);
}
