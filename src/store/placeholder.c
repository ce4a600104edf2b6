/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Placeholders: objects of which the names and attributes have arrived. Their directory is not shown before
 * all of them are there. */
#include <assert.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/xattr.h>

#include "base/log.h"
#include "origin/origin.h"
#include "store/fs.h"
#include "store/internal.h"

#define BATCH 64 /* files that are open at once, of each thread */

/* Permissions that the store's own file gets: its owner must always get at it, nobody gets privilege from it.
 */
static mode_t store_mode(const struct sl_store *s, uint32_t mode)
{
	if (s->privileged)
		return mode & 07777;
	return (mode & 0777) | (S_ISDIR(mode) ? 0700 : 0600);
}

static struct sl_record make_record(const struct sl_attr *a)
{
	struct sl_record r = {.state = S_ISREG(a->mode) && a->size ? SL_COLD : SL_FULL,
			      .mode = a->mode,
			      .nlink = a->nlink,
			      .rdev = a->rdev,
			      .origin = sl_attr_version(a)};
	if (S_ISDIR(a->mode))
		r.state = SL_COLD;
	if (!a->no_xattrs && (S_ISREG(a->mode) || S_ISDIR(a->mode)))
		r.flags |= SL_XATTRS;
	if (S_ISREG(a->mode) && a->blocks < a->size / 512)
		r.flags |= SL_SPARSE;
	return r;
}

/* Where something is at the origin, for the record of a native store. */
struct at {
	char *place;
	uint32_t moves;
};

static void at_fini(struct at *at)
{
	free(at->place);
}

static int at_below(struct sl_object *dir, const char *name, struct at *at)
{
	return dir->store->native ? sl_place_below(dir, name, &at->place, &at->moves) : 0;
}

static int set_times(int dirfd, const char *name, const struct sl_attr *a)
{
	struct timespec ts[2] = {a->atime, a->mtime};
	return utimensat(dirfd, name, ts, AT_SYMLINK_NOFOLLOW) < 0 ? -errno : 0;
}

/* False where what is made in @dir has the right owner from the start, as most of root's has. NULL: in a
 * directory that hands on no group. */
static bool needs_owner(const struct sl_store *s, struct sl_object *dir, const struct sl_attr *a)
{
	if (!dir)
		return a->uid != s->uid || a->gid != s->gid;
	pthread_mutex_lock(&dir->lock);
	bool other_group = dir->rec.mode & S_ISGID;
	pthread_mutex_unlock(&dir->lock);
	return s->privileged && (other_group || a->uid != s->uid || a->gid != s->gid);
}

/*
 * Users may be in the tree: a name that was made is in the kernel's cache, and whoever knows it gets at it
 * without being asked about, although its directory is not filled yet. So what is made has no name before it
 * is whole.
 */
static bool whole(const struct sl_store *s)
{
	return s->stage_fd >= 0;
}

/* A regular file, through a descriptor: every step is one system call. */
static int open_new(struct sl_store *s, int dirfd, const char *name, const struct sl_attr *a)
{
	mode_t mode = store_mode(s, a->mode);
	int fd = whole(s) ? openat(dirfd, ".", O_RDWR | O_TMPFILE | O_CLOEXEC, mode)
			  : openat(dirfd, name, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, mode);
	return fd < 0 ? -errno : fd;
}

/* It is all that it is to be: it gets its name, if it has none yet. */
static int show_file(struct sl_store *s, int fd, int dirfd, const char *name)
{
	return whole(s) ? sl_link_fd(fd, dirfd, name) : 0;
}

static int set_size(struct sl_store *s, int fd, const struct sl_attr *a)
{
	if (!S_ISREG(a->mode) || !a->size) /* else an empty file that stands in for a special one */
		return 0;
	int r = sl_armour(s, fd, 0, a->size);
	return r != -EOPNOTSUPP ? r : ftruncate(fd, (off_t)a->size) < 0 ? -errno : 0;
}

