/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The directories that one client has open. A handle is a descriptor and what getdents64() brought last;
 * offsets are the filesystem's own cookies, so a client may go on from any that it got.
 *
 * Locks: the table's is innermost. A handle's own is held while the handle is read, around file system calls
 * and the locks of nodes.h; no thread holds two.
 */
#pragma once

#include <dirent.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/list.h"

struct sl_dirs;

struct sl_dir {
	/* the table's */
	struct sl_hnode node; /* key: the file handle number */
	unsigned refs;

	uint64_t nodeid;
	int fd; /* -1: a foreign directory, which is empty */

	pthread_mutex_t lock; /* protects all below */
	uint64_t checked;     /* sl_now() when the directory was last seen in its place */
	uint64_t pos;	      /* the cookie of the entry at buf + at */
	size_t at, len;
	char *buf; /* NULL before the first read */
};

/** At most @max handles here, and @max_total of all tables that share the counter @total. */
int sl_dirs_new(unsigned max, atomic_uint *total, unsigned max_total, struct sl_dirs **ret);
/** Closes what is still open. No handle may be in use. */
void sl_dirs_free(struct sl_dirs *d);
/** Take over @fd (also on failure). Returns 0, -ENFILE, -ENOMEM. */
int sl_dirs_add(struct sl_dirs *d, uint64_t nodeid, int fd, uint64_t *ret_fh);
/** The handle @fh of @nodeid with a reference, or NULL. */
struct sl_dir *sl_dirs_get(struct sl_dirs *d, uint64_t nodeid, uint64_t fh);
/** Any handle of @nodeid with a reference, or NULL; looks at all. */
struct sl_dir *sl_dirs_of(struct sl_dirs *d, uint64_t nodeid);
void sl_dirs_put(struct sl_dirs *d, struct sl_dir *h);
/** Forget the handle; it is closed when nobody uses it. Returns 0 or -EBADF. */
int sl_dirs_release(struct sl_dirs *d, uint64_t nodeid, uint64_t fh);

/* With the handle's lock held: */

/** Go to the cookie @off. Returns 0 or -errno. */
int sl_dir_seek(struct sl_dir *h, uint64_t off);
/** The next entry, which stays the next until sl_dir_skip(). Returns 1, 0 at the end, -errno. */
int sl_dir_peek(struct sl_dir *h, const struct dirent64 **ret);
void sl_dir_skip(struct sl_dir *h);
