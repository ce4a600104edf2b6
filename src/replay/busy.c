/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Updates that the readers of a file are in the way of. */
#include <sys/fanotify.h>

#include "replay/internal.h"

#define BUSY_MAX 1024

struct busy {
	struct sl_list link;
	struct sl_object *dir, *o;
	char *name; /* in dir; both NULL: not known any more */
};

static void drop(struct busy *b)
{
	sl_list_del(&b->link);
	sl_object_put(b->dir);
	sl_object_put(b->o);
	free(b->name);
	free(b);
}

void busy_put_off(struct sl_replay *p, struct sl_object *dir, const char *name, struct sl_object *o)
{
	sl_list_for_each (l, &p->busy)
		if (sl_list_entry(l, struct busy, link)->o == o)
			return;
	struct busy *b = p->nbusy < BUSY_MAX ? calloc(1, sizeof(*b)) : NULL;
	if (b && name)
		b->name = strdup(name);
	if (!b || (name && !b->name)) { /* the comparison will find it */
		free(b);
		pthread_mutex_lock(&p->lock);
		p->lost = true;
		pthread_mutex_unlock(&p->lock);
		return;
	}
	b->dir = dir ? sl_object_ref(dir) : NULL;
	b->o = sl_object_ref(o);
	sl_list_add_tail(&p->busy, &b->link);
	p->nbusy++;
}

void busy_retry(struct sl_replay *p)
{
	const struct sl_ostate nothing = {0};
	sl_list_for_each_safe (l, &p->busy) {
		struct busy *b = sl_list_entry(l, struct busy, link);
		pthread_mutex_lock(&b->o->lock);
		bool still = b->o->open_passthrough;
		pthread_mutex_unlock(&b->o->lock);
		_cleanup_object_ struct sl_object *now = NULL;
		if (still)
			continue;
		/* It may be put off again. */
		sl_list_del(&b->link);
		p->nbusy--;
		_cleanup_free_ char *place = NULL;
		if (b->dir && sl_object_lookup(b->dir, b->name, &now) == 0 && now == b->o &&
		    sl_object_place(now, &place) == 0) {
			struct sl_oreq q = {.op = SL_OREQ_STAT, .place = place, .fresh = true};
			if (sl_origin_call(p->cfg.origin, &q) == 0) {
				struct sl_ostate s = {.known = true, .present = true, .attr = q.attr};
				if (replay_is_state(now, &s))
					(void)replay_update(p, b->dir, b->name, now, &s, FAN_MODIFY);
				else
					replay_uncertain(p, b->dir, b->name, now, &s);
			} else if (q.err == -ETIMEDOUT) {
				sl_oreq_fini(&q);
				sl_list_add(&p->busy, &b->link);
				p->nbusy++;
				continue;
			} else {
				replay_uncertain(p, b->dir, b->name, now, &nothing);
			}
			sl_oreq_fini(&q);
		} else {
			/* That name is gone or another's; it may have others. */
			replay_uncertain(p, NULL, NULL, b->o, &nothing);
		}
		drop(b);
	}
}

void busy_free(struct sl_replay *p)
{
	sl_list_for_each_safe (l, &p->busy)
		drop(sl_list_entry(l, struct busy, link));
}
