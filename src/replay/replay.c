/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "replay/replay.h"

#include <stdio.h>
#include <sys/fanotify.h>

#include "base/fd.h"
#include "base/log.h"
#include "base/time.h"
#include "replay/internal.h"
#include "store/remote.h"

#define QUEUE_MAX    (256u << 10)
#define BYTES_MAX    (64u << 20)
#define BUSY_MAX     1024
#define BUSY_NS	     (250 * SL_NS_PER_MS)
#define SWAP_NS	     (20 * SL_NS_PER_MS)
#define SWAP_SEEN_NS (1 * SL_NS_PER_SEC)
#define SWAP_LOOK    4	  /* renames */
#define STEP_EVERY   1024 /* events, if there are so many */
#define CHANGES	     (FAN_MODIFY | FAN_ATTRIB | FAN_CLOSE_WRITE)
#define USES	     (FAN_OPEN | FAN_ACCESS | FAN_CLOSE_NOWRITE)
#define PAUSE_NS     (5 * SL_NS_PER_SEC)

/* ---- the queue ---- */

static void item_free(struct item *i)
{
	sl_object_put(i->dir);
	free(i);
}

static size_t text_size(const char *s)
{
	return s ? strlen(s) + 1 : 0;
}

static const char *text_copy(char **at, const char *s)
{
	size_t n = text_size(s);
	char *p = n ? memcpy(*at, s, n) : NULL;
	*at += n;
	return p;
}

static struct item *item_new(const struct sl_oevent *e)
{
	size_t n = sizeof(struct item) + text_size(e->place) + text_size(e->newplace) +
		   text_size(e->state.target) + text_size(e->newstate.target);
	struct item *i = malloc(n);
	if (!i)
		return NULL;
	char *at = (char *)(i + 1);
	*i = (struct item){.e = *e, .bytes = n};
	i->e.place = text_copy(&at, e->place);
	i->e.newplace = text_copy(&at, e->newplace);
	i->e.state.target = text_copy(&at, e->state.target);
	i->e.newstate.target = text_copy(&at, e->newstate.target);
	return i;
}

/* With the lock held. What is compared need not be told. */
static void drop_queue(struct sl_replay *p)
{
	sl_list_for_each_safe (l, &p->queue) {
		struct item *i = sl_list_entry(l, struct item, link);
		sl_list_del(&i->link);
		item_free(i);
	}
	p->nqueue = p->bytes = 0;
	p->lost = true;
}

void sl_replay_event(struct sl_replay *p, const struct sl_oevent *e)
{
	struct item *i = e->lost ? NULL : item_new(e);
	size_t max = p->cfg.queue ? p->cfg.queue : QUEUE_MAX;
	pthread_mutex_lock(&p->lock);
	p->stats.events += !e->lost && !e->ignored;
	p->heard = sl_now();
	if (e->lost && !p->stop) {
		p->stats.lost++;
		drop_queue(p);
	} else if (p->stop) {
		if (i)
			item_free(i);
	} else if (!i || p->nqueue >= max || p->bytes + i->bytes > BYTES_MAX) {
		if (i)
			item_free(i);
		p->stats.overflows++;
		drop_queue(p);
	} else {
		sl_list_add_tail(&p->queue, &i->link);
		p->nqueue++;
		p->bytes += i->bytes;
	}
	pthread_cond_broadcast(&p->cond);
	pthread_mutex_unlock(&p->lock);
}

void sl_replay_look(struct sl_replay *p, struct sl_object *o)
{
	_cleanup_object_ struct sl_object *dir = sl_object_parent(o);
	if (dir)
		sl_replay_look_into(p, dir);
}

void sl_replay_look_into(struct sl_replay *p, struct sl_object *dir)
{
	struct item *i = calloc(1, sizeof(*i));
	pthread_mutex_lock(&p->lock);
	if (!i) {
		p->lost = true;
	} else if (!p->stop) {
		*i = (struct item){.dir = sl_object_ref(dir), .look = true};
		sl_list_add_tail(&p->queue, &i->link);
		p->nqueue++;
		i = NULL;
	}
	pthread_cond_broadcast(&p->cond);
	pthread_mutex_unlock(&p->lock);
	free(i);
}

void replay_count(struct sl_replay *p, uint64_t *counter, uint64_t n)
{
	pthread_mutex_lock(&p->lock);
	*counter += n;
	pthread_mutex_unlock(&p->lock);
}

/* ---- what the clone has ---- */

bool replay_populated(struct sl_object *dir)
{
	pthread_mutex_lock(&dir->lock);
	bool full = dir->rec.state == SL_FULL && !(dir->rec.flags & SL_LOCAL) && !dir->evicting;
	pthread_mutex_unlock(&dir->lock);
	return full && sl_object_is_dir(dir);
}

bool replay_foreign(struct sl_object *dir, const char *name, struct sl_object *o)
{
	bool native = sl_store_native(o->store);
	pthread_mutex_lock(&o->lock);
	bool f = o->rec.flags & (SL_LOCAL | SL_MOVED) || o->damaged || (native && !o->has_record);
	bool linked = o->rec.flags & SL_LINKED, recorded = o->has_record;
	pthread_mutex_unlock(&o->lock);
	if (!f && !native && !recorded)
		return sl_object_whiteout(dir, name); /* see sl_object_adopt() */
	if (f || !native || linked)
		return f;
	/* Nobody tells of names that users change there, but a record says where its object belongs. */
	_cleanup_free_ char *above = NULL, *own = NULL, *place = NULL;
	if (sl_object_place(dir, &above) < 0 || sl_object_place(o, &own) < 0)
		return true;
	place = sl_path_join(above, name);
	return !place || strcmp(place, own) != 0;
}

bool replay_deleted(struct sl_object *dir, const char *name, const struct sl_ostate *s)
{
	if (!sl_store_native(dir->store))
		return sl_object_whiteout(dir, name);
	return sl_object_taken(dir, name, &s->attr);
}

/* Not every backend knows both halves of an identity. */
static bool same_identity(uint64_t ino, uint32_t generation, uint64_t ino2, uint32_t generation2)
{
	if ((ino && ino2 && ino != ino2) || (generation && generation2 && generation != generation2))
		return false;
	return (ino && ino2) || (generation && generation2);
}

/* See husk(). */
static bool is_nobody(const struct sl_version *v)
{
	return !v->ino && !v->generation;
}

