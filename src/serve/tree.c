/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "serve/tree.h"

#include <limits.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <xxhash.h>

#include "base/beneath.h"
#include "base/fd.h"
#include "base/why.h"
#include "serve/xattr.h"

#define FUSE_SUPER_MAGIC 0x65735546
/* Set in inode numbers that are made here; filesystems do not use that bit. */
#define MADE_INO (1ull << 63)

struct sl_tree {
	int root; /* O_RDONLY: open_by_handle_at() takes no O_PATH descriptor */
	char *path;
	dev_t dev;
	uint64_t mnt_id;
	bool has_mnt_id;
	bool no_handles; /* the filesystem has none, or none that outlive its caches */
};

static uint32_t encode_dev(unsigned maj, unsigned min)
{
	return (min & 0xff) | maj << 8 | (min & ~0xffu) << 12;
}

static void fill_attr(const struct statx *sx, struct fuse_attr *a)
{
	*a = (struct fuse_attr){.ino = sx->stx_ino,
				.size = sx->stx_size,
				.blocks = sx->stx_blocks,
				.atime = (uint64_t)sx->stx_atime.tv_sec,
				.mtime = (uint64_t)sx->stx_mtime.tv_sec,
				.ctime = (uint64_t)sx->stx_ctime.tv_sec,
				.atimensec = sx->stx_atime.tv_nsec,
				.mtimensec = sx->stx_mtime.tv_nsec,
				.ctimensec = sx->stx_ctime.tv_nsec,
				.mode = sx->stx_mode,
				.nlink = sx->stx_nlink,
				.uid = sx->stx_uid,
				.gid = sx->stx_gid,
				.rdev = encode_dev(sx->stx_rdev_major, sx->stx_rdev_minor),
				.blksize = sx->stx_blksize};
}

static int do_statx(int fd, const char *name, struct statx *sx)
{
	int flags = AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT | (*name ? 0 : AT_EMPTY_PATH);
	return statx(fd, name, flags, STATX_BASIC_STATS | STATX_MNT_ID, sx) < 0 ? -errno : 0;
}

static bool other_mount(const struct sl_tree *t, const struct statx *sx)
{
	if (t->has_mnt_id && sx->stx_mask & STATX_MNT_ID && sx->stx_mnt_id != t->mnt_id)
		return true;
	/* Files of another device on the same mount are overlayfs with several lower filesystems: not another
	 * tree. */
	return S_ISDIR(sx->stx_mode) && makedev(sx->stx_dev_major, sx->stx_dev_minor) != t->dev;
}

static int get_handle(struct sl_tree *t, int fd, const char *name, struct sl_found *o)
{
	union {
		struct file_handle h;
		char room[sizeof(struct file_handle) + MAX_HANDLE_SZ];
	} u = {.h.handle_bytes = MAX_HANDLE_SZ};
	int mount_id;

	o->generation = 0;
	o->handle.len = 0;
	if (t->no_handles)
		return 0;
	if (name_to_handle_at(fd, name, &u.h, &mount_id, *name ? 0 : AT_EMPTY_PATH) < 0)
		return errno == EOPNOTSUPP || errno == EOVERFLOW ? 0 : -errno;
	o->handle.type = u.h.handle_type;
	o->handle.len = u.h.handle_bytes;
	memcpy(o->handle.bytes, u.h.f_handle, u.h.handle_bytes);
	o->generation = sl_handle_number(o->handle.type, o->handle.bytes, o->handle.len);
	return 0;
}

/* A directory that is a mount point shows as an empty one whose number depends on its place alone. */
static int make_foreign(int dirfd, const char *name, struct sl_found *o)
{
	struct stat dir;
	if (!S_ISDIR(o->attr.mode))
		return -ENOENT;
	if (fstat(dirfd, &dir) < 0)
		return -errno;
	o->foreign = true;
	o->generation = 0;
	o->handle.len = 0;
	o->attr.ino = XXH64(name, strlen(name), dir.st_ino) | MADE_INO;
	o->attr.mode = S_IFDIR | 0555;
	o->attr.nlink = 2;
	o->attr.size = o->attr.blocks = 0;
	o->attr.uid = o->attr.gid = 0;
	return 0;
}

static void set_hint(int fd, const char *name, struct sl_found *o)
{
	if ((S_ISREG(o->attr.mode) || S_ISDIR(o->attr.mode)) && sl_xattr_any(fd, *name ? name : NULL))
		o->attr.flags |= SL_ATTR_XATTR;
}

