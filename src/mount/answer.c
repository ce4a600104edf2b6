/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the helper is told: the requests that its system calls make of the mount. */
#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "mount/internal.h"

/* To an unprivileged helper everything belongs: what it does is done in name only. Nobody else keeps that. */
static void entitle(struct sl_raise *r, struct fuse_attr *a)
{
	if (r->uid == 0)
		return;
	a->uid = r->uid;
	a->mode |= S_ISDIR(a->mode) ? 0700 : 0600;
}

/*
 * The kernel takes what it is told for newer than the request. What a notification says is older, and others
 * may have written through the mount since: the attributes are those of now. Not even those are to be kept:
 * who uses the object asks anew.
 */
static void reply_entry(struct sl_raise *r, struct sl_req *rq, const struct fuse_entry_out *e)
{
	struct fuse_entry_out out = *e;
	struct fuse_attr now;
	out.entry_valid = out.attr_valid = 0;
	if (!raise_made_up(e->nodeid) && r->cfg.getattr(r->cfg.arg, e->nodeid, &now) == 0 &&
	    (now.mode & S_IFMT) == (e->attr.mode & S_IFMT))
		out.attr = now;
	if (rq->m.h.opcode == FUSE_LOOKUP)
		entitle(r, &out.attr);
	sl_reply(rq, &out, sizeof(out));
}

struct fuse_attr raise_made_attr(struct sl_raise *r, uint64_t ino, uint32_t type)
{
	return (struct fuse_attr){.ino = ino,
				  .mode = type | (type == S_IFDIR ? 0700 : 0600),
				  .nlink = 1,
				  .uid = r->uid,
				  .blksize = 4096};
}

/* With the lock held. */
static struct shown *find_shown(struct sl_raise *r, uint64_t dir, const char *name)
{
	struct act *x = r->act;
	if (x && x->a.name && x->a.dir == dir && !strcmp(x->a.name, name))
		return &x->a;
	if (x && x->b.name && x->b.dir == dir && !strcmp(x->b.name, name))
		return &x->b;
	return NULL;
}

static void take_lookup(struct sl_raise *r, struct sl_req *rq)
{
	uint64_t dir = rq->m.h.nodeid;
	struct fuse_entry_out e = {0};
	if (dir == FUSE_ROOT_ID && !strcmp(rq->m.name, r->staging)) {
		e.nodeid = STAGING_NODE;
		e.attr = raise_made_attr(r, 1, S_IFDIR);
		reply_entry(r, rq, &e);
		return;
	}
	pthread_mutex_lock(&r->lock);
	struct shown *s = find_shown(r, dir, rq->m.name);
	bool there = s && s->there;
	if (there) {
		e = s->entry;
		if (s->counts)
			s->counts--;
	}
	pthread_mutex_unlock(&r->lock);
	int err = there ? 0 : -ENOENT;
	if (!s && dir != STAGING_NODE) { /* on the way there */
		err = r->cfg.lookup(r->cfg.arg, dir, rq->m.name, &e);
		if (err == 0 && r->uid == 0) {
			sl_reply(rq, &e, sizeof(e));
			return;
		}
	}
	if (err < 0)
		sl_reply_err(rq, err);
	else
		reply_entry(r, rq, &e);
}

/* The attributes of a node as they are; of what is gone, as the act has them. */
static int attr_of(struct sl_raise *r, uint64_t nodeid, struct fuse_attr *a)
{
	bool found = true;
	int err = raise_made_up(nodeid) ? -ESTALE : r->cfg.getattr(r->cfg.arg, nodeid, a);
	if (err != -ESTALE)
		return err;
	pthread_mutex_lock(&r->lock);
	struct act *x = r->act;
	if (x && x->a.there && x->a.entry.nodeid == nodeid)
		*a = x->a.entry.attr;
	else if (x && x->b.there && x->b.entry.nodeid == nodeid)
		*a = x->b.entry.attr;
	else
		found = false;
	pthread_mutex_unlock(&r->lock);
	if (!found && nodeid == STAGING_NODE) {
		*a = raise_made_attr(r, 1, S_IFDIR);
		return 0;
	}
	return found ? 0 : -ESTALE;
}

