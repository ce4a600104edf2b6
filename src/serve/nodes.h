/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The objects that one client holds: node ids, how often each was looked up, and where each was last seen.
 *
 * A node lives while its count is above zero, or while it is the parent of one that lives (paths are made
 * from the chain of parents); the client may use it only while its count is above zero. One lock, which is
 * innermost: no function here blocks or calls out. Any thread may call.
 */
#pragma once

#include "serve/tree.h"

struct sl_nodes;

/** @root becomes FUSE_ROOT_ID, which is never forgotten. At most @max nodes. */
int sl_nodes_new(uint64_t max, const struct sl_found *root, struct sl_nodes **ret);
void sl_nodes_free(struct sl_nodes *n);

/**
 * Count one lookup of @o, seen as @name in the node @parent; a node is made if it has none yet. Returns 0;
 * -ESTALE where there is no such parent; -ENFILE when the table is full; -ENOMEM.
 */
int sl_nodes_lookup(struct sl_nodes *n, uint64_t parent, const char *name, const struct sl_found *o,
		    uint64_t *ret);
/** @o was seen as @name in the node @parent, without anybody having asked: where it is known, its place. */
void sl_nodes_seen(struct sl_nodes *n, uint64_t parent, const char *name, const struct sl_found *o);
/** Take back @count lookups of @id, and no more than there were. Unknown ids are ignored. */
void sl_nodes_forget(struct sl_nodes *n, uint64_t id, uint64_t count);
/** Where @id is. Returns 0 (then sl_place_fini()), -ESTALE for an id that is not (or no longer) given out,
 * -ENOMEM. */
int sl_nodes_place(struct sl_nodes *n, uint64_t id, struct sl_place *p);
/** How many nodes there are, the root included. */
uint64_t sl_nodes_count(struct sl_nodes *n);
