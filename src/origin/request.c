/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Requests: their life, and the steps of all but LIST. */
#include "origin/export.h"

#define RETRIES	  3	/* of a request whose node turned out to be stale */
#define XATTR_MAX 65536 /* the kernel's own limit of a list and of a value */

static void read_attr(struct xreq *x);
static void xattr_next(struct xreq *x);

void sl_ex_issue(struct xreq *x, struct sl_call *call, void (*done)(struct sl_call *, struct sl_result *))
{
	struct export *e = x->e; /* x may be gone once the call is made */
	struct sl_client *c = sl_ex_client_get(e, x->conn);
	call->done = done;
	call->deadline = x->deadline;
	if (!c) {
		struct sl_result r = {.err = -ENOTCONN};
		done(call, &r);
		return;
	}
	sl_client_call(c, call);
	sl_ex_client_put(e);
}

void sl_ex_issue_one(struct xreq *x, uint32_t opcode, uint64_t nodeid,
		     void (*done)(struct sl_call *, struct sl_result *))
{
	x->call.opcode = opcode;
	x->call.nodeid = nodeid;
	sl_ex_issue(x, &x->call, done);
}

/* ---- the life of a request ---- */

/* Results and steps of an attempt that is over. */
static void clear_attempt(struct xreq *x)
{
	sl_oreq_fini(x->r);
	free(x->parts);
	x->parts = NULL;
	if (x->nodes) {
		pthread_mutex_lock(&x->e->lock);
		for (size_t i = 0; x->session == x->e->session && i < x->r->nentries; i++)
			if (x->nodes[i].nodeid)
				sl_places_forget(&x->e->places, x->nodes[i].nodeid, 1);
		pthread_mutex_unlock(&x->e->lock);
		free(x->nodes);
		x->nodes = NULL;
	}
	x->nodes_cap = x->cap = x->next = 0;
	x->off = x->at = 0;
	x->err = 0;
	x->attrs = 0;
	x->differ = false;
	x->opened = false;
	x->mark_done = false;
	x->r->marked = false;
}

static void release(struct xreq *x);

void sl_ex_finish(struct xreq *x, int err)
{
	struct export *e = x->e;
	struct sl_oreq *r = x->r;
	release(x);
	if (err) {
		clear_attempt(x);
	} else {
		e->o.nbytes += r->nread;
		free(x->parts);
		free(x->nodes);
	}
	free(x);
	r->err = err;
	r->done(r);
	pthread_mutex_lock(&e->lock);
	bool many = e->places.nforget >= FORGET_BATCH;
	pthread_mutex_unlock(&e->lock);
	if (many)
		sl_ex_send_forgets(e);
	pthread_mutex_lock(&e->lock);
	if (--e->outstanding == 0)
		pthread_cond_broadcast(&e->cond);
	pthread_mutex_unlock(&e->lock);
}

/* Queue for the connector, which starts it on a connection. */
static void queue(struct xreq *x)
{
	struct export *e = x->e;
	pthread_mutex_lock(&e->lock);
	bool stop = e->stop;
	if (!stop)
		sl_list_add_tail(&e->waiting, &x->link);
	pthread_cond_broadcast(&e->cond);
	pthread_mutex_unlock(&e->lock);
	if (stop)
		sl_ex_finish(x, -ETIMEDOUT);
}

void sl_ex_start(struct xreq *x)
{
	struct export *e = x->e;
	pthread_mutex_lock(&e->lock);
	bool up = e->client && !e->dead;
	x->conn = e->conn;
	x->session = e->session;
	x->flags = up ? sl_client_flags(e->client) : 0;
	pthread_mutex_unlock(&e->lock);
	if (up)
		sl_ex_resolve(x);
	else
		queue(x);
}

void sl_ex_again(struct xreq *x, uint64_t when)
{
	release(x);
	clear_attempt(x);
	x->not_before = when;
	queue(x);
}

