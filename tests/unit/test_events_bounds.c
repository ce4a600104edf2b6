/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What one side of remote fsnotify may do to the other. If this fails a client hears of what it has not
 * marked, misses what happened while it marked, or takes more than its share; or a server's nonsense is
 * believed. suite: threads
 */
#include "events_fixture.h"

#include <signal.h>

#include "serve/own.h"
#include "wire/client.h"
#include "wire/fsnotify.h"

#define ROOT FUSE_ROOT_ID
#define MASK (SL_CHANGE_MASK | FAN_ONDIR | FAN_EVENT_ON_CHILD)

/* ---- nothing between the mark and the listing ---- */

struct maker {
	struct fx *x;
	_Atomic bool stop;
	unsigned n;
};

static void *make(void *arg)
{
	struct maker *m = arg;
	char name[32];
	for (; !m->stop && m->n < 3000; m->n++) {
		snprintf(name, sizeof(name), "d/%06u", m->n);
		must(mknodat(m->x->dir, name, S_IFREG | 0600, 0) == 0);
	}
	return NULL;
}

/* Names are numbers: those below @n that were listed, or that are told to have been created in "d". */
static bool *known_names(const struct sl_oreq *r, struct ear *ear, unsigned n)
{
	static const char told[] = "create d/";
	bool *known = calloc(n + 1, sizeof(*known));
	assert_non_null(known);
	for (size_t i = 0; i < r->nentries; i++) {
		unsigned long k = strtoul(r->entries[i].name, NULL, 10);
		known[k < n ? k : n] = true;
	}
	pthread_mutex_lock(&ear->lock);
	for (const char *p = ear->text; (p = strstr(p, told)); p += strlen(told)) {
		unsigned long k = strtoul(p + strlen(told), NULL, 10);
		known[k < n ? k : n] = true;
	}
	pthread_mutex_unlock(&ear->lock);
	return known;
}

/* A directory that grows all the time while it is marked and listed: each name is in the listing or told. */
static void test_no_gap(void **state)
{
	struct fx *x = *state;
	struct ear *ear = &x->ear;
	listen_with(x, ear);
	mark(ear, "");
	for (int round = 0; round < 20; round++) {
		assert_int_equal(mkdirat(x->dir, "d", 0755), 0);
		struct maker m = {.x = x};
		pthread_t t;
		assert_int_equal(pthread_create(&t, NULL, make, &m), 0);
		struct sl_oreq r = {.op = SL_OREQ_LIST, .place = "d", .mark = true, .fresh = true};
		assert_int_equal(sl_origin_call(ear->o, &r), 0);
		assert_true(r.marked);
		m.stop = true;
		pthread_join(t, NULL);
		put(x, "d/last", "x");
		wait_for(ear, "close d/last\n");
		bool *known = known_names(&r, ear, m.n);
		for (unsigned i = 0; i < m.n; i++) {
			if (!known[i])
				print_error("%06u of %u was neither listed nor told\n", i, m.n);
			assert_true(known[i]);
		}
		free(known);
		sl_oreq_fini(&r);
		char dir[96];
		snprintf(dir, sizeof(dir), "%s/d", x->tree);
		assert_int_equal(sl_remove_tree(AT_FDCWD, dir), 0);
		/* The next one is another directory. */
		wait_for(ear, "delete/ d\n");
		forget_heard(ear);
	}
}

/* ---- clients of the server ---- */

struct raw {
	struct sl_client *c;
	pthread_mutex_t lock;
	_Atomic unsigned n, overflows; /* after what they count */
	struct sl_fsnotify_msg last;
	char name[256];
	_Atomic bool block; /* do not read any more */
};

static int raw_notify(void *arg, int code, const void *data, size_t len)
{
	struct raw *w = arg;
	while (w->block)
		sched_yield();
	pthread_mutex_lock(&w->lock);
	must(code == FUSE_NOTIFY_FSNOTIFY);
	must(sl_fsnotify_parse(data, len, &w->last) == 0);
	memcpy(w->name, w->last.part[0].name, w->last.part[0].namelen);
	w->name[w->last.part[0].namelen] = '\0';
	w->n++;
	w->overflows += w->last.overflow;
	pthread_mutex_unlock(&w->lock);
	return 0;
}

