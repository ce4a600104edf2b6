/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Opening, reading and closing without having written, as events on a stand-in. What a system call raises is
 * raised: who opens has to close, so OPEN brings its CLOSE_NOWRITE at once, and the origin's own, when it
 * comes, is not told again. ACCESS alone is a change of the time of access (to what it is).
 *
 * For one thread.
 */
#pragma once

#include <stdint.h>

#define SL_USES_EARLY 256u

struct sl_uses {
	uint64_t early[SL_USES_EARLY]; /* keys of what was told to be closed, and is not yet */
	unsigned next;
};

/** What of @mask (FAN_*) about the object @key, which is not 0, is still to be told. */
uint64_t sl_uses_news(struct sl_uses *u, uint64_t key, uint64_t mask);
