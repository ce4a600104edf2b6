/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "wire/fsnotify.h"

#include <errno.h>
#include <string.h>
#include <sys/fanotify.h>
#include <sys/stat.h>

#include "base/fd.h"
#include "base/macros.h"

#ifndef FAN_RENAME
#define FAN_RENAME 0x10000000
#endif

#define KNOWN_FLAGS (FUSE_FSNOTIFY_OVERFLOW | FUSE_FSNOTIFY_IGNORED | FUSE_FSNOTIFY_MORE | SL_FSNOTIFY_STATE)

/* Take @n bytes of what is left. NULL where there are not so many. */
static const void *take(const char **p, size_t *left, size_t n)
{
	if (n > *left)
		return NULL;
	const char *at = *p;
	*p += n;
	*left -= n;
	return at;
}

static int parse_state(const char **p, size_t *left, struct sl_fsnotify_part *part)
{
	struct sl_fsnotify_state st;
	const void *at = take(p, left, sizeof(st));
	if (!at)
		return -EPROTO;
	memcpy(&st, at, sizeof(st));
	bool link = st.entry.nodeid && S_ISLNK(st.entry.attr.mode);
	if (st.reserved || st.target_len > SL_FSNOTIFY_TARGET_MAX || link != (st.target_len > 0))
		return -EPROTO;
	part->has_state = true;
	part->entry = st.entry;
	part->target_len = st.target_len;
	part->target = take(p, left, st.target_len);
	if (!part->target || memchr(part->target, '\0', st.target_len))
		return -EPROTO;
	return 0;
}

/* One structure, its name and its state. */
static int parse_part(const char **p, size_t *left, struct fuse_notify_fsnotify_out *o,
		      struct sl_fsnotify_part *part)
{
	const void *at = take(p, left, sizeof(*o));
	if (!at)
		return -EPROTO;
	memcpy(o, at, sizeof(*o));
	if ((o->flags & ~KNOWN_FLAGS) || o->reserved)
		return -EPROTO;
	*part = (struct sl_fsnotify_part){.nodeid = o->nodeid,
					  .generation = o->generation,
					  .child = o->child,
					  .child_generation = o->child_generation,
					  .namelen = o->namelen};
	part->name = take(p, left, o->namelen);
	if (!part->name || (o->namelen && !sl_name_valid(part->name, o->namelen)))
		return -EPROTO;
	return o->flags & SL_FSNOTIFY_STATE ? parse_state(p, left, part) : 0;
}

int sl_fsnotify_parse(const void *buf, size_t len, struct sl_fsnotify_msg *m)
{
	struct fuse_notify_fsnotify_out o, o2;
	const char *p = buf;
	size_t left = len;
	*m = (struct sl_fsnotify_msg){.nparts = 1};
	int r = parse_part(&p, &left, &o, &m->part[0]);
	if (r < 0)
		return r;
	m->seq = o.seq;
	m->mask = o.mask;
	m->cookie = o.cookie;
	m->overflow = o.flags & FUSE_FSNOTIFY_OVERFLOW;
	m->ignored = o.flags & FUSE_FSNOTIFY_IGNORED;
	if (o.flags & FUSE_FSNOTIFY_MORE) {
		m->nparts = 2;
		r = parse_part(&p, &left, &o2, &m->part[1]);
		if (r < 0)
			return r;
		if (o2.seq != o.seq || o2.mask != o.mask || o2.cookie != o.cookie ||
		    (o2.flags & ~SL_FSNOTIFY_STATE))
			return -EPROTO;
	}
	if (left)
		return -EPROTO;
	bool rename = m->mask & FAN_RENAME;
	if (rename != (m->nparts == 2) || (rename && (!m->part[0].namelen || !m->part[1].namelen)))
		return -EPROTO;
	if (m->overflow || m->ignored) {
		const struct sl_fsnotify_part *q = &m->part[0];
		bool more = m->mask || m->cookie || q->namelen || q->has_state || q->child;
		return more || (m->overflow && (m->ignored || q->nodeid)) || (m->ignored && !q->nodeid)
			   ? -EPROTO
			   : 0;
	}
	return m->part[0].nodeid == 0 || (m->nparts == 2 && m->part[1].nodeid == 0) ||
		       (m->mask == 0 && !m->part[0].has_state)
		   ? -EPROTO
		   : 0;
}

size_t sl_fsnotify_size(const struct sl_fsnotify_msg *m)
{
	size_t n = 0;
	for (unsigned i = 0; i < m->nparts; i++)
		n += sizeof(struct fuse_notify_fsnotify_out) + m->part[i].namelen +
		     (m->part[i].has_state ? sizeof(struct sl_fsnotify_state) + m->part[i].target_len : 0);
	return n;
}

void sl_fsnotify_build(const struct sl_fsnotify_msg *m, void *buf)
{
	char *p = buf;
	for (unsigned i = 0; i < m->nparts; i++) {
		const struct sl_fsnotify_part *q = &m->part[i];
		struct fuse_notify_fsnotify_out o = {.seq = m->seq,
						     .nodeid = q->nodeid,
						     .generation = q->generation,
						     .child = q->child,
						     .child_generation = q->child_generation,
						     .mask = m->mask,
						     .cookie = m->cookie,
						     .namelen = q->namelen};
		if (i == 0)
			o.flags = (m->overflow ? FUSE_FSNOTIFY_OVERFLOW : 0) |
				  (m->ignored ? FUSE_FSNOTIFY_IGNORED : 0) |
				  (m->nparts == 2 ? FUSE_FSNOTIFY_MORE : 0);
		o.flags |= q->has_state ? SL_FSNOTIFY_STATE : 0;
		p = mempcpy(p, &o, sizeof(o));
		if (q->namelen)
			p = mempcpy(p, q->name, q->namelen);
		if (!q->has_state)
			continue;
		const struct sl_fsnotify_state st = {.entry = q->entry, .target_len = q->target_len};
		p = mempcpy(p, &st, sizeof(st));
		if (q->target_len)
			p = mempcpy(p, q->target, q->target_len);
	}
}