static void raw_connect(struct fx *x, struct raw *w, uint64_t flags)
{
	struct sl_transport *t;
	int fd = sl_unix_connect(x->sock);
	assert_true(fd >= 0);
	assert_int_equal(sl_transport_new(SL_TRANSPORT_STREAM, fd, fd, &t), 0);
	*w = (struct raw){0};
	pthread_mutex_init(&w->lock, NULL);
	const struct sl_client_config cfg = {.want_flags = flags, .notify = raw_notify, .arg = w};
	assert_int_equal(sl_client_new(t, &cfg, &w->c), 0);
}

static int raw_mark(struct raw *w, uint64_t id, uint64_t mask, uint32_t flags, struct fuse_fsnotify_out *out)
{
	struct sl_msg_out m;
	struct sl_call c = {.opcode = FUSE_FSNOTIFY, .nodeid = id};
	c.in.fsnotify = (struct fuse_fsnotify_in){.mask = mask, .flags = flags};
	int r = sl_client_call_sync(w->c, &c, &m, NULL);
	if (r == 0 && out)
		*out = m.out.fsnotify;
	return r;
}

static uint64_t raw_lookup(struct raw *w, uint64_t dir, const char *name)
{
	struct sl_msg_out m;
	struct sl_call c = {.opcode = FUSE_LOOKUP, .nodeid = dir, .name = name};
	assert_int_equal(sl_client_call_sync(w->c, &c, &m, NULL), 0);
	return m.out.entry.nodeid;
}

static void raw_wait(struct raw *w, unsigned n)
{
	uint64_t end = sl_now() + PATIENCE;
	for (unsigned have = 0; have < n;) {
		must(sl_now() < end);
		sched_yield();
		pthread_mutex_lock(&w->lock);
		have = w->n;
		pthread_mutex_unlock(&w->lock);
	}
}

/* Until the last that was heard is about @name. */
static void raw_wait_name(struct raw *w, const char *name)
{
	uint64_t end = sl_now() + PATIENCE;
	for (bool is = false; !is;) {
		must(sl_now() < end);
		sched_yield();
		pthread_mutex_lock(&w->lock);
		is = !strcmp(w->name, name);
		pthread_mutex_unlock(&w->lock);
	}
}

#define EVENTS (FUSE_FSNOTIFY_SUPPORT | SL_FUSE_EVENT_STATE)

/* Of the last notification that is an event, and not only a state. */
static uint64_t raw_last_mask(struct raw *w)
{
	uint64_t until = sl_now() + PATIENCE, mask = 0;
	while (!mask) {
		must(sl_now() < until);
		pthread_mutex_lock(&w->lock);
		mask = w->last.mask;
		pthread_mutex_unlock(&w->lock);
		sched_yield();
	}
	return mask;
}

/* Who asks whether all is told has the answer after it is. */
static void test_told(void **state)
{
	enum { N = 1000 };
	struct fx *x = *state;
	struct raw w;
	struct fuse_fsnotify_out out;
	raw_connect(x, &w, EVENTS);
	assert_int_equal(raw_mark(&w, ROOT, MASK, 0, NULL), 0);
	for (unsigned i = 1; i <= 3; i++) {
		for (unsigned k = 0; k < N; k++) {
			char name[32];
			snprintf(name, sizeof(name), "%u-%u", i, k);
			assert_int_equal(mkdirat(x->dir, name, 0755), 0);
		}
		assert_int_equal(raw_mark(&w, 0, 0, SL_FSNOTIFY_TOLD, &out), 0);
		assert_true(out.seq > i * N);
		raw_wait(&w, i * N);
	}
	sl_client_free(w.c);
}

