/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "replay/native.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/fanotify.h>

#include "base/beneath.h"
#include "base/fd.h"
#include "base/log.h"
#include "gate/fanotify/silent.h"
#include "replay/peers.h"
#include "store/pending.h"
#include "store/walk.h"
#include "store/xattr.h"

#define SIBLINGS_MAX 4096 /* among which another name of a file is looked for */
#define TRIES	     16

struct sl_native_acts {
	struct sl_native_acts_config cfg;
	struct sl_silent *silent; /* or NULL */
	struct sl_peers *peers;
	int stage;     /* where nobody sees it */
	uint64_t next; /* names there */
	int tid;
};

/* ---- what is there ---- */

enum standing {
	OURS,	 /* of the origin, at its place */
	CHANGED, /* the same, with content that was changed here */
	FOREIGN, /* made here, or brought here from elsewhere */
};

static bool content_changed(struct sl_native_acts *a, struct sl_object *o)
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

/* @place: where it must be at the origin. */
static enum standing standing(struct sl_native_acts *a, struct sl_object *o, const char *place)
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
	return content_changed(a, o) ? CHANGED : OURS;
}

static char *place_below(struct sl_object *dir, const char *name)
{
	_cleanup_free_ char *place = NULL;
	return sl_object_place(dir, &place) == 0 ? sl_path_join(place, name) : NULL;
}

/* What @name in @dir is, as a new reference. -ENOENT. */
static int look(struct sl_native_acts *a, struct sl_object *dir, const char *name, struct sl_object **ret,
		enum standing *st)
{
	_cleanup_free_ char *place = place_below(dir, name);
	if (!place)
		return -ESTALE;
	int r = sl_object_lookup(dir, name, ret);
	if (r == 0)
		*st = standing(a, *ret, place);
	return r;
}

static int kept_one(void *arg, const char *path, struct sl_object *o, int err)
{
	(void)err;
	return o && standing(arg, o, path) == OURS ? 0 : -EEXIST;
}

/* -EEXIST where something of @o, or below it, was changed here or is not the origin's. */
static int kept(struct sl_native_acts *a, struct sl_object *o)
{
	return sl_walk(o, kept_one, a);
}

static bool same_handle(const struct sl_handle *a, const struct sl_handle *b)
{
	return a->len && a->len == b->len && !memcmp(a->b, b->b, a->len);
}

static bool is_at(int dirfd, const char *name, const struct sl_handle *h)
{
	struct sl_handle at;
	return sl_handle_get(dirfd, name, &at) == 0 && same_handle(&at, h);
}

/* ---- where nobody sees it ---- */

/* "in-N" comes into the tree, "out-N" has left it. */
static const char *staged(struct sl_native_acts *a, const char *kind, char name[32])
{
	snprintf(name, 32, "%s-%llu", kind, (unsigned long long)a->next++);
	return name;
}

