/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Which node of the export a place was last seen at, for one session: a tree of names, each with its node.
 *
 * Bounded: names without children that are not marked are given back to the server, the least recently used
 * first. Marked directories stay, and their place is what events say it is: nothing that is looked up moves
 * or replaces them, because what was looked up may be newer than the events that are on their way. One whose
 * name another took is *nowhere* until the next event says where (the other half of an exchange), or that it
 * is gone. Not locked: the owner does.
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

/* One remembered name. Valid until anything is changed in the struct sl_places that it belongs to. */
struct sl_pname {
	struct sl_hnode by_name; /* key: parent and name */
	struct sl_hnode by_node; /* key: node id; of marked ones */
	struct sl_pname *parent; /* NULL for the root */
	struct sl_list children, sibling;
	struct sl_list lru; /* only without children and mark */
	struct sl_place_node n;
	uint64_t nlookup;
	unsigned marks; /* here and below */
	bool marked;
	uint8_t len;
	char *name; /* not terminated */
};

struct sl_places {
	struct sl_htab table, nodes;
	struct sl_list lru;
	struct sl_pname *root, *nowhere;
	uint64_t max_node;		/* the highest that was ever seen */
	struct sl_place_forget *forget; /* to be sent, and freed, by the owner */
	size_t nforget, cap;
};

#define SL_PLACES_MAX	  65536
#define SL_PLACES_MAX_LEN 65536 /* bytes of a place */

int sl_places_init(struct sl_places *p);
/** Everything but the root. @tell: give the nodes back; else the server has forgotten them. */
void sl_places_clear(struct sl_places *p, bool tell);
void sl_places_fini(struct sl_places *p);
/** How much of the first @len bytes of @place is remembered, and its node: 0 is the root. */
size_t sl_places_find(struct sl_places *p, const char *place, size_t len, struct sl_place_node *n);
/** A lookup of @place gave @n. The directory that it is in is remembered, or @n is given back. */
void sl_places_put(struct sl_places *p, const char *place, size_t len, struct sl_place_node n);
/** What is remembered of @place and of every directory on the way to it may be wrong. */
void sl_places_drop(struct sl_places *p, const char *place);
void sl_places_forget(struct sl_places *p, uint64_t nodeid, uint64_t nlookup);

/** The name that is remembered for all of @place, or NULL. */
struct sl_pname *sl_places_at(struct sl_places *p, const char *place);
struct sl_pname *sl_places_child(struct sl_places *p, struct sl_pname *dir, const char *name, size_t len);
/** A lookup of @name in @dir gave @n. */
void sl_places_add(struct sl_places *p, struct sl_pname *dir, const char *name, size_t len,
		   struct sl_place_node n);
/** @name went, with all that is below it. */
void sl_places_remove(struct sl_places *p, struct sl_pname *name);
/** Another has taken the name of @name: it is nowhere if it has marks, else removed. */
void sl_places_oust(struct sl_places *p, struct sl_pname *name);
/** @name is @newname in @dir now; what was there is ousted. -EINVAL: one would
 * be below itself. */
int sl_places_move(struct sl_places *p, struct sl_pname *name, struct sl_pname *dir, const char *newname,
		   size_t len);

/** Returns 0; -ESTALE when @place is remembered with another node, or @nodeid is marked elsewhere. */
int sl_places_mark(struct sl_places *p, const char *place, uint64_t nodeid);
/** Events have not said so for long: @place is the node @nodeid all the same. True if that was news; events
 * on their way may then be taken for those of other places. */
bool sl_places_correct(struct sl_places *p, const char *place, uint64_t nodeid);
bool sl_places_nowhere(const struct sl_places *p, const struct sl_pname *name);
void sl_places_unmark(struct sl_places *p, struct sl_pname *name);
/** The marked directory of that node, or NULL. */
struct sl_pname *sl_places_marked(struct sl_places *p, uint64_t nodeid);
/** The place of @name in @dir, or of @dir where @len is 0; to be freed. NULL: no memory, or longer than
 * SL_PLACES_MAX_LEN. */
char *sl_places_path(const struct sl_pname *dir, const char *name, size_t len);