/* The record comes last: what has one is kept by the next attempt, if this one is killed. */
static int finish(struct sl_store *s, struct sl_object *dir, int fd, const struct sl_attr *a,
		  const struct sl_record *rec, const struct at *at)
{
	struct timespec ts[2] = {a->atime, a->mtime};
	if (needs_owner(s, dir, a) && fchown(fd, a->uid, a->gid) < 0)
		return -errno;
	if (a->mode & (S_ISUID | S_ISGID | S_ISVTX) && s->privileged && fchmod(fd, a->mode & 07777) < 0)
		return -errno;
	return futimens(fd, ts) < 0 ? -errno : sl_record_save_at(s, fd, "", rec, at->place, at->moves);
}

static int make_file(struct sl_store *s, struct sl_object *dir, int dirfd, const char *name,
		     const struct sl_attr *a, const struct sl_record *rec, const struct at *at)
{
	_cleanup_close_ int fd = open_new(s, dirfd, name, a);
	if (fd < 0)
		return fd;
	int r = set_size(s, fd, a);
	if (r == 0)
		r = finish(s, dir, fd, a, rec, at);
	if (r == 0)
		r = show_file(s, fd, dirfd, name);
	if (r < 0 && !whole(s))
		unlinkat(dirfd, name, 0);
	return r;
}

/* A name of its own in the staging directory. */
static const char *staged(struct sl_store *s, char name[32])
{
	snprintf(name, 32, SL_STAGED_NEW "%llu", (unsigned long long)s->nstaged++);
	return name;
}

static int make_other(struct sl_store *s, struct sl_object *dir, int dirfd, const char *name,
		      const struct sl_attr *a, const char *target, const struct sl_record *rec,
		      const struct at *at);

static int make_staged(struct sl_store *s, int dirfd, const char *name, const struct sl_attr *a,
		       const char *target, const struct sl_record *rec, const struct at *at)
{
	char tmp[32];
	int r = make_other(s, NULL, s->stage_fd, staged(s, tmp), a, target, rec, at);
	if (r == 0 && renameat2(s->stage_fd, tmp, dirfd, name, RENAME_NOREPLACE) < 0) {
		r = -errno;
		unlinkat(s->stage_fd, tmp, S_ISDIR(a->mode) ? AT_REMOVEDIR : 0);
	}
	return r;
}

static int make_other(struct sl_store *s, struct sl_object *dir, int dirfd, const char *name,
		      const struct sl_attr *a, const char *target, const struct sl_record *rec,
		      const struct at *at)
{
	int r = 0;
	if (whole(s) && dirfd != s->stage_fd)
		return make_staged(s, dirfd, name, a, target, rec, at);
	if (S_ISLNK(a->mode)) {
		if (symlinkat(target, dirfd, name) < 0)
			return -errno;
	} else if (S_ISDIR(a->mode)) {
		if (mkdirat(dirfd, name, store_mode(s, a->mode)) < 0)
			return -errno;
	} else {
		/* Devices are shown, not opened: they never need to be real. Unprivileged, special files have
		 * no record: stand-ins do. */
		bool device = S_ISCHR(a->mode) || S_ISBLK(a->mode);
		if (!s->privileged || (device && !s->native))
			return make_file(s, dir, dirfd, name, a, rec, at);
		/* In a native store it is what users see; the mount has `nodev`. */
		if (mknodat(dirfd, name, a->mode, device ? a->rdev : 0) < 0)
			return -errno;
	}
	if (needs_owner(s, dir, a) && fchownat(dirfd, name, a->uid, a->gid, AT_SYMLINK_NOFOLLOW) < 0)
		r = -errno;
	if (r == 0 && a->mode & (S_ISUID | S_ISGID | S_ISVTX) && s->privileged && !S_ISLNK(a->mode) &&
	    fchmodat(dirfd, name, a->mode & 07777, 0) < 0)
		r = -errno;
	if (r == 0)
		r = set_times(dirfd, name, a);
	if (r == 0 && (s->privileged || S_ISDIR(a->mode)))
		r = sl_record_save_at(s, dirfd, name, rec, at->place, at->moves);
	if (r == 0 && S_ISDIR(a->mode)) {
		struct stat st;
		if (fstatat(dirfd, name, &st, AT_SYMLINK_NOFOLLOW) == 0)
			sl_whiteout_drop_dir(s, st.st_ino);
	}
	if (r < 0)
		unlinkat(dirfd, name, S_ISDIR(a->mode) ? AT_REMOVEDIR : 0);
	return r;
}

