/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Directories of which an event did not lead to what the origin says is there: changes that the kernel has
 * merged, an object that was gone before it could be looked at, an act that failed. As long as events come,
 * one that explains it may be among them; when nothing has been heard for a moment they are compared.
 */
#include "base/log.h"
#include "base/time.h"
#include "replay/internal.h"
#include "store/remote.h"
#include "store/walk.h"

#define AGAIN_NS     (100 * SL_NS_PER_MS) /* doubled with each failure */
#define TRIES	     10
#define LINKS_MAX_NS (60 * SL_NS_PER_SEC)
#define MAX	     1024

struct unsure {
	struct sl_list link;
	struct sl_object *dir;
	uint64_t since, not_before; /* sl_now() times */
	unsigned tries;
};

/* Room for one more that is to be looked at, counted. NULL: there are too many, and all is compared. */
static void *one_more(struct sl_replay *p, size_t size)
{
	void *v = p->nunsure < MAX ? malloc(size) : NULL;
	pthread_mutex_lock(&p->lock);
	if (v)
		p->nunsure++;
	else
		p->lost = true;
	pthread_mutex_unlock(&p->lock);
	return v;
}

static void one_less(struct sl_replay *p, void *v)
{
	free(v);
	pthread_mutex_lock(&p->lock);
	p->nunsure--;
	pthread_mutex_unlock(&p->lock);
}

static void drop(struct sl_replay *p, struct unsure *u)
{
	sl_list_del(&u->link);
	sl_object_put(u->dir);
	one_less(p, u);
}

bool replay_is_unsure(struct sl_replay *p, struct sl_object *dir)
{
	sl_list_for_each (l, &p->unsure)
		if (sl_list_entry(l, struct unsure, link)->dir == dir)
			return true;
	return false;
}

void replay_unsure(struct sl_replay *p, struct sl_object *dir)
{
	if (!dir || replay_is_unsure(p, dir))
		return;
	if (p->tries == TRIES) {
		_cleanup_free_ char *path = sl_object_path(dir);
		sl_warn("'%s' cannot be made what it is at the origin; that is tried again and again",
			path ? path : "");
	}
	struct unsure *u = one_more(p, sizeof(*u));
	uint64_t now = sl_now();
	if (!u)
		return;
	*u = (struct unsure){.dir = sl_object_ref(dir), .since = now, .tries = SL_MIN(p->tries, TRIES + 1u)};
	if (u->tries)
		u->not_before = now + (AGAIN_NS << (u->tries - 1));
	sl_list_add_tail(&p->unsure, &u->link);
}

void unsure_again(struct sl_replay *p, struct sl_object *dir, unsigned tries, uint64_t since)
{
	struct unsure *u = replay_is_unsure(p, dir) ? NULL : one_more(p, sizeof(*u));
	if (!u)
		return;
	*u = (struct unsure){.dir = sl_object_ref(dir), .since = since, .tries = tries};
	sl_list_add_tail(&p->unsure, &u->link);
}

bool unsure_late(uint64_t since)
{
	return since + LATEST_NS <= sl_now();
}

bool unsure_told(struct sl_replay *p)
{
	struct sl_oreq q = {.op = SL_OREQ_TOLD, .place = ""};
	(void)sl_origin_call(p->cfg.origin, &q);
	sl_oreq_fini(&q);
	pthread_mutex_lock(&p->lock);
	bool all = !p->nqueue && !p->lost;
	pthread_mutex_unlock(&p->lock);
	return all;
}

/* ---- directories that are elsewhere ---- */

/* What was listed while it was being renamed may have been told of before we have come to that. */
struct stray {
	struct sl_list link;
	struct sl_odir which;
	uint64_t since, not_before;
};

static void drop_stray(struct sl_replay *p, struct stray *s)
{
	sl_list_del(&s->link);
	one_less(p, s);
}

