/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Objects in memory: found, made, and used. */
#include "store/object.h"

#include <assert.h>
#include <fcntl.h>

#include "base/log.h"
#include "store/fs.h"
#include "store/internal.h"

struct sl_object *sl_object_ref(struct sl_object *o)
{
	pthread_mutex_lock(&o->store->table_lock);
	o->refs++;
	pthread_mutex_unlock(&o->store->table_lock);
	return o;
}

static void object_free(struct sl_object *o)
{
	struct sl_store *s = o->store;
	pthread_mutex_lock(&s->fd_lock);
	if (o->dirfd >= 0) {
		assert(o->dirfd_users == 0);
		sl_list_del(&o->fd_link);
		close(o->dirfd);
		s->fd_count--;
	}
	pthread_mutex_unlock(&s->fd_lock);
	if (o->fd >= 0)
		close(o->fd);
	sl_chunkmap_fini(&o->map);
	pthread_mutex_destroy(&o->lock);
	pthread_rwlock_destroy(&o->io);
	free(o->streak[0]);
	free(o->streak[1]);
	free(o->orphan_place);
	free(o->place);
	free(o->name);
	free(o);
}

void sl_object_put(struct sl_object *o)
{
	while (o) {
		struct sl_store *s = o->store;
		pthread_mutex_lock(&s->table_lock);
		assert(o->refs > 0);
		bool last = --o->refs == 0;
		if (last && !o->replaced)
			sl_htab_del(&s->table, &o->node);
		pthread_mutex_unlock(&s->table_lock);
		if (!last)
			return;
		struct sl_object *parent = o->parent;
		object_free(o);
		o = parent; /* its child held a reference */
	}
}

struct sl_object *sl_object_root(struct sl_store *s)
{
	return s->root;
}

struct sl_object *sl_object_find(struct sl_store *s, uint64_t ino)
{
	pthread_mutex_lock(&s->table_lock);
	struct sl_hnode *h = sl_htab_find(&s->table, ino);
	struct sl_object *o = h ? sl_container_of(h, struct sl_object, node) : NULL;
	if (o)
		o->refs++;
	pthread_mutex_unlock(&s->table_lock);
	return o;
}

/*
 * Native: as sl_object_find(), for what has the handle @h. An object that is still in use although its file
 * is gone, and its inode number belongs to another one, is found no more.
 */
static struct sl_object *find_handle(struct sl_store *s, uint64_t ino, const struct sl_handle *h)
{
	pthread_mutex_lock(&s->table_lock);
	struct sl_hnode *n = sl_htab_find(&s->table, ino);
	struct sl_object *o = n ? sl_container_of(n, struct sl_object, node) : NULL;
	if (o && !sl_handle_eq(&o->handle, h)) {
		sl_htab_del(&s->table, &o->node);
		o->replaced = true;
		o = NULL;
	}
	if (o)
		o->refs++;
	pthread_mutex_unlock(&s->table_lock);
	return o;
}

static int map_load(struct sl_object *o, const struct sl_at *at)
{
	uint64_t size = o->rec.origin.size;
	if (o->rec.flags & (SL_MODIFIED | SL_LOCAL)) {
		sl_chunkmap_init(&o->map, 0, true); /* complete, whatever size it has now */
		return 0;
	}
	sl_chunkmap_init(&o->map, size, o->rec.state == SL_FULL);
	if (o->rec.state != SL_PARTIAL)
		return 0;
	uint8_t buf[SL_MAP_MAX_BYTES];
	ssize_t n = sl_at_getxattr(at, o->store->xattr_map, buf, sizeof(buf));
	int r = n < 0 ? (int)n : sl_chunkmap_load(&o->map, o->rec.chunk_shift, buf, (size_t)n);
	if (r < 0) {
		/* Nothing is lost with a map: what it said is fetched again. */
		sl_warn("%s: the chunk map is unreadable (%s), its content will be fetched again",
			o->name ? o->name : "/", strerror(-r));
		sl_chunkmap_fini(&o->map);
		sl_chunkmap_init(&o->map, size, false);
	}
	return 0;
}

