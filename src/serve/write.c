/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Content of a writable export: WRITE, FALLOCATE, COPY_FILE_RANGE, and what makes it durable. */
#include <fcntl.h>
#include <string.h>
#include <sys/uio.h>

#include "base/fd.h"
#include "serve/connection.h"

/* One request copies at most this much, so that it does not hold a thread for long; the caller goes on. */
#define MAX_COPY (64u << 20)

static bool range_ok(uint64_t off, uint64_t len)
{
	return off <= INT64_MAX && len <= INT64_MAX - off;
}

/* Returns how much was written, which is less than all only where an error followed; -errno where nothing
 * was. */
static ssize_t write_all(int fd, const void *buf, size_t n, off_t off, int flags)
{
	size_t done = 0;
	while (done < n) {
		struct iovec iov = {(char *)buf + done, n - done};
		ssize_t k = pwritev2(fd, &iov, 1, off + (off_t)done, flags);
		if (k < 0 && errno == EINTR)
			continue;
		if (k <= 0)
			return done ? (ssize_t)done : k < 0 ? -errno : -EIO;
		done += (size_t)k;
	}
	return (ssize_t)done;
}

void sl_op_write(struct sl_conn *c, struct sl_req *rq)
{
	const struct fuse_write_in *in = &rq->m.in.write;
	struct sl_open *h;
	int r = range_ok(in->offset, rq->m.data_len) ? sl_conn_open(c, rq->m.h.nodeid, in->fh, &h) : -EFBIG;
	if (r < 0) {
		sl_reply_err(rq, r);
		return;
	}
	/* The end of the file is where it is now, not where the client saw it: others may append as well.
	 * What a mapping has changed stays in its place. */
	bool append = in->flags & O_APPEND && !(in->write_flags & FUSE_WRITE_CACHE);
	ssize_t n = write_all(h->fd, rq->m.data, rq->m.data_len, (off_t)in->offset, append ? RWF_APPEND : 0);
	sl_opens_put(c->opens, h);
	const struct fuse_write_out out = {.size = n < 0 ? 0 : (uint32_t)n};
	if (n < 0)
		sl_reply_err(rq, (int)n);
	else
		sl_reply(rq, &out, sizeof(out));
}

void sl_op_fallocate(struct sl_conn *c, struct sl_req *rq)
{
	const struct fuse_fallocate_in *in = &rq->m.in.fallocate;
	struct sl_open *h;
	int r = range_ok(in->offset, in->length) ? sl_conn_open(c, rq->m.h.nodeid, in->fh, &h) : -EFBIG;
	if (r < 0) {
		sl_reply_err(rq, r);
		return;
	}
	do
		r = fallocate(h->fd, (int)in->mode, (off_t)in->offset, (off_t)in->length) < 0 ? -errno : 0;
	while (r == -EINTR);
	sl_opens_put(c->opens, h);
	sl_reply_err(rq, r);
}

static ssize_t copy(struct sl_conn *c, const struct fuse_copy_file_range_in *in, uint64_t nodeid)
{
	struct sl_open *from, *to;
	if (in->flags)
		return -EINVAL;
	if (!range_ok(in->off_in, in->len) || !range_ok(in->off_out, in->len))
		return -EOVERFLOW;
	int r = sl_conn_open(c, nodeid, in->fh_in, &from);
	if (r < 0)
		return r;
	r = sl_conn_open(c, in->nodeid_out, in->fh_out, &to);
	if (r < 0) {
		sl_opens_put(c->opens, from);
		return r;
	}
	off_t a = (off_t)in->off_in, b = (off_t)in->off_out;
	ssize_t n;
	do
		n = copy_file_range(from->fd, &a, to->fd, &b, SL_MIN(in->len, (uint64_t)MAX_COPY), 0);
	while (n < 0 && errno == EINTR);
	if (n < 0)
		n = -errno;
	sl_opens_put(c->opens, from);
	sl_opens_put(c->opens, to);
	return n;
}

void sl_op_copy_file_range(struct sl_conn *c, struct sl_req *rq)
{
	ssize_t n = copy(c, &rq->m.in.copy_file_range, rq->m.h.nodeid);
	const struct fuse_write_out out = {.size = n < 0 ? 0 : (uint32_t)n};
	if (n < 0)
		sl_reply_err(rq, (int)n);
	else
		sl_reply(rq, &out, sizeof(out));
}

static int sync_file(struct sl_conn *c, struct sl_req *rq)
{
	struct sl_open *h;
	int r = sl_conn_open(c, rq->m.h.nodeid, rq->m.in.fsync.fh, &h);
	if (r < 0)
		return r;
	bool data = rq->m.in.fsync.fsync_flags & FUSE_FSYNC_FDATASYNC;
	r = (data ? fdatasync(h->fd) : fsync(h->fd)) < 0 ? -errno : 0;
	sl_opens_put(c->opens, h);
	return r;
}

static int sync_dir(struct sl_conn *c, struct sl_req *rq)
{
	struct sl_dir *d = sl_dirs_get(c->dirs, rq->m.h.nodeid, rq->m.in.fsync.fh);
	if (!d)
		return -EBADF;
	int r = d->fd >= 0 && fsync(d->fd) < 0 ? -errno : 0;
	sl_dirs_put(c->dirs, d);
	return r;
}

/* A close(): filesystems that tell of failed writes only then tell of them now. */
static int flush(struct sl_conn *c, struct sl_req *rq)
{
	struct sl_open *h;
	uint64_t fh = rq->m.in.flush.fh;
	if (!fh) /* opened without OPEN, so for reading */
		return 0;
	h = sl_opens_get(c->opens, rq->m.h.nodeid, fh);
	if (!h)
		return -EBADF;
	int fd = fcntl(h->fd, F_DUPFD_CLOEXEC, 0);
	sl_opens_put(c->opens, h);
	return fd < 0 || (close(fd) < 0 && errno != EINTR) ? -errno : 0;
}

void sl_op_sync(struct sl_conn *c, struct sl_req *rq)
{
	int r = 0;
	if (c->opens) {
		switch (rq->m.h.opcode) {
		case FUSE_FLUSH:
			r = flush(c, rq);
			break;
		case FUSE_FSYNC:
			r = sync_file(c, rq);
			break;
		case FUSE_FSYNCDIR:
			r = sync_dir(c, rq);
			break;
		default:
			r = syncfs(sl_tree_fd(c->e->tree)) < 0 ? -errno : 0;
		}
	}
	sl_reply_err(rq, r);
}
