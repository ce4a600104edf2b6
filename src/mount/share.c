/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "mount/share.h"

#include <pthread.h>
#include <string.h>
#include <sys/socket.h>

#include "mount/stream.h"
#include "serve/connection.h"

struct run {
	struct sl_share *s;
	struct sl_conn *c;
	struct sl_transport *in, *out; /* notifications go into one and come out of the other */
	pthread_t thread;
	bool has_thread;
};

/* ---- what raising asks ---- */

static int do_lookup(void *arg, uint64_t parent, const char *name, struct fuse_entry_out *out)
{
	struct run *u = arg;
	return sl_conn_lookup(u->c, parent, name, out);
}

static int do_getattr(void *arg, uint64_t nodeid, struct fuse_attr *a)
{
	struct run *u = arg;
	struct sl_found o;
	int r = sl_conn_getattr(u->c, nodeid, &o);
	if (r == 0)
		*a = o.attr;
	return r;
}

static void do_forget(void *arg, uint64_t nodeid, uint64_t n)
{
	struct run *u = arg;
	sl_conn_forget(u->c, nodeid, n);
}

static char *do_path(void *arg, uint64_t nodeid)
{
	struct run *u = arg;
	struct sl_place p;
	return sl_nodes_place(u->c->nodes, nodeid, &p) == 0 ? p.path : NULL;
}

static void do_lost(void *arg)
{
	struct run *u = arg;
	sl_conn_watch_all(u->c);
}

/* ---- life ---- */

static int next_body(void *arg, int timeout_ms, void **buf, const void **body, size_t *len)
{
	struct run *u = arg;
	struct sl_msg_out m;
	ssize_t n = sl_transport_recv_alloc(u->out, sizeof(m.h) + SL_FSNOTIFY_MAX, timeout_ms, buf);
	int r = n < 0 ? (int)n : sl_msg_out_decode(*buf, (size_t)n, NULL, &m);
	if (n >= 0 && r < 0)
		free(*buf);
	*body = m.data;
	*len = m.data_len;
	return r;
}

static void *events_thread(void *arg)
{
	struct run *u = arg;
	sl_stream_raise(&(struct sl_stream){.next = next_body, .arg = u}, u->s->raise);
	return NULL;
}

static bool take(void *arg, struct sl_req *rq)
{
	struct run *u = arg;
	return u->s->raise && sl_raise_take(u->s->raise, rq);
}

static void begin(void *arg, struct sl_server *s, struct sl_conn *c)
{
	struct run *u = arg;
	u->c = c;
	if (!u->s->raise)
		return;
	sl_raise_begin(u->s->raise, &(struct sl_raise_config){.server = s,
							      .dir = u->s->dir,
							      .lookup = do_lookup,
							      .getattr = do_getattr,
							      .forget = do_forget,
							      .path = do_path,
							      .lost = do_lost,
							      .arg = u});
	u->has_thread = pthread_create(&u->thread, NULL, events_thread, u) == 0;
	if (u->has_thread)
		pthread_setname_np(u->thread, "raise");
}

static void end(void *arg)
{
	struct run *u = arg;
	if (u->out)
		sl_transport_shutdown(u->out);
	if (u->s->raise)
		sl_raise_stop(u->s->raise);
	if (u->has_thread)
		pthread_join(u->thread, NULL);
	u->has_thread = false;
}

static int make_pair(struct run *u)
{
	int sv[2];
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv) < 0)
		return -errno;
	int r = sl_transport_new(SL_TRANSPORT_STREAM, sv[0], sv[0], &u->in);
	int k = sl_transport_new(SL_TRANSPORT_STREAM, sv[1], sv[1], &u->out);
	return r < 0 ? r : k;
}

int sl_share_serve(struct sl_share *s, struct sl_transport *t)
{
	struct run u = {.s = s};
	int r = s->raise ? make_pair(&u) : 0;
	const struct sl_serve_hooks hooks = {
	    .take = take, .begin = begin, .end = end, .arg = &u, .events = u.in, .uses = s->uses};
	if (r == 0)
		r = sl_serve_mount(s->e, t, &hooks);
	sl_transport_free(u.in);
	sl_transport_free(u.out);
	return r;
}