void replay_stray(struct sl_replay *p, const struct sl_odir *which)
{
	sl_list_for_each (l, &p->strays)
		if (sl_list_entry(l, struct stray, link)->which.id == which->id)
			return;
	struct stray *s = one_more(p, sizeof(*s));
	if (!s)
		return;
	*s = (struct stray){.which = *which, .since = sl_now()};
	sl_list_add_tail(&p->strays, &s->link);
}

static uint64_t stray_due(const struct stray *s, uint64_t heard)
{
	uint64_t quiet = SL_MIN(heard + QUIET_NS, s->since + LATEST_NS);
	return SL_MAX(s->not_before, quiet);
}

/* Nothing is at @place here. Was it a user who took it away? Behind the fanotify gate nobody tells, and it is
 * believed. */
static bool taken_here(struct sl_replay *p, const char *place)
{
	const char *slash = strrchr(place, '/');
	_cleanup_free_ char *up = slash ? strndup(place, (size_t)(slash - place)) : strdup("");
	_cleanup_object_ struct sl_object *dir = NULL;
	if (!up || p->cfg.find(p->cfg.store, up, &dir) < 0 || sl_store_native(p->cfg.store))
		return true;
	return sl_object_whiteout(dir, slash ? slash + 1 : place);
}

/* Once all has been done that was told, it is where it was told to be. */
static void look_for(struct sl_replay *p, struct stray *s, uint64_t now, bool quiet)
{
	_cleanup_free_ char *place = sl_origin_where(p->cfg.origin, s->which.id);
	_cleanup_object_ struct sl_object *dir = NULL;
	if (!place || p->cfg.find(p->cfg.store, place, &dir) < 0)
		dir = NULL;
	bool is = dir && !replay_is_other(dir, &s->which), listing = false;
	if (is) {
		pthread_mutex_lock(&dir->lock);
		listing = dir->rec.state != SL_FULL && dir->flight && !dir->damaged;
		pthread_mutex_unlock(&dir->lock);
	}
	if (listing || (place && !is && !quiet && now < s->since + LATEST_NS)) {
		s->not_before = now + AGAIN_NS;
		return;
	}
	sl_debug("a directory that was elsewhere: '%s'%s", place ? place : "",
		 is ? "" : ", which is not here");
	bool wrong = dir ? !is : place && !taken_here(p, place);
	if (is && replay_populated(dir))
		replay_unsure(p, dir);
	drop_stray(p, s);
	if (wrong) { /* nobody knows where it is: all is compared */
		pthread_mutex_lock(&p->lock);
		p->lost = true;
		pthread_mutex_unlock(&p->lock);
	}
}

/* ---- hard links ---- */

void unsure_of_links(struct sl_replay *p)
{
	if (p->unsure_links)
		return;
	p->unsure_links = true;
	p->links_since = sl_now();
	pthread_mutex_lock(&p->lock);
	p->nunsure++;
	pthread_mutex_unlock(&p->lock);
}

/* A file that was changed by a name that is gone, or is another's, before it could be asked what it is like.
 */
struct changed {
	struct sl_hnode node; /* key: inode number */
	struct sl_object *o;
};

static bool is_changed(struct sl_replay *p, struct sl_object *o)
{
	return sl_htab_find(&p->changed, sl_object_ino(o));
}

void unsure_of_file(struct sl_replay *p, struct sl_object *o)
{
	if (is_changed(p, o))
		return;
	struct changed *x = p->changed.n < MAX ? malloc(sizeof(*x)) : NULL;
	if (!x || sl_htab_add(&p->changed, &x->node, sl_object_ino(o)) < 0) {
		free(x);
		pthread_mutex_lock(&p->lock);
		p->lost = true;
		pthread_mutex_unlock(&p->lock);
		return;
	}
	x->o = sl_object_ref(o);
	unsure_of_links(p);
}

static void forget_changed(struct sl_replay *p)
{
	size_t i;
	for (struct sl_hnode *h; (h = sl_htab_first(&p->changed, &i));) {
		struct changed *x = sl_container_of(h, struct changed, node);
		sl_htab_del(&p->changed, h);
		sl_object_put(x->o);
		free(x);
	}
	sl_htab_fini(&p->changed);
}

