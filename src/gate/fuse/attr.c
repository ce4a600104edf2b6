/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Operations on attributes, ordinary and extended. */
#include <fcntl.h>
#include <sys/statvfs.h>

#include "gate/fuse/internal.h"
#include "store/xattr.h"

static void reply_attr(struct sl_gate *g, struct sl_req *rq, struct sl_object *o, uint64_t valid)
{
	struct fuse_attr_out out = {.attr_valid = valid};
	int r = gate_attr(g, rq, o, &out.attr);
	if (r < 0)
		sl_reply_err(rq, r);
	else if (r == 0)
		sl_reply(rq, &out, sizeof(out));
}

void gate_getattr(struct sl_gate *g, struct sl_req *rq, struct sl_object *o)
{
	reply_attr(g, rq, o, VALID_SECONDS);
}

static struct timespec time_of(uint32_t valid, uint32_t bit, uint32_t now_bit, uint64_t sec, uint32_t nsec)
{
	if (valid & now_bit)
		return (struct timespec){.tv_nsec = UTIME_NOW};
	if (valid & bit)
		return (struct timespec){.tv_sec = (time_t)sec, .tv_nsec = (long)nsec};
	return (struct timespec){.tv_nsec = UTIME_OMIT};
}

/* The origin gives it no other version any more. Until then the kernel, which takes the answer to a SETATTR
 * whatever it was told meanwhile, has to ask again. */
static bool ours(struct sl_object *o)
{
	pthread_mutex_lock(&o->lock);
	bool is = o->rec.flags & (SL_MODIFIED | SL_LOCAL);
	pthread_mutex_unlock(&o->lock);
	return is;
}

void gate_setattr(struct sl_gate *g, struct sl_req *rq, struct sl_object *o)
{
	const struct fuse_setattr_in *in = &rq->m.in.setattr;
	uint32_t v = in->valid;
	int r = 0;
	if (v & FATTR_SIZE) { /* which the kernel takes, whatever it believed before */
		if (!sl_object_is_reg(o)) {
			sl_reply_err(rq, sl_object_is_dir(o) ? -EISDIR : -EINVAL);
			return;
		}
		if (!gate_need_writable(g, rq, o, in->size == 0))
			return;
		_cleanup_close_ int fd = sl_object_open(o, O_WRONLY);
		r = fd < 0 ? fd : ftruncate(fd, (off_t)in->size) < 0 ? -errno : 0;
		pthread_mutex_lock(&o->lock);
		if (r == 0 && !o->invalidating)
			gate_told(g, o);
		pthread_mutex_unlock(&o->lock);
	}
	if (r == 0 && v & (FATTR_MODE | FATTR_UID | FATTR_GID))
		r = sl_object_set_owner(o, v & FATTR_MODE ? (int)(in->mode & 07777) : -1,
					v & FATTR_UID ? in->uid : (uid_t)-1,
					v & FATTR_GID ? in->gid : (gid_t)-1);
	if (r == 0 && v & (FATTR_ATIME | FATTR_MTIME)) {
		struct timespec ts[2] = {time_of(v, FATTR_ATIME, FATTR_ATIME_NOW, in->atime, in->atimensec),
					 time_of(v, FATTR_MTIME, FATTR_MTIME_NOW, in->mtime, in->mtimensec)};
		r = sl_object_set_times(o, ts);
	}
	if (r < 0)
		sl_reply_err(rq, r);
	else
		reply_attr(g, rq, o, sl_object_is_reg(o) && !ours(o) ? 0 : VALID_SECONDS);
}

void gate_readlink(struct sl_gate *g, struct sl_req *rq, struct sl_object *o)
{
	char buf[4096];
	(void)g;
	ssize_t n = sl_object_readlink(o, buf, sizeof(buf));
	if (n < 0)
		sl_reply_err(rq, (int)n);
	else
		sl_reply_data(rq, NULL, 0, buf, (size_t)n);
}

void gate_xattr(struct sl_gate *g, struct sl_req *rq, struct sl_object *o)
{
	uint32_t op = rq->m.h.opcode;
	if (op != FUSE_LISTXATTR && !sl_xattr_allowed(rq->m.name)) {
		bool ours = sl_store_xattr_private(rq->m.name) && !strncmp(rq->m.name, "user.", 5);
		sl_reply_err(rq, op == FUSE_GETXATTR || op == FUSE_REMOVEXATTR ? -ENODATA
				 : ours					       ? -EPERM
									       : -EOPNOTSUPP);
		return;
	}
	if (!gate_need(g, rq, o, SL_WANT_XATTRS, 0, 0))
		return;
	ssize_t r;
	_cleanup_free_ char *buf = NULL;
	uint32_t size = rq->m.in.getxattr.size;
	switch (op) {
	case FUSE_SETXATTR:
		/* What is sent again may have been carried out: then it is there already. */
		r = sl_xattr_set(o, rq->m.name, rq->m.data, rq->m.data_len,
				 sl_req_resent(rq) ? 0 : (int)rq->m.in.setxattr.flags);
		sl_reply_err(rq, (int)r);
		return;
	case FUSE_REMOVEXATTR:
		r = sl_xattr_remove(o, rq->m.name);
		sl_reply_err(rq, r == -ENODATA && sl_req_resent(rq) ? 0 : (int)r);
		return;
	default:
		size = SL_MIN(size, 65536u);
		buf = malloc(size + 1);
		if (!buf)
			r = -ENOMEM;
		else
			r = op == FUSE_GETXATTR ? sl_xattr_get(o, rq->m.name, buf, size)
						: sl_xattr_list(o, buf, size);
		if (r < 0) {
			sl_reply_err(rq, (int)r);
		} else if (size == 0) {
			struct fuse_getxattr_out out = {.size = (uint32_t)r};
			sl_reply(rq, &out, sizeof(out));
		} else {
			sl_reply_data(rq, NULL, 0, buf, (size_t)r);
		}
	}
}

void gate_statfs(struct sl_gate *g, struct sl_req *rq)
{
	struct statvfs v;
	if (fstatvfs(sl_store_root_fd(g->store), &v) < 0) {
		sl_reply_err(rq, -errno);
		return;
	}
	struct fuse_statfs_out out = {.st = {.blocks = v.f_blocks,
					     .bfree = v.f_bfree,
					     .bavail = v.f_bavail,
					     .files = v.f_files,
					     .ffree = v.f_ffree,
					     .bsize = (uint32_t)v.f_bsize,
					     .namelen = (uint32_t)v.f_namemax,
					     .frsize = (uint32_t)v.f_frsize}};
	sl_reply(rq, &out, sizeof(out));
}
