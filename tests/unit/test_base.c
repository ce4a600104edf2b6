/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The base helpers: lists, hash table, pool, sizes and durations, names, files, sockets. If this fails,
 * everything above stands on sand. (suite: threads)
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "base/fd.h"
#include "base/human.h"
#include "base/list.h"
#include "base/pool.h"
#include "base/time.h"

/* A private directory per test, as a descriptor and a path. */
struct dir {
	int fd;
	char path[256];
};

static int dir_setup(void **state)
{
	struct dir *d = calloc(1, sizeof(*d));
	const char *tmp = getenv("TMPDIR");
	snprintf(d->path, sizeof(d->path), "%s/sluice-base.XXXXXX", tmp && strlen(tmp) < 200 ? tmp : "/tmp");
	if (!mkdtemp(d->path))
		return -1;
	d->fd = open(d->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	*state = d;
	return d->fd < 0;
}

static int dir_teardown(void **state)
{
	struct dir *d = *state;
	close(d->fd);
	int r = sl_remove_tree(AT_FDCWD, d->path);
	free(d);
	return r;
}

static void test_list(void **state)
{
	(void)state;
	struct item {
		int v;
		struct sl_list l;
	} a = {.v = 1}, b = {.v = 2}, c = {.v = 3};
	struct sl_list h, g;
	sl_list_init(&h);
	sl_list_init(&g);
	assert_true(sl_list_empty(&h));
	sl_list_add_tail(&h, &a.l);
	sl_list_add_tail(&h, &b.l);
	sl_list_add(&h, &c.l);
	int want[] = {3, 1, 2}, i = 0;
	sl_list_for_each (it, &h)
		assert_int_equal(sl_list_entry(it, struct item, l)->v, want[i++]);
	assert_int_equal(i, 3);
	sl_list_del(&a.l);
	sl_list_del(&a.l); /* harmless */
	sl_list_add_tail(&g, &a.l);
	sl_list_splice(&g, &h);
	assert_true(sl_list_empty(&h));
	sl_list_splice(&g, &h); /* nothing to move */
	int want2[] = {1, 3, 2};
	i = 0;
	sl_list_for_each_safe (it, &g) {
		assert_int_equal(sl_list_entry(it, struct item, l)->v, want2[i++]);
		sl_list_del(it);
	}
	assert_int_equal(i, 3);
	assert_true(sl_list_empty(&g));
}

static void test_htab(void **state)
{
	(void)state;
	enum { N = 10000 };
	struct sl_htab t = {0};
	struct sl_hnode *n = calloc(N, sizeof(*n));
	size_t i, seen = 0;
	assert_null(sl_htab_find(&t, 1));
	assert_null(sl_htab_first(&t, &i));
	for (size_t k = 0; k < N; k++)
		assert_int_equal(sl_htab_add(&t, &n[k], (k / 2) << 32),
				 0); /* every key twice, low bits all zero */
	assert_int_equal(t.n, N);
	for (size_t k = 0; k < N / 2; k++) {
		struct sl_hnode *h = sl_htab_find(&t, k << 32);
		assert_non_null(h);
		assert_int_equal(h->key, k << 32);
		struct sl_hnode *o = sl_htab_next(h);
		assert_non_null(o);
		assert_ptr_not_equal(o, h);
		assert_int_equal(o->key, k << 32);
		assert_null(sl_htab_next(o));
	}
	for (struct sl_hnode *h = sl_htab_first(&t, &i); h; h = sl_htab_step(&t, &i, h))
		seen++;
	assert_int_equal(seen, N);
	for (size_t k = 0; k < N; k += 2)
		sl_htab_del(&t, &n[k]);
	assert_int_equal(t.n, N / 2);
	for (size_t k = 0; k < N / 2; k++)
		assert_ptr_equal(sl_htab_find(&t, k << 32), &n[2 * k + 1]);
	assert_null(sl_htab_find(&t, 1));
	sl_htab_fini(&t);
	assert_null(sl_htab_find(&t, 0));
	free(n);
}

struct counter {
	struct sl_work w;
	struct sl_pool *pool;
	atomic_int *runs;
	int again; /* how often to queue another one */
	int *order;
};

static void count_work(struct sl_work *w)
{
	struct counter *c = sl_container_of(w, struct counter, w);
	int k = atomic_fetch_add(c->runs, 1);
	if (c->order)
		c->order[k] = c->again;
	else if (c->again-- > 0) {
		sl_pool_push(c->pool, &c->w);
		return;
	}
	free(c);
}

static void *push_many(void *arg)
{
	struct counter *proto = arg;
	for (int i = 0; i < 1000; i++) {
		struct counter *c = malloc(sizeof(*c));
		*c = *proto;
		sl_pool_push(c->pool, &c->w);
	}
	return NULL;
}

/* Everything that was queued runs once, also what work queues while the pool is being freed. */
static void test_pool(void **state)
{
	(void)state;
	for (unsigned threads = 1; threads <= 8; threads *= 2) {
		struct sl_pool *p;
		atomic_int runs = 0;
		assert_int_equal(sl_pool_new(threads, "a-rather-long-name", &p), 0);
		struct counter proto = {.w.run = count_work, .pool = p, .runs = &runs, .again = 2};
		pthread_t th[4];
		for (int i = 0; i < 4; i++)
			pthread_create(&th[i], NULL, push_many, &proto);
		for (int i = 0; i < 4; i++)
			pthread_join(th[i], NULL);
		sl_pool_free(p);
		assert_int_equal(runs, 4 * 1000 * 3);
	}
	sl_pool_free(NULL);
}

static void test_pool_order(void **state)
{
	(void)state;
	enum { N = 500 };
	struct sl_pool *p;
	atomic_int runs = 0;
	int order[N];
	assert_int_equal(sl_pool_new(1, "one", &p), 0);
	for (int i = 0; i < N; i++) {
		struct counter *c = malloc(sizeof(*c));
		*c = (struct counter){
		    .w.run = count_work, .pool = p, .runs = &runs, .again = i, .order = order};
		sl_pool_push(p, &c->w);
	}
	sl_pool_free(p);
	assert_int_equal(runs, N);
	for (int i = 0; i < N; i++)
		assert_int_equal(order[i], i);
}

static void test_parse_size(void **state)
{
	(void)state;
	static const struct {
		const char *s;
		int r;
		uint64_t v;
	} t[] = {
	    {"0", 0, 0},
	    {"4096", 0, 4096},
	    {"4k", 0, 4096},
	    {"4K", 0, 4096},
	    {"4KiB", 0, 4096},
	    {"4kb", 0, 4096},
	    {"1.5M", 0, 3 << 19},
	    {"10G", 0, 10ull << 30},
	    {"2TiB", 0, 2ull << 40},
	    {"1P", 0, 1ull << 50},
	    {"7E", 0, 7ull << 60},
	    {"512B", 0, 512},
	    {"8E", -ERANGE, 0},
	    {"99999999999T", -ERANGE, 0},
	    {"", -EINVAL, 0},
	    {"k", -EINVAL, 0},
	    {"-1", -EINVAL, 0},
	    {"+1", -EINVAL, 0},
	    {" 1", -EINVAL, 0},
	    {"1x", -EINVAL, 0},
	    {"1kk", -EINVAL, 0},
	    {"1iB", -EINVAL, 0},
	    {"nan", -EINVAL, 0},
	    {"inf", -EINVAL, 0},
	    {".", -EINVAL, 0},
	    {"1.2.3", -EINVAL, 0},
	    {"1Bi", -EINVAL, 0},
	    {"0x10", -EINVAL, 0},
	    {"1e3", -EINVAL, 0},
	};
	for (size_t i = 0; i < SL_ARRAY_SIZE(t); i++) {
		uint64_t v = 77;
		int r = sl_parse_size(t[i].s, &v);
		if (r != t[i].r || (r == 0 && v != t[i].v))
			fail_msg("\"%s\": %d, %llu", t[i].s, r, (unsigned long long)v);
	}
}

static void test_parse_duration(void **state)
{
	(void)state;
	static const struct {
		const char *s;
		int r;
		uint64_t v;
	} t[] = {
	    {"90", 0, 90},
	    {"90s", 0, 90},
	    {"15m", 0, 900},
	    {"12h", 0, 43200},
	    {"7d", 0, 604800},
	    {"2w", 0, 1209600},
	    {"1.5h", 0, 5400},
	    {"0", 0, 0},
	    {"", -EINVAL, 0},
	    {"-1s", -EINVAL, 0},
	    {"1 parsec", -EINVAL, 0},
	    {"1ms", -EINVAL, 0},
	    {"999999999999999y", -ERANGE, 0},
	    {"1e3", -EINVAL, 0},
	    {"d", -EINVAL, 0},
	};
	for (size_t i = 0; i < SL_ARRAY_SIZE(t); i++) {
		uint64_t v = 77;
		int r = sl_parse_duration(t[i].s, &v);
		if (r != t[i].r || (r == 0 && v != t[i].v))
			fail_msg("\"%s\": %d, %llu", t[i].s, r, (unsigned long long)v);
	}
}

static void test_format(void **state)
{
	(void)state;
	char b[16];
	assert_string_equal(sl_format_size(b, 0), "0 B");
	assert_string_equal(sl_format_size(b, 512), "512 B");
	assert_string_equal(sl_format_size(b, 4096), "4.0 KiB");
	assert_string_equal(sl_format_size(b, 1288490189), "1.2 GiB");
	assert_string_equal(sl_format_size(b, UINT64_MAX), "16.0 EiB");
	assert_string_equal(sl_format_ns(b, 0), "0 s");
	assert_string_equal(sl_format_ns(b, 12 * SL_NS_PER_MS), "12 ms");
	assert_string_equal(sl_format_ns(b, 3400 * SL_NS_PER_MS), "3.4 s");
	assert_string_equal(sl_format_ns(b, 300 * SL_NS_PER_SEC), "5 min");
	assert_string_equal(sl_format_ns(b, 7560 * SL_NS_PER_SEC), "2.1 h");
	assert_true(strlen(sl_format_ns(b, UINT64_MAX)) < 16);
}

static void test_printable(void **state)
{
	(void)state;
	static const struct {
		const char *in;
		size_t len;
		const char *out;
	} t[] = {
	    {"plain", 5, "plain"},
	    {"", 0, ""},
	    {"a\nb\x1b[0m\x7f", 8, "a\\x0ab\\x1b[0m\\x7f"},
	    {"z\xc3\xa4h", 4, "z\xc3\xa4h"},
	    {"\xff\xfe", 2, "\\xff\\xfe"},
	    {"\xc3", 1, "\\xc3"},		    /* cut off */
	    {"\xc0\x80", 2, "\\xc0\\x80"},	    /* overlong */
	    {"\xed\xa0\x80", 3, "\\xed\\xa0\\x80"}, /* surrogate */
	    {"\xc2\x9b"
	     "m",
	     3, "\\xc2\\x9bm"}, /* CSI in one character */
	    {"\xf0\x9f\x98\x80", 4, "\xf0\x9f\x98\x80"},
	    {"\xf4\x90\x80\x80", 4, "\\xf4\\x90\\x80\\x80"},
	    {"a\\b", 3, "a\\x5cb"},
	    {"a\0b", 3, "a\\x00b"},
	};
	for (size_t i = 0; i < SL_ARRAY_SIZE(t); i++) {
		char *in = malloc(t[i].len ? t[i].len : 1); /* exact, so that ASan sees a read beyond */
		memcpy(in, t[i].in, t[i].len);
		_cleanup_free_ char *p = sl_printable(in, t[i].len);
		assert_string_equal(p, t[i].out);
		free(in);
	}
}

static void test_names(void **state)
{
	(void)state;
	char longest[257];
	memset(longest, 'x', sizeof(longest));
	assert_true(sl_name_valid("a", 1));
	assert_true(sl_name_valid("...", 3));
	assert_true(sl_name_valid("..a", 3));
	assert_true(sl_name_valid(".a", 2));
	assert_true(sl_name_valid(longest, 255));
	assert_false(sl_name_valid(longest, 256));
	assert_false(sl_name_valid("", 0));
	assert_false(sl_name_valid(".", 1));
	assert_false(sl_name_valid("..", 2));
	assert_false(sl_name_valid("a/b", 3));
	assert_false(sl_name_valid("a\0b", 3));
	_cleanup_free_ char *p = sl_path_join("a", "b"), *q = sl_path_join("", "b");
	assert_string_equal(p, "a/b");
	assert_string_equal(q, "b");
}

static void touch(struct dir *d, const char *name)
{
	assert_int_equal(mknodat(d->fd, name, S_IFREG | 0600, 0), 0);
}

static size_t count_entries(int dirfd)
{
	DIR *d = fdopendir(openat(dirfd, ".", O_RDONLY | O_DIRECTORY));
	size_t n = 0;
	for (struct dirent *e; (e = readdir(d));)
		n += e->d_name[0] != '.' || strlen(e->d_name) > 2;
	closedir(d);
	return n;
}

static void test_read_write_file(void **state)
{
	struct dir *d = *state;
	char *s;
	size_t n;
	assert_int_equal(sl_read_file(d->fd, "f", 100, &s, &n), -ENOENT);
	assert_int_equal(sl_write_file(d->fd, "f", "hello", 5, 0600), 0);
	assert_int_equal(sl_read_file(d->fd, "f", 5, &s, &n), 0);
	assert_int_equal(n, 5);
	assert_string_equal(s, "hello");
	free(s);
	assert_int_equal(sl_read_file(d->fd, "f", 4, &s, &n), -EFBIG);
	struct stat st;
	assert_int_equal(fstatat(d->fd, "f", &st, 0), 0);
	assert_int_equal(st.st_mode & 07777, 0600);
	assert_int_equal(symlinkat("f", d->fd, "l"), 0);
	assert_int_equal(sl_read_file(d->fd, "l", 5, &s, &n), -ELOOP);
	assert_int_equal(sl_write_file(d->fd, "no/such", "x", 1, 0600), -EINVAL);
	assert_int_equal(sl_write_file(d->fd, "f", "", 0, 0600), 0);
	assert_int_equal(sl_read_file(d->fd, "f", 5, &s, NULL), 0);
	assert_string_equal(s, "");
	free(s);
	/* A write that cannot be finished leaves the old content and nothing else. */
	assert_int_equal(mkdirat(d->fd, "dir", 0755), 0);
	assert_int_equal(sl_write_file(d->fd, "dir", "x", 1, 0600), -EISDIR);
	assert_int_equal(count_entries(d->fd), 3);
}

/* Whenever a reader looks, it sees one of the versions, whole. */
static void test_write_file_atomic(void **state)
{
	struct dir *d = *state;
	char buf[20000];
	memset(buf, 0, sizeof(buf));
	assert_int_equal(sl_write_file(d->fd, "f", buf, sizeof(buf), 0600), 0);
	int stop[2];
	assert_int_equal(pipe(stop), 0);
	pid_t pid = fork();
	if (pid == 0) {
		for (int v = 1;; v++) {
			memset(buf, v & 0x7f, sizeof(buf));
			if (sl_write_file(d->fd, "f", buf, sizeof(buf), 0600) < 0)
				_exit(1);
			char c;
			fcntl(stop[0], F_SETFL, O_NONBLOCK);
			close(stop[1]);
			if (read(stop[0], &c, 1) == 0)
				_exit(0);
		}
	}
	int wrong = 0, changes = 0, last = -1;
	uint64_t end = sl_now() + 20 * SL_NS_PER_SEC;
	while (changes < 30 && sl_now() < end) {
		char *s;
		size_t n;
		int r = sl_read_file(d->fd, "f", sizeof(buf), &s, &n);
		if (r < 0 || n != sizeof(buf) || memcmp(s, s + 1, n - 1) != 0) {
			wrong++;
			break;
		}
		changes += s[0] != last;
		last = s[0];
		free(s);
	}
	close(stop[1]);
	close(stop[0]);
	int st;
	waitpid(pid, &st, 0);
	assert_int_equal(st, 0);
	assert_int_equal(wrong, 0);
	assert_true(changes > 1);
	assert_int_equal(count_entries(d->fd), 1);
}

static void test_mkdirs(void **state)
{
	struct dir *d = *state;
	char p[400];
	snprintf(p, sizeof(p), "%s/a/b//c/", d->path);
	assert_int_equal(sl_mkdirs(p, 0755), 0);
	assert_int_equal(sl_mkdirs(p, 0755), 0);
	touch(d, "a/f");
	snprintf(p, sizeof(p), "%s/a/f", d->path);
	assert_int_equal(sl_mkdirs(p, 0755), -ENOTDIR);
	snprintf(p, sizeof(p), "%s/a/f/g", d->path);
	assert_int_equal(sl_mkdirs(p, 0755), -ENOTDIR);
}

static void test_remove_tree(void **state)
{
	struct dir *d = *state;
	assert_int_equal(sl_remove_tree(d->fd, "none"), 0);
	assert_int_equal(mkdirat(d->fd, "keep", 0755), 0);
	touch(d, "keep/f");
	assert_int_equal(mkdirat(d->fd, "t", 0755), 0);
	assert_int_equal(symlinkat("../keep", d->fd, "t/link"), 0);
	assert_int_equal(mkfifoat(d->fd, "t/fifo", 0600), 0);
	assert_int_equal(mkdirat(d->fd, "t/closed", 0755), 0);
	touch(d, "t/closed/f");
	assert_int_equal(fchmodat(d->fd, "t/closed", 0000, 0), 0);
	for (int i = 0; i < 300; i++) {
		char n[32];
		snprintf(n, sizeof(n), "t/%d", i);
		assert_int_equal(mknodat(d->fd, n, S_IFREG | 0600, 0), 0);
	}
	assert_int_equal(sl_remove_tree(d->fd, "t"), 0);
	struct stat st;
	assert_int_equal(fstatat(d->fd, "t", &st, 0), -1);
	assert_int_equal(fstatat(d->fd, "keep/f", &st, 0), 0);
	/* A symlink itself, and a plain file. */
	assert_int_equal(symlinkat("keep", d->fd, "l"), 0);
	assert_int_equal(sl_remove_tree(d->fd, "l"), 0);
	assert_int_equal(sl_remove_tree(d->fd, "keep/f"), 0);
	assert_int_equal(count_entries(d->fd), 1);
}

/* A tree deeper than a process may have files open. */
static void test_remove_deep_tree(void **state)
{
	struct dir *d = *state;
	int fd = dup(d->fd);
	for (int i = 0; i < 3000; i++) {
		assert_int_equal(mkdirat(fd, "d", 0755), 0);
		int n = openat(fd, "d", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		close(fd);
		fd = n;
		assert_true(fd >= 0);
	}
	close(fd);
	assert_int_equal(sl_remove_tree(d->fd, "d"), 0);
	assert_int_equal(count_entries(d->fd), 0);
}

static void check_socket(const char *path)
{
	int l = sl_unix_listen(path, 0600);
	assert_true(l >= 0);
	struct stat st;
	assert_int_equal(lstat(path, &st), 0);
	assert_int_equal(st.st_mode & 0777, 0600);
	int c = sl_unix_connect(path);
	assert_true(c >= 0);
	int a = accept(l, NULL, NULL);
	assert_true(a >= 0);
	assert_int_equal(sl_unix_listen(path, 0600), -EADDRINUSE); /* somebody listens */
	assert_int_equal(sl_write_full(c, "hello", 5), 0);
	char b[5];
	assert_int_equal(sl_read_full(a, b, 5), 0);
	assert_memory_equal(b, "hello", 5);
	assert_int_equal(sl_write_full(c, "he", 2), 0);
	close(c);
	assert_int_equal(sl_read_full(a, b, 5), -EPIPE);
	assert_int_equal(sl_read_full(a, b, 5), -ENODATA);
	close(a);
	close(l);
	assert_int_equal(sl_unix_connect(path), -ECONNREFUSED);
	l = sl_unix_listen(path, 0600); /* what is left of a killed process is replaced */
	assert_true(l >= 0);
	close(l);
}

static void test_unix_socket(void **state)
{
	struct dir *d = *state;
	char path[1200];
	snprintf(path, sizeof(path), "%s/s", d->path);
	check_socket(path);
	snprintf(path, sizeof(path), "%s/none", d->path);
	assert_int_equal(sl_unix_connect(path), -ENOENT);
	snprintf(path, sizeof(path), "%s/file", d->path);
	assert_int_equal(sl_write_file(d->fd, "file", "x", 1, 0600), 0);
	assert_int_equal(sl_unix_listen(path, 0600), -EADDRINUSE);
	size_t n = (size_t)snprintf(path, sizeof(path), "%s", d->path);
	for (int i = 0; i < 8; i++)
		n += (size_t)snprintf(path + n, sizeof(path) - n, "/%0100d", i);
	assert_int_equal(sl_mkdirs(path, 0755), 0);
	snprintf(path + n, sizeof(path) - n, "/socket");
	check_socket(path);
}

static void test_pread_pwrite(void **state)
{
	struct dir *d = *state;
	int fd = openat(d->fd, "f", O_RDWR | O_CREAT, 0600);
	char b[10];
	assert_int_equal(sl_pwrite_full(fd, "abcdef", 6, 3), 0);
	assert_int_equal(sl_pread_full(fd, b, 10, 3), 6);
	assert_memory_equal(b, "abcdef", 6);
	assert_int_equal(sl_pread_full(fd, b, 10, 9), 0);
	assert_int_equal(sl_pread_full(-1, b, 10, 9), -EBADF);
	struct iovec iov[3] = {{(void *)"12", 2}, {(void *)"", 0}, {(void *)"345", 3}};
	assert_int_equal(sl_writev_full(fd, iov, 3), 0);
	assert_int_equal(sl_pread_full(fd, b, 5, 0), 5);
	assert_memory_equal(b, "12345", 5);
	int p = open(d->path, O_PATH | O_DIRECTORY);
	int r = sl_reopen(p, O_RDONLY | O_DIRECTORY);
	assert_true(r >= 0);
	char buf[SL_PROC_FD_MAX], name[256];
	memset(name, 'n', 255);
	name[255] = 0;
	assert_int_equal(strlen(sl_proc_fd_path(buf, p, name)),
			 strlen(sl_proc_fd_path((char[SL_PROC_FD_MAX]){0}, p, NULL)) + 256);
	close(r);
	close(p);
	close(fd);
}

int main(void)
{
#define IN_DIR(t) cmocka_unit_test_setup_teardown(t, dir_setup, dir_teardown)
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_list),       cmocka_unit_test(test_htab),
	    cmocka_unit_test(test_pool),       cmocka_unit_test(test_pool_order),
	    cmocka_unit_test(test_parse_size), cmocka_unit_test(test_parse_duration),
	    cmocka_unit_test(test_format),     cmocka_unit_test(test_printable),
	    cmocka_unit_test(test_names),      IN_DIR(test_read_write_file),
	    IN_DIR(test_write_file_atomic),    IN_DIR(test_mkdirs),
	    IN_DIR(test_remove_tree),	       IN_DIR(test_remove_deep_tree),
	    IN_DIR(test_unix_socket),	       IN_DIR(test_pread_pwrite),
	};
	return cmocka_run_group_tests_name("base", tests, NULL, NULL);
}