/* A struct for what @at names and @st describes. The tree lock is held for reading. */
static int object_new(struct sl_store *s, struct sl_object *parent, const char *name, const struct sl_at *at,
		      const struct stat *st, struct sl_object **ret)
{
	struct sl_object *o = calloc(1, sizeof(*o));
	if (!o)
		return -ENOMEM;
	o->store = s;
	o->refs = 1;
	o->fd = o->dirfd = -EBADF;
	sl_list_init(&o->fd_link);
	sl_list_init(&o->dirty_link);
	pthread_mutex_init(&o->lock, NULL);
	pthread_rwlock_init(&o->io, NULL);

	int r = sl_record_load_at(s, at->fd, at->name, &o->rec, &o->handle, &o->place, &o->place_moves);
	o->has_record = r == 0;
	if (s->native)
		parent = NULL; /* it may have another one any time */
	if (r == -ENODATA) {
		/* Symlinks and special files of an unprivileged store have none; anything else was put there
		 * by somebody else, or by a crash between its making and its record: it is local, and
		 * complete. */
		bool plain = S_ISREG(st->st_mode) || S_ISDIR(st->st_mode);
		o->rec = (struct sl_record){
		    .state = SL_FULL, .mode = st->st_mode, .flags = plain ? SL_LOCAL | SL_MODIFIED : 0};
		uint64_t self;
		if (s->native && sl_at_getxattr(at, SL_XATTR_CONFLICT, &self, sizeof(self)) == sizeof(self) &&
		    self == sl_handle_hash(&o->handle))
			o->rec.flags |= SL_CONFLICT;
		r = 0;
	}
	/* Devices, and what the store's owner may not make, are stood in for by an empty file: the record has
	 * the type. */
	uint32_t want = o->rec.mode & S_IFMT, is = st->st_mode & S_IFMT;
	if (r == 0 && want != is && !(is == S_IFREG && want != S_IFDIR && want != S_IFLNK))
		r = -EBADMSG;
	if (s->root && (r == -EBADMSG || r == -EPROTONOSUPPORT)) {
		sl_err(
		    "record of '%s' in '%s' (inode %llu of the store): %s; it can be removed, and not used",
		    name ? name : "?", parent && parent->name ? parent->name : "/",
		    (unsigned long long)st->st_ino,
		    r == -EBADMSG ? "it is damaged" : "it was written by a newer version of sluice");
		o->damaged = r;
		o->rec = (struct sl_record){.mode = st->st_mode & S_IFMT};
		r = 0;
	}
	o->type = o->rec.mode & S_IFMT;
	o->local = o->rec.flags & SL_LOCAL;
	o->moved = o->rec.flags & SL_MOVED;
	o->place_gone = o->rec.flags & SL_GONE;
	if (r == 0 && S_ISREG(o->type))
		r = map_load(o, at);
	bool renewed = r == 0 && o->rec.flags & SL_RENEWED && !(o->rec.flags & SL_OURS);
	if (r == 0 && parent) {
		o->name = strdup(name);
		r = o->name ? 0 : -ENOMEM;
	}
	if (r < 0) {
		object_free(o);
		return r;
	}

	/* Who finds it in the table waits until it is what its record says. */
	if (renewed) {
		pthread_rwlock_wrlock(&o->io);
		pthread_mutex_lock(&o->lock);
	}
	struct sl_object *old = NULL;
	pthread_mutex_lock(&s->table_lock);
	struct sl_hnode *h = sl_htab_find(&s->table, st->st_ino);
	if (h) { /* another thread was faster, or another name of the same object is known */
		old = sl_container_of(h, struct sl_object, node);
		old->refs++;
	} else {
		r = sl_htab_add(&s->table, &o->node, st->st_ino);
	}
	if (!h && r == 0 && parent) {
		parent->refs++;
		o->parent = parent;
	}
	pthread_mutex_unlock(&s->table_lock);
	if (renewed) {
		/* Nobody may take what is half of one version and half of another for a user's. */
		if (!h && r == 0 && sl_object_end_renewal(o) < 0)
			o->damaged = -EIO;
		pthread_mutex_unlock(&o->lock);
		pthread_rwlock_unlock(&o->io);
	}
	if (h || r < 0) {
		object_free(o);
		*ret = old;
		return r;
	}
	*ret = o;
	return 0;
}

int sl_object_load_root(struct sl_store *s, struct sl_object **ret)
{
	struct sl_at at = {.store = s, .fd = s->tree_fd, .name = ""};
	struct stat st;
	if (fstat(s->tree_fd, &st) < 0)
		return -errno;
	return object_new(s, NULL, NULL, &at, &st, ret);
}

