/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What is at a name of the exported tree now, looked up once for all who ask until sl_states_clear(). Not
 * locked: for one thread at a time.
 */
#pragma once

#include "notify/backend.h"
#include "serve/nodes.h"

struct sl_states;

struct sl_state {
	bool known; /* else: it could not be found out */
	bool present;
	struct sl_found found;
	const char *target; /* of a symlink */
};

int sl_states_new(struct sl_tree *tree, struct sl_states **ret);
void sl_states_free(struct sl_states *st);
/** What was returned before is not valid any more. */
void sl_states_clear(struct sl_states *st);
/** The state of @name (NULL: of the directory itself) in the directory @dir, which is the node @id of @nodes.
 * NULL without memory. */
const struct sl_state *sl_states_get(struct sl_states *st, struct sl_nodes *nodes, uint64_t id,
				     const struct sl_evid *dir, const char *name);
/** A hash of both. */
uint64_t sl_states_key(const struct sl_evid *dir, const char *name);
