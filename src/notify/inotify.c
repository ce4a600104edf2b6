/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A watch per marked directory, without privilege. Neither actors nor objects are known, only directories and
 * names: what a name means is looked up by who wants to know, which can be no later than it would be here.
 *
 * The halves of a rename are events of their own, one after the other unless another thread's come between;
 * they are put together again if both are seen. Which directory it was, if it is one that is watched, says
 * its own event, which comes next. See inotify(7).
 */
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/stat.h>

#include "base/beneath.h"
#include "base/fd.h"
#include "base/list.h"
#include "base/log.h"
#include "base/why.h"
#include "notify/internal.h"

/* Same numbers as FAN_*: both are fsnotify's own. */
_Static_assert(IN_MODIFY == FAN_MODIFY && IN_ATTRIB == FAN_ATTRIB && IN_CLOSE_WRITE == FAN_CLOSE_WRITE &&
		   IN_CLOSE_NOWRITE == FAN_CLOSE_NOWRITE && IN_OPEN == FAN_OPEN && IN_ACCESS == FAN_ACCESS &&
		   IN_MOVED_FROM == FAN_MOVED_FROM && IN_MOVED_TO == FAN_MOVED_TO &&
		   IN_CREATE == FAN_CREATE && IN_DELETE == FAN_DELETE && IN_DELETE_SELF == FAN_DELETE_SELF &&
		   IN_MOVE_SELF == FAN_MOVE_SELF && IN_Q_OVERFLOW == FAN_Q_OVERFLOW && IN_ISDIR == FAN_ONDIR,
	       "inotify's bits are fanotify's");

#define SELF_MASK  (IN_ATTRIB | IN_MOVE_SELF)
#define CHILD_MASK ((SL_CHANGE_MASK & ~(FAN_RENAME | FAN_DELETE_SELF)) | IN_MOVE_SELF)
/* How many events a rename's second half may come after its first: others go on while its thread is put
 * aside. */
#define PAIR_WITHIN 1024
#define SELF_WITHIN 8
#define ROOM	    (sizeof(struct inotify_event) + NAME_MAX + 1)

struct watch {
	struct sl_hnode by_wd, by_id;
	struct sl_evid id;
	unsigned count;
};

struct source {
	struct sl_source s;
	unsigned max_marks;
	pthread_mutex_t lock; /* protects all below, and is held while watches are made and removed */
	struct sl_htab by_wd, by_id;
	struct watch root; /* always there: for the root's own events; in no table by identity until marked */
	int parent_wd;	   /* of the directory in which the root is, or -1 */
	bool deleted;	   /* the root, and that has been told */
	bool complained;
};

static struct source *of(struct sl_source *s)
{
	return sl_container_of(s, struct source, s);
}

static uint64_t id_key(const struct sl_evid *id)
{
	return id->generation ? id->generation : id->ino;
}

static bool same(const struct sl_evid *a, const struct sl_evid *b)
{
	return a->generation == b->generation && (a->ino == b->ino || !a->ino || !b->ino) && id_key(a);
}

static struct watch *by_wd(struct source *s, int wd)
{
	struct sl_hnode *h = sl_htab_find(&s->by_wd, (uint64_t)wd);
	return h ? sl_container_of(h, struct watch, by_wd) : NULL;
}

static struct watch *by_id(struct source *s, const struct sl_evid *id)
{
	struct sl_hnode *h = sl_htab_find(&s->by_id, id_key(id));
	for (; h; h = sl_htab_next(h)) {
		struct watch *w = sl_container_of(h, struct watch, by_id);
		if (same(&w->id, id))
			return w;
	}
	return NULL;
}

static int add_watch(struct source *s, int fd, uint32_t mask)
{
	char path[SL_PROC_FD_MAX];
	int wd = inotify_add_watch(s->s.fd, sl_proc_fd_path(path, fd, NULL), mask | IN_ONLYDIR);
	return wd < 0 ? -errno : wd;
}

/* Of a marked directory. */
static uint32_t dir_mask(const struct source *s)
{
	return CHILD_MASK | (uint32_t)s->s.use;
}

static int full(struct source *s, const char *what)
{
	if (!s->complained)
		sl_warn("no more directories can be watched for changes: %s; what has no watch is compared "
			"instead",
			what);
	s->complained = true;
	return -ENOSPC;
}

/* The watch that the kernel has for the directory @fd, as a new element or one that is there; with the lock.
 */