/* What may be asked for, and what not. */
static void test_requests(void **state)
{
	struct fx *x = *state;
	struct raw w;
	struct fuse_fsnotify_out out;
	put(x, "f", "x");
	assert_int_equal(mkdirat(x->dir, "d", 0755), 0);
	assert_int_equal(mkdirat(x->dir, "e", 0755), 0);
	raw_connect(x, &w, 0);
	assert_int_equal(raw_mark(&w, ROOT, MASK, 0, NULL), -ENOSYS); /* not agreed on */
	sl_client_free(w.c);
	raw_connect(x, &w, SL_FUSE_EVENT_STATE);
	assert_false(sl_client_flags(w.c) & SL_FUSE_EVENT_STATE); /* only with the other one */
	sl_client_free(w.c);
	raw_connect(x, &w, EVENTS);
	uint64_t d = raw_lookup(&w, ROOT, "d"), f = raw_lookup(&w, ROOT, "f");
	assert_int_equal(raw_mark(&w, f, MASK, 0, NULL), -ENOTDIR);
	assert_int_equal(raw_mark(&w, 999, MASK, 0, NULL), -ESTALE);
	assert_int_equal(raw_mark(&w, 0, MASK, 0, NULL), -ESTALE);
	assert_int_equal(raw_mark(&w, d, FAN_ONDIR, 0, NULL), -EINVAL); /* of nothing */
	assert_int_equal(raw_mark(&w, d, 1ull << 63, 0, NULL), -EINVAL);
	assert_int_equal(raw_mark(&w, d, MASK, 4, NULL), -EINVAL);
	assert_int_equal(raw_mark(&w, d, 0, SL_FSNOTIFY_TOLD, NULL), -EINVAL);
	assert_int_equal(raw_mark(&w, 0, 1, SL_FSNOTIFY_TOLD, NULL), -EINVAL);
	assert_int_equal(raw_mark(&w, 0, 0, SL_FSNOTIFY_TOLD, &out), 0); /* nothing was marked */
	assert_int_equal(out.seq, 1);
	assert_int_equal(raw_mark(&w, d, 1, SL_FSNOTIFY_ACK, NULL), -EINVAL);
	assert_int_equal(raw_mark(&w, 0, 1000, SL_FSNOTIFY_ACK, NULL), -EINVAL); /* never was sent */
	assert_int_equal(raw_mark(&w, 0, 1, SL_FSNOTIFY_ACK, &out), 0);
	assert_int_equal(out.seq, 1);
	assert_int_equal(raw_mark(&w, d, 0, 0, NULL), 0); /* there was none */
	assert_int_equal(raw_mark(&w, d, MASK | 1ull << 40, 0, &out), 0);
	assert_int_equal(out.mask, MASK);
	put(x, "d/a", "x");
	raw_wait(&w, 1);
	raw_wait_name(&w, "a");
	/* Only what was asked for, and only while it is. */
	assert_int_equal(raw_mark(&w, d, FAN_DELETE, 0, NULL), 0);
	put(x, "d/b", "x");
	assert_int_equal(unlinkat(x->dir, "d/b", 0), 0);
	raw_wait_name(&w, "b"); /* after what still came of a */
	assert_int_equal(raw_last_mask(&w), FAN_DELETE);
	assert_int_equal(raw_mark(&w, d, 0, 0, NULL), 0);
	put(x, "d/c", "x");
	uint64_t e = raw_lookup(&w, ROOT, "e");
	assert_int_equal(raw_mark(&w, e, MASK, 0, NULL), 0);
	put(x, "e/x", "x");
	raw_wait_name(&w, "x");
	/* A node that is forgotten has no mark any more. */
	struct sl_call fg = {.opcode = FUSE_FORGET, .nodeid = e, .in.forget.nlookup = 1};
	assert_int_equal(sl_client_post(w.c, &fg), 0);
	uint64_t end = sl_now() + PATIENCE;
	while (raw_mark(&w, e, FAN_DELETE, 0, NULL) != -ESTALE)
		must(sl_now() < end);
	assert_int_equal(raw_mark(&w, d, MASK, 0, NULL), 0);
	assert_int_equal(unlinkat(x->dir, "e/x", 0), 0);
	put(x, "d/end", "x");
	raw_wait_name(&w, "end");
	assert_int_not_equal(w.last.mask & FAN_DELETE, FAN_DELETE);
	sl_client_free(w.c);
}

