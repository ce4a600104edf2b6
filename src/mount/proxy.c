/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "mount/proxy.h"

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/fanotify.h>
#include <sys/stat.h>

#include "base/log.h"
#include "base/time.h"
#include "mount/dirs.h"
#include "mount/stream.h"
#include "notify/backend.h"

/* What the kernel and the export may agree on; each flag only where both have it. */
#define BOTH_FLAGS                                                                                           \
	(FUSE_ASYNC_READ | FUSE_BIG_WRITES | FUSE_AUTO_INVAL_DATA | FUSE_DO_READDIRPLUS |                    \
	 FUSE_READDIRPLUS_AUTO | FUSE_PARALLEL_DIROPS | FUSE_MAX_PAGES | FUSE_CACHE_SYMLINKS |               \
	 FUSE_ATOMIC_O_TRUNC | FUSE_DONT_MASK | FUSE_POSIX_ACL | FUSE_SETXATTR_EXT)

#define WATCH_MASK                                                                                           \
	(FAN_CREATE | FAN_DELETE | FAN_MOVED_FROM | FAN_MOVED_TO | FAN_RENAME | FAN_MODIFY | FAN_ATTRIB |    \
	 FAN_CLOSE_WRITE | FAN_ONDIR | FAN_EVENT_ON_CHILD)

/* Notifications between two acknowledgements. */
#define ACK_EVERY 256

struct sl_proxy {
	struct sl_proxy_config cfg;
	struct sl_client *client;
	struct sl_mdirs *dirs;
	struct sl_fifo *fifo;
	uint64_t seen; /* notifications, on the receiving thread */

	pthread_mutex_t lock; /* protects the rest */
	pthread_cond_t cond;
	bool broken, ended; /* the connection; the server */
	struct sl_server *server;
};

/* A request that was passed on. */
struct pass {
	struct sl_call call;
	struct sl_proxy *p;
	struct sl_req *rq;
	/* what came, while the directory that it gave out is being watched */
	struct fuse_entry_out entry;
};

/* The export's errors are the caller's; those of the connection are no answer. */
static int error_of(const struct sl_result *r)
{
	return r->err < 0 && !r->from_server ? -EIO : r->err;
}

static uint64_t deadline(const struct sl_proxy *p)
{
	return sl_now() + p->cfg.timeout_ms * SL_NS_PER_MS;
}

/* ---- what raising asks ---- */

static void forget_upstream(struct sl_proxy *p, uint64_t nodeid, uint64_t n)
{
	struct sl_call c = {.opcode = FUSE_FORGET, .nodeid = nodeid, .in.forget.nlookup = n};
	if (nodeid != FUSE_ROOT_ID)
		(void)sl_client_post(p->client, &c);
}

static int do_lookup(void *arg, uint64_t parent, const char *name, struct fuse_entry_out *out)
{
	struct sl_proxy *p = arg;
	struct sl_msg_out m;
	struct sl_call c = {.opcode = FUSE_LOOKUP, .nodeid = parent, .name = name, .deadline = deadline(p)};
	int r = sl_client_call_sync(p->client, &c, &m, NULL);
	if (r == 0) {
		*out = m.out.entry;
		if (out->nodeid && S_ISDIR(out->attr.mode))
			(void)sl_mdirs_add(p->dirs, out->nodeid, parent, name);
	}
	return r == 0 && !out->nodeid ? -ENOENT : r;
}

static int do_getattr(void *arg, uint64_t nodeid, struct fuse_attr *a)
{
	struct sl_proxy *p = arg;
	struct sl_msg_out m;
	struct sl_call c = {.opcode = FUSE_GETATTR, .nodeid = nodeid, .deadline = deadline(p)};
	int r = sl_client_call_sync(p->client, &c, &m, NULL);
	if (r == 0)
		*a = m.out.attr.attr;
	return r;
}

static void do_forget(void *arg, uint64_t nodeid, uint64_t n)
{
	forget_upstream(arg, nodeid, n);
}

static char *do_path(void *arg, uint64_t nodeid)
{
	struct sl_proxy *p = arg;
	return sl_mdirs_path(p->dirs, nodeid);
}

static void do_moved(void *arg, uint64_t parent, const char *name, uint64_t newparent, const char *newname,
		     bool exchange)
{
	struct sl_proxy *p = arg;
	sl_mdirs_move(p->dirs, parent, name, newparent, newname, exchange);
}

static int watch_now(struct sl_proxy *p, uint64_t nodeid)
{
	struct sl_call c = {.opcode = FUSE_FSNOTIFY, .nodeid = nodeid, .deadline = deadline(p)};
	c.in.fsnotify.mask = WATCH_MASK | p->cfg.uses;
	return sl_client_call_sync(p->client, &c, NULL, NULL);
}

