/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "wire/client.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/random.h>

#include "base/fd.h"
#include "base/log.h"
#include "base/time.h"

/* How often the receiver looks for calls that are past their deadline. */
#define TICK_MS 100

/* A call whose caller no longer waits. Its reply may still come, and may give out what then has to be given
 * back. */
struct zombie {
	struct sl_hnode node;
	uint32_t opcode;
	uint64_t nodeid;
};

/* A message that could not be sent at once. */
struct outgoing {
	struct sl_list link;
	size_t len;
	char bytes[];
};

/* Up to here a message is tried at once, from the caller's stack. */
#define SEND_AT_ONCE 4096
/* A server that asks for nothing less than this and does not read it is none. */
#define QUEUED_MAX ((size_t)64 << 20)

struct sl_client {
	struct sl_transport *t;
	struct sl_client_config cfg;
	uint64_t flags;
	uint32_t max_data;
	pthread_t thread;
	bool running, has_writer;

	/*
	 * Sending never waits on the caller's thread, which may be the receiving one: a receiver that waits
	 * to send does not receive, and the server, waiting for room to answer, would not receive either.
	 * What does not go at once is queued for the writer.
	 */
	pthread_t writer;
	pthread_mutex_t out_lock; /* protects out, queued, writing, out_stop */
	pthread_cond_t out_cond;
	struct sl_list out;
	size_t queued; /* bytes in it */
	bool writing, out_stop;

	pthread_mutex_t lock; /* protects all below */
	struct sl_htab calls;
	struct sl_htab zombies;
	uint64_t next_unique;
	int err; /* why the connection is gone; 0 while it is there */
};

uint64_t sl_client_flags(const struct sl_client *c)
{
	return c->flags;
}

uint32_t sl_client_max_data(const struct sl_client *c)
{
	return c->max_data;
}

static int enqueue(struct sl_client *c, const struct iovec *iov, int n, size_t len)
{
	struct outgoing *o = c->queued < QUEUED_MAX ? malloc(sizeof(*o) + len) : NULL;
	if (!o)
		return -ENOMEM;
	c->queued += len;
	char *p = o->bytes;
	for (int i = 0; i < n; i++)
		p = mempcpy(p, iov[i].iov_base, iov[i].iov_len);
	o->len = len;
	sl_list_add_tail(&c->out, &o->link);
	pthread_cond_signal(&c->out_cond);
	return 0;
}

/* As much as goes without waiting; the writer has the rest. */
static int send_now(struct sl_client *c, const struct iovec *iov, int n, size_t len)
{
	/* From a copy: once the server has it all, its answer may come, and the caller's strings may go. */
	char copy[SEND_AT_ONCE], *p = copy;
	for (int i = 0; i < n; i++)
		p = mempcpy(p, iov[i].iov_base, iov[i].iov_len);
	ssize_t sent = sl_transport_try_send(c->t, copy, len);
	if (sent == -EAGAIN)
		sent = 0;
	if (sent < 0 || (size_t)sent == len)
		return sent < 0 ? (int)sent : 0;
	size_t rest = len - (size_t)sent;
	int r = enqueue(c, &(struct iovec){copy + sent, rest}, 1, rest);
	if (r < 0 && sent > 0)
		sl_transport_shutdown(c->t); /* what would follow now is not the rest */
	return r;
}

static int send_call(struct sl_client *c, const struct sl_call *call, uint64_t unique)
{
	struct fuse_in_header h = {.opcode = call->opcode,
				   .unique = unique,
				   .nodeid = call->nodeid,
				   .uid = c->cfg.uid,
				   .gid = c->cfg.gid,
				   .pid = c->cfg.pid};
	if (call->from) {
		h.uid = call->from->uid;
		h.gid = call->from->gid;
		h.pid = call->from->pid;
	}
	struct iovec iov[SL_MSG_IOV];
	int n = sl_msg_in_encode(&h, &call->in, call->name, call->name2, call->data, call->data_len, c->flags,
				 iov);
	if (n < 0)
		return n;
	int r;
	pthread_mutex_lock(&c->out_lock);
	if (sl_list_empty(&c->out) && !c->writing && h.len <= SEND_AT_ONCE)
		r = send_now(c, iov, n, h.len);
	else
		r = enqueue(c, iov, n, h.len);
	pthread_mutex_unlock(&c->out_lock);
	return r;
}