/* Marks, of which there are so many and no more; over and over is no more than once. */
static void test_marks(void **state)
{
	struct fx *x = *state;
	struct raw w;
	char name[32];
	server_stop(x);
	x->cfg.max_marks = 3;
	server_start(x);
	raw_connect(x, &w, EVENTS);
	uint64_t ids[4];
	for (int i = 0; i < 4; i++) {
		snprintf(name, sizeof(name), "d%d", i);
		assert_int_equal(mkdirat(x->dir, name, 0755), 0);
		ids[i] = raw_lookup(&w, ROOT, name);
		assert_int_equal(raw_mark(&w, ids[i], MASK, 0, NULL), i < 3 ? 0 : -ENOSPC);
	}
	for (int i = 0; i < 5000; i++) {
		assert_int_equal(raw_mark(&w, ids[0], 0, 0, NULL), 0);
		assert_int_equal(raw_mark(&w, ids[0], MASK, 0, NULL), 0);
	}
	assert_int_equal(raw_mark(&w, ids[3], MASK, 0, NULL), -ENOSPC);
	assert_int_equal(raw_mark(&w, ids[1], 0, 0, NULL), 0);
	assert_int_equal(raw_mark(&w, ids[3], MASK, 0, NULL), 0);
	put(x, "d0/a", "x");
	raw_wait(&w, 1);
	sl_client_free(w.c);
}

/* One that does not read is told that it has missed something, has no marks then, and harms nobody. */
static void test_slow(void **state)
{
	struct fx *x = *state;
	struct ear *ear = &x->ear;
	struct raw w;
	server_stop(x);
	x->cfg.max_events = 1000;
	server_start(x);
	assert_int_equal(mkdirat(x->dir, "d", 0755), 0);
	raw_connect(x, &w, EVENTS);
	assert_int_equal(raw_mark(&w, raw_lookup(&w, ROOT, "d"), MASK, 0, NULL), 0);
	listen_with(x, ear);
	mark(ear, "d");
	w.block = true;
	unsigned made = 0;
	char name[32];
	for (int i = 0; i < 40; i++) { /* in steps that the good one can follow */
		for (int k = 0; k < 400; k++, made++) {
			snprintf(name, sizeof(name), "d/%06u", made);
			assert_int_equal(mknodat(x->dir, name, S_IFREG | 0600, 0), 0);
		}
		snprintf(name, sizeof(name), "create d/%06u\n", made - 1);
		wait_for(ear, name);
	}
	pthread_mutex_lock(&ear->lock);
	assert_int_equal(ear->lost, 0);
	assert_int_equal(ear->n, made);
	pthread_mutex_unlock(&ear->lock);
	w.block = false;
	uint64_t end = sl_now() + PATIENCE;
	while (!w.overflows)
		must(sl_now() < end);
	unsigned n = w.n;
	assert_true(n < made);
	assert_true(w.last.overflow);
	put(x, "d/more", "x");
	wait_for(ear, "close d/more\n");
	assert_int_equal(w.n, n);
	assert_int_equal(w.overflows, 1);
	/* From here on it is as any other. */
	assert_int_equal(raw_mark(&w, raw_lookup(&w, ROOT, "d"), MASK, 0, NULL), 0);
	put(x, "d/again", "x");
	raw_wait(&w, n + 1);
	raw_wait_name(&w, "again");
	sl_client_free(w.c);
}

/* What a client changes itself it is not told of; the others are. */
static void test_own(void **state)
{
	struct fx *x = *state;
	struct ear *ear = &x->ear;
	struct raw w;
	server_stop(x);
	x->cfg.writable = true;
	server_start(x);
	raw_connect(x, &w, EVENTS);
	assert_int_equal(raw_mark(&w, ROOT, MASK, 0, NULL), 0);
	listen_with(x, ear);
	mark(ear, "");
	for (int i = 0; i < 50; i++) {
		char name[16];
		snprintf(name, sizeof(name), "own%d", i);
		struct sl_call c = {.opcode = FUSE_MKDIR, .nodeid = ROOT, .name = name};
		c.in.mkdir.mode = 0755;
		assert_int_equal(sl_client_call_sync(w.c, &c, NULL, NULL), 0);
	}
	wait_for(ear, "create/ own49\n");
	put(x, "others", "x");
	raw_wait(&w, 1);
	wait_for(ear, "close others\n");
	pthread_mutex_lock(&w.lock);
	assert_string_equal(w.name, "others");
	pthread_mutex_unlock(&w.lock);
	sl_client_free(w.c);
}

