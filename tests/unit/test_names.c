/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What users do to names in the store. If this fails, a clone loses names, confuses objects, or asks the origin for the content
 * of another file.
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
#include <sys/stat.h>

#include "base/fd.h"
#include "base/log.h"
#include "store/internal.h"
#include "store/walk.h"

struct fx {
	char base[48], path[64];
	struct sl_store *s;
	struct sl_object *root;
	uint64_t ino;
};

static void open_store(struct fx *x)
{
	_cleanup_free_ char *why = NULL;
	assert_int_equal(sl_store_open(x->path, &x->s, &why), 0);
	x->root = sl_object_root(x->s);
}

static void close_store(struct fx *x)
{
	assert_int_equal(x->s->table.n, 1); /* no reference was lost */
	sl_store_close(x->s);
	x->s = NULL;
}

static void reopen(struct fx *x)
{
	close_store(x);
	open_store(x);
}

static struct sl_attr attr(struct fx *x, uint32_t mode, uint64_t size)
{
	return (struct sl_attr){.ino = ++x->ino,
				.generation = 5,
				.size = size,
				.blocks = SL_DIV_UP(size, 512),
				.mode = mode,
				.nlink = 1,
				.uid = geteuid(),
				.gid = getegid(),
				.no_xattrs = true,
				.mtime = {1000, 1},
				.ctime = {2000, 2},
				.atime = {3000, 3}};
}

/* "a/b/c", which must be there. */
static struct sl_object *get(struct fx *x, const char *path)
{
	struct sl_object *o = sl_object_ref(x->root);
	while (*path) {
		char name[256];
		size_t n = strcspn(path, "/");
		memcpy(name, path, n);
		name[n] = '\0';
		struct sl_object *c = NULL;
		int r = sl_object_lookup(o, name, &c);
		if (r < 0)
			print_error("%s: %s\n", path, strerror(-r));
		assert_int_equal(r, 0);
		sl_object_put(o);
		o = c;
		path += n + (path[n] == '/');
	}
	return o;
}

/* A placeholder of the origin's; directories are populated at once. */
static void put(struct fx *x, const char *dir, const char *name, const struct sl_attr *a)
{
	_cleanup_object_ struct sl_object *d = get(x, dir);
	_cleanup_close_ int fd = sl_object_open_dir(d);
	assert_int_equal(sl_placeholder_make(d, fd, name, a, S_ISLNK(a->mode) ? "target" : NULL), 0);
	if (S_ISDIR(a->mode)) {
		_cleanup_object_ struct sl_object *o = NULL;
		assert_int_equal(sl_object_lookup(d, name, &o), 0);
		assert_int_equal(sl_placeholder_populated(o, a, a->mtime), 0);
	}
}

static void put_file(struct fx *x, const char *dir, const char *name)
{
	const struct sl_attr a = attr(x, S_IFREG | 0644, 100);
	put(x, dir, name, &a);
}

static void put_dir(struct fx *x, const char *dir, const char *name)
{
	const struct sl_attr a = attr(x, S_IFDIR | 0755, 0);
	put(x, dir, name, &a);
}

static struct sl_object *make(struct fx *x, const char *dir, const char *name, uint32_t mode)
{
	_cleanup_object_ struct sl_object *d = get(x, dir);
	_cleanup_close_ int fd = sl_object_open_dir(d);
	struct sl_object *o = NULL;
	assert_int_equal(sl_object_touch(d), 0);
	if (S_ISDIR(mode))
		assert_int_equal(mkdirat(fd, name, mode & 07777), 0);
	else
		close(openat(fd, name, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, mode & 07777));
	assert_int_equal(sl_object_adopt(d, name, mode, 0, &o), 0);
	return o;
}

static int mv(struct fx *x, const char *dir, const char *name, const char *newdir, const char *newname, unsigned flags)
{
	_cleanup_object_ struct sl_object *d = get(x, dir), *n = get(x, newdir);
	return sl_object_rename(d, name, n, newname, flags);
}

static int rm(struct fx *x, const char *dir, const char *name, bool rmdir)
{
	_cleanup_object_ struct sl_object *d = get(x, dir);
	return sl_object_unlink(d, name, rmdir);
}

