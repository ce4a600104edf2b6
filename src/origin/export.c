/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * An export over the wire as an origin.
 *
 * A request is a small state machine: resolve the place to a node (by what is remembered, or by LOOKUPs),
 * then do what was asked, call by call; each step runs in the done() of the call before it, on the
 * connection's receiving thread. No thread waits for anything. When the connection breaks, every request
 * starts over on the next one, until its deadline: all of them only read. One thread, the connector, makes
 * connections and starts requests that waited for one.
 */
#include <pthread.h>
#include <stdio.h>

#include "base/fd.h"
#include "base/log.h"
#include "base/time.h"
#include "origin/dial.h"
#include "origin/origin.h"
#include "origin/places.h"
#include "wire/client.h"

#define BACKOFF_MIN (50 * SL_NS_PER_MS)
#define BACKOFF_MAX (5 * SL_NS_PER_SEC)
#define RETRIES	    3	  /* of a request whose node turned out to be stale */
#define WINDOW	    128	  /* LOOKUPs or READLINKs of one listing under way at once */
#define FORGET_BATCH 64	  /* nodes that are given back in one message, at least */
#define XATTR_MAX   65536 /* the kernel's own limit of a list and of a value */

struct export
{
	struct sl_origin o;
	struct sl_dial *dial;
	uint64_t timeout; /* ns */
	uint64_t root_ino;
	pthread_t connector;

	pthread_mutex_t lock; /* protects all below */
	pthread_cond_t cond;
	struct sl_client *client; /* NULL while there is no connection */
	uint64_t conn;		  /* counts connections: nodes of one mean nothing on the next */
	unsigned users;		  /* threads that are just using client */
	bool dead, stop;
	bool no_open, no_opendir, no_readdirplus; /* what this server says it does not need or have */
	unsigned outstanding;
	struct sl_list waiting; /* requests that need a connection */
	struct sl_places places;
};

struct xreq;

/* One of several calls of one request that are under way at once. */
struct part {
	struct sl_call call;
	struct xreq *x;
	size_t index; /* READ: which chunk; LIST: which entry */
};

struct xreq {
	struct sl_list link;
	struct export *e;
	struct sl_oreq *r;
	struct sl_call call;
	uint64_t deadline, conn;
	uint64_t flags; /* INIT flags of that connection */
	int tries;
	bool fresh, cached; /* @cached: the node comes from memory, and may be stale */
	size_t at;	    /* the place is resolved up to here */
	char name[256];
	struct sl_place_node node;
	uint64_t fh;
	bool opened;

	/* READ and LIST: several calls at once; under e->lock */
	unsigned pending;
	int err;
	bool from_server;
	size_t next;
	unsigned attrs; /* READ: answers that brought attributes */
	bool differ;
	struct part *parts;
	/* LIST */
	size_t cap;
	uint64_t off;
	struct sl_place_node *nodes; /* per entry */
	size_t nodes_cap;
	bool plus;
};

static void resolve(struct xreq *x);
static void operate(struct xreq *x);
static void read_attr(struct xreq *x);
static void list_more(struct xreq *x);
static void list_details(struct xreq *x);
static void xattr_next(struct xreq *x);

/* ---- connection ---- */

static struct sl_client *client_get(struct export *e, uint64_t conn)
{
	struct sl_client *c = NULL;
	pthread_mutex_lock(&e->lock);
	if (e->client && e->conn == conn) {
		c = e->client;
		e->users++;
	}
	pthread_mutex_unlock(&e->lock);
	return c;
}

static void client_put(struct export *e)
{
	pthread_mutex_lock(&e->lock);
	if (--e->users == 0)
		pthread_cond_broadcast(&e->cond);
	pthread_mutex_unlock(&e->lock);
}

static void issue(struct xreq *x, struct sl_call *call, void (*done)(struct sl_call *, struct sl_result *))
{
	struct export *e = x->e; /* x may be gone once the call is made */
	struct sl_client *c = client_get(e, x->conn);
	call->done = done;
	call->deadline = x->deadline;
	if (!c) {
		struct sl_result r = {.err = -ENOTCONN};
		done(call, &r);
		return;
	}
	sl_client_call(c, call);
	client_put(e);
}

