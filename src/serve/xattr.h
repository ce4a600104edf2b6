/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Which extended attributes leave the exporter: the user's own and ACLs; what clones keep about themselves
 * stays. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct sl_conn;

bool sl_xattr_exported(const char *name);
/**
 * Whether the object @name of the directory @fd, or (@name NULL) what @fd denotes, which must not be a
 * symlink, has an exported attribute. Follows no symlink. True where it cannot be told: then a client asks.
 */
bool sl_xattr_any(int fd, const char *name);
/** A descriptor of a node that may have attributes: a regular file or directory. -EOPNOTSUPP for others. */
int sl_xattr_find(struct sl_conn *c, uint64_t nodeid);
