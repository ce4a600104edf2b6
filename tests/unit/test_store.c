/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The store on disk: making and opening one, placeholders and what is read of them again, with privilege and without. If this
 * fails, a clone does not come back as it was, or takes something for a store that is none.
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
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <sys/xattr.h>

#include "base/fd.h"
#include "base/log.h"
#include "store/index.h"
#include "store/internal.h"
#include "store/walk.h"
#include "store/xattr.h"

struct fx {
	char base[48], path[64];
	struct sl_store *s;
	struct sl_object *root;
	uint64_t ino;
};

static const struct sl_store_config config = {
	.origin = (char *)"ssh://host/\xc3\xa4", .dir = (char *)"/mnt/d", .id = (char *)"abc", .allow_other = true,
	.limit = 1ull << 40, .reserve = 12345, .timeout = 7, .root_ino = 99, .root_generation = 0xffffffff};

static void open_store(struct fx *x)
{
	_cleanup_free_ char *why = NULL;
	int r = sl_store_open(x->path, &x->s, &why);
	if (r < 0)
		print_error("%s\n", why ? why : strerror(-r));
	assert_int_equal(r, 0);
	x->root = sl_object_root(x->s);
}

static void close_store(struct fx *x)
{
	if (x->s)
		assert_int_equal(x->s->table.n, 1);
	sl_store_close(x->s);
	x->s = NULL;
}

static int setup(void **state)
{
	struct fx *x = calloc(1, sizeof(*x));
	strcpy(x->base, "/tmp/sluice-store-XXXXXX");
	assert_non_null(mkdtemp(x->base));
	assert_int_equal(chmod(x->base, 0777), 0);
	snprintf(x->path, sizeof(x->path), "%s/store", x->base);
	x->ino = 100;
	*state = x;
	return 0;
}

static int setup_open(void **state)
{
	setup(state);
	struct fx *x = *state;
	assert_int_equal(sl_store_create(x->path, &config, NULL), 0);
	open_store(x);
	return 0;
}

/* As nobody: records in the user namespace, owners that cannot be kept, special files that are stood in for. */
static int setup_unprivileged(void **state)
{
	setup(state);
	struct fx *x = *state;
	if (geteuid() == 0)
		assert_int_equal(seteuid(65534), 0);
	assert_int_equal(sl_store_create(x->path, &config, NULL), 0);
	open_store(x);
	assert_false(sl_store_privileged(x->s));
	return 0;
}

static int teardown(void **state)
{
	struct fx *x = *state;
	close_store(x);
	if (getuid() == 0)
		assert_int_equal(seteuid(0), 0);
	assert_int_equal(sl_remove_tree(AT_FDCWD, x->base), 0);
	free(x);
	return 0;
}

/* ---- the whole ---- */

static int open_error(struct fx *x)
{
	struct sl_store *s;
	_cleanup_free_ char *why = NULL;
	int r = sl_store_open(x->path, &s, &why);
	assert_true(r < 0);
	assert_non_null(why);
	return r;
}

static int create_error(struct fx *x, const struct sl_store_config *c)
{
	_cleanup_free_ char *why = NULL;
	int r = sl_store_create(x->path, c, &why);
	assert_true(r < 0);
	assert_non_null(why);
	return r;
}

