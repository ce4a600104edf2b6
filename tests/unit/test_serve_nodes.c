/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What one client may hold of an exporter. If this fails, forgetting breaks nodes that are in use, or a
 * client can use up the exporter's memory and descriptors. suite: threads
 */
#include "serve_fixture.h"

/* ---- forgetting ---- */

static void test_forget(void **state)
{
	struct fixture *f = *state;
	struct fuse_entry_out e;
	assert_int_equal(mkdirat(f->dir, "d", 0755), 0);
	put(f->dir, "d/f", "x");
	uint64_t d = node(f, ROOT, "d"), id = node(f, d, "f");
	assert_int_equal(node(f, d, "f"), id);
	assert_int_equal(node(f, d, "f"), id);
	struct fuse_forget_one two[] = {{id, 1}, {id, 1}};
	struct sl_call c = {
	    .opcode = FUSE_BATCH_FORGET, .in.batch_forget.count = 2, .data = two, .data_len = sizeof(two)};
	assert_int_equal(sl_client_post(f->c, &c), 0);
	for (int i = 0; i < 200; i++) /* one of three is left */
		assert_int_equal(getattr(f, id, NULL), 0);
	/* A parent that is forgotten still holds the path of its children, but is unknown itself. */
	forget(f, d, 1);
	wait_forgotten(f, d);
	assert_int_equal(getattr(f, id, NULL), 0);
	assert_int_equal(lookup(f, d, "f", &e), -ESTALE);
	forget(f, id, 1);
	wait_forgotten(f, id);
	/* Numbers are never used again. */
	uint64_t d2 = node(f, ROOT, "d"), id2 = node(f, d2, "f");
	assert_true(d2 > id && id2 > d2);
	/* More than was given out is no more than all; twice is no more than once. */
	forget(f, id2, UINT64_MAX);
	wait_forgotten(f, id2);
	forget(f, id2, 1);
	forget(f, ROOT, UINT64_MAX);
	assert_int_equal(getattr(f, ROOT, NULL), 0);
	assert_int_equal(getattr(f, node(f, d2, "f"), NULL), 0);
}

static void test_node_bound(void **state)
{
	struct fixture *f = *state;
	const struct sl_export_config cfg = {.max_nodes = 4, .max_dirs = 2, .threads = 1};
	char name[16];
	struct fuse_entry_out e;
	again(f, &cfg, DEFAULT_FLAGS);
	for (int i = 0; i < 6; i++) {
		snprintf(name, sizeof(name), "f%d", i);
		put(f->dir, name, "x");
	}
	uint64_t first = node(f, ROOT, "f0");
	node(f, ROOT, "f1");
	node(f, ROOT, "f2");
	assert_int_equal(lookup(f, ROOT, "f3", &e), -ENFILE);
	assert_int_equal(node(f, ROOT, "f0"), first); /* what is there costs nothing */
	forget(f, first, 2);
	wait_forgotten(f, first);
	node(f, ROOT, "f3");
	assert_int_equal(lookup(f, ROOT, "f4", &e), -ENFILE);
	uint64_t fh[3] = {0};
	assert_int_equal(opendir_(f, ROOT, &fh[0]), 0);
	assert_int_equal(opendir_(f, ROOT, &fh[1]), 0);
	assert_int_equal(opendir_(f, ROOT, &fh[2]), -ENFILE);
	assert_int_equal(releasedir(f, ROOT, fh[0]), 0);
	assert_int_equal(opendir_(f, ROOT, &fh[2]), 0);
}

/* ---- many at a time ---- */

struct worker {
	struct fixture *f;
	unsigned seed;
	pthread_t thread;
	const char *failed;
};

static void *work(void *arg)
{
	struct worker *w = arg;
	struct fixture *f = w->f;
	for (int i = 0; i < 400 && !w->failed; i++) {
		unsigned k = (unsigned)rand_r(&w->seed) % 64;
		char name[32], b[16];
		struct fuse_entry_out e;
		snprintf(name, sizeof(name), "f%u", k);
		if (lookup(f, ROOT, name, &e) != 0)
			w->failed = "lookup";
		else if (reads(f, e.nodeid, 0, b, sizeof(b)) != (ssize_t)(k % 3))
			w->failed = "read";
		else if (getattr(f, e.nodeid, NULL) != 0)
			w->failed = "getattr";
		else
			forget(f, e.nodeid, 1);
	}
	return NULL;
}

/* Eight threads look up, read and forget the same files, with a file cache much smaller than their number. */
static void test_concurrent(void **state)
{
	struct fixture *f = *state;
	const struct sl_export_config cfg = {.max_files = 5, .threads = 8};
	again(f, &cfg, DEFAULT_FLAGS);
	make_many(f, 64);
	struct worker w[8];
	for (size_t i = 0; i < SL_ARRAY_SIZE(w); i++) {
		w[i] = (struct worker){.f = f, .seed = (unsigned)i};
		assert_int_equal(pthread_create(&w[i].thread, NULL, work, &w[i]), 0);
	}
	for (size_t i = 0; i < SL_ARRAY_SIZE(w); i++) {
		pthread_join(w[i].thread, NULL);
		assert_null(w[i].failed);
	}
}

static size_t open_descriptors(void)
{
	size_t n = 0;
	DIR *d = opendir("/proc/self/fd");
	while (readdir(d))
		n++;
	closedir(d);
	return n;
}

static void test_descriptors_are_few(void **state)
{
	struct fixture *f = *state;
	const struct sl_export_config cfg = {.max_files = 10};
	again(f, &cfg, DEFAULT_FLAGS);
	make_many(f, 1000);
	size_t before = open_descriptors();
	char name[32], b[8];
	for (int i = 0; i < 1000; i++) {
		snprintf(name, sizeof(name), "f%d", i);
		assert_int_equal(reads(f, node(f, ROOT, name), 0, b, sizeof(b)), i % 3);
	}
	assert_true(open_descriptors() <= before + 10);
	/* And after a while without reads, none. */
	uint64_t end = sl_now() + 60 * SL_NS_PER_SEC;
	while (open_descriptors() > before) {
		assert_true(sl_now() < end);
		poll(NULL, 0, 50);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    T(forget),
	    T(node_bound),
	    T(concurrent),
	    T(descriptors_are_few),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