static int watch_dir(struct source *s, int fd, const struct sl_evid *id, struct watch **ret)
{
	struct watch *w = by_id(s, id);
	if (w) {
		int wd = add_watch(s, fd, w == &s->root ? dir_mask(s) | SELF_MASK : dir_mask(s));
		if (wd < 0)
			return wd;
		/* Another one: the directory was made anew with the number of one that is gone. */
		if ((uint64_t)wd != w->by_wd.key) {
			sl_htab_del(&s->by_wd, &w->by_wd);
			sl_htab_add(&s->by_wd, &w->by_wd, (uint64_t)wd);
		}
		*ret = w;
		return 0;
	}
	if (same(&s->root.id, id)) {
		int wd = add_watch(s, fd, dir_mask(s) | SELF_MASK);
		if (wd < 0)
			return wd;
		*ret = &s->root;
		return sl_htab_add(&s->by_id, &s->root.by_id, id_key(id));
	}
	if (s->max_marks && s->s.marks >= s->max_marks)
		return full(s, "the configured number is reached");
	w = calloc(1, sizeof(*w));
	if (!w)
		return -ENOMEM;
	int wd = add_watch(s, fd, dir_mask(s));
	if (wd == -ENOSPC)
		full(s, "this user has as many as fs.inotify.max_user_watches allows");
	int r = wd < 0 ? wd : 0;
	if (r == 0 && by_wd(s, wd))
		r = -EEXIST; /* one directory under two identities */
	if (r == 0 && (r = sl_htab_add(&s->by_wd, &w->by_wd, (uint64_t)wd)) == 0) {
		w->id = *id;
		r = sl_htab_add(&s->by_id, &w->by_id, id_key(id));
		if (r < 0)
			sl_htab_del(&s->by_wd, &w->by_wd);
	}
	if (r < 0) {
		free(w);
		return r;
	}
	*ret = w;
	return 0;
}

static int mark(struct sl_source *src, int fd, const struct sl_evid *id)
{
	struct source *s = of(src);
	struct watch *w;
	if (!id_key(id))
		return -EINVAL;
	pthread_mutex_lock(&s->lock);
	int r = watch_dir(s, fd, id, &w);
	if (r == 0 && w->count++ == 0)
		s->s.marks++;
	pthread_mutex_unlock(&s->lock);
	return r;
}

static void unmark(struct sl_source *src, const struct sl_evid *id)
{
	struct source *s = of(src);
	pthread_mutex_lock(&s->lock);
	struct watch *w = by_id(s, id);
	if (w && --w->count == 0) {
		s->s.marks--;
		sl_htab_del(&s->by_id, &w->by_id);
		if (w == &s->root) {
			add_watch(s, s->s.root_fd, SELF_MASK);
		} else {
			/* Fails if the directory is gone. What is still queued of it is not for anybody. */
			inotify_rm_watch(s->s.fd, (int)w->by_wd.key);
			sl_htab_del(&s->by_wd, &w->by_wd);
			free(w);
		}
	}
	pthread_mutex_unlock(&s->lock);
}

/* A directory that has more than is wanted now has it until it is marked again: nobody is told of that. */
static int use(struct sl_source *src, uint64_t mask)
{
	(void)src, (void)mask;
	return 0;
}

/* ---- events ---- */

/* The event at @p, with its name or NULL. Returns its whole length, or 0 if there is none. */
static size_t event_at(const char *p, size_t left, struct inotify_event *e, const char **name)
{
	if (left < sizeof(*e))
		return 0;
	memcpy(e, p, sizeof(*e));
	if (e->len > left - sizeof(*e))
		return 0;
	*name = e->len && memchr(p + sizeof(*e), '\0', e->len) ? p + sizeof(*e) : NULL;
	return sizeof(*e) + e->len;
}

/* Where in @buf the second half of the rename with this cookie is; -1: not there; -2: nor will it be. */
static ssize_t find_half(const char *buf, size_t n, uint32_t cookie)
{
	struct inotify_event e;
	const char *name;
	size_t at = 0, len;
	for (int i = 0; (len = event_at(buf + at, n - at, &e, &name)); i++, at += len) {
		if (i >= PAIR_WITHIN)
			return -2;
		if (e.mask & IN_MOVED_TO && e.cookie == cookie)
			return (ssize_t)at;
	}
	return -1;
}

/* The second half of a rename that was begun, or which directory it was, or the name of one that is gone. */
static bool more(const char *buf, size_t n)
{
	struct inotify_event e = {0};
	const char *name;
	size_t at = 0, len;
	for (; (len = event_at(buf + at, n - at, &e, &name)); at += len)
		if (e.mask & IN_MOVED_FROM && find_half(buf + at + len, n - at - len, e.cookie) == -1)
			return true;
	return e.mask & IN_IGNORED || (e.mask & IN_MOVED_TO && e.mask & IN_ISDIR);
}

