/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "wire/ends.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <sys/stat.h>

#include "base/list.h"
#include "base/log.h"
#include "base/macros.h"

#define NOWHERE UINT64_MAX
/* Once for what was read before, and again for READs that were answered meanwhile. More are needed only while
 * the file is shorter than the answer says, and is read all the time. */
#define TRIES 8

/* A file that is being read, or that the kernel may have zeros of. */
struct end {
	struct sl_hnode by_id;	  /* key: the node id */
	struct sl_list reads;	  /* of struct sl_ends_read: under way, in their order */
	struct sl_list forgotten; /* in sl_ends.forgotten, or empty */
	uint64_t end;		  /* from here on the kernel may have zeros; NOWHERE */
	uint64_t since;		  /* the same, of what was answered while that is being dropped */
	uint64_t dropped;	  /* the number of the last time that was done */
	bool dropping;
};

struct sl_ends_read {
	struct sl_list link;
	struct end *of;
	uint64_t number;
};

/* An answer that waits. */
struct held {
	struct sl_list link;
	uint64_t after, drops; /* sl_ends.reads and .drops when it came */
	uint32_t opcode;
	uint64_t nodeid; /* of the request */
	size_t len;	 /* what follows the header */
	struct fuse_out_header h;
	char body[];
};

struct sl_ends {
	struct sl_transport *t;
	pthread_t thread;
	pthread_mutex_t lock; /* protects the rest */
	pthread_cond_t cond;
	struct sl_htab ends;
	struct sl_list held, forgotten;
	uint64_t reads, drops; /* how many there were */
	bool stop;
};

static struct end *find(struct sl_ends *s, uint64_t nodeid)
{
	struct sl_hnode *h = sl_htab_find(&s->ends, nodeid);
	return h ? sl_container_of(h, struct end, by_id) : NULL;
}

static struct end *get(struct sl_ends *s, uint64_t nodeid)
{
	struct end *e = find(s, nodeid);
	if (e)
		return e;
	e = calloc(1, sizeof(*e));
	if (!e)
		return NULL;
	e->end = e->since = NOWHERE;
	sl_list_init(&e->reads);
	sl_list_init(&e->forgotten);
	if (sl_htab_add(&s->ends, &e->by_id, nodeid) == 0)
		return e;
	free(e);
	return NULL;
}

static void put(struct sl_ends *s, struct end *e)
{
	if (e->end != NOWHERE || e->dropping || !sl_list_empty(&e->reads))
		return;
	sl_list_del(&e->forgotten);
	sl_htab_del(&s->ends, &e->by_id);
	free(e);
}

/* ---- what an answer tells ---- */

/* What keeps an answer with the attributes @a back: READs under way, or zeros below its size. */
struct obstacle {
	struct end *e;
	bool read;
};

/*
 * The kernel does not take sizes from an answer that it asked for before it was told to drop something of
 * that file: then once is enough. From those to SETATTR and its like it does.
 */
static bool taken(uint32_t opcode)
{
	return opcode != FUSE_GETATTR && opcode != FUSE_LOOKUP && opcode != FUSE_READDIRPLUS;
}

static bool hinders(struct sl_ends *s, const struct held *h, uint64_t nodeid, const struct fuse_attr *a,
		    struct obstacle *ob)
{
	struct end *e = S_ISREG(a->mode) ? find(s, nodeid) : NULL;
	if (!e)
		return false;
	ob->e = e;
	ob->read = !sl_list_empty(&e->reads) &&
		   sl_list_entry(e->reads.next, struct sl_ends_read, link)->number <= h->after;
	return ob->read || (e->end < a->size && (taken(h->opcode) || e->dropped <= h->drops));
}

/* @body: what @h is to tell. */
static bool hindered(struct sl_ends *s, const struct held *h, const void *body, struct obstacle *ob)
{
	struct fuse_entry_out entry;
	struct fuse_attr_out attr;
	struct sl_dirent d;
	size_t len = h->len;
	switch (h->opcode) {
	case FUSE_LOOKUP:
	case FUSE_MKNOD:
	case FUSE_LINK:
	case FUSE_CREATE:
		if (len < sizeof(entry))
			return false;
		memcpy(&entry, body, sizeof(entry));
		return hinders(s, h, entry.nodeid, &entry.attr, ob);
	case FUSE_GETATTR:
	case FUSE_SETATTR:
		if (len < sizeof(attr))
			return false;
		memcpy(&attr, body, sizeof(attr));
		return hinders(s, h, h->nodeid, &attr.attr, ob);
	case FUSE_READDIRPLUS:
		while (sl_dirent_next(&body, &len, true, &d) > 0)
			if (d.entry.nodeid && hinders(s, h, d.entry.nodeid, &d.entry.attr, ob))
				return true;
		return false;
	default:
		return false;
	}
}

