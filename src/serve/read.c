/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Files: GETATTR, OPEN, READ, LSEEK. Reads are stateless: any node of a regular file may be read, with or
 * without an OPEN. */
#include <fcntl.h>
#include <sys/stat.h>

#include "base/fd.h"
#include "base/time.h"
#include "serve/connection.h"

int sl_content_error(uint32_t type)
{
	switch (type) {
	case S_IFREG:
		return 0;
	case S_IFDIR:
		return -EISDIR;
	case S_IFLNK:
		return -ELOOP;
	default:
		return -ENXIO;
	}
}

/* Where what the exporter does is noted it must be done with the request. */
static void put_file(struct sl_conn *c, struct sl_file *f, bool stale)
{
	sl_files_put(c->e->files, f, stale || sl_events_uses(c->e->events));
}

/*
 * The open file of the regular file at @p: from the cache, if the object is known to have been in its place a
 * moment ago or still is; opened otherwise. Returns 0 and a reference, -ESTALE, -errno.
 */
static int get_file(struct sl_conn *c, const struct sl_place *p, struct sl_file **ret)
{
	struct sl_export *e = c->e;
	struct sl_found o;
	struct sl_file *f = sl_files_get(e->files, p->ino, p->generation);
	if (f && sl_fresh(f->checked)) {
		*ret = f;
		return 0;
	}
	uint64_t now = sl_now();
	_cleanup_close_ int fd = sl_tree_find(e->tree, p, false, &o);
	if (fd < 0) {
		if (f)
			sl_files_put(e->files, f, fd == -ESTALE);
		return fd;
	}
	if (!f) {
		int rfd = sl_tree_reopen(fd, 0);
		if (rfd < 0)
			return rfd;
		f = sl_files_add(e->files, p->ino, p->generation, rfd);
		if (!f)
			return -ENOMEM;
	}
	f->checked = now;
	*ret = f;
	return 0;
}

/*
 * Of a file that was just read, what is asked is the descriptor that was read from: the answer is about that
 * content, whatever the name means by now.
 */
int sl_conn_getattr(struct sl_conn *c, uint64_t nodeid, struct sl_found *o)
{
	struct sl_export *e = c->e;
	_cleanup_place_ struct sl_place p;
	int r = sl_nodes_place(c->nodes, nodeid, &p);
	if (r < 0)
		return r;
	if (c->opens && !p.foreign) {
		_cleanup_close_ int fd = sl_conn_find_at(c, nodeid, &p, o);
		if (fd >= 0 && sl_conn_hint(c))
			r = sl_tree_look(e->tree, fd, true, o);
		return fd < 0 ? fd : r;
	}
	struct sl_file *f = p.type == S_IFREG ? sl_files_get(e->files, p.ino, p.generation) : NULL;
	if (f && sl_fresh(f->checked)) {
		r = sl_tree_stat_fd(e->tree, f->fd, sl_conn_hint(c), o);
	} else {
		uint64_t now = sl_now();
		r = sl_tree_stat(e->tree, &p, sl_conn_hint(c), o);
		if (f && r == 0)
			f->checked = now;
	}
	if (f)
		sl_files_put(e->files, f, r == -ESTALE);
	return r;
}

void sl_op_getattr(struct sl_conn *c, struct sl_req *rq)
{
	struct sl_found o;
	int r = sl_conn_getattr(c, rq->m.h.nodeid, &o);
	if (r < 0) {
		sl_reply_err(rq, r);
		return;
	}
	const struct fuse_attr_out out = {.attr_valid = SL_EXPORT_VALID_S, .attr = o.attr};
	sl_reply(rq, &out, sizeof(out));
}

/* The place of a regular file. */
static int file_place(struct sl_conn *c, uint64_t nodeid, struct sl_place *p)
{
	int r = sl_nodes_place(c->nodes, nodeid, p);
	return r < 0 ? r : sl_content_error(p->type);
}

/* The open file that a request is about: a handle of the client's, or whatever is open of that node. */
struct use {
	int fd;
	struct sl_open *h;
	struct sl_file *f;
};