static void do_lost(void *arg)
{
	struct sl_proxy *p = arg;
	size_t n;
	_cleanup_free_ uint64_t *v = sl_mdirs_all(p->dirs, &n);
	(void)watch_now(p, FUSE_ROOT_ID);
	for (size_t i = 0; i < n && v; i++)
		(void)watch_now(p, v[i]);
}

/* ---- notifications ---- */

static void ack_done(struct sl_call *c, struct sl_result *r)
{
	(void)r;
	free(c);
}

/* What was raised, or is about to be, need not be kept for us: when the connection breaks the mount ends. */
static void acknowledge(struct sl_proxy *p, uint64_t seq)
{
	struct sl_call *c = calloc(1, sizeof(*c));
	if (!c)
		return;
	*c = (struct sl_call){.opcode = FUSE_FSNOTIFY, .deadline = deadline(p), .done = ack_done};
	c->in.fsnotify = (struct fuse_fsnotify_in){.mask = seq + 1, .flags = SL_FSNOTIFY_ACK};
	sl_client_call(p->client, c);
}

static int notified(void *arg, int code, const void *data, size_t len)
{
	struct sl_proxy *p = arg;
	struct sl_fsnotify_msg m;
	if (code != FUSE_NOTIFY_FSNOTIFY || !p->cfg.raise)
		return 0;
	int r = sl_fsnotify_parse(data, len, &m);
	if (r < 0)
		return r;
	sl_fifo_put(p->fifo, data, len);
	if (++p->seen % ACK_EVERY == 0)
		acknowledge(p, m.seq);
	return 0;
}

static int next_body(void *arg, int timeout_ms, void **buf, const void **body, size_t *len)
{
	struct sl_proxy *p = arg;
	return sl_fifo_next(p->fifo, timeout_ms, buf, body, len);
}

static void *events_thread(void *arg)
{
	struct sl_proxy *p = arg;
	sl_stream_raise(&(struct sl_stream){.next = next_body, .arg = p}, p->cfg.raise);
	return NULL;
}

static void gone(void *arg, int err)
{
	struct sl_proxy *p = arg;
	(void)err;
	pthread_mutex_lock(&p->lock);
	p->broken = true;
	pthread_cond_broadcast(&p->cond);
	pthread_mutex_unlock(&p->lock);
	sl_fifo_end(p->fifo);
}

/* ---- requests ---- */

static void reply_result(struct sl_req *rq, const struct sl_result *r)
{
	const struct sl_op *op = rq->m.op;
	int err = error_of(r);
	if (err < 0)
		sl_reply_err(rq, err);
	else
		sl_reply_data(rq, r->out, op->out_size, r->data, r->data_len);
}

static void watched(struct sl_call *c, struct sl_result *r)
{
	struct pass *x = sl_container_of(c, struct pass, call);
	/* Without: then nothing is heard of it, and what is cached of it expires soon. */
	if (r->err < 0)
		sl_debug("changes in '%s' cannot be heard of: %s", x->rq->m.name, strerror(-r->err));
	sl_reply(x->rq, &x->entry, sizeof(x->entry));
	free(x);
}

/*
 * A directory was given out: somebody may be about to watch it, so it is watched before anybody has it. False
 * where that is not so.
 */
static bool watch_first(struct pass *x, const struct sl_result *r)
{
	struct sl_proxy *p = x->p;
	uint32_t op = x->rq->m.h.opcode;
	if (r->err < 0 || (op != FUSE_LOOKUP && op != FUSE_MKDIR))
		return false;
	const struct fuse_entry_out *e = &r->out->entry;
	if (!e->nodeid || !S_ISDIR(e->attr.mode))
		return false;
	if (sl_mdirs_add(p->dirs, e->nodeid, x->rq->m.h.nodeid, x->rq->m.name) <= 0 || !p->cfg.raise)
		return false;
	x->entry = *e;
	x->call = (struct sl_call){
	    .opcode = FUSE_FSNOTIFY, .nodeid = e->nodeid, .deadline = deadline(p), .done = watched};
	x->call.in.fsnotify.mask = WATCH_MASK | p->cfg.uses;
	sl_client_call(p->client, &x->call);
	return true;
}

/* Directories are looked up by who uses them, and watched from then on: not all that were listed. */
static void hold_back_dirs(struct sl_proxy *p, struct sl_result *r)
{
	const void *at = r->data;
	size_t left = r->data_len;
	struct sl_dirent d;
	for (const void *rec = at; sl_dirent_next(&at, &left, true, &d) > 0; rec = at) {
		if (!d.entry.nodeid || !S_ISDIR(d.entry.attr.mode))
			continue;
		forget_upstream(p, d.entry.nodeid, 1);
		const uint64_t none = 0;
		memcpy((char *)r->buf + ((const char *)rec - (const char *)r->buf), &none, sizeof(none));
	}
}

