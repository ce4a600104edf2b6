/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Native: the change of names that is just being replayed, so that the next service can end what this one has
 * begun. One at a time; on disk in this order with the change itself, also over a loss of power, because it
 * is an attribute of the store's own directory.
 */
#pragma once

#include "store/object.h"

enum sl_pending_op { SL_PENDING_RENAME = 1, SL_PENDING_EXCHANGE, SL_PENDING_MKDIR };

struct sl_pending {
	uint32_t op;
	uint32_t moves;		      /* how many were noted before */
	struct sl_handle dir, newdir; /* MKDIR: dir only */
	struct sl_handle o, other;    /* what is renamed; EXCHANGE: what newname was */
	char name[256], newname[256];
	struct sl_attr attr; /* MKDIR: of the new directory */
};

int sl_pending_set(struct sl_store *s, const struct sl_pending *p);
/** -ENOENT where nothing was left. */
int sl_pending_get(struct sl_store *s, struct sl_pending *p);
void sl_pending_clear(struct sl_store *s);
