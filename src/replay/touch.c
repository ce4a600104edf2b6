/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Directories whose names came and went: their own times, which no event tells. */
#include "base/time.h"
#include "replay/internal.h"

#define ASKED_MAX 64

struct touch {
	struct sl_list link;
	struct sl_replay *p;
	struct sl_object *dir;
	char *place;
	struct sl_oreq req;
};

static void drop(struct touch *t)
{
	sl_list_del(&t->link);
	sl_object_put(t->dir);
	free(t->place);
	free(t);
}

void replay_touch(struct sl_replay *p, struct sl_object *dir)
{
	struct touch *t = NULL;
	sl_list_for_each (l, &p->touched)
		if (sl_list_entry(l, struct touch, link)->dir == dir)
			t = sl_list_entry(l, struct touch, link);
	if (!t) {
		t = calloc(1, sizeof(*t));
		if (!t)
			return;
		t->p = p;
		t->dir = sl_object_ref(dir);
		sl_list_add_tail(&p->touched, &t->link);
		p->ntouched++;
	}
}

/* On a thread of the origin's. */
static void touch_done(struct sl_oreq *r)
{
	struct touch *t = sl_container_of(r, struct touch, req);
	struct sl_replay *p = t->p;
	struct item *i = r->err == 0 ? calloc(1, sizeof(*i)) : NULL;
	if (i) {
		i->e.state = (struct sl_ostate){.known = true, .present = true, .attr = r->attr};
		i->dir = sl_object_ref(t->dir);
	}
	sl_oreq_fini(r);
	drop(t);
	pthread_mutex_lock(&p->lock);
	p->asked--;
	if (i) {
		sl_list_add_tail(&p->queue, &i->link);
		p->nqueue++;
	}
	pthread_cond_broadcast(&p->cond);
	pthread_mutex_unlock(&p->lock);
}

void touch_ask(struct sl_replay *p)
{
	while (!sl_list_empty(&p->touched)) {
		struct touch *t = sl_list_entry(p->touched.next, struct touch, link);
		pthread_mutex_lock(&p->lock);
		bool room = p->asked < ASKED_MAX;
		p->asked += room;
		pthread_mutex_unlock(&p->lock);
		if (!room)
			return;
		sl_list_del(&t->link);
		p->ntouched--;
		if (sl_object_place(t->dir, &t->place) < 0) {
			drop(t);
			pthread_mutex_lock(&p->lock);
			p->asked--;
			pthread_mutex_unlock(&p->lock);
			continue;
		}
		t->req = (struct sl_oreq){
		    .op = SL_OREQ_STAT, .place = t->place, .fresh = true, .done = touch_done};
		sl_origin_submit(p->cfg.origin, &t->req);
	}
}

void touch_free(struct sl_replay *p)
{
	sl_list_for_each_safe (l, &p->touched)
		drop(sl_list_entry(l, struct touch, link));
}
