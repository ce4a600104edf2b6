/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Which changes are a client's own, where the backend does not say who made them (inotify): what is about to
 * be done is noted before, and taken out when it is heard of.
 *
 * Name events come one for one. Those about content are merged by the kernel, so that one is enough for
 * several changes: they stand until everything that had happened by then was heard of. A change of somebody
 * else's to the same file at the same moment counts as the client's own then, whose kernel has told its
 * watchers.
 *
 * One lock, innermost. Any thread may call.
 */
#pragma once

#include "notify/backend.h"

struct sl_own;

/* A change that is being made: a kind at a name of @dir, or (name NULL) of the object @dir itself. */
struct sl_own_note {
	struct sl_evid dir;
	const char *name;
	uint64_t mask;
};

int sl_own_new(struct sl_own **ret);
void sl_own_free(struct sl_own *o);
/** Note them before they are made; returns what sl_own_done() takes, which is not 0. */
uint64_t sl_own_begin(struct sl_own *o, const struct sl_own_note *v, unsigned n);
/** They were made, or not. */
void sl_own_done(struct sl_own *o, uint64_t id, bool made);
/** The kinds of @c that are somebody else's. A rename is the client's own, or not, as a whole. */
uint64_t sl_own_filter(struct sl_own *o, const struct sl_change *c);
/** All that had happened at @when (sl_now()) was heard of. */
void sl_own_heard(struct sl_own *o, uint64_t when);
