/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* In the place of a backend until there is one. */
#include "base/why.h"
#include "notify/backend.h"

#define WEAK __attribute__((weak))

WEAK int sl_backend_open(const struct sl_backend_config *cfg, struct sl_backend **ret, char **why)
{
	(void)cfg;
	(void)ret;
	return sl_fail(why, -EOPNOTSUPP, "there is no backend");
}

WEAK void sl_backend_close(struct sl_backend *b)
{
	(void)b;
}

WEAK int sl_backend_mark(struct sl_backend *b, int fd, const struct sl_evid *id)
{
	(void)b;
	(void)fd;
	(void)id;
	return -EOPNOTSUPP;
}

WEAK void sl_backend_unmark(struct sl_backend *b, const struct sl_evid *id)
{
	(void)b;
	(void)id;
}

WEAK int sl_backend_settle(struct sl_backend *b)
{
	(void)b;
	return -EOPNOTSUPP;
}