/* What users see of an object of which the store says @st. */
static void attr_of(struct sl_object *o, const struct stat *st, struct sl_attr *a)
{
	sl_attr_from_stat(st, 0, a);
	if (o->store->native)
		return; /* what users see is the file itself */
	pthread_mutex_lock(&o->lock);
	const struct sl_record *rec = &o->rec;
	if (o->has_record) {
		a->mode = rec->mode;
		a->rdev = rec->rdev;
		if (rec->flags & SL_LINKED) /* names that are here, without the index, or that there are */
			a->nlink = SL_MAX(rec->nlink, st->st_nlink ? (uint32_t)st->st_nlink - 1 : 0);
		if (!(rec->flags & (SL_MODIFIED | SL_META | SL_LOCAL))) {
			a->mtime = rec->origin.mtime;
			a->ctime = rec->origin.ctime;
		}
		if (S_ISREG(rec->mode) && !(rec->flags & (SL_MODIFIED | SL_LOCAL))) {
			a->size = rec->origin.size;
			/* A file of no blocks is zeros to tar and cp, who then do not read it. Sparse ones
			 * are marked as such by one page less: those programs then ask for the holes, and the
			 * gate answers that. */
			a->blocks = SL_DIV_UP(a->size, 512);
			if (rec->flags & SL_SPARSE && a->blocks > 8)
				a->blocks -= 8;
		} else if (!S_ISREG(rec->mode) && !S_ISDIR(rec->mode) && !S_ISLNK(rec->mode)) {
			a->size = 0;
			a->blocks = 0;
		}
	}
	if (o->damaged) {
		a->mode = o->type | 0777; /* so that who tries is told EIO */
		a->size = a->blocks = 0;
	}
	if (S_ISDIR(a->mode)) {
		/* What these say of the store's directory would change when names arrive: tar takes that for
		 * a change of the origin. */
		a->size = 4096;
		a->blocks = 8;
		a->nlink = 1; /* "not known": how many subdirectories it has may not be known yet */
	}
	pthread_mutex_unlock(&o->lock);
}

static int of_fd(struct sl_store *s, int fd, struct stat *st, struct sl_object **ret)
{
	struct sl_at at = {.store = s, .fd = fd, .name = ""};
	if (fstat(fd, st) < 0)
		return -errno;
	if (st->st_dev != s->dev)
		return -EXDEV; /* somebody mounted something inside the store */
	struct sl_handle h;
	int r = sl_handle_get(fd, "", &h);
	if (r < 0)
		return r;
	*ret = find_handle(s, st->st_ino, &h);
	return *ret ? 0 : object_new(s, NULL, NULL, &at, st, ret);
}

int sl_object_of_fd(struct sl_store *s, int fd, struct sl_object **ret)
{
	struct stat st;
	return of_fd(s, fd, &st, ret);
}

