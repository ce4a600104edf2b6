/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Walking over what a store holds, without making any more of it arrive. */
#pragma once

#include "store/object.h"

/**
 * Call @fn for @o and, if it is a directory, for everything below it, directories before what they contain, a
 * file of several names once. What cannot be loaded (a damaged record) is reported with @o NULL and the
 * reason. @path is relative to the clone's root. A negative return of @fn ends the walk and becomes its
 * result; for a directory, 1 says not to go below.
 */
typedef int (*sl_walk_fn)(void *arg, const char *path, struct sl_object *o, int err);
int sl_walk(struct sl_object *o, sl_walk_fn fn, void *arg);
/** The same by name: a file of several names once for each of them. */
int sl_walk_names(struct sl_object *o, sl_walk_fn fn, void *arg);

/**
 * What is at @path, relative to the clone's root, here; and the directory that it is in. Both are new
 * references; -ENOENT, -ENOTDIR, -errno.
 */
int sl_object_by_path(struct sl_store *s, const char *path, struct sl_object **dir, struct sl_object **ret);

/** The names in a directory, without "." and "..". Freed by sl_names_free(). */
struct sl_name {
	uint64_t ino;
	unsigned char type; /* DT_* */
	char *name;
};
int sl_names_read(struct sl_object *dir, struct sl_name **ret, size_t *n);
void sl_names_free(struct sl_name *v, size_t n);
