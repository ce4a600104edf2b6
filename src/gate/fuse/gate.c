/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "gate/fuse/gate.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/sysinfo.h>

#include "base/log.h"
#include "base/time.h"
#include "gate/fuse/internal.h"
#include "store/walk.h"

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

static void gate_interrupt(void *arg, uint64_t unique)
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

uint64_t gate_node_id(struct sl_gate *g, struct sl_object *o)
{
	return o == sl_object_root(g->store) ? FUSE_ROOT_ID : sl_object_ino(o);
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

static int start_janitors(struct sl_gate *g)
{
	for (; g->njanitors < JANITORS; g->njanitors++) {
		int r = pthread_create(&g->janitors[g->njanitors], NULL, janitor, g);
		if (r)
			return -r;
		pthread_setname_np(g->janitors[g->njanitors], "janitor");
	}
	return 0;
}

static void end_janitors(struct sl_gate *g)
{
	pthread_mutex_lock(&g->lock);
	g->stop = true;
	pthread_cond_broadcast(&g->cond);
	pthread_mutex_unlock(&g->lock);
	while (g->njanitors)
		pthread_join(g->janitors[--g->njanitors], NULL);
}

/* ---- nodes ---- */

struct sl_object *gate_find(struct sl_gate *g, uint64_t nodeid)
{
	struct sl_object *o = nodeid == FUSE_ROOT_ID ? sl_object_ref(sl_object_root(g->store))
						     : sl_object_find(g->store, nodeid);
	if (o || !g->index || sl_index_find(g->index, nodeid, &o) < 0)
		return o;
	/* The kernel knows it from the last service. How many references it has is not known: it will say
	 * more, and gate_unentry() takes that for all there are. */
	pthread_mutex_lock(&o->lock);
	if (o->nlookup++ == 0)
		sl_object_ref(o);
	pthread_mutex_unlock(&o->lock);
	return o;
}

struct sl_object *gate_object(struct sl_gate *g, struct sl_req *rq, uint64_t nodeid)
{
	struct sl_object *o = gate_find(g, nodeid);
	if (!o)
		sl_reply_err(rq, -ESTALE);
	return o;
}

void gate_told(struct sl_gate *g, struct sl_object *o)
{
	o->told_size = 0;
	gate_note_changed(g, sl_object_ino(o));
}

/* Asked after the attributes were read: they are of the version that the kernel has pages of, or of one that
 * it has dropped them for. */
static bool has_old_pages(struct sl_object *o)
{
	if (!sl_object_is_reg(o))
		return false;
	pthread_mutex_lock(&o->lock);
	bool yes = o->invalidating;
	pthread_mutex_unlock(&o->lock);
	return yes;
}

int gate_attr(struct sl_gate *g, struct sl_req *rq, struct sl_object *o, struct fuse_attr *fa)
{
	struct sl_attr a;
	for (;;) {
		int r = sl_object_attr(o, &a);
		if (r < 0)
			return r;
		if (!has_old_pages(o))
			break;
		if (!rq)
			return -EAGAIN;
		if (gate_hold(g, rq, o))
			return 1;
	}
	sl_attr_to_fuse(&a, fa);
	return 0;
}

int gate_entry(struct sl_gate *g, struct sl_req *rq, struct sl_object *o, const struct sl_attr *a,
	       struct fuse_entry_out *e)
{
	*e = (struct fuse_entry_out){
	    .nodeid = gate_node_id(g, o), .entry_valid = VALID_SECONDS, .attr_valid = VALID_SECONDS};
	int r = 0;
	/* First of all: what changes from here on the kernel is told. */
	pthread_mutex_lock(&o->lock);
	if (o->nlookup++ == 0)
		sl_object_ref(o);
	pthread_mutex_unlock(&o->lock);
	if (a && !has_old_pages(o))
		sl_attr_to_fuse(a, &e->attr);
	else
		r = gate_attr(g, rq, o, &e->attr);
	if (r != 0)
		gate_unentry(o, 1);
	return r;
}

void gate_unentry(struct sl_object *o, uint64_t n)
{
	pthread_mutex_lock(&o->lock);
	n = SL_MIN(n, o->nlookup);
	o->nlookup -= n;
	bool last = n && o->nlookup == 0;
	pthread_mutex_unlock(&o->lock);
	if (last)
		sl_object_put(o);
}

/* The kernel forgets an object that has no name any more: nothing will ask for it again. */
static void drop_orphan(struct sl_gate *g, struct sl_object *o)
{
	struct handle *h = NULL;
	pthread_mutex_lock(&o->lock);
	if (o->nlookup == 0) {
		h = o->orphan;
		o->orphan = NULL;
	}
	pthread_mutex_unlock(&o->lock);
	if (h)
		gate_handle_free(g, h);
}

void gate_forget(struct sl_gate *g, uint64_t nodeid, uint64_t n)
{
	struct sl_object *o = sl_object_find(g->store, nodeid);
	if (o && o != sl_object_root(g->store)) {
		pthread_mutex_lock(&o->lock);
		bool last = n >= o->nlookup;
		if (last && !g->index && o->told_size && !o->invalidating)
			gate_told(g, o); /* it believes nothing */
		pthread_mutex_unlock(&o->lock);
		/* It counts what it had from the last service as well, perhaps of another object that had
		 * this inode number. If it has had this one from us too, it may still have it: then it will
		 * be found again by its name. */
		if (last && g->index)
			sl_index_note(g->index, o);
		gate_unentry(o, n);
		drop_orphan(g, o);
	}
	sl_object_put(o);
}

void gate_orphan(struct sl_gate *g, struct sl_object *o)
{
	pthread_mutex_lock(&o->lock);
	/* Who removes a name knows what it means; that may have been told by the last service. */
	if (g->index && o->nlookup == 0) {
		o->nlookup = 1;
		sl_object_ref(o);
	}
	bool known = o->nlookup && !o->orphan;
	pthread_mutex_unlock(&o->lock);
	if (!g->cfg.area || !known)
		return;
	int fd = sl_object_pin(o);
	struct handle *h = fd >= 0 ? gate_handle_new(g, SLOT_ORPHAN, o, fd, 0) : NULL;
	if (!h) {
		if (fd >= 0)
			close(fd);
		return;
	}
	gate_handle_open(g, h);
	pthread_mutex_lock(&o->lock);
	bool first = !o->orphan;
	if (first)
		o->orphan = h;
	pthread_mutex_unlock(&o->lock);
	if (!first)
		gate_handle_free(g, h);
	else
		drop_orphan(g, o); /* if it was forgotten just now */
}

/* ---- dispatch ---- */

static void forget_batch(struct sl_gate *g, struct sl_req *rq)
{
	for (uint32_t i = 0; i < rq->m.in.batch_forget.count; i++) {
		struct fuse_forget_one f;
		memcpy(&f, (const char *)rq->m.data + i * sizeof(f), sizeof(f));
		gate_forget(g, f.nodeid, f.nlookup);
	}
	sl_reply_none(rq);
}

/* Operations on an object. */
static void dispatch_object(struct sl_gate *g, struct sl_req *rq)
{
	_cleanup_object_ struct sl_object *o = gate_object(g, rq, rq->m.h.nodeid);
	if (!o || gate_echo(g, rq, o))
		return;
	switch (rq->m.h.opcode) {
	case FUSE_LOOKUP:
		gate_lookup(g, rq, o);
		break;
	case FUSE_GETATTR:
		gate_getattr(g, rq, o);
		break;
	case FUSE_SETATTR:
		gate_setattr(g, rq, o);
		break;
	case FUSE_READLINK:
		gate_readlink(g, rq, o);
		break;
	case FUSE_MKNOD:
	case FUSE_MKDIR:
	case FUSE_SYMLINK:
		gate_make(g, rq, o);
		break;
	case FUSE_LINK:
		gate_link(g, rq, o);
		break;
	case FUSE_UNLINK:
	case FUSE_RMDIR:
		gate_unlink(g, rq, o);
		break;
	case FUSE_RENAME:
	case FUSE_RENAME2:
		gate_rename(g, rq, o);
		break;
	case FUSE_SETXATTR:
	case FUSE_GETXATTR:
	case FUSE_LISTXATTR:
	case FUSE_REMOVEXATTR:
		gate_xattr(g, rq, o);
		break;
	case FUSE_CREATE:
	case FUSE_TMPFILE:
		gate_create(g, rq, o);
		break;
	case FUSE_OPEN:
		gate_open(g, rq, o);
		break;
	case FUSE_OPENDIR:
		gate_opendir(g, rq, o);
		break;
	default:
		sl_reply_err(rq, -ENOSYS);
	}
}

void gate_dispatch(struct sl_req *rq, void *arg)
{
	struct sl_gate *g = arg;
	switch (rq->m.h.opcode) {
	case FUSE_FORGET:
		gate_forget(g, rq->m.h.nodeid, rq->m.in.forget.nlookup);
		sl_reply_none(rq);
		break;
	case FUSE_BATCH_FORGET:
		forget_batch(g, rq);
		break;
	case FUSE_READ:
		gate_read(g, rq);
		break;
	case FUSE_WRITE:
		gate_write(g, rq);
		break;
	case FUSE_READDIR:
	case FUSE_READDIRPLUS:
		gate_readdir(g, rq);
		break;
	case FUSE_RELEASE:
	case FUSE_RELEASEDIR:
		gate_release(g, rq);
		break;
	case FUSE_FLUSH:
		sl_reply_err(rq, 0);
		break;
	case FUSE_FSYNC:
	case FUSE_FSYNCDIR:
		gate_fsync(g, rq);
		break;
	case FUSE_LSEEK:
		gate_lseek(g, rq);
		break;
	case FUSE_FALLOCATE:
		gate_fallocate(g, rq);
		break;
	case FUSE_COPY_FILE_RANGE:
		gate_copy(g, rq);
		break;
	case FUSE_STATFS:
		gate_statfs(g, rq);
		break;
	case FUSE_SYNCFS:
		sl_reply_err(rq, sl_store_sync(g->store));
		break;
	case FUSE_DESTROY:
		sl_reply_err(rq, 0);
		break;
	case FUSE_IOCTL:
		sl_reply_err(rq, -ENOTTY);
		break;
	default:
		dispatch_object(g, rq);
	}
}

static void gate_init(void *arg, const struct sl_server_agreed *agreed)
{
	struct sl_gate *g = arg;
	struct gate_area *a = g->h.area;
	g->passthrough = agreed->flags & FUSE_PASSTHROUGH;
	a->flags = agreed->flags;
	a->max_data = agreed->max_data;
	a->resend = agreed->resend;
	a->agreed_known = 1; /* before it is answered */
}

int sl_gate_new(const struct sl_gate_config *cfg, struct sl_gate **ret)
{
	struct sl_gate *g = calloc(1, sizeof(*g));
	if (!g) {
		close(cfg->fuse_fd);
		return -ENOMEM;
	}
	g->cfg = *cfg;
	g->store = cfg->store;
	g->fill = cfg->fill;
	g->uid = geteuid();
	g->privileged = sl_store_privileged(cfg->store);
	for (int i = 0; i < ECHO_PIDS; i++)
		g->old_echo[i].fd = -EBADF;
	sl_list_init(&g->changed);
	sl_list_init(&g->handles);
	sl_list_init(&g->held);
	pthread_mutex_init(&g->lock, NULL);
	pthread_condattr_t ca;
	pthread_condattr_init(&ca);
	pthread_condattr_setclock(&ca, CLOCK_MONOTONIC);
	pthread_cond_init(&g->cond, &ca);
	pthread_condattr_destroy(&ca);
	int r = sl_transport_new(SL_TRANSPORT_DEV, cfg->fuse_fd, cfg->fuse_fd, &g->transport);
	if (r == 0)
		r = gate_handles_init(&g->h, cfg->area, cfg->area_size);
	if (r < 0) {
		sl_transport_free(g->transport);
		free(g);
		return r;
	}
	struct gate_area *a = g->h.area;
	struct sl_server_agreed agreed = {.flags = a->flags, .max_data = a->max_data, .resend = a->resend};
	if (a->agreed_known)
		g->passthrough = a->flags & FUSE_PASSTHROUGH && !a->no_passthrough;
	struct sl_server_config sc = {
	    .threads = cfg->threads ? cfg->threads : SL_MAX(4u, (unsigned)get_nprocs() + 1),
	    .want_flags = FUSE_ASYNC_READ | FUSE_BIG_WRITES | FUSE_DO_READDIRPLUS | FUSE_PARALLEL_DIROPS |
			  FUSE_MAX_PAGES | FUSE_CACHE_SYMLINKS | FUSE_DONT_MASK | FUSE_POSIX_ACL |
			  FUSE_ASYNC_DIO | FUSE_DIRECT_IO_ALLOW_MMAP | FUSE_EXPLICIT_INVAL_DATA |
			  FUSE_SETXATTR_EXT | FUSE_ABORT_ERROR |
			  (g->privileged && g->uid == 0 ? FUSE_PASSTHROUGH : 0),
	    .max_data = SL_WIRE_MAX_DATA,
	    .max_readahead = 1u << 20,
	    .max_background = 256,
	    .max_stack_depth = 1,
	    .agreed = a->agreed_known ? &agreed : NULL,
	    .init = gate_init,
	    .handle = gate_dispatch,
	    .interrupt = gate_interrupt,
	    .arg = g,
	};
	r = sl_server_new(g->transport, &sc, &g->server);
	if (r == 0 && cfg->takeover)
		r = gate_takeover(g, cfg->numbers_lost);
	if (r < 0 && cfg->takeover)
		return r; /* the next one may manage it: nothing is closed */
	if (r == 0)
		r = start_janitors(g);
	if (r < 0) {
		end_janitors(g);
		sl_server_free(g->server);
		sl_transport_free(g->transport);
		gate_handles_fini(&g->h);
		sl_index_free(g->index);
		free(g);
		return r;
	}
	*ret = g;
	return 0;
}

int sl_gate_run(struct sl_gate *g)
{
	return sl_server_run(g->server);
}

void sl_gate_stop(struct sl_gate *g)
{
	sl_server_stop(g->server);
}

static int drop_lookups(void *arg, const char *path, struct sl_object *o, int err)
{
	(void)arg;
	(void)path;
	(void)err;
	if (o)
		gate_unentry(o, UINT64_MAX);
	return 0;
}

void sl_gate_free(struct sl_gate *g)
{
	if (!g)
		return;
	end_janitors(g);
	/* The kernel does not wait for the answer to a RELEASE, and an unmount may be faster. */
	while (!sl_list_empty(&g->handles))
		gate_handle_free(g, sl_list_entry(g->handles.next, struct handle, link));
	sl_objects_each(g->store, drop_lookups, NULL);
	sl_object_put(g->staging);
	for (int i = 0; i < ECHO_PIDS; i++)
		sl_closep(&g->old_echo[i].fd);
	sl_htab_fini(&g->pending);
	gate_handles_fini(&g->h);
	sl_index_free(g->index);
	sl_server_free(g->server);
	sl_transport_free(g->transport);
	pthread_mutex_destroy(&g->lock);
	pthread_cond_destroy(&g->cond);
	free(g);
}

bool sl_gate_passthrough(const struct sl_gate *g)
{
	return g->passthrough;
}

size_t sl_gate_waiting(struct sl_gate *g)
{
	pthread_mutex_lock(&g->lock);
	size_t n = g->pending.n;
	pthread_mutex_unlock(&g->lock);
	return n;
}
