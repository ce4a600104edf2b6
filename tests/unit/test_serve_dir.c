/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The exporter's listings. If this fails, a clone of a directory has too few names, or too many.
 * suite: threads
 */
#include "serve_fixture.h"

struct seen {
	struct fixture *f;
	unsigned char *count; /* per number of a name "fNNN" */
	size_t n, max, bare;  /* @bare: without a node */
	bool plus;
};

static void see(const struct sl_dirent *d, void *arg)
{
	struct seen *s = arg;
	unsigned i;
	char name[16];
	if (d->name[0] == '.') {
		assert_int_equal(d->entry.nodeid, 0);
		s->bare += 1000000;
		return;
	}
	assert_true(d->namelen < sizeof(name));
	memcpy(name, d->name, d->namelen);
	name[d->namelen] = '\0';
	assert_int_equal(sscanf(name, "f%u", &i), 1);
	assert_true(i < s->max);
	s->count[i]++;
	s->n++;
	if (s->plus && !d->entry.nodeid)
		s->bare++;
	if (d->entry.nodeid) {
		assert_int_equal(d->entry.attr.ino, d->ino);
		assert_int_equal(d->entry.attr.size, i % 3);
		assert_int_equal(d->type, DT_REG);
	}
}

static void test_large_directory(void **state)
{
	struct fixture *f = *state;
	enum { N = 20000 };
	make_many(f, N);
	const size_t sizes[] = {4096, 65536, 1 << 20};
	for (int plus = 0; plus < 2; plus++)
		for (size_t k = 0; k < SL_ARRAY_SIZE(sizes); k++) {
			struct seen s = {.f = f, .count = calloc(N, 1), .max = N, .plus = plus};
			unsigned replies = 0;
			assert_int_equal(list(f, ROOT, plus, sizes[k], see, &s, &replies), 0);
			assert_int_equal(s.n, N);
			assert_int_equal(s.bare, 2000000);
			assert_true(replies >= N * 24 / sizes[k]);
			for (size_t i = 0; i < N; i++)
				assert_int_equal(s.count[i], 1);
			free(s.count);
		}
	/* Each listing with attributes counted one lookup of each name. */
	uint64_t id = node(f, ROOT, "f77");
	forget(f, id, 3);
	for (int i = 0; i < 50; i++)
		assert_int_equal(getattr(f, id, NULL), 0);
	forget(f, id, 1);
	wait_forgotten(f, id);
}

static void test_listing_restarts(void **state)
{
	struct fixture *f = *state;
	make_many(f, 500);
	uint64_t fh = 0, offs[4096];
	char names[4096][16], b[1024];
	size_t n = 0;
	ssize_t k;
	assert_int_equal(opendir_(f, ROOT, &fh), 0);
	uint64_t off = 0;
	while ((k = pull(f, FUSE_READDIR, ROOT, fh, off, b, sizeof(b))) > 0) {
		const void *p = b;
		size_t left = (size_t)k;
		struct sl_dirent d;
		while (sl_dirent_next(&p, &left, false, &d) > 0) {
			assert_true(n < 4096);
			snprintf(names[n], 16, "%.*s", (int)d.namelen, d.name);
			offs[n++] = off = d.off;
		}
	}
	assert_int_equal(n, 502);
	/* From any cookie that was given out, in any order, the same names follow. */
	for (size_t i = 0; i < n - 1; i += 7) {
		size_t j = (i * 31) % (n - 1);
		assert_true(pull(f, FUSE_READDIRPLUS, ROOT, fh, offs[j], b, sizeof(b)) > 0);
		const void *p = b;
		size_t left = 512;
		struct sl_dirent d;
		assert_int_equal(sl_dirent_next(&p, &left, true, &d), 1);
		assert_int_equal(strlen(names[j + 1]), d.namelen);
		assert_memory_equal(d.name, names[j + 1], d.namelen);
	}
	/* Cookies that never were are the filesystem's to judge; the answer is a listing or an error. */
	const uint64_t bad[] = {UINT64_MAX, 1ull << 63, INT64_MAX, 3};
	for (size_t i = 0; i < SL_ARRAY_SIZE(bad); i++)
		(void)pull(f, FUSE_READDIR, ROOT, fh, bad[i], b, sizeof(b));
	/* Too small for a record is an error: nothing would mean the end. */
	assert_int_equal(pull(f, FUSE_READDIR, ROOT, fh, 0, b, 20), -EINVAL);
	assert_int_equal(pull(f, FUSE_READDIRPLUS, ROOT, fh, 0, b, 100), -EINVAL);
	assert_int_equal(releasedir(f, ROOT, fh), 0);
}

