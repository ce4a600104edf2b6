/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Opening what lies in a tree, and nothing that does not. */
#pragma once

#include "base/macros.h"

/**
 * Open @path, relative, below the directory @root: through no symlink, out of no "..", into no other mount,
 * whatever somebody does to the tree meanwhile; the last component is not followed either. "" is @root
 * itself. Paths longer than a system call takes go in pieces. Returns a descriptor; -ELOOP or -EXDEV where
 * the path would lead elsewhere; -errno.
 */
int sl_open_beneath(int root, const char *path, int flags);
/**
 * A number that tells two uses of one inode number apart, and stays the same over restarts: made from the
 * kernel's file handle of @name in @dirfd ("" for @dirfd itself). 0 where the filesystem has no handles.
 */
uint64_t sl_handle_generation(int dirfd, const char *name);
/** That number of the handle of @type with these @len bytes. */
uint64_t sl_handle_number(int type, const void *bytes, size_t len);
