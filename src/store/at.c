/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Where an object is: by parent and name below one descriptor, with a bounded cache of directories'; and the
 * record there. */
#include <assert.h>
#include <fcntl.h>
#include <sys/xattr.h>

#include "store/fs.h"
#include "store/internal.h"

static void fd_trim(struct sl_store *s) /* fd lock held */
{
	while (s->fd_count > s->fd_max && !sl_list_empty(&s->fd_lru)) {
		struct sl_object *o = sl_list_entry(s->fd_lru.next, struct sl_object, fd_link);
		sl_list_del(&o->fd_link);
		close(o->dirfd);
		o->dirfd = -EBADF;
		s->fd_count--;
	}
}

int sl_dirfd_pin(struct sl_object *o)
{
	struct sl_store *s = o->store;
	pthread_mutex_lock(&s->fd_lock);
	if (o->dirfd >= 0) {
		if (o->dirfd_users++ == 0)
			sl_list_del(&o->fd_link);
		int fd = o->dirfd;
		pthread_mutex_unlock(&s->fd_lock);
		return fd;
	}
	pthread_mutex_unlock(&s->fd_lock);

	_cleanup_close_ int fd = -EBADF;
	if (o->fd >= 0) {
		fd = openat(o->fd, ".", O_PATH | O_DIRECTORY | O_CLOEXEC);
	} else if (!o->parent) {
		fd = openat(s->tree_fd, ".", O_PATH | O_DIRECTORY | O_CLOEXEC);
	} else {
		int pfd = sl_dirfd_pin(o->parent);
		if (pfd < 0)
			return pfd;
		fd = openat(pfd, o->name, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
		int e = errno;
		sl_dirfd_unpin(o->parent);
		errno = e;
	}
	if (fd < 0)
		return -errno;
	pthread_mutex_lock(&s->fd_lock);
	if (o->dirfd < 0) {
		o->dirfd = sl_steal_fd(&fd);
		s->fd_count++;
	} else if (o->dirfd_users == 0) {
		sl_list_del(&o->fd_link);
	}
	o->dirfd_users++;
	int r = o->dirfd;
	fd_trim(s);
	pthread_mutex_unlock(&s->fd_lock);
	return r;
}

void sl_dirfd_unpin(struct sl_object *o)
{
	struct sl_store *s = o->store;
	pthread_mutex_lock(&s->fd_lock);
	assert(o->dirfd_users > 0);
	if (--o->dirfd_users == 0)
		sl_list_add_tail(&s->fd_lru, &o->fd_link);
	fd_trim(s);
	pthread_mutex_unlock(&s->fd_lock);
}

int sl_at_begin(struct sl_object *o, struct sl_at *at)
{
	struct sl_store *s = o->store;
	*at = (struct sl_at){.store = s, .fd = -EBADF, .name = ""};
	if (s->native) {
		at->own = true;
		at->fd = sl_handle_open(s->tree_fd, &o->handle, O_PATH);
		return SL_MIN(at->fd, 0);
	}
	pthread_rwlock_rdlock(&s->tree);
	if (o->fd >= 0) {
		at->fd = o->fd;
	} else if (o == s->root) {
		at->fd = s->tree_fd;
	} else {
		at->fd = sl_dirfd_pin(o->parent);
		if (at->fd < 0) {
			pthread_rwlock_unlock(&s->tree);
			return at->fd;
		}
		at->dir = o->parent;
		at->name = o->name;
	}
	return 0;
}

int sl_at_begin_dir(struct sl_object *o, struct sl_at *at)
{
	struct sl_store *s = o->store;
	*at = (struct sl_at){.store = s, .name = ""};
	if (s->native)
		return sl_at_begin(o, at);
	pthread_rwlock_rdlock(&s->tree);
	at->fd = sl_dirfd_pin(o);
	if (at->fd < 0) {
		pthread_rwlock_unlock(&s->tree);
		return at->fd;
	}
	at->dir = o;
	return 0;
}

void sl_at_end(struct sl_at *at)
{
	if (at->own) {
		int e = errno;
		close(at->fd);
		errno = e;
		return;
	}
	if (at->dir)
		sl_dirfd_unpin(at->dir);
	pthread_rwlock_unlock(&at->store->tree);
}

char *sl_at_path(const struct sl_at *at, char buf[SL_PROC_FD_MAX])
{
	/* Without a name the magic link itself must be followed: "/." does that for directories, which is
	 * what lacks a name. */
	return sl_proc_fd_path(buf, at->fd, *at->name ? at->name : NULL);
}

/* The l*xattr calls do not follow; of a descriptor's own magic link we want the object behind it. */
ssize_t sl_at_getxattr(const struct sl_at *at, const char *name, void *buf, size_t n)
{
	char p[SL_PROC_FD_MAX];
	sl_at_path(at, p);
	ssize_t r = *at->name ? lgetxattr(p, name, buf, n) : getxattr(p, name, buf, n);
	return r < 0 ? -errno : r;
}

int sl_at_setxattr(const struct sl_at *at, const char *name, const void *buf, size_t n)
{
	char p[SL_PROC_FD_MAX];
	sl_at_path(at, p);
	return (*at->name ? lsetxattr(p, name, buf, n, 0) : setxattr(p, name, buf, n, 0)) < 0 ? -errno : 0;
}

int sl_at_removexattr(const struct sl_at *at, const char *name)
{
	char p[SL_PROC_FD_MAX];
	sl_at_path(at, p);
	return (*at->name ? lremovexattr(p, name) : removexattr(p, name)) < 0 && errno != ENODATA ? -errno
												  : 0;
}

/* ---- records ---- */

int sl_record_load_at(struct sl_store *s, int dirfd, const char *name, struct sl_record *r,
		      struct sl_handle *h, char **place, uint32_t *moves)
{
	uint32_t after;
	char p[SL_PROC_FD_MAX];
	uint8_t b[SL_PLACED_MAX + 1];
	/* Most descriptors are real ones; the way through procfs takes longer than all the rest. */
	ssize_t n = *name ? -1 : fgetxattr(dirfd, s->xattr_record, b, sizeof(b));
	if (*name || (n < 0 && errno == EBADF)) {
		sl_proc_fd_path(p, dirfd, *name ? name : NULL);
		/* The l*xattr calls do not follow; of a descriptor's own magic link we want the object behind
		 * it. */
		n = *name ? lgetxattr(p, s->xattr_record, b, sizeof(b))
			  : getxattr(p, s->xattr_record, b, sizeof(b));
	}
	if (n < 0)
		/* The user namespace is not for symlinks and special files: they have no record there. */
		n = errno == EOPNOTSUPP || errno == EPERM ? -ENODATA : errno == ERANGE ? -EBADMSG : -errno;
	if (!s->native)
		return n < 0 ? (int)n : sl_record_decode(b, (size_t)n, r);
	struct sl_handle own;
	_cleanup_free_ char *at = NULL;
	int q = sl_handle_get(dirfd, name, &own);
	if (q == 0 && h)
		*h = own;
	if (q < 0 || n < 0)
		return q < 0 ? q : (int)n;
	q = sl_record_decode_placed(b, (size_t)n, sl_handle_hash(&own), r, &at, &after);
	if (q == 0 && place)
		*place = sl_steal_ptr(&at);
	if (q == 0 && moves)
		*moves = after;
	return q;
}

int sl_record_save_at(struct sl_store *s, int dirfd, const char *name, const struct sl_record *r,
		      const char *place, uint32_t moves)
{
	uint8_t b[SL_PLACED_MAX];
	char p[SL_PROC_FD_MAX];
	size_t n = SL_RECORD_SIZE;
	struct sl_handle h;
	if (s->native) {
		int q = sl_handle_get(dirfd, name, &h);
		n = q < 0 ? 0 : sl_record_encode_placed(r, sl_handle_hash(&h), place, moves, b);
		if (n == 0)
			return q < 0 ? q : -ENAMETOOLONG;
	} else {
		sl_record_encode(r, b);
	}
	if (!*name && fsetxattr(dirfd, s->xattr_record, b, n, 0) == 0)
		return 0;
	if (!*name && errno != EBADF)
		return -errno;
	sl_proc_fd_path(p, dirfd, *name ? name : NULL);
	return (*name ? lsetxattr(p, s->xattr_record, b, n, 0) : setxattr(p, s->xattr_record, b, n, 0)) < 0
		   ? -errno
		   : 0;
}