static int look_at_one(void *arg, const char *path, struct sl_object *o, int err)
{
	struct sl_replay *p = arg;
	struct sl_store *s = p->cfg.store;
	(void)err;
	pthread_mutex_lock(&p->lock);
	/* Events go first, unless there are always some. */
	bool more = (p->nqueue && p->links_pause < LINKS_MAX_NS) || p->stop;
	pthread_mutex_unlock(&p->lock);
	if (more)
		return -EAGAIN;
	if (o && (is_changed(p, o) || (!sl_store_native(s) && sl_remote_twin(o)))) {
		_cleanup_object_ struct sl_object *dir = NULL, *there = NULL;
		if (sl_object_by_path(s, path, &dir, &there) == 0)
			replay_unsure(p, dir);
	}
	return 0;
}

/* The other names of a file are looked for where nobody has them in memory: everywhere. Of one that got a
 * second name, and of one that was changed by a name that is gone. */
static void look_at_links(struct sl_replay *p)
{
	if (sl_walk_names(sl_object_root(p->cfg.store), look_at_one, p) == -EAGAIN) {
		/* From the start again, so not too often. */
		uint64_t pause = SL_MAX(p->links_pause * 2, SL_NS_PER_SEC);
		p->links_pause = SL_MIN(pause, LINKS_MAX_NS);
		p->links_after = sl_now() + p->links_pause;
		return;
	}
	p->links_pause = 0;
	p->unsure_links = false;
	forget_changed(p);
	pthread_mutex_lock(&p->lock);
	p->nunsure--;
	pthread_mutex_unlock(&p->lock);
}

/* ---- when ---- */

/* @heard: when the last event came. */
static uint64_t due(const struct unsure *u, uint64_t heard)
{
	uint64_t quiet = SL_MIN(heard + QUIET_NS, u->since + LATEST_NS);
	return SL_MAX(u->not_before, quiet);
}

static uint64_t links_due(struct sl_replay *p, uint64_t heard)
{
	uint64_t quiet = SL_MIN(heard + QUIET_NS, p->links_since + LATEST_NS);
	return SL_MAX(p->links_after, quiet);
}

uint64_t unsure_due(struct sl_replay *p)
{
	uint64_t first = p->unsure_links ? links_due(p, p->heard) : 0;
	sl_list_for_each (l, &p->unsure) {
		first = sl_earlier(first, due(sl_list_entry(l, struct unsure, link), p->heard));
	}
	sl_list_for_each (l, &p->strays) {
		first = sl_earlier(first, stray_due(sl_list_entry(l, struct stray, link), p->heard));
	}
	return first;
}

void unsure_look(struct sl_replay *p)
{
	pthread_mutex_lock(&p->lock);
	uint64_t due_at = unsure_due(p);
	pthread_mutex_unlock(&p->lock);
	if (!due_at || due_at > sl_now())
		return;
	bool told = unsure_told(p);
	uint64_t now = sl_now();
	pthread_mutex_lock(&p->lock);
	/* What waits to be done was not heard of so far. */
	uint64_t heard = told ? p->heard : now;
	pthread_mutex_unlock(&p->lock);
	sl_list_for_each_safe (l, &p->strays) {
		struct stray *s = sl_list_entry(l, struct stray, link);
		if (stray_due(s, heard) <= now)
			look_for(p, s, now, heard + QUIET_NS <= now);
	}
	sl_list_for_each_safe (l, &p->unsure) {
		struct unsure *u = sl_list_entry(l, struct unsure, link);
		if (due(u, heard) > now)
			continue;
		if (compare_add(p, u->dir, u->tries, u->since) < 0)
			return;
		drop(p, u);
	}
	if (p->unsure_links && links_due(p, heard) <= now)
		look_at_links(p);
}

void unsure_free(struct sl_replay *p)
{
	sl_list_for_each_safe (l, &p->unsure)
		drop(p, sl_list_entry(l, struct unsure, link));
	sl_list_for_each_safe (l, &p->strays)
		drop_stray(p, sl_list_entry(l, struct stray, link));
	forget_changed(p);
}