static void passed(struct sl_call *c, struct sl_result *r)
{
	struct pass *x = sl_container_of(c, struct pass, call);
	struct sl_proxy *p = x->p;
	const struct sl_msg_in *m = &x->rq->m;
	uint32_t op = m->h.opcode;
	if (watch_first(x, r))
		return;
	if (r->err == 0 && op == FUSE_READDIRPLUS && p->cfg.raise)
		hold_back_dirs(p, r);
	if (r->err == 0 && (op == FUSE_RENAME || op == FUSE_RENAME2))
		sl_mdirs_move(p->dirs, m->h.nodeid, m->name,
			      op == FUSE_RENAME2 ? m->in.rename2.newdir : m->in.rename.newdir, m->name2,
			      op == FUSE_RENAME2 && m->in.rename2.flags & 2 /* RENAME_EXCHANGE */);
	reply_result(x->rq, r);
	free(x);
}

static void pass_on(struct sl_proxy *p, struct sl_req *rq)
{
	struct pass *x = calloc(1, sizeof(*x));
	if (!x) {
		sl_reply_err(rq, -ENOMEM);
		return;
	}
	x->p = p;
	x->rq = sl_req_keep(rq);
	if (!x->rq) {
		free(x);
		return;
	}
	const struct sl_msg_in *m = &x->rq->m;
	x->call = (struct sl_call){.opcode = m->h.opcode,
				   .nodeid = m->h.nodeid,
				   .in = m->in,
				   .name = m->name,
				   .name2 = m->name2,
				   .data = m->data,
				   .data_len = m->data_len,
				   .deadline = deadline(p),
				   .from = &m->h,
				   .done = passed};
	sl_client_call(p->client, &x->call);
}

static void forget(struct sl_proxy *p, struct sl_req *rq)
{
	const struct sl_msg_in *m = &rq->m;
	if (m->h.opcode == FUSE_FORGET) {
		sl_mdirs_forget(p->dirs, m->h.nodeid, m->in.forget.nlookup);
		forget_upstream(p, m->h.nodeid, m->in.forget.nlookup);
	} else {
		for (size_t i = 0; i < m->data_len / sizeof(struct fuse_forget_one); i++) {
			struct fuse_forget_one f;
			memcpy(&f, (const char *)m->data + i * sizeof(f), sizeof(f));
			sl_mdirs_forget(p->dirs, f.nodeid, f.nlookup);
		}
		struct sl_call c = {.opcode = FUSE_BATCH_FORGET,
				    .in.batch_forget = m->in.batch_forget,
				    .data = m->data,
				    .data_len = m->data_len};
		(void)sl_client_post(p->client, &c);
	}
	sl_reply_none(rq);
}

/* Where the export would let us, and the user has said that it must not. */
static bool changes(const struct sl_msg_in *m)
{
	switch (m->h.opcode) {
	case FUSE_SETATTR:
	case FUSE_SYMLINK:
	case FUSE_MKNOD:
	case FUSE_MKDIR:
	case FUSE_UNLINK:
	case FUSE_RMDIR:
	case FUSE_RENAME:
	case FUSE_RENAME2:
	case FUSE_LINK:
	case FUSE_WRITE:
	case FUSE_SETXATTR:
	case FUSE_REMOVEXATTR:
	case FUSE_CREATE:
	case FUSE_TMPFILE:
	case FUSE_FALLOCATE:
	case FUSE_COPY_FILE_RANGE:
		return true;
	case FUSE_OPEN:
		return (m->in.open.flags & 3) != 0 /* O_ACCMODE */ || m->in.open.flags & 01000 /* O_TRUNC */;
	default:
		return false;
	}
}

static void handle(struct sl_req *rq, void *arg)
{
	struct sl_proxy *p = arg;
	if (p->cfg.raise && sl_raise_take(p->cfg.raise, rq))
		return;
	switch (rq->m.h.opcode) {
	case FUSE_FORGET:
	case FUSE_BATCH_FORGET:
		forget(p, rq);
		break;
	case FUSE_DESTROY:
		sl_reply_err(rq, 0);
		break;
	case FUSE_IOCTL:
		sl_reply_err(rq, -ENOTTY);
		break;
	case FUSE_POLL:
	case FUSE_BMAP:
	case FUSE_STATX:
	case FUSE_FSNOTIFY:
		sl_reply_err(rq, -ENOSYS); /* the kernel does without */
		break;
	default:
		if (p->cfg.read_only && changes(&rq->m))
			sl_reply_err(rq, -EROFS);
		else
			pass_on(p, rq);
	}
}

