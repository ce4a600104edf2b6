/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A name is made what the origin says that it is, whatever events told of it. */
#include <sys/fanotify.h>

#include "replay/internal.h"

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
	if (!sl_store_native(o->store) || !sl_object_linked(o) || sl_object_has_come(dir, name, o))
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
		return replay_deleted(dir, name, s) ? 0 : replay_appear(p, dir, name, s, SL_APPEAR_MADE);
	if (replay_foreign(dir, name, o))
		return 0;
	if (!replay_is_state(o, s) || !replay_is_joined(p, o, s) ||
	    (S_ISLNK(o->type) && !replay_same_target(o, s))) {
		if (may_be_users(dir, name, o))
			return 0;
		/* At every moment something has that name. */
		return replay_appear(p, dir, name, s, SL_APPEAR_MOVED);
	}
	if (doubted && o->has_record && replay_is_later(o, s))
		return 0;
	uint64_t mask = mask_of(o, s, doubted);
	if (mask || sl_object_is_dir(o) || doubted)
		r = replay_update(p, dir, name, o, s, mask);
	return mask ? r : SL_MIN(r, 0);
}