static void assert_place_of(struct sl_object *o, const char *want)
{
	_cleanup_free_ char *place = NULL;
	int r = sl_object_place(o, &place);
	if (!want) {
		assert_int_equal(r, -ENOENT);
		return;
	}
	assert_int_equal(r, 0);
	assert_string_equal(place, want);
}

static void assert_place(struct fx *x, const char *path, const char *want)
{
	_cleanup_object_ struct sl_object *o = get(x, path);
	_cleanup_free_ char *p = sl_object_path(o);
	assert_place_of(o, want);
	assert_string_equal(p, path);
}

static void assert_gone(struct fx *x, const char *dir, const char *name)
{
	_cleanup_object_ struct sl_object *d = get(x, dir), *o = NULL;
	assert_int_equal(sl_object_lookup(d, name, &o), -ENOENT);
}

static bool white(struct fx *x, const char *dir, const char *name)
{
	_cleanup_object_ struct sl_object *d = get(x, dir);
	return sl_object_whiteout(d, name);
}

static int setup(void **state)
{
	struct fx *x = calloc(1, sizeof(*x));
	const struct sl_store_config c = {.origin = (char *)"/o", .dir = (char *)"/d", .id = (char *)"id"};
	strcpy(x->base, "/tmp/sluice-names-XXXXXX");
	assert_non_null(mkdtemp(x->base));
	snprintf(x->path, sizeof(x->path), "%s/store", x->base);
	assert_int_equal(sl_store_create(x->path, &c, NULL), 0);
	open_store(x);
	x->ino = 10;
	const struct sl_attr a = attr(x, S_IFDIR | 0755, 0);
	assert_int_equal(sl_placeholder_root(x->s, &a), 0);
	assert_int_equal(sl_placeholder_populated(x->root, &a, a.mtime), 0);
	put_dir(x, "", "d");
	put_dir(x, "d", "e");
	put_dir(x, "", "g");
	put_file(x, "", "f");
	put_file(x, "d", "a");
	put_file(x, "d/e", "deep");
	put_file(x, "g", "b");
	*state = x;
	return 0;
}

static int teardown(void **state)
{
	struct fx *x = *state;
	close_store(x);
	assert_int_equal(sl_remove_tree(AT_FDCWD, x->base), 0);
	free(x);
	return 0;
}

/* ---- places ---- */

static void test_places(void **state)
{
	struct fx *x = *state;
	assert_place(x, "", "");
	assert_place(x, "d/e/deep", "d/e/deep");
	assert_int_equal(mv(x, "d", "a", "g", "a2", 0), 0);
	assert_place(x, "g/a2", "d/a");
	assert_int_equal(mv(x, "g", "a2", "", "a3", 0), 0); /* again: where it was at first */
	assert_place(x, "a3", "d/a");
	/* The children of what was renamed follow, also those that are looked up later. */
	assert_int_equal(mv(x, "", "d", "g", "D", 0), 0);
	assert_place(x, "g/D", "d");
	assert_place(x, "g/D/e/deep", "d/e/deep");
	assert_place(x, "a3", "d/a");
	assert_int_equal(mv(x, "g/D", "e", "", "E", 0), 0);
	assert_place(x, "E/deep", "d/e/deep");
	reopen(x);
	assert_place(x, "g/D", "d");
	assert_place(x, "E/deep", "d/e/deep");
	assert_place(x, "a3", "d/a");
	assert_true(white(x, "", "d"));
	assert_false(white(x, "", "g"));
	/* What was made here has no place, nor what is made in it; what was moved into it keeps its own. */
	_cleanup_object_ struct sl_object *mine = make(x, "", "mine", S_IFDIR | 0700), *file = make(x, "mine", "file", S_IFREG | 0600);
	assert_place(x, "mine", NULL);
	assert_place(x, "mine/file", NULL);
	assert_int_equal(mv(x, "", "E", "mine", "E", 0), 0);
	assert_place(x, "mine/E/deep", "d/e/deep");
	assert_false(white(x, "mine", "file"));
	/* Made in a directory that was moved: still none. */
	_cleanup_object_ struct sl_object *in = make(x, "mine/E", "new", S_IFREG | 0600);
	assert_place(x, "mine/E/new", NULL);
	assert_int_equal(mv(x, "mine", "file", "", "out", 0), 0);
	assert_place(x, "out", NULL);
	assert_false(white(x, "mine", "file"));
}

