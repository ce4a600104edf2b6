/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Server and client over socket pairs and over pipes, and each against a hostile other side played here byte
 * by byte. If this fails, calls hang, are answered twice or not at all, or a peer can break us.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/socket.h>
#include <time.h>

#include "base/fd.h"
#include "base/time.h"
#include "wire/client.h"
#include "wire/server.h"

#define LIMIT_S	 60 /* for anything that is certain to happen */
#define MAX_KEPT 2000

/* Wait for a condition that other threads bring about. */
#define wait_until(cond)                                                                                     \
	do {                                                                                                 \
		uint64_t end_ = sl_now() + LIMIT_S * SL_NS_PER_SEC;                                          \
		while (!(cond)) {                                                                            \
			if (sl_now() > end_)                                                                 \
				fail_msg("never true: %s", #cond);                                           \
			nanosleep(&(struct timespec){.tv_nsec = 200000}, NULL);                              \
		}                                                                                            \
	} while (0)

enum link { SOCKET, PIPES };

static void make_link(enum link kind, struct sl_transport **a, struct sl_transport **b)
{
	int p[2], q[2];
	if (kind == SOCKET) {
		assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, p), 0);
		assert_int_equal(sl_transport_new(SL_TRANSPORT_STREAM, p[0], p[0], a), 0);
		assert_int_equal(sl_transport_new(SL_TRANSPORT_STREAM, p[1], p[1], b), 0);
		return;
	}
	assert_int_equal(pipe2(p, O_CLOEXEC), 0);
	assert_int_equal(pipe2(q, O_CLOEXEC), 0);
	assert_int_equal(sl_transport_new(SL_TRANSPORT_STREAM, p[0], q[1], a), 0);
	assert_int_equal(sl_transport_new(SL_TRANSPORT_STREAM, q[0], p[1], b), 0);
}

/* ---- the server's side ---- */

struct srv {
	struct sl_transport *t;
	struct sl_server *s;
	pthread_t th;
	atomic_int result;
	uint64_t flags;

	pthread_mutex_t lock; /* kept, forgotten */
	struct sl_req *kept[MAX_KEPT];
	atomic_int n_kept;
	uint64_t forgotten[MAX_KEPT];
	atomic_int n_forgotten;
	atomic_ullong released, released_node;
	atomic_int n_released;
	atomic_ullong interrupted;
};

static void on_init(void *arg, const struct sl_server_agreed *agreed)
{
	((struct srv *)arg)->flags = agreed->flags;
}

static void on_interrupt(void *arg, uint64_t unique)
{
	((struct srv *)arg)->interrupted = unique;
}

static void forgot(struct srv *v, uint64_t nodeid, uint64_t n)
{
	pthread_mutex_lock(&v->lock);
	for (; n > 0 && v->n_forgotten < MAX_KEPT; n--) {
		v->forgotten[v->n_forgotten] = nodeid;
		v->n_forgotten++;
	}
	pthread_mutex_unlock(&v->lock);
}

/* Node ids from 1000 on are kept until the test answers them; READ gives bytes that its offset determines. */
static void on_request(struct sl_req *rq, void *arg)
{
	struct srv *v = arg;
	const struct sl_msg_in *m = &rq->m;

	if (m->h.opcode == FUSE_FORGET) {
		forgot(v, m->h.nodeid, m->in.forget.nlookup);
		sl_reply_none(rq);
	} else if (m->h.opcode == FUSE_BATCH_FORGET) {
		for (uint32_t i = 0; i < m->in.batch_forget.count; i++) {
			struct fuse_forget_one f;
			memcpy(&f, (const char *)m->data + i * sizeof(f), sizeof(f));
			forgot(v, f.nodeid, f.nlookup);
		}
		sl_reply_none(rq);
	} else if (m->h.opcode == FUSE_RELEASE || m->h.opcode == FUSE_RELEASEDIR) {
		v->released = m->in.release.fh;
		v->released_node = m->h.nodeid;
		v->n_released++;
		sl_reply(rq, NULL, 0);
	} else if (m->h.nodeid >= 1000) {
		struct sl_req *k = sl_req_keep(rq);
		assert_non_null(k);
		assert_ptr_equal(sl_req_keep(k), k);
		pthread_mutex_lock(&v->lock);
		v->kept[v->n_kept] = k;
		v->n_kept++;
		pthread_mutex_unlock(&v->lock);
	} else if (m->h.opcode == FUSE_GETATTR) {
		struct fuse_attr_out out = {.attr.ino = m->h.nodeid, .attr.uid = m->h.uid};
		sl_reply(rq, &out, sizeof(out));
	} else if (m->h.opcode == FUSE_WRITE) {
		struct fuse_write_out out = {.size = (uint32_t)m->data_len};
		for (size_t i = 0; i < m->data_len; i++)
			out.padding += ((const unsigned char *)m->data)[i];
		sl_reply(rq, &out, sizeof(out));
	} else if (m->h.opcode == FUSE_READ) {
		_cleanup_free_ char *b = malloc(m->in.read.size + 1);
		memset(b, (int)(m->in.read.offset & 0xff), m->in.read.size);
		sl_reply_data(rq, NULL, 0, b, m->in.read.size);
	} else {
		sl_reply_err(rq, m->h.opcode == FUSE_UNLINK ? -ENOENT : -ENOSYS);
	}
}

static void *run_server(void *arg)
{
	struct srv *v = arg;
	v->result = sl_server_run(v->s);
	return NULL;
}

static struct srv *start_server(struct sl_transport *t, unsigned threads, uint32_t max_data)
{
	struct srv *v = calloc(1, sizeof(*v));
	pthread_mutex_init(&v->lock, NULL);
	v->t = t;
	v->result = 1;
	struct sl_server_config cfg = {.threads = threads,
				       .want_flags = FUSE_DO_READDIRPLUS | FUSE_SETXATTR_EXT |
						     FUSE_PARALLEL_DIROPS | FUSE_PASSTHROUGH |
						     SL_FUSE_XATTR_HINT,
				       .max_data = max_data,
				       .init = on_init,
				       .handle = on_request,
				       .interrupt = on_interrupt,
				       .arg = v};
	assert_int_equal(sl_server_new(t, &cfg, &v->s), 0);
	assert_int_equal(pthread_create(&v->th, NULL, run_server, v), 0);
	return v;
}

/* Wait for the server's end and return its result. What the test kept and did not answer is answered into the
 * void. */
static int end_server(struct srv *v)
{
	pthread_join(v->th, NULL);
	int r = v->result;
	for (int i = 0; i < v->n_kept; i++)
		if (v->kept[i])
			sl_reply_err(v->kept[i], -EIO);
	sl_server_free(v->s);
	sl_transport_free(v->t);
	pthread_mutex_destroy(&v->lock);
	free(v);
	return r;
}

static struct sl_req *take_kept(struct srv *v, int i)
{
	pthread_mutex_lock(&v->lock);
	struct sl_req *rq = sl_steal_ptr(&v->kept[i]);
	pthread_mutex_unlock(&v->lock);
	return rq;
}

/* ---- the client's side ---- */

