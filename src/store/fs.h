/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Filesystems as the native gate handles them: mounts that nobody sees yet, and what XFS can do for a clone.
 *
 * A @mount_fd is a descriptor of the root of a mount as sl_fs_mount() and sl_mount_clone() return it
 * (O_PATH), or of any directory of the mount. All functions return 0 (or a descriptor, where that is said) or
 * -errno. They keep no state and may be called from any thread.
 */
#pragma once

#include <fcntl.h>
#include <stdint.h>

#include "base/handle.h"

/**
 * Mount @dev *detached*: in no place, in no namespace. It goes away with the last descriptor unless it is
 * attached.
 * @options: "a=b,c" or NULL. @attr_flags: MOUNT_ATTR_*, to which nosuid and nodev are added. What the kernel
 * has to say about a failure is in *@why.
 */
int sl_fs_mount(const char *dev, const char *fstype, const char *options, unsigned attr_flags,
		int *ret_mount_fd, char **why);

/**
 * A detached mount of @subdir ("" or NULL: the root) of @mount_fd. Linux before 6.15 can only do that when
 * @mount_fd is attached somewhere, and says -EINVAL.
 */
int sl_mount_clone(int mount_fd, const char *subdir, int *ret);
/** Put a detached mount on the directory @dir, for everybody to see. */
int sl_mount_attach(int tree_fd, const char *dir, char **why);
/** Set and clear MOUNT_ATTR_* flags of one mount. */
int sl_mount_setattr(int mount_fd, uint64_t set, uint64_t clear);
/** Make @mount_fd private: what is mounted in or over it stays in this namespace. Works on attached mounts
 * only. */
int sl_mount_private(int mount_fd);

/**
 * Give unused blocks back to the device. @bytes (may be NULL): how much was offered to it, which can be the
 * same as last time. What was deleted a moment ago may not be free yet: XFS frees behind the caller's back,
 * syncfs() before this waits for most of it.
 */
int sl_fs_trim(int mount_fd, uint64_t *bytes);

/**
 * Keep so many free bytes of an XFS from everybody, also root, until it is unmounted or told otherwise; they
 * count as taken. If there are not so many, what becomes free is kept until there are.
 */
int sl_fs_keep(int mount_fd, uint64_t bytes);
/** How many are kept, and how many shall be. */
int sl_fs_kept(int mount_fd, uint64_t *bytes, uint64_t *want);

/**
 * Make a filesystem unusable, at once and until it is unmounted everywhere: every access that needs the disk
 * fails with EIO. All that was written is made durable first, so that it is there at the next mount.
 * -EOPNOTSUPP where the filesystem cannot (XFS and ext4 can).
 *
 * read() of XFS fails from then on whatever is cached. Mapped pages that are in memory stay readable; those
 * that are not give SIGBUS.
 */
int sl_fs_shutdown(int mount_fd);

/**
 * Open a regular file of an XFS so that what is done through the descriptor changes neither mtime nor ctime
 * nor atime: what XFS has for hierarchical storage. It lies on the mount of @mount_fd. @h: as
 * name_to_handle_at() gave it. Needs CAP_SYS_ADMIN. Returns a descriptor, -EOPNOTSUPP on another filesystem,
 * -ESTALE if the file is gone.
 *
 * pwrite(), copy_file_range() and FICLONERANGE into it and fallocate() leave the times alone (test_image.c
 * holds the kernel to it); ftruncate() and fsetxattr() do not, not even ftruncate() to the same size.
 */
int sl_xfs_open_invisible(int mount_fd, const struct file_handle *h, int flags);
/** The same for a file that is open already, in any way (O_PATH too). */
int sl_xfs_reopen_invisible(int mount_fd, int fd, int flags);

/**
 * Set the attribute trusted.@name of an object of an XFS so that nobody who watches it is told; its ctime
 * changes. @value NULL removes it, and that it is not there is no error then. @dir: a directory of the
 * filesystem, no O_PATH descriptor. Needs CAP_SYS_ADMIN. -EOPNOTSUPP, -ESTALE as above.
 */
int sl_xfs_set_attr(int dir, const struct file_handle *h, const char *name, const void *value, size_t n);

/**
 * What sl_handle_get(@fd, "") says, in a shorter time, as no name is looked up: for an open file (no O_PATH
 * descriptor) that is known to be on an XFS. @type: that of all handles of this filesystem. -EOPNOTSUPP for a
 * type that we do not know.
 */
int sl_xfs_handle_get(int fd, int type, struct sl_handle *ret);