static void test_unlinked_place(void **state)
{
	struct fx *x = *state;
	struct sl_object *o = get(x, "d/a"), *q = get(x, "d/e/deep"), *e = get(x, "d/e"), *m = make(x, "", "m", S_IFREG | 0600);
	assert_int_equal(rm(x, "d", "a", false), 0);
	assert_place_of(o, "d/a");
	assert_gone(x, "d", "a");
	assert_true(white(x, "d", "a"));
	assert_null(sl_object_parent(o));
	int fd = sl_object_open(o, O_RDWR);
	assert_true(fd >= 0);
	close(fd);
	struct sl_attr a;
	assert_int_equal(sl_object_attr(o, &a), 0);
	assert_int_equal(a.size, 100);
	assert_int_equal(a.nlink, 0);
	/* Renamed, then unlinked: the first place counts. */
	assert_int_equal(mv(x, "d/e", "deep", "", "up", 0), 0);
	assert_int_equal(rm(x, "", "up", false), 0);
	assert_place_of(q, "d/e/deep");
	assert_int_equal(rm(x, "d", "e", true), 0);
	assert_place_of(e, "d/e");
	assert_int_equal(rm(x, "", "m", false), 0);
	assert_place_of(m, NULL);
	assert_false(white(x, "", "m"));
	/* A new one of the same name is another object. */
	struct sl_object *n = make(x, "d", "a", S_IFREG | 0600);
	assert_ptr_not_equal(n, o);
	assert_place_of(n, NULL);
	assert_place_of(o, "d/a");
	sl_object_put(n);
	sl_object_put(o);
	sl_object_put(q);
	sl_object_put(e);
	sl_object_put(m);
}

static void test_errors(void **state)
{
	struct fx *x = *state;
	assert_int_equal(rm(x, "", "none", false), -ENOENT);
	assert_int_equal(rm(x, "", "d", false), -EISDIR);
	assert_int_equal(rm(x, "", "f", true), -ENOTDIR);
	assert_int_equal(rm(x, "", "d", true), -ENOTEMPTY);
	assert_int_equal(mv(x, "", "none", "", "x", 0), -ENOENT);
	assert_int_equal(mv(x, "", "f", "", "d", 0), -EISDIR);
	assert_int_equal(mv(x, "", "d", "", "f", 0), -ENOTDIR);
	assert_int_equal(mv(x, "", "g", "", "d", 0), -ENOTEMPTY);
	assert_int_equal(mv(x, "", "d", "d/e", "loop", 0), -EINVAL);
	assert_int_equal(mv(x, "", "f", "d", "a", RENAME_NOREPLACE), -EEXIST);
	assert_int_equal(mv(x, "", "f", "", "f", RENAME_NOREPLACE), -EEXIST);
	assert_int_equal(mv(x, "", "f", "", "none", RENAME_EXCHANGE), -ENOENT);
	assert_int_equal(mv(x, "", "f", "", "y", RENAME_WHITEOUT), -EINVAL);
	static const char *const bad[] = {"", ".", "..", "a/b", "/"};
	for (size_t i = 0; i < SL_ARRAY_SIZE(bad); i++) {
		struct sl_object *o = NULL;
		assert_int_equal(sl_object_lookup(x->root, bad[i], &o), -EINVAL);
		assert_int_equal(mv(x, "", "f", "", bad[i], 0), -EINVAL);
	}
	/* Nothing has changed. */
	assert_place(x, "f", "f");
	assert_place(x, "d/a", "d/a");
	assert_place(x, "d/e/deep", "d/e/deep");
	reopen(x);
	assert_place(x, "f", "f");
	assert_place(x, "d/e/deep", "d/e/deep");
}

static void test_replace(void **state)
{
	struct fx *x = *state;
	struct sl_object *f = get(x, "f"), *a = get(x, "d/a");
	assert_int_equal(mv(x, "", "f", "d", "a", 0), 0);
	struct sl_object *now = get(x, "d/a");
	assert_ptr_equal(now, f);
	assert_place_of(f, "f");
	assert_place_of(a, "d/a");
	assert_null(sl_object_parent(a));
	assert_true(white(x, "", "f"));
	sl_object_put(now);
	sl_object_put(f);
	sl_object_put(a);
	/* An empty directory over an empty one. */
	put_dir(x, "", "p");
	put_dir(x, "", "q");
	struct sl_object *p = get(x, "p"), *q = get(x, "q");
	assert_int_equal(mv(x, "", "p", "", "q", 0), 0);
	assert_place(x, "q", "p");
	assert_place_of(q, "q");
	struct sl_object *in = make(x, "q", "in", S_IFREG | 0600);
	sl_object_put(in);
	sl_object_put(p);
	sl_object_put(q);
}