static bool is_unknown(struct sl_object *o)
{
	pthread_mutex_lock(&o->lock);
	bool is = o->has_record && is_nobody(&o->rec.origin);
	pthread_mutex_unlock(&o->lock);
	return is;
}

bool replay_is(struct sl_object *o, uint64_t ino, uint64_t generation)
{
	pthread_mutex_lock(&o->lock);
	const struct sl_version *v = &o->rec.origin;
	bool unknown = !o->has_record || is_nobody(v);
	bool same = unknown || same_identity(v->ino, v->generation, ino, (uint32_t)generation);
	pthread_mutex_unlock(&o->lock);
	return same;
}

bool replay_is_other(struct sl_object *dir, const struct sl_odir *which)
{
	pthread_mutex_lock(&dir->lock);
	uint32_t have = dir->has_record ? dir->rec.origin.generation : 0;
	pthread_mutex_unlock(&dir->lock);
	return which->generation && have && have != (uint32_t)which->generation;
}

static bool is_state(struct sl_object *o, const struct sl_ostate *s)
{
	return (s->attr.mode & S_IFMT) == o->type && replay_is(o, s->attr.ino, s->attr.generation);
}

/* Is a version here of which watchers have not heard? */
static bool owed(struct sl_object *o)
{
	pthread_mutex_lock(&o->lock);
	bool is = o->rec.flags & SL_UNTOLD && !(o->rec.flags & (SL_MODIFIED | SL_LOCAL | SL_WRITTEN));
	pthread_mutex_unlock(&o->lock);
	return is;
}

/* After they have: a service that is killed before that leaves it to the next one. */
static void paid(struct sl_object *o)
{
	pthread_mutex_lock(&o->lock);
	bool is = o->rec.flags & SL_UNTOLD;
	o->rec.flags &= (uint16_t)~SL_UNTOLD;
	if (is)
		(void)sl_object_save(o);
	pthread_mutex_unlock(&o->lock);
}

/* Native: another object here is that file, and @o must not become a second one. */
static bool is_twin(struct sl_replay *p, struct sl_object *o, const struct sl_ostate *s)
{
	const struct sl_acts *a = &p->cfg.acts;
	return s->known && s->present && a->twin && a->twin(a->arg, o, &s->attr);
}

/* One of several names of a file: do the others that are here denote the same object? */
static bool is_joined(struct sl_replay *p, struct sl_object *o, const struct sl_ostate *s)
{
	if (!S_ISREG(s->attr.mode) || s->attr.nlink < 2 || !o->has_record)
		return true;
	pthread_mutex_lock(&o->lock);
	bool ours = o->rec.flags & (SL_META | SL_MODIFIED); /* and stays what it is */
	pthread_mutex_unlock(&o->lock);
	if (sl_store_native(o->store))
		return ours || !is_twin(p, o, s);
	return ours || sl_remote_join(o, &s->attr) != -EEXIST;
}

static bool same_target(struct sl_object *o, const struct sl_ostate *s)
{
	char t[4096 + 1];
	ssize_t n = sl_object_readlink(o, t, sizeof(t) - 1);
	t[n < 0 ? 0 : n] = '\0';
	return s->target && !strcmp(t, s->target);
}

/*
 * The name in its directory, which is @which: the directory as a new reference, or an error as of find().
 * Places say where directories are by the events that were told; we have not come to all of these, and one
 * that was listed meanwhile may have been told of already. -ESTALE where another one is here.
 */
static int find_name(struct sl_replay *p, const char *place, const struct sl_odir *which,
		     struct sl_object **dir, const char **name)
{
	const char *slash = strrchr(place, '/');
	_cleanup_free_ char *up = slash ? strndup(place, (size_t)(slash - place)) : strdup("");
	*name = slash ? slash + 1 : place;
	if (!up)
		return -ENOMEM;
	if (!**name)
		return -EINVAL;
	int r = p->cfg.find(p->cfg.store, up, dir);
	if (r == 0 && replay_is_other(*dir, which))
		r = -ESTALE;
	if (which->id && (r == -ESTALE || r == -ENOENT))
		replay_stray(p, which);
	if (r < 0)
		return r;
	/* It is being listed: what the listing shows comes first, then what happened since. */
	pthread_mutex_lock(&(*dir)->lock);
	bool wait =
	    sl_object_is_dir(*dir) && (*dir)->rec.state != SL_FULL && (*dir)->flight && !(*dir)->damaged;
	pthread_mutex_unlock(&(*dir)->lock);
	if (wait)
		(void)sl_fill_wait(p->cfg.fill, SL_WANT_NAMES, *dir, 0, 0);
	return replay_populated(*dir) ? 0 : -ENODATA;
}

/* ---- acts ---- */

static void conflict(struct sl_replay *p, struct sl_object *dir, const char *name)
{
	_cleanup_object_ struct sl_object *o = NULL;
	_cleanup_free_ char *path = dir ? sl_object_path(dir) : NULL;
	replay_count(p, &p->stats.conflicts, 1);
	sl_notice("conflict: '%s%s%s' was changed here and at the origin; what is here stays",
		  path ? path : "", path && *path ? "/" : "", name ? name : "");
	if (!dir || sl_object_lookup(dir, name, &o) < 0)
		return;
	pthread_mutex_lock(&o->lock);
	if (!(o->rec.flags & SL_CONFLICT)) {
		o->rec.flags |= SL_CONFLICT;
		if (sl_object_save(o) < 0)
			o->rec.flags &= (uint16_t)~SL_CONFLICT;
	}
	pthread_mutex_unlock(&o->lock);
}

/* Behind the fanotify gate nobody tells of names that users take away: what has come and is missing was. */
static void came(struct sl_object *dir, const char *name, const struct sl_attr *a)
{
	if (dir && sl_store_native(dir->store))
		sl_object_came(dir, name, a);
}

/* The origin has renamed what is @name in @dir now, or has taken it from there. */
static void came_as_it_is(struct sl_object *dir, const char *name)
{
	_cleanup_object_ struct sl_object *o = NULL;
	if (!sl_store_native(dir->store))
		return;
	if (sl_object_lookup(dir, name, &o) < 0) {
		sl_object_forget_came(dir, name);
		return;
	}
	pthread_mutex_lock(&o->lock);
	const struct sl_version *v = &o->rec.origin;
	struct sl_attr a = {.ino = v->ino, .generation = v->generation, .ctime = v->ctime};
	pthread_mutex_unlock(&o->lock);
	came(dir, name, &a);
}