/* A call failed: start over, or give up. */
void sl_ex_failed(struct xreq *x, int err, bool from_server)
{
	struct export *e = x->e;
	/* What was a file when it was listed is something else now. */
	if (from_server && (x->r->op == SL_OREQ_READ || x->r->op == SL_OREQ_LSEEK) &&
	    (err == -EISDIR || err == -ENXIO || err == -ELOOP || err == -EINVAL))
		err = -ESTALE;
	if (err == -ENOTCONN && !from_server) {
		clear_attempt(x);
		queue(x);
		return;
	}
	if (err == -ETIMEDOUT && !from_server) {
		/* A connection on which an answer takes that long is of no use to the others either. */
		pthread_mutex_lock(&e->lock);
		if (e->conn == x->conn)
			e->dead = true;
		pthread_cond_broadcast(&e->cond);
		pthread_mutex_unlock(&e->lock);
	}
	if (from_server && (err == -ESTALE || (err == -ENOENT && x->cached)) && x->tries++ < RETRIES) {
		release(x);
		clear_attempt(x);
		pthread_mutex_lock(&e->lock);
		sl_places_drop(&e->places, x->r->place);
		pthread_mutex_unlock(&e->lock);
		x->fresh = true;
		sl_ex_resolve(x);
		return;
	}
	sl_ex_finish(x, err);
}

/* ---- resolving ---- */

static void lookup_done(struct sl_call *call, struct sl_result *res)
{
	struct xreq *x = sl_container_of(call, struct xreq, call);
	struct export *e = x->e;
	if (res->err) {
		sl_ex_failed(x, res->err, res->from_server);
		return;
	}
	const struct fuse_entry_out *en = &res->out->entry;
	struct sl_attr a;
	if (en->nodeid == 0) {
		sl_ex_failed(x, -ENOENT, true);
		return;
	}
	pthread_mutex_lock(&e->lock);
	bool hint = x->flags & SL_FUSE_XATTR_HINT;
	x->node = (struct sl_place_node){en->nodeid, en->generation};
	if (e->session == x->session)
		sl_places_put(&e->places, x->r->place, x->at, x->node);
	pthread_mutex_unlock(&e->lock);
	int r = sl_attr_from_fuse(&en->attr, en->generation, hint, &a);
	if (r < 0) {
		sl_ex_finish(x, r);
		return;
	}
	if (x->r->place[x->at] == '\0' && x->r->op == SL_OREQ_STAT) {
		x->r->attr = a;
		sl_ex_finish(x, 0);
		return;
	}
	sl_ex_resolve(x);
}

void sl_ex_resolve(struct xreq *x)
{
	struct export *e = x->e;
	const char *place = x->r->place;
	size_t len = strlen(place);

	if (x->at == 0) {
		x->node = (struct sl_place_node){FUSE_ROOT_ID, 0};
		x->cached = false;
		/* Of a fresh look, the last name at least is asked for again; after a stale node, all. */
		size_t known = len;
		while (x->r->fresh && known > 0 && place[--known] != '/')
			;
		pthread_mutex_lock(&e->lock);
		if (!x->fresh && x->session == e->session)
			x->at = sl_places_find(&e->places, place, known, &x->node);
		pthread_mutex_unlock(&e->lock);
		x->cached = x->at > 0;
	}
	if (x->at == len) {
		sl_ex_operate(x);
		return;
	}
	const char *comp = place + x->at + (x->at > 0);
	size_t n = strcspn(comp, "/");
	if (!sl_name_valid(comp, n)) {
		sl_ex_finish(x, -EINVAL);
		return;
	}
	memcpy(x->name, comp, n);
	x->name[n] = '\0';
	x->at = (size_t)(comp - place) + n;
	x->call.name = x->name;
	x->call.opcode = FUSE_LOOKUP;
	x->call.nodeid = x->node.nodeid;
	sl_ex_issue(x, &x->call, lookup_done);
}