struct call {
	struct sl_call c;
	atomic_int done;
	int err;
	bool from_server;
	union sl_out out;
	void *buf;
	const void *data;
	size_t data_len;
};

static void on_done(struct sl_call *c, struct sl_result *r)
{
	struct call *k = sl_container_of(c, struct call, c);
	k->err = r->err;
	k->from_server = r->from_server;
	if (r->err == 0) {
		k->out = *r->out;
		k->data = r->data;
		k->data_len = r->data_len;
		k->buf = sl_steal_ptr(&r->buf);
	}
	k->done++;
}

struct cli {
	struct sl_client *c;
	atomic_int n_gone, gone_err;
	atomic_int n_notes;
	int last_code;
	size_t last_len;
	char last[64];
};

static void on_gone(void *arg, int err)
{
	struct cli *l = arg;
	l->gone_err = err;
	l->n_gone++;
}

static int on_notify(void *arg, int code, const void *data, size_t len)
{
	struct cli *l = arg;
	l->last_code = code;
	l->last_len = len;
	memcpy(l->last, data, SL_MIN(len, sizeof(l->last)));
	l->n_notes++;
	return 0;
}

static int connect_client(struct cli *l, struct sl_transport *t, int timeout_ms)
{
	*l = (struct cli){0};
	struct sl_client_config cfg = {.want_flags = FUSE_DO_READDIRPLUS | FUSE_SETXATTR_EXT |
						     FUSE_ASYNC_READ | SL_FUSE_XATTR_HINT,
				       .uid = 12,
				       .init_timeout_ms = timeout_ms,
				       .notify = on_notify,
				       .gone = on_gone,
				       .arg = l};
	return sl_client_new(t, &cfg, &l->c);
}

struct both {
	struct srv *v;
	struct cli l;
};

static void both_start(struct both *b, enum link kind, unsigned threads, uint32_t max_data)
{
	struct sl_transport *a, *c;
	make_link(kind, &a, &c);
	b->v = start_server(a, threads, max_data);
	assert_int_equal(connect_client(&b->l, c, 0), 0);
}

static void both_end(struct both *b)
{
	sl_client_free(b->l.c);
	assert_int_equal(b->l.n_gone, 1);
	assert_int_equal(end_server(b->v), 0);
}

static struct call *start(struct sl_client *c, uint32_t opcode, uint64_t nodeid, uint64_t arg)
{
	struct call *k = calloc(1, sizeof(*k));
	k->c = (struct sl_call){.opcode = opcode, .nodeid = nodeid, .done = on_done};
	if (opcode == FUSE_LOOKUP || opcode == FUSE_CREATE)
		k->c.name = "name";
	if (opcode == FUSE_READ) {
		k->c.in.read.offset = arg;
		k->c.in.read.size = 100;
	}
	sl_client_call(c, &k->c);
	return k;
}

static void finish_call(struct call *k, int err)
{
	wait_until(k->done);
	assert_int_equal(k->done, 1);
	assert_int_equal(k->err, err);
	free(k->buf);
	free(k);
}

static void expect_works(struct sl_client *c)
{
	struct sl_call call = {.opcode = FUSE_GETATTR, .nodeid = 5};
	struct sl_msg_out m;
	void *buf;
	assert_int_equal(sl_client_call_sync(c, &call, &m, &buf), 0);
	assert_int_equal(m.out.attr.attr.ino, 5);
	free(buf);
}

/* ---- tests of the two together ---- */

static void check_round_trip(enum link kind)
{
	struct both b;
	both_start(&b, kind, 2, 0);
	assert_int_equal(sl_client_max_data(b.l.c), SL_WIRE_MAX_DATA);
	/* What both wanted, and nothing that only one did. */
	assert_true(sl_client_flags(b.l.c) == (FUSE_DO_READDIRPLUS | FUSE_SETXATTR_EXT | SL_FUSE_XATTR_HINT |
					       FUSE_INIT_EXT | FUSE_MAX_PAGES));
	assert_true(sl_client_flags(b.l.c) == sl_server_flags(b.v->s));
	assert_true(b.v->flags == sl_server_flags(b.v->s));

	struct sl_msg_out m;
	void *buf;
	struct sl_call call = {.opcode = FUSE_GETATTR, .nodeid = 9};
	assert_int_equal(sl_client_call_sync(b.l.c, &call, &m, &buf), 0);
	assert_int_equal(m.out.attr.attr.ino, 9);
	assert_int_equal(m.out.attr.attr.uid, 12);
	free(buf);

	char *big = malloc(SL_WIRE_MAX_DATA);
	memset(big, 3, SL_WIRE_MAX_DATA);
	call = (struct sl_call){.opcode = FUSE_WRITE,
				.nodeid = 9,
				.data = big,
				.data_len = SL_WIRE_MAX_DATA,
				.in.write.size = SL_WIRE_MAX_DATA};
	assert_int_equal(sl_client_call_sync(b.l.c, &call, &m, &buf), 0);
	assert_int_equal(m.out.write.size, SL_WIRE_MAX_DATA);
	assert_int_equal(m.out.write.padding, 3 * SL_WIRE_MAX_DATA);
	free(buf);

	memset(big, 7, SL_WIRE_MAX_DATA);
	call = (struct sl_call){
	    .opcode = FUSE_READ, .nodeid = 9, .in.read = {.size = SL_WIRE_MAX_DATA, .offset = 7}};
	assert_int_equal(sl_client_call_sync(b.l.c, &call, &m, &buf), 0);
	assert_int_equal(m.data_len, SL_WIRE_MAX_DATA);
	assert_memory_equal(m.data, big, SL_WIRE_MAX_DATA);
	free(buf);
	free(big);

	call = (struct sl_call){.opcode = FUSE_UNLINK, .nodeid = 9, .name = "x"};
	assert_int_equal(sl_client_call_sync(b.l.c, &call, &m, &buf), -ENOENT);
	free(buf);
	/* What cannot be encoded is refused here, and the connection lives on. */
	call = (struct sl_call){.opcode = FUSE_UNLINK, .nodeid = 9};
	assert_int_equal(sl_client_call_sync(b.l.c, &call, NULL, NULL), -EINVAL);
	expect_works(b.l.c);
	both_end(&b);
}

static void test_round_trip_socket(void **state)
{
	(void)state;
	check_round_trip(SOCKET);
}

static void test_round_trip_pipes(void **state)
{
	(void)state;
	check_round_trip(PIPES);
}

static void check_read(struct call *k, uint64_t offset)
{
	char want[100];
	memset(want, (int)(offset & 0xff), sizeof(want));
	wait_until(k->done);
	assert_int_equal(k->err, 0);
	assert_int_equal(k->data_len, sizeof(want));
	assert_memory_equal(k->data, want, sizeof(want));
	finish_call(k, 0);
}

static void answer_read(struct sl_req *rq)
{
	char b[100];
	assert_int_equal(rq->m.h.opcode, FUSE_READ);
	memset(b, (int)(rq->m.in.read.offset & 0xff), sizeof(b));
	sl_reply_data(rq, NULL, 0, b, sizeof(b));
}