static uint64_t units(const char *buf, size_t n)
{
	(void)buf;
	return n;
}

/* The root is deleted: its own watch stays silent, because it is open here. Its parent's does not. */
static void look_at_root(struct source *s, uint64_t when, struct sl_changes *out)
{
	struct stat st;
	if (s->deleted || fstat(s->s.root_fd, &st) < 0 || st.st_nlink > 0)
		return;
	struct sl_change *c = sl_changes_add(out);
	if (!c)
		return;
	s->deleted = true;
	*c = (struct sl_change){
	    .mask = FAN_DELETE_SELF | FAN_ONDIR, .dir = s->root.id, .child = s->root.id, .when = when};
}

/* Watch where the root is now, for its deletion. May fail, where that may not be read. */
static void watch_parent(struct source *s)
{
	if (s->parent_wd >= 0)
		inotify_rm_watch(s->s.fd, s->parent_wd);
	_cleanup_close_ int fd = openat(s->s.root_fd, "..", O_PATH | O_DIRECTORY | O_CLOEXEC);
	s->parent_wd = fd < 0 ? -1 : add_watch(s, fd, IN_DELETE | IN_MASK_CREATE);
}

/* Tell the root's own events, with the lock. */
static void root_event(struct source *s, const struct inotify_event *e, uint64_t when, struct sl_changes *out)
{
	uint64_t mask = e->mask & (IN_ATTRIB | IN_MOVE_SELF | SL_CHANGE_USE);
	if (e->mask & IN_MOVE_SELF)
		watch_parent(s);
	struct sl_change *c = mask ? sl_changes_add(out) : NULL;
	if (c)
		*c = (struct sl_change){
		    .mask = mask | FAN_ONDIR, .dir = s->root.id, .child = s->root.id, .when = when};
}

/* A marked directory is gone. That comes just before the deletion of its name, which then says which it was;
 * or by itself, when nobody has it open any more, or another was renamed over it. */
static void deleted(struct source *s, const struct watch *w, const char *rest, size_t n, uint64_t when,
		    struct sl_changes *out, struct sl_evid *which)
{
	struct inotify_event e;
	const char *name;
	struct watch *up = event_at(rest, n, &e, &name) ? by_wd(s, e.wd) : NULL;
	if (up && up->count && name && e.mask & IN_DELETE && e.mask & IN_ISDIR) {
		*which = w->id;
		return;
	}
	struct sl_change *c = sl_changes_add(out);
	if (c)
		*c = (struct sl_change){
		    .mask = FAN_DELETE_SELF | FAN_ONDIR, .dir = w->id, .child = w->id, .when = when};
}

/* Directories are renamed one after the other. */
static void name_child(struct source *s, char *rest, size_t n, struct sl_change *c)
{
	struct inotify_event e;
	const char *name;
	size_t at = 0, len;
	for (int i = 0; i < SELF_WITHIN && (len = event_at(rest + at, n - at, &e, &name)); i++, at += len) {
		struct watch *w = by_wd(s, e.wd);
		if (e.mask & IN_ISDIR && e.mask & (IN_MOVED_FROM | IN_MOVED_TO))
			return;
		if (!(e.mask & IN_MOVE_SELF) || !w)
			continue;
		c->child = w->id;
		e.wd = -1; /* told: what is left of it has no watch */
		memcpy(rest + at, &e, sizeof(e));
		return;
	}
}

/* @c is a half of a rename: make it all of it if it is the first, and the second one is in @rest and has a
 * watch. */
static void join_halves(struct source *s, char *rest, size_t n, uint32_t cookie, struct sl_change *c)
{
	struct inotify_event e;
	const char *name;
	ssize_t at = c->mask & FAN_MOVED_FROM ? find_half(rest, n, cookie) : -1;
	size_t len = at < 0 ? 0 : event_at(rest + at, n - (size_t)at, &e, &name);
	struct watch *w = len ? by_wd(s, e.wd) : NULL;
	if (w && w->count && name) {
		c->mask = FAN_RENAME | (c->mask & FAN_ONDIR);
		c->newdir = w->id;
		c->newname = name;
		e.wd = -1;
		memcpy(rest + at, &e, sizeof(e));
		rest += (size_t)at + len;
		n -= (size_t)at + len;
	}
	if (c->mask & FAN_ONDIR)
		name_child(s, rest, n, c);
}