static int use_begin(struct sl_conn *c, uint64_t nodeid, uint64_t fh, struct use *u)
{
	*u = (struct use){0};
	if (c->opens && fh) {
		int r = sl_conn_open(c, nodeid, fh, &u->h);
		if (r == 0)
			u->fd = u->h->fd;
		return r;
	}
	_cleanup_place_ struct sl_place p;
	int r = file_place(c, nodeid, &p);
	if (r == 0)
		r = get_file(c, &p, &u->f);
	if (r == 0)
		u->fd = u->f->fd;
	return r;
}

static void use_end(struct sl_conn *c, struct use *u, bool stale)
{
	if (u->h)
		sl_opens_put(c->opens, u->h);
	else
		put_file(c, u->f, stale);
}

void sl_op_open(struct sl_conn *c, struct sl_req *rq)
{
	uint32_t flags = rq->m.in.open.flags;
	_cleanup_place_ struct sl_place p;
	struct sl_file *f;
	int r = file_place(c, rq->m.h.nodeid, &p);
	if (r != -ESTALE && ((flags & O_ACCMODE) != O_RDONLY || flags & O_TRUNC))
		r = -EROFS;
	/* The protocol's way to say that READ needs no OPEN: a small file costs one round trip. */
	if (r == 0 && c->flags & FUSE_NO_OPEN_SUPPORT)
		r = -ENOSYS;
	if (r == 0)
		r = get_file(c, &p, &f);
	if (r < 0) {
		sl_reply_err(rq, r);
		return;
	}
	put_file(c, f, false);
	const struct fuse_open_out out = {0};
	sl_reply(rq, &out, sizeof(out));
}

void sl_op_read(struct sl_conn *c, struct sl_req *rq)
{
	const struct fuse_read_in *in = &rq->m.in.read;
	struct use u;
	int r = use_begin(c, rq->m.h.nodeid, in->fh, &u);
	if (r < 0) {
		sl_reply_err(rq, r);
		return;
	}
	/* More than was agreed on is refused: a short answer would mean the end of the file. */
	if (in->size > SL_WIRE_MAX_DATA || in->offset > INT64_MAX - SL_WIRE_MAX_DATA) {
		use_end(c, &u, false);
		sl_reply_err(rq, -EINVAL);
		return;
	}
	void *buf = sl_conn_buf_get(c);
	ssize_t n = buf ? sl_pread_full(u.fd, buf, in->size, (off_t)in->offset) : -ENOMEM;
	bool with_attr = c->flags & SL_FUSE_READ_ATTR;
	struct sl_found o = {0};
	if (n >= 0 && with_attr) {
		r = u.h ? sl_tree_look(c->e->tree, u.fd, sl_conn_hint(c), &o)
			: sl_tree_stat_fd(c->e->tree, u.fd, sl_conn_hint(c), &o);
		if (r < 0)
			n = r;
	}
	use_end(c, &u, n == -ESTALE);
	if (n < 0)
		sl_reply_err(rq, (int)n);
	else
		sl_reply_data(rq, buf, (size_t)n, &o.attr, with_attr ? sizeof(o.attr) : 0);
	sl_conn_buf_put(c, buf);
}

void sl_op_lseek(struct sl_conn *c, struct sl_req *rq)
{
	const struct fuse_lseek_in *in = &rq->m.in.lseek;
	struct use u;
	int r = use_begin(c, rq->m.h.nodeid, in->fh, &u);
	if (r < 0) {
		sl_reply_err(rq, r);
		return;
	}
	off_t off = -1;
	if (in->whence != SEEK_DATA && in->whence != SEEK_HOLE)
		r = -EINVAL;
	else if (in->offset > INT64_MAX)
		r = -ENXIO;
	else /* the position is shared by all threads, and used by none: they pread() */
		off = lseek(u.fd, (off_t)in->offset, (int)in->whence);
	if (r == 0 && off < 0)
		r = -errno;
	use_end(c, &u, false);
	const struct fuse_lseek_out out = {.offset = (uint64_t)off};
	if (r < 0)
		sl_reply_err(rq, r);
	else
		sl_reply(rq, &out, sizeof(out));
}