/* ---- a hostile server ---- */

struct bad {
	int fd; /* of the listener */
	const void *body;
	size_t len;
	unsigned times;
	_Atomic bool ended; /* the client hung up */
};

static void answer(int fd, uint64_t unique, int err, const void *data, size_t n)
{
	struct fuse_out_header h = {.len = (uint32_t)(sizeof(h) + n), .error = err, .unique = unique};
	struct iovec iov[2] = {{&h, sizeof(h)}, {(void *)data, n}};
	(void)sl_writev_full(fd, iov, n ? 2 : 1);
}

/* Says what it is asked, and after the first mark what the test wants. */
static void *bad_server(void *arg)
{
	struct bad *b = arg;
	int fd = accept4(b->fd, NULL, NULL, SOCK_CLOEXEC);
	char buf[8192];
	struct fuse_in_header h;
	const struct fuse_attr_out root = {.attr = {.ino = 2, .mode = S_IFDIR | 0755, .nlink = 2}};
	const struct fuse_init_out init = {.major = FUSE_KERNEL_VERSION,
					   .minor = FUSE_KERNEL_MINOR_VERSION,
					   .flags = FUSE_DO_READDIRPLUS | FUSE_MAX_PAGES | FUSE_INIT_EXT,
					   .flags2 = (uint32_t)(EVENTS >> 32),
					   .max_write = 65536,
					   .max_pages = 16};
	const struct fuse_fsnotify_out marked = {.seq = 1, .mask = MASK};
	while (sl_read_full(fd, &h, sizeof(h)) == 0 && h.len <= sizeof(buf) &&
	       sl_read_full(fd, buf, h.len - sizeof(h)) == 0) {
		switch (h.opcode) {
		case FUSE_INIT:
			answer(fd, h.unique, 0, &init, sizeof(init));
			break;
		case FUSE_GETATTR:
			answer(fd, h.unique, 0, &root, sizeof(root));
			break;
		case FUSE_FSNOTIFY:
			answer(fd, h.unique, 0, &marked, sizeof(marked));
			for (unsigned i = 0; i < b->times; i++)
				answer(fd, 0, FUSE_NOTIFY_FSNOTIFY, b->body, b->len);
			break;
		case FUSE_READDIRPLUS:
			answer(fd, h.unique, 0, NULL, 0);
			break;
		default:
			answer(fd, h.unique, -ENOSYS, NULL, 0);
		}
	}
	b->ended = true;
	close(fd);
	return NULL;
}

static void refused(struct sl_oreq *q)
{
	sl_oreq_fini(q);
	free(q);
}

static void refuse(struct fx *x, const void *body, size_t len, unsigned times)
{
	char sock[80], spec[96];
	struct ear ear = {0};
	snprintf(sock, sizeof(sock), "%s/bad", x->base);
	snprintf(spec, sizeof(spec), "unix:%s", sock);
	struct bad b = {.fd = sl_unix_listen(sock, 0600), .body = body, .len = len, .times = times};
	pthread_t t;
	assert_true(b.fd >= 0);
	assert_int_equal(pthread_create(&t, NULL, bad_server, &b), 0);
	char was[96];
	memcpy(was, x->spec, sizeof(was));
	memcpy(x->spec, spec, sizeof(spec));
	listen_with(x, &ear);
	memcpy(x->spec, was, sizeof(was));
	close(b.fd); /* nobody answers a second time */
	unlink(sock);
	/* It waits for its deadline, or for the end: the connection is ended under it. */
	struct sl_oreq *q = calloc(1, sizeof(*q));
	*q = (struct sl_oreq){.op = SL_OREQ_LIST, .place = "", .mark = true, .done = refused};
	sl_origin_submit(ear.o, q);
	uint64_t end = sl_now() + PATIENCE;
	while (!b.ended) {
		if (sl_now() > end) {
			print_error("a connection with nonsense on it goes on\n");
			abort();
		}
		sched_yield();
	}
	pthread_join(t, NULL);
	pthread_mutex_lock(&ear.lock);
	assert_int_equal(ear.n - ear.lost, times > 1 ? times - 1 : 0);
	pthread_mutex_unlock(&ear.lock);
	deafen(&ear);
}

