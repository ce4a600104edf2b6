/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "replay/native.h"

#include <stdio.h>

#include "base/fd.h"
#include "base/log.h"
#include "replay/native_internal.h"
#include "store/pending.h"
#include "store/walk.h"

/* ---- what is there ---- */

bool native_content_changed(struct sl_native_acts *a, struct sl_object *o)
{
	struct sl_attr at;
	if (!sl_object_is_reg(o))
		return false;
	/* What is written down of the file says most; and the gate the rest, once it has heard of it. */
	if (sl_fan_settle(a->cfg.fan) < 0)
		return true;
	/* Under the lock: a fill may just be giving it another version. */
	pthread_mutex_lock(&o->lock);
	bool known = o->rec.flags & (SL_MODIFIED | SL_WRITTEN);
	bool looks = sl_object_attr(o, &at) < 0 || at.size != o->rec.origin.size ||
		     !sl_time_eq(at.mtime, o->rec.origin.mtime);
	pthread_mutex_unlock(&o->lock);
	if (looks && !known)
		sl_fill_written(a->cfg.fill, o);
	return known || looks;
}

enum standing native_standing(struct sl_native_acts *a, struct sl_object *o, const char *place)
{
	_cleanup_free_ char *own = NULL;
	pthread_mutex_lock(&o->lock);
	bool foreign = o->damaged || !o->has_record || o->rec.flags & SL_LOCAL;
	bool linked = o->rec.flags & SL_LINKED; /* its place is one of several */
	pthread_mutex_unlock(&o->lock);
	if (foreign)
		return FOREIGN;
	int r = sl_object_place(o, &own);
	if (linked && r == -ESTALE)
		r = sl_object_set_place(o, place); /* the one that was known is gone, this one is not */
	if (r < 0 || (!linked && strcmp(own, place) != 0))
		return FOREIGN;
	return native_content_changed(a, o) ? CHANGED : OURS;
}

char *native_place_below(struct sl_object *dir, const char *name)
{
	_cleanup_free_ char *place = NULL;
	return sl_object_place(dir, &place) == 0 ? sl_path_join(place, name) : NULL;
}

int native_look(struct sl_native_acts *a, struct sl_object *dir, const char *name, struct sl_object **ret,
		enum standing *st)
{
	_cleanup_free_ char *place = native_place_below(dir, name);
	if (!place)
		return -ESTALE;
	int r = sl_object_lookup(dir, name, ret);
	if (r == 0)
		*st = native_standing(a, *ret, place);
	return r;
}

static int kept_one(void *arg, const char *path, struct sl_object *o, int err)
{
	(void)err;
	return o && native_standing(arg, o, path) == OURS ? 0 : -EEXIST;
}

int native_kept(struct sl_native_acts *a, struct sl_object *o)
{
	return sl_walk(o, kept_one, a);
}

bool native_is_at(int dirfd, const char *name, const struct sl_handle *h)
{
	struct sl_handle at;
	return sl_handle_get(dirfd, name, &at) == 0 && sl_handle_eq(&at, h);
}

void native_on_thread(struct sl_native_acts *a)
{
	if (!a->tid) {
		a->tid = gettid();
		sl_fan_set_replay(a->cfg.fan, a->tid);
	}
}

/* ---- the whole ---- */

static int object_by_handle(struct sl_store *s, const struct sl_handle *h, struct sl_object **ret)
{
	_cleanup_close_ int fd = sl_handle_open(sl_store_tree_fd(s), h, O_PATH);
	return fd < 0 ? fd : sl_object_of_fd(s, fd, ret);
}