static void test_exchange(void **state)
{
	struct fx *x = *state;
	struct sl_object *f = get(x, "f"), *d = get(x, "d"), *deep = get(x, "d/e/deep");
	assert_int_equal(mv(x, "", "f", "", "d", RENAME_EXCHANGE), 0);
	struct sl_object *n = get(x, "d");
	assert_ptr_equal(n, f);
	sl_object_put(n);
	assert_place(x, "d", "f");
	assert_place(x, "f", "d");
	assert_place(x, "f/e/deep", "d/e/deep");
	assert_place_of(deep, "d/e/deep");
	/* Across directories, a file with one that was made here. */
	struct sl_object *m = make(x, "g", "m", S_IFREG | 0600);
	assert_int_equal(mv(x, "", "d", "g", "m", RENAME_EXCHANGE), 0);
	assert_place(x, "g/m", "f");
	assert_place(x, "d", NULL);
	_cleanup_object_ struct sl_object *pf = sl_object_parent(f), *pm = sl_object_parent(m), *g = get(x, "g");
	assert_ptr_equal(pf, g);
	assert_ptr_equal(pm, x->root);
	sl_object_put(m);
	sl_object_put(f);
	sl_object_put(d);
	sl_object_put(deep);
}

static void test_link(void **state)
{
	struct fx *x = *state;
	struct sl_object *f = get(x, "f"), *g = get(x, "g");
	struct sl_attr a;
	assert_int_equal(sl_object_link(f, g, "l"), 0);
	assert_int_equal(sl_object_link(f, g, "b"), -EEXIST);
	assert_int_equal(sl_object_attr(f, &a), 0);
	assert_int_equal(a.nlink, 2);
	struct sl_object *l = get(x, "g/l");
	assert_ptr_equal(l, f);
	sl_object_put(l);
	/* The name that is known goes: the other is found again, and the place is what it was. */
	assert_int_equal(rm(x, "", "f", false), 0);
	assert_place_of(f, "f");
	l = get(x, "g/l");
	assert_ptr_equal(l, f);
	sl_object_put(l);
	sl_object_put(f);
	sl_object_put(g);
	assert_place(x, "g/l", "f");
	reopen(x);
	assert_place(x, "g/l", "f");
}

static void test_link_put(void **state)
{
	struct fx *x = *state;
	struct sl_object *g = get(x, "g");
	struct sl_object *f = get(x, "f");
	/* Two names of one object: renaming one over the other does nothing. */
	assert_int_equal(sl_object_link(f, x->root, "f2"), 0);
	assert_int_equal(mv(x, "", "f", "", "f2", 0), 0);
	struct sl_object *o1 = get(x, "f"), *o2 = get(x, "f2");
	assert_ptr_equal(o1, o2);
	/* Renaming by the name that is not the known one. */
	assert_int_equal(mv(x, "", "f2", "g", "f3", 0), 0);
	struct sl_object *o3 = get(x, "g/f3");
	assert_ptr_equal(o3, f);
	assert_place_of(f, "f");
	assert_int_equal(rm(x, "", "f", false), 0);
	assert_place_of(f, "f");
	int fd = sl_object_open(f, O_RDONLY);
	assert_true(fd >= 0);
	close(fd);
	assert_int_equal(rm(x, "g", "f3", false), 0);
	struct sl_attr a;
	assert_int_equal(sl_object_attr(f, &a), 0);
	assert_int_equal(a.nlink, 0);
	sl_object_put(o1);
	sl_object_put(o2);
	sl_object_put(o3);
	sl_object_put(f);
	sl_object_put(g);
}

