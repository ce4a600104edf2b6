/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The body of a FUSE_NOTIFY_FSNOTIFY, checked in both directions. A parsed one points into the message. What
 * is built is what parses: a body that sl_fsnotify_parse() takes comes out of sl_fsnotify_build() the same,
 * byte for byte. No function here blocks or locks.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "wire/proto.h"

/* The longest target of a symlink that travels. */
#define SL_FSNOTIFY_TARGET_MAX 4095
/* No body is longer. */
#define SL_FSNOTIFY_MAX                                                                                      \
	(2 * (sizeof(struct fuse_notify_fsnotify_out) + 255 + sizeof(struct sl_fsnotify_state) +             \
	      SL_FSNOTIFY_TARGET_MAX))

/* One structure of a notification: a name in a directory, or (namelen 0) a node itself. */
struct sl_fsnotify_part {
	uint64_t nodeid, generation;
	uint64_t child, child_generation;
	const char *name; /* not terminated */
	uint32_t namelen;
	bool has_state;
	struct fuse_entry_out entry; /* nodeid 0: there is no such name */
	const char *target;	     /* of a symlink, not terminated */
	uint32_t target_len;
};

struct sl_fsnotify_msg {
	uint64_t seq;
	uint64_t mask;
	uint32_t cookie;
	bool overflow, ignored;
	unsigned nparts; /* 2 for a rename */
	struct sl_fsnotify_part part[2];
};

/**
 * Parse a body. Returns 0, or -EPROTO: lengths that do not add up, names that are none, an overflow or an
 * ignored mark that says more than that, a mask of 0 without a state, two structures that are no rename.
 */
int sl_fsnotify_parse(const void *buf, size_t len, struct sl_fsnotify_msg *m);
/** How long the body of @m is. */
size_t sl_fsnotify_size(const struct sl_fsnotify_msg *m);
/** Write that many bytes. */
void sl_fsnotify_build(const struct sl_fsnotify_msg *m, void *buf);