/* Kept requests are answered last first, while others pass them. */
static void check_out_of_order(enum link kind)
{
	enum { N = 64 };
	struct both b;
	struct call *k[N];
	both_start(&b, kind, 1, 0);
	for (int i = 0; i < N; i++)
		k[i] = start(b.l.c, FUSE_READ, 1000, (uint64_t)i);
	wait_until(b.v->n_kept == N);
	expect_works(b.l.c);
	for (int i = N - 1; i >= 0; i--) {
		assert_int_equal(k[i]->done, 0);
		answer_read(take_kept(b.v, i));
	}
	for (int i = 0; i < N; i++)
		check_read(k[i], (uint64_t)i);
	both_end(&b);
}

static void test_out_of_order_socket(void **state)
{
	(void)state;
	check_out_of_order(SOCKET);
}

static void test_out_of_order_pipes(void **state)
{
	(void)state;
	check_out_of_order(PIPES);
}

/* The strings and data of a kept request are its own. */
static void test_keep_copies(void **state)
{
	(void)state;
	struct both b;
	both_start(&b, SOCKET, 1, 0);
	struct call *k = calloc(3, sizeof(*k));
	k[0].c = (struct sl_call){
	    .opcode = FUSE_RENAME, .nodeid = 1000, .name = "from", .name2 = "to", .done = on_done};
	k[1].c = (struct sl_call){.opcode = FUSE_SETXATTR,
				  .nodeid = 1000,
				  .name = "user.a",
				  .data = "value",
				  .data_len = 5,
				  .in.setxattr.size = 5,
				  .done = on_done};
	k[2].c = (struct sl_call){.opcode = FUSE_GETATTR, .nodeid = 1000, .done = on_done};
	for (int i = 0; i < 3; i++)
		sl_client_call(b.l.c, &k[i].c);
	wait_until(b.v->n_kept == 3);
	expect_works(b.l.c); /* the loop's buffer is another message's now */
	struct sl_req *rq = take_kept(b.v, 0);
	assert_string_equal(rq->m.name, "from");
	assert_string_equal(rq->m.name2, "to");
	sl_reply(rq, NULL, 0);
	rq = take_kept(b.v, 1);
	assert_string_equal(rq->m.name, "user.a");
	assert_int_equal(rq->m.data_len, 5);
	assert_memory_equal(rq->m.data, "value", 5);
	sl_reply(rq, NULL, 0);
	rq = take_kept(b.v, 2);
	sl_reply_err(rq, -EACCES);
	wait_until(k[0].done && k[1].done && k[2].done);
	assert_int_equal(k[0].err, 0);
	assert_int_equal(k[1].err, 0);
	assert_int_equal(k[2].err, -EACCES);
	assert_true(k[2].from_server);
	for (int i = 0; i < 3; i++)
		free(k[i].buf);
	free(k);
	both_end(&b);
}

struct answerer {
	struct srv *v;
	int from, to;
};

static void *answer_range(void *arg)
{
	struct answerer *a = arg;
	for (int i = a->to - 1; i >= a->from; i--)
		answer_read(take_kept(a->v, i));
	return NULL;
}

static void check_thousand(enum link kind)
{
	enum { N = 1000 };
	struct both b;
	struct call *k[N];
	both_start(&b, kind, 4, 0);
	for (int i = 0; i < N; i++)
		k[i] = start(b.l.c, FUSE_READ, 1000, (uint64_t)i);
	wait_until(b.v->n_kept == N);
	pthread_t th[4];
	struct answerer a[4];
	for (int i = 0; i < 4; i++) {
		a[i] = (struct answerer){b.v, i * N / 4, (i + 1) * N / 4};
		pthread_create(&th[i], NULL, answer_range, &a[i]);
	}
	for (int i = 0; i < 4; i++)
		pthread_join(th[i], NULL);
	for (int i = 0; i < N; i++)
		check_read(k[i], (uint64_t)i);
	both_end(&b);
}

static void test_thousand_socket(void **state)
{
	(void)state;
	check_thousand(SOCKET);
}

static void test_thousand_pipes(void **state)
{
	(void)state;
	check_thousand(PIPES);
}

static void *call_many(void *arg)
{
	struct sl_client *c = arg;
	for (int i = 0; i < 300; i++)
		expect_works(c);
	return NULL;
}

static void test_many_threads(void **state)
{
	(void)state;
	struct both b;
	both_start(&b, SOCKET, 4, 0);
	pthread_t th[8];
	for (int i = 0; i < 8; i++)
		pthread_create(&th[i], NULL, call_many, b.l.c);
	for (int i = 0; i < 8; i++)
		pthread_join(th[i], NULL);
	both_end(&b);
}

static bool was_forgotten(struct srv *v, uint64_t nodeid)
{
	int n = 0;
	pthread_mutex_lock(&v->lock);
	for (int i = 0; i < v->n_forgotten; i++)
		n += v->forgotten[i] == nodeid;
	pthread_mutex_unlock(&v->lock);
	assert_true(n <= 1);
	return n == 1;
}

/* A cancelled call ends at once; what its late answer gives out goes back, exactly once. */
static void check_cancel(enum link kind)
{
	struct both b;
	both_start(&b, kind, 2, 0);
	static const uint32_t opcodes[] = {FUSE_LOOKUP,	     FUSE_OPEN, FUSE_OPENDIR, FUSE_CREATE,
					   FUSE_READDIRPLUS, FUSE_READ, FUSE_LOOKUP};
	for (int i = 0; i < (int)SL_ARRAY_SIZE(opcodes); i++) {
		uint32_t op = opcodes[i];
		struct call *k = start(b.l.c, op, 1000 + (uint64_t)i, 0);
		uint64_t unique = k->c.unique;
		wait_until(b.v->n_kept == i + 1);
		sl_client_cancel(b.l.c, unique);
		sl_client_cancel(b.l.c, unique); /* nothing left to cancel */
		finish_call(k, -EINTR);
		wait_until(b.v->interrupted == unique);

		struct sl_req *rq = take_kept(b.v, i);
		int released = b.v->n_released;
		struct fuse_entry_out e = {.nodeid = 5000 + (uint64_t)i};
		struct fuse_open_out o = {.fh = 70 + (uint64_t)i};
		if (op == FUSE_LOOKUP && i == 0) {
			sl_reply(rq, &e, sizeof(e));
			wait_until(was_forgotten(b.v, e.nodeid));
		} else if (op == FUSE_LOOKUP) {
			sl_reply_err(rq, -ENOENT);
		} else if (op == FUSE_OPEN || op == FUSE_OPENDIR) {
			sl_reply(rq, &o, sizeof(o));
			wait_until(b.v->n_released == released + 1);
			assert_int_equal(b.v->released, o.fh);
			assert_int_equal(b.v->released_node, 1000 + i);
		} else if (op == FUSE_CREATE) {
			struct fuse_create_out co = {e, o};
			sl_reply(rq, &co, sizeof(co));
			wait_until(b.v->n_released == released + 1 && was_forgotten(b.v, e.nodeid));
			assert_int_equal(b.v->released, o.fh);
			assert_int_equal(b.v->released_node, e.nodeid);
		} else if (op == FUSE_READDIRPLUS) {
			static char buf[100000];
			size_t len = 0;
			struct sl_dirent d = {.name = ".", .namelen = 1, .entry.nodeid = 1};
			assert_true(sl_dirent_add(buf, sizeof(buf), &len, true, &d));
			d.entry.nodeid = 0; /* a name without a lookup */
			d.name = "x";
			assert_true(sl_dirent_add(buf, sizeof(buf), &len, true, &d));
			for (uint64_t n = 0; n < 300; n++) {
				d.entry.nodeid = 10000 + n;
				assert_true(sl_dirent_add(buf, sizeof(buf), &len, true, &d));
			}
			int before = b.v->n_forgotten;
			sl_reply_data(rq, NULL, 0, buf, len);
			wait_until(b.v->n_forgotten == before + 300);
			for (uint64_t n = 0; n < 300; n++)
				assert_true(was_forgotten(b.v, 10000 + n));
		} else {
			sl_reply_data(rq, NULL, 0, "late", 4);
		}
	}
	expect_works(b.l.c);
	assert_false(was_forgotten(b.v, 1));
	assert_int_equal(b.v->n_forgotten, 302);
	assert_int_equal(b.v->n_released, 3);
	sl_client_cancel(b.l.c, 999999); /* never was */
	expect_works(b.l.c);
	both_end(&b);
}