void sl_object_recorded(struct sl_store *s, int dirfd, const char *name)
{
	_cleanup_close_ int fd = openat(dirfd, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
	struct sl_handle h;
	struct stat st;
	if (fd < 0 || sl_handle_get(fd, "", &h) < 0 || fstat(fd, &st) < 0)
		return;
	struct sl_object *o = find_handle(s, st.st_ino, &h);
	if (!o)
		return;
	pthread_mutex_lock(&o->lock);
	if (!o->has_record && !o->damaged) {
		struct sl_record rec;
		_cleanup_free_ char *place = NULL;
		uint32_t moves;
		if (sl_record_load_at(s, fd, "", &rec, NULL, &place, &moves) == 0) {
			o->rec = rec;
			o->has_record = true;
			o->local = false;
			pthread_mutex_lock(&s->places);
			free(o->place);
			o->place = sl_steal_ptr(&place);
			o->place_moves = moves;
			pthread_mutex_unlock(&s->places);
		}
	}
	pthread_mutex_unlock(&o->lock);
	sl_object_put(o);
}

static bool lost_name(struct sl_object *o)
{
	pthread_rwlock_rdlock(&o->store->tree);
	bool lost = !o->parent && o->fd >= 0;
	pthread_rwlock_unlock(&o->store->tree);
	return lost;
}

/* The name by which an object was known is gone; it has this one. */
static void find_name(struct sl_object *dir, const char *name, struct sl_object *o)
{
	struct sl_store *s = dir->store;
	char *copy = strdup(name);
	struct stat st;
	pthread_rwlock_wrlock(&s->tree);
	int dfd = copy && !o->parent && o->fd >= 0 ? sl_dirfd_pin(dir) : -EBADF;
	if (dfd >= 0) {
		if (fstatat(dfd, name, &st, AT_SYMLINK_NOFOLLOW) == 0 && st.st_ino == sl_object_ino(o)) {
			o->parent = sl_object_ref(dir);
			o->name = sl_steal_ptr(&copy);
			close(sl_steal_fd(&o->fd));
			free(sl_steal_ptr(&o->orphan_place));
		}
		sl_dirfd_unpin(dir);
	}
	pthread_rwlock_unlock(&s->tree);
	free(copy);
}

struct sl_object *sl_object_known_fd(struct sl_store *s, int fd)
{
	struct sl_handle h;
	uint64_t ino;
	int r = s->invisible ? sl_xfs_handle_get(fd, s->root->handle.type, &h) : -EOPNOTSUPP;
	if (r < 0 && s->native)
		r = sl_handle_get(fd, "", &h);
	if (r < 0 || !sl_handle_ino(&h, &ino))
		return NULL;
	pthread_mutex_lock(&s->table_lock);
	struct sl_hnode *n = sl_htab_find(&s->table, ino);
	struct sl_object *o = n ? sl_container_of(n, struct sl_object, node) : NULL;
	if (o && o->handle.len == h.len && o->handle.type == h.type && !memcmp(o->handle.b, h.b, h.len))
		o->refs++;
	else
		o = NULL;
	pthread_mutex_unlock(&s->table_lock);
	return o;
}

int sl_object_lookup(struct sl_object *dir, const char *name, struct sl_object **ret)
{
	return sl_object_lookup_attr(dir, name, ret, NULL);
}

int sl_object_lookup_attr(struct sl_object *dir, const char *name, struct sl_object **ret, struct sl_attr *a)
{
	struct sl_store *s = dir->store;
	if (!sl_name_valid(name, strlen(name)))
		return strlen(name) > 255 ? -ENAMETOOLONG : -EINVAL;
	struct sl_at at;
	int r = sl_at_begin_dir(dir, &at);
	if (r < 0)
		return r;
	struct stat st;
	at.name = name;
	if (s->native) {
		/* Once: another file may come to that name at any time, and one must not be known by the
		 * number of this and the record of that. */
		_cleanup_close_ int fd = openat(at.fd, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
		r = fd < 0 ? -errno : of_fd(s, fd, &st, ret);
	} else if (fstatat(at.fd, name, &st, AT_SYMLINK_NOFOLLOW) < 0) {
		r = -errno;
	} else if (st.st_dev != s->dev) {
		r = -EXDEV;
	} else {
		*ret = sl_object_find(s, st.st_ino);
		if (!*ret)
			r = object_new(s, dir, name, &at, &st, ret);
	}
	if (r == 0)
		(*ret)->names = (uint32_t)st.st_nlink;
	sl_at_end(&at);
	if (r == 0 && !s->native && lost_name(*ret))
		find_name(dir, name, *ret);
	if (r == 0 && a)
		attr_of(*ret, &st, a);
	return r;
}

/* ---- using one ---- */

/* Remembered as its parent, so that what is known of the directory stays as long as what is known of the
 * file. */
static struct sl_object *native_parent(struct sl_object *o)
{
	struct sl_store *s = o->store;
	struct sl_handle h;
	struct sl_at at;
	struct sl_object *p = NULL;
	pthread_rwlock_rdlock(&s->tree);
	if (o->parent)
		p = sl_object_ref(o->parent);
	pthread_rwlock_unlock(&s->tree);
	if (p || o == s->root || sl_at_begin(o, &at) < 0)
		return p;
	int r = sl_handle_parent(at.fd, &h);
	sl_at_end(&at);
	_cleanup_close_ int fd = r == 0 ? sl_handle_open(s->tree_fd, &h, O_PATH | O_DIRECTORY) : r;
	if (fd < 0 || sl_object_of_fd(s, fd, &p) < 0)
		return NULL;
	pthread_rwlock_wrlock(&s->tree);
	if (!o->parent && p != o)
		o->parent = sl_object_ref(p);
	pthread_rwlock_unlock(&s->tree);
	return p;
}

struct sl_object *sl_object_parent(struct sl_object *o)
{
	if (o->store->native)
		return native_parent(o);
	pthread_rwlock_rdlock(&o->store->tree);
	struct sl_object *p = o->parent ? sl_object_ref(o->parent) : NULL;
	pthread_rwlock_unlock(&o->store->tree);
	return p;
}

/*
 * An eviction holds a lease on the file, and an open waits for its end: not with the tree locked, which the
 * eviction needs. So the open asks not to wait, and where it would have to, waits on a descriptor of the
 * object.
 */
int sl_object_open(struct sl_object *o, int flags)
{
	struct sl_at at;
	int r = o->damaged ? -EIO : sl_at_begin(o, &at);
	if (r < 0)
		return r;
	flags |= O_NOCTTY | O_NOFOLLOW | O_CLOEXEC;
	if (*at.name) {
		r = openat(at.fd, at.name, flags | O_NONBLOCK);
		r = r < 0 ? -errno : r;
	} else {
		r = sl_reopen(at.fd, flags | O_NONBLOCK);
	}
	_cleanup_close_ int path = -EBADF;
	if (r == -EWOULDBLOCK)
		path = *at.name ? openat(at.fd, at.name, O_PATH | O_NOFOLLOW | O_CLOEXEC)
				: fcntl(at.fd, F_DUPFD_CLOEXEC, 3);
	sl_at_end(&at);
	return path >= 0 ? sl_reopen(path, flags) : r;
}

int sl_object_open_dir(struct sl_object *o)
{
	struct sl_at at;
	int r = o->damaged ? -EIO : sl_at_begin_dir(o, &at);
	if (r < 0)
		return r;
	r = openat(at.fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	r = r < 0 ? -errno : r;
	sl_at_end(&at);
	return r;
}

int sl_object_open_fill(struct sl_object *o, bool *invisible)
{
	*invisible = o->store->invisible && !o->damaged;
	_Alignas(struct file_handle) char room[SL_HANDLE_ROOM];
	if (*invisible)
		return sl_xfs_open_invisible(o->store->tree_fd, sl_handle_raw(&o->handle, room), O_RDWR);
	int fd = sl_object_open(o, O_RDWR | O_NOATIME);
	return fd == -EPERM ? sl_object_open(o, O_RDWR) : fd;
}

int sl_object_attr(struct sl_object *o, struct sl_attr *a)
{
	struct sl_at at;
	struct stat st;
	int r = sl_at_begin(o, &at);
	if (r < 0)
		return r;
	if (fstatat(at.fd, at.name, &st, AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH) < 0)
		r = -errno;
	sl_at_end(&at);
	if (r < 0)
		return r;
	attr_of(o, &st, a);
	return 0;
}

int sl_object_pin(struct sl_object *o)
{
	struct sl_at at;
	int r = sl_at_begin(o, &at);
	if (r < 0)
		return r;
	r = *at.name ? openat(at.fd, at.name, O_PATH | O_NOFOLLOW | O_CLOEXEC)
		     : fcntl(at.fd, F_DUPFD_CLOEXEC, 3);
	r = r < 0 ? -errno : r;
	sl_at_end(&at);
	return r;
}

ssize_t sl_object_readlink(struct sl_object *o, char *buf, size_t n)
{
	struct sl_at at;
	int r = sl_at_begin(o, &at);
	if (r < 0)
		return r;
	ssize_t k = readlinkat(at.fd, at.name, buf, n);
	k = k < 0 ? -errno : k;
	sl_at_end(&at);
	return k;
}

static int set_store_owner(struct sl_object *o, int mode, uid_t uid, gid_t gid)
{
	struct sl_store *s = o->store;
	struct sl_at at;
	struct stat st;
	char p[SL_PROC_FD_MAX];
	int r = sl_at_begin(o, &at);
	if (r < 0)
		return r;
	if (fstatat(at.fd, at.name, &st, AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH) < 0)
		r = -errno;
	bool other = (uid != (uid_t)-1 && uid != st.st_uid) || (gid != (gid_t)-1 && gid != st.st_gid);
	if (r == 0 && other && fchownat(at.fd, at.name, uid, gid, AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH) < 0)
		r = -errno;
	if (r == 0 && mode >= 0) {
		if (S_ISLNK(st.st_mode))
			r = -EOPNOTSUPP;
		else if (chmod(sl_at_path(&at, p),
			       s->privileged
				   ? (mode_t)mode
				   : ((mode_t)mode & 01777) | (S_ISDIR(st.st_mode) ? 0700 : 0600)) < 0)
			r = -errno;
	}
	sl_at_end(&at);
	return r;
}

int sl_object_set_owner(struct sl_object *o, int mode, uid_t uid, gid_t gid)
{
	pthread_mutex_lock(&o->lock);
	int r = o->damaged ? -EIO : sl_object_set_meta(o);
	if (r == 0)
		r = set_store_owner(o, mode, uid, gid);
	if (r == 0 && mode >= 0 && o->has_record) {
		o->rec.mode = (o->rec.mode & S_IFMT) | (uint32_t)mode;
		r = sl_object_save(o);
	}
	pthread_mutex_unlock(&o->lock);
	return r;
}

int sl_object_set_times(struct sl_object *o, const struct timespec ts[2])
{
	pthread_mutex_lock(&o->lock);
	/* The time of the last access is not the origin's to begin with. */
	int r = o->damaged ? -EIO : ts[1].tv_nsec == UTIME_OMIT ? 0 : sl_object_set_meta(o);
	struct sl_at at;
	if (r == 0)
		r = sl_at_begin(o, &at);
	if (r == 0) {
		if (utimensat(at.fd, at.name, ts, AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH) < 0)
			r = -errno;
		sl_at_end(&at);
	}
	pthread_mutex_unlock(&o->lock);
	return r;
}

void sl_objects_each(struct sl_store *s, int (*fn)(void *arg, const char *path, struct sl_object *o, int err),
		     void *arg)
{
	pthread_mutex_lock(&s->table_lock);
	struct sl_object **v = reallocarray(NULL, s->table.n + 1, sizeof(*v));
	size_t n = 0, i;
	for (struct sl_hnode *h = v ? sl_htab_first(&s->table, &i) : NULL; h;
	     h = sl_htab_step(&s->table, &i, h)) {
		v[n] = sl_container_of(h, struct sl_object, node);
		v[n++]->refs++;
	}
	pthread_mutex_unlock(&s->table_lock);
	for (i = 0; i < n; i++) {
		fn(arg, NULL, v[i], 0);
		sl_object_put(v[i]);
	}
	free(v);
}

char *sl_object_path(struct sl_object *o)
{
	if (o->store->native) {
		char *place;
		return sl_object_place(o, &place) == 0 ? place : strdup("a file made here");
	}
	char *path = strdup("");
	pthread_rwlock_rdlock(&o->store->tree);
	for (; o && o->parent && path; o = o->parent) {
		char *p = *path ? sl_path_join(o->name, path) : strdup(o->name);
		free(path);
		path = p;
	}
	pthread_rwlock_unlock(&o->store->tree);
	return path;
}

/* With the tree lock held. */
static int place_locked(struct sl_object *o, char **ret)
{
	_cleanup_free_ char *below = strdup("");
	struct sl_store *s = o->store;
	if (!below)
		return -ENOMEM;
	for (; o != s->root; o = o->parent) {
		if (o->local)
			return -ENOENT;
		if (o->moved) {
			char place[4096 + 1];
			struct sl_at at = {.store = s, .fd = o->fd, .name = ""};
			if (o->fd < 0) {
				at.fd = sl_dirfd_pin(o->parent);
				if (at.fd < 0)
					return at.fd;
				at.name = o->name;
			}
			ssize_t n = sl_at_getxattr(&at, s->xattr_place, place, sizeof(place) - 1);
			if (o->fd < 0)
				sl_dirfd_unpin(o->parent);
			if (n < 0)
				return (int)n;
			place[n] = '\0';
			*ret = *below ? sl_path_join(place, below) : strdup(place);
			return *ret ? 0 : -ENOMEM;
		}
		if (o->orphan_place) {
			*ret = *below ? sl_path_join(o->orphan_place, below) : strdup(o->orphan_place);
			return *ret ? 0 : -ENOMEM;
		}
		if (!o->parent || !o->name)
			return -ENOENT;
		char *p = *below ? sl_path_join(o->name, below) : strdup(o->name);
		if (!p)
			return -ENOMEM;
		free(below);
		below = p;
	}
	*ret = sl_steal_ptr(&below);
	return 0;
}

int sl_object_place(struct sl_object *o, char **ret)
{
	if (o->store->native) {
		uint32_t moves;
		int r = sl_place_get(o, ret, &moves);
		if (r < 0) {
			free(*ret);
			*ret = NULL;
		}
		return r;
	}
	pthread_rwlock_rdlock(&o->store->tree);
	int r = place_locked(o, ret);
	pthread_rwlock_unlock(&o->store->tree);
	return r;
}

int sl_object_new_pinned(struct sl_store *s, int fd, struct sl_object **ret)
{
	struct sl_at at = {.store = s, .fd = fd, .name = ""};
	struct stat st;
	int r = fstat(fd, &st) < 0 ? -errno : object_new(s, NULL, NULL, &at, &st, ret);
	if (r < 0)
		close(fd);
	else
		(*ret)->fd = fd;
	return r;
}
