/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Attributes of a writable export: SETATTR, SETXATTR, REMOVEXATTR. */
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>

#include "base/fd.h"
#include "serve/connection.h"
#include "serve/xattr.h"

/* @file: open for writing perhaps, or -1. @path: what denotes the object for calls that know no descriptor of
 * it. */
static int set_size(const struct fuse_setattr_in *in, uint32_t type, int file, const char *path)
{
	int r = sl_content_error(type);
	if (r < 0)
		return r;
	if (in->size > INT64_MAX)
		return -EFBIG;
	if (file >= 0 && (fcntl(file, F_GETFL) & O_ACCMODE) != O_RDONLY)
		return ftruncate(file, (off_t)in->size) < 0 ? -errno : 0;
	return truncate(path, (off_t)in->size) < 0 ? -errno : 0;
}

static struct timespec time_of(uint32_t valid, uint32_t set, uint32_t now, uint64_t s, uint32_t ns)
{
	if (!(valid & set))
		return (struct timespec){.tv_nsec = UTIME_OMIT};
	if (valid & now)
		return (struct timespec){.tv_nsec = UTIME_NOW};
	return (struct timespec){.tv_sec = (time_t)s, .tv_nsec = ns};
}

static int set_times(const struct fuse_setattr_in *in, int fd)
{
	if (in->atimensec > 999999999 || in->mtimensec > 999999999)
		return -EINVAL;
	const struct timespec ts[2] = {
	    time_of(in->valid, FATTR_ATIME, FATTR_ATIME_NOW, in->atime, in->atimensec),
	    time_of(in->valid, FATTR_MTIME, FATTR_MTIME_NOW, in->mtime, in->mtimensec)};
	return utimensat(fd, "", ts, AT_EMPTY_PATH) < 0 ? -errno : 0;
}

/* Several at a time come of open(O_TRUNC) and chown alone: size first, because it changes times; owner before
 * mode, because it takes set-id bits away. */
static int apply(const struct fuse_setattr_in *in, uint32_t type, int fd, int file)
{
	char p[SL_PROC_FD_MAX];
	int r = 0;
	sl_proc_fd_path(p, fd, NULL);
	if (in->valid & FATTR_SIZE)
		r = set_size(in, type, file, p);
	if (r == 0 && in->valid & (FATTR_UID | FATTR_GID) &&
	    fchownat(fd, "", in->valid & FATTR_UID ? in->uid : (uid_t)-1,
		     in->valid & FATTR_GID ? in->gid : (gid_t)-1, AT_EMPTY_PATH) < 0)
		r = -errno;
	if (r == 0 && in->valid & FATTR_MODE) {
		if (type == S_IFLNK)
			r = -EOPNOTSUPP;
		else if (chmod(p, in->mode & 07777) < 0)
			r = -errno;
	}
	if (r == 0 && in->valid & (FATTR_ATIME | FATTR_MTIME))
		r = set_times(in, fd);
	return r;
}

static int setattr(struct sl_conn *c, struct sl_req *rq, struct sl_found *o)
{
	const struct fuse_setattr_in *in = &rq->m.in.setattr;
	uint64_t nodeid = rq->m.h.nodeid;
	_cleanup_place_ struct sl_place p;
	struct sl_open *h = NULL;
	int r = sl_nodes_place(c->nodes, nodeid, &p);
	if (r == 0 && p.foreign)
		r = -EROFS;
	if (r < 0)
		return r;
	if (in->valid & FATTR_FH && in->fh && (r = sl_conn_open(c, nodeid, in->fh, &h)) < 0)
		return r;
	_cleanup_close_ int fd = h ? -EBADF : sl_conn_find_at(c, nodeid, &p, o);
	int use = h ? h->fd : fd;
	r = use < 0 ? use : apply(in, p.type, use, h ? h->fd : -1);
	if (r == 0)
		r = sl_tree_look(c->e->tree, use, sl_conn_hint(c), o);
	if (h)
		sl_opens_put(c->opens, h);
	return r;
}

void sl_op_setattr(struct sl_conn *c, struct sl_req *rq)
{
	struct sl_found o;
	int r = setattr(c, rq, &o);
	const struct fuse_attr_out out = {.attr_valid = SL_EXPORT_VALID_S, .attr = o.attr};
	if (r < 0)
		sl_reply_err(rq, r);
	else
		sl_reply(rq, &out, sizeof(out));
}

/* Setting an ACL of somebody who is not in the file's group takes its set-group-id bit away; only the client
 * knows. */
static int kill_sgid(const char *path)
{
	struct stat st;
	if (stat(path, &st) < 0)
		return -errno;
	if (!(st.st_mode & S_ISGID) || !S_ISREG(st.st_mode))
		return 0;
	return chmod(path, st.st_mode & 07777 & ~(mode_t)S_ISGID) < 0 ? -errno : 0;
}

static int change_xattr(struct sl_req *rq, const char *path)
{
	const struct fuse_setxattr_in *in = &rq->m.in.setxattr;
	if (rq->m.h.opcode == FUSE_REMOVEXATTR)
		return removexattr(path, rq->m.name) < 0 ? -errno : 0;
	if (setxattr(path, rq->m.name, rq->m.data, rq->m.data_len, (int)in->flags) < 0)
		return -errno;
	return in->setxattr_flags & FUSE_SETXATTR_ACL_KILL_SGID ? kill_sgid(path) : 0;
}

void sl_op_setxattr(struct sl_conn *c, struct sl_req *rq)
{
	char path[SL_PROC_FD_MAX];
	_cleanup_close_ int fd =
	    sl_xattr_exported(rq->m.name) ? sl_xattr_find(c, rq->m.h.nodeid) : -EOPNOTSUPP;
	sl_reply_err(rq, fd < 0 ? fd : change_xattr(rq, sl_proc_fd_path(path, fd, NULL)));
}