static int staged_object(struct sl_native_acts *a, const char *name, struct sl_object **ret)
{
	_cleanup_close_ int fd = openat(a->stage, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
	return fd < 0 ? -errno : sl_object_of_fd(a->cfg.store, fd, ret);
}

static int link_at(struct sl_object *o, int dirfd, const char *name)
{
	char p[SL_PROC_FD_MAX];
	pthread_mutex_lock(&o->lock);
	o->rec.flags |= SL_LINKED;
	int r = sl_object_save(o);
	pthread_mutex_unlock(&o->lock);
	_cleanup_close_ int fd = r == 0 ? sl_object_pin(o) : r;
	if (fd < 0)
		return fd;
	return linkat(AT_FDCWD, sl_proc_fd_path(p, fd, NULL), dirfd, name, AT_SYMLINK_FOLLOW) < 0 ? -errno
												  : 0;
}

struct join {
	struct sl_native_acts *a;
	const char *name;
	size_t above; /* of each path */
};

/* A file that comes with a directory may be one that is here under another name. */
static int join_one(void *arg, const char *path, struct sl_object *o, int err)
{
	struct join *j = arg;
	if (!o || !sl_object_is_reg(o))
		return err;
	pthread_mutex_lock(&o->lock);
	struct sl_version v = o->rec.origin;
	bool linked = o->rec.flags & SL_LINKED;
	pthread_mutex_unlock(&o->lock);
	_cleanup_object_ struct sl_object *other = linked ? sl_peers_find(j->a->peers, &v) : NULL;
	const char *rest = strlen(path) > j->above ? path + j->above + 1 : NULL;
	if (!other || other == o || !rest) {
		sl_peers_note(j->a->peers, o);
		return 0;
	}
	const char *slash = strrchr(rest, '/');
	_cleanup_free_ char *below = slash ? strndup(rest, (size_t)(slash - rest)) : strdup("");
	_cleanup_free_ char *up = below ? (*below ? sl_path_join(j->name, below) : strdup(j->name)) : NULL;
	_cleanup_close_ int fd = up ? sl_open_beneath(j->a->stage, up, O_PATH | O_DIRECTORY) : -ENOMEM;
	if (fd < 0)
		return fd;
	rest = slash ? slash + 1 : rest;
	return unlinkat(fd, rest, 0) < 0 ? -errno : link_at(other, fd, rest);
}

static int join_all(struct sl_native_acts *a, const char *name, struct sl_object *o)
{
	_cleanup_free_ char *place = NULL;
	int r = sl_object_place(o, &place);
	struct join j = {.a = a, .name = name, .above = r == 0 ? strlen(place) : 0};
	return r < 0 ? r : sl_walk(o, join_one, &j);
}

/* Everything that a name in the stage needs before it is shown: attributes of ours, and of a directory all
 * that is in it. */
static int complete(struct sl_native_acts *a, const char *name, const struct sl_attr *at, bool whole)
{
	_cleanup_object_ struct sl_object *o = NULL;
	int r = staged_object(a, name, &o);
	if (r < 0)
		return r;
	if (S_ISDIR(at->mode) && whole) {
		r = sl_fill_tree(a->cfg.fill, o, NULL, NULL);
		int q = sl_store_drop_links(a->cfg.store);
		if (r == 0 && q == 0)
			q = join_all(a, name, o);
		return r < 0 ? r : q;
	}
	sl_peers_note(a->peers, o);
	return at->no_xattrs ? 0 : sl_fill_wait(a->cfg.fill, SL_WANT_XATTRS, o, 0, 0);
}

static void discard(struct sl_native_acts *a, const char *name)
{
	int r = sl_remove_tree(a->stage, name);
	if (r < 0)
		sl_warn("what is no longer at the origin cannot be removed from the store: %s", strerror(-r));
}

/* What an earlier service left there. */
static int purge_one(struct sl_native_acts *a, const char *name)
{
	_cleanup_object_ struct sl_object *o = NULL;
	/* Of this service: names are just being made, or taken away. */
	if (!strncmp(name, SL_STAGED_NEW, strlen(SL_STAGED_NEW)) ||
	    !strncmp(name, SL_STAGED_EVICTED, strlen(SL_STAGED_EVICTED)))
		return 0;
	if (!strncmp(name, "out-", 4) && staged_object(a, name, &o) == 0 && kept(a, o) < 0) {
		_cleanup_free_ char *path = sl_object_path(o);
		sl_err("'%s' was moved away at the origin, and holds something that was changed here: it is "
		       "in the "
		       "store, as staging/%s",
		       path, name);
		unsigned long long n = strtoull(name + 4, NULL, 10);
		a->next = SL_MAX(a->next, n + 1);
		return 0;
	}
	discard(a, name);
	return 0;
}

static int purge(struct sl_native_acts *a)
{
	struct sl_object *o = NULL;
	struct sl_name *v = NULL;
	size_t n = 0;
	int r = sl_object_of_fd(a->cfg.store, a->stage, &o);
	if (r == 0)
		r = sl_names_read(o, &v, &n);
	for (size_t i = 0; i < n && r == 0; i++)
		r = purge_one(a, v[i].name);
	sl_names_free(v, n);
	sl_object_put(o);
	return r;
}

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
	_cleanup_free_ char *gone = place_below(dir, name), *own = NULL;
	struct sl_attr at;
	if (!gone || sl_object_place(o, &own) < 0 || strcmp(own, gone) != 0)
		return;
	if (sl_object_attr(o, &at) == 0 && at.nlink > 0) {
		pthread_mutex_lock(&o->lock);
		struct sl_version v = o->rec.origin;
		pthread_mutex_unlock(&o->lock);
		_cleanup_free_ char *other = sibling(dir, &v);
		_cleanup_free_ char *place = other ? place_below(dir, other) : NULL;
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
	pthread_mutex_lock(&o->lock);
	bool linked = o->rec.flags & SL_LINKED;
	pthread_mutex_unlock(&o->lock);
	if (linked && a->cfg.lazy) /* if others are to come they will be of a file of their own */
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
		int q = look(a, o, v[i].name, &x, &st);
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

/* It leaves as it is, and is taken apart where nobody hears of it. */
static int move_out(struct sl_native_acts *a, struct sl_object *dir, int dirfd, const char *name,
		    struct sl_object *o)
{
	char tmp[32];
	if (renameat2(dirfd, name, a->stage, staged(a, "out", tmp), RENAME_NOREPLACE) < 0)
		return -errno;
	/* Somebody may have changed something in it at the last moment. */
	if (kept(a, o) < 0)
		return renameat2(a->stage, tmp, dirfd, name, RENAME_NOREPLACE) < 0 ? -errno : -EEXIST;
	discard(a, tmp);
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

static int remove_it(struct sl_native_acts *a, struct sl_object *dir, const char *name, struct sl_object *o,
		     bool moved)
{
	settle_listing(a, o);
	int r = kept(a, o);
	_cleanup_close_ int fd = r == 0 ? sl_object_pin(dir) : -EBADF;
	if (r < 0 || fd < 0)
		return r < 0 ? r : fd;
	struct leave x = {.a = a};
	r = leave(&x, o);
	if (r == 0)
		r = moved ? move_out(a, dir, fd, name, o) : drop_all(a, o, dir, fd, name);
	left(&x, r < 0);
	return r == -ENOTEMPTY ? -EEXIST : r;
}

static int remove_object(struct sl_native_acts *a, struct sl_object *dir, const char *name,
			 struct sl_object *o, bool moved)
{
	begin_removal(a, o);
	int r = remove_it(a, dir, name, o, moved);
	end_removal(a, o);
	return r;
}

static void on_thread(struct sl_native_acts *a)
{
	if (!a->tid) {
		a->tid = gettid();
		sl_fan_set_replay(a->cfg.fan, a->tid);
	}
}

static int native_vanish(void *arg, struct sl_object *dir, const char *name, bool moved)
{
	struct sl_native_acts *a = arg;
	_cleanup_object_ struct sl_object *o = NULL;
	enum standing st;
	on_thread(a);
	int r = look(a, dir, name, &o, &st);
	if (r < 0)
		return r;
	return st == OURS ? remove_object(a, dir, name, o, moved) : -EEXIST;
}

/* ---- appear ---- */

static int link_here(struct sl_native_acts *a, struct sl_object *o, int dirfd, const char *name, bool moved)
{
	char tmp[32];
	if (!moved)
		return link_at(o, dirfd, name);
	int r = link_at(o, a->stage, staged(a, "in", tmp));
	if (r == 0 && renameat2(a->stage, tmp, dirfd, name, 0) < 0)
		r = -errno;
	/* Where that was a name of the same file already, nothing has happened. */
	(void)unlinkat(a->stage, tmp, 0);
	return r;
}

/* The directory @name was just made: it gets its record. One without is a user's, and empty: it must not
 * stay. */
static int adopt_dir(struct sl_native_acts *a, struct sl_object *dir, int dirfd, const char *name,
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
		r = adopt_dir(a, dir, dirfd, name, at);
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
	int r = staged_object(a, tmp, &o);
	if (r < 0)
		return r;
	pthread_mutex_lock(&o->lock);
	o->rec.state = SL_FULL;
	o->rec.origin.ctime = (struct timespec){0}; /* what is in it is not known yet */
	r = sl_object_save(o);
	pthread_mutex_unlock(&o->lock);
	return r;
}

static int show(struct sl_native_acts *a, const char *tmp, int dirfd, const char *name, bool moved)
{
	if (moved)
		return renameat2(a->stage, tmp, dirfd, name, 0) < 0 ? -errno : 0;
	if (linkat(a->stage, tmp, dirfd, name, 0) < 0)
		return -errno;
	(void)unlinkat(a->stage, tmp, 0);
	return 0;
}

/* Its other names may be in directories that nobody has looked into. */
static void note_links(struct sl_native_acts *a, struct sl_object *dir, const char *name,
		       const struct sl_attr *at)
{
	_cleanup_object_ struct sl_object *o = NULL;
	if (a->cfg.lazy && S_ISREG(at->mode) && at->nlink > 1 && sl_object_lookup(dir, name, &o) == 0)
		(void)sl_links_note(o, at->nlink, 0);
}

static int make(struct sl_native_acts *a, struct sl_object *dir, const char *name, const struct sl_ostate *s,
		bool moved)
{
	const struct sl_attr *at = &s->attr;
	struct sl_version v = sl_attr_version(at);
	char tmp[32];
	_cleanup_close_ int dirfd = sl_object_pin(dir);
	if (dirfd < 0)
		return dirfd;
	_cleanup_object_ struct sl_object *other =
	    S_ISREG(at->mode) && at->nlink > 1 ? sl_peers_find(a->peers, &v) : NULL;
	if (other) {
		int q = link_here(a, other, dirfd, name, moved);
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
	int r = sl_placeholder_stage(dir, name, at, s->target, a->stage, staged(a, "in", tmp)), empty = 0;
	if (r == 0)
		r = complete(a, tmp, at, moved && !a->cfg.lazy);
	if (S_ISDIR(at->mode) && !a->cfg.lazy && (r == -ESTALE || r == -EIO)) {
		/* It has moved on, or something below it has: what is in it comes later. */
		(void)sl_remove_tree(a->stage, tmp);
		r = sl_placeholder_stage(dir, name, at, NULL, a->stage, staged(a, "in", tmp));
		if (r == 0)
			r = show_empty(a, tmp);
		empty = 1;
	}
	if (r == 0)
		r = show(a, tmp, dirfd, name, moved);
	if (r < 0)
		(void)sl_remove_tree(a->stage, tmp);
	else
		note_links(a, dir, name, at);
	return r < 0 ? r : empty;
}

static bool native_twin(void *arg, struct sl_object *o, const struct sl_attr *at)
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
	_cleanup_object_ struct sl_object *other = sl_peers_find(a->peers, &v);
	return other && other != o;
}

static int native_appear(void *arg, struct sl_object *dir, const char *name, const struct sl_ostate *s,
			 bool moved)
{
	struct sl_native_acts *a = arg;
	struct sl_version v = sl_attr_version(&s->attr);
	_cleanup_object_ struct sl_object *o = NULL;
	enum standing st;
	on_thread(a);
	int r = look(a, dir, name, &o, &st);
	if (r < 0 && r != -ENOENT)
		return r;
	if (r == 0) {
		pthread_mutex_lock(&o->lock);
		bool same = o->type == (s->attr.mode & S_IFMT) && sl_version_same_object(&o->rec.origin, &v);
		pthread_mutex_unlock(&o->lock);
		if (st == FOREIGN || (st == CHANGED && !same))
			return -EEXIST;
		if (same && (st == CHANGED || !native_twin(a, o, &s->attr)))
			return 0; /* it is here already */
		/* Moved over a file it takes its place at once. */
		if (!moved || sl_object_is_dir(o) || S_ISDIR(s->attr.mode))
			r = remove_object(a, dir, name, o, false);
		if (r < 0)
			return r;
	}
	r = make(a, dir, name, s, moved);
	if (r >= 0 && o && sl_object_is_reg(o))
		lose_place(o, dir, name);
	return r < 0 ? r : S_ISDIR(s->attr.mode) && !a->cfg.lazy && (r || !moved);
}

/* ---- rename ---- */

/* The places of what is renamed, on disk before the names are. */
static int move_places(struct sl_native_acts *a, struct sl_object *o, struct sl_object *t, const char *from,
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
	_cleanup_free_ char *from = place_below(dir, name), *to = place_below(newdir, newname);
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
		r = move_places(a, o, t, from, to, exchange);
	if (r == 0 && renameat2(fd, name, newfd, newname, exchange ? RENAME_EXCHANGE : 0) < 0) {
		r = -errno;
		(void)move_places(a, o, t, to, from, exchange);
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

static int native_rename(void *arg, struct sl_object *dir, const char *name, struct sl_object *newdir,
			 const char *newname, bool exchange)
{
	struct sl_native_acts *a = arg;
	_cleanup_object_ struct sl_object *o = NULL, *t = NULL;
	enum standing st, tst;
	on_thread(a);
	int r = look(a, dir, name, &o, &st);
	if (r < 0 || st == FOREIGN)
		return r < 0 ? r : -ENOENT; /* what the origin means is not here */
	r = look(a, newdir, newname, &t, &tst);
	if (r < 0 && (r != -ENOENT || exchange))
		return r;
	if (o == t)
		return 0; /* two names of one object: nothing happens */
	if (t && (exchange ? tst == FOREIGN : tst != OURS || kept(a, t) < 0))
		return -EEXIST;
	if (t && !exchange && sl_object_is_dir(t) != sl_object_is_dir(o)) {
		r = remove_object(a, newdir, newname, t, false);
		sl_object_put(t);
		t = NULL;
	} else if (t && !exchange && sl_object_is_dir(t)) {
		return rename_over(a, dir, name, o, newdir, newname, t);
	} else {
		r = 0;
	}
	return r < 0 ? r : rename_objects(a, dir, name, o, newdir, newname, t, exchange);
}

/* ---- update ---- */

static bool same_content(const struct sl_version *a, const struct sl_version *b)
{
	return sl_version_same_object(a, b) && a->size == b->size && sl_time_eq(a->mtime, b->mtime);
}

static int follow_xattrs(struct sl_native_acts *a, struct sl_object *o, const struct sl_attr *at)
{
	if (!(sl_object_is_reg(o) || sl_object_is_dir(o)) ||
	    (at->no_xattrs && sl_xattr_list(o, NULL, 0) <= 0))
		return 0;
	pthread_mutex_lock(&o->lock);
	o->rec.flags |= SL_XATTRS;
	pthread_mutex_unlock(&o->lock);
	return sl_fill_wait(a->cfg.fill, SL_WANT_XATTRS, o, 0, 0);
}

/* Permissions and owner, unless they were changed here. @was: permissions at the origin before. */
static int follow_mode(int fd, const struct sl_attr *at, uint32_t was, uint64_t *raised)
{
	char p[SL_PROC_FD_MAX];
	struct stat st;
	if (fstat(fd, &st) < 0)
		return -errno;
	if ((st.st_mode ^ was) & 07777)
		return 0;
	if (st.st_uid != at->uid || st.st_gid != at->gid) {
		if (fchownat(fd, "", at->uid, at->gid, AT_EMPTY_PATH) < 0)
			return -errno;
		*raised |= FAN_ATTRIB;
		st.st_mode &= ~(mode_t)(S_ISUID | S_ISGID); /* which that takes away from files */
	}
	if (!S_ISLNK(st.st_mode) && (st.st_mode ^ at->mode) & 07777) {
		if (chmod(sl_proc_fd_path(p, fd, NULL), at->mode & 07777) < 0)
			return -errno;
		*raised |= FAN_ATTRIB;
	}
	return 0;
}

/* The record takes the version of @at; content stays. */
static int keep(struct sl_object *o, const struct sl_attr *at)
{
	pthread_mutex_lock(&o->lock);
	o->rec.origin = sl_attr_version(at);
	o->rec.mode = at->mode;
	int r = sl_object_save(o);
	pthread_mutex_unlock(&o->lock);
	return r;
}

static int conflict(struct sl_object *o)
{
	pthread_mutex_lock(&o->lock);
	int r = 0;
	if (!(o->rec.flags & SL_CONFLICT)) {
		o->rec.flags |= SL_CONFLICT;
		r = sl_object_save(o);
	}
	pthread_mutex_unlock(&o->lock);
	return r < 0 ? r : -EEXIST;
}

static int renew(struct sl_native_acts *a, struct sl_object *o, const struct sl_attr *at, uint64_t mask,
		 uint64_t *raised)
{
	bool invisible;
	int got = a->silent ? sl_silent_open(a->silent, o) : -EOPNOTSUPP;
	_cleanup_close_ int fd = got >= 0 ? got : sl_object_open_fill(o, &invisible);
	if (fd < 0)
		return fd;
	const struct timespec *atime = mask & FAN_MODIFY || !(mask & FAN_ATTRIB) ? NULL : &at->atime;
	*raised |= atime ? FAN_ATTRIB : FAN_MODIFY;
	int r;
	while ((r = sl_fill_renew(a->cfg.fill, o, fd, at, atime)) == -EBUSY)
		usleep(1000); /* an eviction is short */
	return r == -EEXIST ? conflict(o) : r;
}

static int update_file(struct sl_native_acts *a, struct sl_object *o, int fd, const struct sl_attr *at,
		       uint64_t mask, unsigned how, uint64_t *raised)
{
	struct sl_version v = sl_attr_version(at);
	bool changed = content_changed(a, o);
	pthread_mutex_lock(&o->lock);
	struct sl_version had = o->rec.origin;
	uint32_t was = o->rec.mode;
	bool local = !o->has_record || o->rec.flags & SL_LOCAL, linked = o->rec.flags & SL_LINKED;
	pthread_mutex_unlock(&o->lock);
	bool same = sl_version_eq(&had, &v) && !(how & SL_UPDATE_CONTENT);
	bool stays = same_content(&had, &v) && how & SL_UPDATE_KEEP;
	if (local)
		return -EEXIST;
	if (a->cfg.lazy && (linked || at->nlink > 1) && sl_version_same_object(&had, &v))
		(void)sl_links_note(o, at->nlink, 0);
	/* A fill that met this version first has left the mode to us. */
	if (same && at->mode == was)
		return 0;
	stays |= same;
	if (changed)
		return stays ? 0 : conflict(o);
	int r = stays ? 0 : renew(a, o, at, mask, raised);
	if (r == 0 && !sl_version_same_object(&had, &v))
		sl_peers_note(a->peers, o);
	if (r == 0)
		r = follow_mode(fd, at, was, raised);
	if (r == 0 && (stays || at->mode != was))
		r = keep(o, at);
	return r;
}

/*
 * A directory keeps the version with which it was listed last: what was there then is known to have been
 * here. Its times are those of the last change here; to set them would be an event that the origin never saw.
 */
static int update_dir(struct sl_object *o, int fd, const struct sl_attr *at, uint64_t mask, unsigned how,
		      uint64_t *raised)
{
	struct timespec ts[2] = {at->atime, at->mtime};
	struct sl_version v = sl_attr_version(at);
	pthread_mutex_lock(&o->lock);
	uint32_t was = o->rec.mode;
	bool local = !o->has_record || o->rec.flags & SL_LOCAL;
	bool same = sl_version_eq(&o->rec.origin, &v) && at->mode == was && !(mask & FAN_ATTRIB);
	bool unknown = !o->rec.origin.ino && !o->rec.origin.generation; /* which one it is */
	pthread_mutex_unlock(&o->lock);
	if (local)
		return -EEXIST;
	/* Records have no owner: where nothing has changed there, another one was given to it here. */
	int r = same ? 0 : follow_mode(fd, at, was, raised);
	pthread_mutex_lock(&o->lock);
	if (r == 0 && (at->mode != o->rec.mode || unknown ||
		       (how & SL_UPDATE_LISTED && !sl_version_eq(&o->rec.origin, &v)))) {
		o->rec.mode = at->mode;
		o->rec.origin.ino = v.ino;
		o->rec.origin.generation = v.generation;
		if (how & SL_UPDATE_LISTED)
			o->rec.origin = v;
		r = sl_object_save(o);
	}
	pthread_mutex_unlock(&o->lock);
	if (r == 0 && mask & FAN_ATTRIB && !(*raised & FAN_ATTRIB)) {
		r = utimensat(fd, "", ts, AT_EMPTY_PATH) < 0 ? -errno : 0;
		*raised |= FAN_ATTRIB;
	}
	return r;
}

static int update_other(struct sl_object *o, int fd, const struct sl_attr *at, uint64_t *raised)
{
	struct timespec ts[2] = {at->atime, at->mtime};
	struct sl_version v = sl_attr_version(at);
	pthread_mutex_lock(&o->lock);
	bool same = sl_version_eq(&o->rec.origin, &v), local = !o->has_record || o->rec.flags & SL_LOCAL;
	uint32_t was = o->rec.mode;
	pthread_mutex_unlock(&o->lock);
	if (local || same)
		return local ? -EEXIST : 0;
	int r = follow_mode(fd, at, was, raised);
	if (r == 0)
		r = keep(o, at);
	struct stat st;
	if (r < 0 || fstat(fd, &st) < 0)
		return r < 0 ? r : -errno;
	/* Without need it would be an event. */
	if (sl_time_eq(st.st_mtim, at->mtime))
		return 0;
	*raised |= FAN_ATTRIB;
	return utimensat(fd, "", ts, AT_EMPTY_PATH) < 0 ? -errno : 0;
}

/* Opened and closed where users see it. */
static void touch(struct sl_native_acts *a, struct sl_object *o, int flags)
{
	_cleanup_free_ char *place = NULL;
	if (sl_object_place(o, &place) < 0)
		return;
	const char *dir = sl_store_config(a->cfg.store)->dir;
	_cleanup_close_ int root = open(dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
	struct stat st, own;
	if (root < 0 || fstat(root, &st) < 0 || fstat(sl_store_tree_fd(a->cfg.store), &own) < 0 ||
	    st.st_dev != own.st_dev || st.st_ino != own.st_ino)
		return;
	_cleanup_close_ int fd = sl_open_beneath(root, place, flags | O_NOCTTY | O_NONBLOCK);
	if (fd < 0)
		sl_debug("'%s': no event for a change at the origin: %s", place, strerror(-fd));
}

/* An event without a change. */
static void raise_events(struct sl_native_acts *a, struct sl_object *o, int fd, uint64_t mask)
{
	char p[SL_PROC_FD_MAX];
	struct stat st;
	/* Under the lock: a fill may just be giving it another version, and its time. */
	pthread_mutex_lock(&o->lock);
	if (fstat(fd, &st) < 0) {
		pthread_mutex_unlock(&o->lock);
		return;
	}
	struct timespec mtime[2] = {{.tv_nsec = UTIME_OMIT}, st.st_mtim},
			atime[2] = {st.st_atim, {.tv_nsec = UTIME_OMIT}}, both[2] = {st.st_atim, st.st_mtim};
	if (mask & FAN_MODIFY)
		(void)utimensat(fd, "", mtime, AT_EMPTY_PATH);
	if (mask & FAN_ATTRIB && S_ISLNK(st.st_mode))
		(void)utimensat(fd, "", both, AT_EMPTY_PATH);
	else if (mask & FAN_ATTRIB)
		(void)chmod(sl_proc_fd_path(p, fd, NULL), st.st_mode & 07777);
	if (mask & FAN_ACCESS)
		(void)utimensat(fd, "", atime, AT_EMPTY_PATH);
	pthread_mutex_unlock(&o->lock);
	if (mask & (FAN_CLOSE_WRITE) && sl_object_is_reg(o))
		touch(a, o, O_WRONLY);
	if (mask & (FAN_OPEN | FAN_CLOSE_NOWRITE) && !(mask & FAN_CLOSE_WRITE) &&
	    (sl_object_is_reg(o) || sl_object_is_dir(o)))
		touch(a, o, O_RDONLY);
}

static int native_update(void *arg, struct sl_object *dir, const char *name, struct sl_object *o,
			 const struct sl_ostate *s, uint64_t mask, unsigned how)
{
	struct sl_native_acts *a = arg;
	uint64_t raised = 0;
	int r = 0;
	on_thread(a);
	/* By its name: of what is opened by handle the directory's watchers do not hear. */
	_cleanup_close_ int dirfd = dir ? sl_object_pin(dir) : -EBADF;
	_cleanup_close_ int fd = !dir	     ? sl_object_pin(o)
				 : dirfd < 0 ? dirfd
					     : openat(dirfd, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0)
		return dir && dirfd >= 0 ? -errno : fd;
	if (!is_at(fd, "", &o->handle))
		return -ENOENT;
	if (s && s->known && s->present) {
		if ((s->attr.mode & S_IFMT) != o->type)
			return -ESTALE;
		r = sl_object_is_reg(o)	  ? update_file(a, o, fd, &s->attr, mask, how, &raised)
		    : sl_object_is_dir(o) ? update_dir(o, fd, &s->attr, mask, how, &raised)
					  : update_other(o, fd, &s->attr, &raised);
		if (r == 0 && mask & FAN_ATTRIB)
			r = follow_xattrs(a, o, &s->attr);
	}
	if (r == 0 || r == -EEXIST)
		raise_events(a, o, fd, mask & ~raised);
	return r;
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
	_cleanup_free_ char *from = place_below(dir, p->name), *to = place_below(newdir, p->newname);
	if (fd < 0 || newfd < 0 || !from || !to)
		return -ESTALE;
	bool before = is_at(fd, p->name, &p->o) && (!exchange || is_at(newfd, p->newname, &p->other));
	bool after = is_at(newfd, p->newname, &p->o) && (!exchange || is_at(fd, p->name, &p->other));
	if (!before && !after)
		return -ENOENT; /* somebody else has come between */
	bool any = sl_object_is_dir(o) || (t && sl_object_is_dir(t));
	if (!any || sl_store_moves(s) == p->moves)
		r = move_places(a, o, t, from, to, exchange);
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
		r = look(a, dir, p->name, &o, &st);
	if (r < 0 || !sl_object_is_dir(o) || o->has_record)
		return SL_MIN(r, 0);
	sl_object_put(o); /* what is known of it will be another thing */
	o = NULL;
	_cleanup_close_ int fd = sl_object_pin(dir);
	return fd < 0 ? fd : adopt_dir(a, dir, fd, p->name, &p->attr);
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
		r = purge(a);
	}
	if (r < 0) {
		sl_native_acts_free(a);
		return r;
	}
	int q = sl_silent_new(cfg->fan, cfg->store, &a->silent);
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

void sl_native_acts_listed(struct sl_native_acts *a, struct sl_object *dir)
{
	sl_peers_note_names(a->peers, dir);
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
