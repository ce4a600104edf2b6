/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "replay/echo.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/fanotify.h>

#include "base/fd.h"
#include "base/log.h"
#include "store/remote.h"
#include "store/walk.h"

#define CACHE_TRIES 40000 /* of 50 us */

struct sl_echo_acts {
	struct sl_echo_acts_config cfg;
	struct sl_object *staging;
	bool attached;
	uint64_t next;	/* names in the staging directory */
	uint64_t quiet; /* changes that were made without an event */
};

static int attach(struct sl_echo_acts *a)
{
	const struct sl_store_config *cfg = sl_store_config(a->cfg.store);
	char name[64];
	if (a->attached)
		return 0;
	snprintf(name, sizeof(name), SL_ECHO_STAGING "%s", cfg->id);
	int r = sl_helper_call(
	    a->cfg.helper, &(struct sl_helper_call){.op = SL_HELPER_ATTACH, .name = cfg->dir, .name2 = name});
	a->attached = r == 0;
	return r;
}

static void echo_rest(void *arg)
{
	struct sl_echo_acts *a = arg;
	if (a->attached)
		(void)sl_helper_call(a->cfg.helper, &(struct sl_helper_call){.op = SL_HELPER_DETACH});
	a->attached = false;
}

/*
 * The owner's rights were taken away again by somebody who asked in between; or the way in which the file is
 * open has changed before the kernel had the answer.
 */
static bool may_try_again(const struct sl_echo *e, int r)
{
	return !e->err && (r == -EACCES || r == -EPERM ? !e->done : e->op == SL_ECHO_CLOSE && r != -ETXTBSY);
}

/*
 * One call, with what the gate shall answer. Where the kernel does not let it come to the gate (a read-only
 * mount, a mount on top of the name) the change is made all the same, and nobody hears of it.
 */
static int echo(struct sl_echo_acts *a, struct sl_helper_call *c, struct sl_echo *e)
{
	int r = attach(a);
	if (r == 0) {
		sl_gate_echo_begin(a->cfg.gate, e);
		r = sl_helper_call(a->cfg.helper, c);
		for (int i = 0; i < 8 && r < 0 && may_try_again(e, r); i++) {
			sl_gate_echo_begin(a->cfg.gate, e);
			r = sl_helper_call(a->cfg.helper, c);
		}
		sl_gate_echo_end(a->cfg.gate);
	}
	if (e->err)
		return e->err;
	if (r == 0 && e->done)
		return 0;
	if (r < 0 && e->op != SL_ECHO_CLOSE) {
		sl_debug("'%s': no event for a change at the origin: %s", c->name, strerror(-r));
		a->quiet++;
	}
	return e->done ? 0 : sl_gate_echo_silently(a->cfg.gate, e);
}

/* ---- names ---- */

static void forgotten(void *arg, struct sl_object *o)
{
	struct sl_echo_acts *a = arg;
	sl_gate_echo_gone(a->cfg.gate, o);
}

static int remove_name(struct sl_echo_acts *a, struct sl_object *dir, const char *path, const char *name,
		       bool is_dir)
{
	struct sl_echo e = {.op = SL_ECHO_VANISH, .dir = dir, .name = name};
	return echo(a,
		    &(struct sl_helper_call){
			.op = is_dir ? SL_HELPER_RMDIR : SL_HELPER_UNLINK, .dir = path, .name = name},
		    &e);
}

/* @o has left the tree whole, to @tmp of the staging directory: it goes from there. */
static int discard(struct sl_echo_acts *a, const char *tmp, struct sl_object *o)
{
	int r = sl_object_is_dir(o) ? sl_remote_clear(o, forgotten, a) : 0;
	if (r < 0)
		sl_warn("what left the origin cannot be removed from the store: %s", strerror(-r));
	return remove_name(a, a->staging, NULL, tmp, sl_object_is_dir(o));
}

