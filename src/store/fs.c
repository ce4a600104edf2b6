/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "store/fs.h"

#include <linux/fs.h>
#include <linux/ioctl.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <stdbool.h>
#include <sys/vfs.h>

#include "base/macros.h"
#include "base/why.h"
#include "store/xfs.h"

/* ext4's is the same number with the same flags. */
#define GOINGDOWN_FREEZE   0u
#define GOINGDOWN_LOGFLUSH 1u

/* The file handle types of XFS: {u64 ino, u32 generation}, or {u32, u32} on small filesystems mounted so; the
 * next higher type has the parent behind it. */
#define FILEID_INO32_GEN     0x01
#define FILEID_XFS_64BIT_INO 0x80

/* ioctls do not go through an O_PATH descriptor. */
static int real_fd(int mount_fd)
{
	int fd = openat(mount_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

/* What the filesystem has left in the context's log: lines of "e text", "w text", "i text". The last error
 * counts. */
static void context_log(int fs_fd, char *buf, size_t size)
{
	char line[512];
	ssize_t n;
	bool error = false;
	buf[0] = '\0';
	while ((n = read(fs_fd, line, sizeof(line) - 1)) > 0) {
		line[n] = '\0';
		line[strcspn(line, "\n")] = '\0';
		if (n > 2 && (line[0] == 'e' || !error)) {
			snprintf(buf, size, "%s", line + 2);
			error = line[0] == 'e';
		}
	}
}

static int context_fail(int fs_fd, const char *dev, const char *what, char **why)
{
	int r = -errno;
	char log[512];
	context_log(fs_fd, log, sizeof(log));
	return sl_fail(why, r, "cannot mount %s: %s%s%s%s", dev, what, *what ? ": " : "",
		       *log ? log : strerror(-r), r == -EUCLEAN || r == -EINVAL ? " (see dmesg)" : "");
}

int sl_fs_mount(const char *dev, const char *fstype, const char *options, unsigned attr_flags,
		int *ret_mount_fd, char **why)
{
	_cleanup_close_ int fs = fsopen(fstype, FSOPEN_CLOEXEC);
	if (fs < 0)
		return sl_fail(why, -errno, "cannot mount %s: %s: %s%s", dev, fstype, strerror(errno),
			       errno == ENODEV	? " (this kernel does not know that filesystem)"
			       : errno == EPERM ? " (needs root)"
						: "");
	if (fsconfig(fs, FSCONFIG_SET_STRING, "source", dev, 0) < 0)
		return context_fail(fs, dev, "", why);
	_cleanup_free_ char *copy = strdup(options ? options : "");
	if (!copy)
		return -ENOMEM;
	char *save = NULL;
	for (char *o = strtok_r(copy, ",", &save); o; o = strtok_r(NULL, ",", &save)) {
		char *value = strchr(o, '=');
		if (value)
			*value++ = '\0';
		if (fsconfig(fs, value ? FSCONFIG_SET_STRING : FSCONFIG_SET_FLAG, o, value, 0) < 0)
			return context_fail(fs, dev, o, why);
	}
	if (fsconfig(fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0) < 0)
		return context_fail(fs, dev, "", why);
	int m = fsmount(fs, FSMOUNT_CLOEXEC, attr_flags | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV);
	if (m < 0)
		return context_fail(fs, dev, "", why);
	*ret_mount_fd = m;
	return 0;
}

int sl_mount_clone(int mount_fd, const char *subdir, int *ret)
{
	int fd = open_tree(mount_fd, subdir ? subdir : "",
			   OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW);
	if (fd < 0)
		return -errno;
	*ret = fd;
	return 0;
}

int sl_mount_attach(int tree_fd, const char *dir, char **why)
{
	if (move_mount(tree_fd, "", AT_FDCWD, dir, MOVE_MOUNT_F_EMPTY_PATH) < 0)
		return sl_fail(why, -errno, "cannot mount on %s: %s", dir, strerror(errno));
	return 0;
}

int sl_mount_setattr(int mount_fd, uint64_t set, uint64_t clear)
{
	struct mount_attr a = {.attr_set = set, .attr_clr = clear};
	return mount_setattr(mount_fd, "", AT_EMPTY_PATH, &a, sizeof(a)) < 0 ? -errno : 0;
}

int sl_mount_private(int mount_fd)
{
	struct mount_attr a = {.propagation = MS_PRIVATE};
	return mount_setattr(mount_fd, "", AT_EMPTY_PATH, &a, sizeof(a)) < 0 ? -errno : 0;
}

int sl_fs_trim(int mount_fd, uint64_t *bytes)
{
	_cleanup_close_ int fd = real_fd(mount_fd);
	if (fd < 0)
		return fd;
	struct fstrim_range range = {.len = UINT64_MAX};
	if (ioctl(fd, FITRIM, &range) < 0)
		return -errno;
	if (bytes)
		*bytes = range.len;
	return 0;
}

/* Blocks and bytes: 4 KiB in all that we make, but it need not be ours. */
static int block_size(int fd, uint64_t *ret)
{
	struct xfs_geometry g;
	if (ioctl(fd, XFS_IOC_FSGEOMETRY_V1, &g) < 0)
		return errno == ENOTTY ? -EOPNOTSUPP : -errno;
	*ret = g.blocksize;
	return 0;
}

int sl_fs_keep(int mount_fd, uint64_t bytes)
{
	uint64_t block = 0;
	_cleanup_close_ int fd = real_fd(mount_fd);
	int r = fd < 0 ? fd : block_size(fd, &block);
	if (r < 0)
		return r;
	struct xfs_fsop_resblks k = {.resblks = bytes / block};
	return ioctl(fd, XFS_IOC_SET_RESBLKS, &k) < 0 ? -errno : 0;
}

int sl_fs_kept(int mount_fd, uint64_t *bytes, uint64_t *want)
{
	uint64_t block = 0;
	struct xfs_fsop_resblks k = {0};
	_cleanup_close_ int fd = real_fd(mount_fd);
	int r = fd < 0 ? fd : block_size(fd, &block);
	if (r == 0 && ioctl(fd, XFS_IOC_GET_RESBLKS, &k) < 0)
		r = -errno;
	if (r == 0) {
		*bytes = k.avail * block;
		*want = k.resblks * block;
	}
	return r;
}

/* To what lies below an XFS and is full it writes again and again; from now on once. Not everywhere can that
 * be told. */
static void give_up_without_room(int fd)
{
	char path[128], link[256];
	struct stat st;
	if (fstat(fd, &st) < 0)
		return;
	snprintf(path, sizeof(path), "/sys/dev/block/%u:%u", major(st.st_dev), minor(st.st_dev));
	ssize_t n = readlink(path, link, sizeof(link) - 1);
	if (n <= 0)
		return;
	link[n] = '\0';
	const char *name = strrchr(link, '/');
	snprintf(path, sizeof(path), "/sys/fs/xfs/%.32s/error/metadata/ENOSPC/max_retries",
		 name ? name + 1 : link);
	_cleanup_close_ int f = open(path, O_WRONLY | O_CLOEXEC);
	if (f >= 0)
		(void)!write(f, "0", 1);
}

int sl_fs_shutdown(int mount_fd)
{
	_cleanup_close_ int fd = real_fd(mount_fd);
	if (fd < 0)
		return fd;
	/* To be frozen it writes everything to its place, and what has none is in its log. */
	give_up_without_room(fd);
	/* What users have written and not synced is theirs: frozen first, the filesystem loses nothing of it.
	 * Where it cannot be frozen that ends without an error. */
	uint32_t flags = GOINGDOWN_FREEZE;
	(void)ioctl(fd, XFS_IOC_GOINGDOWN, &flags);
	flags = GOINGDOWN_LOGFLUSH;
	if (ioctl(fd, XFS_IOC_GOINGDOWN, &flags) < 0)
		return errno == ENOTTY ? -EOPNOTSUPP : -errno;
	return 0;
}

static bool xfs_handle(const struct file_handle *h, struct xfs_handle *xh)
{
	*xh = (struct xfs_handle){.fid_len = sizeof(*xh) - offsetof(struct xfs_handle, fid_pad)};
	if ((h->handle_type & FILEID_XFS_64BIT_INO) && h->handle_bytes >= 12) {
		memcpy(&xh->ino, h->f_handle, 8);
		memcpy(&xh->gen, h->f_handle + 8, 4);
		return true;
	}
	if (h->handle_type == FILEID_INO32_GEN && h->handle_bytes >= 8) {
		uint32_t ino;
		memcpy(&ino, h->f_handle, 4);
		memcpy(&xh->gen, h->f_handle + 4, 4);
		xh->ino = ino;
		return true;
	}
	return false;
}

int sl_xfs_set_attr(int dir, const struct file_handle *h, const char *name, const void *value, size_t n)
{
	struct xfs_handle xh;
	if (!xfs_handle(h, &xh))
		return -EOPNOTSUPP;
	/* The kernel only reads name and value. */
	struct xfs_attr_multiop op = {.opcode = value ? XFS_ATTR_OP_SET : XFS_ATTR_OP_REMOVE,
				      .name = (void *)(uintptr_t)name,
				      .value = (void *)(uintptr_t)value,
				      .length = (uint32_t)n,
				      .flags = XFS_ATTR_ROOT};
	struct xfs_attrmulti req = {
	    .hreq = {.ihandle = &xh, .ihandlen = sizeof(xh)}, .opcount = 1, .ops = &op};
	if (ioctl(dir, XFS_IOC_ATTRMULTI_BY_HANDLE, &req) < 0)
		return errno == ENOENT ? -ESTALE : errno == ENOTTY ? -EOPNOTSUPP : -errno;
	return !value && op.error == -ENODATA ? 0 : op.error;
}

int sl_xfs_open_invisible(int mount_fd, const struct file_handle *h, int flags)
{
	struct xfs_handle xh;
	if (!xfs_handle(h, &xh))
		return -EOPNOTSUPP;
	struct xfs_fsop_handlereq req = {
	    .ihandle = &xh, .ihandlen = sizeof(xh), .oflags = (uint32_t)(flags | O_LARGEFILE)};
	/* The number means something else to other filesystems. */
	struct statfs sf;
	if (fstatfs(mount_fd, &sf) < 0)
		return -errno;
	if (sf.f_type != XFS_SUPER_MAGIC)
		return -EOPNOTSUPP;
	_cleanup_close_ int dir = real_fd(mount_fd);
	if (dir < 0)
		return dir;
	int fd = ioctl(dir, XFS_IOC_OPEN_BY_HANDLE, &req);
	if (fd < 0)
		return errno == ENOENT ? -ESTALE : -errno;
	/* XFS makes descriptors that survive exec. */
	if ((flags & O_CLOEXEC) && fcntl(fd, F_SETFD, FD_CLOEXEC) < 0) {
		int r = -errno;
		close(fd);
		return r;
	}
	return fd;
}

int sl_xfs_reopen_invisible(int mount_fd, int fd, int flags)
{
	union {
		struct file_handle h;
		char room[sizeof(struct file_handle) + MAX_HANDLE_SZ];
	} u = {.h.handle_bytes = MAX_HANDLE_SZ};
	int id;
	if (name_to_handle_at(fd, "", &u.h, &id, AT_EMPTY_PATH) < 0)
		return -errno;
	return sl_xfs_open_invisible(mount_fd, &u.h, flags);
}

int sl_xfs_handle_get(int fd, int type, struct sl_handle *ret)
{
	struct xfs_handle xh;
	uint32_t len = sizeof(xh);
	struct xfs_fsop_handlereq req = {.fd = (uint32_t)fd, .ohandle = &xh, .ohandlen = &len};
	if (type != FILEID_INO32_GEN && type != (FILEID_INO32_GEN | FILEID_XFS_64BIT_INO))
		return -EOPNOTSUPP;
	if (ioctl(fd, XFS_IOC_FD_TO_HANDLE, &req) < 0)
		return -errno;
	size_t n = type & FILEID_XFS_64BIT_INO ? sizeof(uint64_t) : sizeof(uint32_t);
	if (len != sizeof(xh) || (n == sizeof(uint32_t) && xh.ino > UINT32_MAX))
		return -EOPNOTSUPP;
	*ret = (struct sl_handle){.len = (uint32_t)(n + sizeof(xh.gen)), .type = type};
	memcpy(ret->b, &xh.ino, n);
	memcpy(ret->b + n, &xh.gen, sizeof(xh.gen));
	return 0;
}