/* @st is a file that the index knows by @v, or one that it does not know. */
static bool is_indexed(struct sl_store *s, const struct sl_version *v, const struct stat *st)
{
	struct stat in;
	return sl_links_stat(s, v, &in) < 0 || in.st_ino == st->st_ino;
}

/*
 * May what an interrupted attempt left at @name be taken away? Where names are lazy somebody may know it from
 * then, and have it open, or have changed it: of a mapping that is written to the kernel tells at its end
 * only. -EBUSY.
 */
static int may_take(struct sl_store *s, int dirfd, const char *name, const struct sl_record *rec,
		    const struct stat *st)
{
	if (!whole(s) || !S_ISREG(st->st_mode) || !S_ISREG(rec->mode))
		return 0;
	if ((uint64_t)st->st_size != rec->origin.size || !sl_time_eq(st->st_mtim, rec->origin.mtime))
		return -EBUSY;
	_cleanup_close_ int fd = openat(dirfd, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	return sl_only_opener(fd) == -EBUSY ? -EBUSY : 0;
}

/*
 * What stands where a placeholder is to be made was left by an interrupted attempt, or belongs to the user.
 * @linked: it is a file of several names. Returns 1 to keep it, 0 when it was removed, or -errno.
 */
static int clear_place(struct sl_store *s, int dirfd, const char *name, const struct sl_attr *a, bool linked)
{
	struct sl_record old;
	struct stat st;
	if (fstatat(dirfd, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
		return errno == ENOENT ? 0 : -errno;
	int r = sl_record_load_at(s, dirfd, name, &old, NULL, NULL, NULL);
	if (r == 0) {
		struct sl_version v = sl_attr_version(a);
		if (old.flags & (SL_LOCAL | SL_MODIFIED | SL_WRITTEN))
			return 1;
		if (sl_version_same_object(&old.origin, &v) && ((old.mode ^ a->mode) & S_IFMT) == 0 &&
		    (S_ISDIR(a->mode) || sl_version_eq(&old.origin, &v)) &&
		    (!linked || is_indexed(s, &v, &st)))
			return 1;
		if (S_ISDIR(old.mode) && old.state != SL_COLD)
			return 1; /* what is below may have been changed here */
		r = may_take(s, dirfd, name, &old, &st);
		if (r < 0)
			return r;
	} else if (r == -ENODATA && whole(s)) {
		return 1; /* nothing of ours is ever without */
	}
	return unlinkat(dirfd, name, S_ISDIR(st.st_mode) ? AT_REMOVEDIR : 0) < 0 ? -errno : 0;
}

int sl_placeholder_remove(struct sl_object *dir, int dirfd, const char *name)
{
	struct sl_record old;
	struct stat st;
	if (fstatat(dirfd, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
		return errno == ENOENT ? 0 : -errno;
	int r = sl_record_load_at(dir->store, dirfd, name, &old, NULL, NULL, NULL);
	if (r == 0 && (old.flags & (SL_LOCAL | SL_MODIFIED | SL_WRITTEN) ||
		       (S_ISDIR(old.mode) && old.state != SL_COLD)))
		return 0;
	if (r == -ENODATA && whole(dir->store))
		return 0;
	if (r == 0)
		r = may_take(dir->store, dirfd, name, &old, &st);
	if (r == -EBUSY)
		return r;
	return unlinkat(dirfd, name, S_ISDIR(st.st_mode) ? AT_REMOVEDIR : 0) < 0 ? -errno : 0;
}

int sl_placeholder_make(struct sl_object *dir, int dirfd, const char *name, const struct sl_attr *a,
			const char *target)
{
	struct sl_store *s = dir->store;
	if (S_ISLNK(a->mode) && (!target || !*target))
		return -EPROTO;
	/* Armour has an extent for each 48 MiB: a file can be too large for that, and its origin can lie
	 * about it. */
	if (s->native && S_ISREG(a->mode) && a->size > SL_ARMOUR_MAX)
		return -EFBIG;
	struct sl_record rec = make_record(a);
	bool linked = S_ISREG(a->mode) && a->nlink > 1;
	if (linked)
		rec.flags |= SL_LINKED;
	_cleanup_(at_fini) struct at at = {0};
	int q = at_below(dir, name, &at);
	if (q < 0)
		return q;
	_cleanup_(sl_links_end) struct sl_store *held = linked ? sl_links_begin(s) : NULL;

	for (int tries = 0; tries < 5; tries++) {
		int r = -ENOENT;
		if (linked) {
			r = sl_links_name(s, &rec.origin, a->nlink, dirfd, name);
			if (r == 0)
				return 0;
			if (r == -EMLINK) /* the origin's filesystem allows more: an object of its own */
				linked = false;
			else if (r != -ENOENT && r != -EEXIST)
				return r;
		}
		if (r != -EEXIST) {
			r = S_ISREG(a->mode) ? make_file(s, dir, dirfd, name, a, &rec, &at)
					     : make_other(s, dir, dirfd, name, a, target, &rec, &at);
			if (r == 0 && linked &&
			    (r = sl_links_add(s, &rec.origin, a->nlink, dirfd, name)) < 0) {
				unlinkat(dirfd, name, 0);
				/* Another directory with a name of the same file is being populated: it was
				 * faster, and what it made is the object. */
				if (r == -EEXIST)
					continue;
			}
		}
		if (r != -EEXIST)
			return r;
		r = clear_place(s, dirfd, name, a, linked);
		if (r < 0)
			return r;
		if (r == 1) {
			r = linked ? sl_links_add(s, &rec.origin, a->nlink, dirfd, name) : 0;
			return r == -EEXIST ? 0 : r;
		}
	}
	return -EEXIST;
}

int sl_placeholder_stage(struct sl_object *dir, const char *name, const struct sl_attr *a, const char *target,
			 int stage, const char *as)
{
	struct sl_store *s = dir->store;
	if (S_ISLNK(a->mode) && (!target || !*target))
		return -EPROTO;
	if (S_ISREG(a->mode) && a->size > SL_ARMOUR_MAX)
		return -EFBIG;
	struct sl_record rec = make_record(a);
	_cleanup_(at_fini) struct at at = {0};
	int r = at_below(dir, name, &at);
	if (r < 0)
		return r;
	return S_ISREG(a->mode) ? make_file(s, NULL, stage, as, a, &rec, &at)
				: make_other(s, NULL, stage, as, a, target, &rec, &at);
}

int sl_placeholder_tmpfile(struct sl_object *dir, const char *name, const struct sl_attr *a, int stage)
{
	struct sl_store *s = dir->store;
	if (a->size > SL_ARMOUR_MAX)
		return -EFBIG;
	struct sl_record rec = make_record(a);
	_cleanup_(at_fini) struct at at = {0};
	int r = at_below(dir, name, &at);
	_cleanup_close_ int fd =
	    r < 0 ? r : openat(stage, ".", O_RDWR | O_TMPFILE | O_CLOEXEC, store_mode(s, a->mode));
	if (fd < 0)
		return r < 0 ? r : -errno;
	r = set_size(s, fd, a);
	if (r == 0)
		r = finish(s, NULL, fd, a, &rec, &at);
	return r < 0 ? r : sl_steal_fd(&fd);
}

int sl_placeholder_adopt(struct sl_object *dir, int dirfd, const char *name, const struct sl_attr *a,
			 bool lazy)
{
	struct sl_store *s = dir->store;
	struct sl_record rec = make_record(a);
	_cleanup_(at_fini) struct at at = {0};
	_Alignas(struct file_handle) char room[SL_HANDLE_ROOM];
	uint8_t b[SL_PLACED_MAX];
	struct sl_handle h;
	if (!lazy) {
		rec.state = SL_FULL;
		rec.origin.ctime = (struct timespec){0}; /* what is in it is not known yet */
	}
	int r = at_below(dir, name, &at);
	if (r == 0)
		r = sl_handle_get(dirfd, name, &h);
	if (r < 0)
		return r;
	size_t n = sl_record_encode_placed(&rec, sl_handle_hash(&h), at.place, at.moves, b);
	/* Its watchers have heard of it. */
	r = n && s->invisible ? sl_xfs_set_attr(s->base_fd, sl_handle_raw(&h, room), "sluice", b, n)
			      : sl_record_save_at(s, dirfd, name, &rec, at.place, at.moves);
	if (r == 0)
		sl_object_recorded(s, dirfd, name);
	return r;
}

/*
 * Armour takes from the same blocks for all, under one lock of the filesystem. Threads that meet there wake
 * each other for every file, which takes longer than the rest; so one of them does it for many files while
 * the others create theirs.
 */
static int make_batch(struct sl_object *dir, int dirfd, const struct sl_oentry *v, size_t n, size_t *at)
{
	struct sl_store *s = dir->store;
	int fds[BATCH], r = 0;
	size_t opened;
	for (opened = 0; opened < n; opened++) {
		const struct sl_attr *a = &v[opened].attr;
		bool simple = S_ISREG(a->mode) && a->nlink <= 1;
		int fd = simple ? open_new(s, dirfd, v[opened].name, a) : -EEXIST;
		if (fd < 0 && fd != -EEXIST && r == 0) {
			r = fd;
			*at = opened;
			break;
		}
		fds[opened] = fd;
	}
	pthread_mutex_lock(&s->armour_lock);
	for (size_t i = 0; i < opened && r == 0; i++)
		if (fds[i] >= 0) {
			r = set_size(s, fds[i], &v[i].attr);
			*at = i;
		}
	pthread_mutex_unlock(&s->armour_lock);
	for (size_t i = 0; i < opened; i++) {
		const struct sl_oentry *e = &v[i];
		int q = r;
		if (fds[i] < 0) { /* the long way */
			if (r == 0)
				r = sl_placeholder_make(dir, dirfd, e->name, &e->attr, e->target);
			*at = r < 0 && q == 0 ? i : *at;
			continue;
		}
		if (r == 0) {
			struct sl_record rec = make_record(&e->attr);
			_cleanup_(at_fini) struct at place = {0};
			r = at_below(dir, e->name, &place);
			if (r == 0)
				r = finish(s, dir, fds[i], &e->attr, &rec, &place);
			if (r == 0)
				r = show_file(s, fds[i], dirfd, e->name);
			if (r == -EEXIST) /* the long way */
				r = sl_placeholder_make(dir, dirfd, e->name, &e->attr, e->target);
			*at = r < 0 ? i : *at;
		}
		close(fds[i]);
		if (r < 0 && !whole(s))
			unlinkat(dirfd, e->name, 0);
	}
	return r;
}

int sl_placeholder_make_all(struct sl_object *dir, int dirfd, const struct sl_oentry *v, size_t n, size_t *at)
{
	int r = 0;
	for (size_t i = 0; i < n && r == 0; i += BATCH) {
		size_t k = 0;
		r = make_batch(dir, dirfd, v + i, SL_MIN(n - i, (size_t)BATCH), &k);
		*at = i + k;
	}
	return r;
}

int sl_placeholder_hide(struct sl_object *dir, int dirfd, const struct sl_oentry *e, char hidden[32],
			struct sl_object **ret)
{
	struct sl_store *s = dir->store;
	struct stat st;
	if (!whole(s) || fstatat(dirfd, e->name, &st, AT_SYMLINK_NOFOLLOW) == 0)
		return -EEXIST;
	int r = sl_placeholder_stage(dir, e->name, &e->attr, e->target, s->stage_fd, staged(s, hidden));
	if (r < 0)
		return r;
	_cleanup_close_ int fd = openat(s->stage_fd, hidden, O_PATH | O_NOFOLLOW | O_CLOEXEC);
	r = fd < 0 ? -errno : sl_object_of_fd(s, fd, ret);
	if (r < 0)
		sl_placeholder_discard(s, hidden);
	return r;
}

int sl_placeholder_show(struct sl_object *dir, int dirfd, const struct sl_oentry *e, const char *hidden)
{
	struct sl_store *s = dir->store;
	bool linked = S_ISREG(e->attr.mode) && e->attr.nlink > 1;
	struct sl_version v = sl_attr_version(&e->attr);
	_cleanup_(sl_links_end) struct sl_store *held = linked ? sl_links_begin(s) : NULL;
	/* Another name of it may have come meanwhile. */
	int r = linked ? sl_links_name(s, &v, e->attr.nlink, dirfd, e->name) : -ENOENT;
	if (r == -ENOENT || r == -EMLINK) {
		r = renameat2(s->stage_fd, hidden, dirfd, e->name, RENAME_NOREPLACE) < 0 ? -errno : 0;
		if (r == 0 && linked)
			r = sl_links_add(s, &v, e->attr.nlink, dirfd, e->name);
		if (r != -EEXIST)
			return r;
		r = 0;
	}
	sl_placeholder_discard(s, hidden);
	return r;
}

void sl_placeholder_discard(struct sl_store *s, const char *hidden)
{
	(void)sl_remove_tree(s->stage_fd, hidden);
}

int sl_placeholder_populated(struct sl_object *dir, const struct sl_attr *a, struct timespec mtime)
{
	pthread_mutex_lock(&dir->lock);
	struct sl_record old = dir->rec;
	dir->rec.state = SL_FULL;
	dir->rec.origin = sl_attr_version(a);
	/* Another directory may be at its place by now; that it came there is another change. */
	if (old.origin.ino) {
		dir->rec.origin.ino = old.origin.ino;
		dir->rec.origin.generation = old.origin.generation;
	}
	int r = sl_object_restore_mtime(dir, &mtime);
	if (r == 0)
		r = sl_object_save(dir);
	if (r < 0)
		dir->rec = old;
	pthread_mutex_unlock(&dir->lock);
	return r;
}

int sl_placeholder_root(struct sl_store *s, const struct sl_attr *a)
{
	struct sl_object *o = s->root;
	int r = 0;
	pthread_mutex_lock(&o->lock);
	if (o->rec.origin.ino == 0) {
		struct sl_record rec = make_record(a);
		if (s->privileged &&
		    (fchown(s->tree_fd, a->uid, a->gid) < 0 || fchmod(s->tree_fd, a->mode & 07777) < 0))
			r = -errno;
		struct timespec ts[2] = {a->atime, a->mtime};
		if (r == 0 && s->native && futimens(s->tree_fd, ts) < 0)
			r = -errno;
		if (r == 0) {
			struct sl_record old = o->rec;
			o->rec = rec;
			r = sl_object_save(o);
			if (r < 0)
				o->rec = old;
		}
	}
	pthread_mutex_unlock(&o->lock);
	return r;
}