/* ---- the thread ---- */

/* With the lock held, which it drops meanwhile. */
static void drop(struct sl_ends *s, struct end *e)
{
	struct {
		struct fuse_out_header h;
		struct fuse_notify_inval_inode_out n;
	} m = {.h = {.len = sizeof(m), .error = FUSE_NOTIFY_INVAL_INODE},
	       .n = {.ino = e->by_id.key, .off = (int64_t)e->end}};
	e->dropping = true;
	e->dropped = ++s->drops;
	e->since = NOWHERE;
	pthread_mutex_unlock(&s->lock);
	int r = sl_transport_send(s->t, &(struct iovec){&m, sizeof(m)}, 1);
	if (r < 0 && r != -ENOENT && r != -ENODEV && r != -ENOTCONN)
		sl_debug("the kernel does not forget: %s", strerror(-r));
	pthread_mutex_lock(&s->lock);
	e->dropping = false;
	e->end = e->since;
	put(s, e);
}

static void let_go(struct sl_ends *s, struct held *h)
{
	struct obstacle ob;
	for (int i = 0; hindered(s, h, h->body, &ob); i++) {
		if (ob.read) { /* of another of its files */
			sl_list_add_tail(&s->held, &h->link);
			return;
		}
		if (i >= TRIES && taken(h->opcode))
			break;
		drop(s, ob.e);
	}
	pthread_mutex_unlock(&s->lock);
	h->h.len = (uint32_t)(sizeof(h->h) + h->len);
	struct iovec v[2] = {{&h->h, sizeof(h->h)}, {h->body, h->len}};
	(void)sl_transport_send(s->t, v, 2);
	free(h);
	pthread_mutex_lock(&s->lock);
}

/* One that no READ keeps back. */
static struct held *next_held(struct sl_ends *s)
{
	struct obstacle ob;
	sl_list_for_each (l, &s->held) {
		struct held *h = sl_list_entry(l, struct held, link);
		if (!hindered(s, h, h->body, &ob) || !ob.read)
			return h;
	}
	return NULL;
}

static void *run(void *arg)
{
	struct sl_ends *s = arg;
	pthread_mutex_lock(&s->lock);
	while (!s->stop) {
		struct held *h = next_held(s);
		if (h) {
			sl_list_del(&h->link);
			let_go(s, h);
		} else if (!sl_list_empty(&s->forgotten)) {
			struct end *e = sl_list_entry(s->forgotten.next, struct end, forgotten);
			sl_list_del(&e->forgotten);
			if (e->end != NOWHERE)
				drop(s, e);
		} else {
			pthread_cond_wait(&s->cond, &s->lock);
		}
	}
	pthread_mutex_unlock(&s->lock);
	return NULL;
}

/* ---- requests and answers ---- */

/* It may have the file still, so that is not all: it is told to drop what it has. */
static void forget(struct sl_ends *s, uint64_t nodeid)
{
	struct end *e = find(s, nodeid);
	if (!e || !sl_list_empty(&e->forgotten))
		return;
	sl_list_add_tail(&s->forgotten, &e->forgotten);
	pthread_cond_signal(&s->cond);
}