static void test_tmpfile(void **state)
{
	struct fx *x = *state;
	struct sl_object *d = get(x, "d"), *o = NULL, *l;
	_cleanup_close_ int dfd = sl_object_open_dir(d);
	_cleanup_close_ int fd = openat(dfd, ".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	assert_true(fd >= 0);
	assert_int_equal(sl_write_full(fd, "tmp", 3), 0);
	assert_int_equal(sl_object_adopt_tmpfile(d, fd, S_IFREG | 0640, &o), 0);
	assert_place_of(o, NULL);
	struct sl_attr a;
	assert_int_equal(sl_object_attr(o, &a), 0);
	assert_int_equal(a.size, 3);
	assert_int_equal(a.mode, S_IFREG | 0640);
	assert_int_equal(sl_object_link(o, d, "t"), 0);
	l = get(x, "d/t");
	assert_ptr_equal(l, o);
	sl_object_put(l);
	sl_object_put(o);
	sl_object_put(d);
	reopen(x);
	o = get(x, "d/t");
	assert_true(o->rec.flags & SL_LOCAL);
	assert_place_of(o, NULL);
	sl_object_put(o);
}

/* Two directories that are populated at the same time, with names of the same files. */
struct race {
	struct fx *x;
	const char *dir;
	const struct sl_attr *a;
	pthread_barrier_t *start;
	int r;
};
enum { RACES = 300 };

static void *race_run(void *arg)
{
	struct race *c = arg;
	char name[16];
	_cleanup_object_ struct sl_object *d = get(c->x, c->dir);
	_cleanup_close_ int fd = sl_object_open_dir(d);
	for (int i = 0; i < RACES; i++) {
		snprintf(name, sizeof(name), "r%d", i);
		pthread_barrier_wait(c->start);
		int r = sl_placeholder_make(d, fd, name, &c->a[i], NULL);
		if (r < 0)
			c->r = r;
	}
	return NULL;
}

static void test_origin_links_race(void **state)
{
	struct fx *x = *state;
	static struct sl_attr a[RACES];
	pthread_barrier_t start;
	pthread_t t[2];
	char p[2][32];
	for (int i = 0; i < RACES; i++) {
		a[i] = attr(x, S_IFREG | 0644, 100);
		a[i].nlink = 2;
	}
	assert_int_equal(pthread_barrier_init(&start, NULL, 2), 0);
	struct race c[2] = {{x, "d", a, &start, 0}, {x, "g", a, &start, 0}};
	for (int k = 0; k < 2; k++)
		assert_int_equal(pthread_create(&t[k], NULL, race_run, &c[k]), 0);
	for (int k = 0; k < 2; k++)
		pthread_join(t[k], NULL);
	pthread_barrier_destroy(&start);
	for (int k = 0; k < 2; k++)
		assert_int_equal(c[k].r, 0);
	for (int i = 0; i < RACES; i++) {
		snprintf(p[0], sizeof(p[0]), "d/r%d", i);
		snprintf(p[1], sizeof(p[1]), "g/r%d", i);
		_cleanup_object_ struct sl_object *o = get(x, p[0]), *q = get(x, p[1]);
		assert_ptr_equal(o, q);
	}
}

/* An attempt that was interrupted left a file that the index does not have; it got another since. */
static void test_origin_links_left(void **state)
{
	struct fx *x = *state;
	struct sl_attr a = attr(x, S_IFREG | 0644, 100), alone = a;
	alone.nlink = 1;
	a.nlink = 2;
	put(x, "d", "left", &alone);
	put(x, "g", "other", &a);
	put(x, "d", "left", &a);
	_cleanup_object_ struct sl_object *o = get(x, "d/left"), *q = get(x, "g/other");
	assert_ptr_equal(o, q);
}

/* Links of the origin's: counted also where not all names are here, and the index goes with the last. */
static void test_origin_links(void **state)
{
	struct fx *x = *state;
	struct sl_attr a = attr(x, S_IFREG | 0644, 100), b;
	a.nlink = 3;
	put(x, "", "h1", &a);
	put(x, "d", "h2", &a);
	struct sl_object *o = get(x, "h1"), *q = get(x, "d/h2");
	assert_ptr_equal(o, q);
	assert_int_equal(sl_object_attr(o, &b), 0);
	assert_int_equal(b.nlink, 3);
	assert_int_equal(rm(x, "", "h1", false), 0);
	assert_int_equal(sl_object_attr(o, &b), 0);
	assert_int_equal(b.nlink, 2);
	assert_place_of(o, "h1");
	/* A third name arrives later: the same object. */
	put(x, "g", "h3", &a);
	struct sl_object *r = get(x, "g/h3");
	assert_ptr_equal(r, o);
	sl_object_put(r);
	sl_object_put(o);
	sl_object_put(q);
	reopen(x);
	o = get(x, "g/h3");
	assert_int_equal(sl_object_attr(o, &b), 0);
	assert_int_equal(b.nlink, 2);
	sl_object_put(o);
}

/* A whiteout belongs to a directory, not to an inode number that is used again. */
static void test_whiteouts(void **state)
{
	struct fx *x = *state;
	assert_int_equal(rm(x, "d/e", "deep", false), 0);
	assert_true(white(x, "d/e", "deep"));
	reopen(x);
	assert_true(white(x, "d/e", "deep"));
	assert_int_equal(rm(x, "d", "e", true), 0);
	for (int i = 0; i < 5; i++) {
		char name[16];
		snprintf(name, sizeof(name), "n%d", i);
		struct sl_object *o = make(x, "d", name, S_IFDIR | 0700);
		assert_false(sl_object_whiteout(o, "deep"));
		sl_object_put(o);
	}
	char longest[256];
	memset(longest, 'w', 255);
	longest[255] = '\0';
	put_file(x, "", longest);
	assert_int_equal(rm(x, "", longest, false), 0);
	assert_true(white(x, "", longest));
}

/* What has no record, as symlinks of a store without privilege, is a user's where the name has a whiteout. */
static void test_no_record(void **state)
{
	struct fx *x = *state;
	struct sl_object *g = get(x, "g"), *m = make(x, "g", "m", S_IFREG | 0600), *o;
	_cleanup_close_ int fd = sl_object_open_dir(g);
	for (int i = 0; i < 3; i++)
		assert_int_equal(symlinkat("target", fd, (const char *[]){"s", "t", "u"}[i]), 0);
	assert_int_equal(sl_object_lookup(g, "s", &o), 0);
	assert_false(o->has_record);
	assert_int_equal(sl_object_link(o, x->root, "s2"), 0);
	assert_true(white(x, "", "s2"));
	assert_false(white(x, "g", "s"));
	assert_int_equal(sl_object_link(o, g, "t"), -EEXIST);
	assert_false(white(x, "g", "t"));
	sl_object_put(o);
	assert_int_equal(mv(x, "g", "t", "", "t2", 0), 0);
	assert_true(white(x, "", "t2"));
	/* In the place of something that was made here. */
	assert_int_equal(mv(x, "g", "u", "g", "m", RENAME_EXCHANGE), 0);
	assert_true(white(x, "g", "m"));
	sl_object_put(m);
	m = make(x, "", "m2", S_IFREG | 0600);
	assert_int_equal(mv(x, "", "m2", "g", "m", RENAME_EXCHANGE), 0);
	assert_true(white(x, "", "m2"));
	sl_object_put(m);
	/* Noted before it is made, and taken back where it is not. */
	bool noted, was = x->s->privileged;
	x->s->privileged = false;
	assert_int_equal(sl_object_announce(g, "new", S_IFLNK, &noted), 0);
	assert_true(noted && white(x, "g", "new"));
	sl_object_renounce(g, "new", noted);
	assert_false(white(x, "g", "new"));
	assert_int_equal(sl_object_announce(g, "m", S_IFLNK, &noted), 0);
	sl_object_renounce(g, "m", noted);
	assert_true(white(x, "g", "m"));
	x->s->privileged = was;
	sl_object_put(g);
}

static void test_long_place(void **state)
{
	struct fx *x = *state;
	char name[256], path[6000] = "";
	memset(name, 'n', 250);
	name[250] = '\0';
	for (int i = 0; i < 20; i++) {
		put_dir(x, path, name);
		if (*path)
			strcat(path, "/");
		strcat(path, name);
	}
	put_file(x, path, "end");
	_cleanup_object_ struct sl_object *d = get(x, path), *o = get(x, "f");
	char want[6100];
	snprintf(want, sizeof(want), "%s/end", path);
	_cleanup_object_ struct sl_object *end = get(x, want);
	assert_place_of(end, want);
	/* Too long for an attribute: mv is told to copy; or it works, and the place is right. */
	int r = sl_object_rename(d, "end", x->root, "end", 0);
	assert_true(r == 0 || r == -EXDEV);
	assert_place_of(end, want);
}

/* ---- anything, against a plain directory ---- */

struct model {
	char base[80];
	int fd;
};

static uint64_t seed;

static unsigned rnd(unsigned n)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return (unsigned)((seed >> 11) % n);
}

