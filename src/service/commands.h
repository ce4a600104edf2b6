/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the files of the service's commands share. */
#pragma once

#include <stdarg.h>

#include "service/control.h"

json_t *sl_command_error(const char *fmt, ...) SL_PRINTF(1, 2);
/** A path as JSON can hold it. */
json_t *sl_command_name(const char *path);
/** The object at @path, as sl_printable() writes it, below the clone's root. @populate: bring the names on
 * the way; without it -ENODATA where they have not arrived, so that nobody knows whether there is one. */
int sl_command_find(struct sl_command_call *c, const char *path, bool populate, struct sl_object **ret);

json_t *sl_command_hydrate(struct sl_command_call *c);
json_t *sl_command_verify(struct sl_command_call *c);
json_t *sl_command_watch(struct sl_command_call *c);