/* ---- the whole ---- */

int sl_proxy_new(struct sl_transport *t, const struct sl_proxy_config *cfg, struct sl_proxy **ret, char **why)
{
	struct sl_proxy *p = calloc(1, sizeof(*p));
	if (!p) {
		sl_transport_free(t);
		return -ENOMEM;
	}
	p->cfg = *cfg;
	pthread_mutex_init(&p->lock, NULL);
	pthread_cond_init(&p->cond, NULL);
	const struct sl_client_config cc = {
	    .want_flags = BOTH_FLAGS | (cfg->raise ? FUSE_FSNOTIFY_SUPPORT | SL_FUSE_EVENT_STATE : 0),
	    .uid = geteuid(),
	    .gid = getegid(),
	    .init_timeout_ms = 60000,
	    .notify = notified,
	    .gone = gone,
	    .arg = p};
	int r = sl_mdirs_new(&p->dirs);
	if (r == 0)
		r = sl_fifo_new(&p->fifo);
	if (r < 0)
		sl_transport_free(t);
	else if ((r = sl_client_new(t, &cc, &p->client)) < 0)
		r = sl_fail(why, r, "no export answers there: %s", strerror(-r));
	if (r == 0 && cfg->raise && !(sl_client_flags(p->client) & SL_FUSE_EVENT_STATE)) {
		sl_notice("the export does not tell of changes");
		p->cfg.raise = NULL;
	}
	if (r < 0) {
		sl_proxy_free(p);
		return r;
	}
	*ret = p;
	return 0;
}

void sl_proxy_free(struct sl_proxy *p)
{
	if (!p)
		return;
	sl_client_free(p->client);
	sl_mdirs_free(p->dirs);
	sl_fifo_free(p->fifo);
	pthread_mutex_destroy(&p->lock);
	pthread_cond_destroy(&p->cond);
	free(p);
}

/* The mount ends with the connection. */
static void *end_thread(void *arg)
{
	struct sl_proxy *p = arg;
	pthread_mutex_lock(&p->lock);
	while (!p->broken && !p->ended)
		pthread_cond_wait(&p->cond, &p->lock);
	bool stop = !p->ended;
	pthread_mutex_unlock(&p->lock);
	if (stop)
		sl_server_stop(p->server);
	return NULL;
}

int sl_proxy_serve(struct sl_proxy *p, struct sl_transport *dev)
{
	pthread_t events;
	bool has_events = false;
	struct sl_server *s;
	const struct sl_server_config cfg = {.threads = 4,
					     .want_flags = sl_client_flags(p->client) & BOTH_FLAGS,
					     .max_data = sl_client_max_data(p->client),
					     .max_background = 256,
					     .changing_sizes = true,
					     .handle = handle,
					     .arg = p};
	int r = sl_server_new(dev, &cfg, &s);
	if (r < 0)
		return r;
	p->server = s;
	if (p->cfg.raise) {
		int w = watch_now(p, FUSE_ROOT_ID);
		if (w < 0)
			sl_notice("the export does not tell of changes: %s", strerror(-w));
		sl_raise_begin(p->cfg.raise, &(struct sl_raise_config){.server = s,
								       .dir = p->cfg.dir,
								       .lookup = do_lookup,
								       .getattr = do_getattr,
								       .forget = do_forget,
								       .path = do_path,
								       .moved = do_moved,
								       .lost = do_lost,
								       .arg = p});
		has_events = pthread_create(&events, NULL, events_thread, p) == 0;
	}
	pthread_t end;
	bool has_end = pthread_create(&end, NULL, end_thread, p) == 0;
	r = sl_server_run(s);
	pthread_mutex_lock(&p->lock);
	bool broken = p->broken;
	p->ended = true;
	pthread_cond_broadcast(&p->cond);
	pthread_mutex_unlock(&p->lock);
	if (has_end)
		pthread_join(end, NULL);
	sl_fifo_end(p->fifo);
	if (p->cfg.raise)
		sl_raise_stop(p->cfg.raise);
	if (has_events)
		pthread_join(events, NULL);
	/* Requests that were passed on are answered, in vain, while the server is there to be told. */
	struct sl_call bye = {.opcode = FUSE_DESTROY, .deadline = sl_now() + SL_NS_PER_SEC};
	if (!broken)
		(void)sl_client_call_sync(p->client, &bye, NULL, NULL);
	sl_client_free(p->client);
	p->client = NULL;
	sl_server_free(s);
	return broken ? -ENOTCONN : r;
}
