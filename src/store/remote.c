/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "store/remote.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>

#include "base/log.h"
#include "store/internal.h"
#include "store/walk.h"

/* Looking for the first name of what gets a second one is bounded: objects in memory, names in its directory.
 */
#define OBJECTS_MAX  16384
#define SIBLINGS_MAX 4096
#define MAKING	     "making" /* in the staging directory, for one at a time */

static bool is_version(struct sl_object *o, const struct sl_version *v)
{
	pthread_mutex_lock(&o->lock);
	const struct sl_version *h = &o->rec.origin;
	/* An inode number may not be known yet. */
	bool same = o->has_record && sl_object_is_reg(o) &&
		    (sl_version_same_object(h, v) || (!h->ino && h->generation == v->generation)) &&
		    !(o->rec.flags & (SL_LOCAL | SL_MODIFIED | SL_MOVED));
	pthread_mutex_unlock(&o->lock);
	return same;
}

/* In memory: what the kernel knows, usually. */
struct search {
	const struct sl_version *v;
	struct sl_object *found;
};

static int match(void *arg, const char *path, struct sl_object *o, int err)
{
	struct search *x = arg;
	(void)path;
	(void)err;
	if (!x->found && is_version(o, x->v))
		x->found = sl_object_ref(o);
	return 0;
}

static struct sl_object *find_sibling(struct sl_object *dir, const struct sl_version *v)
{
	struct sl_store *s = dir->store;
	struct sl_name *names = NULL;
	size_t n = 0;
	struct search x = {.v = v};
	pthread_mutex_lock(&s->table_lock);
	bool few = s->table.n <= OBJECTS_MAX;
	pthread_mutex_unlock(&s->table_lock);
	if (few)
		sl_objects_each(s, match, &x);
	if (x.found || sl_names_read(dir, &names, &n) < 0)
		return x.found;
	for (size_t i = 0; i < n && n <= SIBLINGS_MAX && !x.found; i++) {
		_cleanup_object_ struct sl_object *o = NULL;
		if (names[i].type == DT_REG && sl_object_lookup(dir, names[i].name, &o) == 0)
			(void)match(&x, NULL, o, 0);
	}
	sl_names_free(names, n);
	return x.found;
}

int sl_remote_join(struct sl_object *o, const struct sl_attr *a)
{
	struct sl_store *s = o->store;
	struct sl_version v = sl_attr_version(a);
	char key[SL_LINK_KEY_MAX], p[SL_PROC_FD_MAX];
	struct stat st;
	bool there = fstatat(s->links_fd, sl_link_key(&v, key), &st, AT_SYMLINK_NOFOLLOW) == 0;
	if (there && st.st_ino != sl_object_ino(o))
		return -EEXIST;
	pthread_mutex_lock(&o->lock);
	bool done = there && o->rec.flags & SL_LINKED; /* else a service died in between */
	pthread_mutex_unlock(&o->lock);
	if (done)
		return 0;
	_cleanup_close_ int fd = there ? -EBADF : sl_object_pin(o);
	if (!there && fd < 0)
		return fd;
	if (!there && linkat(AT_FDCWD, sl_proc_fd_path(p, fd, NULL), s->links_fd, key, AT_SYMLINK_FOLLOW) < 0)
		return -errno;
	pthread_mutex_lock(&o->lock);
	o->rec.flags |= SL_LINKED;
	o->rec.nlink = a->nlink;
	o->rec.origin.ino = v.ino;
	int r = sl_object_save(o);
	if (r < 0) {
		o->rec.flags &= (uint16_t)~SL_LINKED;
		unlinkat(s->links_fd, key, 0);
	}
	pthread_mutex_unlock(&o->lock);
	return r;
}

bool sl_remote_alone(struct sl_object *o)
{
	char key[SL_LINK_KEY_MAX];
	struct stat st;
	pthread_mutex_lock(&o->lock);
	bool linked = o->rec.flags & SL_LINKED && !(o->rec.flags & SL_LOCAL);
	sl_link_key(&o->rec.origin, key);
	pthread_mutex_unlock(&o->lock);
	return linked && fstatat(o->store->links_fd, key, &st, AT_SYMLINK_NOFOLLOW) == 0 && st.st_nlink == 2;
}

bool sl_remote_twin(struct sl_object *o)
{
	char key[SL_LINK_KEY_MAX];
	struct stat st;
	pthread_mutex_lock(&o->lock);
	bool may = sl_object_is_reg(o) && o->has_record && !(o->rec.flags & (SL_LOCAL | SL_MODIFIED));
	sl_link_key(&o->rec.origin, key);
	pthread_mutex_unlock(&o->lock);
	return may && fstatat(o->store->links_fd, key, &st, AT_SYMLINK_NOFOLLOW) == 0 &&
	       st.st_ino != sl_object_ino(o);
}

/*
 * The origin gave a second name to a file that had one: the index of links does not know it yet. Where its
 * first name can be found it is entered now; else the names are two objects until the replay has found it.
 */
static void index_sibling(struct sl_object *dir, const struct sl_attr *a)
{
	struct sl_version v = sl_attr_version(a);
	char key[SL_LINK_KEY_MAX];
	if (faccessat(dir->store->links_fd, sl_link_key(&v, key), F_OK, AT_SYMLINK_NOFOLLOW) == 0)
		return;
	_cleanup_object_ struct sl_object *o = find_sibling(dir, &v);
	if (o)
		(void)sl_remote_join(o, a);
}

static bool is_free(int dirfd, const char *name)
{
	if (faccessat(dirfd, name, F_OK, AT_SYMLINK_NOFOLLOW) < 0)
		return true;
	errno = EEXIST;
	return false;
}