static void *writer_thread(void *arg)
{
	struct sl_client *c = arg;
	int r = 0;
	pthread_mutex_lock(&c->out_lock);
	while (!c->out_stop) {
		if (sl_list_empty(&c->out)) {
			pthread_cond_wait(&c->out_cond, &c->out_lock);
			continue;
		}
		struct outgoing *o = sl_list_entry(c->out.next, struct outgoing, link);
		sl_list_del(&o->link);
		c->queued -= o->len;
		c->writing = true;
		pthread_mutex_unlock(&c->out_lock);
		if (r == 0)
			r = sl_transport_send(c->t, &(struct iovec){o->bytes, o->len}, 1);
		free(o);
		if (r < 0)
			sl_transport_shutdown(c->t); /* the receiver ends all calls */
		pthread_mutex_lock(&c->out_lock);
		c->writing = false;
	}
	while (!sl_list_empty(&c->out)) {
		struct outgoing *o = sl_list_entry(c->out.next, struct outgoing, link);
		sl_list_del(&o->link);
		free(o);
	}
	pthread_mutex_unlock(&c->out_lock);
	return NULL;
}

static void finish(struct sl_call *call, int err)
{
	struct sl_result r = {.err = err};
	call->done(call, &r);
}

/* With the lock held: move the call to the zombies. Without memory for that, late nodes leak at the server
 * until we disconnect. */
static void bury(struct sl_client *c, struct sl_call *call)
{
	sl_htab_del(&c->calls, &call->node);
	struct zombie *z = malloc(sizeof(*z));
	if (!z)
		return;
	z->opcode = call->opcode;
	z->nodeid = call->nodeid;
	if (sl_htab_add(&c->zombies, &z->node, call->unique) < 0)
		free(z);
}

static void fail_all(struct sl_client *c, int err)
{
	for (;;) {
		size_t i;
		pthread_mutex_lock(&c->lock);
		if (!c->err)
			c->err = err;
		struct sl_hnode *h = sl_htab_first(&c->calls, &i);
		if (h)
			sl_htab_del(&c->calls, h);
		pthread_mutex_unlock(&c->lock);
		if (!h)
			return;
		finish(sl_container_of(h, struct sl_call, node), -ENOTCONN);
	}
}

static void expire(struct sl_client *c)
{
	uint64_t now = sl_now();
	for (;;) {
		struct sl_call *late = NULL;
		size_t i;
		pthread_mutex_lock(&c->lock);
		for (struct sl_hnode *h = sl_htab_first(&c->calls, &i); h;
		     h = sl_htab_step(&c->calls, &i, h)) {
			struct sl_call *call = sl_container_of(h, struct sl_call, node);
			if (call->deadline && call->deadline <= now) {
				late = call;
				bury(c, call);
				break;
			}
		}
		pthread_mutex_unlock(&c->lock);
		if (!late)
			return;
		finish(late, -ETIMEDOUT);
	}
}

/* Give a handle back that nobody wants. Nobody waits for the reply either. */
static void give_back_handle(struct sl_client *c, uint32_t opcode, uint64_t nodeid, uint64_t fh)
{
	struct sl_call call = {.opcode = opcode, .nodeid = nodeid, .in.release.fh = fh};
	struct zombie *z = malloc(sizeof(*z));
	if (!z)
		return; /* it leaks at the server until we disconnect */
	z->opcode = opcode;
	z->nodeid = nodeid;
	pthread_mutex_lock(&c->lock);
	uint64_t unique = c->next_unique;
	c->next_unique += 2;
	int r = sl_htab_add(&c->zombies, &z->node, unique);
	pthread_mutex_unlock(&c->lock);
	if (r < 0)
		free(z);
	else
		(void)send_call(c, &call, unique);
}

static void give_back_nodes(struct sl_client *c, const struct fuse_forget_one *v, size_t n)
{
	struct sl_call call = {.opcode = FUSE_BATCH_FORGET,
			       .in.batch_forget.count = (uint32_t)n,
			       .data = v,
			       .data_len = n * sizeof(*v)};
	if (n)
		(void)sl_client_post(c, &call);
}