/* The result of an act: a conflict is noted and is no error, and what is gone is gone. */
static int acted(struct sl_replay *p, int r, struct sl_object *dir, const char *name)
{
	if (r == -EEXIST) {
		conflict(p, dir, name);
	} else if (r < 0 && r != -ENOENT) {
		_cleanup_free_ char *path = dir ? sl_object_path(dir) : NULL;
		replay_count(p, &p->stats.failed, 1);
		sl_warn("cannot do here what the origin did to '%s' in '%s': %s", name ? name : "",
			path ? path : "", strerror(-r));
		replay_unsure(p, dir);
	}
	return r < 0 && r != -EEXIST && r != -ENOENT ? r : r == 0 ? 1 : 0;
}

/* ---- directories that were shown before they could be listed ---- */

struct unlisted {
	struct sl_list link;
	struct sl_object *dir;
};

static void unlisted_free(struct unlisted *u)
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
	if (is_unknown(dir))
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
			 ? replay_appear(p, dir, e->name, &s, false)
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
static int list_new(struct sl_replay *p, struct sl_object *up, const char *name)
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

/* Names have changed, or nothing is left to do. */
static void list_again(struct sl_replay *p)
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
			unlisted_free(u);
		}
	}
}

int replay_appear(struct sl_replay *p, struct sl_object *dir, const char *name, const struct sl_ostate *s,
		  bool moved)
{
	int r = p->cfg.acts.appear(p->cfg.acts.arg, dir, name, s, moved);
	replay_touch(p, dir);
	if (r >= 0)
		came(dir, name, &s->attr);
	if (r > 0)
		r = list_new(p, dir, name);
	return acted(p, r, dir, name);
}

int replay_vanish(struct sl_replay *p, struct sl_object *dir, const char *name, bool moved)
{
	int r = p->cfg.acts.vanish(p->cfg.acts.arg, dir, name, moved);
	replay_touch(p, dir);
	if (r == 0 && sl_store_native(p->cfg.store))
		sl_object_forget_came(dir, name);
	return acted(p, r, dir, name);
}

int replay_rename(struct sl_replay *p, struct sl_object *dir, const char *name, struct sl_object *newdir,
		  const char *newname, bool exchange)
{
	int r = p->cfg.acts.rename(p->cfg.acts.arg, dir, name, newdir, newname, exchange);
	if (r == 0) {
		came_as_it_is(dir, name);
		came_as_it_is(newdir, newname);
		list_again(p);
	}
	replay_touch(p, dir);
	if (newdir != dir)
		replay_touch(p, newdir);
	return acted(p, r, newdir, newname);
}

/* An update that the file's readers are in the way of. */
struct busy {
	struct sl_list link;
	struct sl_object *dir, *o;
	char *name;
};

static void busy_free(struct busy *b)
{
	sl_list_del(&b->link);
	sl_object_put(b->dir);
	sl_object_put(b->o);
	free(b->name);
	free(b);
}

static void put_off(struct sl_replay *p, struct sl_object *dir, const char *name, struct sl_object *o)
{
	sl_list_for_each (l, &p->busy)
		if (sl_list_entry(l, struct busy, link)->o == o)
			return;
	struct busy *b = p->nbusy < BUSY_MAX ? calloc(1, sizeof(*b)) : NULL;
	if (b)
		b->name = strdup(name);
	if (!b || !b->name) { /* the comparison will find it */
		free(b);
		pthread_mutex_lock(&p->lock);
		p->lost = true;
		pthread_mutex_unlock(&p->lock);
		return;
	}
	b->dir = sl_object_ref(dir);
	b->o = sl_object_ref(o);
	sl_list_add_tail(&p->busy, &b->link);
	p->nbusy++;
}

static bool is_carried(struct sl_replay *p, struct sl_object *o)
{
	for (unsigned i = 0; i < CARRIED_MAX; i++)
		if (p->carried[i] == o)
			return true;
	return false;
}

static void carry(struct sl_replay *p, struct sl_object *o)
{
	unsigned i = p->ncarried++ % CARRIED_MAX;
	if (is_carried(p, o))
		return;
	sl_object_put(p->carried[i]);
	p->carried[i] = sl_object_ref(o);
}

/* Pinned files are kept here: what was dropped is fetched again, and nobody waits for it. */
static void pinned_done(struct sl_want *w, int err)
{
	_cleanup_free_ char *path = err ? sl_object_path(w->o) : NULL;
	if (err)
		sl_warn("'%s' is pinned and changed at the origin, and cannot be fetched again: %s",
			path ? path : "", strerror(-err));
	sl_object_put(w->o);
	free(w);
}

static void fetch_pinned(struct sl_replay *p, struct sl_object *o)
{
	pthread_mutex_lock(&o->lock);
	bool want = o->rec.flags & SL_PINNED && sl_object_is_reg(o) && !sl_chunkmap_full(&o->map) &&
		    !(o->rec.flags & (SL_MODIFIED | SL_LOCAL));
	uint64_t size = o->map.size;
	pthread_mutex_unlock(&o->lock);
	struct sl_want *w = want ? calloc(1, sizeof(*w)) : NULL;
	if (!w)
		return;
	*w = (struct sl_want){.o = sl_object_ref(o), .len = size, .done = pinned_done};
	int r = sl_fill_want(p->cfg.fill, SL_WANT_RANGE, w);
	if (r != 0)
		pinned_done(w, SL_MIN(r, 0));
}

int replay_update(struct sl_replay *p, struct sl_object *dir, const char *name, struct sl_object *o,
		  const struct sl_ostate *s, uint64_t mask)
{
	const struct sl_acts *a = &p->cfg.acts;
	bool written = mask & (FAN_MODIFY | FAN_CLOSE_WRITE);
	unsigned how = !written ? SL_UPDATE_KEEP : is_carried(p, o) ? SL_UPDATE_CONTENT : 0;
	struct sl_version v = sl_attr_version(&s->attr), had;
	const struct sl_ostate nothing = {0};
	pthread_mutex_lock(&o->lock);
	had = o->rec.origin;
	pthread_mutex_unlock(&o->lock);
	int r = a->update(a->arg, dir, name, o, s, mask, how);
	if (mask & FAN_MODIFY || (s->known && sl_version_eq(&had, &v)))
		paid(o);
	if (s->known && s->present && (r == 0 || r == -EEXIST))
		came(dir, name, &s->attr);
	if (r == -EBUSY && dir) {
		/* Its readers do not ask us: they must find all of the new content, or go on with the old. */
		r = replay_refresh(p, o, &s->attr);
		if (r == 0) {
			r = a->update(a->arg, dir, name, o, &nothing, mask, 0);
		} else if (r != -EEXIST) {
			put_off(p, dir, name, o);
			r = a->update(a->arg, dir, name, o, &nothing, mask, 0);
		}
		return acted(p, r, dir, name);
	}
	if (r == 0 && s->known && sl_object_is_reg(o)) {
		if (!written && !sl_time_eq(had.ctime, v.ctime))
			carry(p, o);
		fetch_pinned(p, o);
	}
	return acted(p, r, dir, name);
}

