/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Evicting names: directories become unpopulated again. Where directories are lazy behind the fanotify gate.
 *
 * What is taken away is what would come again: a directory stays populated where the origin does not have
 * just its names, of just these objects, or where anything in it is in use, is here with content, or is not
 * as the origin has it.
 */
#pragma once

#include "service/clone.h"

struct sl_unlist {
	uint64_t directories, names; /* that are unpopulated now; that went */
	uint64_t kept;		     /* populated directories that stay so */
	bool (*go_on)(void *arg);
	void *arg;
};

/** Everything below the directory @dir, and itself. Blocks for the origin and for those who may just be
 * looking. 0 or -errno; -EINTR when @u->go_on says false. */
int sl_unlist(struct sl_clone *c, struct sl_object *dir, struct sl_unlist *u);
/** What a service that was killed had moved away comes back. Before anybody may look. */
void sl_unlist_undo(struct sl_store *s);