/* The late reply @m to @z gave something out to nobody: give it back. */
static void undo_late(struct sl_client *c, const struct zombie *z, const struct sl_msg_out *m)
{
	struct fuse_forget_one v[128];
	size_t left = m->data_len, n = 0;
	const void *p = m->data;
	struct sl_dirent d;

	if (m->h.error)
		return;
	switch (z->opcode) {
	case FUSE_OPEN:
		give_back_handle(c, FUSE_RELEASE, z->nodeid, m->out.open.fh);
		return;
	case FUSE_OPENDIR:
		give_back_handle(c, FUSE_RELEASEDIR, z->nodeid, m->out.open.fh);
		return;
	case FUSE_READDIRPLUS:
		while (sl_dirent_next(&p, &left, true, &d) > 0) {
			if (!d.entry.nodeid ||
			    !sl_name_valid(d.name, d.namelen)) /* "." and ".." do not count as lookups */
				continue;
			v[n++] = (struct fuse_forget_one){d.entry.nodeid, 1};
			if (n == SL_ARRAY_SIZE(v)) {
				give_back_nodes(c, v, n);
				n = 0;
			}
		}
		break;
	case FUSE_CREATE:
	case FUSE_TMPFILE:
		give_back_handle(c, FUSE_RELEASE, m->out.create.entry.nodeid, m->out.create.open.fh);
		v[n++] = (struct fuse_forget_one){m->out.create.entry.nodeid, 1};
		break;
	default:
		if (sl_op_get(z->opcode)->entry && m->out.entry.nodeid)
			v[n++] = (struct fuse_forget_one){m->out.entry.nodeid, 1};
	}
	give_back_nodes(c, v, n);
}

/* Deliver one message. Returns 0 or -EPROTO when the peer broke the protocol. */
static int deliver(struct sl_client *c, void **buf, size_t len)
{
	struct fuse_out_header h;
	memcpy(&h, *buf, sizeof(h));
	if (h.unique == 0) {
		return c->cfg.notify
			   ? c->cfg.notify(c->cfg.arg, h.error, (char *)*buf + sizeof(h), len - sizeof(h))
			   : 0;
	}
	struct sl_call *call = NULL;
	struct zombie *z = NULL;
	pthread_mutex_lock(&c->lock);
	struct sl_hnode *n = sl_htab_find(&c->calls, h.unique);
	if (n) {
		call = sl_container_of(n, struct sl_call, node);
		sl_htab_del(&c->calls, n);
	} else {
		n = sl_htab_find(&c->zombies, h.unique);
		if (n) {
			z = sl_container_of(n, struct zombie, node);
			sl_htab_del(&c->zombies, n);
		}
	}
	pthread_mutex_unlock(&c->lock);
	struct sl_msg_out m;
	if (z) {
		int r = sl_msg_out_decode(*buf, len, sl_op_get(z->opcode), &m);
		if (r == 0)
			undo_late(c, z, &m);
		free(z);
		return r;
	}
	if (!call) /* an answer to what was never asked, unless it says that an interrupt came before its
		      request */
		return (h.unique & 1) && h.error == -EAGAIN && len == sizeof(h) ? 0 : -EPROTO;
	struct sl_result res = {0};
	int r = sl_msg_out_decode(*buf, len, sl_op_get(call->opcode), &m);
	res.err = r < 0 ? r : m.h.error;
	res.from_server = r == 0;
	res.out = &m.out;
	res.data = m.data;
	res.data_len = m.data_len;
	res.buf = *buf;
	call->done(call, &res);
	*buf = res.buf;
	return r;
}

static void *client_thread(void *arg)
{
	struct sl_client *c = arg;
	int r = 0;
	uint64_t next_tick = sl_now() + TICK_MS * SL_NS_PER_MS;
	while (r == 0) {
		void *buf = NULL;
		ssize_t n = sl_transport_recv_alloc(c->t, SL_WIRE_MAX_MSG, TICK_MS, &buf);
		if (n >= 0)
			r = deliver(c, &buf, (size_t)n);
		else if (n != -EAGAIN)
			r = (int)n;
		free(buf);
		if (sl_now() >= next_tick) {
			expire(c);
			next_tick = sl_now() + TICK_MS * SL_NS_PER_MS;
		}
	}
	sl_transport_shutdown(c->t);
	fail_all(c, r);
	if (c->cfg.gone)
		c->cfg.gone(c->cfg.arg, r);
	return NULL;
}

