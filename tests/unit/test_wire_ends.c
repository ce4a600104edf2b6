/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* wire/ends.h: what a kernel is told of a file that grows, and in what order. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "base/macros.h"
#include "wire/client.h"
#include "wire/server.h"

#define FILE_ID 7

struct world {
	struct sl_server *s;
	struct sl_transport *t;
	struct sl_client *c;
	pthread_t th;
	pthread_mutex_t lock; /* protects the rest */
	pthread_cond_t cond;
	struct sl_req *kept[16];
	unsigned nkept;
	char log[64];  /* what the client got: n(otification), r(ead), a(ttributes) */
	uint64_t from; /* what the last notification was about */
};

static void say(struct world *w, char what)
{
	pthread_mutex_lock(&w->lock);
	w->log[strlen(w->log)] = what;
	pthread_cond_broadcast(&w->cond);
	pthread_mutex_unlock(&w->lock);
}

static void on_request(struct sl_req *rq, void *arg)
{
	struct world *w = arg;
	if (rq->m.h.opcode == FUSE_FORGET) {
		sl_reply_none(rq);
		return;
	}
	if (rq->m.h.opcode == FUSE_DESTROY) {
		sl_reply_err(rq, 0);
		return;
	}
	rq = sl_req_keep(rq);
	pthread_mutex_lock(&w->lock);
	w->kept[w->nkept++] = rq;
	pthread_cond_broadcast(&w->cond);
	pthread_mutex_unlock(&w->lock);
}

static int on_notify(void *arg, int code, const void *data, size_t len)
{
	struct world *w = arg;
	struct fuse_notify_inval_inode_out n;
	assert_int_equal(code, FUSE_NOTIFY_INVAL_INODE);
	assert_int_equal(len, sizeof(n));
	memcpy(&n, data, sizeof(n));
	assert_int_equal(n.ino, FILE_ID);
	assert_int_equal(n.len, 0);
	w->from = (uint64_t)n.off;
	say(w, 'n');
	return 0;
}

struct call {
	struct sl_call c;
	struct world *w;
};

static void on_done(struct sl_call *c, struct sl_result *r)
{
	struct call *k = sl_container_of(c, struct call, c);
	char what = c->opcode == FUSE_READ ? 'r' : 'a';
	say(k->w, r->err == 0 ? what : '!');
	free(k);
}

/* Returns the request, once the server has it. */
static struct sl_req *ask(struct world *w, uint32_t opcode)
{
	struct call *k = calloc(1, sizeof(*k));
	k->w = w;
	k->c = (struct sl_call){.opcode = opcode, .nodeid = FILE_ID, .done = on_done};
	if (opcode == FUSE_READ)
		k->c.in.read.size = 4096;
	if (opcode == FUSE_LOOKUP) {
		k->c.nodeid = FUSE_ROOT_ID;
		k->c.name = "name";
	}
	pthread_mutex_lock(&w->lock);
	unsigned n = w->nkept;
	pthread_mutex_unlock(&w->lock);
	sl_client_call(w->c, &k->c);
	pthread_mutex_lock(&w->lock);
	while (w->nkept == n)
		pthread_cond_wait(&w->cond, &w->lock);
	struct sl_req *rq = w->kept[n];
	pthread_mutex_unlock(&w->lock);
	return rq;
}

static void answer_read(struct sl_req *rq, size_t n)
{
	char b[4096] = {0};
	sl_reply_data(rq, NULL, 0, b, n);
}

static void answer_size(struct sl_req *rq, uint64_t size)
{
	struct fuse_attr a = {.ino = FILE_ID, .mode = S_IFREG | 0644, .nlink = 1, .size = size};
	const struct fuse_attr_out attr = {.attr = a};
	const struct fuse_entry_out entry = {.nodeid = FILE_ID, .attr = a};
	if (rq->m.h.opcode == FUSE_LOOKUP)
		sl_reply(rq, &entry, sizeof(entry));
	else
		sl_reply(rq, &attr, sizeof(attr));
}

static void without_reads(char *log)
{
	for (char *r; (r = strchr(log, 'r'));)
		memmove(r, r + 1, strlen(r));
}

/* Wait until so much has come, and look what; begin anew. The answer to a READ is never held, and may be
 * overtaken: the kernel waits for it. */
static void expect(struct world *w, const char *log)
{
	char want[sizeof(w->log)];
	strcpy(want, log);
	without_reads(want);
	pthread_mutex_lock(&w->lock);
	while (strlen(w->log) < strlen(log))
		pthread_cond_wait(&w->cond, &w->lock);
	assert_int_equal(strlen(w->log), strlen(log));
	without_reads(w->log);
	assert_string_equal(w->log, want);
	memset(w->log, 0, sizeof(w->log));
	w->nkept = 0;
	pthread_mutex_unlock(&w->lock);
}

