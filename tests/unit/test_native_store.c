/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What a native store does with names where something fails in between, or somebody is in the way: calls of
 * the C library are made to fail, and looked at, by definitions of our own. If this fails, what a user has
 * open or has changed is taken away, a file of several names becomes two, or what was to be hidden is left.
 * Needs root, loop devices, mkfs.xfs.
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
#include <ftw.h>
#include <stdatomic.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/xattr.h>

#include "native_fixture.h"
#include "base/log.h"
#include "base/time.h"
#include "fill/fill.h"
#include "origin/origin.h"
#include "replay/peers.h"
#include "service/native.h"
#include "store/image.h"
#include "store/internal.h"
#include "store/walk.h"

/* ---- the C library ---- */

static struct {
	const struct sl_handle *handle; /* to open this one fails ... */
	int handle_err;
	int getxattr_err; /* records cannot be read */
	atomic_int hold;  /* 1: who reads a record waits; 2: somebody does */
	int swap_in;	/* "a" and "b" of this directory change places as soon as one was looked at; 0: no */
	int link_after; /* after so many links one has no room; 0: never */
	ino_t synced;	/* the last file that was */
	bool replaced_unsynced;
	unsigned replaced;
	struct sl_object *noted; /* a directory of which something is noted ... */
	int noted_in;		 /* in this state; -1: not yet */
} lib;

static int fails(int err)
{
	errno = -err;
	return -1;
}

int open_by_handle_at(int dirfd, struct file_handle *h, int flags)
{
	if (lib.handle && h->handle_bytes == lib.handle->len &&
	    !memcmp(h->f_handle, lib.handle->b, h->handle_bytes))
		return fails(lib.handle_err);
	return (int)syscall(SYS_open_by_handle_at, dirfd, h, flags);
}

ssize_t getxattr(const char *path, const char *name, void *buf, size_t n)
{
	if (lib.getxattr_err && !strcmp(name, "trusted.sluice"))
		return fails(lib.getxattr_err);
	while (lib.hold) {
		lib.hold = 2;
		usleep(1000);
	}
	return syscall(SYS_getxattr, path, name, buf, n);
}

static void swap(void)
{
	if (lib.swap_in)
		assert_int_equal(renameat2(lib.swap_in, "a", lib.swap_in, "b", RENAME_EXCHANGE), 0);
	lib.swap_in = 0;
}

int fstat(int fd, struct stat *st)
{
	int r = (int)syscall(SYS_newfstatat, fd, "", st, AT_EMPTY_PATH);
	swap();
	return r;
}

int fstatat(int fd, const char *name, struct stat *st, int flags)
{
	int r = (int)syscall(SYS_newfstatat, fd, name, st, flags);
	swap();
	return r;
}

int linkat(int fd, const char *name, int newfd, const char *newname, int flags)
{
	if (lib.link_after && --lib.link_after == 0)
		return fails(-ENOSPC);
	return (int)syscall(SYS_linkat, fd, name, newfd, newname, flags);
}

int fdatasync(int fd)
{
	struct stat st;
	if (fstat(fd, &st) == 0)
		lib.synced = st.st_ino;
	return (int)syscall(SYS_fdatasync, fd);
}

int renameat(int fd, const char *name, int newfd, const char *newname)
{
	struct stat st;
	if (!strcmp(newname, "came") && fstatat(fd, name, &st, 0) == 0) {
		lib.replaced++;
		lib.replaced_unsynced |= st.st_ino != lib.synced;
	}
	return (int)syscall(SYS_renameat, fd, name, newfd, newname);
}

ssize_t pwrite(int fd, const void *buf, size_t n, off_t off)
{
	if (lib.noted && fd == lib.noted->store->came_fd && lib.noted_in < 0)
		lib.noted_in = (int)lib.noted->rec.state;
	return syscall(SYS_pwrite64, fd, buf, n, off);
}

/* ---- the store ---- */

struct fx {
	char dir[48], origin[64], store[64];
	struct sl_store *s;
	struct sl_origin *o;
	struct sl_fill *f;
	int tree; /* its root */
	int fd;	  /* what a test has open */
	uint64_t ino;
};

