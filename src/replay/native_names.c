/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Names that appear, vanish and are renamed, as real operations. */
#include <fcntl.h>
#include <stdio.h>
#include <sys/fanotify.h>

#include "base/fd.h"
#include "base/log.h"
#include "replay/native_internal.h"
#include "store/pending.h"
#include "store/walk.h"

#define SIBLINGS_MAX 4096 /* among which another name of a file is looked for */
#define TRIES	     16

/* ---- vanish ---- */

/* A name in @dir of the file of which @v is a version, to be freed. */
static char *sibling(struct sl_object *dir, const struct sl_version *v)
{
	struct sl_name *names = NULL;
	char *found = NULL;
	size_t n = 0;
	if (sl_names_read(dir, &names, &n) < 0)
		return NULL;
	for (size_t i = 0; i < n && n <= SIBLINGS_MAX && !found; i++) {
		_cleanup_object_ struct sl_object *o = NULL;
		if (sl_object_lookup(dir, names[i].name, &o) < 0)
			continue;
		pthread_mutex_lock(&o->lock);
		if (sl_object_is_reg(o) && o->has_record && sl_version_same_object(&o->rec.origin, v))
			found = strdup(names[i].name);
		pthread_mutex_unlock(&o->lock);
	}
	sl_names_free(names, n);
	return found;
}

/*
 * The place of @o, of a file, is no longer one: @name of @dir. Who has it open may still want what is not
 * here, which is nowhere now, unless it has other names.
 */
static void lose_place(struct sl_object *o, struct sl_object *dir, const char *name)
{
	_cleanup_free_ char *gone = native_place_below(dir, name), *own = NULL;
	struct sl_attr at;
	if (!gone || sl_object_place(o, &own) < 0 || strcmp(own, gone) != 0)
		return;
	if (sl_object_attr(o, &at) == 0 && at.nlink > 0) {
		pthread_mutex_lock(&o->lock);
		struct sl_version v = o->rec.origin;
		pthread_mutex_unlock(&o->lock);
		_cleanup_free_ char *other = sibling(dir, &v);
		_cleanup_free_ char *place = other ? native_place_below(dir, other) : NULL;
		if (place && sl_object_set_place(o, place) == 0)
			return;
	}
	(void)sl_object_lose_place(o);
}

static int drop_name(struct sl_native_acts *a, struct sl_object *o, struct sl_object *dir, int dirfd,
		     const char *name)
{
	if (unlinkat(dirfd, name, sl_object_is_dir(o) ? AT_REMOVEDIR : 0) < 0)
		return -errno;
	sl_object_forget_came(dir, name);
	if (sl_object_is_reg(o))
		lose_place(o, dir, name);
	if (a->cfg.lazy &&
	    sl_object_linked(o)) /* if others are to come they will be of a file of their own */
		(void)sl_links_note(o, 0, -1);
	return 0;
}

/* Somebody may just be looking into it: names are on their way. They come, or do not. */
static void settle_listing(struct sl_native_acts *a, struct sl_object *o)
{
	pthread_mutex_lock(&o->lock);
	bool listing = sl_object_is_dir(o) && o->rec.state != SL_FULL && o->flight;
	pthread_mutex_unlock(&o->lock);
	if (listing)
		(void)sl_fill_wait(a->cfg.fill, SL_WANT_NAMES, o, 0, 0);
}

static int clear(struct sl_native_acts *a, struct sl_object *o);

/* Take away @name of @dir, which is @o, with all that is below it. -EEXIST, -ENOTEMPTY where something is to
 * stay. */
static int drop_all(struct sl_native_acts *a, struct sl_object *o, struct sl_object *dir, int dirfd,
		    const char *name)
{
	int r;
	for (int tries = 0; tries < TRIES; tries++) {
		settle_listing(a, o);
		r = sl_object_is_dir(o) ? clear(a, o) : 0;
		if (r == 0)
			r = drop_name(a, o, dir, dirfd, name);
		/* Names that came here for the first time just now: they are gone at the origin as well. */
		if (r != -ENOTEMPTY || !a->cfg.lazy)
			break;
	}
	return r;
}