/* It leaves the tree whole: it goes where nobody sees it, and from there. */
static int move_out(struct sl_echo_acts *a, struct sl_object *dir, const char *path, const char *name,
		    struct sl_object *o)
{
	char tmp[32];
	snprintf(tmp, sizeof(tmp), "%llu", (unsigned long long)a->next++);
	struct sl_echo e = {
	    .op = SL_ECHO_RENAME, .dir = dir, .name = name, .newdir = a->staging, .newname = tmp};
	int r = echo(
	    a, &(struct sl_helper_call){.op = SL_HELPER_RENAME, .dir = path, .name = name, .name2 = tmp}, &e);
	return r < 0 ? r : discard(a, tmp, o);
}

static int vanish(struct sl_echo_acts *a, struct sl_object *dir, const char *name, bool moved);

/* As rm -rf would: usually nothing is left. Nobody may take what is left meanwhile for all that there is. */
static int empty(struct sl_echo_acts *a, struct sl_object *o)
{
	struct sl_name *v = NULL;
	size_t n = 0;
	int r = sl_names_read(o, &v, &n);
	o->leaving |= n > 0;
	for (size_t i = 0; i < n && r == 0; i++)
		r = vanish(a, o, v[i].name, false);
	sl_names_free(v, n);
	return r;
}

static int vanish(struct sl_echo_acts *a, struct sl_object *dir, const char *name, bool moved)
{
	_cleanup_object_ struct sl_object *o = NULL;
	_cleanup_free_ char *path = sl_object_path(dir);
	int r = sl_object_lookup(dir, name, &o);
	if (r < 0 || !path)
		return r < 0 ? r : -ENOMEM;
	if (moved)
		return move_out(a, dir, path, name, o);
	if (sl_object_is_dir(o))
		r = empty(a, o);
	if (r >= 0)
		r = remove_name(a, dir, path, name, sl_object_is_dir(o));
	if (r < 0)
		o->leaving = false; /* it stays, and is compared */
	return r;
}

/*
 * What is in the way of a rename to @name here is not so at the origin: a directory that is to be replaced by
 * one is emptied. 1: with @swap, or where one is a directory and the other is none: @*ret has to change
 * places with it. -EEXIST where something of it was changed here.
 */
static int make_way(struct sl_echo_acts *a, struct sl_object *dir, const char *name, bool for_dir, bool swap,
		    struct sl_object **ret)
{
	_cleanup_object_ struct sl_object *o = NULL;
	int r = sl_object_lookup(dir, name, &o);
	if (r < 0)
		return r == -ENOENT ? 0 : r;
	if (sl_remote_kept(o))
		return -EEXIST;
	if (swap || sl_object_is_dir(o) != for_dir) {
		*ret = sl_steal_ptr(&o);
		return 1;
	}
	r = for_dir ? empty(a, o) : 0;
	if (r < 0)
		o->leaving = false;
	return r;
}

