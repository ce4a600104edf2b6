/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The gate's acts, with what goes with each. */
#include <sys/fanotify.h>

#include "base/log.h"
#include "replay/internal.h"

void replay_conflict(struct sl_replay *p, struct sl_object *dir, const char *name)
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

void replay_came(struct sl_object *dir, const char *name, const struct sl_attr *a)
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
	replay_came(dir, name, &a);
}

/* The result of an act: a conflict is noted and is no error, and what is gone is gone. */
static int acted(struct sl_replay *p, int r, struct sl_object *dir, const char *name)
{
	if (r == -EEXIST) {
		replay_conflict(p, dir, name);
	} else if (r < 0 && r != -ENOENT) {
		_cleanup_free_ char *path = dir ? sl_object_path(dir) : NULL;
		replay_count(p, &p->stats.failed, 1);
		sl_warn("cannot do here what the origin did to '%s' in '%s': %s", name ? name : "",
			path ? path : "", strerror(-r));
		replay_unsure(p, dir);
	}
	return r < 0 && r != -EEXIST && r != -ENOENT ? r : r == 0 ? 1 : 0;
}

int replay_appear(struct sl_replay *p, struct sl_object *dir, const char *name, const struct sl_ostate *s,
		  enum sl_appear how)
{
	int r = p->cfg.acts.appear(p->cfg.acts.arg, dir, name, s, how);
	replay_touch(p, dir);
	if (r >= 0)
		replay_came(dir, name, &s->attr);
	if (r > 0)
		r = unlisted_new(p, dir, name);
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
		  const char *newname, enum sl_rename how)
{
	int r = p->cfg.acts.rename(p->cfg.acts.arg, dir, name, newdir, newname, how);
	if (r == 0) {
		came_as_it_is(dir, name);
		came_as_it_is(newdir, newname);
		unlisted_again(p);
	}
	replay_touch(p, dir);
	if (newdir != dir)
		replay_touch(p, newdir);
	return acted(p, r, newdir, newname);
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
		replay_came(dir, name, &s->attr);
	if (r == -EBUSY && dir) {
		/* Its readers do not ask us: they must find all of the new content, or go on with the old. */
		r = replay_refresh(p, o, &s->attr);
		if (r == 0) {
			r = a->update(a->arg, dir, name, o, &nothing, mask, 0);
		} else if (r != -EEXIST) {
			busy_put_off(p, dir, name, o);
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

void replay_uncertain(struct sl_replay *p, struct sl_object *dir, const char *name, struct sl_object *o,
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
		busy_put_off(p, dir, name, o);
}