static void refuse_msg(struct fx *x, struct sl_fsnotify_msg m, unsigned times)
{
	char buf[1024];
	size_t n = sl_fsnotify_size(&m);
	assert_true(n <= sizeof(buf));
	sl_fsnotify_build(&m, buf);
	refuse(x, buf, n, times);
}

static void test_hostile_server(void **state)
{
	struct fx *x = *state;
	const struct sl_fsnotify_msg good = {
	    .seq = 1, .mask = FAN_CREATE, .nparts = 1, .part = {{.nodeid = ROOT, .name = "a", .namelen = 1}}};
	struct sl_fsnotify_msg m;
	refuse(x, "xx", 2, 1);
	refuse_msg(x, good, 2); /* the second has the number of the first */
	m = good;
	m.seq = 2;
	refuse_msg(x, m, 1);
	m = good;
	m.part[0].nodeid = 77; /* never was given out */
	refuse_msg(x, m, 1);
	m = good;
	m.part[0].name = "a/b";
	m.part[0].namelen = 3;
	refuse_msg(x, m, 1);
	m = good;
	m.mask = FAN_CREATE | FAN_DELETE; /* two at once */
	refuse_msg(x, m, 1);
	m = good;
	m.mask = FAN_DELETE_SELF;
	refuse_msg(x, m, 1);
	m = good;
	m.part[0].has_state = true;
	m.part[0].entry = (struct fuse_entry_out){.nodeid = 5, .attr = {.mode = 0777777}};
	refuse_msg(x, m, 1);
	m = (struct sl_fsnotify_msg){.seq = 0, .overflow = true, .nparts = 1};
	refuse_msg(x, m, 1);
	/* A directory into itself. */
	m = (struct sl_fsnotify_msg){
	    .seq = 1,
	    .mask = FAN_RENAME | FAN_ONDIR,
	    .nparts = 2,
	    .part = {{.nodeid = ROOT, .name = "a", .namelen = 1}, {.nodeid = 88, .name = "b", .namelen = 1}}};
	refuse_msg(x, m, 1);
}

/* Notes of changes that nobody hears of do not gather: the oldest go, but for those that are being made. */
static void test_notes(void **state)
{
	(void)state;
	struct sl_own *own = NULL;
	struct sl_evid dir = {.ino = 5, .generation = 6};
	const unsigned many = 100000;
	char name[32];
	assert_int_equal(sl_own_new(&own), 0);
	for (unsigned held = 0; held < 2; held++) {
		uint64_t first = 0;
		for (unsigned i = 0; i < many; i++) {
			snprintf(name, sizeof(name), "%u-%u", held, i);
			struct sl_own_note v = {.dir = dir, .name = name, .mask = FAN_CREATE};
			uint64_t id = sl_own_begin(own, &v, 1);
			if (i == 0)
				first = id;
			if (i > 0 || !held)
				sl_own_done(own, id, true);
		}
		unsigned theirs = 0;
		for (unsigned i = 0; i < many; i++) {
			snprintf(name, sizeof(name), "%u-%u", held, i);
			struct sl_change c = {.mask = FAN_CREATE, .dir = dir, .name = name};
			bool is = sl_own_filter(own, &c) != 0;
			theirs += is;
			if (i == 0) /* while one is being made those after it stay as well */
				assert_int_equal(is, !held);
			if (i == many - 1)
				assert_false(is);
		}
		assert_int_equal(theirs, held ? 0 : many - 65536);
		sl_own_done(own, first, true);
		sl_own_heard(own, UINT64_MAX);
	}
	sl_own_free(own);
}

int main(void)
{
	signal(SIGPIPE, SIG_IGN);
	own_mount_namespace();
	const char *only = getenv("ONLY");
	if (only)
		cmocka_set_test_filter(only);
	const struct CMUnitTest tests[] = {BOTH(no_gap),
					   BOTH(told),
					   BOTH(requests),
					   BOTH(marks),
					   BOTH(slow),
					   T(own, fanotify),
					   T(hostile_server, inotify),
					   cmocka_unit_test(test_notes)};
	return cmocka_run_group_tests_name("events_bounds", tests, NULL, NULL);
}
