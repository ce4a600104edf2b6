/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Stopping a clone's service, for stop and remove. */
#pragma once

#include <stdbool.h>

/** Returns when it has ended; a dead mount is taken away. -EBUSY while something is in use, unless @force. */
int sl_service_stop(const char *store, bool force, char **why);