/*
 * The content of @o changed, and nobody says into what: its place is not its any more. Until more is known a
 * reader has to ask the origin; what is here must not be taken for its content, nor must an empty file.
 */
static void uncertain(struct sl_replay *p, struct sl_object *dir, const char *name, struct sl_object *o,
		      const struct sl_ostate *now)
{
	struct sl_ostate s = {.known = true, .present = true};
	replay_unsure(p, dir);
	if (!sl_object_is_reg(o) || sl_object_attr(o, &s.attr) < 0)
		return;
	pthread_mutex_lock(&o->lock);
	s.attr.ino = o->rec.origin.ino;
	s.attr.generation = o->rec.origin.generation;
	s.attr.mtime = o->rec.origin.mtime;
	s.attr.mode = o->rec.mode;
	pthread_mutex_unlock(&o->lock);
	s.attr.ctime = (struct timespec){0};
	/* Not less than it had: who has it open and reads on must not find its end there. */
	uint64_t said = now->present && S_ISREG(now->attr.mode) ? now->attr.size : 1;
	s.attr.size = SL_MAX(s.attr.size, said);
	s.attr.size = SL_MAX(s.attr.size, (uint64_t)1);
	/* While it is read past us it stays as it is, and is looked at afterwards. */
	if (p->cfg.acts.update(p->cfg.acts.arg, dir, name, o, &s, 0, SL_UPDATE_CONTENT) == -EBUSY)
		put_off(p, dir, name, o);
}

/* Updates that were put off: is the way free now? */
static void retry_busy(struct sl_replay *p)
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
		if (sl_object_lookup(b->dir, b->name, &now) == 0 && now == b->o &&
		    sl_object_place(now, &place) == 0) {
			struct sl_oreq q = {.op = SL_OREQ_STAT, .place = place, .fresh = true};
			if (sl_origin_call(p->cfg.origin, &q) == 0) {
				struct sl_ostate s = {.known = true, .present = true, .attr = q.attr};
				if (is_state(now, &s))
					(void)replay_update(p, b->dir, b->name, now, &s, FAN_MODIFY);
				else
					uncertain(p, b->dir, b->name, now, &s);
			} else if (q.err == -ETIMEDOUT) {
				sl_oreq_fini(&q);
				sl_list_add(&p->busy, &b->link);
				p->nbusy++;
				continue;
			} else {
				uncertain(p, b->dir, b->name, now, &nothing);
			}
			sl_oreq_fini(&q);
		} else {
			/* That name is gone or another's; it may have others. */
			uncertain(p, NULL, NULL, b->o, &nothing);
		}
		busy_free(b);
	}
}

/* ---- events ---- */

bool replay_is_later(struct sl_object *o, const struct sl_ostate *s)
{
	pthread_mutex_lock(&o->lock);
	struct timespec have = o->rec.origin.ctime, said = s->attr.ctime;
	pthread_mutex_unlock(&o->lock);
	return have.tv_sec > said.tv_sec || (have.tv_sec == said.tv_sec && have.tv_nsec > said.tv_nsec);
}

/* Which of the kernel's events tell what differs. */
static uint64_t mask_of(struct sl_object *o, const struct sl_ostate *s, bool doubted)
{
	struct sl_version v = sl_attr_version(&s->attr);
	pthread_mutex_lock(&o->lock);
	const struct sl_version *h = &o->rec.origin;
	bool reg = sl_object_is_reg(o), changed = o->has_record && !sl_time_eq(h->ctime, v.ctime);
	bool ours = o->rec.flags & (SL_MODIFIED | SL_LOCAL | SL_WRITTEN);
	bool content = reg && (h->size != v.size || !sl_time_eq(h->mtime, v.mtime) ||
			       (o->rec.flags & SL_UNTOLD && !ours));
	bool other = changed || (o->has_record && o->rec.mode != s->attr.mode);
	/* Nobody has told what it was: it may have been written to, and been given its time again. */
	bool unknown = reg && changed && !doubted && !ours;
	/* The times of a directory are those of its names. */
	if (sl_object_is_dir(o))
		other = o->rec.mode != s->attr.mode;
	if (o->rec.flags & SL_META || (doubted && o->rec.mode == s->attr.mode))
		other = false;
	pthread_mutex_unlock(&o->lock);
	return content ? FAN_MODIFY : (other ? FAN_ATTRIB : 0) | (unknown ? FAN_MODIFY : 0);
}

/* Native: users can give a file of several names one more. Those that have come are known, and its place. */
static bool may_be_users(struct sl_object *dir, const char *name, struct sl_object *o)
{
	_cleanup_free_ char *above = NULL, *own = NULL, *place = NULL;
	pthread_mutex_lock(&o->lock);
	bool linked = o->rec.flags & SL_LINKED;
	pthread_mutex_unlock(&o->lock);
	if (!linked || !sl_store_native(o->store) || sl_object_has_come(dir, name, o))
		return false;
	if (sl_object_place(dir, &above) < 0 || sl_object_place(o, &own) < 0)
		return true;
	place = sl_path_join(above, name);
	return !place || strcmp(place, own) != 0;
}

