/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Requests that wait: for what is not here, and for the kernel to drop what is out of date. */
#include <stdio.h>

#include "base/log.h"
#include "base/time.h"
#include "gate/fuse/internal.h"

#define JANITOR_NS (250 * SL_NS_PER_MS)

/* ---- requests that wait ---- */

struct pending {
	struct sl_hnode node; /* by the request's number */
	struct sl_gate *g;
	struct sl_req *rq;
	struct sl_want want; /* want.o is a reference */
	bool interrupted;
};

static void pending_remove(struct pending *p) /* lock held */
{
	sl_htab_del(&p->g->pending, &p->node);
	if (p->interrupted)
		p->g->interrupted--;
}

static void pending_done(struct sl_want *w, int err)
{
	struct pending *p = sl_container_of(w, struct pending, want);
	struct sl_gate *g = p->g;
	struct sl_req *rq = p->rq;
	pthread_mutex_lock(&g->lock);
	pending_remove(p);
	pthread_mutex_unlock(&g->lock);
	struct sl_object *o = w->o;
	free(p);
	if (err)
		sl_reply_err(rq, err);
	else
		gate_dispatch(rq, g);
	sl_object_put(o);
}

bool gate_need(struct sl_gate *g, struct sl_req *rq, struct sl_object *o, enum sl_want_kind kind,
	       uint64_t off, uint64_t len)
{
	bool here;
	pthread_mutex_lock(&o->lock);
	here = kind == SL_WANT_RANGE   ? sl_chunkmap_test(&o->map, off, len)
	       : kind == SL_WANT_NAMES ? o->rec.state == SL_FULL
				       : !(o->rec.flags & SL_XATTRS);
	pthread_mutex_unlock(&o->lock);
	if (here)
		return true;
	struct pending *p = calloc(1, sizeof(*p));
	if (!p) {
		sl_reply_err(rq, -ENOMEM);
		return false;
	}
	rq = sl_req_keep(rq);
	if (!rq) {
		free(p);
		return false;
	}
	*p = (struct pending){
	    .g = g, .rq = rq, .want = {.o = sl_object_ref(o), .off = off, .len = len, .done = pending_done}};
	pthread_mutex_lock(&g->lock);
	int r = sl_htab_add(&g->pending, &p->node, rq->m.h.unique);
	pthread_mutex_unlock(&g->lock);
	if (r == 0) {
		r = sl_fill_want(g->fill, kind, &p->want);
		if (r == 0)
			return false; /* pending_done() goes on, maybe already has */
		pthread_mutex_lock(&g->lock);
		pending_remove(p);
		pthread_mutex_unlock(&g->lock);
	}
	sl_object_put(p->want.o);
	free(p);
	if (r < 0)
		sl_reply_err(rq, r);
	else
		gate_dispatch(rq, g); /* it arrived meanwhile */
	return false;
}

bool gate_need_writable(struct sl_gate *g, struct sl_req *rq, struct sl_object *o, bool truncate)
{
	for (;;) {
		pthread_mutex_lock(&o->lock);
		bool ours = o->rec.flags & (SL_MODIFIED | SL_LOCAL);
		uint64_t size = o->map.size;
		pthread_mutex_unlock(&o->lock);
		if (ours)
			return true;
		if (!truncate && !gate_need(g, rq, o, SL_WANT_RANGE, 0, size))
			return false;
		/* Attributes of the origin that are not here yet must come before the object is ours. */
		if (!gate_need(g, rq, o, SL_WANT_XATTRS, 0, 0))
			return false;
		int r = sl_fill_modify(g->fill, o, truncate);
		if (r == 0)
			return true;
		if (r != -EAGAIN) {
			sl_reply_err(rq, r);
			return false;
		}
		usleep(
		    1000); /* an eviction is under way: it soon is over, or notices that the file is wanted */
	}
}

/* Is the thread being killed? Any signal interrupts a request, but only a fatal one may make a read of a file
 * fail. */
