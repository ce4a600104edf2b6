/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The files that one client of a writable export has open: a descriptor of our own for each OPEN, so that
 * what is deleted or replaced can be used until it is closed, and may be accessed as it was opened.
 *
 * One lock, innermost, held for no system call. Any thread may call.
 */
#pragma once

#include <stdatomic.h>
#include <stdint.h>

#include "base/list.h"

struct sl_opens;

struct sl_open {
	/* the table's */
	struct sl_hnode by_fh;	 /* key: the file handle number */
	struct sl_hnode by_node; /* key: nodeid */
	unsigned refs;

	uint64_t nodeid;
	int fd;
	_Atomic uint64_t checked; /* sl_now() when the file was last seen not to have left the tree */
};

/** At most @max handles here, and @max_total of all tables that share the counter @total. */
int sl_opens_new(unsigned max, atomic_uint *total, unsigned max_total, struct sl_opens **ret);
/** Closes what is still open. No handle may be in use. */
void sl_opens_free(struct sl_opens *t);
/** Take over @fd (also on failure). Returns 0, -ENFILE, -ENOMEM. */
int sl_opens_add(struct sl_opens *t, uint64_t nodeid, int fd, uint64_t *ret_fh);
/** The handle @fh of @nodeid with a reference, or NULL. */
struct sl_open *sl_opens_get(struct sl_opens *t, uint64_t nodeid, uint64_t fh);
/** Any handle of @nodeid with a reference, or NULL. */
struct sl_open *sl_opens_of(struct sl_opens *t, uint64_t nodeid);
void sl_opens_put(struct sl_opens *t, struct sl_open *h);
/** Forget the handle; it is closed when nobody uses it. Returns 0 or -EBADF. */
int sl_opens_release(struct sl_opens *t, uint64_t nodeid, uint64_t fh);