static void *run_server(void *arg)
{
	struct world *w = arg;
	assert_int_equal(sl_server_run(w->s), 0);
	return NULL;
}

static void begin(struct world *w)
{
	int p[2];
	struct sl_transport *t;
	*w = (struct world){0};
	pthread_mutex_init(&w->lock, NULL);
	pthread_cond_init(&w->cond, NULL);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, p), 0);
	assert_int_equal(sl_transport_new(SL_TRANSPORT_STREAM, p[0], p[0], &w->t), 0);
	assert_int_equal(sl_transport_new(SL_TRANSPORT_STREAM, p[1], p[1], &t), 0);
	const struct sl_server_config cfg = {
	    .threads = 1, .changing_sizes = true, .handle = on_request, .arg = w};
	assert_int_equal(sl_server_new(w->t, &cfg, &w->s), 0);
	assert_int_equal(pthread_create(&w->th, NULL, run_server, w), 0);
	const struct sl_client_config cc = {.notify = on_notify, .arg = w};
	assert_int_equal(sl_client_new(t, &cc, &w->c), 0);
}

static void end(struct world *w)
{
	sl_client_free(w->c);
	pthread_join(w->th, NULL);
	sl_server_free(w->s);
	sl_transport_free(w->t);
	pthread_mutex_destroy(&w->lock);
	pthread_cond_destroy(&w->cond);
}

static void test_dropped_first(void **state)
{
	(void)state;
	const uint32_t ops[] = {FUSE_GETATTR, FUSE_LOOKUP};
	struct world w;
	begin(&w);
	for (size_t i = 0; i < SL_ARRAY_SIZE(ops); i++) {
		answer_read(ask(&w, FUSE_READ), 1000);
		expect(&w, "r");
		answer_size(ask(&w, ops[i]), 1000); /* as the kernel has it */
		expect(&w, "a");
		answer_size(ask(&w, ops[i]), 1001);
		expect(&w, "na");
		assert_int_equal(w.from, 1000);
		answer_size(ask(&w, ops[i]), 2000); /* nothing of it is there any more */
		expect(&w, "a");
	}
	answer_read(ask(&w, FUSE_READ), 4096); /* no end */
	expect(&w, "r");
	answer_size(ask(&w, FUSE_GETATTR), 9000);
	expect(&w, "a");
	end(&w);
}

static void test_read_under_way(void **state)
{
	(void)state;
	struct world w;
	begin(&w);
	/* It was done before the file grew, as it turns out. */
	struct sl_req *read = ask(&w, FUSE_READ), *attr = ask(&w, FUSE_GETATTR);
	answer_size(attr, 2000);
	answer_read(read, 1000);
	expect(&w, "rna");
	/* And after. */
	read = ask(&w, FUSE_READ);
	attr = ask(&w, FUSE_GETATTR);
	answer_size(attr, 2000);
	answer_read(read, 2000);
	expect(&w, "ra");
	/* One that came later keeps nobody. */
	read = ask(&w, FUSE_READ);
	attr = ask(&w, FUSE_GETATTR);
	answer_size(attr, 3000);
	struct sl_req *later = ask(&w, FUSE_READ);
	answer_read(read, 4096);
	expect(&w, "rna");
	answer_read(later, 3000);
	expect(&w, "r");
	end(&w);
}

static void test_forgotten(void **state)
{
	(void)state;
	struct world w;
	begin(&w);
	struct sl_call forget = {.opcode = FUSE_FORGET, .nodeid = FILE_ID, .in.forget.nlookup = 1};
	assert_int_equal(sl_client_post(w.c, &forget), 0); /* nothing is known of it */
	answer_read(ask(&w, FUSE_READ), 1000);
	expect(&w, "r");
	assert_int_equal(sl_client_post(w.c, &forget), 0);
	expect(&w, "n");
	answer_size(ask(&w, FUSE_GETATTR), 2000);
	expect(&w, "a");
	end(&w);
}

/* What is not answered when it ends is not leaked. */
static void test_end(void **state)
{
	(void)state;
	struct world w;
	begin(&w);
	struct sl_req *read = ask(&w, FUSE_READ), *attr = ask(&w, FUSE_GETATTR);
	answer_size(attr, 2000);
	sl_client_free(w.c);
	pthread_join(w.th, NULL);
	sl_reply_err(read, -EIO);
	sl_server_free(w.s);
	sl_transport_free(w.t);
	assert_string_equal(w.log, "!!");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_dropped_first),
	    cmocka_unit_test(test_read_under_way),
	    cmocka_unit_test(test_forgotten),
	    cmocka_unit_test(test_end),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
