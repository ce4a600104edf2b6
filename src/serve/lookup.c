/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* LOOKUP and FORGET, and what needs no open file: READLINK, STATFS. */
#include <limits.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

#include "base/fd.h"
#include "serve/connection.h"

void sl_entry_fill(const struct sl_found *o, struct fuse_entry_out *out)
{
	out->generation = o->generation;
	out->entry_valid = out->attr_valid = SL_EXPORT_VALID_S;
	out->attr = o->attr;
}

int sl_conn_entry(struct sl_conn *c, uint64_t parent, int dirfd, const char *name, struct fuse_entry_out *out)
{
	struct sl_found o;
	int r = sl_tree_lookup(c->e->tree, dirfd, name, sl_conn_hint(c), &o);
	if (r == 0)
		r = sl_nodes_lookup(c->nodes, parent, name, &o, &out->nodeid);
	if (r < 0)
		return r;
	sl_entry_fill(&o, out);
	/* Somebody may be about to watch it. */
	if (sl_conn_watches(c) && S_ISDIR(o.attr.mode) && !o.foreign)
		sl_conn_watch(c, out->nodeid);
	return 0;
}

int sl_conn_lookup(struct sl_conn *c, uint64_t parent, const char *name, struct fuse_entry_out *out)
{
	_cleanup_place_ struct sl_place p;
	struct sl_found o;
	int r = sl_nodes_place(c->nodes, parent, &p);
	if (r < 0)
		return r;
	if (p.type != S_IFDIR)
		return -ENOTDIR;
	if (strlen(name) > NAME_MAX)
		return -ENAMETOOLONG;
	if (!sl_name_valid(name, strlen(name)))
		return -EINVAL;
	if (p.foreign)
		return -ENOENT;
	_cleanup_close_ int dir = sl_tree_find(c->e->tree, &p, false, &o);
	if (dir < 0)
		return dir;
	return sl_conn_entry(c, parent, dir, name, out);
}

void sl_op_lookup(struct sl_conn *c, struct sl_req *rq)
{
	struct fuse_entry_out out = {0};
	int r = sl_conn_lookup(c, rq->m.h.nodeid, rq->m.name, &out);
	if (r < 0)
		sl_reply_err(rq, r);
	else
		sl_reply(rq, &out, sizeof(out));
}

void sl_conn_forget(struct sl_conn *c, uint64_t id, uint64_t count)
{
	struct sl_evid was;
	if (sl_nodes_forget(c->nodes, id, count, &was))
		sl_events_unmarked(c->e->events, &was);
}

void sl_op_forget(struct sl_conn *c, struct sl_req *rq)
{
	if (rq->m.h.opcode == FUSE_FORGET)
		sl_conn_forget(c, rq->m.h.nodeid, rq->m.in.forget.nlookup);
	else
		for (size_t i = 0; i < rq->m.data_len / sizeof(struct fuse_forget_one); i++) {
			struct fuse_forget_one f;
			memcpy(&f, (const char *)rq->m.data + i * sizeof(f), sizeof(f));
			sl_conn_forget(c, f.nodeid, f.nlookup);
		}
	sl_reply_none(rq);
}

void sl_op_readlink(struct sl_conn *c, struct sl_req *rq)
{
	_cleanup_place_ struct sl_place p;
	struct sl_found o;
	char target[PATH_MAX];
	int r = sl_nodes_place(c->nodes, rq->m.h.nodeid, &p);
	if (r == 0 && p.type != S_IFLNK)
		r = -EINVAL;
	_cleanup_close_ int fd = r < 0 ? r : sl_tree_find(c->e->tree, &p, false, &o);
	ssize_t n = fd < 0 ? fd : readlinkat(fd, "", target, sizeof(target));
	if (fd >= 0 && n < 0)
		n = -errno;
	if (n < 0)
		sl_reply_err(rq, (int)n);
	else
		sl_reply_data(rq, NULL, 0, target, (size_t)n);
}

void sl_op_statfs(struct sl_conn *c, struct sl_req *rq)
{
	struct statvfs s;
	if (fstatvfs(sl_tree_fd(c->e->tree), &s) < 0) {
		sl_reply_err(rq, -errno);
		return;
	}
	const struct fuse_statfs_out out = {
	    .st = {.blocks = s.f_blocks,
		   .bfree = s.f_bfree,
		   .bavail = s.f_bavail,
		   .files = s.f_files,
		   .ffree = s.f_ffree,
		   .bsize = (uint32_t)s.f_bsize,
		   .namelen = (uint32_t)SL_MIN(s.f_namemax, (unsigned long)NAME_MAX),
		   .frsize = (uint32_t)s.f_frsize}};
	sl_reply(rq, &out, sizeof(out));
}