int sl_ends_request(struct sl_ends *s, struct sl_req *rq)
{
	const struct sl_msg_in *m = &rq->m;
	int r = 0;
	if (m->h.opcode != FUSE_READ && m->h.opcode != FUSE_FORGET && m->h.opcode != FUSE_BATCH_FORGET)
		return 0;
	pthread_mutex_lock(&s->lock);
	if (m->h.opcode == FUSE_READ) {
		struct sl_ends_read *x = malloc(sizeof(*x));
		struct end *e = x ? get(s, m->h.nodeid) : NULL;
		if (e) {
			x->of = e;
			x->number = ++s->reads;
			sl_list_add_tail(&e->reads, &x->link);
			rq->read = x;
		} else {
			free(x);
			r = -ENOMEM;
		}
	} else if (m->h.opcode == FUSE_FORGET) {
		forget(s, m->h.nodeid);
	} else {
		for (size_t i = 0; i < m->data_len / sizeof(struct fuse_forget_one); i++) {
			struct fuse_forget_one f;
			memcpy(&f, (const char *)m->data + i * sizeof(f), sizeof(f));
			forget(s, f.nodeid);
		}
	}
	pthread_mutex_unlock(&s->lock);
	return r;
}

static void read_answered(struct sl_ends *s, struct sl_req *rq, int err, size_t n)
{
	const struct fuse_read_in *in = &rq->m.in.read;
	struct sl_ends_read *x = rq->read;
	struct end *e = x->of;
	rq->read = NULL;
	pthread_mutex_lock(&s->lock);
	sl_list_del(&x->link);
	if (err == 0 && n < in->size) {
		e->end = SL_MIN(e->end, in->offset + n);
		e->since = SL_MIN(e->since, in->offset + n);
	}
	put(s, e);
	if (!sl_list_empty(&s->held))
		pthread_cond_signal(&s->cond);
	pthread_mutex_unlock(&s->lock);
	free(x);
}

bool sl_ends_answer(struct sl_ends *s, struct sl_req *rq, int *err, const void *out, size_t len,
		    const void *data, size_t data_len)
{
	if (rq->read)
		read_answered(s, rq, *err, len + data_len);
	if (*err || rq->m.h.opcode == FUSE_READ)
		return false;
	/* Of all that matter here, none has both. */
	const void *body = len ? out : data;
	size_t n = len ? len : data_len;
	struct obstacle ob;
	pthread_mutex_lock(&s->lock);
	const struct held is = {.after = s->reads,
				.drops = s->drops,
				.opcode = rq->m.h.opcode,
				.nodeid = rq->m.h.nodeid,
				.len = n,
				.h.unique = rq->m.h.unique};
	bool wait = s->ends.n && hindered(s, &is, body, &ob);
	struct held *h = wait ? malloc(sizeof(*h) + n) : NULL;
	if (h) {
		*h = is;
		memcpy(h->body, body, n);
		sl_list_add_tail(&s->held, &h->link);
		pthread_cond_signal(&s->cond);
	} else if (wait) {
		*err = -ENOMEM;
	}
	pthread_mutex_unlock(&s->lock);
	return h;
}

/* ---- the whole ---- */

int sl_ends_new(struct sl_transport *t, struct sl_ends **ret)
{
	struct sl_ends *s = calloc(1, sizeof(*s));
	if (!s)
		return -ENOMEM;
	s->t = t;
	pthread_mutex_init(&s->lock, NULL);
	pthread_cond_init(&s->cond, NULL);
	sl_list_init(&s->held);
	sl_list_init(&s->forgotten);
	int r = -pthread_create(&s->thread, NULL, run, s);
	if (r < 0) {
		free(s);
		return r;
	}
	pthread_setname_np(s->thread, "ends");
	*ret = s;
	return 0;
}

void sl_ends_free(struct sl_ends *s)
{
	if (!s)
		return;
	pthread_mutex_lock(&s->lock);
	s->stop = true;
	pthread_cond_signal(&s->cond);
	pthread_mutex_unlock(&s->lock);
	pthread_join(s->thread, NULL);
	while (!sl_list_empty(&s->held)) {
		struct held *h = sl_list_entry(s->held.next, struct held, link);
		sl_list_del(&h->link);
		free(h);
	}
	size_t i;
	for (struct sl_hnode *n; (n = sl_htab_first(&s->ends, &i));) {
		struct end *e = sl_container_of(n, struct end, by_id);
		while (!sl_list_empty(&e->reads)) {
			struct sl_ends_read *x = sl_list_entry(e->reads.next, struct sl_ends_read, link);
			sl_list_del(&x->link);
			free(x);
		}
		sl_htab_del(&s->ends, n);
		free(e);
	}
	sl_htab_fini(&s->ends);
	pthread_mutex_destroy(&s->lock);
	pthread_cond_destroy(&s->cond);
	free(s);
}