static void test_cancel_socket(void **state)
{
	(void)state;
	check_cancel(SOCKET);
}

static void test_cancel_pipes(void **state)
{
	(void)state;
	check_cancel(PIPES);
}

static void test_deadline(void **state)
{
	(void)state;
	struct both b;
	both_start(&b, SOCKET, 2, 0);
	struct call *k[20];
	uint64_t t0 = sl_now();
	for (int i = 0; i < 20; i++) {
		k[i] = calloc(1, sizeof(*k[i]));
		k[i]->c =
		    (struct sl_call){.opcode = FUSE_LOOKUP,
				     .nodeid = 1000,
				     .name = "n",
				     .done = on_done,
				     .deadline = i % 2 ? t0 + 50 * SL_NS_PER_MS : t0 + 3600 * SL_NS_PER_SEC};
		sl_client_call(b.l.c, &k[i]->c);
	}
	wait_until(b.v->n_kept == 20);
	for (int i = 1; i < 20; i += 2)
		finish_call(k[i], -ETIMEDOUT);
	assert_true(sl_now() - t0 >= 50 * SL_NS_PER_MS);
	for (int i = 0; i < 20; i++) {
		struct fuse_entry_out e = {.nodeid = 200};
		sl_reply(take_kept(b.v, i), &e, sizeof(e));
	}
	for (int i = 0; i < 20; i += 2)
		finish_call(k[i], 0);
	wait_until(b.v->n_forgotten == 10);
	expect_works(b.l.c);
	both_end(&b);
}

static void test_free_ends_calls(void **state)
{
	(void)state;
	enum { N = 100 };
	struct both b;
	struct call *k[N];
	both_start(&b, SOCKET, 2, 0);
	for (int i = 0; i < N; i++)
		k[i] = start(b.l.c, FUSE_READ, 1000, 0);
	wait_until(b.v->n_kept == N);
	both_end(&b);
	for (int i = 0; i < N; i++) {
		assert_int_equal(k[i]->done, 1); /* before sl_client_free() returned */
		assert_false(k[i]->from_server);
		finish_call(k[i], -ENOTCONN);
	}
}

static void check_server_stops(enum link kind)
{
	enum { N = 100 };
	struct both b;
	struct call *k[N];
	both_start(&b, kind, 3, 0);
	for (int i = 0; i < N; i++)
		k[i] = start(b.l.c, FUSE_READ, 1000, 0);
	wait_until(b.v->n_kept == N);
	sl_server_stop(b.v->s);
	assert_int_equal(end_server(b.v), 0);
	for (int i = 0; i < N; i++)
		finish_call(k[i], -ENOTCONN);
	wait_until(b.l.n_gone == 1);
	struct call *late = start(b.l.c, FUSE_GETATTR, 1, 0);
	finish_call(late, -ENOTCONN);
	struct sl_call f = {.opcode = FUSE_FORGET, .nodeid = 3, .in.forget.nlookup = 1};
	assert_int_equal(sl_client_post(b.l.c, &f), -ENOTCONN);
	sl_client_free(b.l.c);
	assert_int_equal(b.l.n_gone, 1);
}

static void test_server_stops_socket(void **state)
{
	(void)state;
	check_server_stops(SOCKET);
}

static void test_server_stops_pipes(void **state)
{
	(void)state;
	check_server_stops(PIPES);
}

static void test_max_data(void **state)
{
	(void)state;
	static const uint32_t sizes[] = {4096, 65536, 1u << 20, 1u << 30};
	for (size_t i = 0; i < SL_ARRAY_SIZE(sizes); i++) {
		struct both b;
		both_start(&b, SOCKET, 1, sizes[i]);
		assert_int_equal(sl_client_max_data(b.l.c), SL_MIN(sizes[i], SL_WIRE_MAX_DATA));
		both_end(&b);
	}
}

static void test_notifications(void **state)
{
	(void)state;
	struct both b;
	both_start(&b, SOCKET, 2, 0);
	for (int i = 0; i < 100; i++) {
		struct fuse_notify_inval_entry_out e = {.parent = (uint64_t)i, .namelen = 3};
		struct iovec iov[2] = {{&e, sizeof(e)}, {(void *)"abc", 4}};
		assert_int_equal(sl_server_notify(b.v->s, FUSE_NOTIFY_INVAL_ENTRY, iov, 2), 0);
	}
	expect_works(b.l.c); /* and its reply came after them */
	assert_int_equal(b.l.n_notes, 100);
	assert_int_equal(b.l.last_code, FUSE_NOTIFY_INVAL_ENTRY);
	assert_int_equal(b.l.last_len, sizeof(struct fuse_notify_inval_entry_out) + 4);
	assert_int_equal(((struct fuse_notify_inval_entry_out *)b.l.last)->parent, 99);
	assert_string_equal(b.l.last + sizeof(struct fuse_notify_inval_entry_out), "abc");
	struct iovec many[20];
	assert_int_equal(sl_server_notify(b.v->s, FUSE_NOTIFY_STORE, many, 20), -EINVAL);
	both_end(&b);
}

/* ---- a client against a peer that is played here ---- */

struct raw {
	struct cli l;
	struct sl_transport *t;
	int fd; /* the peer's end */
	pthread_t th;
	int result;
	int timeout_ms;
};

static void *raw_connect(void *arg)
{
	struct raw *r = arg;
	r->result = connect_client(&r->l, r->t, r->timeout_ms);
	return NULL;
}

