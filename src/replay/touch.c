/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Directories whose names came and went: their own times, which no event tells; and, behind the fanotify
 * gate, up to which time of the origin's their names are here. What is older than that and not here was
 * deleted here.
 */
#include "base/time.h"
#include "replay/internal.h"

#define ASKED_MAX 64
#define CAME_MAX  65536

struct touch {
	struct sl_list link;
	struct sl_replay *p;
	struct sl_object *dir;
	struct timespec upto; /* the latest change of what is in it that came here */
	uint32_t losses;
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

static void touch_upto(struct sl_replay *p, struct sl_object *dir, struct timespec upto)
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
		t->losses = p->losses;
		sl_list_add_tail(&p->touched, &t->link);
		p->ntouched++;
	}
	if (sl_time_after(upto, t->upto))
		t->upto = upto;
}

void replay_touch(struct sl_replay *p, struct sl_object *dir)
{
	touch_upto(p, dir, (struct timespec){0});
}

void replay_seen(struct sl_replay *p, struct sl_object *dir, const struct sl_ostate *s)
{
	if (dir && s->known && s->present && sl_store_native(p->cfg.store))
		touch_upto(p, dir, s->attr.ctime);
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
		i->upto = t->upto;
		i->losses = t->losses;
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

/* ---- what has come ---- */

/* The state of a name may be newer than an event that is still to come, of another name: until nothing more
 * can come that is as old, a name that is missing is not one that was deleted here. */
struct came {
	struct sl_list link;
	struct sl_object *dir;
	struct timespec upto;
	uint64_t since; /* sl_now() */
};

static void forget(struct sl_replay *p, struct came *c)
{
	sl_list_del(&c->link);
	p->ncame--;
	sl_object_put(c->dir);
	free(c);
}

void touch_forget(struct sl_replay *p)
{
	p->losses++;
	sl_list_for_each_safe (l, &p->came)
		forget(p, sl_list_entry(l, struct came, link));
}

void touch_came(struct sl_replay *p, struct sl_object *dir, struct timespec upto, uint32_t losses)
{
	uint64_t now = sl_now();
	if (!sl_store_native(p->cfg.store) || (upto.tv_sec == 0 && upto.tv_nsec == 0) || losses != p->losses)
		return;
	struct came *c = sl_list_empty(&p->came) ? NULL : sl_list_entry(p->came.prev, struct came, link);
	if (c && c->dir == dir && now - c->since < SL_NS_PER_SEC) {
		c->upto = sl_time_after(upto, c->upto) ? upto : c->upto;
		return;
	}
	if (p->ncame == CAME_MAX) /* a deletion here may be undone, and no name is missing */
		forget(p, sl_list_entry(p->came.next, struct came, link));
	c = malloc(sizeof(*c));
	if (!c)
		return;
	*c = (struct came){.dir = sl_object_ref(dir), .upto = upto, .since = now};
	sl_list_add_tail(&p->came, &c->link);
	p->ncame++;
}

uint64_t touch_due(struct sl_replay *p)
{
	if (sl_list_empty(&p->came))
		return 0;
	if (p->offline)
		return sl_now() + SL_NS_PER_SEC;
	return SL_MIN(p->heard + QUIET_NS, sl_list_entry(p->came.next, struct came, link)->since + LATEST_NS);
}

void touch_look(struct sl_replay *p)
{
	uint64_t now = sl_now();
	if (sl_list_empty(&p->came))
		return;
	p->offline = !sl_origin_connected(p->cfg.origin);
	if (p->offline) /* silence says nothing */
		return;
	pthread_mutex_lock(&p->lock);
	bool quiet = !p->nqueue && p->heard + QUIET_NS <= now;
	pthread_mutex_unlock(&p->lock);
	sl_list_for_each_safe (l, &p->came) {
		struct came *c = sl_list_entry(l, struct came, link);
		if (!quiet && c->since + LATEST_NS > now)
			return;
		/* One that is compared again later may lack something until then; the comparison says so
		 * itself. */
		if (!replay_is_unsure(p, c->dir))
			(void)sl_object_listed(c->dir, c->upto);
		forget(p, c);
	}
}

void touch_free(struct sl_replay *p)
{
	sl_list_for_each_safe (l, &p->touched)
		drop(sl_list_entry(l, struct touch, link));
	touch_forget(p);
}