static const char *const dirs[] = {"", "x", "y", "x/z"};
static const char *const names[] = {"1", "2", "3", "x", "y", "z"};

static int model_op(const struct model *m, unsigned op, const char *p, const char *q, unsigned flags)
{
	int r;
	switch (op) {
	case 0:
		r = openat(m->fd, p, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0600);
		if (r >= 0)
			close(r), r = 0;
		break;
	case 1:
		r = mkdirat(m->fd, p, 0700);
		break;
	case 2:
		r = unlinkat(m->fd, p, 0);
		break;
	case 3:
		r = unlinkat(m->fd, p, AT_REMOVEDIR);
		break;
	case 4:
		r = linkat(m->fd, p, m->fd, q, 0);
		break;
	default:
		r = renameat2(m->fd, p, m->fd, q, flags);
	}
	return r < 0 ? -errno : 0;
}

/* The directory at @path, or NULL. */
static struct sl_object *maybe(struct fx *x, const char *path)
{
	struct sl_object *o = sl_object_ref(x->root);
	while (o && *path) {
		char name[16];
		size_t n = strcspn(path, "/");
		memcpy(name, path, n);
		name[n] = '\0';
		struct sl_object *c = NULL;
		if (sl_object_lookup(o, name, &c) < 0)
			c = NULL;
		sl_object_put(o);
		o = c;
		path += n + (path[n] == '/');
	}
	if (o && !sl_object_is_dir(o)) {
		sl_object_put(o);
		o = NULL;
	}
	return o;
}

