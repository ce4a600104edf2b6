/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The directories that the kernel has looked up in a mount of an export: where each is, so that an event can
 * be raised by path. One lock, innermost; any thread may call.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct sl_mdirs;

int sl_mdirs_new(struct sl_mdirs **ret);
void sl_mdirs_free(struct sl_mdirs *d);
/** Count a lookup of @id, which is @name in @parent. Returns 1 where it was not known, 0, -ENOMEM. */
int sl_mdirs_add(struct sl_mdirs *d, uint64_t id, uint64_t parent, const char *name);
void sl_mdirs_forget(struct sl_mdirs *d, uint64_t id, uint64_t count);
/** What was @name in @parent, if it is known, is @newname in @newparent; @newparent 0: nowhere. With
 * @exchange also the other way. */
void sl_mdirs_move(struct sl_mdirs *d, uint64_t parent, const char *name, uint64_t newparent,
		   const char *newname, bool exchange);
/** The path below the mount, which the caller frees; NULL where it is not known. */
char *sl_mdirs_path(struct sl_mdirs *d, uint64_t id);
/** All ids but the root's, which the caller frees; NULL without memory. */
uint64_t *sl_mdirs_all(struct sl_mdirs *d, size_t *n);