static void issue_one(struct xreq *x, uint32_t opcode, uint64_t nodeid,
		      void (*done)(struct sl_call *, struct sl_result *))
{
	x->call.opcode = opcode;
	x->call.nodeid = nodeid;
	issue(x, &x->call, done);
}

static void send_forgets(struct export *e)
{
	struct sl_place_forget *f = NULL;
	size_t n = 0;
	pthread_mutex_lock(&e->lock);
	struct sl_client *c = NULL;
	if (e->places.nforget >= FORGET_BATCH && e->client) {
		f = e->places.forget;
		n = e->places.nforget;
		e->places.forget = NULL;
		e->places.nforget = e->places.cap = 0;
		c = e->client;
		e->users++;
	}
	pthread_mutex_unlock(&e->lock);
	for (size_t i = 0; c && i < n; i += 4096) {
		size_t k = SL_MIN(n - i, (size_t)4096);
		struct sl_call call = {.opcode = FUSE_BATCH_FORGET,
				       .in.batch_forget.count = (uint32_t)k,
				       .data = f + i,
				       .data_len = k * sizeof(*f)};
		_Static_assert(sizeof(*f) == sizeof(struct fuse_forget_one), "sent as it is");
		(void)sl_client_post(c, &call);
	}
	free(f);
	if (c)
		client_put(e);
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
		for (size_t i = 0; x->conn == x->e->conn && i < x->r->nentries; i++)
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
}

static void release(struct xreq *x);

static void finish(struct xreq *x, int err)
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
		send_forgets(e);
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
		finish(x, -ETIMEDOUT);
}

static void start(struct xreq *x)
{
	struct export *e = x->e;
	pthread_mutex_lock(&e->lock);
	bool up = e->client && !e->dead;
	x->conn = e->conn;
	x->flags = up ? sl_client_flags(e->client) : 0;
	pthread_mutex_unlock(&e->lock);
	if (up)
		resolve(x);
	else
		queue(x);
}

/* A call failed: start over, or give up. */
static void failed(struct xreq *x, int err, bool from_server)
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
		resolve(x);
		return;
	}
	finish(x, err);
}

/* ---- resolving ---- */

static void lookup_done(struct sl_call *call, struct sl_result *res)
{
	struct xreq *x = sl_container_of(call, struct xreq, call);
	struct export *e = x->e;
	if (res->err) {
		failed(x, res->err, res->from_server);
		return;
	}
	const struct fuse_entry_out *en = &res->out->entry;
	struct sl_attr a;
	if (en->nodeid == 0) {
		failed(x, -ENOENT, true);
		return;
	}
	pthread_mutex_lock(&e->lock);
	bool hint = x->flags & SL_FUSE_XATTR_HINT;
	x->node = (struct sl_place_node){en->nodeid, en->generation};
	if (e->conn == x->conn)
		sl_places_put(&e->places, x->r->place, x->at, x->node);
	pthread_mutex_unlock(&e->lock);
	int r = sl_attr_from_fuse(&en->attr, en->generation, hint, &a);
	if (r < 0) {
		finish(x, r);
		return;
	}
	if (x->r->place[x->at] == '\0' && x->r->op == SL_OREQ_STAT) {
		x->r->attr = a;
		finish(x, 0);
		return;
	}
	resolve(x);
}

static void resolve(struct xreq *x)
{
	struct export *e = x->e;
	const char *place = x->r->place;
	size_t len = strlen(place);

	if (x->at == 0) {
		x->node = (struct sl_place_node){FUSE_ROOT_ID, 0};
		x->cached = false;
		/* The longest part that is remembered; of a fresh look, the last name at least is asked for
		 * again. */
		pthread_mutex_lock(&e->lock);
		for (size_t l = len; l > 0; l--) {
			if (place[l] != '\0' && place[l] != '/')
				continue;
			if (l == len && (x->fresh || x->r->fresh))
				continue;
			if (sl_places_get(&e->places, place, l, &x->node)) {
				x->at = l;
				x->cached = true;
				break;
			}
		}
		pthread_mutex_unlock(&e->lock);
	}
	if (x->at == len) {
		operate(x);
		return;
	}
	const char *comp = place + x->at + (x->at > 0);
	size_t n = strcspn(comp, "/");
	if (!sl_name_valid(comp, n)) {
		finish(x, -EINVAL);
		return;
	}
	memcpy(x->name, comp, n);
	x->name[n] = '\0';
	x->at = (size_t)(comp - place) + n;
	x->call.name = x->name;
	x->call.opcode = FUSE_LOOKUP;
	x->call.nodeid = x->node.nodeid;
	issue(x, &x->call, lookup_done);
}