static int echo_appear(void *arg, struct sl_object *dir, const char *name, const struct sl_ostate *s,
		       enum sl_appear how)
{
	struct sl_echo_acts *a = arg;
	_cleanup_free_ char *path = sl_object_path(dir);
	uint32_t type = s->attr.mode & S_IFMT;
	if (!path)
		return -ENOMEM;
	if (how) {
		_cleanup_object_ struct sl_object *o = NULL, *was = NULL;
		char tmp[32];
		int way = make_way(a, dir, name, S_ISDIR(type), how == SL_APPEAR_SWAPPED, &was);
		if (way < 0)
			return way;
		snprintf(tmp, sizeof(tmp), "%llu", (unsigned long long)a->next++);
		int r = sl_remote_make(a->staging, tmp, &s->attr, s->target, &o);
		if (r < 0)
			return r;
		/* This way round, so that what goes is told before what comes. */
		struct sl_echo e = {.op = SL_ECHO_RENAME,
				    .dir = way ? dir : a->staging,
				    .name = way ? name : tmp,
				    .newdir = way ? a->staging : dir,
				    .newname = way ? tmp : name,
				    .exchange = way};
		struct sl_helper_call c = {.op = SL_HELPER_RENAME,
					   .dir = way ? path : NULL,
					   .name = e.name,
					   .dir2 = way ? NULL : path,
					   .name2 = e.newname,
					   .flags = way ? RENAME_EXCHANGE : 0};
		r = echo(a, &c, &e);
		if (r == 0 && way && sl_remote_kept(was)) {
			/* Somebody has changed it just now. */
			r = echo(a, &c, &e);
			if (r < 0)
				return r;
			r = -EEXIST;
		}
		if (r < 0)
			(void)sl_remote_unlink(a->staging, tmp, sl_object_is_dir(o));
		return r < 0 || !way ? r : discard(a, tmp, was);
	}
	struct sl_echo e = {.op = SL_ECHO_APPEAR, .dir = dir, .name = name, .state = s};
	struct sl_helper_call c = {.op = type == S_IFDIR   ? SL_HELPER_MKDIR
					 : type == S_IFLNK ? SL_HELPER_SYMLINK
							   : SL_HELPER_MKNOD,
				   .dir = path,
				   .name = name,
				   .name2 = type == S_IFLNK ? s->target : NULL,
				   .mode = type | (s->attr.mode & 0777),
				   .rdev = s->attr.rdev};
	if (type == S_IFLNK && (!s->target || !*s->target))
		return -EPROTO;
	return echo(a, &c, &e);
}

static int echo_vanish(void *arg, struct sl_object *dir, const char *name, bool moved)
{
	_cleanup_object_ struct sl_object *o = NULL;
	int r = sl_object_lookup(dir, name, &o);
	if (r < 0)
		return r;
	return sl_remote_kept(o) ? -EEXIST : vanish(arg, dir, name, moved);
}

static int echo_rename(void *arg, struct sl_object *dir, const char *name, struct sl_object *newdir,
		       const char *newname, enum sl_rename how)
{
	struct sl_echo_acts *a = arg;
	bool exchange = how != SL_RENAME_OVER;
	_cleanup_object_ struct sl_object *o = NULL;
	_cleanup_free_ char *path = sl_object_path(dir), *newpath = sl_object_path(newdir);
	int r = sl_object_lookup(dir, name, &o);
	if (r < 0 || !path || !newpath)
		return r < 0 ? r : -ENOMEM;
	_cleanup_object_ struct sl_object *was = NULL;
	if (how != SL_RENAME_EXCHANGE)
		r = make_way(a, newdir, newname, sl_object_is_dir(o), exchange, &was);
	if (r < 0 || (r > 0 && !exchange))
		return r < 0 ? r : -EISDIR;
	struct sl_echo e = {.op = SL_ECHO_RENAME,
			    .dir = dir,
			    .name = name,
			    .newdir = newdir,
			    .newname = newname,
			    .exchange = exchange};
	struct sl_helper_call c = {.op = SL_HELPER_RENAME,
				   .dir = path,
				   .name = name,
				   .dir2 = newpath,
				   .name2 = newname,
				   .flags = exchange ? RENAME_EXCHANGE : 0};
	return echo(a, &c, &e);
}

/* ---- content and attributes ---- */

/* Until the kernel knows that what it has of @o is out of date; a reader of a page that is to go may hold
 * that up. */
static void wait_for_cache(struct sl_object *o)
{
	for (unsigned i = 0; i < CACHE_TRIES; i++) {
		pthread_mutex_lock(&o->lock);
		bool busy = o->invalidating;
		pthread_mutex_unlock(&o->lock);
		if (!busy)
			return;
		usleep(50);
	}
}

