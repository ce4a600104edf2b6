/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Directories: OPENDIR, READDIR, READDIRPLUS, RELEASEDIR. */
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "base/fd.h"
#include "base/time.h"
#include "serve/connection.h"

/* A reply that is being filled. */
struct listing {
	struct sl_conn *c;
	uint64_t nodeid;
	bool plus;
	char *buf;
	size_t cap, len;
};

static int opendir_node(struct sl_conn *c, uint64_t nodeid, uint64_t *fh)
{
	_cleanup_place_ struct sl_place p;
	struct sl_found o;
	int r = sl_nodes_place(c->nodes, nodeid, &p);
	if (r < 0)
		return r;
	if (p.type != S_IFDIR)
		return -ENOTDIR;
	if (p.foreign)
		return sl_dirs_add(c->dirs, nodeid, -EBADF, fh);
	_cleanup_close_ int fd = sl_tree_find(c->e->tree, &p, false, &o);
	if (fd < 0)
		return fd;
	int dir = sl_tree_reopen(fd, O_DIRECTORY);
	return dir < 0 ? dir : sl_dirs_add(c->dirs, nodeid, dir, fh);
}

void sl_op_opendir(struct sl_conn *c, struct sl_req *rq)
{
	struct fuse_open_out out = {0};
	int r =
	    (rq->m.in.open.flags & O_ACCMODE) != O_RDONLY ? -EROFS : opendir_node(c, rq->m.h.nodeid, &out.fh);
	if (r < 0)
		sl_reply_err(rq, r);
	else
		sl_reply(rq, &out, sizeof(out));
}

static bool is_dot(const char *name)
{
	return name[0] == '.' && (!name[1] || (name[1] == '.' && !name[2]));
}

/* Whether a record with a name of this length still fits: asked before its lookup is counted. */
static bool fits(const struct listing *l, size_t namelen)
{
	size_t head = l->plus ? FUSE_NAME_OFFSET_DIRENTPLUS : FUSE_NAME_OFFSET;
	return FUSE_REC_ALIGN(head + namelen) <= l->cap - l->len;
}

/*
 * The node and attributes of an entry. Where they cannot be had (no access, no room in the node table), the
 * name is listed without a node, and a LOOKUP of it says why. Returns false for what is not there.
 */
static bool add_node(struct listing *l, const struct sl_dir *h, const char *name, struct sl_dirent *d)
{
	struct sl_conn *c = l->c;
	struct sl_found o;
	int r = sl_tree_probe(c->e->tree, h->fd, name, sl_conn_hint(c), &o);
	if (r == -ENOENT || (r == 0 && o.attr.nlink == 0))
		return false;
	if (r < 0)
		return true;
	d->ino = o.attr.ino;
	d->type = (o.attr.mode & S_IFMT) >> 12;
	/* Directories are looked up by who uses them, and watched from then on: not all that were listed. */
	if (sl_conn_watches(c) && S_ISDIR(o.attr.mode))
		return true;
	if (sl_nodes_lookup(c->nodes, l->nodeid, name, &o, &d->entry.nodeid) < 0)
		return true;
	d->entry.generation = o.generation;
	d->entry.entry_valid = d->entry.attr_valid = SL_EXPORT_VALID_S;
	d->entry.attr = o.attr;
	return true;
}

/* Returns 0 or -errno; what is in the reply by then is good in both cases. */
static int fill(struct listing *l, struct sl_dir *h, uint64_t off)
{
	const struct dirent64 *e;
	int r = sl_dir_seek(h, off);
	while (r == 0 && (r = sl_dir_peek(h, &e)) > 0) {
		struct sl_dirent d = {.ino = e->d_ino,
				      .off = (uint64_t)e->d_off,
				      .type = e->d_type,
				      .namelen = (uint32_t)strlen(e->d_name),
				      .name = e->d_name};
		bool dot = is_dot(e->d_name);
		r = 0;
		if (!fits(l, d.namelen))
			return l->len ? 0 : -EINVAL;
		if (!dot && !sl_name_valid(d.name, d.namelen)) { /* longer than the wire can carry */
			sl_dir_skip(h);
			continue;
		}
		if (!l->plus || dot || add_node(l, h, e->d_name, &d))
			sl_dirent_add(l->buf, l->cap, &l->len, l->plus, &d);
		sl_dir_skip(h);
	}
	return r;
}

/* A directory that something is mounted on has only itself. */
static int fill_foreign(struct listing *l, uint64_t off)
{
	for (; off < 2; off++) {
		const struct sl_dirent d = {
		    .ino = 1, .off = off + 1, .type = DT_DIR, .namelen = (uint32_t)off + 1, .name = ".."};
		if (!sl_dirent_add(l->buf, l->cap, &l->len, l->plus, &d))
			return l->len ? 0 : -EINVAL;
	}
	return 0;
}

/* A directory that was moved out of the tree while it is open is not to be read on. */
static int still_there(struct sl_conn *c, struct sl_dir *h)
{
	uint64_t now = sl_now();
	if (h->fd < 0 || now - h->checked < SL_EXPORT_REVALIDATE_MS * SL_NS_PER_MS)
		return 0;
	_cleanup_place_ struct sl_place p;
	struct sl_found o;
	_cleanup_close_ int fd = sl_conn_find(c, h->nodeid, &p, &o);
	if (fd < 0)
		return fd;
	h->checked = now;
	return 0;
}

void sl_op_readdir(struct sl_conn *c, struct sl_req *rq)
{
	const struct fuse_read_in *in = &rq->m.in.read;
	struct listing l = {.c = c,
			    .nodeid = rq->m.h.nodeid,
			    .plus = rq->m.h.opcode == FUSE_READDIRPLUS,
			    .cap = SL_MIN(in->size, c->e->cfg.max_data)};
	struct sl_dir *h = sl_dirs_get(c->dirs, l.nodeid, in->fh);
	if (!h) {
		sl_reply_err(rq, -EBADF);
		return;
	}
	l.buf = sl_conn_buf_get(c);
	pthread_mutex_lock(&h->lock);
	int r = l.buf ? still_there(c, h) : -ENOMEM;
	if (r == 0)
		r = h->fd < 0 ? fill_foreign(&l, in->offset) : fill(&l, h, in->offset);
	pthread_mutex_unlock(&h->lock);
	sl_dirs_put(c->dirs, h);
	/* An error after some entries comes again when the client goes on from them. */
	if (r < 0 && l.len == 0)
		sl_reply_err(rq, r);
	else
		sl_reply_data(rq, NULL, 0, l.buf, l.len);
	sl_conn_buf_put(c, l.buf);
}

void sl_op_releasedir(struct sl_conn *c, struct sl_req *rq)
{
	sl_reply_err(rq, sl_dirs_release(c->dirs, rq->m.h.nodeid, rq->m.in.release.fh));
}
