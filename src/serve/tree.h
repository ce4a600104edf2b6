/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The exported tree as the filesystem has it: finding objects in it without ever leaving it, and what they
 * are. Keeps one descriptor (the root's) and no state per object; any thread may call.
 */
#pragma once

#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>

#include "wire/proto.h"

struct sl_tree;

/* The kernel's file handle of an object. */
struct sl_handle {
	int type;
	unsigned len; /* 0: there is none */
	unsigned char bytes[MAX_HANDLE_SZ];
};

/* An object as it is now. */
struct sl_found {
	struct fuse_attr attr;
	uint64_t generation;
	bool foreign; /* a directory that something is mounted on: shown empty */
	struct sl_handle handle;
};

/* Where an object was last seen, and what tells that it is the same one. */
struct sl_place {
	char *path; /* relative to the root, "" for the root itself; the holder frees it */
	uint64_t ino;
	uint64_t generation;
	uint32_t type; /* S_IFMT bits */
	bool foreign;
	struct sl_handle handle;
};

static inline void sl_place_fini(struct sl_place *p)
{
	free(p->path);
}
#define _cleanup_place_ _cleanup_(sl_place_fini)

/** Returns 0, or -errno with a sentence in *@why. */
int sl_tree_open(const char *path, struct sl_tree **ret, char **why);
void sl_tree_close(struct sl_tree *t);
const char *sl_tree_path(const struct sl_tree *t);
/** The root's descriptor, for fstatfs(). */
int sl_tree_fd(const struct sl_tree *t);

/* In all of these, @hint: find out whether there are extended attributes (SL_ATTR_XATTR). */

/**
 * Find the object of @p. Returns an O_PATH descriptor of it and fills @o; -ESTALE when it is not in the tree
 * any more, or cannot be found; -errno. Not for foreign places.
 */
int sl_tree_find(struct sl_tree *t, const struct sl_place *p, bool hint, struct sl_found *o);
/** The same where only the attributes are wanted, and for foreign places too. Returns 0, -ESTALE, -errno. */
int sl_tree_stat(struct sl_tree *t, const struct sl_place *p, bool hint, struct sl_found *o);
/** The object @name of the directory @dirfd, in one piece (no mix of two objects). Returns 0, -ENOENT,
 * -errno. */
int sl_tree_lookup(struct sl_tree *t, int dirfd, const char *name, bool hint, struct sl_found *o);
/**
 * The same, cheaper: where @name is replaced at that moment, @o may have the attributes of one object and the
 * generation of the other. Such an object is never found again (-ESTALE).
 */
int sl_tree_probe(struct sl_tree *t, int dirfd, const char *name, bool hint, struct sl_found *o);
/** The attributes of what @fd, not a symlink, has open; neither generation nor handle. -ESTALE when it is
 * deleted. */
int sl_tree_stat_fd(struct sl_tree *t, int fd, bool hint, struct sl_found *o);
/** All of what @fd, O_PATH or not, has open, deleted (attr.nlink 0) or not. */
int sl_tree_look(struct sl_tree *t, int fd, bool hint, struct sl_found *o);
/** Whether the open file @fd, opened in the tree, is still in it or was deleted there. Returns 0; -ESTALE
 * where it was moved out. */
int sl_tree_holds(struct sl_tree *t, int fd);
/** Open what the O_PATH descriptor @fd denotes, a regular file or directory; for reading unless @flags say
 * otherwise. Returns a descriptor or -errno. */
int sl_tree_reopen(int fd, int flags);
