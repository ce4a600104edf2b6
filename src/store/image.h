/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The image of a clone: a sparse file with an XFS filesystem that has reflinks, behind a loop device. It
 * takes from its host what is written to it and gives back what is deleted (sl_fs_trim()).
 *
 * Sizes are in bytes and include the filesystem's own needs. No function keeps state; all may be called from
 * any thread, those of one image one at a time. All return 0 or -errno, with a sentence in *@why (see
 * base/why.h).
 */
#pragma once

#include <stdint.h>

/** XFS takes nothing below 300 MB, and its log wants an eighth of this. */
#define SL_IMAGE_MIN (512ull << 20)
/** What the image of a clone is mounted with. */
#define SL_IMAGE_OPTIONS "logbsize=256k,allocsize=64k"

/**
 * Make the file @path, which must not exist, with mode 0600 and an empty filesystem. @bytes is rounded down
 * to MiB. Takes some 10 ms and, on the host, the size of the log (64 MiB, 128 from 8 GiB on). Leaves nothing
 * behind when it fails: -EEXIST, -EINVAL below the minimum, -ENOENT without mkfs.xfs, -ENOSPC, -EFBIG (the
 * host's files cannot be that large).
 */
int sl_image_create(const char *path, uint64_t bytes, char **why);

/** The same filesystem on the whole of a block device. Refuses one that seems to contain something. */
int sl_device_format(const char *dev, char **why);

/**
 * Put a loop device on @path; its name goes into @dev. It lives as long as @ret_loop_fd or a mount of it is
 * open. Direct I/O is used where the host can, so that content is not cached twice.
 */
#define SL_LOOP_DEV_MAX 64
int sl_image_attach(const char *path, int *ret_loop_fd, char dev[SL_LOOP_DEV_MAX], char **why);

/** The size of the filesystem in the image @image, after its superblock. -EBADMSG if there is none. */
int sl_image_fs_size(int image, uint64_t *bytes);