/* Remove everything below @o, as rm -rf would. -EEXIST where something is to stay. */
static int clear(struct sl_native_acts *a, struct sl_object *o)
{
	struct sl_name *v = NULL;
	size_t n = 0;
	int r = sl_names_read(o, &v, &n), left = 0;
	_cleanup_close_ int fd = r == 0 ? sl_object_pin(o) : -EBADF;
	for (size_t i = 0; i < n && r == 0; i++) {
		_cleanup_object_ struct sl_object *x = NULL;
		enum standing st;
		int q = native_look(a, o, v[i].name, &x, &st);
		if (q == 0)
			q = st == OURS ? 0 : -EEXIST;
		if (q == 0)
			q = drop_all(a, x, o, fd, v[i].name);
		if (q == -EEXIST || q == -ENOTEMPTY)
			left = -EEXIST;
		else if (q != -ENOENT)
			r = q;
	}
	sl_names_free(v, n);
	return r < 0 ? r : left;
}

/*
 * It leaves as it is, and is taken apart where nobody hears of it. @by (or NULL), of the stage, has its name
 * from the same moment on; where that fails it is still there.
 */
static int move_out(struct sl_native_acts *a, struct sl_object *dir, int dirfd, const char *name,
		    struct sl_object *o, const char *by)
{
	char tmp[32];
	unsigned how = by ? RENAME_EXCHANGE : RENAME_NOREPLACE;
	/* As "out" a service that follows on a crash looks at it before it goes. */
	(void)stage_name(a, "out", tmp);
	if (by && renameat2(a->stage, by, a->stage, tmp, RENAME_NOREPLACE) < 0)
		return -errno;
	int r = renameat2(dirfd, name, a->stage, tmp, how) < 0 ? -errno : 0;
	/* Somebody may have changed something in it at the last moment, or put his own there. */
	if (r == 0 && (!native_is_at(a->stage, tmp, &o->handle) || native_kept(a, o) < 0)) {
		if (renameat2(a->stage, tmp, dirfd, name, how) < 0)
			return -errno; /* it is kept */
		r = -EEXIST;
	}
	if (r < 0) {
		if (by)
			(void)renameat2(a->stage, tmp, a->stage, by, RENAME_NOREPLACE);
		return r;
	}
	stage_discard(a, tmp);
	if (sl_object_is_reg(o))
		lose_place(o, dir, name);
	return 0;
}

/* Directories that counted as populated. */
struct leave {
	struct sl_native_acts *a;
	struct sl_object **v;
	size_t n, cap;
};

static int leave_one(void *arg, const char *path, struct sl_object *o, int err)
{
	struct leave *x = arg;
	(void)path, (void)err;
	if (!o || !sl_object_is_dir(o))
		return 0;
	if (x->n == x->cap) {
		size_t cap = x->cap ? x->cap * 2 : 64;
		struct sl_object **v = reallocarray(x->v, cap, sizeof(struct sl_object *));
		if (!v)
			return -ENOMEM;
		x->v = v;
		x->cap = cap;
	}
	pthread_mutex_lock(&o->lock);
	bool is = o->has_record && o->rec.state == SL_FULL;
	if (is) {
		o->rec.state = SL_PARTIAL;
		(void)sl_object_save(o);
	}
	pthread_mutex_unlock(&o->lock);
	if (!is)
		return 0;
	x->v[x->n++] = sl_object_ref(o);
	(void)sl_fan_unlisted(x->a->cfg.fan, o);
	return 0;
}

/*
 * Names are about to be taken away one by one, and the origin may have that directory elsewhere, whole:
 * nobody must take what is left for all of it. So from now on who looks asks, and is told that the origin has
 * nothing there.
 */
static int leave(struct leave *x, struct sl_object *o)
{
	return x->a->cfg.lazy ? sl_walk(o, leave_one, x) : 0;
}

/* With @stays they count as populated again; others, of which some names may be missing, do not. */
static void left(struct leave *x, bool stays)
{
	for (size_t i = 0; i < x->n; i++) {
		struct sl_object *o = x->v[i];
		pthread_mutex_lock(&o->lock);
		if (stays && o->rec.state == SL_PARTIAL) {
			o->rec.state = SL_FULL;
			(void)sl_object_save(o);
		}
		pthread_mutex_unlock(&o->lock);
		sl_object_put(o);
	}
	free(x->v);
}