/* ---- attributes ---- */

static void attr_done(struct sl_call *call, struct sl_result *res)
{
	struct xreq *x = sl_container_of(call, struct xreq, call);
	if (res->err) {
		sl_ex_failed(x, res->err, res->from_server);
		return;
	}
	bool hint = x->flags & SL_FUSE_XATTR_HINT;
	int r = sl_attr_from_fuse(&res->out->attr.attr, x->node.generation, hint, &x->r->attr);
	if (r < 0)
		sl_ex_finish(x, r);
	else if (x->r->op == SL_OREQ_LIST)
		sl_ex_list(x);
	else if (x->r->op == SL_OREQ_XATTRS)
		xattr_next(x);
	else
		sl_ex_finish(x, 0);
}

static void read_attr(struct xreq *x)
{
	x->call.name = NULL;
	x->call.in.getattr = (struct fuse_getattr_in){
	    .getattr_flags = x->opened && x->r->op != SL_OREQ_LIST ? FUSE_GETATTR_FH : 0, .fh = x->fh};
	sl_ex_issue_one(x, FUSE_GETATTR, x->node.nodeid, attr_done);
}

/* ---- open and release, for servers that want them ---- */

struct release_call {
	struct sl_call call;
};

static void release_done(struct sl_call *call, struct sl_result *res)
{
	(void)res;
	free(sl_container_of(call, struct release_call, call));
}

static void release(struct xreq *x)
{
	if (!x->opened)
		return;
	x->opened = false;
	struct release_call *rc = calloc(1, sizeof(*rc));
	if (!rc)
		return;
	rc->call.opcode = x->r->op == SL_OREQ_LIST ? FUSE_RELEASEDIR : FUSE_RELEASE;
	rc->call.nodeid = x->node.nodeid;
	rc->call.in.release.fh = x->fh;
	sl_ex_issue(x, &rc->call, release_done);
}

static void part_done(struct sl_call *call, struct sl_result *res);

static void read_start(struct xreq *x)
{
	struct export *e = x->e;
	struct sl_oreq *r = x->r;
	if (r->op == SL_OREQ_LSEEK) {
		x->call.in.lseek =
		    (struct fuse_lseek_in){.fh = x->fh, .offset = r->off, .whence = (uint32_t)r->whence};
		sl_ex_issue_one(x, FUSE_LSEEK, x->node.nodeid, part_done);
		return;
	}
	struct sl_client *c = sl_ex_client_get(e, x->conn);
	size_t max = c ? sl_client_max_data(c) : 4096, n = SL_MAX(SL_DIV_UP(r->len, max), 1u);
	if (c)
		sl_ex_client_put(e);
	r->data = malloc(r->len + 1);
	x->parts = calloc(n, sizeof(*x->parts));
	if (!r->data || !x->parts) {
		sl_ex_finish(x, -ENOMEM);
		return;
	}
	r->nread = r->len;
	x->pending = (unsigned)n;
	/* The last part's done() goes on with the request, maybe before this loop ends: x is not touched
	 * after the last issue. */
	struct part *parts = x->parts;
	uint64_t off = r->off;
	size_t left = r->len;
	for (size_t i = 0; i < n; i++) {
		size_t k = SL_MIN(left, max);
		parts[i].x = x;
		parts[i].index = i * max;
		parts[i].call = (struct sl_call){.opcode = FUSE_READ, .nodeid = x->node.nodeid};
		parts[i].call.in.read =
		    (struct fuse_read_in){.fh = x->fh, .offset = off + i * max, .size = (uint32_t)k};
		left -= k;
	}
	for (size_t i = 0; i < n; i++)
		sl_ex_issue(x, &parts[i].call, part_done);
}

