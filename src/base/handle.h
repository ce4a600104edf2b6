/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The kernel's file handles, as values: what name_to_handle_at(2) gives, of the filesystems that a native
 * store may be on. */
#pragma once

#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "base/macros.h"

#define SL_HANDLE_MAX 24 /* XFS 12, ext4 8, btrfs 20 bytes */

struct sl_handle {
	uint32_t len; /* 0: none */
	int32_t type;
	unsigned char b[SL_HANDLE_MAX];
};

/** The same object of one filesystem. */
static inline bool sl_handle_eq(const struct sl_handle *a, const struct sl_handle *b)
{
	return a->len && a->len == b->len && !memcmp(a->b, b->b, a->len);
}

/** The handle of @name in @dirfd, not followed; of @dirfd itself for "". -EOPNOTSUPP where the filesystem has
 * none that we can keep. */
int sl_handle_get(int dirfd, const char *name, struct sl_handle *ret);
/**
 * Open by handle, on the mount of @mount_fd (no O_PATH descriptor). Needs CAP_DAC_READ_SEARCH. Returns a
 * descriptor; -ESTALE where the object is gone; -errno.
 */
int sl_handle_open(int mount_fd, const struct sl_handle *h, int flags);
/**
 * The handle of a directory in which the open file @fd stands: the one it was found in last, if the kernel
 * still knows. Linux 6.13. -ENOENT where nobody can say.
 */
int sl_handle_parent(int fd, struct sl_handle *ret);
/** As the kernel's calls take it, in @room. */
#define SL_HANDLE_ROOM (sizeof(struct file_handle) + SL_HANDLE_MAX)
struct file_handle *sl_handle_raw(const struct sl_handle *h, char room[SL_HANDLE_ROOM]);
/** The inode number in it. False where we do not know where in the handle it is. */
bool sl_handle_ino(const struct sl_handle *h, uint64_t *ino);
/** A number that tells an object from every other one of its filesystem, also from earlier ones with its
 * inode number. */
uint64_t sl_handle_hash(const struct sl_handle *h);