/* ---- attributes ---- */

static void attr_done(struct sl_call *call, struct sl_result *res)
{
	struct xreq *x = sl_container_of(call, struct xreq, call);
	if (res->err) {
		failed(x, res->err, res->from_server);
		return;
	}
	bool hint = x->flags & SL_FUSE_XATTR_HINT;
	int r = sl_attr_from_fuse(&res->out->attr.attr, x->node.generation, hint, &x->r->attr);
	if (r < 0)
		finish(x, r);
	else if (x->r->op == SL_OREQ_LIST)
		list_more(x);
	else if (x->r->op == SL_OREQ_XATTRS)
		xattr_next(x);
	else
		finish(x, 0);
}

static void read_attr(struct xreq *x)
{
	x->call.name = NULL;
	x->call.in.getattr = (struct fuse_getattr_in){
	    .getattr_flags = x->opened && x->r->op != SL_OREQ_LIST ? FUSE_GETATTR_FH : 0, .fh = x->fh};
	issue_one(x, FUSE_GETATTR, x->node.nodeid, attr_done);
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
	issue(x, &rc->call, release_done);
}

static void part_done(struct sl_call *call, struct sl_result *res);

static void read_start(struct xreq *x)
{
	struct export *e = x->e;
	struct sl_oreq *r = x->r;
	if (r->op == SL_OREQ_LSEEK) {
		x->call.in.lseek =
		    (struct fuse_lseek_in){.fh = x->fh, .offset = r->off, .whence = (uint32_t)r->whence};
		issue_one(x, FUSE_LSEEK, x->node.nodeid, part_done);
		return;
	}
	struct sl_client *c = client_get(e, x->conn);
	size_t max = c ? sl_client_max_data(c) : 4096, n = SL_MAX(SL_DIV_UP(r->len, max), 1u);
	if (c)
		client_put(e);
	r->data = malloc(r->len + 1);
	x->parts = calloc(n, sizeof(*x->parts));
	if (!r->data || !x->parts) {
		finish(x, -ENOMEM);
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
		issue(x, &parts[i].call, part_done);
}

static void part_done(struct sl_call *call, struct sl_result *res)
{
	struct xreq *x;
	int err = res->err;
	if (call->opcode == FUSE_LSEEK) {
		x = sl_container_of(call, struct xreq, call);
		if (err && !(res->from_server && err == -ENXIO)) {
			failed(x, err, res->from_server);
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
		failed(x, x->err, x->from_server);
	else if (known)
		finish(x, 0);
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
		failed(x, res->err, res->from_server);
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

/* ---- listing ---- */

static int list_add(struct xreq *x, const struct sl_dirent *d, bool hint)
{
	struct sl_attr a = {0};
	int r = 0;
	if (d->name[0] == '.' && (d->namelen == 1 || (d->namelen == 2 && d->name[1] == '.')))
		return 0;
	if (x->plus && d->entry.nodeid)
		r = sl_attr_from_fuse(&d->entry.attr, d->entry.generation, hint, &a);
	if (r == 0)
		r = sl_oreq_add_entry(x->r, &x->cap, d->name, d->namelen, &a);
	if (r == 0 && x->r->nentries > x->nodes_cap) {
		struct sl_place_node *n = reallocarray(x->nodes, x->cap, sizeof(*n));
		if (n) {
			x->nodes = n;
			x->nodes_cap = x->cap;
		} else {
			free(x->r->entries[--x->r->nentries].name);
			r = -ENOMEM;
		}
	}
	if (r == 0)
		x->nodes[x->r->nentries - 1] =
		    (struct sl_place_node){x->plus ? d->entry.nodeid : 0, d->entry.generation};
	return r;
}

static void list_done(struct sl_call *call, struct sl_result *res)
{
	struct xreq *x = sl_container_of(call, struct xreq, call);
	if (res->err == -ENOSYS && res->from_server && x->plus) {
		pthread_mutex_lock(&x->e->lock);
		x->e->no_readdirplus = true;
		pthread_mutex_unlock(&x->e->lock);
		list_more(x);
		return;
	}
	if (res->err) {
		failed(x, res->err, res->from_server);
		return;
	}
	if (res->data_len == 0) {
		x->next = 0;
		list_details(x);
		return;
	}
	bool hint = x->flags & SL_FUSE_XATTR_HINT;
	const void *p = res->data;
	size_t left = res->data_len;
	struct sl_dirent d;
	int r;
	while ((r = sl_dirent_next(&p, &left, x->plus, &d)) > 0) {
		r = list_add(x, &d, hint);
		if (r < 0)
			break;
		x->off = d.off;
	}
	if (r < 0)
		finish(x, r);
	else
		list_more(x);
}

static void list_more(struct xreq *x)
{
	struct export *e = x->e;
	pthread_mutex_lock(&e->lock);
	x->plus = !e->no_readdirplus && x->flags & FUSE_DO_READDIRPLUS;
	uint32_t max = e->client ? sl_client_max_data(e->client) : 4096;
	pthread_mutex_unlock(&e->lock);
	x->call.in.read = (struct fuse_read_in){.fh = x->fh, .offset = x->off, .size = max};
	issue_one(x, x->plus ? FUSE_READDIRPLUS : FUSE_READDIR, x->node.nodeid, list_done);
}

static void list_finish(struct xreq *x)
{
	struct export *e = x->e;
	struct sl_oreq *r = x->r;
	/* Entries that vanished while they were listed have lost their name. */
	size_t k = 0;
	for (size_t i = 0; i < r->nentries; i++) {
		if (!r->entries[i].name)
			continue;
		r->entries[k] = r->entries[i];
		x->nodes[k++] = x->nodes[i];
	}
	r->nentries = k;
	int err = sl_oreq_check_entries(r);
	if (err) {
		finish(x, err);
		return;
	}
	size_t plen = strlen(r->place);
	_cleanup_free_ char *path = malloc(plen + 1 + 256);
	if (path) {
		memcpy(path, r->place, plen);
		if (plen)
			path[plen++] = '/';
		pthread_mutex_lock(&e->lock);
		for (size_t i = 0; i < k && e->conn == x->conn; i++) {
			size_t n = strlen(r->entries[i].name);
			memcpy(path + plen, r->entries[i].name, n);
			sl_places_put(&e->places, path, plen + n, x->nodes[i]);
		}
		pthread_mutex_unlock(&e->lock);
	}
	send_forgets(e);
	finish(x, 0);
}

static void detail_done(struct sl_call *call, struct sl_result *res)
{
	struct part *p = sl_container_of(call, struct part, call);
	struct xreq *x = p->x;
	struct sl_oentry *en = &x->r->entries[p->index];
	int err = res->err;
	bool hint = x->flags & SL_FUSE_XATTR_HINT;
	bool gone = res->from_server &&
		    (err == -ENOENT || err == -ESTALE || (err == -EINVAL && call->opcode == FUSE_READLINK));
	if (err == 0 && call->opcode == FUSE_LOOKUP) {
		const struct fuse_entry_out *e = &res->out->entry;
		x->nodes[p->index] = (struct sl_place_node){e->nodeid, e->generation};
		gone = e->nodeid == 0;
		if (!gone)
			err = sl_attr_from_fuse(&e->attr, e->generation, hint, &en->attr);
	} else if (err == 0) {
		if (res->data_len == 0 || res->data_len > 4096 || memchr(res->data, '\0', res->data_len))
			err = -EPROTO;
		else if (!(en->target = strndup(res->data, res->data_len)))
			err = -ENOMEM;
	}
	pthread_mutex_lock(&x->e->lock);
	if (gone) {
		if (x->nodes[p->index].nodeid)
			sl_places_forget(&x->e->places, x->nodes[p->index].nodeid, 1);
		x->nodes[p->index].nodeid = 0;
		free(en->name);
		en->name = NULL;
	} else if (err && !x->err) {
		x->err = err;
		x->from_server = res->from_server;
	}
	bool last = --x->pending == 0;
	pthread_mutex_unlock(&x->e->lock);
	if (!last)
		return;
	if (x->err)
		failed(x, x->err, x->from_server);
	else
		list_details(x);
}

/* What the listing alone does not say: attributes of a plain READDIR, targets of symlinks. In rounds of
 * WINDOW calls. */
static void list_details(struct xreq *x)
{
	struct sl_oreq *r = x->r;
	struct part *parts = x->parts;
	if (!parts)
		parts = x->parts = calloc(WINDOW, sizeof(*x->parts));
	if (!parts) {
		finish(x, -ENOMEM);
		return;
	}
	unsigned n = 0;
	for (; x->next < r->nentries && n < WINDOW; x->next++) {
		struct sl_oentry *en = &r->entries[x->next];
		if (!en->name)
			continue;
		uint64_t nodeid = x->nodes[x->next].nodeid;
		if (nodeid && !(S_ISLNK(en->attr.mode) && !en->target))
			continue;
		struct part *p = &parts[n++];
		*p = (struct part){.x = x, .index = x->next};
		p->call.opcode = nodeid ? FUSE_READLINK : FUSE_LOOKUP;
		p->call.nodeid = nodeid ? nodeid : x->node.nodeid;
		p->call.name = nodeid ? NULL : en->name;
	}
	if (n == 0) {
		/* A second pass finds the symlinks among what was looked up in the first. */
		for (size_t i = 0; i < r->nentries; i++)
			if (r->entries[i].name && S_ISLNK(r->entries[i].attr.mode) && !r->entries[i].target) {
				x->next = i;
				list_details(x);
				return;
			}
		list_finish(x);
		return;
	}
	x->pending = n;
	for (unsigned i = 0; i < n; i++)
		issue(x, &parts[i].call, detail_done);
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
		failed(x, err, res->from_server);
		return;
	} else {
		free(a->value);
		a->len = res->data_len;
		a->value = malloc(a->len + 1);
		if (!a->value) {
			finish(x, -ENOMEM);
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
		finish(x, 0);
		return;
	}
	if (err) {
		failed(x, err, res->from_server);
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
		finish(x, err);
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
		issue_one(x, FUSE_LISTXATTR, x->node.nodeid, xattr_list_done);
	} else if (x->next < x->r->nxattrs) {
		x->call.name = x->r->xattrs[x->next].name;
		issue_one(x, FUSE_GETXATTR, x->node.nodeid, xattr_value_done);
	} else {
		finish(x, 0);
	}
}

/* ---- what was asked ---- */

static void statfs_done(struct sl_call *call, struct sl_result *res)
{
	struct xreq *x = sl_container_of(call, struct xreq, call);
	if (res->err) {
		failed(x, res->err, res->from_server);
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
	finish(x, 0);
}

static void operate(struct xreq *x)
{
	struct export *e = x->e;
	x->call.name = NULL;
	x->fh = 0;
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
		issue_one(x, FUSE_STATFS, x->node.nodeid, statfs_done);
		return;
	case SL_OREQ_LIST:
	case SL_OREQ_READ:
	case SL_OREQ_LSEEK:
		if (need_open) {
			x->call.in.open = (struct fuse_open_in){.flags = 0};
			issue_one(x, dir ? FUSE_OPENDIR : FUSE_OPEN, x->node.nodeid, open_done);
		} else if (dir) {
			read_attr(x);
		} else {
			read_start(x);
		}
	}
}

static void export_submit(struct sl_origin *o, struct sl_oreq *r)
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
	start(x);
}

/* ---- the connector ---- */

static void on_gone(void *arg, int err)
{
	struct export *e = arg;
	(void)err;
	pthread_mutex_lock(&e->lock);
	e->dead = true;
	pthread_cond_broadcast(&e->cond);
	pthread_mutex_unlock(&e->lock);
}

static int connect_once(struct export *e, struct sl_client **ret, char **why)
{
	struct sl_transport *t;
	int r = sl_dial_connect(e->dial, &t, why);
	if (r < 0)
		return r;
	struct sl_client_config cfg = {
	    .want_flags = FUSE_ASYNC_READ | FUSE_BIG_WRITES | FUSE_DO_READDIRPLUS | FUSE_NO_OPEN_SUPPORT |
			  FUSE_PARALLEL_DIROPS | FUSE_EXPORT_SUPPORT | SL_FUSE_XATTR_HINT | SL_FUSE_READ_ATTR,
	    .uid = getuid(),
	    .gid = getgid(),
	    .pid = (uint32_t)getpid(),
	    .init_timeout_ms = (int)SL_MIN(e->timeout / SL_NS_PER_MS, (uint64_t)60000),
	    .gone = on_gone,
	    .arg = e};
	struct sl_client *c;
	r = sl_client_new(t, &cfg, &c);
	if (r == -EPROTO)
		return sl_fail(why, r, "the peer does not speak sluice's protocol");
	if (r == -EPROTONOSUPPORT)
		return sl_fail(why, r, "the peer speaks an incompatible version of the protocol");
	if (r == -ENOTCONN)
		return sl_fail(why, r, "the peer ended the connection before it began");
	if (r < 0)
		return sl_fail(why, r, "the peer does not answer: %s", strerror(-r));
	struct sl_call call = {
	    .opcode = FUSE_GETATTR, .nodeid = FUSE_ROOT_ID, .deadline = sl_now() + e->timeout};
	struct sl_msg_out m;
	r = sl_client_call_sync(c, &call, &m, NULL);
	if (r == 0 && !S_ISDIR(m.out.attr.attr.mode))
		r = sl_fail(why, -ENOTDIR, "what is served there is no directory");
	else if (r == 0 && e->root_ino && e->root_ino != m.out.attr.attr.ino)
		r = sl_fail(why, -ESTALE, "another tree is served there now than before");
	else if (r < 0)
		sl_fail(why, r, "the peer does not answer: %s", strerror(-r));
	if (r < 0) {
		sl_client_free(c);
		return r;
	}
	e->root_ino = m.out.attr.attr.ino;
	*ret = c;
	return 0;
}

/* With the lock held; drops it meanwhile. */
static void drop_connection(struct export *e)
{
	struct sl_client *c = e->client;
	e->client = NULL;
	e->conn++;
	sl_places_clear(&e->places);
	e->no_open = e->no_opendir = e->no_readdirplus = false;
	while (e->users)
		pthread_cond_wait(&e->cond, &e->lock);
	pthread_mutex_unlock(&e->lock);
	sl_client_free(c);
	sl_dial_reap(e->dial);
	pthread_mutex_lock(&e->lock);
	e->dead = false;
}

/* With the lock held: fail what has waited long enough; returns the earliest deadline of the rest. */
static uint64_t expire_waiting(struct export *e, bool all)
{
	for (;;) {
		uint64_t now = sl_now(), first = UINT64_MAX;
		struct xreq *late = NULL;
		sl_list_for_each (l, &e->waiting) {
			struct xreq *x = sl_list_entry(l, struct xreq, link);
			if (all || x->deadline <= now) {
				late = x;
				break;
			}
			first = SL_MIN(first, x->deadline);
		}
		if (!late)
			return first;
		sl_list_del(&late->link);
		pthread_mutex_unlock(&e->lock);
		finish(late, -ETIMEDOUT);
		pthread_mutex_lock(&e->lock);
	}
}

static void wait_until(struct export *e, uint64_t until)
{
	struct timespec ts = sl_ns_to_timespec(until);
	pthread_cond_timedwait(&e->cond, &e->lock, &ts);
}

static void *connector(void *arg)
{
	struct export *e = arg;
	uint64_t backoff = 0, retry_at = 0;
	bool complained = false;
	pthread_mutex_lock(&e->lock);
	while (!e->stop) {
		if (e->client && e->dead) {
			drop_connection(e);
			if (!e->stop)
				sl_notice("the connection to the origin is gone; it is made again when it is "
					  "needed");
			backoff = retry_at = 0;
			continue;
		}
		uint64_t first = expire_waiting(e, false);
		if (sl_list_empty(&e->waiting)) {
			pthread_cond_wait(&e->cond, &e->lock);
			continue;
		}
		if (e->client) {
			struct xreq *x = sl_list_entry(e->waiting.next, struct xreq, link);
			sl_list_del(&x->link);
			x->conn = e->conn;
			x->flags = sl_client_flags(e->client);
			pthread_mutex_unlock(&e->lock);
			resolve(x);
			pthread_mutex_lock(&e->lock);
			continue;
		}
		if (sl_now() < retry_at) {
			wait_until(e, SL_MIN(retry_at, first));
			continue;
		}
		pthread_mutex_unlock(&e->lock);
		struct sl_client *c = NULL;
		_cleanup_free_ char *why = NULL;
		int r = connect_once(e, &c, &why);
		pthread_mutex_lock(&e->lock);
		e->dead = e->dead &&
			  r == 0; /* a failed attempt may have said so of a connection that never was ours */
		if (r == 0) {
			e->client = c;
			if (complained)
				sl_notice("the origin is connected again");
			complained = false;
			backoff = 0;
		} else {
			if (!complained)
				sl_warn("the origin is not reachable: %s", why ? why : strerror(-r));
			complained = true;
			backoff = backoff ? SL_MIN(backoff * 2, BACKOFF_MAX) : BACKOFF_MIN;
			retry_at = sl_now() + backoff;
		}
	}
	expire_waiting(e, true);
	if (e->client)
		drop_connection(e);
	expire_waiting(e, true);
	pthread_mutex_unlock(&e->lock);
	return NULL;
}

static void export_stop(struct sl_origin *o)
{
	struct export *e = sl_container_of(o, struct export, o);
	pthread_mutex_lock(&e->lock);
	bool was = e->stop;
	e->stop = true;
	pthread_cond_broadcast(&e->cond);
	pthread_mutex_unlock(&e->lock);
	if (!was)
		pthread_join(e->connector, NULL);
}

static void export_free(struct sl_origin *o)
{
	struct export *e = sl_container_of(o, struct export, o);
	export_stop(o);
	pthread_mutex_lock(&e->lock);
	while (e->outstanding)
		pthread_cond_wait(&e->cond, &e->lock);
	pthread_mutex_unlock(&e->lock);
	sl_places_clear(&e->places);
	sl_dial_free(e->dial);
	pthread_cond_destroy(&e->cond);
	pthread_mutex_destroy(&e->lock);
	free(e);
}

static bool export_connected(struct sl_origin *o)
{
	struct export *e = sl_container_of(o, struct export, o);
	pthread_mutex_lock(&e->lock);
	bool up = e->client && !e->dead;
	pthread_mutex_unlock(&e->lock);
	return up;
}

static const struct sl_origin_ops export_ops = {export_submit, export_stop, export_free, export_connected};

int sl_origin_export_open(struct sl_dial *d, const struct sl_origin_config *cfg, struct sl_origin **ret,
			  char **why)
{
	struct export *e = calloc(1, sizeof(*e));
	if (!e) {
		sl_dial_free(d);
		return -ENOMEM;
	}
	e->o.ops = &export_ops;
	e->dial = d;
	e->timeout = (cfg->timeout ? cfg->timeout : 120) * SL_NS_PER_SEC;
	sl_list_init(&e->waiting);
	sl_places_init(&e->places);
	pthread_mutex_init(&e->lock, NULL);
	pthread_condattr_t ca;
	pthread_condattr_init(&ca);
	pthread_condattr_setclock(&ca, CLOCK_MONOTONIC);
	pthread_cond_init(&e->cond, &ca);
	pthread_condattr_destroy(&ca);
	e->root_ino = cfg->root_ino;
	int r = cfg->connect_later ? 0 : connect_once(e, &e->client, why);
	if (r == 0 || cfg->may_be_down)
		r = -pthread_create(&e->connector, NULL, connector, e);
	if (r < 0) {
		sl_client_free(e->client);
		sl_dial_free(e->dial);
		free(e);
		return r;
	}
	pthread_setname_np(e->connector, "connector");
	*ret = &e->o;
	return 0;
}
