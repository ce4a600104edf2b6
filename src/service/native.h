/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What a running clone does differently behind the fanotify gate: its directory is a mount of its store's own
 * filesystem. */
#pragma once

#include "service/clone.h"

/** Does the clone's filesystem lie on its directory? Without a service that is a dead mount. */
bool sl_native_left(const char *store, const struct sl_store_config *cfg);
/** Take away what a service that is gone left behind: its mount, and whoever still uses its filesystem.
 * Before the store is opened. */
int sl_native_clear(const char *store, const struct sl_store_config *cfg, char **why);
/**
 * Close the gate, and show the tree: at once where names can come when they are wanted, else after all of
 * them were brought (@progress: as sl_fill_tree()). A store that is complete stays so: its directories are
 * not lazy.
 */
int sl_native_open(struct sl_clone *c, bool (*progress)(void *arg, const struct sl_fill_progress *p),
		   void *arg, char **why);
/** Is the tree shown on the clone's directory? */
bool sl_native_shown(struct sl_clone *c);
/** Did somebody unmount it, everywhere, so that there is nothing left to serve? */
bool sl_native_gone(struct sl_clone *c);
/**
 * Take the mount away. -EBUSY while something is in use, here or where it is mounted besides; with @force
 * what is in use becomes inaccessible.
 */
int sl_native_hide(struct sl_clone *c, bool force, char **why);
/** The tree is hidden: nothing is asked any more. */
void sl_native_stop(struct sl_clone *c);
