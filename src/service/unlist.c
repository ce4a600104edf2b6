/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * In this order, for some directories at a time, those below before those above:
 *
 *   compare  what is here is what the origin has, and nothing else; nobody uses any of it
 *   hold     who wants names waits, and the ignore mark goes, so everybody asks; for a moment (GRACE_NS)
 *            those who had been let through go on. Then all must be as it was. Nothing waits for the origin
 *            while others wait for us
 *   move     the record says unpopulated; the names go to where nobody finds them
 *   verify   now that nobody can come to them: still the same, and not in use?
 *   drop     they are removed; or all of them come back, and the record says populated
 *   release  who waits goes on, or makes the names come
 *
 * A service that is killed before the record is written has done nothing; afterwards the directory is
 * unpopulated, and what was moved comes back (sl_unlist_undo()), as what an interrupted listing left.
 */
#include "service/unlist.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <xxhash.h>

#include "base/log.h"
#include "base/time.h"
#include "gate/fanotify/users.h"
#include "store/walk.h"
#include "store/xattr.h"

#define BATCH	 256  /* directories that are held at a time */
#define NAMES	 4096 /* that they have together: so long takes what others wait for. At least one directory */
#define GRACE_NS (200 * SL_NS_PER_MS) /* from "nothing has to be asked" to having looked, generously */
#define STAYS	 1

/* A name of it, and what the origin has there. */
struct name {
	struct sl_object *o;
	const struct sl_oentry *e;
	uint64_t xattrs; /* see xattrs_of() */
	bool held;
};

struct victim {
	struct sl_object *dir;
	char *place;
	struct sl_oreq list;
	struct batch *b;
	bool asked, same, held;
	int fd, box;
	struct stat before; /* its times */
	struct name *v;	    /* that were moved */
	size_t n;
};

struct batch {
	struct sl_clone *c;
	struct victim v[BATCH];
	size_t n;
	int stage;
	struct fsxattr made; /* flags and project of what is made in the stage, as all is */
	pthread_mutex_t lock;
	pthread_cond_t cond;
	size_t asked; /* listings under way */
};

/* ---- where names are moved ---- */

#define BOX SL_STAGED_EVICTED

/* For the names of the directory with this handle. */
static char *box_name(const struct sl_handle *h, char buf[80])
{
	int n = snprintf(buf, 80, BOX "%x.", (unsigned)h->type);
	for (uint32_t i = 0; i < h->len; i++)
		n += snprintf(buf + n, 80 - (size_t)n, "%02x", h->b[i]);
	return buf;
}

static bool box_handle(const char *name, struct sl_handle *h)
{
	unsigned type, byte;
	int at = 0;
	*h = (struct sl_handle){0};
	if (sscanf(name, BOX "%x.%n", &type, &at) != 1 || !at)
		return false;
	h->type = (int)type;
	for (name += at; *name && h->len < SL_HANDLE_MAX && sscanf(name, "%2x", &byte) == 1; name += 2)
		h->b[h->len++] = (unsigned char)byte;
	return h->len;
}

static void keep_times(int fd, const struct stat *st)
{
	struct timespec ts[2] = {st->st_atim, st->st_mtim};
	(void)utimensat(fd, "", ts, AT_EMPTY_PATH);
}

/* Before its name goes: who has come to it nevertheless learns of that, from whichever service. */
static int set_evicted(struct sl_object *o, bool on)
{
	if (!sl_object_is_dir(o) && !sl_object_is_reg(o))
		return 0;
	pthread_mutex_lock(&o->lock);
	uint16_t was = o->rec.flags;
	o->rec.flags = on ? was | SL_EVICTED : (uint16_t)(was & ~SL_EVICTED);
	int r = o->rec.flags == was ? 0 : sl_object_save(o);
	if (r < 0)
		o->rec.flags = was;
	pthread_mutex_unlock(&o->lock);
	return r;
}