static bool being_killed(uint32_t tid)
{
	char path[64];
	if (tid == 0)
		return true; /* of another pid namespace: we cannot tell */
	snprintf(path, sizeof(path), "/proc/%u/status", tid);
	_cleanup_free_ char *text = NULL;
	if (sl_read_file(AT_FDCWD, path, 16384, &text, NULL) < 0)
		return true; /* it is gone */
	const char *p = strstr(text, "\nSigPnd:");
	unsigned long long set = 0;
	if (p && sscanf(p, "\nSigPnd: %llx", &set) == 1 && set & (1ull << (9 - 1)))
		return true;
	p = strstr(text, "\nShdPnd:");
	return p && sscanf(p, "\nShdPnd: %llx", &set) == 1 && set & (1ull << (9 - 1));
}

/* With the lock held: end @p if its reader is being killed. The lock is dropped and taken again if so;
 * returns whether it was. */
static bool end_if_killed(struct sl_gate *g, struct pending *p)
{
	if (!being_killed(p->rq->m.h.pid) || !sl_fill_cancel(g->fill, &p->want))
		return false;
	pending_remove(p);
	pthread_mutex_unlock(&g->lock);
	sl_reply_err(p->rq, -EINTR);
	sl_object_put(p->want.o);
	free(p);
	pthread_mutex_lock(&g->lock);
	return true;
}

/* What came while the kernel still has pages of the version before: see gate_hold(). */
struct held {
	struct sl_list link;
	struct sl_req *rq;
};

/* The same for what is held, which is not for long. Takes the lock. */
static void end_held_if_killed(struct sl_gate *g, uint64_t unique)
{
	struct held *h = NULL;
	pthread_mutex_lock(&g->lock);
	sl_list_for_each (l, &g->held)
		if (sl_list_entry(l, struct held, link)->rq->m.h.unique == unique)
			h = sl_list_entry(l, struct held, link);
	if (h && being_killed(h->rq->m.h.pid))
		sl_list_del(&h->link);
	else
		h = NULL;
	pthread_mutex_unlock(&g->lock);
	if (h)
		sl_reply_err(h->rq, -EINTR);
	free(h);
}

void gate_interrupt(void *arg, uint64_t unique)
{
	struct sl_gate *g = arg;
	end_held_if_killed(g, unique);
	pthread_mutex_lock(&g->lock);
	struct sl_hnode *h = sl_htab_find(&g->pending, unique);
	struct pending *p = h ? sl_container_of(h, struct pending, node) : NULL;
	if (p && !end_if_killed(g, p) && !p->interrupted) {
		/* The kernel says it once. Whether the signal was, or another one will be, fatal, is looked
		 * at from time to time. */
		p->interrupted = true;
		g->interrupted++;
		pthread_cond_signal(&g->cond);
	}
	pthread_mutex_unlock(&g->lock);
}

static void check_interrupted(struct sl_gate *g) /* lock held */
{
again:;
	size_t i;
	for (struct sl_hnode *h = sl_htab_first(&g->pending, &i); h; h = sl_htab_step(&g->pending, &i, h)) {
		struct pending *p = sl_container_of(h, struct pending, node);
		if (p->interrupted && end_if_killed(g, p))
			goto again;
	}
}

/* ---- invalidation ---- */

struct change {
	struct sl_list link;
	struct sl_object *o; /* a reference */
};

void sl_gate_changing(struct sl_gate *g, struct sl_object *o, uint64_t old_size)
{
	gate_note_change(g, o, old_size);
}

/*
 * On a thread of its own: the kernel waits in here for reads of the pages that are to go, and those wait for
 * us.
 */
void sl_gate_changed(struct sl_gate *g, struct sl_object *o)
{
	struct change *c;
	while (!(c = malloc(sizeof(*c))))
		usleep(10000); /* old content must not stay */
	c->o = sl_object_ref(o);
	pthread_mutex_lock(&g->lock);
	sl_list_add_tail(&g->changed, &c->link);
	pthread_cond_signal(&g->cond);
	pthread_mutex_unlock(&g->lock);
}