/* Start a client in a thread and read its INIT. */
static void raw_start(struct raw *r, int timeout_ms)
{
	int p[2];
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, p), 0);
	*r = (struct raw){.fd = p[0], .timeout_ms = timeout_ms};
	assert_int_equal(sl_transport_new(SL_TRANSPORT_STREAM, p[1], p[1], &r->t), 0);
	pthread_create(&r->th, NULL, raw_connect, r);
	struct {
		struct fuse_in_header h;
		struct fuse_init_in in;
	} m;
	assert_int_equal(sl_read_full(r->fd, &m, sizeof(m)), 0);
	assert_int_equal(m.h.len, sizeof(m));
	assert_int_equal(m.h.opcode, FUSE_INIT);
	assert_int_equal(m.h.unique, 1);
	assert_int_equal(m.in.major, 7);
}

static int raw_result(struct raw *r)
{
	pthread_join(r->th, NULL);
	return r->result;
}

struct init_reply {
	struct fuse_out_header h;
	struct fuse_init_out o;
};

static struct init_reply good_init(void)
{
	return (struct init_reply){.h = {.len = sizeof(struct init_reply), .unique = 1},
				   .o = {.major = 7,
					 .minor = 31,
					 .flags = (uint32_t)FUSE_MAX_PAGES,
					 .max_pages = 16,
					 .max_write = 65536}};
}

/* What a client says to an answer to its INIT. */
static int init_with(const void *p, size_t n, bool hang_up, int timeout_ms)
{
	struct raw r;
	raw_start(&r, timeout_ms);
	assert_int_equal(sl_write_full(r.fd, p, n), 0);
	if (hang_up)
		shutdown(r.fd, SHUT_WR);
	int res = raw_result(&r);
	if (res == 0)
		sl_client_free(r.l.c);
	close(r.fd);
	return res;
}

static void test_init_hostile(void **state)
{
	(void)state;
	struct init_reply m = good_init();
	assert_int_equal(init_with(&m, sizeof(m), false, 0), 0);

	static const char text[] =
	    "HTTP/1.1 400 Bad Request\r\nContent-Type: text/html\r\n\r\n<html><body>what?</body></html>";
	assert_int_equal(init_with(text, sizeof(text), false, 0), -EPROTO);
	static const char shell[] = "bash: line 1: sluice: command not found\n";
	assert_int_equal(init_with(shell, sizeof(shell), true, 0), -EPROTO);
	char zero[64] = "";
	assert_int_equal(init_with(zero, sizeof(zero), false, 0), -EPROTO);

	m = good_init();
	m.o.major = 8;
	assert_int_equal(init_with(&m, sizeof(m), false, 0), -EPROTONOSUPPORT);
	m.o.major = 6;
	assert_int_equal(init_with(&m, sizeof(m), false, 0), -EPROTONOSUPPORT);
	m = good_init();
	m.o.minor = SL_FUSE_MINOR_MIN - 1;
	assert_int_equal(init_with(&m, sizeof(m), false, 0), -EPROTONOSUPPORT);
	m = good_init();
	m.o.minor = 1000; /* newer than us is fine: it speaks ours */
	assert_int_equal(init_with(&m, sizeof(m), false, 0), 0);

	m = good_init();
	m.h.unique = 3;
	assert_int_equal(init_with(&m, sizeof(m), false, 0), -EPROTO);
	m.h.unique = 0;
	assert_int_equal(init_with(&m, sizeof(m), false, 0), -EPROTO);

	struct fuse_out_header h = {.len = sizeof(h), .unique = 1, .error = -EPROTO};
	assert_int_equal(init_with(&h, sizeof(h), false, 0), -EPROTONOSUPPORT);
	h.error = -EIO;
	assert_int_equal(init_with(&h, sizeof(h), false, 0), -EPROTO);
	h.error = 0;
	assert_int_equal(init_with(&h, sizeof(h), false, 0), -EPROTO);

	m = good_init();
	m.h.len = SL_WIRE_MAX_MSG + 1;
	assert_int_equal(init_with(&m, sizeof(m), false, 0), -EPROTO);
	m.h.len = 8;
	assert_int_equal(init_with(&m, sizeof(m), false, 0), -EPROTO);

	m = good_init();
	for (size_t n = 1; n < sizeof(m); n++)
		assert_int_equal(init_with(&m, n, true, 0), -EPROTO);
	assert_int_equal(init_with(&m, 0, true, 0), -ENOTCONN);
	/* Silence, and silence in the middle. */
	assert_int_equal(init_with(&m, 0, false, 50), -ETIMEDOUT);
	assert_int_equal(init_with(&m, 2, false, 50), -ETIMEDOUT);
	assert_int_equal(init_with(&m, 30, false, 50), -ETIMEDOUT);
}

/* A peer that grants what was not asked for, and sizes out of all proportion. */
static void test_init_greedy(void **state)
{
	(void)state;
	struct raw r;
	raw_start(&r, 0);
	struct init_reply m = good_init();
	m.o.flags = m.o.flags2 = UINT32_MAX;
	m.o.max_pages = UINT16_MAX;
	assert_int_equal(sl_write_full(r.fd, &m, sizeof(m)), 0);
	assert_int_equal(raw_result(&r), 0);
	assert_int_equal(sl_client_max_data(r.l.c), SL_WIRE_MAX_DATA);
	assert_true(sl_client_flags(r.l.c) == (FUSE_DO_READDIRPLUS | FUSE_SETXATTR_EXT | FUSE_ASYNC_READ |
					       SL_FUSE_XATTR_HINT | FUSE_INIT_EXT | FUSE_MAX_PAGES));
	sl_client_free(r.l.c);
	close(r.fd);

	raw_start(&r, 0);
	m = good_init();
	m.o.max_pages = 0;
	assert_int_equal(sl_write_full(r.fd, &m, sizeof(m)), 0);
	assert_int_equal(raw_result(&r), 0);
	assert_int_equal(sl_client_max_data(r.l.c), 4096);
	sl_client_free(r.l.c);
	close(r.fd);

	raw_start(&r, 0);
	m.o.flags = 0; /* without MAX_PAGES: 32 pages, as ever */
	assert_int_equal(sl_write_full(r.fd, &m, sizeof(m)), 0);
	assert_int_equal(raw_result(&r), 0);
	assert_int_equal(sl_client_max_data(r.l.c), 32 * 4096);
	sl_client_free(r.l.c);
	close(r.fd);
}

static void raw_ready(struct raw *r)
{
	raw_start(r, 0);
	struct init_reply m = good_init();
	assert_int_equal(sl_write_full(r->fd, &m, sizeof(m)), 0);
	assert_int_equal(raw_result(r), 0);
}

/* Read one request; the caller frees it. */
static struct fuse_in_header *raw_request(struct raw *r)
{
	uint32_t len;
	assert_int_equal(sl_read_full(r->fd, &len, sizeof(len)), 0);
	assert_true(len >= sizeof(struct fuse_in_header) && len <= SL_WIRE_MAX_MSG);
	char *p = malloc(len);
	memcpy(p, &len, sizeof(len));
	assert_int_equal(sl_read_full(r->fd, p + sizeof(len), len - sizeof(len)), 0);
	return (struct fuse_in_header *)p;
}

static void raw_end(struct raw *r, int gone)
{
	wait_until(r->l.n_gone == 1);
	assert_int_equal(r->l.gone_err, gone);
	struct call *k = start(r->l.c, FUSE_GETATTR, 1, 0);
	finish_call(k, -ENOTCONN);
	sl_client_free(r->l.c);
	assert_int_equal(r->l.n_gone, 1);
	close(r->fd);
}