/* The rename that the last service was about: its places may be written, its names may be changed. */
static int finish_rename(struct sl_native_acts *a, const struct sl_pending *p)
{
	struct sl_store *s = a->cfg.store;
	bool exchange = p->op == SL_PENDING_EXCHANGE;
	_cleanup_object_ struct sl_object *dir = NULL, *newdir = NULL, *o = NULL, *t = NULL;
	int r = object_by_handle(s, &p->dir, &dir);
	if (r == 0)
		r = object_by_handle(s, &p->newdir, &newdir);
	if (r == 0)
		r = object_by_handle(s, &p->o, &o);
	if (r == 0 && exchange)
		r = object_by_handle(s, &p->other, &t);
	if (r < 0)
		return r;
	_cleanup_close_ int fd = sl_object_pin(dir), newfd = sl_object_pin(newdir);
	_cleanup_free_ char *from = native_place_below(dir, p->name),
			    *to = native_place_below(newdir, p->newname);
	if (fd < 0 || newfd < 0 || !from || !to)
		return -ESTALE;
	bool before =
	    native_is_at(fd, p->name, &p->o) && (!exchange || native_is_at(newfd, p->newname, &p->other));
	bool after =
	    native_is_at(newfd, p->newname, &p->o) && (!exchange || native_is_at(fd, p->name, &p->other));
	if (!before && !after)
		return -ENOENT; /* somebody else has come between */
	bool any = sl_object_is_dir(o) || (t && sl_object_is_dir(t));
	if (!any || sl_store_moves(s) == p->moves)
		r = native_move_places(a, o, t, from, to, exchange);
	if (r == 0 && before && renameat2(fd, p->name, newfd, p->newname, exchange ? RENAME_EXCHANGE : 0) < 0)
		r = -errno;
	return r;
}

static int finish_mkdir(struct sl_native_acts *a, const struct sl_pending *p)
{
	_cleanup_object_ struct sl_object *dir = NULL, *o = NULL;
	enum standing st;
	int r = object_by_handle(a->cfg.store, &p->dir, &dir);
	if (r == 0)
		r = native_look(a, dir, p->name, &o, &st);
	if (r < 0 || !sl_object_is_dir(o) || o->has_record)
		return SL_MIN(r, 0);
	sl_object_put(o); /* what is known of it will be another thing */
	o = NULL;
	_cleanup_close_ int fd = sl_object_pin(dir);
	return fd < 0 ? fd : native_adopt_dir(a, dir, fd, p->name, &p->attr);
}

static void finish(struct sl_native_acts *a)
{
	struct sl_pending p;
	int r = sl_pending_get(a->cfg.store, &p);
	if (r == -ENOENT)
		return;
	if (r == 0)
		r = p.op == SL_PENDING_MKDIR ? finish_mkdir(a, &p) : finish_rename(a, &p);
	if (r < 0)
		sl_notice("the change of names that the last service was about is not ended: %s",
			  strerror(-r));
	sl_pending_clear(a->cfg.store);
}

int sl_native_acts_new(const struct sl_native_acts_config *cfg, struct sl_native_acts **ret,
		       struct sl_acts *acts)
{
	struct sl_native_acts *a = calloc(1, sizeof(*a));
	if (!a)
		return -ENOMEM;
	a->cfg = *cfg;
	a->stage = sl_store_stage(cfg->store);
	int r = SL_MIN(a->stage, 0);
	if (r == 0)
		r = sl_peers_new(cfg->store, &a->peers);
	if (r == 0) {
		finish(a);
		r = stage_purge(a);
	}
	if (r < 0) {
		sl_native_acts_free(a);
		return r;
	}
	int q = sl_silent_new(cfg->fan, cfg->store, O_RDWR, &a->silent);
	if (q < 0)
		sl_info("files that change at the origin are opened for it, which their watchers hear of: %s",
			strerror(-q));
	*acts = (struct sl_acts){.appear = native_appear,
				 .vanish = native_vanish,
				 .rename = native_rename,
				 .update = native_update,
				 .twin = native_twin,
				 .arg = a};
	*ret = a;
	return 0;
}

void sl_native_acts_note(struct sl_native_acts *a, struct sl_object *o)
{
	if (sl_object_is_dir(o))
		sl_peers_note_names(a->peers, o);
	else
		sl_peers_note(a->peers, o);
}

void sl_native_acts_free(struct sl_native_acts *a)
{
	if (!a)
		return;
	if (a->tid)
		sl_fan_set_replay(a->cfg.fan, 0);
	sl_silent_free(a->silent);
	sl_peers_free(a->peers);
	if (a->stage >= 0)
		close(a->stage);
	free(a);
}
