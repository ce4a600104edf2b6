/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* An error number with a sentence for the person who has to act on it. */
#pragma once

#include "base/macros.h"

/**
 * Put the formatted sentence into *@why (if @why is not NULL and nothing is there yet; the caller frees it)
 * and return
 * @err, for `return sl_fail(why, -EBUSY, "the store %s is in use", path);`
 */
int sl_fail(char **why, int err, const char *fmt, ...) SL_PRINTF(3, 4);