static int handshake(struct sl_client *c)
{
	struct sl_call call = {.opcode = FUSE_INIT};
	uint64_t want = c->cfg.want_flags | FUSE_INIT_EXT | FUSE_MAX_PAGES;
	call.in.init = (struct fuse_init_in){.major = FUSE_KERNEL_VERSION,
					     .minor = FUSE_KERNEL_MINOR_VERSION,
					     .max_readahead = SL_WIRE_MAX_DATA,
					     .flags = (uint32_t)want,
					     .flags2 = (uint32_t)(want >> 32),
					     .sl_seq = {(uint32_t)c->cfg.seq, (uint32_t)(c->cfg.seq >> 32)}};
	memcpy(call.in.init.sl_token, c->cfg.token, sizeof(c->cfg.token));
	int r = send_call(c, &call, 1);
	if (r < 0)
		return r == -EPIPE || r == -ECONNRESET ? -ENOTCONN : r;
	_cleanup_free_ void *buf = NULL;
	ssize_t n = sl_transport_recv_alloc(c->t, SL_WIRE_MAX_MSG,
					    c->cfg.init_timeout_ms ? c->cfg.init_timeout_ms : 30000, &buf);
	if (n < 0)
		return n == -EAGAIN			   ? -ETIMEDOUT
		       : n == -ENODATA || n == -ECONNRESET ? -ENOTCONN
		       : n == -EMSGSIZE || n == -EPIPE	   ? -EPROTO
							   : (int)n;
	struct sl_msg_out m;
	if (sl_msg_out_decode(buf, (size_t)n, sl_op_get(FUSE_INIT), &m) < 0 || m.h.unique != 1)
		return -EPROTO;
	if (m.h.error == -EPROTO)
		return -EPROTONOSUPPORT;
	if (m.h.error)
		return -EPROTO;
	const struct fuse_init_out *o = &m.out.init;
	if (o->major != FUSE_KERNEL_VERSION || o->minor < SL_FUSE_MINOR_MIN)
		return o->major > 0 && o->major < 1000 ? -EPROTONOSUPPORT : -EPROTO;
	c->flags = sl_init_flags(o->flags, o->flags2) & want;
	uint32_t pages = c->flags & FUSE_MAX_PAGES ? SL_MAX(1u, (uint32_t)o->max_pages) * 4096 : 32 * 4096;
	c->max_data = SL_MIN(pages, SL_WIRE_MAX_DATA);
	if (c->cfg.init)
		c->cfg.init(c->cfg.arg, c->flags, o);
	return 0;
}

int sl_client_new(struct sl_transport *t, const struct sl_client_config *cfg, struct sl_client **ret)
{
	struct sl_client *c = calloc(1, sizeof(*c));
	if (!c) {
		sl_transport_free(t);
		return -ENOMEM;
	}
	c->t = t;
	c->cfg = *cfg;
	c->next_unique = 2;
	/* What is left of an earlier conversation can be the content of a file: whoever wrote that must not
	 * know our numbers. */
	if (sl_transport_outlives(t) &&
	    getrandom(&c->next_unique, sizeof(c->next_unique), 0) == sizeof(c->next_unique))
		c->next_unique = (c->next_unique >> 2 & ~1ull) + 2;
	sl_list_init(&c->out);
	pthread_mutex_init(&c->lock, NULL);
	pthread_mutex_init(&c->out_lock, NULL);
	pthread_cond_init(&c->out_cond, NULL);
	int r = -pthread_create(&c->writer, NULL, writer_thread, c);
	c->has_writer = r == 0;
	if (r == 0)
		r = handshake(c);
	if (r == 0) {
		r = -pthread_create(&c->thread, NULL, client_thread, c);
		c->running = r == 0;
	}
	if (r < 0) {
		sl_client_free(c);
		return r;
	}
	pthread_setname_np(c->thread, "wire-client");
	pthread_setname_np(c->writer, "wire-writer");
	*ret = c;
	return 0;
}

