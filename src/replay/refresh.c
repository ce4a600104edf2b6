/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Files whose readers go past us get the new content as a whole, fetched before it is put in place. */
#include <fcntl.h>

#include "base/fd.h"
#include "replay/internal.h"

#define REFRESH_MAX (16u << 20)
#define PIECE	    (1u << 20)
#define TRIES	    3

/* Into @fd. 1: it changed meanwhile, *@a is what it is now. */
static int fetch(struct sl_replay *p, const char *place, struct sl_attr *a, int fd)
{
	struct sl_version v = sl_attr_version(a);
	for (uint64_t off = 0; off < a->size;) {
		size_t len = (size_t)SL_MIN(a->size - off, (uint64_t)PIECE);
		struct sl_oreq q = {.op = SL_OREQ_READ, .place = place, .off = off, .len = len};
		int r = sl_origin_call(p->cfg.origin, &q);
		struct sl_version now = sl_attr_version(&q.attr);
		if (r == 0 && !sl_version_eq(&v, &now)) {
			*a = q.attr;
			r = 1;
		} else if (r == 0 && q.nread != len) {
			r = -EIO;
		} else if (r == 0) {
			r = sl_pwrite_full(fd, q.data, len, (off_t)off);
		}
		sl_oreq_fini(&q);
		if (r != 0)
			return r;
		off += len;
	}
	return 0;
}

int replay_refresh(struct sl_replay *p, struct sl_object *o, const struct sl_attr *attr)
{
	struct sl_attr a = *attr;
	_cleanup_free_ char *place = NULL;
	int r = sl_object_place(o, &place);
	if (r < 0)
		return r;
	for (int i = 0; i < TRIES; i++) {
		if (a.size > REFRESH_MAX)
			return -EFBIG;
		if (!S_ISREG(a.mode))
			return -ESTALE;
		_cleanup_close_ int fd =
		    openat(sl_store_tree_fd(p->cfg.store), ".", O_RDWR | O_TMPFILE | O_CLOEXEC, 0600);
		if (fd < 0)
			return -errno;
		r = fetch(p, place, &a, fd);
		if (r == 0)
			return sl_fill_replace(p->cfg.fill, o, &a, fd);
		if (r < 0)
			return r;
	}
	return -EAGAIN;
}
