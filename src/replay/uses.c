/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "replay/uses.h"

#include <sys/fanotify.h>

uint64_t sl_uses_news(struct sl_uses *u, uint64_t key, uint64_t mask)
{
	uint64_t use = mask & (FAN_OPEN | FAN_CLOSE_NOWRITE);
	/* One that is open for writing is closed by another kind of event, whose open comes with it. */
	if (use == FAN_OPEN && !(mask & FAN_CLOSE_WRITE))
		u->early[u->next++ % SL_USES_EARLY] = key;
	for (unsigned i = 0; use == FAN_CLOSE_NOWRITE && i < SL_USES_EARLY; i++) {
		if (u->early[i] != key)
			continue;
		u->early[i] = 0;
		return mask & ~(uint64_t)FAN_CLOSE_NOWRITE;
	}
	return mask;
}