static void part_done(struct sl_call *call, struct sl_result *res)
{
	struct xreq *x;
	int err = res->err;
	if (call->opcode == FUSE_LSEEK) {
		x = sl_container_of(call, struct xreq, call);
		if (err && !(res->from_server && err == -ENXIO)) {
			sl_ex_failed(x, err, res->from_server);
			return;
		}
		x->r->result = err ? UINT64_MAX : res->out->lseek.offset;
		read_attr(x);
		return;
	}
	struct part *p = sl_container_of(call, struct part, call);
	x = p->x;
	size_t want = call->in.read.size, len = res->data_len;
	bool with_attr = err == 0 && x->flags & SL_FUSE_READ_ATTR;
	struct sl_attr attr;
	if (with_attr) {
		struct fuse_attr fa;
		if (len < sizeof(fa)) {
			err = -EPROTO;
		} else {
			len -= sizeof(fa);
			memcpy(&fa, (const char *)res->data + len, sizeof(fa));
			err = sl_attr_from_fuse(&fa, x->node.generation, (x->flags & SL_FUSE_XATTR_HINT),
						&attr);
		}
	}
	if (err == 0 && len > want)
		err = -EPROTO;
	if (err == 0)
		memcpy(x->r->data + p->index, res->data, len);
	pthread_mutex_lock(&x->e->lock);
	if (err == 0 && with_attr) {
		/* All parts are of one version if all say the same; else the file is asked once more, after
		 * the last of them. */
		struct sl_version a = sl_attr_version(&attr), b = sl_attr_version(&x->r->attr);
		if (!x->attrs++)
			x->r->attr = attr;
		else if (!sl_version_eq(&a, &b))
			x->differ = true;
	}
	if (err && !x->err) {
		x->err = err;
		x->from_server = res->from_server;
	}
	/* A short answer is the end of the file, as the server sees it: what later parts got does not count.
	 */
	if (err == 0 && len < want)
		x->r->nread = SL_MIN(x->r->nread, p->index + len);
	bool last = --x->pending == 0, known = x->attrs && !x->differ;
	pthread_mutex_unlock(&x->e->lock);
	if (!last)
		return;
	if (x->err)
		sl_ex_failed(x, x->err, x->from_server);
	else if (known)
		sl_ex_finish(x, 0);
	else
		read_attr(x);
}

static void open_done(struct sl_call *call, struct sl_result *res)
{
	struct xreq *x = sl_container_of(call, struct xreq, call);
	bool dir = x->r->op == SL_OREQ_LIST;
	if (res->err == -ENOSYS && res->from_server) {
		pthread_mutex_lock(&x->e->lock);
		*(dir ? &x->e->no_opendir : &x->e->no_open) = true;
		pthread_mutex_unlock(&x->e->lock);
	} else if (res->err) {
		sl_ex_failed(x, res->err, res->from_server);
		return;
	} else {
		x->fh = res->out->open.fh;
		x->opened = true;
	}
	if (dir)
		read_attr(x);
	else
		read_start(x);
}

/* ---- extended attributes ---- */

static void xattr_value_done(struct sl_call *call, struct sl_result *res)
{
	struct xreq *x = sl_container_of(call, struct xreq, call);
	struct sl_oreq *r = x->r;
	int err = res->err;
	struct sl_oxattr *a = &r->xattrs[x->next];
	if (err == -ENODATA && res->from_server) {
		free(a->name);
		*a = r->xattrs[--r->nxattrs];
	} else if (err) {
		sl_ex_failed(x, err, res->from_server);
		return;
	} else {
		free(a->value);
		a->len = res->data_len;
		a->value = malloc(a->len + 1);
		if (!a->value) {
			sl_ex_finish(x, -ENOMEM);
			return;
		}
		memcpy(a->value, res->data, a->len);
		x->next++;
	}
	xattr_next(x);
}

