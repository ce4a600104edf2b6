/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The objects that one client holds: node ids, how often each was looked up, and where each was last seen.
 *
 * A node lives while its count is above zero, or while it is the parent of one that lives (paths are made
 * from the chain of parents); the client may use it only while its count is above zero. One lock, which is
 * innermost: no function here blocks or calls out. Any thread may call.
 */
#pragma once

#include "notify/backend.h"
#include "serve/tree.h"

struct sl_nodes;

struct sl_noderef {
	uint64_t id; /* 0: none */
	uint64_t generation;
	bool known;    /* the client may use it */
	uint64_t mask; /* of its mark; 0 as well where the way to it is not known any more */
};

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
/** Take back @count lookups of @id, and no more than there were. Unknown ids are ignored. The last one takes
 * the node's mark with it: true, if it had one, and whose that was in *@was. */
bool sl_nodes_forget(struct sl_nodes *n, uint64_t id, uint64_t count, struct sl_evid *was);
/** Where @id is. Returns 0 (then sl_place_fini()), -ESTALE for an id that is not (or no longer) given out,
 * -ENOMEM. */
int sl_nodes_place(struct sl_nodes *n, uint64_t id, struct sl_place *p);
/** What @id is, its parent (id 0 for the root) and its name (of 256 bytes, or NULL) there. False for what is
 * not given out. */
bool sl_nodes_where(struct sl_nodes *n, uint64_t id, struct sl_evid *obj, struct sl_noderef *parent,
		    char *name);
/** The directories that the client may use: their ids, which the caller frees. NULL without memory. */
uint64_t *sl_nodes_dirs(struct sl_nodes *n, size_t *ret);
/** How many nodes there are, the root included. */
uint64_t sl_nodes_count(struct sl_nodes *n);

/*
 * Marks. A marked node is a directory; what is told of is kept here as one mask per node, and what the
 * backend has to be told is left to the caller.
 */

/**
 * Set the mark of @id, of at most @max in all; 0 takes it away. The former one in *@old, the object in *@obj.
 * Returns 0; -ESTALE for a node that is not given out, or was moved to where this client has no node;
 * -ENOTDIR; -ENOSPC.
 */
int sl_nodes_mark(struct sl_nodes *n, uint64_t id, uint64_t mask, uint64_t max, uint64_t *old,
		  struct sl_evid *obj);
/** Take all marks away: their @count objects in *@ret, to be freed. -ENOMEM: nothing was done. */
int sl_nodes_unmark_all(struct sl_nodes *n, struct sl_evid **ret, size_t *count);

/** The node of an object that a change is about. False where this client has none. */
bool sl_nodes_ref(struct sl_nodes *n, const struct sl_evid *id, struct sl_noderef *r);
/** The directory that was seen as @name in @parent; of several the one that was first. */
bool sl_nodes_dir_at(struct sl_nodes *n, uint64_t parent, const char *name, struct sl_noderef *r);
/** Where @id was last seen: in which directory, which object that is, under which name (to be freed). -ENOENT
 * for the root, and for what has left its place; -ENOMEM. */
int sl_nodes_parent(struct sl_nodes *n, uint64_t id, struct sl_noderef *dir, struct sl_evid *obj,
		    char **name);
/**
 * A change says that the node @id went from (@parent, @name) to (@newparent, @newname); @newparent 0: to
 * where this client has no node. Then nothing below it is in reach any more, until it is looked up again.
 * Ignored when @id was seen elsewhere meanwhile: what was looked up is newer than what is told.
 */
void sl_nodes_moved(struct sl_nodes *n, uint64_t id, uint64_t parent, const char *name, uint64_t newparent,
		    const char *newname);
