/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Open files of a writable export: OPEN, CREATE, TMPFILE, RELEASE. */
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "base/beneath.h"
#include "base/fd.h"
#include "serve/change.h"

/* What of a client's flags is ours to do. O_APPEND comes with each write again (write.c). */
#define KEPT (O_ACCMODE | O_TRUNC | O_DSYNC | O_SYNC)

static int flags_of(uint32_t in)
{
	int flags = (int)in & KEPT;
	return (flags & O_ACCMODE) == O_ACCMODE ? -EINVAL : flags;
}

/*
 * Who appends does not know where the file ends, as others may append as well. So what was appended must not
 * stay in the kernel's cache at the place where it believed the end to be.
 */
static uint32_t open_flags(uint32_t in)
{
	return in & O_APPEND && (in & O_ACCMODE) != O_RDONLY ? FOPEN_DIRECT_IO : 0;
}

static int open_node(struct sl_conn *c, uint64_t nodeid, uint32_t in, uint64_t *fh)
{
	_cleanup_place_ struct sl_place p;
	struct sl_found o;
	int flags = flags_of(in);
	int r = sl_nodes_place(c->nodes, nodeid, &p);
	if (r == 0)
		r = sl_content_error(p.type);
	if (r == 0 && flags < 0)
		r = flags;
	if (r < 0)
		return r;
	_cleanup_close_ int path = sl_conn_find_at(c, nodeid, &p, &o);
	if (path < 0)
		return path;
	int fd = sl_tree_reopen(path, flags);
	return fd < 0 ? fd : sl_opens_add(c->opens, nodeid, fd, fh);
}

void sl_op_open_rw(struct sl_conn *c, struct sl_req *rq)
{
	uint32_t flags = rq->m.in.open.flags;
	struct fuse_open_out out = {.open_flags = open_flags(flags)};
	/* For who only reads, READ needs no OPEN: that saves a round trip. */
	bool stateless =
	    c->flags & FUSE_NO_OPEN_SUPPORT && (flags & O_ACCMODE) == O_RDONLY && !(flags & O_TRUNC);
	int r = stateless ? -ENOSYS : open_node(c, rq->m.h.nodeid, flags, &out.fh);
	if (r < 0)
		sl_reply_err(rq, r);
	else
		sl_reply(rq, &out, sizeof(out));
}

/* Open @name, which is there, as CREATE without O_EXCL does. Nothing but a regular file is opened. */
static int open_existing(struct sl_conn *c, int dirfd, const char *name, int flags)
{
	struct sl_found o;
	_cleanup_close_ int path = sl_open_beneath(dirfd, name, O_PATH);
	if (path < 0)
		return path == -ELOOP || path == -EXDEV ? -EEXIST : path;
	int r = sl_tree_look(c->e->tree, path, false, &o);
	if (r == 0)
		r = sl_content_error(o.attr.mode & S_IFMT);
	return r < 0 ? r : sl_tree_reopen(path, flags);
}

/* A descriptor of the new or opened file. */
static int create(struct sl_conn *c, struct sl_req *rq, int dirfd)
{
	const struct fuse_create_in *in = &rq->m.in.create;
	mode_t mode = sl_change_mode(dirfd, in->mode & ~(uint32_t)S_IFMT, in->umask);
	int flags = flags_of(in->flags);
	if (flags < 0)
		return flags;
	bool tmp = rq->m.h.opcode == FUSE_TMPFILE;
	int make = tmp ? O_TMPFILE | (in->flags & O_EXCL ? O_EXCL : 0) : O_CREAT | O_EXCL;
	int r = sl_change_begin(c, rq);
	if (r < 0)
		return r;
	int fd = openat(dirfd, tmp ? "." : rq->m.name,
			(flags & ~O_TRUNC) | make | O_NOFOLLOW | O_NOCTTY | O_CLOEXEC, mode);
	r = fd < 0 ? -errno : fd;
	sl_change_end(c);
	if (r == -EEXIST && !tmp && !(in->flags & O_EXCL))
		r = open_existing(c, dirfd, rq->m.name, flags);
	return r;
}

static int create_node(struct sl_conn *c, struct sl_req *rq, struct fuse_create_out *out)
{
	struct sl_found o;
	uint64_t parent = rq->m.h.nodeid;
	_cleanup_close_ int dirfd = sl_change_dir(c, parent);
	if (dirfd < 0)
		return dirfd;
	_cleanup_close_ int fd = create(c, rq, dirfd);
	if (fd < 0)
		return fd;
	int r = sl_tree_look(c->e->tree, fd, sl_conn_hint(c), &o);
	if (r == 0) /* what has no name has none that a path could have */
		r = sl_nodes_lookup(c->nodes, parent, rq->m.h.opcode == FUSE_TMPFILE ? "/" : rq->m.name, &o,
				    &out->entry.nodeid);
	if (r < 0)
		return r;
	sl_entry_fill(&o, &out->entry);
	out->open.open_flags = open_flags(rq->m.in.create.flags);
	r = sl_opens_add(c->opens, out->entry.nodeid, sl_steal_fd(&fd), &out->open.fh);
	if (r < 0)
		sl_conn_forget(c, out->entry.nodeid, 1);
	return r;
}

void sl_op_create(struct sl_conn *c, struct sl_req *rq)
{
	struct fuse_create_out out = {0};
	int r = create_node(c, rq, &out);
	if (r < 0)
		sl_reply_err(rq, r);
	else
		sl_reply(rq, &out, sizeof(out));
}

void sl_op_release(struct sl_conn *c, struct sl_req *rq)
{
	uint64_t fh = rq->m.in.release.fh;
	sl_reply_err(rq, c->opens && fh ? sl_opens_release(c->opens, rq->m.h.nodeid, fh) : 0);
}