/* Two calls under way; the peer sends @p; the first call ends with @first, the second with ENOTCONN, the
 * connection with @gone. */
static void hostile_reply(const void *p, size_t n, bool hang_up, int first, int gone)
{
	struct raw r;
	raw_ready(&r);
	struct call *a = start(r.l.c, FUSE_GETATTR, 1, 0), *b = start(r.l.c, FUSE_GETATTR, 1, 0);
	free(raw_request(&r));
	free(raw_request(&r));
	assert_int_equal(sl_write_full(r.fd, p, n), 0);
	if (hang_up)
		shutdown(r.fd, SHUT_RDWR);
	finish_call(a, first);
	finish_call(b, -ENOTCONN);
	raw_end(&r, gone);
}

static void test_client_hostile(void **state)
{
	(void)state;
	struct {
		struct fuse_out_header h;
		struct fuse_attr_out o;
		char more[8];
	} m = {.h = {.len = sizeof(m.h) + sizeof(m.o), .unique = 2}};
	const size_t good = sizeof(m.h) + sizeof(m.o);

	hostile_reply(&m, good, true, 0, -ENODATA); /* a good one, then the end */
	hostile_reply(&m, 0, true, -ENOTCONN, -ENODATA);
	hostile_reply(&m, 10, true, -ENOTCONN, -EPIPE);
	hostile_reply(&m, good - 1, true, -ENOTCONN, -EPIPE);
	m.h.unique = 4444; /* never asked */
	hostile_reply(&m, good, false, -ENOTCONN, -EPROTO);
	m.h.unique = 1; /* INIT was answered already */
	hostile_reply(&m, good, false, -ENOTCONN, -EPROTO);
	m.h.unique = 2;
	m.h.len += 8; /* too long for its operation */
	hostile_reply(&m, good + 8, false, -EPROTO, -EPROTO);
	m.h.len = (uint32_t)good - 8;
	hostile_reply(&m, good - 8, false, -EPROTO, -EPROTO);
	m.h.len = (uint32_t)good;
	m.h.error = 5;
	hostile_reply(&m, good, false, -EPROTO, -EPROTO);
	m.h.error = -ENOENT; /* an error with a body */
	hostile_reply(&m, good, false, -EPROTO, -EPROTO);
	m.h.error = 0;
	m.h.len = 15;
	hostile_reply(&m, good, false, -ENOTCONN, -EPROTO);
	m.h.len = 0;
	hostile_reply(&m, good, false, -ENOTCONN, -EPROTO);
	m.h.len = SL_WIRE_MAX_MSG + 1;
	hostile_reply(&m, good, false, -ENOTCONN, -EMSGSIZE);
	m.h.len = UINT32_MAX;
	hostile_reply(&m, good, false, -ENOTCONN, -EMSGSIZE);
}

/* The same reply twice: the second is one to nothing. */
static void test_client_double_reply(void **state)
{
	(void)state;
	struct {
		struct fuse_out_header h;
		struct fuse_attr_out o;
	} m[2] = {{.h = {.len = sizeof(m[0]), .unique = 2}}, {.h = {.len = sizeof(m[0]), .unique = 2}}};
	hostile_reply(m, sizeof(m), false, 0, -EPROTO);
}

/* A server that was interrupted too early may say so (libfuse does): no reason to part. */
static void test_client_interrupt_answered(void **state)
{
	(void)state;
	struct raw r;
	raw_ready(&r);
	struct call *a = start(r.l.c, FUSE_GETATTR, 1, 0);
	uint64_t unique = a->c.unique;
	free(raw_request(&r));
	sl_client_cancel(r.l.c, unique);
	finish_call(a, -EINTR);
	struct fuse_in_header *h = raw_request(&r);
	assert_int_equal(h->opcode, FUSE_INTERRUPT);
	assert_int_equal(h->unique, unique | 1);
	assert_int_equal(((struct fuse_interrupt_in *)(h + 1))->unique, unique);
	free(h);
	struct fuse_out_header o[2] = {{.len = sizeof(o[0]), .unique = unique | 1, .error = -EAGAIN},
				       {.len = sizeof(o[0]), .unique = unique, .error = -EINTR}};
	assert_int_equal(sl_write_full(r.fd, o, sizeof(o)), 0);
	struct fuse_out_header n = {.len = sizeof(n), .error = 42};
	assert_int_equal(sl_write_full(r.fd, &n, sizeof(n)), 0);
	wait_until(r.l.n_notes == 1);
	assert_int_equal(r.l.last_code, 42);
	assert_int_equal(r.l.n_gone, 0);
	shutdown(r.fd, SHUT_RDWR);
	raw_end(&r, -ENODATA);
}

/* A link that dies in the middle of a message: deadlines hold all the same, and the message goes on when the
 * link does. */
static void test_deadline_in_stalled_message(void **state)
{
	(void)state;
	struct raw r;
	raw_ready(&r);
	struct call *a = calloc(1, sizeof(*a)), *b = start(r.l.c, FUSE_GETATTR, 1, 0);
	a->c = (struct sl_call){
	    .opcode = FUSE_GETATTR, .nodeid = 1, .done = on_done, .deadline = sl_now() + 50 * SL_NS_PER_MS};
	free(raw_request(&r));
	struct {
		struct fuse_out_header h;
		struct fuse_attr_out o;
	} m = {.h = {.len = sizeof(m), .unique = 2}, .o.attr.ino = 77};
	assert_int_equal(sl_write_full(r.fd, &m, 50), 0);
	sl_client_call(r.l.c, &a->c);
	finish_call(a, -ETIMEDOUT);
	assert_int_equal(b->done, 0);
	assert_int_equal(sl_write_full(r.fd, (char *)&m + 50, sizeof(m) - 50), 0);
	wait_until(b->done);
	assert_int_equal(b->out.attr.attr.ino, 77);
	finish_call(b, 0);
	shutdown(r.fd, SHUT_RDWR);
	raw_end(&r, -ENODATA);
}

