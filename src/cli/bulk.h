/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Commands that hand paths to a clone's service and wait: hydrate, evict, pin, unpin, verify. */
#pragma once

#include "cli/call.h"

/**
 * Parse --json, --help and @more (each given to @option with the request; 0 or the exit status), send, show
 * progress, then
 * @show the answer. @item: for lines before it. SL_EXIT_DIFFERS where the answer counts wrong, changed or
 * failed.
 */
int sl_bulk_run(const struct sl_command *cmd, int argc, char **argv, const struct option *more,
		int (*option)(const struct sl_command *cmd, int c, json_t *request), void (*item)(json_t *i),
		void (*show)(json_t *answer));
