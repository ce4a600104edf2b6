/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Which node of the export a place was last seen at, for one connection. Bounded: the least recently used are
 * given back to the server. Not locked: the owner does.
 */
#pragma once

#include "base/list.h"

struct sl_place_node {
	uint64_t nodeid, generation;
};

/* A node to be given back: a FORGET of @nlookup. */
struct sl_place_forget {
	uint64_t nodeid, nlookup;
};

struct sl_places {
	struct sl_htab table;
	struct sl_list lru;
	struct sl_place_forget *forget; /* to be sent, and freed, by the owner */
	size_t nforget, cap;
};

#define SL_PLACES_MAX 65536

void sl_places_init(struct sl_places *p);
/** Without forgetting: for when the connection is gone. */
void sl_places_clear(struct sl_places *p);
bool sl_places_get(struct sl_places *p, const char *place, size_t len, struct sl_place_node *n);
/** A lookup of @place gave @n. */
void sl_places_put(struct sl_places *p, const char *place, size_t len, struct sl_place_node n);
/** What is remembered of @place and of every directory on the way to it may be wrong. */
void sl_places_drop(struct sl_places *p, const char *place);
void sl_places_forget(struct sl_places *p, uint64_t nodeid, uint64_t nlookup);