/* Names below @o may be elsewhere for a moment, to come back: not to a directory that is no more. */
static void begin_removal(struct sl_native_acts *a, struct sl_object *o)
{
	if (a->cfg.lazy && sl_object_is_dir(o))
		sl_fill_lock_names(a->cfg.fill);
}

static void end_removal(struct sl_native_acts *a, struct sl_object *o)
{
	if (a->cfg.lazy && sl_object_is_dir(o))
		sl_fill_unlock_names(a->cfg.fill);
}

/* @by, of the stage, takes the place of @o: at every moment something has that name. As at the origin, nobody
 * hears that @o leaves if that need not be. */
static int put_over(struct sl_native_acts *a, struct sl_object *dir, int dirfd, const char *name,
		    struct sl_object *o, const char *by)
{
	struct stat st;
	if (fstatat(a->stage, by, &st, AT_SYMLINK_NOFOLLOW) < 0)
		return -errno;
	/* The kernel puts a directory over an empty one, and over nothing else, whoever has put it there. */
	if (S_ISDIR(st.st_mode) && renameat2(a->stage, by, dirfd, name, 0) == 0)
		return 0;
	if (S_ISDIR(st.st_mode) && errno != ENOTEMPTY && errno != EEXIST && errno != ENOTDIR)
		return -errno;
	return move_out(a, dir, dirfd, name, o, by);
}

static int remove_it(struct sl_native_acts *a, struct sl_object *dir, const char *name, struct sl_object *o,
		     bool moved, const char *by)
{
	settle_listing(a, o);
	int r = native_kept(a, o);
	_cleanup_close_ int fd = r == 0 ? sl_object_pin(dir) : -EBADF;
	if (r < 0 || fd < 0)
		return r < 0 ? r : fd;
	struct leave x = {.a = a};
	r = leave(&x, o);
	if (r == 0)
		r = moved ? move_out(a, dir, fd, name, o, by)
		    : by  ? put_over(a, dir, fd, name, o, by)
			  : drop_all(a, o, dir, fd, name);
	left(&x, r < 0);
	return r == -ENOTEMPTY ? -EEXIST : r;
}

static int remove_object(struct sl_native_acts *a, struct sl_object *dir, const char *name,
			 struct sl_object *o, bool moved, const char *by)
{
	begin_removal(a, o);
	int r = remove_it(a, dir, name, o, moved, by);
	end_removal(a, o);
	return r;
}

int native_vanish(void *arg, struct sl_object *dir, const char *name, bool moved)
{
	struct sl_native_acts *a = arg;
	_cleanup_object_ struct sl_object *o = NULL;
	enum standing st;
	native_on_thread(a);
	int r = native_look(a, dir, name, &o, &st);
	if (r < 0)
		return r;
	return st == OURS ? remove_object(a, dir, name, o, moved, NULL) : -EEXIST;
}

/* ---- appear ---- */

int native_adopt_dir(struct sl_native_acts *a, struct sl_object *dir, int dirfd, const char *name,
		     const struct sl_attr *at)
{
	int r = sl_placeholder_adopt(dir, dirfd, name, at, a->cfg.lazy);
	if (r == 0 || unlinkat(dirfd, name, AT_REMOVEDIR) == 0)
		return r;
	if (errno == ENOTEMPTY || errno == EEXIST)
		return -EEXIST; /* a user has put something into it: it is his */
	sl_err("'%s' was made, and has no record: %s", name, strerror(errno));
	return r;
}