static void write_text(struct fx *x, const char *name, const char *text)
{
	char p[128];
	snprintf(p, sizeof(p), "%s/%s", x->path, name);
	int fd = open(p, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	assert_int_equal(sl_write_full(fd, text, strlen(text)), 0);
	close(fd);
}

static void test_create(void **state)
{
	struct fx *x = *state;
	struct sl_store_config c;
	struct stat st;
	assert_int_equal(open_error(x), -ENOENT);
	assert_int_equal(sl_store_create(x->path, &config, NULL), 0);
	assert_int_equal(stat(x->path, &st), 0);
	assert_int_equal(st.st_mode & 07777, 0700);
	assert_int_equal(create_error(x, &config), -EEXIST);
	assert_int_equal(sl_store_config_load(x->path, &c, NULL), 0);
	assert_string_equal(c.origin, config.origin);
	assert_string_equal(c.dir, config.dir);
	assert_string_equal(c.id, config.id);
	assert_true(c.allow_other);
	assert_false(c.insecure_plain);
	assert_int_equal(c.limit, config.limit);
	assert_int_equal(c.reserve, config.reserve);
	assert_int_equal(c.timeout, config.timeout);
	assert_int_equal(c.root_ino, 99);
	assert_int_equal(c.root_generation, 0xffffffff);
	sl_store_config_fini(&c);
	open_store(x);
	assert_int_equal(open_error(x), -EBUSY);
	assert_int_equal(sl_store_privileged(x->s), geteuid() == 0);
	assert_int_equal(x->root->rec.state, SL_COLD);
	close_store(x);
	open_store(x); /* closing gave the lock back */
	close_store(x);
	assert_int_equal(sl_store_remove(x->path, NULL), 0);
	assert_int_equal(access(x->path, F_OK), -1);
	assert_int_equal(sl_store_remove(x->path, NULL), 0);
	/* An empty directory will do. */
	assert_int_equal(mkdir(x->path, 0755), 0);
	assert_int_equal(sl_store_create(x->path, &config, NULL), 0);
	/* What is not ours survives, and so does its directory. */
	write_text(x, "mine", "x");
	assert_int_equal(sl_store_remove(x->path, NULL), 0);
	char p[128];
	snprintf(p, sizeof(p), "%s/mine", x->path);
	assert_int_equal(access(p, F_OK), 0);
	assert_int_equal(open_error(x), -ENOENT);
	assert_int_equal(create_error(x, &config), -ENOTEMPTY);
	assert_int_equal(access(p, F_OK), 0);
}

static void test_create_fails(void **state)
{
	struct fx *x = *state;
	struct sl_store_config c = config;
	c.dir = (char *)"/not utf-8 \xff";
	assert_int_equal(create_error(x, &c), -EILSEQ);
	assert_int_equal(access(x->path, F_OK), -1);
	char *path = strdup(x->path);
	snprintf(x->path, sizeof(x->path), "%s/no/store", x->base);
	assert_int_equal(create_error(x, &config), -ENOENT);
	snprintf(x->path, sizeof(x->path), "%s/file", x->base);
	close(open(x->path, O_CREAT | O_WRONLY, 0600));
	assert_true(create_error(x, &config) == -ENOTDIR);
	assert_int_equal(access(x->path, F_OK), 0);
	strcpy(x->path, path);
	free(path);
}

static void test_damaged_config(void **state)
{
	struct fx *x = *state;
	static const struct {
		const char *text;
		int err;
	} bad[] = {
		{"", -EBADMSG},
		{"{", -EBADMSG},
		{"[]", -EBADMSG},
		{"{}", -EBADMSG},
		{"{\"format\": 1, \"origin\": \"o\", \"dir\": \"d\"}", -EBADMSG},
		{"{\"format\": 1, \"origin\": 1, \"dir\": \"d\", \"id\": \"i\"}", -EBADMSG},
		{"{\"format\": 0, \"origin\": \"o\", \"dir\": \"d\", \"id\": \"i\"}", -EBADMSG},
		{"{\"format\": 2, \"origin\": \"o\", \"dir\": \"d\", \"id\": \"i\"}", -EPROTONOSUPPORT},
		{"{\"format\": 99}", -EPROTONOSUPPORT},
	};
	assert_int_equal(sl_store_create(x->path, &config, NULL), 0);
	for (size_t i = 0; i < SL_ARRAY_SIZE(bad); i++) {
		write_text(x, "sluice.json", bad[i].text);
		assert_int_equal(open_error(x), bad[i].err);
	}
	write_text(x, "sluice.json", "{\"format\": 1, \"origin\": \"o\", \"dir\": \"d\", \"id\": \"i\", \"limit\": -5, \"more\": 1}");
	open_store(x);
	assert_int_equal(sl_store_config(x->s)->limit, 0);
	assert_int_equal(sl_store_config(x->s)->reserve, SL_STORE_DEFAULT_RESERVE);
	close_store(x);
	/* A damaged record of the root. */
	char p[128];
	snprintf(p, sizeof(p), "%s/tree", x->path);
	const char *name = geteuid() ? "user.sluice" : "trusted.sluice";
	assert_int_equal(setxattr(p, name, "x", 1, 0), 0);
	assert_true(open_error(x) == -EPROTONOSUPPORT); /* 'x' is a higher format */
	assert_int_equal(setxattr(p, name, "\1", 1, 0), 0);
	assert_true(open_error(x) == -EBADMSG);
}

/* ---- placeholders ---- */

static struct sl_attr attr(struct fx *x, uint32_t mode, uint64_t size)
{
	return (struct sl_attr){.ino = ++x->ino,
				.generation = 0x1234567890ull,
				.size = size,
				.blocks = SL_DIV_UP(size, 512),
				.mode = mode,
				.nlink = 1,
				.uid = 1234,
				.gid = 5678,
				.no_xattrs = true,
				.atime = {111, 222},
				.mtime = {-5, 999999999},
				.ctime = {1600000000, 123456789}};
}

static int put(struct fx *x, const char *name, const struct sl_attr *a, const char *target)
{
	_cleanup_close_ int fd = sl_object_open_dir(x->root);
	return sl_placeholder_make(x->root, fd, name, a, target);
}

static struct sl_object *get(struct fx *x, const char *name)
{
	struct sl_object *o = NULL;
	assert_int_equal(sl_object_lookup(x->root, name, &o), 0);
	return o;
}

static void check(struct fx *x, const char *name, const struct sl_attr *a)
{
	_cleanup_object_ struct sl_object *o = get(x, name);
	struct sl_attr b;
	assert_int_equal(sl_object_attr(o, &b), 0);
	bool recorded = sl_store_privileged(x->s) || !S_ISLNK(a->mode);
	if (recorded)
		assert_int_equal(b.mode, a->mode);
	assert_int_equal(b.mode & S_IFMT, a->mode & S_IFMT);
	assert_int_equal(o->type, a->mode & S_IFMT);
	if (S_ISREG(a->mode))
		assert_int_equal(b.size, a->size);
	assert_int_equal(b.mtime.tv_sec, a->mtime.tv_sec);
	assert_int_equal(b.mtime.tv_nsec, a->mtime.tv_nsec);
	if (recorded) {
		assert_int_equal(b.ctime.tv_sec, a->ctime.tv_sec);
		assert_int_equal(b.rdev, a->rdev);
		struct sl_version v = sl_attr_version(a);
		assert_true(sl_version_eq(&o->rec.origin, &v));
	}
	if (sl_store_privileged(x->s)) {
		assert_int_equal(b.uid, a->uid);
		assert_int_equal(b.gid, a->gid);
	}
	if (!S_ISDIR(a->mode))
		assert_int_equal(b.nlink, a->nlink);
	enum sl_state want = S_ISDIR(a->mode) || (S_ISREG(a->mode) && a->size) ? SL_COLD : SL_FULL;
	assert_int_equal(o->rec.state, want);
	if (S_ISREG(a->mode)) {
		assert_int_equal(sl_chunkmap_bytes(&o->map), 0);
		_cleanup_close_ int fd = sl_object_open(o, O_RDONLY);
		struct stat st;
		assert_int_equal(fstat(fd, &st), 0);
		assert_int_equal(st.st_size, a->size);
		/* Nobody gains rights by the store's own file. */
		if (!sl_store_privileged(x->s))
			assert_int_equal(st.st_mode & 07000, 0);
	}
}

static void test_placeholders(void **state)
{
	struct fx *x = *state;
	struct {
		const char *name;
		struct sl_attr a;
	} v[] = {
		{"empty", attr(x, S_IFREG | 0644, 0)},
		{"file", attr(x, S_IFREG | 0600, 12345)},
		{"large", attr(x, S_IFREG | 0444, 1ull << 40)},
		{"none", attr(x, S_IFREG, 10)},
		{"suid", attr(x, S_IFREG | 06755, 10)},
		{"all", attr(x, S_IFREG | 0777, 10)},
		{"dir", attr(x, S_IFDIR | 01777, 4096)},
		{"closed", attr(x, S_IFDIR, 4096)},
		{"link", attr(x, S_IFLNK | 0777, 6)},
		{"fifo", attr(x, S_IFIFO | 0620, 0)},
		{"sock", attr(x, S_IFSOCK | 0755, 0)},
		{"chr", attr(x, S_IFCHR | 0666, 0)},
		{"blk", attr(x, S_IFBLK | 0660, 0)},
		{"h1", attr(x, S_IFREG | 0644, 777)},
		{"\xff not utf-8 \n", attr(x, S_IFREG | 0644, 1)},
	};
	size_t n = SL_ARRAY_SIZE(v);
	mode_t old = umask(077); /* counts for nothing that is shown */
	v[11].a.rdev = makedev(1, 3);
	v[12].a.rdev = makedev(0xabc, 0x54321);
	v[13].a.nlink = 2;
	for (size_t i = 0; i < n; i++)
		assert_int_equal(put(x, v[i].name, &v[i].a, S_ISLNK(v[i].a.mode) ? "a/../t" : NULL), 0);
	assert_int_equal(put(x, "h2", &v[13].a, NULL), 0);
	umask(old);
	for (int round = 0; round < 2; round++) {
		for (size_t i = 0; i < n; i++)
			check(x, v[i].name, &v[i].a);
		_cleanup_object_ struct sl_object *h1 = get(x, "h1"), *h2 = get(x, "h2"), *l = get(x, "link");
		assert_ptr_equal(h1, h2);
		char buf[100];
		assert_int_equal(sl_object_readlink(l, buf, sizeof(buf)), 6);
		assert_memory_equal(buf, "a/../t", 6);
		sl_object_put(sl_steal_ptr(&h1));
		sl_object_put(sl_steal_ptr(&h2));
		sl_object_put(sl_steal_ptr(&l));
		close_store(x);
		open_store(x);
	}
	const struct sl_attr bad = attr(x, S_IFLNK | 0777, 6);
	assert_int_equal(put(x, "bad", &bad, NULL), -EPROTO);
	assert_int_equal(put(x, "bad", &bad, ""), -EPROTO);
}

/* These take the places of the C library's in all of this program. */
static bool dying;

int futimens(int fd, const struct timespec ts[2])
{
	if (dying)
		_exit(0);
	return (int)syscall(SYS_utimensat, fd, NULL, ts, 0);
}

int utimensat(int dirfd, const char *name, const struct timespec ts[2], int flags)
{
	if (dying)
		_exit(0);
	return (int)syscall(SYS_utimensat, dirfd, name, ts, flags);
}

/* We are killed while a placeholder is made, when its times are set: the next attempt does not take it for whole. */
static void test_killed(void **state)
{
	struct fx *x = *state;
	const struct sl_attr made[] = {attr(x, S_IFREG | 0644, 1000), attr(x, S_IFDIR | 0755, 0), attr(x, S_IFLNK | 0777, 3)};
	for (size_t i = 0; i < 3; i++) {
		int status;
		pid_t pid = fork();
		if (pid == 0) {
			dying = true;
			(void)put(x, "n", &made[i], S_ISLNK(made[i].mode) ? "one" : NULL);
			_exit(1);
		}
		assert_int_equal(waitpid(pid, &status, 0), pid);
		assert_int_equal(status, 0);
		assert_int_equal(put(x, "n", &made[i], S_ISLNK(made[i].mode) ? "one" : NULL), 0);
		check(x, "n", &made[i]);
		_cleanup_close_ int fd = sl_object_open_dir(x->root);
		struct stat st;
		assert_int_equal(fstatat(fd, "n", &st, AT_SYMLINK_NOFOLLOW), 0);
		assert_true(sl_time_eq(st.st_mtim, made[i].mtime));
		assert_int_equal(sl_remove_tree(fd, "n"), 0);
	}
}

/* Populate was interrupted, and begins again: all that was left is replaced or stays, nothing of the user's goes. */
static void test_repeated(void **state)
{
	struct fx *x = *state;
	struct sl_attr f = attr(x, S_IFREG | 0644, 1000), d = attr(x, S_IFDIR | 0755, 0), l = attr(x, S_IFLNK | 0777, 1);
	assert_int_equal(put(x, "f", &f, NULL), 0);
	assert_int_equal(put(x, "d", &d, NULL), 0);
	assert_int_equal(put(x, "l", &l, "one"), 0);
	_cleanup_close_ int fd = sl_object_open_dir(x->root);
	struct stat before, after;
	assert_int_equal(fstatat(fd, "f", &before, 0), 0);
	/* The same again: nothing happens. */
	assert_int_equal(put(x, "f", &f, NULL), 0);
	assert_int_equal(put(x, "d", &d, NULL), 0);
	assert_int_equal(fstatat(fd, "f", &after, 0), 0);
	assert_int_equal(after.st_ino, before.st_ino);
	/* A new version, another object, another type. */
	f.size = 2000;
	f.mtime.tv_sec++;
	assert_int_equal(put(x, "f", &f, NULL), 0);
	check(x, "f", &f);
	f = attr(x, S_IFREG | 0600, 5);
	assert_int_equal(put(x, "f", &f, NULL), 0);
	check(x, "f", &f);
	l = attr(x, S_IFREG | 0600, 5);
	assert_int_equal(put(x, "l", &l, NULL), 0);
	check(x, "l", &l);
	d = attr(x, S_IFLNK | 0777, 5);
	assert_int_equal(put(x, "d", &d, "two"), 0);
	check(x, "d", &d);
	/* What a crash left without a record. */
	close(openat(fd, "half", O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
	assert_int_equal(mkdirat(fd, "halfdir", 0700), 0);
	const struct sl_attr h = attr(x, S_IFREG | 0644, 77), hd = attr(x, S_IFDIR | 0755, 0);
	assert_int_equal(put(x, "half", &h, NULL), 0);
	assert_int_equal(put(x, "halfdir", &hd, NULL), 0);
	check(x, "half", &h);
	check(x, "halfdir", &hd);
	/* The user's. */
	int u = openat(fd, "mine", O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
	assert_int_equal(sl_write_full(u, "mine", 4), 0);
	close(u);
	struct sl_object *mine = NULL;
	assert_int_equal(sl_object_adopt(x->root, "mine", S_IFREG | 0600, 0, &mine), 0);
	sl_object_put(mine);
	assert_int_equal(put(x, "mine", &h, NULL), 0);
	assert_int_equal(sl_placeholder_remove(x->root, fd, "mine"), 0);
	mine = get(x, "mine");
	struct sl_attr a;
	assert_int_equal(sl_object_attr(mine, &a), 0);
	assert_int_equal(a.size, 4);
	assert_true(mine->rec.flags & SL_LOCAL);
	sl_object_put(mine);
	/* Leftovers go. */
	assert_int_equal(sl_placeholder_remove(x->root, fd, "half"), 0);
	assert_int_equal(sl_placeholder_remove(x->root, fd, "halfdir"), 0);
	assert_int_equal(sl_placeholder_remove(x->root, fd, "never"), 0);
	assert_int_equal(faccessat(fd, "half", F_OK, 0), -1);
	assert_int_equal(faccessat(fd, "halfdir", F_OK, 0), -1);
}

static int count_bad(void *arg, const char *path, struct sl_object *o, int err)
{
	(void)path;
	if (!o) {
		assert_int_equal(err, -EBADMSG);
		++*(int *)arg;
	}
	return 0;
}

/* Why the object called @name is damaged; that it cannot be used, although it can be looked up. */
static int damage(struct fx *x, const char *name)
{
	_cleanup_object_ struct sl_object *o = NULL;
	struct sl_attr a;
	assert_int_equal(sl_object_lookup(x->root, name, &o), 0);
	if (o->damaged) {
		assert_int_equal(sl_object_open(o, O_RDONLY), -EIO);
		assert_int_equal(sl_object_attr(o, &a), 0);
		assert_int_equal(a.size, sl_object_is_dir(o) ? 4096 : 0);
		assert_int_equal(sl_object_set_owner(o, 0600, (uid_t)-1, (gid_t)-1), -EIO);
	}
	return o->damaged;
}

static void test_damaged_record(void **state)
{
	struct fx *x = *state;
	const struct sl_attr a = attr(x, S_IFREG | 0644, 1000), b = attr(x, S_IFREG | 0644, 1000), d = attr(x, S_IFDIR | 0755, 0);
	assert_int_equal(put(x, "a", &a, NULL), 0);
	assert_int_equal(put(x, "b", &b, NULL), 0);
	assert_int_equal(put(x, "d", &d, NULL), 0);
	char p[128], rec[SL_RECORD_SIZE];
	struct sl_object *o = NULL;
	snprintf(p, sizeof(p), "%s/tree/a", x->path);
	assert_int_equal(getxattr(p, x->s->xattr_record, rec, sizeof(rec)), SL_RECORD_SIZE);
	rec[20] ^= 1;
	assert_int_equal(setxattr(p, x->s->xattr_record, rec, sizeof(rec), 0), 0);
	assert_int_equal(damage(x, "a"), -EBADMSG);
	assert_int_equal(damage(x, "a"), -EBADMSG);
	assert_int_equal(damage(x, "b"), 0);
	check(x, "b", &b);
	int bad = 0;
	assert_int_equal(sl_walk(x->root, count_bad, &bad), 0);
	assert_int_equal(bad, 1);
	/* A file's record on a directory. */
	assert_int_equal(getxattr(p, x->s->xattr_record, rec, sizeof(rec)), SL_RECORD_SIZE);
	rec[20] ^= 1;
	snprintf(p, sizeof(p), "%s/tree/d", x->path);
	assert_int_equal(setxattr(p, x->s->xattr_record, rec, sizeof(rec), 0), 0);
	assert_int_equal(damage(x, "d"), -EBADMSG);
	rec[0] = 2;
	assert_int_equal(setxattr(p, x->s->xattr_record, rec, sizeof(rec), 0), 0);
	assert_int_equal(damage(x, "d"), -EPROTONOSUPPORT);
	/* What is damaged may be deleted. */
	assert_int_equal(sl_object_unlink(x->root, "a", false), 0);
	assert_int_equal(sl_object_lookup(x->root, "a", &o), -ENOENT);
	assert_int_equal(sl_object_unlink(x->root, "d", true), 0);
}

/* A map that cannot be read: nothing is here. */
static void test_damaged_map(void **state)
{
	struct fx *x = *state;
	const struct sl_attr a = attr(x, S_IFREG | 0644, 1000000);
	char p[128];
	assert_int_equal(put(x, "a", &a, NULL), 0);
	struct sl_object *o = get(x, "a");
	assert_int_equal(sl_chunkmap_set(&o->map, 65536, 65536), 0);
	pthread_mutex_lock(&o->lock);
	o->rec.state = SL_PARTIAL;
	o->rec.chunk_shift = o->map.chunk_shift;
	assert_int_equal(sl_object_save_map(o, false), 0);
	assert_int_equal(sl_object_save(o), 0);
	pthread_mutex_unlock(&o->lock);
	sl_object_put(o);
	o = get(x, "a");
	assert_int_equal(sl_chunkmap_bytes(&o->map), 65536);
	sl_object_put(o);
	snprintf(p, sizeof(p), "%s/tree/a", x->path);
	assert_int_equal(setxattr(p, x->s->xattr_map, "\xff\xff\xff", 3, 0), 0);
	o = get(x, "a");
	assert_int_equal(sl_chunkmap_bytes(&o->map), 0);
	sl_object_put(o);
	assert_int_equal(removexattr(p, x->s->xattr_map), 0);
	o = get(x, "a");
	assert_int_equal(sl_chunkmap_bytes(&o->map), 0);
	sl_object_put(o);
}

/* ---- attributes of users ---- */

static void test_xattrs(void **state)
{
	struct fx *x = *state;
	const struct sl_attr a = attr(x, S_IFREG | 0644, 10), l = attr(x, S_IFLNK | 0777, 1), d = attr(x, S_IFDIR | 0755, 0);
	char buf[256];
	assert_int_equal(put(x, "f", &a, NULL), 0);
	assert_int_equal(put(x, "l", &l, "f"), 0);
	assert_int_equal(put(x, "d", &d, NULL), 0);
	static const char *const all[] = {"f", "d"};
	for (size_t i = 0; i < 2; i++) {
		_cleanup_object_ struct sl_object *o = get(x, all[i]);
		assert_int_equal(sl_xattr_list(o, buf, sizeof(buf)), 0);
		assert_int_equal(sl_xattr_set(o, "user.a", "value", 5, XATTR_REPLACE), -ENODATA);
		assert_int_equal(sl_xattr_set(o, "user.a", "value", 5, XATTR_CREATE), 0);
		assert_int_equal(sl_xattr_set(o, "user.a", "value", 5, XATTR_CREATE), -EEXIST);
		assert_int_equal(sl_xattr_set(o, "user.b", "", 0, 0), 0);
		assert_int_equal(sl_xattr_get(o, "user.a", NULL, 0), 5);
		assert_int_equal(sl_xattr_get(o, "user.a", buf, 2), -ERANGE);
		assert_int_equal(sl_xattr_get(o, "user.a", buf, sizeof(buf)), 5);
		assert_memory_equal(buf, "value", 5);
		assert_int_equal(sl_xattr_list(o, NULL, 0), 14);
		assert_int_equal(sl_xattr_list(o, buf, 13), -ERANGE);
		assert_int_equal(sl_xattr_list(o, buf, sizeof(buf)), 14);
		/* The store's own are neither seen nor changed. */
		static const char *const own[] = {"trusted.sluice", "user.sluice", "user.sluice.map", "trusted.other", "security.capability",
						  "user.sluice.place"};
		for (size_t k = 0; k < SL_ARRAY_SIZE(own); k++) {
			assert_int_equal(sl_xattr_get(o, own[k], buf, sizeof(buf)), -ENODATA);
			assert_int_equal(sl_xattr_set(o, own[k], "x", 1, 0), -EPERM);
			assert_int_equal(sl_xattr_remove(o, own[k]), -ENODATA);
		}
		assert_int_equal(sl_xattr_remove(o, "user.a"), 0);
		assert_int_equal(sl_xattr_remove(o, "user.a"), -ENODATA);
		assert_int_equal(sl_xattr_list(o, buf, sizeof(buf)), 7);
	}
	_cleanup_object_ struct sl_object *s = get(x, "l");
	assert_int_equal(sl_xattr_set(s, "user.a", "x", 1, 0), -EPERM);
	assert_int_equal(sl_xattr_get(s, "user.a", buf, sizeof(buf)), -ENODATA);
	assert_int_equal(sl_xattr_list(s, buf, sizeof(buf)), 0);
}

static void test_meta(void **state)
{
	struct fx *x = *state;
	const struct sl_attr a = attr(x, S_IFREG | 0644, 10), d = attr(x, S_IFDIR | 0755, 10);
	struct sl_attr b;
	assert_int_equal(put(x, "f", &a, NULL), 0);
	assert_int_equal(put(x, "d", &d, NULL), 0);
	struct sl_object *o = get(x, "f");
	/* The time of the last access alone is nothing of the origin's. */
	struct timespec ts[2] = {{55, 5}, {.tv_nsec = UTIME_OMIT}};
	assert_int_equal(sl_object_set_times(o, ts), 0);
	assert_false(o->rec.flags & SL_META);
	assert_int_equal(sl_object_attr(o, &b), 0);
	assert_int_equal(b.atime.tv_sec, 55);
	assert_int_equal(b.ctime.tv_sec, a.ctime.tv_sec);
	/* chmod: the time of the content is still the origin's, that of the change is now. */
	assert_int_equal(sl_object_set_owner(o, 0400, (uid_t)-1, (gid_t)-1), 0);
	assert_true(o->rec.flags & SL_META);
	assert_int_equal(sl_object_attr(o, &b), 0);
	assert_int_equal(b.mode, S_IFREG | 0400);
	assert_int_equal(b.mtime.tv_sec, a.mtime.tv_sec);
	assert_int_equal(b.mtime.tv_nsec, a.mtime.tv_nsec);
	assert_true(b.ctime.tv_sec > a.ctime.tv_sec);
	ts[1] = (struct timespec){-77, 7};
	assert_int_equal(sl_object_set_times(o, ts), 0);
	assert_int_equal(sl_object_attr(o, &b), 0);
	assert_int_equal(b.mtime.tv_sec, -77);
	assert_int_equal(b.size, 10);
	int r = sl_object_set_owner(o, -1, 4321, 8765);
	if (sl_store_privileged(x->s)) {
		assert_int_equal(r, 0);
		assert_int_equal(sl_object_attr(o, &b), 0);
		assert_int_equal(b.uid, 4321);
	} else {
		assert_int_equal(r, -EPERM);
	}
	sl_object_put(o);
	o = get(x, "d");
	assert_int_equal(sl_object_touch(o), 0);
	assert_int_equal(sl_object_attr(o, &b), 0);
	assert_int_equal(b.mtime.tv_sec, d.mtime.tv_sec);
	sl_object_put(o);
	close_store(x);
	open_store(x);
	o = get(x, "f");
	assert_int_equal(sl_object_attr(o, &b), 0);
	assert_int_equal(b.mtime.tv_sec, -77);
	assert_int_equal(b.mode, S_IFREG | 0400);
	sl_object_put(o);
}

/* What is not here costs a descriptor for a while only. */
static void test_descriptors(void **state)
{
	struct fx *x = *state;
	x->s->fd_max = 8;
	struct sl_object *o[200];
	char name[16];
	for (int i = 0; i < 200; i++) {
		const struct sl_attr d = attr(x, S_IFDIR | 0755, 0), f = attr(x, S_IFREG | 0644, 1);
		snprintf(name, sizeof(name), "d%d", i);
		assert_int_equal(put(x, name, &d, NULL), 0);
		o[i] = get(x, name);
		_cleanup_close_ int fd = sl_object_open_dir(o[i]);
		assert_int_equal(sl_placeholder_make(o[i], fd, "f", &f, NULL), 0);
		struct sl_object *c = NULL;
		assert_int_equal(sl_object_lookup(o[i], "f", &c), 0);
		sl_object_put(c);
		assert_true(x->s->fd_count <= 8);
	}
	for (int i = 0; i < 200; i++)
		sl_object_put(o[i]);
}

/* An object that nobody looked up, by its number and by a descriptor; after its name has changed, and without one. */
static void test_index(void **state)
{
	struct fx *x = *state;
	const struct sl_attr d = attr(x, S_IFDIR | 0755, 0), f = attr(x, S_IFREG | 0644, 1), s = attr(x, S_IFLNK | 0777, 1);
	assert_int_equal(put(x, "d", &d, NULL), 0);
	assert_int_equal(put(x, "link", &s, "d"), 0);
	struct sl_object *dir = get(x, "d"), *o = NULL;
	_cleanup_close_ int dfd = sl_object_open_dir(dir);
	assert_int_equal(sl_placeholder_make(dir, dfd, "e", &d, NULL), 0);
	_cleanup_close_ int efd = openat(dfd, "e", O_RDONLY | O_DIRECTORY);
	assert_int_equal(sl_placeholder_make(dir, efd, "f", &f, NULL), 0);
	struct stat st, lst;
	assert_int_equal(fstatat(efd, "f", &st, 0), 0);
	assert_int_equal(fstatat(dfd, "../link", &lst, AT_SYMLINK_NOFOLLOW), 0);
	sl_object_put(dir);
	assert_int_equal(x->s->table.n, 1);

	struct sl_index *i = NULL;
	assert_int_equal(sl_index_new(x->s, &i), 0);
	assert_int_equal(sl_index_find(i, sl_object_ino(x->root), &o), 0);
	assert_ptr_equal(o, x->root);
	sl_object_put(o);
	assert_int_equal(sl_index_find(i, lst.st_ino, &o), 0);
	assert_string_equal(o->name, "link");
	sl_object_put(o);
	assert_int_equal(sl_index_find(i, st.st_ino, &o), 0);
	assert_int_equal(sl_object_ino(o), st.st_ino);
	assert_string_equal(o->name, "f");
	assert_string_equal(o->parent->name, "e");

	/* What is noted is found at once; what is not, after the names have been read again. */
	assert_int_equal(renameat(efd, "f", efd, "g"), 0);
	free(o->name);
	o->name = strdup("g");
	sl_index_note(i, o);
	sl_object_put(o);
	assert_int_equal(x->s->table.n, 1);
	assert_int_equal(sl_index_find(i, st.st_ino, &o), 0);
	assert_string_equal(o->name, "g");
	sl_object_put(o);

	_cleanup_close_ int fd = openat(efd, "g", O_RDONLY);
	assert_int_equal(sl_index_find_fd(i, fd, &o), 0);
	assert_string_equal(o->name, "g");
	sl_object_put(o);
	assert_int_equal(unlinkat(efd, "g", 0), 0);
	assert_int_equal(sl_index_find(i, st.st_ino, &o), -ENOENT);
	assert_int_equal(sl_index_find_fd(i, fd, &o), 0);
	assert_int_equal(sl_object_ino(o), st.st_ino);
	assert_null(o->name);
	assert_true(o->fd >= 0);
	sl_object_put(o);
	assert_int_equal(sl_index_find(i, 1, &o), -ENOENT);
	sl_index_free(i);
}

#define T(name)	 cmocka_unit_test_setup_teardown(test_##name, setup, teardown)
#define TP(name) {"test_" #name, test_##name, setup_open, teardown, NULL}
#define TU(name) {"test_" #name "_unprivileged", test_##name, setup_unprivileged, teardown, NULL}

int main(int argc, char **argv)
{
	if (argc > 1)
		cmocka_set_test_filter(argv[1]);
	sl_log_set_level((enum sl_log_level)0);
	const struct CMUnitTest tests[] = {
		T(create),	     T(create_fails),	   T(damaged_config),	TP(placeholders), TU(placeholders), TP(repeated), TU(repeated), TP(killed), TU(killed),
		TP(damaged_record),  TU(damaged_record), TP(damaged_map), TU(damaged_map), TP(xattrs), TU(xattrs), TP(meta), TU(meta),
		TP(descriptors),     TP(index),		TU(index),
	};
	return cmocka_run_group_tests_name("store", tests, NULL, NULL);
}