static int store_op(struct fx *x, unsigned op, const char *dir, const char *name, const char *dir2, const char *name2, unsigned flags)
{
	_cleanup_object_ struct sl_object *d = maybe(x, dir), *e = maybe(x, dir2), *o = NULL;
	if (!d || (op > 3 && !e))
		return -ENOENT;
	_cleanup_close_ int fd = sl_object_open_dir(d);
	int r = 0;
	switch (op) {
	case 0:
	case 1: {
		if (op == 0) {
			int n = openat(fd, name, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0600);
			r = n < 0 ? -errno : 0;
			if (n >= 0)
				close(n);
		} else {
			r = mkdirat(fd, name, 0700) < 0 ? -errno : 0;
		}
		return r ? r : sl_object_adopt(d, name, (op ? S_IFDIR : S_IFREG) | 0600, 0, &o);
	}
	case 2:
	case 3:
		return sl_object_unlink(d, name, op == 3);
	case 4:
		r = sl_object_lookup(d, name, &o);
		return r ? r : sl_object_link(o, e, name2);
	default:
		return sl_object_rename(d, name, e, name2, flags);
	}
}

static void compare(struct fx *x, const struct model *m, const char *path)
{
	struct stat a, b;
	struct sl_name *v;
	size_t n, k = 0;
	_cleanup_object_ struct sl_object *d = get(x, path);
	assert_int_equal(sl_names_read(d, &v, &n), 0);
	for (size_t i = 0; i < n; i++) {
		char p[128];
		_cleanup_object_ struct sl_object *o = NULL, *again = NULL;
		snprintf(p, sizeof(p), "%s%s%s", path, *path ? "/" : "", v[i].name);
		assert_int_equal(fstatat(m->fd, p, &a, AT_SYMLINK_NOFOLLOW), 0);
		assert_int_equal(sl_object_lookup(d, v[i].name, &o), 0);
		assert_int_equal(sl_object_ino(o), v[i].ino);
		again = sl_object_find(x->s, v[i].ino);
		assert_ptr_equal(o, again);
		assert_int_equal(o->type, a.st_mode & S_IFMT);
		/* The path that it knows leads to it; one whose known name of several is gone has a descriptor. */
		_cleanup_free_ char *known = sl_object_path(o);
		if (o->fd >= 0)
			assert_int_equal(fstat(o->fd, &b), 0);
		else
			assert_int_equal(fstatat(x->s->tree_fd, known, &b, AT_SYMLINK_NOFOLLOW), 0);
		assert_int_equal(b.st_ino, sl_object_ino(o));
		if (S_ISREG(o->type)) {
			struct sl_attr at;
			assert_int_equal(sl_object_attr(o, &at), 0);
			assert_int_equal(at.nlink, a.st_nlink);
		}
		k++;
		if (S_ISDIR(a.st_mode))
			compare(x, m, p);
	}
	sl_names_free(v, n);
	/* And no name is missing. */
	int fd = openat(m->fd, *path ? path : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	assert_true(fd >= 0);
	for (size_t i = 0; i < SL_ARRAY_SIZE(names); i++)
		if (fstatat(fd, names[i], &a, AT_SYMLINK_NOFOLLOW) == 0)
			k--;
	close(fd);
	assert_int_equal(k, 0);
}

static void test_random(void **state)
{
	struct fx *x = *state;
	struct model m;
	assert_int_equal(rm(x, "d", "a", false), 0);
	assert_int_equal(rm(x, "d/e", "deep", false), 0);
	assert_int_equal(rm(x, "d", "e", true), 0);
	assert_int_equal(rm(x, "", "d", true), 0);
	assert_int_equal(rm(x, "g", "b", false), 0);
	assert_int_equal(rm(x, "", "g", true), 0);
	assert_int_equal(rm(x, "", "f", false), 0);
	snprintf(m.base, sizeof(m.base), "%s/model", x->base);
	assert_int_equal(mkdir(m.base, 0700), 0);
	m.fd = open(m.base, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	/* Some of the objects stay in use all the time. */
	struct sl_object *held[16] = {0};
	seed = 7;
	for (int i = 0; i < 6000; i++) {
		const char *d = dirs[rnd(4)], *e = dirs[rnd(4)], *n = names[rnd(6)], *o = names[rnd(6)];
		char p[32], q[32];
		unsigned op = rnd(8), flags = op > 4 && rnd(4) == 0 ? rnd(2) ? RENAME_EXCHANGE : RENAME_NOREPLACE : 0;
		snprintf(p, sizeof(p), "%s%s%s", d, *d ? "/" : "", n);
		snprintf(q, sizeof(q), "%s%s%s", e, *e ? "/" : "", o);
		struct stat st;
		/* The kernel checks these before the gate is asked. */
		if (op == 4 && fstatat(m.fd, p, &st, AT_SYMLINK_NOFOLLOW) == 0 && S_ISDIR(st.st_mode))
			continue;
		int want = model_op(&m, op, p, q, flags), got = store_op(x, op, d, n, e, o, flags);
		if ((want == 0) != (got == 0))
			print_error("step %d, operation %u: %s %s: %d, the model: %d\n", i, op, p, q, got, want);
		assert_int_equal(want == 0, got == 0);
		unsigned h = rnd(16);
		if (rnd(3) == 0) {
			sl_object_put(held[h]);
			held[h] = NULL;
			_cleanup_object_ struct sl_object *dir = maybe(x, d);
			if (dir && sl_object_lookup(dir, n, &held[h]) < 0)
				held[h] = NULL;
		}
		if (i % 50 == 0)
			compare(x, &m, "");
		if (i % 1000 == 999) {
			for (h = 0; h < 16; h++) {
				sl_object_put(held[h]);
				held[h] = NULL;
			}
			reopen(x);
			compare(x, &m, "");
		}
	}
	for (unsigned h = 0; h < 16; h++)
		sl_object_put(held[h]);
	close(m.fd);
}

#define T(name) cmocka_unit_test_setup_teardown(test_##name, setup, teardown)

int main(int argc, char **argv)
{
	if (argc > 1)
		cmocka_set_test_filter(argv[1]);
	sl_log_set_level(SL_LOG_ERR);
	const struct CMUnitTest tests[] = {
		T(places), T(unlinked_place), T(errors),       T(replace),   T(exchange),   T(link),
		T(link_put), T(tmpfile),      T(origin_links), T(origin_links_race), T(origin_links_left), T(whiteouts), T(no_record), T(long_place), T(random),
	};
	return cmocka_run_group_tests_name("names", tests, NULL, NULL);
}
