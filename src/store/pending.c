/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "store/pending.h"

#include <string.h>
#include <sys/xattr.h>
#include <xxhash.h>

#include "base/log.h"
#include "store/internal.h"

#define XATTR "trusted.sluice.pending"

struct disk {
	uint64_t sum;
	struct sl_pending p;
};

int sl_pending_set(struct sl_store *s, const struct sl_pending *p)
{
	struct disk d;
	memset(&d, 0, sizeof(d)); /* padding as well */
	d.p = *p;
	d.sum = XXH3_64bits(&d.p, sizeof(d.p));
	return fsetxattr(s->base_fd, XATTR, &d, sizeof(d), 0) < 0 ? -errno : 0;
}

int sl_pending_get(struct sl_store *s, struct sl_pending *p)
{
	struct disk d;
	ssize_t n = fgetxattr(s->base_fd, XATTR, &d, sizeof(d));
	if (n < 0)
		return errno == ENODATA ? -ENOENT : -errno;
	if (n != sizeof(d) || d.sum != XXH3_64bits(&d.p, sizeof(d.p)))
		return -EBADMSG;
	*p = d.p;
	p->name[sizeof(p->name) - 1] = p->newname[sizeof(p->newname) - 1] = '\0';
	return 0;
}

void sl_pending_clear(struct sl_store *s)
{
	if (fremovexattr(s->base_fd, XATTR) < 0 && errno != ENODATA)
		sl_err("cannot note that a change of names is done: %s", strerror(errno));
}