int replay_settle(struct sl_replay *p, struct sl_object *dir, const char *name, const struct sl_ostate *s,
		  bool doubted)
{
	_cleanup_object_ struct sl_object *o = NULL;
	int r = sl_object_lookup(dir, name, &o);
	if (r < 0 && r != -ENOENT)
		return r;
	if (!s->present)
		return !o || replay_foreign(dir, name, o) ? 0 : replay_vanish(p, dir, name, false);
	if (!o)
		return replay_deleted(dir, name, s) ? 0 : replay_appear(p, dir, name, s, false);
	if (replay_foreign(dir, name, o))
		return 0;
	if (!is_state(o, s) || !is_joined(p, o, s) || (S_ISLNK(o->type) && !same_target(o, s))) {
		if (may_be_users(dir, name, o))
			return 0;
		/* At every moment something has that name. */
		if (!sl_object_is_dir(o) && !S_ISDIR(s->attr.mode))
			return replay_appear(p, dir, name, s, true);
		r = replay_vanish(p, dir, name, false);
		return r <= 0 ? r : replay_appear(p, dir, name, s, false);
	}
	if (doubted && o->has_record && replay_is_later(o, s))
		return 0;
	uint64_t mask = mask_of(o, s, doubted);
	if (mask || sl_object_is_dir(o) || doubted)
		r = replay_update(p, dir, name, o, s, mask);
	return mask ? r : SL_MIN(r, 0);
}

/*
 * What a name that was made denoted, when by now it is gone or denotes something else: an empty thing of the
 * right identity, which goes with the event that comes.
 */
static struct sl_ostate husk(const struct sl_oevent *e, struct sl_object *dir, uint64_t ino,
			     uint64_t generation)
{
	struct sl_ostate s = {.known = true, .present = true};
	struct sl_attr d = {0};
	struct timespec now;
	(void)sl_object_attr(dir, &d);
	clock_gettime(CLOCK_REALTIME, &now);
	s.attr = (struct sl_attr){.ino = ino,
				  .generation = generation,
				  .mode = e->mask & FAN_ONDIR ? S_IFDIR | 0755 : S_IFREG | 0644,
				  /* Who reads it must ask, and not find it empty. */
				  .size = e->mask & FAN_ONDIR ? 0 : 1,
				  .nlink = 1,
				  .uid = d.uid,
				  .gid = d.gid,
				  .atime = now,
				  .mtime = now,
				  .ctime = {0}, /* anything that is said of it is later */
				  .no_xattrs = true};
	return s;
}

static bool child_known(const struct sl_oevent *e)
{
	return e->child_ino || e->child_generation;
}

static bool names_child(const struct sl_ostate *s, const struct sl_oevent *e)
{
	return s->known && s->present && S_ISDIR(s->attr.mode) == !!(e->mask & FAN_ONDIR) &&
	       (!child_known(e) || same_identity(s->attr.ino, (uint32_t)s->attr.generation, e->child_ino,
						 (uint32_t)e->child_generation));
}

static bool is_child(struct sl_object *o, const struct sl_oevent *e)
{
	return sl_object_is_dir(o) == !!(e->mask & FAN_ONDIR) &&
	       (!child_known(e) || replay_is(o, e->child_ino, e->child_generation));
}

static int made(struct sl_replay *p, const struct sl_oevent *e, struct sl_object *dir, const char *name,
		const struct sl_ostate *s, bool moved)
{
	_cleanup_object_ struct sl_object *o = NULL;
	struct sl_ostate h;
	int r = sl_object_lookup(dir, name, &o);
	if (r < 0 && r != -ENOENT)
		return r;
	bool file = s->known && s->present && S_ISREG(s->attr.mode) && !(e->mask & FAN_ONDIR);
	/* What is renamed to a name is read by it at once: it is what is there now. */
	if (!names_child(s, e) && !(moved && file)) {
		h = husk(e, dir, e->child_ino, e->child_generation);
		if (file) {
			h.attr.size = s->attr.size;
			h.attr.mtime = s->attr.mtime;
		}
		struct sl_attr had;
		if (o && sl_object_is_reg(o) && S_ISREG(h.attr.mode) && sl_object_attr(o, &had) == 0)
			h.attr.size = SL_MAX(h.attr.size, had.size);
		s = &h;
	}
	if (o && !replay_foreign(dir, name, o) && is_state(o, s) && (!S_ISLNK(o->type) || same_target(o, s)))
		/* A listing showed it, or a reader came before us. */
		return owed(o) ? replay_update(p, dir, name, o, s, FAN_MODIFY) : 0;
	if (!o && sl_object_whiteout(dir, name))
		return 0;
	if (o && (replay_foreign(dir, name, o) || !moved)) {
		if (replay_foreign(dir, name, o)) {
			conflict(p, dir, name);
			return 0;
		}
		r = replay_vanish(p, dir, name, false);
		if (r <= 0)
			return r;
	}
	r = replay_appear(p, dir, name, s, moved);
	p->as_said = r > 0 && s == &e->state && (!S_ISREG(s->attr.mode) || s->attr.nlink < 2);
	return r;
}

static int gone(struct sl_replay *p, const struct sl_oevent *e, struct sl_object *dir, const char *name,
		bool moved)
{
	_cleanup_object_ struct sl_object *o = NULL;
	int r = sl_object_lookup(dir, name, &o);
	/* It was taken away here before: that need not be known any more. */
	if (r == -ENOENT && sl_store_native(dir->store) && e->state.known && !e->state.present)
		sl_object_forget_came(dir, name);
	if (r < 0)
		return r == -ENOENT ? 0 : r;
	if (replay_foreign(dir, name, o))
		return 0;
	/* What the clone has is what came after it. */
	if (!is_child(o, e) && e->state.known && e->state.present && is_state(o, &e->state))
		return 0;
	r = replay_vanish(p, dir, name, moved);
	p->as_said = r > 0 && e->state.known && !e->state.present;
	return r;
}

/* With the lock held. 1: the other half of the exchange that @e is a half of is in the queue; 0: something
 * else is there instead; -ENOENT: no event at all. */
static int find_swapped(struct sl_replay *p, const struct sl_oevent *e)
{
	unsigned n = 0;
	int r = -ENOENT;
	sl_list_for_each (l, &p->queue) {
		const struct item *i = sl_list_entry(l, struct item, link);
		const struct sl_oevent *x = &i->e;
		if (i->dir || !x->mask)
			continue;
		r = 0;
		if (!x->newplace)
			continue;
		if (++n > SWAP_LOOK)
			break;
		if (!strcmp(x->place, e->newplace) && !strcmp(x->newplace, e->place) &&
		    (!child_known(e) || x->child_generation != e->child_generation))
			return 1;
		if (!strcmp(x->place, e->newplace) || !strcmp(x->newplace, e->place))
			break;
	}
	return r;
}