/* That it was used: nothing is. */
static void raise_use(struct sl_echo_acts *a, struct sl_helper_call *c, struct sl_object *o,
		      const struct sl_attr *at, uint64_t mask)
{
	bool opens = mask & FAN_CLOSE_NOWRITE || (mask & FAN_OPEN && !(mask & FAN_CLOSE_WRITE));
	struct sl_echo e = {.op = SL_ECHO_CLOSE, .o = o}, access = {.op = SL_ECHO_UPDATE, .o = o};
	if (opens && (sl_object_is_reg(o) || sl_object_is_dir(o))) {
		c->op = SL_HELPER_CLOSE;
		c->flags = O_RDONLY;
		(void)echo(a, c, &e);
	}
	if (mask & FAN_ACCESS) {
		c->op = SL_HELPER_TIMES;
		c->atime = at->atime;
		c->mtime = (struct timespec){.tv_nsec = UTIME_OMIT};
		(void)echo(a, c, &access);
	}
}

static int echo_update(void *arg, struct sl_object *dir, const char *name, struct sl_object *o,
		       const struct sl_ostate *s, uint64_t mask, unsigned how)
{
	struct sl_echo_acts *a = arg;
	_cleanup_free_ char *path = dir ? sl_object_path(dir) : strdup("");
	struct sl_attr at;
	bool state = s && s->known && s->present;
	if (!path)
		return -ENOMEM;
	struct sl_echo e = {.op = SL_ECHO_UPDATE, .o = o, .state = state ? s : NULL, .how = how};
	struct sl_helper_call c = {.op = SL_HELPER_TIMES, .dir = path, .name = name ? name : ""};
	int r = 0;
	if (state)
		at = s->attr;
	else
		r = sl_object_attr(o, &at);
	if (r < 0)
		return r;
	if (mask & FAN_MODIFY) {
		c.atime = (struct timespec){.tv_nsec = UTIME_OMIT};
		c.mtime = at.mtime;
		r = echo(a, &c, &e);
	}
	if (r == 0 && mask & FAN_ATTRIB) {
		c.atime = at.atime;
		c.mtime = at.mtime;
		if (e.done)
			e.state = NULL;
		r = echo(a, &c, &e);
	}
	if (r == 0 && !e.done && state) {
		sl_gate_echo_begin(a->cfg.gate, &e);
		sl_gate_echo_end(a->cfg.gate);
		r = sl_gate_echo_silently(a->cfg.gate, &e);
		wait_for_cache(o);
	}
	if (r == 0 && mask & FAN_CLOSE_WRITE && sl_object_is_reg(o)) {
		struct sl_echo close = {.op = SL_ECHO_CLOSE, .o = o};
		c.op = SL_HELPER_CLOSE;
		c.flags = O_WRONLY;
		(void)echo(a, &c, &close); /* a program that is being executed cannot be opened so */
	}
	if (r == 0 && mask & (FAN_OPEN | FAN_ACCESS | FAN_CLOSE_NOWRITE))
		raise_use(a, &c, o, &at, mask);
	return r;
}

/* ---- the whole ---- */

int sl_echo_acts_new(const struct sl_echo_acts_config *cfg, struct sl_echo_acts **ret, struct sl_acts *acts)
{
	struct sl_echo_acts *a = calloc(1, sizeof(*a));
	if (!a)
		return -ENOMEM;
	a->cfg = *cfg;
	int r = sl_remote_staging(cfg->store, &a->staging);
	if (r < 0) {
		free(a);
		return r;
	}
	sl_gate_echo_from(cfg->gate, (uint32_t)sl_helper_pid(cfg->helper), a->staging);
	*acts = (struct sl_acts){.appear = echo_appear,
				 .vanish = echo_vanish,
				 .rename = echo_rename,
				 .update = echo_update,
				 .rest = echo_rest,
				 .arg = a};
	*ret = a;
	return 0;
}

void sl_echo_acts_free(struct sl_echo_acts *a)
{
	if (!a)
		return;
	echo_rest(a);
	sl_object_put(a->staging);
	free(a);
}