static void test_listing_beyond_bound(void **state)
{
	struct fixture *f = *state;
	const struct sl_export_config cfg = {.max_nodes = 50};
	again(f, &cfg, DEFAULT_FLAGS);
	make_many(f, 100);
	struct seen s = {.f = f, .count = calloc(100, 1), .max = 100, .plus = true};
	assert_int_equal(list(f, ROOT, true, 8192, see, &s, NULL), 0);
	assert_int_equal(s.n, 100);
	assert_int_equal(s.bare, 2000000 + 51);
	free(s.count);
}

struct any {
	unsigned char seen[256];
	size_t n;
};

static void see_byte(const struct sl_dirent *d, void *arg)
{
	struct any *a = arg;
	if (d->namelen == 3 && d->name[0] == 'x') {
		a->seen[(unsigned char)d->name[1]]++;
		a->n++;
	}
	if (d->namelen == 255)
		a->seen[0]++;
}

static void test_names_of_any_bytes(void **state)
{
	struct fixture *f = *state;
	char name[256];
	size_t n = 0;
	for (int i = 1; i < 256; i++) {
		if (i == '/')
			continue;
		snprintf(name, sizeof(name), "x%cy", i);
		put(f->dir, name, "x");
		node(f, ROOT, name);
		n++;
	}
	memset(name, 0xff, 255);
	name[255] = '\0';
	put(f->dir, name, "x");
	node(f, ROOT, name);
	struct any a = {0};
	assert_int_equal(list(f, ROOT, true, 8192, see_byte, &a, NULL), 0);
	assert_int_equal(a.n, n);
	for (int i = 0; i < 256; i++)
		assert_int_equal(a.seen[i], i != '/');
}

struct churn {
	struct fixture *f;
	atomic_bool stop;
};

static void *churn(void *arg)
{
	struct churn *c = arg;
	char name[32], other[32];
	for (unsigned i = 0; !c->stop; i++) {
		snprintf(name, sizeof(name), "t%u", i % 64);
		snprintf(other, sizeof(other), "t%u", (i + 7) % 64);
		if (i % 3 == 0)
			renameat(c->f->dir, name, c->f->dir, other);
		else if (i % 3 == 1)
			unlinkat(c->f->dir, name, 0);
		int fd = openat(c->f->dir, other, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
		if (fd >= 0) {
			sl_write_full(fd, "abc", 3);
			close(fd);
		}
	}
	return NULL;
}

static void see_churn(const struct sl_dirent *d, void *arg)
{
	struct any *a = arg;
	if (d->name[0] == 's')
		a->n++;
}

/* Files come and go under the listing and under reads: what stays is always listed, and no answer is a wrong
 * one. */
static void test_changes_meanwhile(void **state)
{
	struct fixture *f = *state;
	char name[32], b[16];
	for (int i = 0; i < 100; i++) {
		snprintf(name, sizeof(name), "s%d", i);
		put(f->dir, name, "x");
	}
	struct churn c = {.f = f};
	pthread_t th[2];
	for (int i = 0; i < 2; i++)
		pthread_create(&th[i], NULL, churn, &c);
	uint64_t end = sl_now() + SL_NS_PER_SEC;
	for (unsigned i = 0; sl_now() < end; i++) {
		struct any a = {0};
		assert_int_equal(list(f, ROOT, i % 2, 2048, see_churn, &a, NULL), 0);
		assert_int_equal(a.n, 100);
		struct fuse_entry_out e;
		snprintf(name, sizeof(name), "t%u", i % 64);
		int r = lookup(f, ROOT, name, &e);
		assert_true(r == 0 || r == -ENOENT);
		if (r == 0) {
			ssize_t n = reads(f, e.nodeid, 0, b, sizeof(b));
			assert_true(n == 0 || n == 3 || n == -ESTALE);
			forget(f, e.nodeid, 1);
		}
	}
	c.stop = true;
	for (int i = 0; i < 2; i++)
		pthread_join(th[i], NULL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    T(large_directory),	   T(listing_restarts),	 T(listing_beyond_bound),
	    T(names_of_any_bytes), T(changes_meanwhile),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