/* The other half of an exchange is told next, with the names swapped: is it? Waits for up to @ns where
 * nothing is told yet. */
static bool swapped_next(struct sl_replay *p, const struct sl_oevent *e, uint64_t ns)
{
	uint64_t until = sl_now() + ns;
	struct timespec ts = sl_ns_to_timespec(until);
	int r;
	pthread_mutex_lock(&p->lock);
	while ((r = find_swapped(p, e)) == -ENOENT && ns && !p->stop &&
	       pthread_cond_timedwait(&p->cond, &p->lock, &ts) == 0)
		;
	pthread_mutex_unlock(&p->lock);
	return r == 1;
}

/*
 * Both names are there, and one is said to have taken the other's place: is that gone, or where the one was?
 * What is there by now does not prove it, for it may have come later, and a fill may have been faster than
 * the events: who reads what is renamed next must not find himself with a file of another name. But the other
 * half of an exchange is told next.
 */
static bool is_exchange(struct sl_replay *p, const struct sl_oevent *e, struct sl_object *target)
{
	/* Usually what took another's place was all there was. */
	if (e->state.known && !e->state.present)
		return swapped_next(p, e, 0);
	bool seen = e->state.known && target->has_record && is_state(target, &e->state);
	return swapped_next(p, e, seen ? SWAP_SEEN_NS : SWAP_NS);
}

/* The second half of the exchange that was done last. */
static bool was_exchanged(struct sl_replay *p, const struct sl_oevent *e)
{
	bool is = p->swapped[0] && p->swapped[1] && !strcmp(p->swapped[0], e->newplace) &&
		  !strcmp(p->swapped[1], e->place);
	free(sl_steal_ptr(&p->swapped[0]));
	free(sl_steal_ptr(&p->swapped[1]));
	return is;
}

static int renamed(struct sl_replay *p, const struct sl_oevent *e)
{
	if (was_exchanged(p, e))
		return 0;
	_cleanup_object_ struct sl_object *dir = NULL, *newdir = NULL, *o = NULL, *target = NULL;
	const char *name = NULL, *newname = NULL;
	int from = find_name(p, e->place, &e->dir, &dir, &name);
	int to = find_name(p, e->newplace, &e->newdir, &newdir, &newname);
	if (from == 0)
		from = sl_object_lookup(dir, name, &o);
	if (from == 0 && replay_foreign(dir, name, o))
		from = -ENOENT;
	if (to < 0)
		return from < 0 ? 0 : replay_vanish(p, dir, name, true);
	int t = sl_object_lookup(newdir, newname, &target);
	if (t < 0 && t != -ENOENT)
		return t;
	bool there = target && !replay_foreign(newdir, newname, target) && child_known(e) &&
		     is_child(target, e) && (!o || target != o);
	if (from < 0 || !is_child(o, e)) {
		/* What was renamed is not here, or the first half of an exchange brought it there. */
		return there ? 0 : made(p, e, newdir, newname, &e->newstate, true);
	}
	if (there && sl_object_is_dir(o)) /* the listing of that directory was later than that of this one */
		return replay_vanish(p, dir, name, true);
	bool exchange = target && !replay_foreign(newdir, newname, target) && is_exchange(p, e, target);
	if (!target && sl_object_whiteout(newdir, newname))
		return replay_vanish(p, dir, name, true);
	if (target && replay_foreign(newdir, newname, target)) {
		conflict(p, newdir, newname);
		return replay_vanish(p, dir, name, true);
	}
	/*
	 * First what it is now, so that no reader finds it by its new name with what it was before. A file of
	 * that name may be another one already, whose event is still to come: its content is what a reader of
	 * that name gets at the origin.
	 */
	const struct sl_ostate *n = &e->newstate;
	pthread_mutex_lock(&o->lock);
	bool linked = o->rec.flags & SL_LINKED;
	pthread_mutex_unlock(&o->lock);
	if (n->known && n->present && (n->attr.mode & S_IFMT) == o->type &&
	    (is_state(o, n) || (!exchange && sl_object_is_reg(o) && !linked)) && !is_twin(p, o, n))
		(void)replay_update(p, dir, name, o, n, 0);
	const struct sl_ostate *s = &e->state;
	if (exchange && s->known && s->present && is_state(target, s))
		(void)replay_update(p, newdir, newname, target, s, 0);
	int r = replay_rename(p, dir, name, newdir, newname, exchange);
	if (exchange && r > 0) {
		p->swapped[0] = strdup(e->place);
		p->swapped[1] = strdup(e->newplace);
	}
	return r;
}

/* Everything that events have told of @dir so far has been done. */
static bool is_settled(struct sl_replay *p, struct sl_object *dir)
{
	sl_list_for_each (l, &p->unlisted)
		if (sl_list_entry(l, struct unlisted, link)->dir == dir)
			return false;
	return !p->compare && !replay_is_unsure(p, dir);
}

static bool not_here(int r)
{
	return r == -ENOENT || r == -ENODATA || r == -ESTALE;
}

static int changed(struct sl_replay *p, const struct sl_oevent *e)
{
	_cleanup_object_ struct sl_object *dir = NULL, *o = NULL;
	const char *name = NULL;
	struct sl_ostate s = e->state;
	uint64_t mask = e->mask & ~(uint64_t)FAN_ONDIR;
	if (!(mask & CHANGES))
		s = (struct sl_ostate){0}; /* what may be new is told next */
	if (!*e->place) {
		o = sl_object_ref(sl_object_root(p->cfg.store));
		if (!s.present || !is_state(o, &s))
			s.known = false;
		mask = sl_uses_news(&p->uses, sl_object_ino(o), mask);
		return mask ? replay_update(p, NULL, NULL, o, &s, mask) : 0;
	}
	int r = find_name(p, e->place, &e->dir, &dir, &name);
	if (r == 0)
		r = sl_object_lookup(dir, name, &o);
	if (r == -ENOENT && names_child(&s, e) && is_settled(p, dir))
		came(dir, name, &s.attr); /* once: it was taken away here, and stays so */
	if (r < 0)
		return not_here(r) ? 0 : r;
	if (replay_foreign(dir, name, o) || !is_child(o, e))
		return 0;
	if (!s.present || !is_state(o, &s) || is_twin(p, o, &s))
		s.known = false; /* of what comes next, or of one that is here already */
	if (!s.known && mask & (FAN_MODIFY | FAN_CLOSE_WRITE))
		uncertain(p, dir, name, o, &e->state);
	mask = sl_uses_news(&p->uses, sl_object_ino(o), mask);
	return mask ? replay_update(p, dir, name, o, &s, mask) : 0;
}