/* An open must not be answered from pages of the version before, and attributes with a new size would show
 * what is behind the old end in them, which is zeros. */
bool gate_hold(struct sl_gate *g, struct sl_req *rq, struct sl_object *o)
{
	pthread_mutex_lock(&g->lock); /* before the object's: the janitor cannot finish in between */
	pthread_mutex_lock(&o->lock);
	bool wait = o->invalidating;
	pthread_mutex_unlock(&o->lock);
	struct held *h = wait ? malloc(sizeof(*h)) : NULL;
	if (wait) {
		rq = h ? sl_req_keep(rq) : (sl_reply_err(rq, -ENOMEM), NULL);
		if (rq) {
			h->rq = rq;
			sl_list_add_tail(&g->held, &h->link);
		} else {
			free(h);
		}
	}
	pthread_mutex_unlock(&g->lock);
	return wait;
}

/* With the lock held; drops it meanwhile. */
static void invalidate(struct sl_gate *g, struct change *c)
{
	struct sl_list go;
	sl_list_init(&go);
	pthread_mutex_unlock(&g->lock);
	struct fuse_notify_inval_inode_out n = {.ino = gate_node_id(g, c->o), .off = 0, .len = 0};
	int r = sl_server_notify(g->server, FUSE_NOTIFY_INVAL_INODE, &(struct iovec){&n, sizeof(n)}, 1);
	if (r < 0 && r != -ENOENT && r != -ENODEV && r != -ENOTCONN)
		sl_warn("cannot invalidate what the kernel has cached of inode %llu: %s",
			(unsigned long long)n.ino, strerror(-r));
	pthread_mutex_lock(&g->lock);
	pthread_mutex_lock(&c->o->lock);
	/* Of what it does not know it believes nothing. */
	bool unknown = r == -ENOENT && !c->o->nlookup;
	if (--c->o->invalidating == 0 && (unknown || c->o->told_size <= c->o->map.size))
		gate_told(g, c->o);
	pthread_mutex_unlock(&c->o->lock);
	sl_list_splice(&go, &g->held);
	pthread_mutex_unlock(&g->lock);
	while (!sl_list_empty(&go)) {
		struct held *h = sl_list_entry(go.next, struct held, link);
		sl_list_del(&h->link);
		gate_dispatch(h->rq, g);
		free(h);
	}
	sl_object_put(c->o);
	free(c);
	pthread_mutex_lock(&g->lock);
}

static void *janitor(void *arg)
{
	struct sl_gate *g = arg;
	pthread_mutex_lock(&g->lock);
	while (!g->stop || !sl_list_empty(&g->changed)) {
		if (!sl_list_empty(&g->changed)) {
			struct change *c = sl_list_entry(g->changed.next, struct change, link);
			sl_list_del(&c->link);
			invalidate(g, c);
		} else if (g->interrupted) {
			struct timespec ts = sl_ns_to_timespec(sl_now() + JANITOR_NS);
			pthread_cond_timedwait(&g->cond, &g->lock, &ts);
			check_interrupted(g);
		} else {
			pthread_cond_wait(&g->cond, &g->lock);
		}
	}
	pthread_mutex_unlock(&g->lock);
	return NULL;
}

int gate_start_janitors(struct sl_gate *g)
{
	for (; g->njanitors < JANITORS; g->njanitors++) {
		int r = pthread_create(&g->janitors[g->njanitors], NULL, janitor, g);
		if (r)
			return -r;
		pthread_setname_np(g->janitors[g->njanitors], "janitor");
	}
	return 0;
}

void gate_end_janitors(struct sl_gate *g)
{
	pthread_mutex_lock(&g->lock);
	g->stop = true;
	pthread_cond_broadcast(&g->cond);
	pthread_mutex_unlock(&g->lock);
	while (g->njanitors)
		pthread_join(g->janitors[--g->njanitors], NULL);
}
