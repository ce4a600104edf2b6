/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The clones that this user has: a directory of symlinks to their stores, named by the clones' ids.
 *
 *   root: /var/lib/sluice     others: $XDG_STATE_HOME/sluice, or ~/.local/state/sluice
 *     clones/ID -> STORE      data/NAME-ID/ (stores that were not put elsewhere)
 */
#pragma once

#include "base/why.h"
#include "store/store.h"

/** The registry's directory, made if it is not there. The caller frees it. */
int sl_registry_dir(char **ret, char **why);
int sl_registry_add(const char *id, const char *store, char **why);
void sl_registry_remove(const char *id);
/** Call @fn for each registered store that is still there. */
int sl_registry_each(int (*fn)(void *arg, const char *store, const struct sl_store_config *c), void *arg,
		     char **why);
/**
 * The clone that @path belongs to: a store itself, a clone's directory, or anything below that. Sets the
 * store's path and, if wanted, the path below the clone's root. -ENOENT with a sentence.
 */
int sl_registry_find(const char *path, char **store, char **below, char **why);
/** @path made absolute, without looking into what is mounted at its end: works for dead mounts too. */
char *sl_absolute(const char *path);
