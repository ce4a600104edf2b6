/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What watchers were last told to be at a name, for some thousand names: it is asked soon or not at all. For
 * one thread. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct sl_told {
	uint64_t key;	 /* of directory and name */
	uint64_t nodeid; /* 0: nothing */
	bool dir;
	bool early; /* from what was there, before the event came that led to it: that one is not news any
		       more */
};

#define SL_TOLD_MAX 4096u
struct sl_told_table {
	struct sl_told v[SL_TOLD_MAX];
};

void sl_told_set(struct sl_told_table *t, uint64_t dir, const char *name, uint64_t nodeid, bool is_dir);
/** NULL: not known any more. */
struct sl_told *sl_told_get(struct sl_told_table *t, uint64_t dir, const char *name);
/** Whether it was told early that @name is @nodeid (0: nothing). True only once. */
bool sl_told_early(struct sl_told_table *t, uint64_t dir, const char *name, uint64_t nodeid);