/* A peer that sends and does not read: giving late nodes back must not stop the receiver. */
static void test_receiver_never_waits(void **state)
{
	(void)state;
	enum { CALLS = 12, ENTRIES = 6000 };
	struct raw r;
	raw_ready(&r);
	uint64_t unique[CALLS];
	for (int i = 0; i < CALLS; i++) {
		struct call *k = start(r.l.c, FUSE_READDIRPLUS, 1, 0);
		unique[i] = k->c.unique;
		sl_client_cancel(r.l.c, unique[i]);
		finish_call(k, -EINTR);
	}
	size_t cap = SL_WIRE_MAX_DATA, len = 0;
	char *buf = malloc(cap);
	struct sl_dirent d = {.name = "n", .namelen = 1};
	for (uint64_t i = 0; i < ENTRIES; i++) {
		d.entry.nodeid = 2 + i;
		assert_true(sl_dirent_add(buf, cap, &len, true, &d));
	}
	for (int i = 0; i < CALLS; i++) {
		struct fuse_out_header h = {.len = (uint32_t)(sizeof(h) + len), .unique = unique[i]};
		struct iovec iov[2] = {{&h, sizeof(h)}, {buf, len}};
		assert_int_equal(sl_writev_full(r.fd, iov, 2), 0);
	}
	struct fuse_out_header n = {.len = sizeof(n), .error = 42};
	assert_int_equal(sl_write_full(r.fd, &n, sizeof(n)), 0);
	wait_until(r.l.n_notes == 1);
	/* And all of it comes once we read. */
	uint64_t forgets = 0;
	while (forgets < (uint64_t)CALLS * ENTRIES) {
		struct fuse_in_header *h = raw_request(&r);
		if (h->opcode == FUSE_BATCH_FORGET)
			forgets += ((struct fuse_batch_forget_in *)(h + 1))->count;
		free(h);
	}
	assert_int_equal(forgets, CALLS * ENTRIES);
	free(buf);
	shutdown(r.fd, SHUT_RDWR);
	raw_end(&r, -ENODATA);
}

/* A socket with room for a part of a message, and a peer that does not read: the caller does not wait, and the rest comes after it. */
static void test_part_sent(void **state)
{
	(void)state;
	enum { CALLS = 40 };
	struct raw r;
	struct call *k[CALLS];
	int least = 1;
	static char value[3900];
	raw_ready(&r);
	assert_int_equal(setsockopt(sl_transport_fd(r.t), SOL_SOCKET, SO_SNDBUF, &least, sizeof(least)), 0);
	alarm(LIMIT_S);
	for (int i = 0; i < CALLS; i++) {
		if (i % 2 == 0) {
			k[i] = start(r.l.c, FUSE_GETATTR, 1, 0);
			continue;
		}
		memset(value, i, sizeof(value));
		k[i] = calloc(1, sizeof(*k[i]));
		k[i]->c = (struct sl_call){.opcode = FUSE_SETXATTR,
					   .nodeid = 1,
					   .done = on_done,
					   .name = "user.x",
					   .in.setxattr.size = sizeof(value),
					   .data = value,
					   .data_len = sizeof(value)};
		sl_client_call(r.l.c, &k[i]->c);
	}
	alarm(0);
	for (int i = 0; i < CALLS; i++) {
		struct fuse_in_header *h = raw_request(&r);
		assert_int_equal(h->opcode, i % 2 ? FUSE_SETXATTR : FUSE_GETATTR);
		assert_int_equal(h->unique, k[i]->c.unique);
		for (size_t j = 1; i % 2 && j <= sizeof(value); j++)
			assert_int_equal(((char *)h)[h->len - j], i);
		free(h);
	}
	shutdown(r.fd, SHUT_RDWR);
	raw_end(&r, -ENODATA);
	for (int i = 0; i < CALLS; i++)
		finish_call(k[i], -ENOTCONN);
}

/* ---- a server against a client that is played here ---- */

struct request {
	struct fuse_in_header h;
	union {
		struct fuse_init_in init;
		struct fuse_getattr_in getattr;
		char bytes[64];
	};
};

static struct request init_request(uint32_t major, uint32_t minor)
{
	struct request q = {.h = {.opcode = FUSE_INIT, .unique = 2, .len = sizeof(q.h) + sizeof(q.init)},
			    .init = {.major = major,
				     .minor = minor,
				     .max_readahead = 1 << 20,
				     .flags = (uint32_t)(FUSE_INIT_EXT | FUSE_MAX_PAGES)}};
	return q;
}

struct played {
	struct srv *v;
	int fd;
};

static void played_start(struct played *p, bool init)
{
	int s[2];
	struct sl_transport *t;
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, s), 0);
	assert_int_equal(sl_transport_new(SL_TRANSPORT_STREAM, s[1], s[1], &t), 0);
	p->v = start_server(t, 3, 0);
	p->fd = s[0];
	if (init) {
		struct request q = init_request(7, 41);
		struct init_reply m;
		assert_int_equal(sl_write_full(p->fd, &q, q.h.len), 0);
		assert_int_equal(sl_read_full(p->fd, &m, sizeof(m)), 0);
		assert_int_equal(m.h.len, sizeof(m));
		assert_int_equal(m.h.error, 0);
		assert_int_equal(m.o.major, 7);
	}
}

static int played_end(struct played *p)
{
	close(p->fd);
	return end_server(p->v);
}

/* The server's end after @bytes from a client that did (or did not) INIT before. The server ends by itself
 * unless @hang_up. */
static int server_end_with(bool init, const void *bytes, size_t n, bool hang_up)
{
	struct played p;
	played_start(&p, init);
	assert_int_equal(sl_write_full(p.fd, bytes, n), 0);
	if (hang_up)
		shutdown(p.fd, SHUT_WR);
	wait_until(p.v->result != 1);
	return played_end(&p);
}

static void test_server_hostile(void **state)
{
	(void)state;
	struct request q = {
	    .h = {.opcode = FUSE_GETATTR, .unique = 4, .len = sizeof(q.h) + sizeof(q.getattr)}};
	static const char text[] =
	    "GET / HTTP/1.1\r\nHost: localhost\r\nUser-Agent: something that is long enough\r\n\r\n";

	for (int init = 0; init < 2; init++) {
		assert_int_equal(server_end_with(init, text, sizeof(text), false),
				 -EMSGSIZE); /* 'GET ' is a large number */
		assert_int_equal(server_end_with(init, "", 0, true), 0);
		assert_int_equal(server_end_with(init, &q, 3, true), -EPIPE);
		assert_int_equal(server_end_with(init, &q, 30, true), -EPIPE);
	}
	assert_int_equal(server_end_with(false, &q, q.h.len, false), -EPROTO); /* INIT first */
	/* A stream may outlive its client: it ends with what the client says last, and where another begins. */
	struct request bye = {.h = {.opcode = FUSE_DESTROY, .unique = 4, .len = sizeof(bye.h)}};
	assert_int_equal(server_end_with(true, &bye, bye.h.len, false), 0);
	bye = init_request(7, 99);
	assert_int_equal(server_end_with(true, &bye, bye.h.len, false), -EPROTO);
	q.h.opcode = 4000;
	assert_int_equal(server_end_with(false, &q, q.h.len, false), -EPROTO);
	q.h.opcode = FUSE_GETATTR;
	q.h.len++;
	assert_int_equal(server_end_with(true, &q, q.h.len, false), -EPROTO);
	q.h.len -= 2;
	assert_int_equal(server_end_with(true, &q, q.h.len, false), -EPROTO);
	q.h.len = 20;
	assert_int_equal(server_end_with(true, &q, q.h.len, false), -EPROTO);
	q.h.len = 0;
	assert_int_equal(server_end_with(true, &q, sizeof(q.h), false), -EPROTO);
	q.h.len = SL_WIRE_MAX_MSG + 1;
	assert_int_equal(server_end_with(true, &q, sizeof(q.h), false), -EMSGSIZE);
	q.h.len = UINT32_MAX;
	assert_int_equal(server_end_with(true, &q, sizeof(q.h), false), -EMSGSIZE);
	q = (struct request){.h = {.opcode = FUSE_UNLINK, .unique = 4, .len = sizeof(q.h) + 4},
			     .bytes = "a/b"};
	assert_int_equal(server_end_with(true, &q, q.h.len, false), -EPROTO);
}