static void xattr_list_done(struct sl_call *call, struct sl_result *res)
{
	struct xreq *x = sl_container_of(call, struct xreq, call);
	int err = res->err;
	if (err && res->from_server && (err == -ENOSYS || err == -EOPNOTSUPP)) {
		sl_ex_finish(x, 0);
		return;
	}
	if (err) {
		sl_ex_failed(x, err, res->from_server);
		return;
	}
	const char *p = res->data, *end = p + res->data_len;
	while (p < end && err == 0) {
		size_t n = strnlen(p, (size_t)(end - p));
		if (n == 0 || n > 255 || p + n == end)
			err = -EPROTO;
		else if (sl_oreq_xattr_wanted(p))
			err = sl_oreq_add_xattr(x->r, p, "", 0);
		p += n + 1;
	}
	if (err) {
		sl_ex_finish(x, err);
		return;
	}
	x->off = 1; /* the names are here */
	x->next = 0;
	xattr_next(x);
}

static void xattr_next(struct xreq *x)
{
	x->call.in.getxattr = (struct fuse_getxattr_in){.size = XATTR_MAX};
	if (x->off == 0) {
		x->call.name = NULL;
		sl_ex_issue_one(x, FUSE_LISTXATTR, x->node.nodeid, xattr_list_done);
	} else if (x->next < x->r->nxattrs) {
		x->call.name = x->r->xattrs[x->next].name;
		sl_ex_issue_one(x, FUSE_GETXATTR, x->node.nodeid, xattr_value_done);
	} else {
		sl_ex_finish(x, 0);
	}
}

/* ---- what was asked ---- */

static void statfs_done(struct sl_call *call, struct sl_result *res)
{
	struct xreq *x = sl_container_of(call, struct xreq, call);
	if (res->err) {
		sl_ex_failed(x, res->err, res->from_server);
		return;
	}
	const struct fuse_kstatfs *s = &res->out->statfs.st;
	x->r->fs.blocks = s->blocks;
	x->r->fs.bfree = s->bfree;
	x->r->fs.bavail = s->bavail;
	x->r->fs.files = s->files;
	x->r->fs.ffree = s->ffree;
	x->r->fs.bsize = s->frsize ? s->frsize : s->bsize;
	x->r->fs.namelen = s->namelen;
	sl_ex_finish(x, 0);
}

void sl_ex_operate(struct xreq *x)
{
	struct export *e = x->e;
	x->call.name = NULL;
	x->fh = 0;
	if (sl_ex_wants_mark(x)) {
		sl_ex_mark(x);
		return;
	}
	pthread_mutex_lock(&e->lock);
	bool dir = x->r->op == SL_OREQ_LIST, need_open = dir ? !e->no_opendir : !e->no_open;
	pthread_mutex_unlock(&e->lock);
	switch (x->r->op) {
	case SL_OREQ_STAT:
	case SL_OREQ_MARK:
	case SL_OREQ_XATTRS:
		read_attr(x);
		return;
	case SL_OREQ_STATFS:
		sl_ex_issue_one(x, FUSE_STATFS, x->node.nodeid, statfs_done);
		return;
	case SL_OREQ_TOLD:
		sl_ex_told(x);
		return;
	case SL_OREQ_LIST:
	case SL_OREQ_READ:
	case SL_OREQ_LSEEK:
		if (need_open) {
			x->call.in.open = (struct fuse_open_in){.flags = 0};
			sl_ex_issue_one(x, dir ? FUSE_OPENDIR : FUSE_OPEN, x->node.nodeid, open_done);
		} else if (dir) {
			read_attr(x);
		} else {
			read_start(x);
		}
	}
}

void sl_ex_submit(struct sl_origin *o, struct sl_oreq *r)
{
	struct export *e = sl_container_of(o, struct export, o);
	struct xreq *x = calloc(1, sizeof(*x));
	if (!x) {
		r->err = -ENOMEM;
		r->done(r);
		return;
	}
	x->e = e;
	x->r = r;
	x->deadline = sl_now() + e->timeout;
	pthread_mutex_lock(&e->lock);
	e->outstanding++;
	pthread_mutex_unlock(&e->lock);
	sl_ex_start(x);
}
