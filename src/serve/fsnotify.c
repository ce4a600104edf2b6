/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* FUSE_FSNOTIFY: marks, and what the client says that it has. */
#include <sys/stat.h>

#include "serve/connection.h"

static int mark(struct sl_conn *c, uint64_t id, uint64_t mask, struct fuse_fsnotify_out *out)
{
	_cleanup_place_ struct sl_place p = {0};
	struct sl_found o;
	if (!mask)
		return sl_events_mark(c->e->events, c->session, id, -EBADF, 0, 0, out);
	int r = sl_nodes_place(c->nodes, id, &p);
	if (r < 0)
		return r;
	if (p.type != S_IFDIR)
		return -ENOTDIR;
	if (p.foreign)
		return -EOPNOTSUPP;
	_cleanup_close_ int fd = sl_tree_find(c->e->tree, &p, false, &o);
	if (fd < 0)
		return fd;
	return sl_events_mark(c->e->events, c->session, id, fd, mask, c->e->cfg.max_marks, out);
}

/* All that an event can be raised for. */
#define WATCH_MASK                                                                                           \
	(FAN_CREATE | FAN_DELETE | FAN_MOVED_FROM | FAN_MOVED_TO | FAN_RENAME | FAN_MODIFY | FAN_ATTRIB |    \
	 FAN_CLOSE_WRITE | FAN_ONDIR | FAN_EVENT_ON_CHILD)

void sl_conn_watch(struct sl_conn *c, uint64_t nodeid)
{
	struct fuse_fsnotify_out out;
	/* Where it cannot be watched, somebody has said so in the log, and what is cached of it expires soon.
	 */
	(void)mark(c, nodeid, WATCH_MASK | c->hooks->uses, &out);
}

void sl_conn_watch_all(struct sl_conn *c)
{
	size_t n;
	_cleanup_free_ uint64_t *v = sl_nodes_dirs(c->nodes, &n);
	for (size_t i = 0; i < n && v; i++)
		sl_conn_watch(c, v[i]);
}

static int ack(struct sl_conn *c, uint64_t seq, struct fuse_fsnotify_out *out)
{
	*out = (struct fuse_fsnotify_out){.seq = sl_session_seq(c->session)};
	return sl_session_ack(c->session, seq);
}

/* Waits for the thread that tells of changes: what that has to do is bounded by the kernel's queue. */
static int told(struct sl_conn *c, struct fuse_fsnotify_out *out)
{
	sl_events_settle(c->e->events);
	*out = (struct fuse_fsnotify_out){.seq = sl_session_seq(c->session)};
	return 0;
}

void sl_op_fsnotify(struct sl_conn *c, struct sl_req *rq)
{
	const struct fuse_fsnotify_in *in = &rq->m.in.fsnotify;
	struct fuse_fsnotify_out out;
	int r;
	if (!(c->flags & FUSE_FSNOTIFY_SUPPORT))
		r = -ENOSYS;
	else if (in->flags & SL_FSNOTIFY_ACK)
		r = rq->m.h.nodeid || in->flags != SL_FSNOTIFY_ACK ? -EINVAL : ack(c, in->mask, &out);
	else if (in->flags & SL_FSNOTIFY_TOLD)
		r = rq->m.h.nodeid || in->mask || in->flags != SL_FSNOTIFY_TOLD ? -EINVAL : told(c, &out);
	else
		r = in->flags || in->reserved ? -EINVAL : mark(c, rq->m.h.nodeid, in->mask, &out);
	if (r < 0)
		sl_reply_err(rq, r);
	else
		sl_reply(rq, &out, sizeof(out));
}