static void parse(struct sl_source *src, char *buf, size_t n, uint64_t when, struct sl_changes *out)
{
	struct source *s = of(src);
	struct inotify_event e;
	const char *name;
	size_t at = 0, len;
	struct sl_evid gone = {0}; /* the next event is its deletion */

	pthread_mutex_lock(&s->lock);
	for (; (len = event_at(buf + at, n - at, &e, &name)); at += len) {
		struct watch *w = by_wd(s, e.wd);
		if (e.mask & IN_Q_OVERFLOW) {
			struct sl_change *c = sl_changes_add(out);
			if (c)
				*c = (struct sl_change){.mask = FAN_Q_OVERFLOW, .when = when};
			look_at_root(s, when, out);
			continue;
		}
		if (e.wd == s->parent_wd)
			look_at_root(s, when, out);
		if (!w)
			continue;
		if (!name) {
			if (w == &s->root)
				root_event(s, &e, when, out);
			else if (e.mask & IN_IGNORED && w->count)
				deleted(s, w, buf + at + len, n - at - len, when, out, &gone);
			continue;
		}
		struct sl_change *c = w->count ? sl_changes_add(out) : NULL;
		if (!c)
			continue;
		*c = (struct sl_change){.mask = e.mask & (SL_CHANGE_MASK | SL_CHANGE_USE | FAN_ONDIR),
					.dir = w->id,
					.name = name,
					.when = when};
		if (e.mask & (IN_MOVED_FROM | IN_MOVED_TO))
			join_halves(s, buf + at + len, n - at - len, e.cookie, c);
		if (e.mask & IN_DELETE)
			c->child = gone;
		gone = (struct sl_evid){0};
	}
	if (at < n) { /* not understood: as good as lost */
		struct sl_change *c = sl_changes_add(out);
		if (c)
			*c = (struct sl_change){.mask = FAN_Q_OVERFLOW, .when = when};
	}
	pthread_mutex_unlock(&s->lock);
}

/* ---- */

static void close_source(struct sl_source *src)
{
	struct source *s = of(src);
	size_t i;
	struct sl_hnode *next;
	for (struct sl_hnode *h = sl_htab_first(&s->by_wd, &i); h; h = next) {
		struct watch *w = sl_container_of(h, struct watch, by_wd);
		next = sl_htab_step(&s->by_wd, &i, h);
		if (w != &s->root)
			free(w);
	}
	sl_htab_fini(&s->by_wd);
	sl_htab_fini(&s->by_id);
	sl_closep(&s->s.fd);
	pthread_mutex_destroy(&s->lock);
	free(s);
}

static int watch_root(struct source *s, char **why)
{
	struct stat st;
	if (fstat(s->s.root_fd, &st) < 0)
		return sl_fail(why, -errno, "the tree's root: %s", strerror(errno));
	s->s.root = s->root.id =
	    (struct sl_evid){.generation = sl_handle_generation(s->s.root_fd, ""), .ino = st.st_ino};
	int wd = add_watch(s, s->s.root_fd, SELF_MASK);
	if (wd == -ENOSPC)
		return sl_fail(why, wd,
			       "no directory can be watched for changes: this user has as many watches as "
			       "fs.inotify.max_user_watches allows");
	if (wd < 0)
		return sl_fail(why, wd, "watching the tree's root: %s", strerror(-wd));
	watch_parent(s);
	return sl_htab_add(&s->by_wd, &s->root.by_wd, (uint64_t)wd);
}

static int open_source(const struct sl_backend_config *cfg, struct sl_source **ret, char **why)
{
	struct source *s = calloc(1, sizeof(*s));
	if (!s)
		return sl_fail(why, -ENOMEM, "no memory");
	s->s.ops = &sl_inotify_source;
	s->s.root_fd = cfg->root_fd;
	s->max_marks = cfg->max_marks;
	s->parent_wd = -1;
	pthread_mutex_init(&s->lock, NULL);
	s->s.fd = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
	int r = s->s.fd >= 0 ? watch_root(s, why)
		: errno == EMFILE
		    ? sl_fail(why, -EMFILE,
			      "too many inotify instances (fs.inotify.max_user_instances) or open files")
		    : sl_fail(why, -errno, "inotify: %s", strerror(errno));
	if (r < 0)
		close_source(&s->s);
	else
		*ret = &s->s;
	return r;
}

const struct sl_source_ops sl_inotify_source = {
    .kind = SL_BACKEND_INOTIFY,
    .limit = "fs.inotify.max_queued_events",
    .room = ROOM,
    .open = open_source,
    .close = close_source,
    .units = units,
    .more = more,
    .parse = parse,
    .mark = mark,
    .unmark = unmark,
    .use = use,
};
