/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Starting a clone's service in the background, for clone and start. */
#pragma once

#include <stdbool.h>

/** Returns when the clone can be used: 0, or -errno with the service's reason. @need_origin: fail without the
 * origin. @progress: show on a terminal how far the names of a native clone are, where that takes time. */
int sl_service_start(const char *store, bool need_origin, bool progress, char **why);
/** Wait until no service has the store open any more. False after @seconds. */
bool sl_service_gone(const char *store, unsigned seconds);