static int apply(struct sl_replay *p, const struct sl_oevent *e)
{
	_cleanup_object_ struct sl_object *dir = NULL;
	const char *name = NULL;
	int r;
	if (e->mask & FAN_RENAME)
		return e->newplace ? renamed(p, e) : -EINVAL;
	/* A state without an event: what the kernel has merged does not lead to it. See check(). */
	if (!e->mask && *e->place)
		return 0;
	if (e->mask & (FAN_CREATE | FAN_DELETE | FAN_MOVED_FROM | FAN_MOVED_TO)) {
		r = find_name(p, e->place, &e->dir, &dir, &name);
		if (r < 0)
			return not_here(r) ? 0 : r;
		if (e->mask & (FAN_CREATE | FAN_MOVED_TO))
			return made(p, e, dir, name, &e->state, e->mask & FAN_MOVED_TO);
		return gone(p, e, dir, name, e->mask & FAN_MOVED_FROM);
	}
	return changed(p, e);
}

/* As the origin said of the name when the event was sent, or later; what was changed here need not be. */
static bool as_said(struct sl_replay *p, struct sl_object *dir, const char *name, const struct sl_ostate *s)
{
	_cleanup_object_ struct sl_object *o = NULL;
	int r = sl_object_lookup(dir, name, &o);
	if (r == -ENOENT)
		return !s->present || replay_deleted(dir, name, s);
	if (r < 0 || replay_foreign(dir, name, o))
		return r == 0;
	if (!s->present || !is_state(o, s) || !is_joined(p, o, s))
		return false;
	struct sl_version v = sl_attr_version(&s->attr);
	bool later = replay_is_later(o, s);
	pthread_mutex_lock(&o->lock);
	bool same = later || !o->has_record ||
		    ((o->rec.mode == s->attr.mode || o->rec.flags & SL_META) &&
		     (!sl_object_is_reg(o) || sl_version_eq(&o->rec.origin, &v) ||
		      o->rec.flags & (SL_MODIFIED | SL_WRITTEN) || o->follows));
	pthread_mutex_unlock(&o->lock);
	return same && (!S_ISLNK(o->type) || same_target(o, s));
}

/* What the last event of a name has left must be what the origin has. */
static void check(struct sl_replay *p, const char *place, const struct sl_odir *which,
		  const struct sl_ostate *s)
{
	_cleanup_object_ struct sl_object *dir = NULL;
	const char *name = NULL;
	if (*place && find_name(p, place, which, &dir, &name) == 0 &&
	    (!s->known || !as_said(p, dir, name, s)))
		replay_unsure(p, dir);
}

/* A name has come to @place. If it is another one of a file, that must not be here as two. */
static void check_links(struct sl_replay *p, const char *place, const struct sl_odir *which,
			const struct sl_ostate *s)
{
	_cleanup_object_ struct sl_object *dir = NULL, *o = NULL;
	const char *name = NULL;
	if (!s->known || !s->present || !S_ISREG(s->attr.mode) || s->attr.nlink < 2 ||
	    sl_store_native(p->cfg.store) || find_name(p, place, which, &dir, &name) < 0)
		return;
	if (sl_object_lookup(dir, name, &o) == 0 && sl_remote_alone(o))
		unsure_of_links(p);
}

static void do_event(struct sl_replay *p, const struct sl_oevent *e)
{
	int r = apply(p, e);
	sl_debug("event %llu, %llx, '%s'%s%s, child %llu.%llx, state %d%d %llu.%llx, new %d%d %llu.%llx: %d",
		 (unsigned long long)e->seq, (unsigned long long)e->mask, e->place, e->newplace ? " to " : "",
		 e->newplace ? e->newplace : "", (unsigned long long)e->child_ino,
		 (unsigned long long)e->child_generation, e->state.known, e->state.present,
		 (unsigned long long)e->state.attr.ino, (unsigned long long)e->state.attr.generation,
		 e->newstate.known, e->newstate.present, (unsigned long long)e->newstate.attr.ino,
		 (unsigned long long)e->newstate.attr.generation, r);
	pthread_mutex_lock(&p->lock);
	p->stats.seq = SL_MAX(p->stats.seq, e->seq);
	if (r > 0)
		p->stats.applied++;
	else
		p->stats.skipped++;
	pthread_mutex_unlock(&p->lock);
}

/* Takes @i over. */
static void run_item(struct sl_replay *p, struct item *i)
{
	if (i->look) {
		replay_unsure(p, i->dir);
	} else if (i->dir) {
		/* No event: names changed it, and they had theirs. */
		const struct sl_attr *a = &i->e.state.attr;
		/* Another one may have taken its place since it was asked for. */
		if (replay_is(i->dir, a->ino, a->generation) && !replay_is_later(i->dir, &i->e.state))
			(void)p->cfg.acts.update(p->cfg.acts.arg, NULL, NULL, i->dir, &i->e.state, 0,
						 SL_UPDATE_KEEP);
	} else if (i->e.ignored) {
		/* Usually the directory is gone, and so it is here. */
		_cleanup_object_ struct sl_object *dir = NULL;
		if (p->cfg.find(p->cfg.store, i->e.place, &dir) == 0 && replay_populated(dir))
			replay_unsure(p, dir);
	} else {
		p->as_said = false;
		do_event(p, &i->e);
		if (!p->as_said && (!i->e.mask || i->e.mask & ~(uint64_t)(USES | FAN_ONDIR)))
			check(p, i->e.place, &i->e.dir, &i->e.state);
		if (i->e.newplace)
			check(p, i->e.newplace, &i->e.newdir, &i->e.newstate);
		if (i->e.mask & (FAN_CREATE | FAN_MOVED_TO))
			check_links(p, i->e.place, &i->e.dir, &i->e.state);
	}
	item_free(i);
}

/* ---- the thread ---- */

static struct item *take(struct sl_replay *p) /* lock held */
{
	if (sl_list_empty(&p->queue))
		return NULL;
	struct item *i = sl_list_entry(p->queue.next, struct item, link);
	sl_list_del(&i->link);
	p->nqueue--;
	p->bytes -= i->bytes;
	return i;
}