/*
 * In the tree it appears with all that belongs to it: what has no record there counts as made here, also when
 * the service dies half-way.
 */
static int make_whole(struct sl_object *dir, int dirfd, const char *name, const struct sl_attr *a,
		      const char *target)
{
	_cleanup_close_ int stage = sl_store_stage(dir->store);
	if (stage < 0)
		return stage;
	int r = sl_placeholder_make(dir, stage, MAKING, a, target);
	bool done = r == 0 &&
		    (renameat2(stage, MAKING, dirfd, name, RENAME_NOREPLACE) == 0 ||
		     /* Not every filesystem knows that. */
		     (errno == EINVAL && is_free(dirfd, name) && renameat(stage, MAKING, dirfd, name) == 0));
	if (r == 0 && !done) {
		r = -errno;
		(void)sl_remove_tree(stage, MAKING);
	}
	return r;
}

int sl_remote_make(struct sl_object *dir, const char *name, const struct sl_attr *a, const char *target,
		   struct sl_object **ret)
{
	_cleanup_close_ int fd = sl_object_open_dir(dir);
	bool linked = S_ISREG(a->mode) && a->nlink > 1;
	if (fd < 0)
		return fd;
	if (linked)
		index_sibling(dir, a);
	int r = make_whole(dir, fd, name, a, target);
	if (r == 0)
		r = sl_object_lookup(dir, name, ret);
	if (r < 0 || !linked)
		return r;
	pthread_mutex_lock(&(*ret)->lock);
	if ((*ret)->rec.flags & SL_LINKED && (*ret)->rec.nlink != a->nlink) {
		(*ret)->rec.nlink = a->nlink;
		r = sl_object_save(*ret);
	}
	pthread_mutex_unlock(&(*ret)->lock);
	return r;
}

int sl_remote_clear(struct sl_object *dir, void (*gone)(void *arg, struct sl_object *o), void *arg)
{
	struct sl_name *names = NULL;
	size_t n = 0;
	int r = sl_names_read(dir, &names, &n);
	dir->leaving |= n > 0;
	for (size_t i = 0; i < n && r == 0; i++) {
		_cleanup_object_ struct sl_object *o = NULL;
		r = sl_object_lookup(dir, names[i].name, &o);
		if (r == 0 && sl_object_is_dir(o))
			r = sl_remote_clear(o, gone, arg);
		if (r == 0)
			r = sl_remote_unlink(dir, names[i].name, sl_object_is_dir(o));
		if (r == 0 && gone)
			gone(arg, o);
		if (r == -ENOENT)
			r = 0;
	}
	if (r < 0)
		dir->leaving = false; /* it stays, and is compared */
	sl_names_free(names, n);
	return r;
}

/* Of what has no record the whiteout of its name says so: see sl_object_adopt(). */
static bool made_here(struct sl_object *o)
{
	_cleanup_object_ struct sl_object *dir = sl_object_parent(o);
	pthread_rwlock_rdlock(&o->store->tree);
	_cleanup_free_ char *name = o->name ? strdup(o->name) : NULL;
	pthread_rwlock_unlock(&o->store->tree);
	return dir && name && sl_object_whiteout(dir, name);
}

static int kept(void *arg, const char *path, struct sl_object *o, int err)
{
	(void)arg;
	(void)path;
	(void)err;
	if (!o)
		return 0;
	pthread_mutex_lock(&o->lock);
	unsigned flags = o->rec.flags;
	bool recorded = o->has_record;
	pthread_mutex_unlock(&o->lock);
	if (flags & (SL_LOCAL | SL_MODIFIED | SL_WRITTEN | SL_MOVED))
		return -EEXIST;
	return !recorded && made_here(o) ? -EEXIST : 0;
}

bool sl_remote_kept(struct sl_object *o)
{
	return sl_walk(o, kept, NULL) == -EEXIST;
}

static bool has_names(struct sl_object *o)
{
	pthread_mutex_lock(&o->lock);
	bool full = o->rec.state == SL_FULL;
	pthread_mutex_unlock(&o->lock);
	return full;
}

static bool own_place(struct sl_object *o)
{
	pthread_mutex_lock(&o->lock);
	bool other = o->rec.flags & (SL_LOCAL | SL_MOVED) || o->damaged;
	pthread_mutex_unlock(&o->lock);
	return !other;
}

int sl_remote_find(struct sl_store *s, const char *place, struct sl_object **ret)
{
	struct sl_object *o = sl_object_ref(s->root);
	int r = 0;
	while (*place && r == 0) {
		size_t n = strcspn(place, "/");
		char name[256];
		struct sl_object *next = NULL;
		if (n == 0 || n > 255 || !sl_object_is_dir(o)) {
			r = -ENOENT;
		} else if (!has_names(o)) {
			r = -ENODATA;
		} else {
			memcpy(name, place, n);
			name[n] = '\0';
			r = sl_object_lookup(o, name, &next);
			if (r == 0 && !own_place(next))
				r = -ENOENT;
		}
		sl_object_put(o);
		o = next;
		place += n + (place[n] == '/');
	}
	if (r < 0)
		sl_object_put(o);
	else
		*ret = o;
	return r;
}

int sl_remote_staging(struct sl_store *s, struct sl_object **ret)
{
	int r = sl_remove_tree(s->base_fd, SL_STAGING);
	if (r < 0 && r != -ENOENT)
		sl_warn("what an earlier service left in %s: %s", SL_STAGING, strerror(-r));
	if (mkdirat(s->base_fd, SL_STAGING, 0700) < 0 && errno != EEXIST)
		return -errno;
	int fd = openat(s->base_fd, SL_STAGING, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	return fd < 0 ? -errno : sl_object_new_pinned(s, fd, ret);
}
