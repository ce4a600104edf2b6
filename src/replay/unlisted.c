/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Directories that were shown before they could be listed, where they are not lazy. */
#include "replay/internal.h"

struct unlisted {
	struct sl_list link;
	struct sl_object *dir;
};

static void drop(struct unlisted *u)
{
	sl_list_del(&u->link);
	sl_object_put(u->dir);
	free(u);
}

/*
 * What @dir, which is shown and is marked by this, has by now comes into it. -ESTALE where it is elsewhere by
 * now; -ENOENT where it is gone here, or the user's.
 */
static int list_dir(struct sl_replay *p, struct sl_object *dir)
{
	_cleanup_object_ struct sl_object *here = NULL;
	_cleanup_free_ char *place = NULL;
	int r = sl_object_place(dir, &place);
	if (r == 0)
		r = p->cfg.find(p->cfg.store, place, &here);
	if (r < 0 || here != dir)
		return -ENOENT;
	/* It was gone from its name before anybody could look: what is there now is another. */
	if (replay_is_unknown(dir))
		return -ESTALE;
	struct sl_oreq q = {.op = SL_OREQ_LIST, .place = place, .mark = true, .fresh = true};
	bool all = true;
	r = sl_origin_call(p->cfg.origin, &q);
	if (r == 0 && !replay_is(dir, q.attr.ino, q.attr.generation))
		r = -ESTALE;
	for (size_t i = 0; r == 0 && i < q.nentries; i++) {
		const struct sl_oentry *e = &q.entries[i];
		_cleanup_object_ struct sl_object *o = NULL;
		struct sl_ostate s = {.known = true, .present = true, .attr = e->attr, .target = e->target};
		if ((sl_object_lookup(dir, e->name, &o) == -ENOENT
			 ? replay_appear(p, dir, e->name, &s, SL_APPEAR_MADE)
			 : replay_settle(p, dir, e->name, &s, false)) < 0)
			all = false;
	}
	struct sl_ostate own = {.known = true, .present = true, .attr = q.attr};
	if (r == 0)
		(void)p->cfg.acts.update(p->cfg.acts.arg, NULL, NULL, dir, &own, 0,
					 SL_UPDATE_KEEP | SL_UPDATE_LISTED);
	if (!all)
		replay_unsure(p, dir);
	else if (r == 0)
		replay_listed(dir, &q);
	sl_oreq_fini(&q);
	return r == 0 ? 0 : -ESTALE;
}

void replay_listed(struct sl_object *dir, const struct sl_oreq *q)
{
	if (sl_store_native(dir->store))
		(void)sl_object_listed(dir, q->entries, q->nentries, sl_oreq_latest(q));
}

/* Where directories are not lazy. One that has moved on is listed when we have moved it on as well. */
int unlisted_new(struct sl_replay *p, struct sl_object *up, const char *name)
{
	_cleanup_object_ struct sl_object *dir = NULL;
	int r = sl_object_lookup(up, name, &dir);
	if (r < 0 || list_dir(p, dir) != -ESTALE)
		return SL_MIN(r, 0);
	struct unlisted *u = malloc(sizeof(*u));
	if (!u) { /* the comparison will find it */
		pthread_mutex_lock(&p->lock);
		p->lost = true;
		pthread_mutex_unlock(&p->lock);
		return 0;
	}
	u->dir = sl_object_ref(dir);
	sl_list_add_tail(&p->unlisted, &u->link);
	return 0;
}

void unlisted_again(struct sl_replay *p)
{
	struct sl_list todo; /* without what is found meanwhile */
	sl_list_init(&todo);
	sl_list_for_each_safe (l, &p->unlisted) {
		sl_list_del(l);
		sl_list_add_tail(&todo, l);
	}
	sl_list_for_each_safe (l, &todo) {
		struct unlisted *u = sl_list_entry(l, struct unlisted, link);
		if (list_dir(p, u->dir) == -ESTALE) {
			sl_list_del(l);
			sl_list_add_tail(&p->unlisted, l);
		} else {
			drop(u);
		}
	}
}

bool unlisted_has(struct sl_replay *p, struct sl_object *dir)
{
	sl_list_for_each (l, &p->unlisted)
		if (sl_list_entry(l, struct unlisted, link)->dir == dir)
			return true;
	return false;
}

void unlisted_free(struct sl_replay *p)
{
	sl_list_for_each_safe (l, &p->unlisted)
		drop(sl_list_entry(l, struct unlisted, link));
}
