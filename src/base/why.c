/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "base/why.h"

#include <stdarg.h>
#include <stdio.h>

int sl_fail(char **why, int err, const char *fmt, ...)
{
	if (why && !*why) {
		va_list ap;
		va_start(ap, fmt);
		if (vasprintf(why, fmt, ap) < 0)
			*why = NULL;
		va_end(ap);
	}
	return err;
}
