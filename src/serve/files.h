/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A bounded cache of open regular files, shared by all connections of an export and keyed by (inode,
 * generation).
 *
 * An entry in use has references and is not counted out; the least recently used of the others is closed
 * where the bound is reached, and a thread of the cache closes what was not used for some seconds, so that an
 * idle exporter neither keeps deleted files alive nor filesystems busy. One lock, innermost, held for no
 * system call but close().
 */
#pragma once

#include <stdatomic.h>
#include <stdint.h>

struct sl_files;

struct sl_file {
	int fd;
	_Atomic uint64_t checked; /* sl_now() when its object was last seen in its place */
};

int sl_files_new(unsigned max, struct sl_files **ret);
/** No entry may be in use. */
void sl_files_free(struct sl_files *c);
/** The open file of an object with a reference to it, or NULL. */
struct sl_file *sl_files_get(struct sl_files *c, uint64_t ino, uint64_t generation);
/**
 * Add @fd, which the cache takes over (also on failure), and return its entry with a reference; the entry
 * that is there already where another thread was faster. NULL without memory.
 */
struct sl_file *sl_files_add(struct sl_files *c, uint64_t ino, uint64_t generation, int fd);
/** Give the reference back. @stale: the entry is not to be found again. */
void sl_files_put(struct sl_files *c, struct sl_file *f, int stale);
