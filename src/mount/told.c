/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "mount/told.h"

#include <string.h>
#include <xxhash.h>

static struct sl_told *slot(struct sl_told_table *t, uint64_t dir, const char *name, uint64_t *key)
{
	*key = XXH64(name, strlen(name), dir) | 1;
	return &t->v[*key / 2 % SL_TOLD_MAX];
}

void sl_told_set(struct sl_told_table *t, uint64_t dir, const char *name, uint64_t nodeid, bool is_dir)
{
	uint64_t key;
	struct sl_told *x = slot(t, dir, name, &key);
	*x = (struct sl_told){.key = key, .nodeid = nodeid, .dir = is_dir};
}

struct sl_told *sl_told_get(struct sl_told_table *t, uint64_t dir, const char *name)
{
	uint64_t key;
	struct sl_told *x = slot(t, dir, name, &key);
	return x->key == key ? x : NULL;
}

bool sl_told_early(struct sl_told_table *t, uint64_t dir, const char *name, uint64_t nodeid)
{
	struct sl_told *x = sl_told_get(t, dir, name);
	if (!x || !x->early || x->nodeid != nodeid)
		return false;
	x->early = false;
	return true;
}