void sl_client_free(struct sl_client *c)
{
	if (!c)
		return;
	sl_transport_shutdown(c->t);
	if (c->running)
		pthread_join(c->thread, NULL);
	pthread_mutex_lock(&c->out_lock);
	c->out_stop = true;
	pthread_cond_signal(&c->out_cond);
	pthread_mutex_unlock(&c->out_lock);
	if (c->has_writer)
		pthread_join(c->writer, NULL);
	size_t i;
	struct sl_hnode *h;
	while ((h = sl_htab_first(&c->zombies, &i))) {
		sl_htab_del(&c->zombies, h);
		free(sl_container_of(h, struct zombie, node));
	}
	sl_htab_fini(&c->zombies);
	sl_htab_fini(&c->calls);
	sl_transport_free(c->t);
	pthread_mutex_destroy(&c->lock);
	pthread_mutex_destroy(&c->out_lock);
	pthread_cond_destroy(&c->out_cond);
	free(c);
}

int sl_client_post(struct sl_client *c, struct sl_call *call)
{
	pthread_mutex_lock(&c->lock);
	call->unique = c->next_unique;
	c->next_unique += 2;
	int r = c->err ? -ENOTCONN : 0;
	pthread_mutex_unlock(&c->lock);
	return r < 0 ? r : send_call(c, call, call->unique);
}

void sl_client_call(struct sl_client *c, struct sl_call *call)
{
	pthread_mutex_lock(&c->lock);
	int r = c->err ? -ENOTCONN : 0;
	uint64_t unique = call->unique = c->next_unique;
	c->next_unique += 2;
	const struct sl_call copy = *call;
	if (r == 0)
		r = sl_htab_add(&c->calls, &call->node, call->unique);
	pthread_mutex_unlock(&c->lock);
	if (r < 0) {
		finish(call, r);
		return;
	}
	/* From here the call may be done and gone at any time, even before it is sent (cancelled, late,
	 * disconnected). */
	r = send_call(c, &copy, unique);
	if (r == -EINVAL) {
		pthread_mutex_lock(&c->lock);
		struct sl_hnode *h = sl_htab_find(&c->calls, unique);
		if (h)
			sl_htab_del(&c->calls, h);
		pthread_mutex_unlock(&c->lock);
		if (h)
			finish(sl_container_of(h, struct sl_call, node), -EINVAL);
	} else if (r < 0) {
		sl_transport_shutdown(c->t); /* the receiver ends all calls, this one too */
	}
}

void sl_client_cancel(struct sl_client *c, uint64_t unique)
{
	struct sl_call *call = NULL;
	pthread_mutex_lock(&c->lock);
	struct sl_hnode *h = sl_htab_find(&c->calls, unique);
	if (h) {
		call = sl_container_of(h, struct sl_call, node);
		bury(c, call);
	}
	pthread_mutex_unlock(&c->lock);
	if (!call)
		return;
	struct sl_call intr = {.opcode = FUSE_INTERRUPT, .in.interrupt.unique = unique};
	(void)send_call(c, &intr, unique | 1);
	finish(call, -EINTR);
}

/* A call that a thread waits for. */
struct sync_call {
	struct sl_call *orig;
	struct sl_call call;
	struct sl_msg_out *m;
	void *buf;
	int err;
	bool done;
	pthread_mutex_t lock;
	pthread_cond_t cond;
};

static void sync_done(struct sl_call *call, struct sl_result *r)
{
	struct sync_call *s = sl_container_of(call, struct sync_call, call);
	pthread_mutex_lock(&s->lock);
	s->err = r->err;
	if (r->err == 0) {
		s->m->out = *r->out;
		s->m->data = r->data;
		s->m->data_len = r->data_len;
		s->buf = r->buf;
		r->buf = NULL;
	}
	s->done = true;
	pthread_cond_signal(&s->cond);
	pthread_mutex_unlock(&s->lock);
}

int sl_client_call_sync(struct sl_client *c, struct sl_call *call, struct sl_msg_out *m, void **ret_buf)
{
	struct sl_msg_out local;
	struct sync_call s = {.orig = call, .call = *call, .m = m ? m : &local};
	pthread_mutex_init(&s.lock, NULL);
	pthread_cond_init(&s.cond, NULL);
	s.call.done = sync_done;
	sl_client_call(c, &s.call);
	pthread_mutex_lock(&s.lock);
	while (!s.done)
		pthread_cond_wait(&s.cond, &s.lock);
	pthread_mutex_unlock(&s.lock);
	pthread_cond_destroy(&s.cond);
	pthread_mutex_destroy(&s.lock);
	if (ret_buf)
		*ret_buf = s.buf;
	else
		free(s.buf);
	return s.err;
}
