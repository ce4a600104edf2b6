/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Names of a writable export: MKNOD, MKDIR, SYMLINK, LINK, UNLINK, RMDIR, RENAME. Each acts in a directory
 * that was found in the tree; a name is one component, which the codec has checked, and no call here follows
 * it.
 */
#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>

#include "base/fd.h"
#include "serve/change.h"
#include "serve/owner.h"

int sl_change_dir(struct sl_conn *c, uint64_t nodeid)
{
	_cleanup_place_ struct sl_place p;
	struct sl_found o;
	int r = sl_nodes_place(c->nodes, nodeid, &p);
	if (r < 0)
		return r;
	if (p.type != S_IFDIR)
		return -ENOTDIR;
	return p.foreign ? -EROFS : sl_tree_find(c->e->tree, &p, false, &o);
}

mode_t sl_change_mode(int dirfd, uint32_t mode, uint32_t umask)
{
	char p[SL_PROC_FD_MAX];
	bool acl = getxattr(sl_proc_fd_path(p, dirfd, NULL), "system.posix_acl_default", NULL, 0) > 0;
	return (mode_t)(mode & ~(acl ? 0 : umask & 0777));
}

int sl_change_begin(struct sl_conn *c, const struct sl_req *rq)
{
	return c->e->cfg.owners ? sl_owner_set(rq->m.h.uid, rq->m.h.gid) : 0;
}

void sl_change_end(struct sl_conn *c)
{
	if (c->e->cfg.owners)
		sl_owner_reset();
}

/* As FUSE encodes it. */
static dev_t decode_dev(uint32_t d)
{
	return makedev((d & 0xfff00) >> 8, (d & 0xff) | ((d >> 12) & 0xfff00));
}

static int make(struct sl_req *rq, int dirfd)
{
	const struct sl_msg_in *m = &rq->m;
	switch (m->h.opcode) {
	case FUSE_SYMLINK: /* the first name is the new one's */
		return symlinkat(m->name2, dirfd, m->name);
	case FUSE_MKDIR:
		return mkdirat(
		    dirfd, m->name,
		    sl_change_mode(dirfd, m->in.mkdir.mode & ~(uint32_t)S_IFMT, m->in.mkdir.umask));
	default:
		return mknodat(dirfd, m->name, sl_change_mode(dirfd, m->in.mknod.mode, m->in.mknod.umask),
			       decode_dev(m->in.mknod.rdev));
	}
}

static void reply_entry(struct sl_conn *c, struct sl_req *rq, int dirfd, int r)
{
	struct fuse_entry_out out = {0};
	if (r == 0)
		r = sl_conn_entry(c, rq->m.h.nodeid, dirfd, rq->m.name, &out);
	if (r < 0)
		sl_reply_err(rq, r);
	else
		sl_reply(rq, &out, sizeof(out));
}

void sl_op_make(struct sl_conn *c, struct sl_req *rq)
{
	_cleanup_close_ int dirfd = sl_change_dir(c, rq->m.h.nodeid);
	int r = dirfd < 0 ? dirfd : sl_change_begin(c, rq);
	if (r == 0) {
		r = make(rq, dirfd) < 0 ? -errno : 0;
		sl_change_end(c);
	}
	reply_entry(c, rq, dirfd, r);
}

void sl_op_link(struct sl_conn *c, struct sl_req *rq)
{
	_cleanup_place_ struct sl_place p;
	struct sl_found o;
	char link[SL_PROC_FD_MAX];
	uint64_t old = rq->m.in.link.oldnodeid;
	_cleanup_close_ int dirfd = sl_change_dir(c, rq->m.h.nodeid);
	int r = dirfd < 0 ? dirfd : sl_nodes_place(c->nodes, old, &p);
	if (dirfd < 0)
		p = (struct sl_place){0};
	if (r == 0 && p.type == S_IFDIR)
		r = -EPERM;
	_cleanup_close_ int fd = r < 0 ? r : sl_conn_find_at(c, old, &p, &o);
	if (fd < 0)
		r = fd;
	/* What is followed is /proc's own link, to just this object, even if that is a symlink. */
	else if (linkat(AT_FDCWD, sl_proc_fd_path(link, fd, NULL), dirfd, rq->m.name, AT_SYMLINK_FOLLOW) < 0)
		r = -errno;
	reply_entry(c, rq, dirfd, r);
}

void sl_op_unlink(struct sl_conn *c, struct sl_req *rq)
{
	_cleanup_close_ int dirfd = sl_change_dir(c, rq->m.h.nodeid);
	int r = dirfd < 0 ? dirfd : 0;
	if (r == 0 && unlinkat(dirfd, rq->m.name, rq->m.h.opcode == FUSE_RMDIR ? AT_REMOVEDIR : 0) < 0)
		r = -errno;
	sl_reply_err(rq, r);
}

/* What is @name now may be a node, and its place is known. */
static void seen(struct sl_conn *c, uint64_t parent, int dirfd, const char *name)
{
	struct sl_found o;
	if (sl_tree_lookup(c->e->tree, dirfd, name, false, &o) == 0)
		sl_nodes_seen(c->nodes, parent, name, &o);
}

void sl_op_rename(struct sl_conn *c, struct sl_req *rq)
{
	bool two = rq->m.h.opcode == FUSE_RENAME2;
	uint64_t from = rq->m.h.nodeid, to = two ? rq->m.in.rename2.newdir : rq->m.in.rename.newdir;
	uint32_t flags = two ? rq->m.in.rename2.flags : 0;
	_cleanup_close_ int a = sl_change_dir(c, from);
	_cleanup_close_ int b = a < 0 ? a : sl_change_dir(c, to);
	int r = b < 0 ? b : 0;
	if (r == 0 && flags & ~(uint32_t)(RENAME_NOREPLACE | RENAME_EXCHANGE))
		r = -EINVAL;
	if (r == 0 && renameat2(a, rq->m.name, b, rq->m.name2, flags) < 0)
		r = -errno;
	if (r == 0)
		seen(c, to, b, rq->m.name2);
	if (r == 0 && flags & RENAME_EXCHANGE)
		seen(c, from, a, rq->m.name);
	sl_reply_err(rq, r);
}