/* A new directory is made where it is seen, or the kernel would say that it was moved there. */
static int make_dir(struct sl_native_acts *a, struct sl_object *dir, int dirfd, const char *name,
		    const struct sl_attr *at)
{
	struct sl_store *s = a->cfg.store;
	struct sl_pending p = {.op = SL_PENDING_MKDIR, .dir = dir->handle, .attr = *at};
	struct stat st;
	snprintf(p.name, sizeof(p.name), "%s", name);
	int r = sl_pending_set(s, &p);
	if (r < 0)
		return r;
	/* Without a record it would be a user's, and empty. */
	sl_fan_making(a->cfg.fan, a->cfg.lazy);
	if (mkdirat(dirfd, name, at->mode & 01777) < 0)
		r = -errno;
	else
		r = native_adopt_dir(a, dir, dirfd, name, at);
	sl_fan_making(a->cfg.fan, false);
	sl_pending_clear(s);
	if (r < 0 || fstatat(dirfd, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
		return r;
	if ((st.st_uid != at->uid || st.st_gid != at->gid) &&
	    fchownat(dirfd, name, at->uid, at->gid, AT_SYMLINK_NOFOLLOW) < 0)
		return -errno;
	if ((st.st_mode & 07777) != (at->mode & 07777) && fchmodat(dirfd, name, at->mode & 07777, 0) < 0)
		return -errno;
	_cleanup_object_ struct sl_object *o = NULL;
	if (!at->no_xattrs && sl_object_lookup(dir, name, &o) == 0)
		return sl_fill_wait(a->cfg.fill, SL_WANT_XATTRS, o, 0, 0);
	return 0;
}

/* A file is made without a name. */
static int make_file(struct sl_native_acts *a, struct sl_object *dir, int dirfd, const char *name,
		     const struct sl_attr *at)
{
	char p[SL_PROC_FD_MAX];
	_cleanup_object_ struct sl_object *o = NULL;
	_cleanup_close_ int fd = sl_placeholder_tmpfile(dir, name, at, a->stage);
	if (fd < 0)
		return fd;
	int r = sl_object_of_fd(a->cfg.store, fd, &o);
	if (r == 0)
		sl_peers_note(a->peers, o);
	if (r == 0 && !at->no_xattrs)
		r = sl_fill_wait(a->cfg.fill, SL_WANT_XATTRS, o, 0, 0);
	if (r == 0 && linkat(AT_FDCWD, sl_proc_fd_path(p, fd, NULL), dirfd, name, AT_SYMLINK_FOLLOW) < 0)
		r = -errno;
	return r;
}

/* A staged directory counts as listed, and is empty. */
static int show_empty(struct sl_native_acts *a, const char *tmp)
{
	_cleanup_object_ struct sl_object *o = NULL;
	int r = stage_object(a, tmp, &o);
	if (r < 0)
		return r;
	pthread_mutex_lock(&o->lock);
	o->rec.state = SL_FULL;
	o->rec.origin.ctime = (struct timespec){0}; /* what is in it is not known yet */
	r = sl_object_save(o);
	pthread_mutex_unlock(&o->lock);
	return r;
}

/* @tmp, of the stage, gets its name, from @over if that is not NULL. */
static int show(struct sl_native_acts *a, const char *tmp, struct sl_object *dir, int dirfd, const char *name,
		enum sl_appear how, struct sl_object *over)
{
	if (over)
		return remove_object(a, dir, name, over, how == SL_APPEAR_SWAPPED, tmp);
	if (how != SL_APPEAR_MADE)
		return renameat2(a->stage, tmp, dirfd, name, 0) < 0 ? -errno : 0;
	if (linkat(a->stage, tmp, dirfd, name, 0) < 0)
		return -errno;
	(void)unlinkat(a->stage, tmp, 0);
	return 0;
}

static int link_here(struct sl_native_acts *a, struct sl_object *o, struct sl_object *dir, int dirfd,
		     const char *name, enum sl_appear how, struct sl_object *over)
{
	char tmp[32];
	if (how == SL_APPEAR_MADE)
		return stage_link(o, dirfd, name);
	int r = stage_link(o, a->stage, stage_name(a, "in", tmp));
	if (r == 0)
		r = show(a, tmp, dir, dirfd, name, how, over);
	/* Where that was a name of the same file already, nothing has happened. */
	(void)unlinkat(a->stage, tmp, 0);
	return r;
}

/* Its other names may be in directories that nobody has looked into. */
static void note_links(struct sl_native_acts *a, struct sl_object *dir, const char *name,
		       const struct sl_attr *at)
{
	_cleanup_object_ struct sl_object *o = NULL;
	if (a->cfg.lazy && S_ISREG(at->mode) && at->nlink > 1 && sl_object_lookup(dir, name, &o) == 0)
		(void)sl_links_note(o, at->nlink, 0);
}

/* @had: what is there, or NULL; 1: of a file, that is it. @whole: the kernel does not replace it by a rename,
 * or it is to be heard leaving; else a file that is there is renamed over. */
static int make(struct sl_native_acts *a, struct sl_object *dir, const char *name, const struct sl_ostate *s,
		enum sl_appear how, struct sl_object *had, bool whole)
{
	struct sl_object *over = whole ? had : NULL;
	bool moved = how != SL_APPEAR_MADE;
	const struct sl_attr *at = &s->attr;
	struct sl_version v = sl_attr_version(at);
	char tmp[32];
	_cleanup_close_ int dirfd = sl_object_pin(dir);
	if (dirfd < 0)
		return dirfd;
	_cleanup_object_ struct sl_object *other =
	    S_ISREG(at->mode) && at->nlink > 1 ? sl_peers_find(a->peers, &v, NULL) : NULL;
	if (other && other == had)
		return 1; /* since a moment ago */
	if (other) {
		int q = link_here(a, other, dir, dirfd, name, how, over);
		if (q == 0 && a->cfg.lazy)
			(void)sl_links_note(other, at->nlink, 1);
		return q;
	}
	if (S_ISREG(at->mode) && !moved) {
		int q = make_file(a, dir, dirfd, name, at);
		if (q == 0)
			note_links(a, dir, name, at);
		return q;
	}
	if (S_ISDIR(at->mode) && !moved)
		return make_dir(a, dir, dirfd, name, at);
	int r = sl_placeholder_stage(dir, name, at, s->target, a->stage, stage_name(a, "in", tmp)), empty = 0;
	if (r == 0)
		r = stage_complete(a, tmp, at, moved && !a->cfg.lazy);
	if (S_ISDIR(at->mode) && !a->cfg.lazy && (r == -ESTALE || r == -EIO)) {
		/* It has moved on, or something below it has: what is in it comes later. */
		(void)sl_remove_tree(a->stage, tmp);
		r = sl_placeholder_stage(dir, name, at, NULL, a->stage, stage_name(a, "in", tmp));
		if (r == 0)
			r = show_empty(a, tmp);
		empty = 1;
	}
	if (r == 0)
		r = show(a, tmp, dir, dirfd, name, how, over);
	if (r < 0)
		(void)sl_remove_tree(a->stage, tmp);
	else
		note_links(a, dir, name, at);
	return r < 0 ? r : empty;
}

bool native_twin(void *arg, struct sl_object *o, const struct sl_attr *at, struct sl_object **more)
{
	struct sl_native_acts *a = arg;
	struct sl_version v = sl_attr_version(at);
	if (!S_ISREG(at->mode) || at->nlink < 2)
		return false;
	pthread_mutex_lock(&o->lock);
	bool known = sl_version_same_object(&o->rec.origin, &v);
	pthread_mutex_unlock(&o->lock);
	/* All records are read for what is only now known to be that file. */
	if (known && !sl_peers_made(a->peers))
		return false;
	_cleanup_object_ struct sl_object *other = sl_peers_find(a->peers, &v, more);
	return other && other != o;
}

int native_appear(void *arg, struct sl_object *dir, const char *name, const struct sl_ostate *s,
		  enum sl_appear how)
{
	struct sl_native_acts *a = arg;
	struct sl_version v = sl_attr_version(&s->attr);
	_cleanup_object_ struct sl_object *o = NULL;
	enum standing st;
	bool moved = how != SL_APPEAR_MADE, whole = false;
	native_on_thread(a);
	int r = native_look(a, dir, name, &o, &st);
	if (r < 0 && r != -ENOENT)
		return r;
	if (r == 0) {
		pthread_mutex_lock(&o->lock);
		bool same = o->type == (s->attr.mode & S_IFMT) && sl_version_same_object(&o->rec.origin, &v);
		pthread_mutex_unlock(&o->lock);
		if (st == FOREIGN || (st == CHANGED && !same))
			return -EEXIST;
		if (same && (st == CHANGED || !native_twin(a, o, &s->attr, NULL)))
			return 0; /* it is here already */
		whole = how == SL_APPEAR_SWAPPED || sl_object_is_dir(o) || S_ISDIR(s->attr.mode);
		r = !moved ? remove_object(a, dir, name, o, false, NULL) : whole ? native_kept(a, o) : 0;
		if (r < 0)
			return r;
	}
	r = make(a, dir, name, s, how, o, moved && whole);
	if (r >= 0 && o && sl_object_is_reg(o) && (r == 0 || S_ISDIR(s->attr.mode)))
		lose_place(o, dir, name);
	return r < 0 ? r : S_ISDIR(s->attr.mode) && !a->cfg.lazy && (r || !moved);
}

/* ---- rename ---- */

int native_move_places(struct sl_native_acts *a, struct sl_object *o, struct sl_object *t, const char *from,
		       const char *to, bool exchange)
{
	int r = 0;
	bool any = sl_object_is_dir(o) || (exchange && sl_object_is_dir(t));
	if (any)
		r = sl_store_move(a->cfg.store, from, to, exchange);
	if (r == 0 && !any)
		r = sl_object_set_place(o, to);
	if (r == 0 && !any && exchange)
		r = sl_object_set_place(t, from);
	return r;
}

static int rename_objects(struct sl_native_acts *a, struct sl_object *dir, const char *name,
			  struct sl_object *o, struct sl_object *newdir, const char *newname,
			  struct sl_object *t, bool exchange)
{
	struct sl_store *s = a->cfg.store;
	_cleanup_free_ char *from = native_place_below(dir, name), *to = native_place_below(newdir, newname);
	_cleanup_close_ int fd = sl_object_pin(dir), newfd = sl_object_pin(newdir);
	if (!from || !to || fd < 0 || newfd < 0)
		return -ESTALE;
	struct sl_pending p = {.op = exchange ? SL_PENDING_EXCHANGE : SL_PENDING_RENAME,
			       .moves = sl_store_moves(s),
			       .dir = dir->handle,
			       .newdir = newdir->handle,
			       .o = o->handle};
	snprintf(p.name, sizeof(p.name), "%s", name);
	snprintf(p.newname, sizeof(p.newname), "%s", newname);
	if (exchange)
		p.other = t->handle;
	int r = sl_pending_set(s, &p);
	if (r == 0)
		r = native_move_places(a, o, t, from, to, exchange);
	if (r == 0 && renameat2(fd, name, newfd, newname, exchange ? RENAME_EXCHANGE : 0) < 0) {
		r = -errno;
		(void)native_move_places(a, o, t, to, from, exchange);
	}
	sl_pending_clear(s);
	if (r == 0 && t && !exchange && sl_object_is_reg(t))
		lose_place(t, newdir, newname);
	return r;
}

/* The directory @t goes, with what is in it. */
static int rename_over(struct sl_native_acts *a, struct sl_object *dir, const char *name, struct sl_object *o,
		       struct sl_object *newdir, const char *newname, struct sl_object *t)
{
	struct leave x = {.a = a};
	begin_removal(a, t);
	settle_listing(a, t);
	int r = leave(&x, t);
	if (r == 0)
		r = clear(a, t);
	left(&x, r < 0);
	if (r == 0)
		r = rename_objects(a, dir, name, o, newdir, newname, t, false);
	end_removal(a, t);
	return r;
}

int native_rename(void *arg, struct sl_object *dir, const char *name, struct sl_object *newdir,
		  const char *newname, enum sl_rename how)
{
	struct sl_native_acts *a = arg;
	bool exchange = how != SL_RENAME_OVER;
	_cleanup_object_ struct sl_object *o = NULL, *t = NULL;
	enum standing st, tst;
	native_on_thread(a);
	int r = native_look(a, dir, name, &o, &st);
	if (r < 0 || st == FOREIGN)
		return r < 0 ? r : -ENOENT; /* what the origin means is not here */
	r = native_look(a, newdir, newname, &t, &tst);
	if (r < 0 && (r != -ENOENT || exchange))
		return r;
	if (o == t)
		return 0; /* two names of one object: nothing happens */
	if (t && (how == SL_RENAME_EXCHANGE ? tst == FOREIGN : tst != OURS || native_kept(a, t) < 0))
		return -EEXIST;
	if (t && !exchange && sl_object_is_dir(t))
		return rename_over(a, dir, name, o, newdir, newname, t);
	return rename_objects(a, dir, name, o, newdir, newname, t, exchange);
}