static void take_getattr(struct sl_raise *r, struct sl_req *rq)
{
	struct fuse_attr_out out = {.attr_valid = 0};
	int err = attr_of(r, rq->m.h.nodeid, &out.attr);
	if (err < 0) {
		sl_reply_err(rq, err);
		return;
	}
	if (rq->m.h.opcode == FUSE_GETATTR)
		entitle(r, &out.attr);
	sl_reply(rq, &out, sizeof(out));
}

static void take_make(struct sl_raise *r, struct sl_req *rq)
{
	struct fuse_entry_out e = {0};
	pthread_mutex_lock(&r->lock);
	struct act *x = r->act;
	bool good =
	    x && x->opcode == rq->m.h.opcode && x->a.dir == rq->m.h.nodeid && !strcmp(x->a.name, rq->m.name);
	if (good) {
		e = x->a.entry;
		if (x->a.counts)
			x->a.counts--;
	}
	pthread_mutex_unlock(&r->lock);
	if (good)
		reply_entry(r, rq, &e);
	else
		sl_reply_err(rq, -EIO);
}

static void take_names(struct sl_raise *r, struct sl_req *rq)
{
	uint32_t op = rq->m.h.opcode;
	uint64_t newdir = op == FUSE_RENAME2 ? rq->m.in.rename2.newdir : rq->m.in.rename.newdir;
	pthread_mutex_lock(&r->lock);
	struct act *x = r->act;
	bool rename = op == FUSE_RENAME || op == FUSE_RENAME2;
	bool good = x && x->opcode == (rename ? (uint32_t)FUSE_RENAME : op) && x->a.dir == rq->m.h.nodeid &&
		    !strcmp(x->a.name, rq->m.name);
	if (good && rename)
		good = x->b.dir == newdir && !strcmp(x->b.name, rq->m.name2);
	pthread_mutex_unlock(&r->lock);
	sl_reply_err(rq, good ? 0 : -EIO);
}

static void take_open(struct sl_req *rq, uint32_t flags)
{
	const struct fuse_open_out out = {.fh = HANDLE, .open_flags = flags};
	sl_reply(rq, &out, sizeof(out));
}

bool sl_raise_take(struct sl_raise *r, struct sl_req *rq)
{
	/* The kernel releases by itself, in nobody's name. */
	if ((rq->m.h.opcode == FUSE_RELEASE && rq->m.in.release.fh == HANDLE) ||
	    (rq->m.h.opcode == FUSE_RELEASEDIR && rq->m.in.release.fh == HANDLE) ||
	    (rq->m.h.opcode == FUSE_FLUSH && rq->m.in.flush.fh == HANDLE)) {
		sl_reply_err(rq, 0);
		return true;
	}
	if (rq->m.h.pid != r->pid || !r->begun)
		return false;
	switch (rq->m.h.opcode) {
	case FUSE_LOOKUP:
		take_lookup(r, rq);
		return true;
	case FUSE_GETATTR:
	case FUSE_SETATTR:
		take_getattr(r, rq);
		return true;
	case FUSE_MKNOD:
	case FUSE_MKDIR:
	case FUSE_SYMLINK:
		take_make(r, rq);
		return true;
	case FUSE_UNLINK:
	case FUSE_RMDIR:
	case FUSE_RENAME:
	case FUSE_RENAME2:
		take_names(r, rq);
		return true;
	case FUSE_OPEN:
		take_open(rq, FOPEN_DIRECT_IO | FOPEN_KEEP_CACHE | FOPEN_NOFLUSH);
		return true;
	case FUSE_OPENDIR:
		take_open(rq, 0);
		return true;
	case FUSE_CREATE:
	case FUSE_LINK:
	case FUSE_WRITE:
	case FUSE_SETXATTR:
	case FUSE_REMOVEXATTR:
	case FUSE_FALLOCATE:
		sl_reply_err(rq, -EIO); /* it does nothing of the kind */
		return true;
	default:
		return false;
	}
}