/* With the lock held: sleep until there is something to do. */
static void rest(struct sl_replay *p)
{
	bool work = !sl_list_empty(&p->touched) || !sl_list_empty(&p->unlisted);
	if (p->cfg.acts.rest || work) {
		p->resting = false;
		pthread_mutex_unlock(&p->lock);
		if (p->cfg.acts.rest)
			p->cfg.acts.rest(p->cfg.acts.arg);
		touch_ask(p);
		list_again(p);
		pthread_mutex_lock(&p->lock);
	}
	p->resting = true;
	pthread_cond_broadcast(&p->cond);
	if (p->stop || (!p->paused && (!sl_list_empty(&p->queue) || p->lost)))
		return;
	uint64_t due = unsure_due(p);
	if ((p->nbusy || due || !sl_list_empty(&p->unlisted)) && !p->paused) {
		uint64_t busy = sl_now() + BUSY_NS;
		struct timespec ts = sl_ns_to_timespec(due ? SL_MIN(due, busy) : busy);
		if (pthread_cond_timedwait(&p->cond, &p->lock, &ts) == ETIMEDOUT) {
			p->resting = false;
			pthread_mutex_unlock(&p->lock);
			retry_busy(p);
			pthread_mutex_lock(&p->lock);
		}
	} else {
		pthread_cond_wait(&p->cond, &p->lock);
	}
}

static void *replay_thread(void *arg)
{
	struct sl_replay *p = arg;
	unsigned row = 0; /* of events, since the last step of a comparison */
	pthread_mutex_lock(&p->lock);
	while (!p->stop) {
		bool lost = p->lost && !p->paused;
		bool turn = p->compare && ++row % STEP_EVERY == 0;
		struct item *i = p->paused || lost || turn ? NULL : take(p);
		if (lost) { /* all is compared */
			p->lost = false;
			p->stats.comparisons++;
			p->stats.comparing = true;
		}
		p->resting = false;
		pthread_mutex_unlock(&p->lock);
		bool more = false;
		if (!i && !lost && !p->paused)
			unsure_look(p);
		if (lost && compare_begin(p) < 0) {
			usleep(10000);
			pthread_mutex_lock(&p->lock);
			p->lost = true;
			pthread_mutex_unlock(&p->lock);
		}
		if (i) {
			run_item(p, i);
			sl_fill_retry(p->cfg.fill);
		} else if (p->compare && !lost && !p->paused) {
			more = compare_step(p);
			sl_fill_retry(p->cfg.fill);
			if (!more)
				compare_end(p);
		}
		if (p->ntouched > TOUCH_MAX)
			touch_ask(p);
		pthread_mutex_lock(&p->lock);
		if (!p->compare)
			p->stats.comparing = false;
		if (!i && !more && !lost)
			rest(p);
	}
	pthread_mutex_unlock(&p->lock);
	if (p->cfg.acts.rest)
		p->cfg.acts.rest(p->cfg.acts.arg);
	return NULL;
}

int sl_replay_new(const struct sl_replay_config *cfg, struct sl_replay **ret)
{
	struct sl_replay *p = calloc(1, sizeof(*p));
	if (!p)
		return -ENOMEM;
	p->cfg = *cfg;
	p->lost = cfg->compare;
	sl_list_init(&p->queue);
	sl_list_init(&p->touched);
	sl_list_init(&p->busy);
	sl_list_init(&p->unlisted);
	sl_list_init(&p->unsure);
	sl_list_init(&p->strays);
	pthread_mutex_init(&p->lock, NULL);
	pthread_condattr_t ca;
	pthread_condattr_init(&ca);
	pthread_condattr_setclock(&ca, CLOCK_MONOTONIC);
	pthread_cond_init(&p->cond, &ca);
	pthread_condattr_destroy(&ca);
	int r = -pthread_create(&p->thread, NULL, replay_thread, p);
	if (r < 0) {
		pthread_mutex_destroy(&p->lock);
		pthread_cond_destroy(&p->cond);
		free(p);
		return r;
	}
	pthread_setname_np(p->thread, "replay");
	*ret = p;
	return 0;
}

void sl_replay_stop(struct sl_replay *p)
{
	pthread_mutex_lock(&p->lock);
	p->stop = true;
	pthread_cond_broadcast(&p->cond);
	pthread_mutex_unlock(&p->lock);
	pthread_join(p->thread, NULL);
	pthread_mutex_lock(&p->lock);
	while (p->asked)
		pthread_cond_wait(&p->cond, &p->lock);
	drop_queue(p);
	pthread_mutex_unlock(&p->lock);
	if (p->compare)
		compare_end(p);
	unsure_free(p);
	touch_free(p);
	sl_list_for_each_safe (l, &p->busy)
		busy_free(sl_list_entry(l, struct busy, link));
	sl_list_for_each_safe (l, &p->unlisted)
		unlisted_free(sl_list_entry(l, struct unlisted, link));
	for (unsigned i = 0; i < CARRIED_MAX; i++)
		sl_object_put(p->carried[i]);
	free(p->swapped[0]);
	free(p->swapped[1]);
}

void sl_replay_free(struct sl_replay *p)
{
	if (!p)
		return;
	drop_queue(p);
	pthread_mutex_destroy(&p->lock);
	pthread_cond_destroy(&p->cond);
	free(p);
}

bool sl_replay_pause(struct sl_replay *p)
{
	struct timespec ts = sl_ns_to_timespec(sl_now() + PAUSE_NS);
	pthread_mutex_lock(&p->lock);
	p->paused = true;
	pthread_cond_broadcast(&p->cond);
	int r = 0;
	p->resting = false;
	while (!p->resting && r == 0)
		r = pthread_cond_timedwait(&p->cond, &p->lock, &ts);
	bool ok = p->resting;
	pthread_mutex_unlock(&p->lock);
	return ok;
}

void sl_replay_resume(struct sl_replay *p)
{
	pthread_mutex_lock(&p->lock);
	p->paused = false;
	pthread_cond_broadcast(&p->cond);
	pthread_mutex_unlock(&p->lock);
}

void sl_replay_get_stats(struct sl_replay *p, struct sl_replay_stats *st)
{
	pthread_mutex_lock(&p->lock);
	*st = p->stats;
	st->queued = p->nqueue + p->nunsure;
	st->comparing |= p->lost; /* it is about to begin */
	pthread_mutex_unlock(&p->lock);
}