static const char *unable(void)
{
	return no_images();
}

static int setup(void **state)
{
	char *why = NULL;
	struct fx *x = calloc(1, sizeof(*x));
	*state = x;
	memset(&lib, 0, sizeof(lib));
	if (unable())
		return 0;
	sl_log_set_level(SL_LOG_ERR);
	umask(0);
	snprintf(x->dir, sizeof(x->dir), "%s/sluice-store-XXXXXX",
		 getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp");
	assert_non_null(mkdtemp(x->dir));
	snprintf(x->origin, sizeof(x->origin), "%s/o", x->dir);
	snprintf(x->store, sizeof(x->store), "%s/s", x->dir);
	assert_int_equal(mkdir(x->origin, 0755), 0);
	struct sl_store_config c = {.origin = x->origin,
				    .dir = (char *)"/nowhere",
				    .id = (char[]){"0123456789abcdef"},
				    .reserve = 1 << 20,
				    .timeout = 20,
				    .native = true,
				    .image = true,
				    .size = SL_IMAGE_MIN};
	struct sl_origin_config oc = {.timeout = 20};
	expect_ok(sl_store_create(x->store, &c, &why), &why);
	expect_ok(sl_store_open(x->store, &x->s, &why), &why);
	expect_ok(sl_origin_local_open(x->origin, &oc, &x->o, &why), &why);
	struct sl_fill_config fc = {.store = x->s, .origin = x->o};
	expect_ok(sl_fill_new(&fc, &x->f), NULL);
	struct sl_oreq q = {.op = SL_OREQ_STAT, .place = ""};
	expect_ok(sl_origin_call(x->o, &q), NULL);
	expect_ok(sl_placeholder_root(x->s, &q.attr), NULL);
	sl_oreq_fini(&q);
	/* As where the kernel asks for names. */
	expect_ok(sl_store_make_whole(x->s), NULL);
	x->tree = sl_object_open_dir(sl_object_root(x->s));
	assert_true(x->tree >= 0);
	x->fd = -EBADF;
	x->ino = 1000000;
	return 0;
}

static int teardown(void **state)
{
	struct fx *x = *state;
	char *why = NULL;
	memset(&lib, 0, sizeof(lib));
	if (*x->dir) {
		struct sl_store_config c;
		close(x->tree);
		if (x->fd >= 0)
			close(x->fd);
		sl_origin_stop(x->o);
		sl_fill_free(x->f);
		sl_origin_free(x->o);
		sl_store_close(x->s);
		expect_ok(sl_store_config_load(x->store, &c, &why), &why);
		int r;
		uint64_t until = sl_now() + 60 * SL_NS_PER_SEC; /* namespaces may have a copy of the mount */
		while ((r = sl_native_clear(x->store, &c, &why)) == -EBUSY && sl_now() < until) {
			free(why);
			why = NULL;
		}
		expect_ok(r, &why);
		sl_store_config_fini(&c);
		rm_tree(x->dir);
	}
	free(x);
	return 0;
}

static struct sl_attr attr(struct fx *x, uint32_t mode, uint64_t size, uint32_t nlink)
{
	return (struct sl_attr){.ino = ++x->ino,
				.generation = 7,
				.size = size,
				.blocks = SL_DIV_UP(size, 512),
				.mode = mode,
				.nlink = nlink,
				.no_xattrs = true,
				.mtime = {1500000000 + (time_t)x->ino, 5},
				.ctime = {1500000000 + (time_t)x->ino, 6}};
}

static int make(struct fx *x, const char *name, const struct sl_attr *a)
{
	return sl_placeholder_make(sl_object_root(x->s), x->tree, name, a, NULL);
}

static ino_t ino_of(struct fx *x, const char *name)
{
	struct stat st;
	return fstatat(x->tree, name, &st, AT_SYMLINK_NOFOLLOW) < 0 ? 0 : st.st_ino;
}

static char *at_origin(struct fx *x, const char *place)
{
	return path_in(x->origin, place);
}

/* ---- tests ---- */

/* What an interrupted listing left is made anew, and goes, unless somebody has it open or has changed it. */
static void test_left(void **state)
{
	need_all();
	struct fx *x = *state;
	struct sl_object *root = sl_object_root(x->s);
	struct sl_attr first = attr(x, S_IFREG | 0644, 5000, 1), second = attr(x, S_IFREG | 0644, 6000, 1);
	expect_ok(make(x, "f", &first), NULL);
	ino_t ino = ino_of(x, "f");
	x->fd = openat(x->tree, "f", O_RDONLY | O_CLOEXEC);
	assert_true(x->fd >= 0);
	assert_int_equal(make(x, "f", &second), -EBUSY);
	assert_int_equal(sl_placeholder_remove(root, x->tree, "f"), -EBUSY);
	assert_int_equal(ino_of(x, "f"), ino);
	close(sl_steal_fd(&x->fd));
	/* As somebody leaves it who has written to it, in the moment before that is told. */
	struct timespec now[2] = {{.tv_nsec = UTIME_OMIT}, {.tv_nsec = UTIME_NOW}},
			was[2] = {{.tv_nsec = UTIME_OMIT}, first.mtime};
	assert_int_equal(utimensat(x->tree, "f", now, 0), 0);
	assert_int_equal(make(x, "f", &second), -EBUSY);
	assert_int_equal(sl_placeholder_remove(root, x->tree, "f"), -EBUSY);
	assert_int_equal(ino_of(x, "f"), ino);
	x->fd = openat(x->tree, "f", O_WRONLY | O_CLOEXEC);
	assert_int_equal(ftruncate(x->fd, 4096), 0);
	close(sl_steal_fd(&x->fd));
	assert_int_equal(utimensat(x->tree, "f", was, 0), 0);
	assert_int_equal(make(x, "f", &second), -EBUSY);
	assert_int_equal(ino_of(x, "f"), ino);
	assert_int_equal(unlinkat(x->tree, "f", 0), 0);

	expect_ok(make(x, "f", &first), NULL);
	expect_ok(make(x, "f", &second), NULL);
	struct stat st;
	assert_int_equal(fstatat(x->tree, "f", &st, 0), 0);
	assert_int_equal(st.st_size, 6000);
	expect_ok(sl_placeholder_remove(root, x->tree, "f"), NULL);
	assert_int_equal(ino_of(x, "f"), 0);
}

/* Where the file of a known name cannot be looked at just now, the next name does not become another file. */
static void test_passing(void **state)
{
	need_all();
	struct fx *x = *state;
	struct sl_attr a = attr(x, S_IFREG | 0644, 5000, 3);
	struct sl_handle h;
	expect_ok(make(x, "one", &a), NULL);
	expect_ok(sl_handle_get(x->tree, "one", &h), NULL);
	static const int errs[] = {-EMFILE, -ENFILE, -ENOMEM, -EIO};
	for (size_t i = 0; i < SL_ARRAY_SIZE(errs); i++) {
		lib.handle = &h;
		lib.handle_err = errs[i];
		assert_int_equal(make(x, "two", &a), errs[i]);
		assert_int_equal(ino_of(x, "two"), 0);
		lib.handle = NULL;
		lib.getxattr_err = errs[i];
		assert_int_equal(make(x, "two", &a), errs[i]);
		assert_int_equal(ino_of(x, "two"), 0);
		lib.getxattr_err = 0;
	}
	expect_ok(make(x, "two", &a), NULL);
	assert_int_equal(ino_of(x, "two"), ino_of(x, "one"));
	/* One that is gone stands for nothing. */
	lib.handle = &h;
	lib.handle_err = -ESTALE;
	expect_ok(make(x, "three", &a), NULL);
	assert_int_not_equal(ino_of(x, "three"), ino_of(x, "one"));
}

/* What is made where nobody sees it does not stay there. */
static void test_hidden(void **state)
{
	need_all();
	struct fx *x = *state;
	struct sl_object *root = sl_object_root(x->s), *o = NULL;
	struct sl_oentry e = {.name = (char *)"f", .attr = attr(x, S_IFREG | 0644, 5000, 1)};
	char hidden[32];
	unsigned before = entries(x->s->stage_fd);
	lib.getxattr_err = -EIO;
	assert_int_equal(sl_placeholder_hide(root, x->tree, &e, hidden, &o), -EIO);
	lib.getxattr_err = 0;
	assert_int_equal(entries(x->s->stage_fd), before);
	/* Another has got its name meanwhile. */
	expect_ok(sl_placeholder_hide(root, x->tree, &e, hidden, &o), NULL);
	sl_object_put(o);
	assert_int_equal(entries(x->s->stage_fd), before + 1);
	expect_ok(make(x, "f", &e.attr), NULL);
	ino_t ino = ino_of(x, "f");
	expect_ok(sl_placeholder_show(root, x->tree, &e, hidden), NULL);
	assert_int_equal(entries(x->s->stage_fd), before);
	assert_int_equal(ino_of(x, "f"), ino);
	/* Or another name of its file has come. */
	e.name = (char *)"two";
	e.attr = attr(x, S_IFREG | 0644, 5000, 2);
	expect_ok(sl_placeholder_hide(root, x->tree, &e, hidden, &o), NULL);
	sl_object_put(o);
	expect_ok(make(x, "one", &e.attr), NULL);
	expect_ok(sl_placeholder_show(root, x->tree, &e, hidden), NULL);
	assert_int_equal(entries(x->s->stage_fd), before);
	assert_int_equal(ino_of(x, "two"), ino_of(x, "one"));
}

/* The log of what has come is on disk before it takes the place of the one before. */
static void test_log(void **state)
{
	need_all();
	struct fx *x = *state;
	struct sl_object *root = sl_object_root(x->s);
	struct sl_attr a = attr(x, S_IFREG | 0644, 0, 1);
	for (unsigned i = 0; i < 20000; i++) {
		sl_object_came(root, "x", &a);
		sl_object_forget_came(root, "x");
	}
	assert_true(lib.replaced > 0);
	assert_false(lib.replaced_unsynced);
}

/* What has come with a listing is noted before the replay may go on with the names. */
static void test_noted_first(void **state)
{
	need_all();
	struct fx *x = *state;
	put(at_origin(x, "one"), "two names");
	assert_int_equal(link(at_origin(x, "one"), at_origin(x, "two")), 0);
	lib.noted = sl_object_root(x->s);
	lib.noted_in = -1;
	expect_ok(sl_fill_wait(x->f, SL_WANT_NAMES, lib.noted, 0, 0), NULL);
	assert_int_equal(lib.noted_in, SL_COLD);
	assert_int_equal(lib.noted->rec.state, SL_FULL);
}

/* A listing for which there is no room leaves what it has made: somebody may have it open. */
static void test_no_room(void **state)
{
	need_all();
	struct fx *x = *state;
	put(at_origin(x, "a"), "a");
	put(at_origin(x, "b"), "b");
	lib.link_after = 2;
	assert_int_equal(sl_fill_wait(x->f, SL_WANT_NAMES, sl_object_root(x->s), 0, 0), -ENOSPC);
	assert_int_equal(entries(x->tree), 1);
	ino_t ino = ino_of(x, "a") ? ino_of(x, "a") : ino_of(x, "b");
	expect_ok(sl_fill_wait(x->f, SL_WANT_NAMES, sl_object_root(x->s), 0, 0), NULL);
	assert_int_equal(entries(x->tree), 2);
	assert_true(ino_of(x, "a") == ino || ino_of(x, "b") == ino);
}

/* ---- other names of a file ---- */

struct search {
	struct sl_peers *p;
	struct sl_version v;
	struct sl_object *found, *new;
};

static void *search(void *arg)
{
	struct search *x = arg;
	x->found = sl_peers_find(x->p, &x->v, NULL);
	return NULL;
}

static void *note_new(void *arg)
{
	struct search *x = arg;
	sl_peers_note(x->p, x->new);
	return NULL;
}

/* While all records are read for it, what comes is noted without waiting. */
static void test_peers(void **state)
{
	need_all();
	struct fx *x = *state;
	struct sl_attr a = attr(x, S_IFREG | 0644, 5000, 1), b = attr(x, S_IFREG | 0644, 5000, 1);
	struct search q = {.v = sl_attr_version(&a)};
	pthread_t finder, noter;
	char hidden[32];
	expect_ok(sl_peers_new(x->s, &q.p), NULL);
	expect_ok(make(x, "a", &a), NULL);
	/* One that the walk does not find. */
	struct sl_oentry e = {.name = (char *)"b", .attr = b};
	expect_ok(sl_placeholder_hide(sl_object_root(x->s), x->tree, &e, hidden, &q.new), NULL);
	lib.hold = 1;
	assert_int_equal(pthread_create(&finder, NULL, search, &q), 0);
	while (lib.hold != 2)
		usleep(1000);
	assert_int_equal(pthread_create(&noter, NULL, note_new, &q), 0);
	struct timespec until;
	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += 20;
	int r = pthread_timedjoin_np(noter, NULL, &until);
	lib.hold = 0;
	if (r)
		pthread_join(noter, NULL);
	pthread_join(finder, NULL);
	bool same = q.found && q.found->rec.origin.ino == a.ino;
	sl_object_put(q.found);
	q.v = sl_attr_version(&b);
	q.found = sl_peers_find(q.p, &q.v, NULL);
	bool noted = q.found == q.new;
	sl_object_put(q.found);
	sl_object_put(q.new);
	sl_peers_free(q.p);
	assert_int_equal(r, 0);
	assert_true(same && noted);
}

/* What was taken for another name of a file for a while, and is not, does not hide those that are. */
static void test_peers_several(void **state)
{
	need_all();
	struct fx *x = *state;
	struct sl_attr a = attr(x, S_IFREG | 0644, 5000, 1), b = attr(x, S_IFREG | 0644, 5000, 1);
	struct sl_version va = sl_attr_version(&a), vb = sl_attr_version(&b);
	struct sl_object *root = sl_object_root(x->s), *oa, *ob, *found[2];
	struct sl_peers *p;
	expect_ok(sl_peers_new(x->s, &p), NULL);
	expect_ok(make(x, "a", &a), NULL);
	expect_ok(make(x, "b", &b), NULL);
	expect_ok(sl_object_lookup(root, "a", &oa), NULL);
	expect_ok(sl_object_lookup(root, "b", &ob), NULL);
	found[0] = sl_peers_find(p, &va, NULL);
	ob->rec.origin = va;
	sl_peers_note(p, ob);
	ob->rec.origin = vb;
	found[1] = sl_peers_find(p, &va, NULL);
	bool same = found[0] == oa && found[1] == oa;
	/* Two stand for it: of these it is always the same, and the other is said. */
	struct sl_object *more = NULL, *one;
	ob->rec.origin = va;
	one = sl_peers_find(p, &va, &more);
	same &= (one == oa && more == ob) || (one == ob && more == oa);
	sl_object_put(more);
	more = sl_peers_find(p, &va, NULL);
	same &= more == one;
	sl_object_put(more);
	sl_object_put(one);
	ob->rec.origin = vb;
	/* Ten more: the table forgets some, and finds what is true of the last. */
	for (int i = 0; i < 10; i++) {
		char name[8];
		struct sl_object *o;
		struct sl_attr c = attr(x, S_IFREG | 0644, 5000, 1);
		snprintf(name, sizeof(name), "c%d", i);
		expect_ok(make(x, name, &c), NULL);
		expect_ok(sl_object_lookup(root, name, &o), NULL);
		o->rec.origin = va;
		sl_peers_note(p, o);
		if (i < 9)
			o->rec.origin = sl_attr_version(&c);
		sl_object_put(oa);
		oa = o;
	}
	found[0]->rec.origin = vb;
	struct sl_object *last = sl_peers_find(p, &va, NULL);
	same &= last == oa;
	sl_object_put(last);
	for (int i = 0; i < 2; i++)
		sl_object_put(found[i]);
	sl_object_put(oa);
	sl_object_put(ob);
	sl_peers_free(p);
	assert_true(same);
}

/* ---- walks ---- */

static int count_file(void *arg, const char *path, struct sl_object *o, int err)
{
	(void)path;
	(void)err;
	*(int *)arg += o && sl_object_is_reg(o);
	return 0;
}

/* A file of several names is met once, or by each of them; by its path each name is found. */
static void test_walk_names(void **state)
{
	need_all();
	struct fx *x = *state;
	struct sl_attr a = attr(x, S_IFREG | 0644, 5000, 1);
	struct sl_object *root = sl_object_root(x->s), *dir[2], *o[2];
	int files = 0, names = 0;
	expect_ok(make(x, "a", &a), NULL);
	assert_int_equal(mkdirat(x->tree, "d", 0755), 0);
	assert_int_equal(linkat(x->tree, "a", x->tree, "d/b", 0), 0);
	assert_int_equal(sl_walk(root, count_file, &files), 0);
	assert_int_equal(sl_walk_names(root, count_file, &names), 0);
	assert_int_equal(files, 1);
	assert_int_equal(names, 2);
	expect_ok(sl_object_by_path(x->s, "a", &dir[0], &o[0]), NULL);
	expect_ok(sl_object_by_path(x->s, "d/b", &dir[1], &o[1]), NULL);
	assert_ptr_equal(dir[0], root);
	assert_ptr_not_equal(dir[1], root);
	assert_ptr_equal(o[0], o[1]);
	for (int i = 0; i < 2; i++) {
		sl_object_put(dir[i]);
		sl_object_put(o[i]);
	}
	assert_int_equal(sl_object_by_path(x->s, "d/none", &dir[0], &o[0]), -ENOENT);
	assert_int_equal(sl_object_by_path(x->s, "a/b", &dir[0], &o[0]), -ENOTDIR);
}

/* ---- a name to which another file comes while it is looked up ---- */

static void test_swapped(void **state)
{
	need_all();
	struct fx *x = *state;
	struct sl_attr at[2] = {attr(x, S_IFREG | 0644, 5000, 1), attr(x, S_IFREG | 0644, 5000, 1)};
	struct stat st[2];
	expect_ok(make(x, "a", &at[0]), NULL);
	expect_ok(make(x, "b", &at[1]), NULL);
	for (int i = 0; i < 2; i++)
		assert_int_equal(fstatat(x->tree, i ? "b" : "a", &st[i], 0), 0);
	struct sl_object *o, *b;
	for (int i = 0; i < 2; i++) { /* nobody knows them; "b" is known */
		b = NULL;
		if (i)
			expect_ok(sl_object_lookup(sl_object_root(x->s), "b", &b), NULL);
		lib.swap_in = x->tree;
		expect_ok(sl_object_lookup(sl_object_root(x->s), "a", &o), NULL);
		lib.swap_in = 0;
		int is = sl_object_ino(o) == st[1].st_ino;
		bool right = is || sl_object_ino(o) == st[0].st_ino;
		uint64_t handle = 0;
		assert_true(sl_handle_ino(&o->handle, &handle));
		assert_true(right && handle == sl_object_ino(o) && o->rec.origin.ino == at[is].ino);
		sl_object_put(b);
		sl_object_put(o);
	}
}

/* ---- a name that goes between the listing and its extended attributes ---- */

static struct {
	const struct sl_origin_ops *ops;
	const char *from, *to;
	unsigned left; /* so often it goes, and another one comes */
} stray;

static void stray_submit(struct sl_origin *o, struct sl_oreq *r)
{
	if (r->op == SL_OREQ_XATTRS && stray.left && stray.left--) {
		const char *from = stray.from;
		assert_int_equal(rename(from, stray.to), 0);
		stray.from = stray.to;
		stray.to = from;
	}
	stray.ops->submit(o, r);
}

static void test_stray(void **state)
{
	need_all();
	struct fx *x = *state;
	char a[512], b[512], v[4];
	mkdir(at_origin(x, "d"), 0755);
	snprintf(a, sizeof(a), "%s", at_origin(x, "d/a"));
	snprintf(b, sizeof(b), "%s", at_origin(x, "d/b"));
	put(a, "text");
	assert_int_equal(setxattr(a, "user.x", "y", 1, 0), 0);
	expect_ok(sl_fill_wait(x->f, SL_WANT_NAMES, sl_object_root(x->s), 0, 0), NULL);
	struct sl_origin_ops ops = *x->o->ops;
	stray.ops = x->o->ops;
	stray.from = a;
	stray.to = b;
	stray.left = 1;
	ops.submit = stray_submit;
	x->o->ops = &ops;
	_cleanup_object_ struct sl_object *d = NULL, *o = NULL, *e = NULL;
	expect_ok(sl_object_lookup(sl_object_root(x->s), "d", &d), NULL);
	struct stat st;
	expect_ok(sl_fill_wait(x->f, SL_WANT_NAMES, d, 0, 0), NULL);
	x->o->ops = stray.ops;
	x->fd = sl_object_open_dir(d);
	assert_int_equal(entries(x->fd), 1);
	expect_ok(sl_object_lookup(d, "b", &o), NULL);
	assert_false(o->rec.flags & SL_XATTRS);
	assert_int_equal(fstat(x->fd, &st), 0);
	assert_int_equal(st.st_mtim.tv_sec, d->rec.origin.mtime.tv_sec);
	assert_int_equal(st.st_mtim.tv_nsec, d->rec.origin.mtime.tv_nsec);
	close(sl_steal_fd(&x->fd));
	x->fd = sl_object_open(o, O_RDONLY);
	assert_int_equal(fgetxattr(x->fd, "user.x", v, sizeof(v)), 1);
	/* One that goes all the time is not waited for. */
	mkdir(at_origin(x, "e"), 0755);
	snprintf(a, sizeof(a), "%s", at_origin(x, "e/a"));
	snprintf(b, sizeof(b), "%s", at_origin(x, "e/b"));
	put(a, "text");
	assert_int_equal(setxattr(a, "user.x", "y", 1, 0), 0);
	put(at_origin(x, "e/plain"), "has none");
	struct sl_attr at = attr(x, S_IFDIR | 0755, 0, 2);
	expect_ok(make(x, "e", &at), NULL);
	/* Its time, which somebody has set here, stays. */
	struct timespec own[2] = {{.tv_sec = 1000}, {.tv_sec = 2000, .tv_nsec = 3}};
	assert_int_equal(utimensat(x->tree, "e", own, 0), 0);
	stray.from = a;
	stray.to = b;
	stray.left = 1000;
	x->o->ops = &ops;
	expect_ok(sl_object_lookup(sl_object_root(x->s), "e", &e), NULL);
	expect_ok(sl_fill_wait(x->f, SL_WANT_NAMES, e, 0, 0), NULL);
	x->o->ops = stray.ops;
	assert_true(stray.left >= 995 && stray.left < 1000);
	assert_int_equal(fstatat(x->tree, "e", &st, 0), 0);
	assert_int_equal(st.st_mtim.tv_sec, 2000);
	assert_int_equal(st.st_mtim.tv_nsec, 3);
	assert_int_equal(entries(x->s->stage_fd), 0);
}

int main(void)
{
	const char *only = getenv("ONLY");
	if (only)
		cmocka_set_test_filter(only);
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test_setup_teardown(test_left, setup, teardown),
	    cmocka_unit_test_setup_teardown(test_passing, setup, teardown),
	    cmocka_unit_test_setup_teardown(test_hidden, setup, teardown),
	    cmocka_unit_test_setup_teardown(test_log, setup, teardown),
	    cmocka_unit_test_setup_teardown(test_noted_first, setup, teardown),
	    cmocka_unit_test_setup_teardown(test_no_room, setup, teardown),
	    cmocka_unit_test_setup_teardown(test_peers, setup, teardown),
	    cmocka_unit_test_setup_teardown(test_peers_several, setup, teardown),
	    cmocka_unit_test_setup_teardown(test_walk_names, setup, teardown),
	    cmocka_unit_test_setup_teardown(test_swapped, setup, teardown),
	    cmocka_unit_test_setup_teardown(test_stray, setup, teardown),
	};
	return cmocka_run_group_tests_name("native store", tests, NULL, NULL);
}