static int get_attr(struct sl_tree *t, int fd, const char *name, struct sl_found *o)
{
	struct statx sx;
	int r = do_statx(fd, name, &sx);
	if (r < 0)
		return r;
	fill_attr(&sx, &o->attr);
	o->foreign = other_mount(t, &sx);
	dev_t dev = makedev(sx.stx_dev_major, sx.stx_dev_minor);
	if (!o->foreign && dev != t->dev) {
		const uint64_t both[2] = {dev, sx.stx_ino};
		o->attr.ino = XXH64(both, sizeof(both), 0) | MADE_INO;
	}
	return 0;
}

int sl_tree_probe(struct sl_tree *t, int dirfd, const char *name, bool hint, struct sl_found *o)
{
	int r = get_attr(t, dirfd, name, o);
	if (r < 0)
		return r;
	if (o->foreign)
		return make_foreign(dirfd, name, o);
	r = get_handle(t, dirfd, name, o);
	if (r == 0 && hint)
		set_hint(dirfd, name, o);
	return r;
}

int sl_tree_look(struct sl_tree *t, int fd, bool hint, struct sl_found *o)
{
	int r = get_attr(t, fd, "", o);
	if (r == 0)
		r = get_handle(t, fd, "", o);
	if (r == 0 && hint)
		set_hint(fd, "", o);
	return r;
}

int sl_tree_lookup(struct sl_tree *t, int dirfd, const char *name, bool hint, struct sl_found *o)
{
	_cleanup_close_ int fd = sl_open_beneath(dirfd, name, O_PATH);
	if (fd == -EXDEV)
		return sl_tree_probe(t, dirfd, name, hint, o);
	if (fd < 0)
		return fd;
	int r = sl_tree_look(t, fd, hint, o);
	if (r == 0 && o->attr.nlink == 0)
		r = -ENOENT;
	if (r == 0 && o->foreign)
		r = make_foreign(dirfd, name, o);
	return r;
}

static bool same(const struct sl_place *p, const struct sl_found *o)
{
	return o->attr.nlink > 0 && o->attr.ino == p->ino && o->generation == p->generation &&
	       (o->attr.mode & S_IFMT) == p->type && o->foreign == p->foreign;
}

/*
 * Where the object of @p is now, by its handle, as a path beneath the root. The handle only finds the path:
 * what is served is what that path leads to, so that nothing outside the tree is ever reached this way.
 */
static int current_path(struct sl_tree *t, const struct sl_place *p, char buf[PATH_MAX], const char **ret)
{
	union {
		struct file_handle h;
		char room[sizeof(struct file_handle) + MAX_HANDLE_SZ];
	} u = {.h.handle_bytes = p->handle.len, .h.handle_type = p->handle.type};
	char link[SL_PROC_FD_MAX], root[PATH_MAX];

	if (!p->handle.len)
		return -ESTALE;
	memcpy(u.h.f_handle, p->handle.bytes, p->handle.len);
	_cleanup_close_ int fd = open_by_handle_at(t->root, &u.h, O_PATH | O_CLOEXEC);
	if (fd < 0)
		return -ESTALE;
	ssize_t n = readlink(sl_proc_fd_path(link, fd, NULL), buf, PATH_MAX - 1);
	ssize_t k = readlink(sl_proc_fd_path(link, t->root, NULL), root, sizeof(root) - 1);
	if (n <= 0 || k <= 0)
		return -ESTALE;
	buf[n] = '\0';
	if (k == 1)
		k = 0; /* the root is "/", and every path starts with its slash */
	if (n <= k + 1 || memcmp(buf, root, (size_t)k) != 0 || buf[k] != '/')
		return -ESTALE;
	*ret = buf + k + 1;
	return 0;
}

/* What it means for an object that its path has become wrong; other errors are about access, memory, the
 * disk. */
static int path_error(int err)
{
	switch (err) {
	case -ENOENT:
	case -ENOTDIR:
	case -ELOOP:
	case -EXDEV:
	case -EAGAIN:
		return -ESTALE;
	default:
		return err;
	}
}

static int find_at(struct sl_tree *t, const char *path, const struct sl_place *p, bool hint,
		   struct sl_found *o)
{
	_cleanup_close_ int fd = sl_open_beneath(t->root, path, O_PATH);
	if (fd < 0)
		return path_error(fd);
	int r = sl_tree_look(t, fd, hint, o);
	if (r < 0)
		return path_error(r);
	return same(p, o) ? sl_steal_fd(&fd) : -ESTALE;
}

int sl_tree_find(struct sl_tree *t, const struct sl_place *p, bool hint, struct sl_found *o)
{
	char buf[PATH_MAX];
	const char *path;
	int r = find_at(t, p->path, p, hint, o);
	if (r == -ESTALE && current_path(t, p, buf, &path) == 0)
		r = find_at(t, path, p, hint, o);
	return r;
}

