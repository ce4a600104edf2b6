/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "gate/fuse/gate.h"

#include <sys/sysinfo.h>

#include "base/log.h"
#include "gate/fuse/internal.h"
#include "store/walk.h"

/* ---- nodes ---- */

uint64_t gate_node_id(struct sl_gate *g, struct sl_object *o)
{
	return o == sl_object_root(g->store) ? FUSE_ROOT_ID : sl_object_ino(o);
}

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
		r = gate_start_janitors(g);
	if (r < 0) {
		gate_end_janitors(g);
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
	gate_end_janitors(g);
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