static int32_t ask(struct played *p, const struct request *q, struct init_reply *m)
{
	assert_int_equal(sl_write_full(p->fd, q, q->h.len), 0);
	assert_int_equal(sl_read_full(p->fd, m, sizeof(m->h)), 0);
	assert_true(m->h.len >= sizeof(m->h) && m->h.len <= sizeof(*m));
	assert_int_equal(m->h.unique, q->h.unique);
	if (m->h.len > sizeof(m->h))
		assert_int_equal(sl_read_full(p->fd, &m->o, m->h.len - sizeof(m->h)), 0);
	return m->h.error;
}

static void test_server_versions(void **state)
{
	(void)state;
	struct played p;
	struct init_reply m;
	struct request q;

	played_start(&p, false);
	q = init_request(8, 0); /* newer: told our version, and asks again with that */
	assert_int_equal(ask(&p, &q, &m), 0);
	assert_int_equal(m.h.len, sizeof(m.h) + FUSE_COMPAT_INIT_OUT_SIZE);
	assert_int_equal(m.o.major, 7);
	q = init_request(7, 99);
	assert_int_equal(ask(&p, &q, &m), 0);
	assert_int_equal(m.h.len, sizeof(m));
	assert_int_equal(m.o.major, 7);
	assert_int_equal(m.o.minor, FUSE_KERNEL_MINOR_VERSION);
	assert_int_equal(m.o.max_pages, SL_WIRE_MAX_DATA / 4096);
	assert_int_equal(m.o.max_write, SL_WIRE_MAX_DATA);
	q = (struct request){.h = {.opcode = 4000, .unique = 8, .len = sizeof(q.h)}};
	assert_int_equal(ask(&p, &q, &m), -ENOSYS); /* an operation of the future */
	q = init_request(7, 99);
	assert_int_equal(ask(&p, &q, &m), -EPROTO); /* a second INIT */
	assert_int_equal(played_end(&p), -EPROTO);

	played_start(&p, false);
	q = init_request(7, SL_FUSE_MINOR_MIN - 1);
	assert_int_equal(ask(&p, &q, &m), -EPROTO);
	q = init_request(6, 40);
	assert_int_equal(ask(&p, &q, &m), -EPROTO);
	q = init_request(7, SL_FUSE_MINOR_MIN); /* the oldest, with its short INIT and without MAX_PAGES */
	q.init.flags = 0;
	q.h.len = sizeof(q.h) + FUSE_COMPAT_INIT_IN_SIZE;
	assert_int_equal(ask(&p, &q, &m), 0);
	assert_int_equal(m.o.max_pages, 32);
	assert_int_equal(m.o.max_write, 32 * 4096);
	assert_int_equal(m.o.flags, 0);
	assert_int_equal(m.o.flags2, 0);
	assert_int_equal(played_end(&p), 0);
}

/* A client that sends requests and reads no reply holds only its own server up, and not for longer than it is
 * there. */
static void test_server_unread_replies(void **state)
{
	(void)state;
	struct played p;
	played_start(&p, true);
	struct request q = {
	    .h = {.opcode = FUSE_GETATTR, .unique = 4, .nodeid = 1, .len = sizeof(q.h) + sizeof(q.getattr)}};
	fcntl(p.fd, F_SETFL, O_NONBLOCK);
	for (int i = 0; i < 100000 && write(p.fd, &q, q.h.len) == (ssize_t)q.h.len; i++)
		;
	(void)played_end(&p); /* that it ends is the point */
}

/* ---- the transport alone ---- */

struct sender {
	struct sl_transport *t;
	atomic_int result;
};

static void *send_until_it_fails(void *arg)
{
	struct sender *s = arg;
	static char big[100000];
	int r;
	do {
		struct iovec iov = {big, sizeof(big)};
		r = sl_transport_send(s->t, &iov, 1);
	} while (r == 0);
	s->result = r;
	return NULL;
}

/* Nobody reads the other end: a shutdown ends the send that waits for room. */
static void check_shutdown_ends_send(enum link kind)
{
	struct sl_transport *a, *b;
	make_link(kind, &a, &b);
	struct sender s = {.t = a};
	pthread_t th;
	pthread_create(&th, NULL, send_until_it_fails, &s);
	/* It is certain to wait once a message that does not wait finds no room or the sender in its way. */
	char x[16] = "";
	uint64_t end = sl_now() + LIMIT_S * SL_NS_PER_SEC;
	for (int blocked = 0; blocked < 50 && sl_now() < end;) {
		blocked = sl_transport_try_send(a, x, sizeof(x)) == -EAGAIN ? blocked + 1 : 0;
		nanosleep(&(struct timespec){.tv_nsec = 100000}, NULL);
	}
	assert_int_equal(s.result, 0);
	sl_transport_shutdown(a);
	pthread_join(th, NULL);
	assert_true(s.result < 0);
	assert_true(sl_transport_try_send(a, x, sizeof(x)) < 0);
	sl_transport_free(a);
	sl_transport_free(b);
}

static void test_shutdown_ends_send(void **state)
{
	(void)state;
	check_shutdown_ends_send(SOCKET);
	check_shutdown_ends_send(PIPES);
}

static int ignore_sigpipe(void **state)
{
	(void)state;
	signal(SIGPIPE, SIG_IGN);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_round_trip_socket),
	    cmocka_unit_test(test_round_trip_pipes),
	    cmocka_unit_test(test_out_of_order_socket),
	    cmocka_unit_test(test_out_of_order_pipes),
	    cmocka_unit_test(test_keep_copies),
	    cmocka_unit_test(test_thousand_socket),
	    cmocka_unit_test(test_thousand_pipes),
	    cmocka_unit_test(test_many_threads),
	    cmocka_unit_test(test_cancel_socket),
	    cmocka_unit_test(test_cancel_pipes),
	    cmocka_unit_test(test_deadline),
	    cmocka_unit_test(test_free_ends_calls),
	    cmocka_unit_test(test_server_stops_socket),
	    cmocka_unit_test(test_server_stops_pipes),
	    cmocka_unit_test(test_max_data),
	    cmocka_unit_test(test_notifications),
	    cmocka_unit_test(test_init_hostile),
	    cmocka_unit_test(test_init_greedy),
	    cmocka_unit_test(test_client_hostile),
	    cmocka_unit_test(test_client_double_reply),
	    cmocka_unit_test(test_client_interrupt_answered),
	    cmocka_unit_test(test_deadline_in_stalled_message),
	    cmocka_unit_test(test_receiver_never_waits),
	    cmocka_unit_test(test_part_sent),
	    cmocka_unit_test(test_server_hostile),
	    cmocka_unit_test(test_server_versions),
	    cmocka_unit_test(test_server_unread_replies),
	    cmocka_unit_test(test_shutdown_ends_send),
	};
	return cmocka_run_group_tests_name("wire", tests, ignore_sigpipe, NULL);
}