static void not_evicted(struct sl_store *s, int dir, const char *name)
{
	_cleanup_object_ struct sl_object *o = NULL;
	_cleanup_close_ int fd = openat(dir, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0 || sl_object_of_fd(s, fd, &o) < 0 || o->damaged || !o->has_record ||
	    set_evicted(o, false) < 0)
		sl_debug("the record of '%s' stays as it is", name);
}

static void undo_one(struct sl_store *s, int stage, const char *name)
{
	struct sl_handle h;
	struct stat st;
	struct dirent *e;
	_cleanup_close_ int to =
	    box_handle(name, &h) ? sl_handle_open(sl_store_tree_fd(s), &h, O_RDONLY | O_DIRECTORY) : -ESTALE;
	int box = openat(stage, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	DIR *d = box < 0 ? NULL : fdopendir(box);
	if (!d) {
		if (box >= 0)
			close(box);
		return;
	}
	bool known = to >= 0 && fstat(to, &st) == 0;
	while (known && (e = readdir(d))) {
		if (!sl_name_valid(e->d_name, strlen(e->d_name)))
			continue;
		if (renameat2(box, e->d_name, to, e->d_name, RENAME_NOREPLACE) < 0)
			sl_warn("'%s' is in the store, in staging/%s: %s", e->d_name, name, strerror(errno));
		else
			not_evicted(s, to, e->d_name);
	}
	if (known)
		keep_times(to, &st);
	closedir(d);
	if (unlinkat(stage, name, AT_REMOVEDIR) < 0)
		sl_warn("staging/%s in the store: %s", name, strerror(errno));
}

void sl_unlist_undo(struct sl_store *s)
{
	_cleanup_close_ int stage = sl_store_stage(s);
	int copy = stage < 0 ? -EBADF : openat(stage, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *d = copy < 0 ? NULL : fdopendir(copy);
	struct dirent *e;
	while (d && (e = readdir(d)))
		if (!strncmp(e->d_name, BOX, strlen(BOX)))
			undo_one(s, stage, e->d_name);
	if (d)
		closedir(d);
	else if (copy >= 0)
		close(copy);
}

/* ---- what is here against what the origin has ---- */

/* What extended attributes @o has, as one number; with @q: if they are those of the origin. 0 is an error. */
static uint64_t xattrs_of(struct sl_object *o, const struct sl_oreq *q)
{
	if (sl_xattr_list_all(o, NULL, 0) == 0) /* as most */
		return !q || q->nxattrs == 0;
	_cleanup_free_ char *names = malloc(65536), *value = malloc(65536);
	ssize_t n = names && value ? sl_xattr_list_all(o, names, 65536) : -ENOMEM;
	uint64_t sum = n < 0 ? 0 : 1;
	size_t k = 0;
	for (char *x = names; x && x < names + n; x += strlen(x) + 1, k++) {
		ssize_t len = sl_xattr_get(o, x, value, 65536);
		size_t i = 0;
		while (q && i < q->nxattrs && strcmp(q->xattrs[i].name, x) != 0)
			i++;
		if (len < 0 || (q && (i == q->nxattrs || (size_t)len != q->xattrs[i].len ||
				      memcmp(value, q->xattrs[i].value, (size_t)len) != 0)))
			return 0;
		/* In whatever order they are listed. */
		sum += XXH3_64bits_withSeed(value, (size_t)len, XXH3_64bits(x, strlen(x)));
	}
	return !sum || (q && k != q->nxattrs) ? 0 : sum;
}

static uint64_t xattrs_as_there(struct sl_clone *c, struct sl_object *o, const char *place,
				const struct sl_attr *a)
{
	struct sl_oreq q = {.op = SL_OREQ_XATTRS, .place = place};
	if (a->no_xattrs)
		return xattrs_of(o, &q);
	uint64_t sum = sl_origin_call(c->origin, &q) == 0 ? xattrs_of(o, &q) : 0;
	sl_oreq_fini(&q);
	return sum;
}

static bool same_attrs(const struct stat *st, const struct sl_attr *a)
{
	return st->st_mode == a->mode && st->st_uid == a->uid && st->st_gid == a->gid &&
	       sl_time_eq(st->st_mtim, a->mtime) &&
	       (!S_ISREG(st->st_mode) ||
		(st->st_nlink == 1 && a->nlink == 1 && (uint64_t)st->st_size == a->size));
}

/* Nothing but what a listing makes: no content, and nobody's change. */
static bool is_placeholder(struct sl_object *o, const struct sl_attr *a)
{
	const unsigned own = SL_PINNED | SL_MODIFIED | SL_META | SL_CONFLICT | SL_LOCAL | SL_LINKED |
			     SL_WRITTEN | SL_GONE | SL_MIXED | SL_UNTOLD | SL_RENEWED | SL_XATTRS;
	struct sl_version v = sl_attr_version(a);
	pthread_mutex_lock(&o->lock);
	const struct sl_record *rec = &o->rec;
	bool is = !o->damaged && o->has_record && !(rec->flags & own) && o->type == (a->mode & S_IFMT) &&
		  sl_version_same_object(&rec->origin, &v) && !o->opens;
	if (!sl_object_is_dir(o))
		is &= sl_version_eq(&rec->origin, &v) && !o->flight && !o->dirty && !o->evicting;
	if (sl_object_is_reg(o))
		is &= v.size == 0 || (rec->state == SL_COLD && !o->map.have && !o->unclaimed);
	pthread_mutex_unlock(&o->lock);
	return is;
}

/* How many names there are, or -errno. */
static ssize_t count_names(struct sl_object *dir)
{
	struct sl_name *v = NULL;
	size_t n = 0;
	int r = sl_names_read(dir, &v, &n);
	if (r < 0)
		return r;
	sl_names_free(v, n);
	return (ssize_t)n;
}

/* No names, also none that an interrupted listing has left. */
static bool is_empty(struct sl_object *o)
{
	pthread_mutex_lock(&o->lock);
	bool populated = o->rec.state == SL_FULL;
	pthread_mutex_unlock(&o->lock);
	return !populated && count_names(o) == 0;
}

static bool same(struct victim *v, const struct name *x)
{
	_cleanup_free_ char *own = NULL, *place = sl_path_join(v->place, x->e->name);
	struct stat st;
	return place && is_placeholder(x->o, &x->e->attr) && sl_object_place(x->o, &own) == 0 &&
	       !strcmp(own, place) && fstatat(v->fd, x->e->name, &st, AT_SYMLINK_NOFOLLOW) == 0 &&
	       st.st_ino == sl_object_ino(x->o) && same_attrs(&st, &x->e->attr);
}

static int by_name(const void *a, const void *b)
{
	return strcmp((*(const struct sl_oentry *const *)a)->name,
		      (*(const struct sl_oentry *const *)b)->name);
}

/* Fill v->v with all names, if they are the origin's: 0. STAYS, or -errno. */
static int compare(struct sl_clone *c, struct victim *v)
{
	struct sl_name *names = NULL;
	size_t n = 0;
	pthread_mutex_lock(&v->dir->lock);
	struct sl_version own = v->dir->rec.origin, there = sl_attr_version(&v->list.attr);
	pthread_mutex_unlock(&v->dir->lock);
	if (v->list.err || !sl_version_same_object(&own, &there))
		return STAYS;
	int r = sl_names_read(v->dir, &names, &n);
	if (r < 0)
		return r;
	const struct sl_oentry **sorted = reallocarray(NULL, n + 1, sizeof(*sorted));
	v->v = calloc(n + 1, sizeof(*v->v));
	r = !sorted || !v->v ? -ENOMEM : n != v->list.nentries ? STAYS : 0;
	for (size_t i = 0; r == 0 && i < n; i++)
		sorted[i] = &v->list.entries[i];
	if (r == 0 && n)
		qsort(sorted, n, sizeof(*sorted), by_name);
	for (size_t i = 0; r == 0 && i < n; i++) {
		struct sl_oentry key = {.name = names[i].name};
		const struct sl_oentry *k = &key, **e = bsearch(&k, sorted, n, sizeof(*sorted), by_name);
		struct name *x = &v->v[v->n];
		if (!e || sl_object_lookup(v->dir, key.name, &x->o) < 0) {
			r = STAYS;
			break;
		}
		x->e = *e;
		v->n++;
		_cleanup_free_ char *place = same(v, x) ? sl_path_join(v->place, key.name) : NULL;
		x->xattrs = place ? xattrs_as_there(c, x->o, place, &x->e->attr) : 0;
		r = x->xattrs ? 0 : STAYS;
	}
	free(sorted);
	sl_names_free(names, n);
	return r;
}

/* Held, and those below are done with. @u: who uses what. */
static bool still_same(struct victim *v, const struct sl_fan_users *u)
{
	if (sl_fan_users_has(u, sl_object_ino(v->dir)) || count_names(v->dir) != (ssize_t)v->n)
		return false;
	for (size_t i = 0; i < v->n; i++) {
		struct sl_object *o = v->v[i].o;
		if (sl_fan_users_has(u, sl_object_ino(o)) || !same(v, &v->v[i]) ||
		    (sl_object_is_dir(o) && !is_empty(o)))
			return false;
	}
	return true;
}

/* ---- moving ---- */

static int set_state(struct sl_object *dir, enum sl_state state)
{
	pthread_mutex_lock(&dir->lock);
	enum sl_state was = dir->rec.state;
	dir->rec.state = state;
	int r = sl_object_save(dir);
	if (r < 0)
		dir->rec.state = was;
	pthread_mutex_unlock(&dir->lock);
	return r;
}

/* Files are held as well: who opens one waits. -EBUSY: somebody is at it. */
static int hold_file(struct sl_clone *c, struct name *x)
{
	if (!sl_object_is_reg(x->o))
		return 0;
	pthread_mutex_lock(&x->o->lock);
	x->held = !x->o->evicting && !x->o->flight;
	x->o->evicting |= x->held;
	pthread_mutex_unlock(&x->o->lock);
	if (x->held)
		sl_fan_guard(c->fan, x->o);
	return x->held ? 0 : -EBUSY;
}

static void release_file(struct sl_clone *c, struct name *x)
{
	if (!x->held)
		return;
	pthread_mutex_lock(&x->o->lock);
	x->o->evicting = x->held = false;
	pthread_mutex_unlock(&x->o->lock);
	sl_fill_kick(c->fill, x->o); /* for who came meanwhile */
}

/* As many as were moved. */
static bool move_back(struct batch *b, struct victim *v)
{
	bool all = true;
	for (size_t i = 0; i < v->n; i++) {
		const char *name = v->v[i].e->name;
		/* It had not come that far; or the directory is no more, which is the same error. */
		if (renameat2(v->box, name, v->fd, name, RENAME_NOREPLACE) < 0 &&
		    (errno != ENOENT || faccessat(v->box, name, F_OK, AT_SYMLINK_NOFOLLOW) == 0)) {
			sl_err("'%s/%s' cannot be put back: %s", v->place, name, strerror(errno));
			all = false;
		}
		release_file(b->c, &v->v[i]);
	}
	return all;
}

static int move_out(struct batch *b, struct victim *v)
{
	char name[80];
	box_name(&v->dir->handle, name);
	int r = fstat(v->fd, &v->before) < 0 || mkdirat(b->stage, name, 0700) < 0 ? -errno : 0;
	if (r == 0) {
		v->box = openat(b->stage, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		r = v->box < 0 ? -errno : set_state(v->dir, SL_PARTIAL);
	}
	for (size_t i = 0; r == 0 && i < v->n; i++) {
		r = hold_file(b->c, &v->v[i]);
		if (r == 0 &&
		    renameat2(v->fd, v->v[i].e->name, v->box, v->v[i].e->name, RENAME_NOREPLACE) < 0)
			r = -errno;
	}
	/* Not what the user has set, nor the origin's: to move names is no change. */
	if (r == 0)
		keep_times(v->fd, &v->before);
	return r;
}

/* Those that users set (chattr), and that no listing brings again. */
#define FLAGS                                                                                                \
	(FS_XFLAG_IMMUTABLE | FS_XFLAG_APPEND | FS_XFLAG_SYNC | FS_XFLAG_NOATIME | FS_XFLAG_NODUMP |         \
	 FS_XFLAG_PROJINHERIT | FS_XFLAG_NODEFRAG | FS_XFLAG_DAX)

/* Nobody has the file open, in whatever way, or has given it, or the directory, flags or a project. */
static bool is_free(struct batch *b, struct sl_object *o)
{
	struct fsxattr x;
	_cleanup_close_ int fd = sl_object_open(o, O_RDONLY | O_NOATIME | O_NONBLOCK);
	if (fd < 0)
		return false;
	if (ioctl(fd, FS_IOC_FSGETXATTR, &x) == 0 &&
	    ((x.fsx_xflags ^ b->made.fsx_xflags) & FLAGS || x.fsx_projid != b->made.fsx_projid))
		return false;
	return sl_object_is_dir(o) || sl_only_opener(fd) == 0;
}

/* Nobody comes to them any more; who had come before is seen now. */
static bool unchanged(struct batch *b, struct victim *v, const struct sl_fan_users *u)
{
	if (count_names(v->dir) != 0)
		return false;
	for (size_t i = 0; i < v->n; i++) {
		struct sl_object *o = v->v[i].o;
		const struct sl_oentry *e = v->v[i].e;
		struct stat st;
		pthread_mutex_lock(&o->lock);
		bool busy = o->flight || (sl_object_is_dir(o) && o->rec.state == SL_FULL) ||
			    o->rec.flags & (SL_MODIFIED | SL_WRITTEN | SL_META | SL_PINNED);
		pthread_mutex_unlock(&o->lock);
		if (busy || sl_fan_users_has(u, sl_object_ino(o)) ||
		    fstatat(v->box, e->name, &st, AT_SYMLINK_NOFOLLOW) < 0 || !same_attrs(&st, &e->attr) ||
		    ((sl_object_is_reg(o) || sl_object_is_dir(o)) && !is_free(b, o)) ||
		    xattrs_of(o, NULL) != v->v[i].xattrs)
			return false;
	}
	return true;
}

/* They go. What does not is left in the directory, as an interrupted listing leaves names. */
static void drop(struct batch *b, struct victim *v, struct sl_unlist *u)
{
	for (size_t i = 0; i < v->n; i++) {
		struct sl_object *o = v->v[i].o;
		const char *name = v->v[i].e->name;
		/* It comes again with a listing, or is gone at the origin by then. */
		sl_object_forget_came(v->dir, name);
		if (set_evicted(o, true) == 0 &&
		    unlinkat(v->box, name, sl_object_is_dir(o) ? AT_REMOVEDIR : 0) == 0) {
			u->names++;
		} else {
			(void)renameat2(v->box, name, v->fd, name, RENAME_NOREPLACE);
			(void)set_evicted(o, false);
		}
		release_file(b->c, &v->v[i]);
	}
	if (set_state(v->dir, SL_COLD) < 0) /* "partial" is as good */
		sl_debug("a directory's record stays as it is");
	u->directories++;
}

static void put_back(struct batch *b, struct victim *v)
{
	if (v->box < 0) /* nothing was moved */
		return;
	if (move_back(b, v) && set_state(v->dir, SL_FULL) < 0)
		sl_warn("'%s' will be listed again", v->place);
	if (v->before.st_ino)
		keep_times(v->fd, &v->before);
}

/* ---- a batch ---- */

static void listed(struct sl_oreq *q)
{
	struct victim *v = sl_container_of(q, struct victim, list);
	struct batch *b = v->b;
	pthread_mutex_lock(&b->lock);
	b->asked--;
	pthread_cond_signal(&b->cond);
	pthread_mutex_unlock(&b->lock);
}

/* What nobody uses, and is as the origin has it. */
static void begin(struct batch *b, const struct sl_fan_users *u)
{
	for (size_t i = 0; i < b->n; i++) {
		struct victim *v = &b->v[i];
		if (sl_fan_users_has(u, sl_object_ino(v->dir)) || sl_object_place(v->dir, &v->place) < 0)
			continue;
		v->fd = sl_object_open_dir(v->dir);
		if (v->fd < 0)
			continue;
		v->b = b;
		v->asked = true;
		v->list =
		    (struct sl_oreq){.op = SL_OREQ_LIST, .place = v->place, .fresh = true, .done = listed};
		pthread_mutex_lock(&b->lock);
		b->asked++;
		pthread_mutex_unlock(&b->lock);
		sl_origin_submit(b->c->origin, &v->list);
	}
	pthread_mutex_lock(&b->lock);
	while (b->asked)
		pthread_cond_wait(&b->cond, &b->lock);
	pthread_mutex_unlock(&b->lock);
	for (size_t i = 0; i < b->n; i++) {
		struct victim *v = &b->v[i];
		v->same = v->asked && compare(b->c, v) == 0;
	}
}

static void hold(struct batch *b)
{
	bool any = false;
	for (size_t i = 0; i < b->n; i++) {
		struct victim *v = &b->v[i];
		v->held = v->same && sl_fill_hold_names(b->c->fill, v->dir) == 0;
		v->same = v->held && sl_fan_unlisted(b->c->fan, v->dir) == 0;
		any |= v->same;
	}
	if (any && sl_fan_let_run(GRACE_NS) < 0)
		for (size_t i = 0; i < b->n; i++)
			b->v[i].same = false;
}

static void end(struct batch *b, struct victim *v, bool stays, struct sl_unlist *u)
{
	char name[80];
	if (v->held) {
		sl_fill_release_names(b->c->fill, v->dir);
		struct sl_replay *p = b->c->replay;
		if (stays && p) /* events passed it by */
			sl_replay_look_into(p, v->dir);
	}
	pthread_mutex_lock(&v->dir->lock);
	u->kept += v->dir->rec.state == SL_FULL;
	pthread_mutex_unlock(&v->dir->lock);
	if (v->box >= 0) {
		close(v->box);
		if (unlinkat(b->stage, box_name(&v->dir->handle, name), AT_REMOVEDIR) < 0)
			sl_err("names of '%s' are in the store, in staging/%s: %s", v->place, name,
			       strerror(errno));
	}
	if (v->asked)
		sl_oreq_fini(&v->list);
	if (v->fd >= 0)
		close(v->fd);
	for (size_t i = 0; i < v->n; i++)
		sl_object_put(v->v[i].o);
	free(v->v);
	free(v->place);
	sl_object_put(v->dir);
}

static int run(struct batch *b, struct sl_unlist *u)
{
	struct sl_fan_users users = {0};
	bool out[BATCH] = {0}, gone[BATCH] = {0};
	int r = sl_fan_users_get(b->c->fan, &users);
	if (r == 0)
		begin(b, &users);
	sl_fan_users_fini(&users);
	sl_fill_lock_names(b->c->fill);
	if (r == 0)
		hold(b);
	if (r == 0)
		r = sl_fan_users_get(b->c->fan, &users);
	if (r == 0)
		r = sl_fan_settle(b->c->fan);
	for (size_t i = 0; r == 0 && i < b->n; i++) {
		struct victim *v = &b->v[i];
		if (!v->same || !still_same(v, &users))
			continue;
		out[i] = true;
		if (move_out(b, v) < 0) {
			put_back(b, v);
			out[i] = false;
		}
	}
	sl_fan_users_fini(&users);
	int q = r == 0 ? sl_fan_users_get(b->c->fan, &users) : r;
	if (q == 0)
		q = sl_fan_settle(b->c->fan);
	for (size_t i = 0; i < b->n; i++) {
		struct victim *v = &b->v[i];
		gone[i] = out[i] && q == 0 && unchanged(b, v, &users);
		if (gone[i])
			drop(b, v, u);
		else if (out[i])
			put_back(b, v);
	}
	sl_fill_unlock_names(b->c->fill);
	sl_fan_users_fini(&users);
	for (size_t i = 0; i < b->n; i++)
		end(b, &b->v[i], !gone[i], u);
	b->n = 0;
	return q;
}

/* ---- a tree ---- */

/* By handles: objects of all directories of a clone at once would be much memory. */
struct tree {
	struct sl_handle *v;
	size_t n, cap;
};

static int collect(void *arg, const char *path, struct sl_object *o, int err)
{
	struct tree *t = arg;
	(void)path, (void)err;
	if (!o || !sl_object_is_dir(o))
		return 0;
	pthread_mutex_lock(&o->lock);
	bool populated = o->has_record && !o->damaged && o->rec.state == SL_FULL;
	pthread_mutex_unlock(&o->lock);
	if (!populated)
		return 0;
	if (t->n == t->cap) {
		t->cap = t->cap ? t->cap * 2 : 64;
		struct sl_handle *v = reallocarray(t->v, t->cap, sizeof(*v));
		if (!v)
			return -ENOMEM;
		t->v = v;
	}
	t->v[t->n++] = o->handle;
	return 0;
}

/* The last one, as a new reference; NULL if it is gone. */
static struct sl_object *last(struct sl_store *s, const struct tree *t)
{
	struct sl_object *o = NULL;
	_cleanup_close_ int fd = sl_handle_open(sl_store_tree_fd(s), &t->v[t->n - 1], O_PATH | O_DIRECTORY);
	return fd >= 0 && sl_object_of_fd(s, fd, &o) == 0 ? o : NULL;
}

int sl_unlist(struct sl_clone *c, struct sl_object *dir, struct sl_unlist *u)
{
	struct tree t = {0};
	struct batch *b = calloc(1, sizeof(*b));
	if (!b)
		return -ENOMEM;
	b->c = c;
	b->stage = sl_store_stage(c->store);
	if (b->stage >= 0)
		(void)ioctl(b->stage, FS_IOC_FSGETXATTR,
			    &b->made); /* where there are none, none are compared */
	pthread_mutex_init(&b->lock, NULL);
	pthread_cond_init(&b->cond, NULL);
	int r = b->stage < 0 ? b->stage : sl_walk(dir, collect, &t);
	/* From the end: those below come first. */
	while (t.n && r == 0) {
		if (u->go_on && !u->go_on(u->arg)) {
			r = -EINTR;
			break;
		}
		for (ssize_t names = 0; t.n && b->n < BATCH; t.n--) {
			_cleanup_object_ struct sl_object *o = last(c->store, &t);
			if (!o)
				continue;
			names += SL_MAX(count_names(o), (ssize_t)0);
			if (b->n && names > NAMES)
				break;
			b->v[b->n++] = (struct victim){.dir = sl_steal_ptr(&o), .fd = -EBADF, .box = -EBADF};
		}
		r = run(b, u);
	}
	free(t.v);
	if (b->stage >= 0)
		close(b->stage);
	pthread_cond_destroy(&b->cond);
	pthread_mutex_destroy(&b->lock);
	free(b);
	return r;
}