int sl_tree_stat(struct sl_tree *t, const struct sl_place *p, bool hint, struct sl_found *o)
{
	if (!p->foreign) {
		_cleanup_close_ int fd = sl_tree_find(t, p, hint, o);
		return fd < 0 ? fd : 0;
	}
	char *slash = strrchr(p->path, '/');
	_cleanup_free_ char *dir = slash ? strndup(p->path, (size_t)(slash - p->path)) : strdup("");
	if (!dir)
		return -ENOMEM;
	_cleanup_close_ int fd = sl_open_beneath(t->root, dir, O_PATH);
	if (fd < 0)
		return path_error(fd);
	int r = sl_tree_probe(t, fd, slash ? slash + 1 : p->path, hint, o);
	if (r < 0)
		return path_error(r);
	return same(p, o) ? 0 : -ESTALE;
}

int sl_tree_stat_fd(struct sl_tree *t, int fd, bool hint, struct sl_found *o)
{
	int r = get_attr(t, fd, "", o);
	if (r < 0)
		return r;
	if (o->attr.nlink == 0)
		return -ESTALE;
	if (hint)
		set_hint(fd, "", o);
	return 0;
}

int sl_tree_holds(struct sl_tree *t, int fd)
{
	char link[SL_PROC_FD_MAX], path[PATH_MAX], root[PATH_MAX];
	ssize_t n = readlink(sl_proc_fd_path(link, fd, NULL), path, sizeof(path) - 1);
	ssize_t k = readlink(sl_proc_fd_path(link, t->root, NULL), root, sizeof(root) - 1);
	if (n <= 0 || k <= 0)
		return -ESTALE;
	if (k == 1)
		k = 0; /* the root is "/", and every path starts with its slash */
	return n > k && memcmp(path, root, (size_t)k) == 0 && path[k] == '/' ? 0 : -ESTALE;
}

int sl_tree_reopen(int fd, int flags)
{
	/*
	 * O_NONBLOCK: a lease on the file must not hold us up unseen; the last try waits for it to be given
	 * back. O_NOATIME is for the owner and the privileged: for others the mount's options decide about
	 * access times.
	 */
	flags |= O_RDONLY | O_NOCTTY;
	int r = sl_reopen(fd, flags | O_NONBLOCK | O_NOATIME);
	if (r == -EPERM)
		r = sl_reopen(fd, flags | O_NONBLOCK);
	if (r == -EAGAIN)
		r = sl_reopen(fd, flags);
	return r;
}

int sl_tree_fd(const struct sl_tree *t)
{
	return t->root;
}

const char *sl_tree_path(const struct sl_tree *t)
{
	return t->path;
}

void sl_tree_close(struct sl_tree *t)
{
	if (!t)
		return;
	sl_closep(&t->root);
	free(t->path);
	free(t);
}

static int check_system(struct sl_tree *t, char **why)
{
	char link[SL_PROC_FD_MAX], root[PATH_MAX];
	_cleanup_close_ int fd = sl_open_beneath(t->root, "", O_PATH);
	if (fd == -ENOSYS || fd == -EPERM)
		return sl_fail(
		    why, fd,
		    "this system does not allow openat2() (Linux 5.6 or later; some sandboxes forbid it)");
	if (fd < 0)
		return sl_fail(why, fd, "%s: %s", t->path, strerror(-fd));
	if (readlink(sl_proc_fd_path(link, t->root, NULL), root, sizeof(root)) < 0)
		return sl_fail(why, -errno, "/proc is needed, but is not mounted");
	return 0;
}

int sl_tree_open(const char *path, struct sl_tree **ret, char **why)
{
	struct sl_tree *t = calloc(1, sizeof(*t));
	struct statx sx;
	struct statfs fs;
	int r = 0;

	if (!t)
		return sl_fail(why, -ENOMEM, "no memory");
	t->root = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (t->root < 0)
		r = sl_fail(why, -errno, "%s: %s", path, strerror(errno));
	else if (!(t->path = realpath(path, NULL)))
		r = sl_fail(why, -errno, "%s: %s", path, strerror(errno));
	else if ((r = do_statx(t->root, "", &sx)) < 0 || (r = fstatfs(t->root, &fs) < 0 ? -errno : 0) < 0)
		r = sl_fail(why, r, "%s: %s", path, strerror(-r));
	else
		r = check_system(t, why);
	if (r < 0) {
		sl_tree_close(t);
		return r;
	}
	t->dev = makedev(sx.stx_dev_major, sx.stx_dev_minor);
	t->mnt_id = sx.stx_mnt_id;
	t->has_mnt_id = sx.stx_mask & STATX_MNT_ID;
	/* FUSE makes handles of its node ids, which change whenever its server or the cache forgets the
	 * object. */
	t->no_handles = fs.f_type == FUSE_SUPER_MAGIC;
	*ret = t;
	return 0;
}
