/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The backends for changes of a local tree, each test over both. If this fails, changes at an origin are not
 * heard of, or in the wrong order, or under the wrong name. (suite: threads)
 *
 * With privilege the tree is on a filesystem of its own, so that nobody else fills the queue. The seed of
 * what is random is printed; NOTIFY_SEED=N repeats it.
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
#include <sched.h>
#include <stdatomic.h>
#include <sys/inotify.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <sys/xattr.h>

#include "base/beneath.h"
#include "base/fd.h"
#include "base/time.h"
#include "notify/backend.h"

#define DIRS  80
#define QUEUE 16384 /* of the kernel, unless somebody changed it */

static char top[256]; /* where trees are made */
static bool own_fs, root_user;

/* ---- a listener ---- */

struct rec {
	uint64_t mask;
	struct sl_evid dir, newdir, child;
	char *name, *newname;
	uint32_t tid;
};

struct fix {
	enum sl_backend_kind kind;
	bool skip;
	char path[300];
	int root;
	struct sl_backend *b;
	struct sl_evid ids[DIRS];
	char *labels[DIRS];
	unsigned n_dirs;

	pthread_mutex_t lock;
	pthread_cond_t cond;
	struct rec *v;
	size_t n, size, seen; /* @seen: given out by line() */
	unsigned calls, idle_calls, in_callback;
	bool last_idle, hold;
	size_t largest;
};

static char *dup_or_null(const char *s)
{
	return s ? strdup(s) : NULL;
}

static void on_changes(void *arg, const struct sl_change *v, unsigned n, bool idle)
{
	struct fix *f = arg;
	pthread_mutex_lock(&f->lock);
	f->in_callback++;
	pthread_cond_broadcast(&f->cond);
	while (f->hold)
		pthread_cond_wait(&f->cond, &f->lock);
	f->calls++;
	f->idle_calls += idle;
	f->last_idle = idle;
	f->largest = n > f->largest ? n : f->largest;
	for (unsigned i = 0; i < n; i++) {
		if (f->n == f->size) {
			f->size = f->size ? 2 * f->size : 256;
			f->v = reallocarray(f->v, f->size, sizeof(*f->v));
		}
		f->v[f->n++] = (struct rec){.mask = v[i].mask,
					    .dir = v[i].dir,
					    .newdir = v[i].newdir,
					    .child = v[i].child,
					    .tid = v[i].tid,
					    .name = dup_or_null(v[i].name),
					    .newname = dup_or_null(v[i].newname)};
	}
	pthread_cond_broadcast(&f->cond);
	pthread_mutex_unlock(&f->lock);
}

static void clear(struct fix *f)
{
	pthread_mutex_lock(&f->lock);
	for (size_t i = 0; i < f->n; i++) {
		free(f->v[i].name);
		free(f->v[i].newname);
	}
	f->n = f->seen = 0;
	pthread_mutex_unlock(&f->lock);
}

static struct sl_evid id_of(int dirfd, const char *name)
{
	struct stat st;
	assert_int_equal(fstatat(dirfd, name, &st, AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH), 0);
	return (struct sl_evid){.generation = sl_handle_generation(dirfd, name), .ino = st.st_ino};
}

static bool same(const struct sl_evid *a, const struct sl_evid *b)
{
	return a->generation && b->generation ? a->generation == b->generation : a->ino && a->ino == b->ino;
}

/* Mark the directory @path of the tree; changes in it are known by that name. */
static unsigned watch_dir(struct fix *f, const char *path)
{
	int fd = openat(f->root, *path ? path : ".", O_PATH | O_DIRECTORY | O_CLOEXEC);
	assert_true(fd >= 0);
	unsigned n = f->n_dirs++;
	assert_true(n < DIRS);
	f->ids[n] = id_of(fd, "");
	f->labels[n] = strdup(path);
	assert_int_equal(sl_backend_mark(f->b, fd, &f->ids[n]), 0);
	close(fd);
	return n;
}

static unsigned make_dir(struct fix *f, const char *path)
{
	assert_int_equal(mkdirat(f->root, path, 0755), 0);
	return watch_dir(f, path);
}

static const char *label(const struct fix *f, const struct sl_evid *id)
{
	for (unsigned i = 0; i < f->n_dirs; i++)
		if (same(&f->ids[i], id))
			return f->labels[i];
	return NULL;
}

static void start(struct fix *f, uint64_t use, unsigned max_marks)
{
	struct sl_backend_config cfg = {.kind = f->kind,
					.root_fd = f->root,
					.max_marks = max_marks,
					.mask = use,
					.changes = on_changes,
					.arg = f};
	_cleanup_free_ char *why = NULL;
	int r = sl_backend_open(&cfg, &f->b, &why);
	if (r == -EPERM || r == -EOPNOTSUPP) {
		print_message("# skipped: %s\n", why);
		f->skip = true;
		return;
	}
	if (r < 0)
		print_message("# %s\n", why);
	assert_int_equal(r, 0);
	assert_int_equal(sl_backend_kind(f->b), f->kind);
}

static int setup(void **state, enum sl_backend_kind kind)
{
	struct fix *f = calloc(1, sizeof(*f));
	f->kind = kind;
	pthread_mutex_init(&f->lock, NULL);
	pthread_cond_init(&f->cond, NULL);
	snprintf(f->path, sizeof(f->path), "%s/notify.XXXXXX", top);
	if (!mkdtemp(f->path))
		return -1;
	char root[320];
	snprintf(root, sizeof(root), "%s/root", f->path);
	mkdir(root, 0755);
	f->root = open(root, O_PATH | O_DIRECTORY | O_CLOEXEC);
	*state = f;
	return f->root < 0;
}

static int setup_fanotify(void **state)
{
	return setup(state, SL_BACKEND_FANOTIFY);
}

static int setup_inotify(void **state)
{
	return setup(state, SL_BACKEND_INOTIFY);
}

static int teardown(void **state)
{
	struct fix *f = *state;
	pthread_mutex_lock(&f->lock);
	f->hold = false;
	pthread_cond_broadcast(&f->cond);
	pthread_mutex_unlock(&f->lock);
	sl_backend_close(f->b);
	clear(f);
	for (unsigned i = 0; i < f->n_dirs; i++)
		free(f->labels[i]);
	free(f->v);
	close(f->root);
	int r = sl_remove_tree(AT_FDCWD, f->path);
	pthread_cond_destroy(&f->cond);
	pthread_mutex_destroy(&f->lock);
	free(f);
	return r;
}

/* Begin a test: the backend, without what cannot be had. */
#define BEGIN(f, state)                                                                                      \
	struct fix *f = *(state);                                                                            \
	start(f, 0, 0);                                                                                      \
	if (f->skip)                                                                                         \
	skip()

static void settle(struct fix *f)
{
	assert_int_equal(sl_backend_settle(f->b), 0);
}

/* Keep the listener busy from the next change on. */
static void hold(struct fix *f)
{
	pthread_mutex_lock(&f->lock);
	f->hold = true;
	unsigned before = f->in_callback;
	pthread_mutex_unlock(&f->lock);
	int fd = openat(f->root, "hold", O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
	assert_true(fd >= 0);
	close(fd);
	pthread_mutex_lock(&f->lock);
	while (f->in_callback == before)
		pthread_cond_wait(&f->cond, &f->lock);
	pthread_mutex_unlock(&f->lock);
}

static void let_go(struct fix *f)
{
	pthread_mutex_lock(&f->lock);
	f->hold = false;
	pthread_cond_broadcast(&f->cond);
	pthread_mutex_unlock(&f->lock);
}

/* ---- what was heard, as text ---- */

static const struct {
	uint64_t bit;
	const char *text;
} kinds[] = {{FAN_CREATE, "create"},	   {FAN_MOVED_FROM, "from"},	 {FAN_MOVED_TO, "to"},
	     {FAN_RENAME, "rename"},	   {FAN_OPEN, "open"},		 {FAN_ACCESS, "access"},
	     {FAN_MODIFY, "modify"},	   {FAN_ATTRIB, "attrib"},	 {FAN_CLOSE_WRITE, "written"},
	     {FAN_CLOSE_NOWRITE, "close"}, {FAN_DELETE, "delete"},	 {FAN_DELETE_SELF, "deleted"},
	     {FAN_MOVE_SELF, "moved"},	   {FAN_Q_OVERFLOW, "overflow"}, {FAN_ONDIR, "dir"}};

static void put_place(char *buf, size_t size, const char *dir, const char *name)
{
	size_t n = strlen(buf);
	snprintf(buf + n, size - n, " %s%s%s", dir, *dir && name ? "/" : "", name ? name : *dir ? "" : ".");
}

/* The next change of a known directory, "" if there is none. */
static const char *line(struct fix *f)
{
	static char buf[1400];
	*buf = '\0';
	pthread_mutex_lock(&f->lock);
	while (f->seen < f->n && !*buf) {
		const struct rec *r = &f->v[f->seen++];
		const char *dir = label(f, &r->dir);
		if (!dir && r->mask != FAN_Q_OVERFLOW)
			continue;
		for (size_t i = 0; i < SL_ARRAY_SIZE(kinds); i++)
			if (r->mask & kinds[i].bit) {
				strcat(buf, *buf ? "," : "");
				strcat(buf, kinds[i].text);
			}
		if (dir)
			put_place(buf, sizeof(buf), dir, r->name);
		if (r->mask & FAN_RENAME) {
			const char *newdir = label(f, &r->newdir);
			put_place(buf, sizeof(buf), newdir ? newdir : "?", r->newname);
		}
	}
	pthread_mutex_unlock(&f->lock);
	return buf;
}

/* All of it, after everything was heard. */
static void expect_at(struct fix *f, int where, const char *first, ...)
{
	va_list ap;
	va_start(ap, first);
	settle(f);
	for (const char *want = first; want; want = va_arg(ap, const char *)) {
		const char *got = line(f);
		if (strcmp(got, want) != 0)
			fail_msg("line %d: '%s' instead of '%s'", where, got, want);
	}
	va_end(ap);
	const char *got = line(f);
	if (*got)
		fail_msg("line %d: '%s' as well", where, got);
	clear(f);
}
#define expect(f, ...)	  expect_at(f, __LINE__, __VA_ARGS__, NULL)
#define expect_nothing(f) expect_at(f, __LINE__, NULL)
#define ok(x)		  assert_true((x) >= 0)

static void make_file(struct fix *f, const char *path)
{
	int fd = openat(f->root, path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
	ok(fd);
	settle(f); /* its closing is an event of its own */
	close(fd);
	settle(f);
}

/* A file that is there before anybody listens to its directory's next change. */
static void have_file(struct fix *f, const char *path)
{
	make_file(f, path);
	clear(f);
}

/* ---- the tests ---- */

static void test_create(void **state)
{
	BEGIN(f, state);
	make_dir(f, "d");
	int fd = openat(f->root, "d/file", O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
	ok(fd);
	expect(f, "create d/file");
	close(fd);
	expect(f, "written d/file");
	ok(mkdirat(f->root, "d/dir", 0755));
	expect(f, "create,dir d/dir");
	ok(symlinkat("nowhere", f->root, "d/link"));
	expect(f, "create d/link");
	ok(linkat(f->root, "d/file", f->root, "d/hard", 0));
	expect(f, "create d/hard");
	ok(mkfifoat(f->root, "d/fifo", 0644));
	expect(f, "create d/fifo");
	struct sockaddr_un a = {.sun_family = AF_UNIX};
	snprintf(a.sun_path, sizeof(a.sun_path), "/proc/self/fd/%d/d/sock", f->root);
	int s = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	ok(s);
	ok(bind(s, (struct sockaddr *)&a, sizeof(a)));
	close(s);
	expect(f, "create d/sock");
	if (root_user && mknodat(f->root, "d/null", S_IFCHR | 0600, makedev(1, 3)) == 0)
		expect(f, "create d/null");
	/* Where nothing is marked, and above, nothing is known. */
	ok(mkdirat(f->root, "d/dir/below", 0755));
	ok(mkdirat(f->root, "beside", 0755));
	expect_nothing(f);
}

static void test_delete(void **state)
{
	BEGIN(f, state);
	make_dir(f, "d");
	have_file(f, "d/file");
	ok(linkat(f->root, "d/file", f->root, "d/hard", 0));
	ok(mkdirat(f->root, "d/dir", 0755));
	ok(symlinkat("nowhere", f->root, "d/link"));
	settle(f);
	clear(f);
	ok(unlinkat(f->root, "d/hard", 0));
	expect(f, "delete d/hard");
	ok(unlinkat(f->root, "d/file", 0));
	expect(f, "delete d/file");
	ok(unlinkat(f->root, "d/link", 0));
	expect(f, "delete d/link");
	ok(unlinkat(f->root, "d/dir", AT_REMOVEDIR));
	expect(f, "delete,dir d/dir");
}

static void test_content(void **state)
{
	BEGIN(f, state);
	make_dir(f, "d");
	have_file(f, "d/file");
	int fd = openat(f->root, "d/file", O_RDWR | O_CLOEXEC);
	ok(fd);
	expect_nothing(f);
	assert_int_equal(write(fd, "x", 1), 1);
	expect(f, "modify d/file");
	ok(ftruncate(fd, 100));
	expect(f, "modify d/file");
	close(fd);
	expect(f, "written d/file");
	fd = openat(f->root, "d/file", O_RDONLY | O_CLOEXEC);
	char c;
	assert_int_equal(read(fd, &c, 1), 1);
	close(fd);
	expect_nothing(f);
}

static void test_attributes(void **state)
{
	BEGIN(f, state);
	make_dir(f, "d");
	make_dir(f, "d/dir");
	have_file(f, "d/file");
	ok(fchmodat(f->root, "d/file", 0600, 0));
	expect(f, "attrib d/file");
	ok(fchownat(f->root, "d/file", geteuid(), getegid(), 0));
	expect(f, "attrib d/file");
	struct timespec t[2] = {{.tv_sec = 1}, {.tv_sec = 2}};
	ok(utimensat(f->root, "d/file", t, 0));
	expect(f, "attrib d/file");
	ok(fchmodat(f->root, "d/dir", 0700, 0));
	expect(f, "attrib,dir d/dir");
	int fd = openat(f->root, "d/file", O_RDONLY | O_CLOEXEC);
	if (fsetxattr(fd, "user.notify", "1", 1, 0) == 0) {
		expect(f, "attrib d/file");
		ok(fremovexattr(fd, "user.notify"));
		expect(f, "attrib d/file");
	}
	close(fd);
}

static int rename2(struct fix *f, const char *a, const char *b, unsigned flags)
{
	return (int)syscall(SYS_renameat2, f->root, a, f->root, b, flags);
}

static void test_rename(void **state)
{
	BEGIN(f, state);
	make_dir(f, "d");
	make_dir(f, "e");
	ok(mkdirat(f->root, "out", 0755));
	have_file(f, "d/a");
	ok(rename2(f, "d/a", "d/b", 0));
	expect(f, "rename d/a d/b");
	ok(rename2(f, "d/b", "e/c", 0));
	expect(f, "rename d/b e/c");
	/* Over a name that is there: no word of what was there. */
	have_file(f, "d/over");
	ok(rename2(f, "e/c", "d/over", 0));
	expect(f, "rename e/c d/over");
	/* An exchange. */
	have_file(f, "e/x");
	ok(rename2(f, "d/over", "e/x", 2));
	expect(f, "rename d/over e/x", "rename e/x d/over");
	/* Out of what is marked, and into it: fanotify knows the other side all the same. */
	ok(rename2(f, "e/x", "out/y", 0));
	if (f->kind == SL_BACKEND_FANOTIFY)
		expect(f, "rename e/x ?/y");
	else
		expect(f, "from e/x");
	ok(rename2(f, "out/y", "d/z", 0));
	if (f->kind == SL_BACKEND_FANOTIFY)
		expect_nothing(f); /* line() shows changes of a known first directory only */
	else
		expect(f, "to d/z");
	ok(rename2(f, "d/z", "out/y", 0));
	settle(f);
	clear(f);
	ok(rename2(f, "out/y", "e/y", 0));
	settle(f);
	bool heard = false;
	for (size_t i = 0; i < f->n; i++) {
		const struct rec *r = &f->v[i];
		const char *to = label(f, f->kind == SL_BACKEND_FANOTIFY ? &r->newdir : &r->dir);
		heard |= to && strcmp(to, "e") == 0 &&
			 strcmp(f->kind == SL_BACKEND_FANOTIFY ? r->newname : r->name, "y") == 0;
	}
	assert_true(heard);
}

/* Directories keep being heard of wherever they go. */
static void test_rename_directory(void **state)
{
	BEGIN(f, state);
	make_dir(f, "d");
	make_dir(f, "e");
	unsigned n = make_dir(f, "d/sub");
	settle(f);
	clear(f);
	ok(rename2(f, "d/sub", "e/bus", 0));
	expect(f, "rename,dir d/sub e/bus");
	free(f->labels[n]);
	f->labels[n] = strdup("e/bus");
	ok(mkdirat(f->root, "e/bus/x", 0755));
	expect(f, "create,dir e/bus/x");
	have_file(f, "d/file");
	ok(rename2(f, "d/file", "e/bus", 2)); /* a directory and a file change places */
	expect(f, "rename d/file e/bus", "rename,dir e/bus d/file");
}

static void test_unlink_open(void **state)
{
	BEGIN(f, state);
	make_dir(f, "d");
	have_file(f, "d/file");
	int fd = openat(f->root, "d/file", O_WRONLY | O_CLOEXEC);
	ok(unlinkat(f->root, "d/file", 0));
	expect(f, "delete d/file");
	assert_int_equal(write(fd, "x", 1), 1);
	expect(f, "modify d/file");
	close(fd);
	expect(f, "written d/file");
}

static void test_root(void **state)
{
	BEGIN(f, state);
	watch_dir(f, "");
	ok(mkdirat(f->root, "x", 0755));
	expect(f, "create,dir x");
	ok(unlinkat(f->root, "x", AT_REMOVEDIR));
	expect(f, "delete,dir x");
	char a[320], b[320], c[330];
	snprintf(a, sizeof(a), "%s/root", f->path);
	snprintf(b, sizeof(b), "%s/moved", f->path);
	snprintf(c, sizeof(c), "%s/other/moved", f->path);
	ok(chmod(a, 0700));
	expect(f, "attrib,dir .");
	ok(rename(a, b));
	expect(f, "moved,dir .");
	snprintf(a, sizeof(a), "%s/other", f->path);
	ok(mkdir(a, 0755));
	ok(rename(b, c));
	expect(f, "moved,dir .");
	ok(rmdir(c));
	expect(f, "deleted,dir .");
	assert_true(f->kind == SL_BACKEND_INOTIFY || same(&f->ids[0], &f->ids[0]));
}

/* The root tells of itself although nobody marked it. */
static void test_root_unmarked(void **state)
{
	BEGIN(f, state);
	f->ids[0] = id_of(f->root, "");
	f->labels[0] = strdup("");
	f->n_dirs = 1;
	char a[320];
	snprintf(a, sizeof(a), "%s/root", f->path);
	ok(chmod(a, 0700));
	expect(f, "attrib,dir .");
	/* Marked and no longer marked, it still does. */
	assert_int_equal(sl_backend_mark(f->b, f->root, &f->ids[0]), 0);
	sl_backend_unmark(f->b, &f->ids[0]);
	ok(chmod(a, 0711));
	expect(f, "attrib,dir .");
	ok(rmdir(a));
	expect(f, "deleted,dir .");
}

static void test_names(void **state)
{
	BEGIN(f, state);
	make_dir(f, "d");
	char name[256], want[300], path[300];
	for (size_t len = 1; len <= 255; len += len < 20 ? 1 : 47) {
		for (size_t i = 0; i < len; i++) {
			name[i] = (char)(1 + (len * 31 + i * 7) % 255);
			if (name[i] == '/')
				name[i] = '\n';
		}
		name[len] = '\0';
		snprintf(path, sizeof(path), "d/%s", name);
		ok(mkdirat(f->root, path, 0755));
		snprintf(want, sizeof(want), "create,dir d/%s", name);
		expect(f, want);
		ok(unlinkat(f->root, path, AT_REMOVEDIR));
		settle(f);
		clear(f);
	}
	char other[300];
	memset(name, 'a', 255);
	name[255] = '\0';
	snprintf(path, sizeof(path), "d/%s", name);
	memset(name, 0xff, 255);
	snprintf(other, sizeof(other), "d/%s", name);
	have_file(f, path);
	ok(rename2(f, path, other, 0));
	char both[700];
	snprintf(both, sizeof(both), "rename %s %s", path, other);
	expect(f, both);
}

/* The object that an event is about, as serve/ knows it, on the filesystem of the tree and on that of TMPDIR.
 */
static void test_identity(void **state)
{
	BEGIN(f, state);
	unsigned d = make_dir(f, "d");
	ok(mkdirat(f->root, "d/x", 0755));
	struct sl_evid id = id_of(f->root, "d/x");
	settle(f);
	bool heard = false;
	for (size_t i = 0; i < f->n; i++) {
		const struct rec *r = &f->v[i];
		if (!same(&r->dir, &f->ids[d]))
			continue;
		heard = true;
		assert_string_equal(r->name, "x");
		assert_true(f->kind == SL_BACKEND_FANOTIFY ? r->child.generation == id.generation
							   : r->child.generation == 0 && r->child.ino == 0);
	}
	assert_true(heard);
}

static void test_identity_here(void **state)
{
	(void)state;
	const char *tmp = getenv("TMPDIR");
	char saved[sizeof(top)];
	strcpy(saved, top);
	snprintf(top, sizeof(top), "%s", tmp && strlen(tmp) < 200 ? tmp : "/tmp");
	void *st = NULL;
	int r = setup_fanotify(&st);
	strcpy(top, saved);
	assert_int_equal(r, 0);
	struct fix *f = st;
	start(f, 0, 0);
	bool skipped = f->skip, heard = false;
	/* Others change this filesystem too, and may do so faster than we read. */
	for (int i = 0; !skipped && !heard && i < 1000; i++) {
		char name[32];
		snprintf(name, sizeof(name), "x%d", i);
		ok(mkdirat(f->root, name, 0755));
		struct sl_evid dir = id_of(f->root, ""), child = id_of(f->root, name);
		settle(f);
		pthread_mutex_lock(&f->lock);
		for (size_t k = 0; k < f->n; k++)
			heard |= f->v[k].mask == (FAN_CREATE | FAN_ONDIR) &&
				 f->v[k].dir.generation == dir.generation &&
				 f->v[k].child.generation == child.generation &&
				 strcmp(f->v[k].name, name) == 0;
		pthread_mutex_unlock(&f->lock);
		clear(f);
	}
	teardown(&st);
	if (skipped)
		skip();
	assert_true(heard);
}

/* Of one name by one actor, when nobody reads: the kinds may come as one, and none is missing. */
static void test_merged(void **state)
{
	BEGIN(f, state);
	watch_dir(f, "");
	unsigned d = make_dir(f, "d");
	settle(f);
	hold(f);
	for (int i = 0; i < 3; i++) {
		int fd = openat(f->root, "d/file", O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
		ok(fd);
		assert_int_equal(write(fd, "x", 1), 1);
		close(fd);
		ok(unlinkat(f->root, "d/file", 0));
	}
	let_go(f);
	settle(f);
	uint64_t mask = 0;
	unsigned n = 0, creates = 0;
	for (size_t i = 0; i < f->n; i++)
		if (same(&f->v[i].dir, &f->ids[d])) {
			assert_string_equal(f->v[i].name, "file");
			mask |= f->v[i].mask;
			creates += f->v[i].mask & FAN_CREATE ? 1 : 0;
			n++;
		}
	assert_int_equal(mask, FAN_CREATE | FAN_MODIFY | FAN_CLOSE_WRITE | FAN_DELETE);
	assert_int_equal(creates, 3); /* three objects: never one of them for two */
	assert_int_equal(n, f->kind == SL_BACKEND_FANOTIFY ? 3 : 12);
}

/* In the order in which they were made, and all of them, also when they come faster than they are taken. */
static void test_order(void **state)
{
	BEGIN(f, state);
	watch_dir(f, "");
	unsigned d[2] = {make_dir(f, "d"), make_dir(f, "e")};
	settle(f);
	clear(f);
	unsigned made[2] = {0}, heard[2] = {0};
	const unsigned rounds = 6, each = QUEUE / 4;
	for (unsigned r = 0; r < rounds; r++) {
		if (r % 2)
			hold(f);
		for (unsigned i = 0; i < each; i++) {
			char name[32];
			int k = (i * 2654435761u >> 13) & 1;
			snprintf(name, sizeof(name), "%c/%u", k ? 'e' : 'd', made[k]++);
			ok(mkdirat(f->root, name, 0755));
		}
		let_go(f);
		settle(f);
	}
	for (size_t i = 0; i < f->n; i++) {
		assert_true(f->v[i].mask != FAN_Q_OVERFLOW);
		for (int k = 0; k < 2; k++)
			if (same(&f->v[i].dir, &f->ids[d[k]])) {
				assert_int_equal(f->v[i].mask, FAN_CREATE | FAN_ONDIR);
				assert_int_equal(strtoul(f->v[i].name, NULL, 10), heard[k]);
				heard[k]++;
			}
	}
	assert_int_equal(heard[0], made[0]);
	assert_int_equal(heard[1], made[1]);
	assert_true(f->largest > 100); /* some were read together */
}

static void test_overflow(void **state)
{
	BEGIN(f, state);
	watch_dir(f, "");
	unsigned d = make_dir(f, "d");
	settle(f);
	hold(f);
	size_t max = QUEUE;
	_cleanup_free_ char *text = NULL;
	if (sl_read_file(AT_FDCWD,
			 f->kind == SL_BACKEND_FANOTIFY ? "/proc/sys/fs/fanotify/max_queued_events"
							: "/proc/sys/fs/inotify/max_queued_events",
			 64, &text, NULL) == 0)
		max = strtoul(text, NULL, 10);
	if (max > 100000)
		skip();
	/* Of different names: nothing can be merged. */
	for (size_t i = 0; i < max + 100; i++) {
		char name[32];
		snprintf(name, sizeof(name), "d/%zu", i);
		ok(mkdirat(f->root, name, 0755));
	}
	let_go(f);
	settle(f);
	size_t overflows = 0, after = 0, n = 0;
	for (size_t i = 0; i < f->n; i++) {
		if (f->v[i].mask == FAN_Q_OVERFLOW) {
			overflows++;
		} else if (same(&f->v[i].dir, &f->ids[d])) {
			assert_int_equal(strtoul(f->v[i].name, NULL, 10), n);
			n++;
			after += overflows;
		}
	}
	assert_int_equal(overflows, 1);
	assert_int_equal(after, 0);
	assert_true(n > max / 2 && n < max + 100);
	struct sl_backend_stats st;
	sl_backend_get_stats(f->b, &st);
	assert_int_equal(st.overflows, 1);
	assert_true(st.changes >= n);
	clear(f);
	ok(mkdirat(f->root, "d/later", 0755));
	expect(f, "create,dir d/later");
}

struct maker {
	struct fix *f;
	const char *dir;
	atomic_uint next; /* the number of the next name */
	atomic_bool stop;
	pthread_t thread;
	uint32_t tid;
};

static void *make_names(void *arg)
{
	struct maker *m = arg;
	m->tid = (uint32_t)gettid();
	while (!atomic_load(&m->stop)) {
		char name[64];
		unsigned n = atomic_load(&m->next);
		snprintf(name, sizeof(name), "%s/%u", m->dir, n);
		atomic_store(&m->next, n + 1);
		if (mkdirat(m->f->root, name, 0755) < 0 || unlinkat(m->f->root, name, AT_REMOVEDIR) < 0)
			abort();
	}
	return NULL;
}

/* Forget what was heard of others than @d, and of @d below the number @from. */
static unsigned count_from(struct fix *f, unsigned d, unsigned from, unsigned to)
{
	unsigned n = from;
	pthread_mutex_lock(&f->lock);
	for (size_t i = 0; i < f->n; i++) {
		assert_true(f->v[i].mask != FAN_Q_OVERFLOW);
		if (!same(&f->v[i].dir, &f->ids[d]) || !(f->v[i].mask & FAN_CREATE))
			continue;
		unsigned k = (unsigned)strtoul(f->v[i].name, NULL, 10);
		if (k < from || k >= to)
			continue;
		assert_int_equal(k, n);
		n++;
	}
	pthread_mutex_unlock(&f->lock);
	return n;
}

/* A directory is changed as fast as it goes while it is marked: from the mark's return on nothing is missing.
 */
static void test_mark_race(void **state)
{
	BEGIN(f, state);
	for (int i = 0; i < 60; i++) {
		char dir[16];
		snprintf(dir, sizeof(dir), "m%d", i);
		ok(mkdirat(f->root, dir, 0755));
		struct maker m = {.f = f, .dir = dir};
		assert_int_equal(pthread_create(&m.thread, NULL, make_names, &m), 0);
		while (atomic_load(&m.next) < 5)
			sched_yield();
		unsigned d = watch_dir(f, dir);
		unsigned from = atomic_load(&m.next); /* made later than this line was reached */
		while (atomic_load(&m.next) < from + 20)
			sched_yield();
		unsigned to = atomic_load(&m.next) - 1; /* made before */
		settle(f);
		atomic_store(&m.stop, true);
		pthread_join(m.thread, NULL);
		assert_int_equal(count_from(f, d, from, to), to);
		settle(f);
		clear(f);
	}
}

/* Settling ends while others never stop, and what was made before it has been heard of. */
static void test_settle(void **state)
{
	BEGIN(f, state);
	make_dir(f, "noise");
	unsigned d = make_dir(f, "d");
	struct maker m = {.f = f, .dir = "noise"};
	assert_int_equal(pthread_create(&m.thread, NULL, make_names, &m), 0);
	for (unsigned i = 0; i < 300; i++) {
		char name[32];
		snprintf(name, sizeof(name), "d/%u", i);
		ok(mkdirat(f->root, name, 0755));
		settle(f);
		assert_int_equal(count_from(f, d, i, i + 1), i + 1);
		clear(f);
	}
	atomic_store(&m.stop, true);
	pthread_join(m.thread, NULL);
}

static void test_actors(void **state)
{
	BEGIN(f, state);
	unsigned d = make_dir(f, "d"), e = make_dir(f, "e");
	struct maker m[2] = {{.f = f, .dir = "d"}, {.f = f, .dir = "e"}};
	for (int i = 0; i < 2; i++)
		assert_int_equal(pthread_create(&m[i].thread, NULL, make_names, &m[i]), 0);
	for (int i = 0; i < 2; i++) {
		while (atomic_load(&m[i].next) < 50)
			sched_yield();
		atomic_store(&m[i].stop, true);
		pthread_join(m[i].thread, NULL);
	}
	settle(f);
	unsigned n[2] = {0};
	for (size_t i = 0; i < f->n; i++)
		for (int k = 0; k < 2; k++)
			if (same(&f->v[i].dir, &f->ids[k ? e : d])) {
				n[k]++;
				assert_int_equal(f->v[i].tid, f->kind == SL_BACKEND_FANOTIFY ? m[k].tid : 0);
			}
	assert_true(n[0] >= 50 && n[1] >= 50);
}

static void test_idle(void **state)
{
	BEGIN(f, state);
	watch_dir(f, "");
	hold(f);
	for (unsigned i = 0; i < 10000; i++) {
		char name[32];
		snprintf(name, sizeof(name), "%u", i);
		ok(mkdirat(f->root, name, 0755));
	}
	unsigned idle = f->idle_calls, calls = f->calls;
	let_go(f);
	settle(f);
	/* That the queue was empty may be told after all that was in it. */
	pthread_mutex_lock(&f->lock);
	while (!f->last_idle)
		pthread_cond_wait(&f->cond, &f->lock);
	assert_true(f->calls > calls + 1);
	assert_true(f->idle_calls > idle);
	assert_true(f->idle_calls - idle < f->calls - calls);
	pthread_mutex_unlock(&f->lock);
}

static void test_use(void **state)
{
	struct fix *f = *state;
	start(f, SL_CHANGE_USE, 0);
	if (f->skip)
		skip();
	make_dir(f, "d");
	have_file(f, "d/file");
	int fd = openat(f->root, "d/file", O_RDONLY | O_CLOEXEC);
	ok(fd);
	expect(f, "open d/file");
	ok(pwrite(-1, "", 0, 0) + 1);
	close(fd);
	expect(f, "close d/file");
}

static void test_limit(void **state)
{
	struct fix *f = *state;
	start(f, 0, 3);
	if (f->skip)
		skip();
	int fd[5];
	struct sl_evid id[5];
	for (int i = 0; i < 5; i++) {
		char name[8];
		snprintf(name, sizeof(name), "%d", i);
		ok(mkdirat(f->root, name, 0755));
		fd[i] = openat(f->root, name, O_PATH | O_DIRECTORY | O_CLOEXEC);
		id[i] = id_of(fd[i], "");
	}
	bool limited = f->kind == SL_BACKEND_INOTIFY;
	struct sl_backend_stats st;
	for (int i = 0; i < 3; i++)
		assert_int_equal(sl_backend_mark(f->b, fd[i], &id[i]), 0);
	assert_int_equal(sl_backend_mark(f->b, fd[0], &id[0]), 0); /* the same again is no other */
	for (int i = 3; i < 5; i++)
		assert_int_equal(sl_backend_mark(f->b, fd[i], &id[i]), limited ? -ENOSPC : 0);
	sl_backend_get_stats(f->b, &st);
	assert_int_equal(st.marks, limited ? 3 : 0);
	sl_backend_unmark(f->b, &id[0]); /* marked twice */
	assert_int_equal(sl_backend_mark(f->b, fd[3], &id[3]), limited ? -ENOSPC : 0);
	sl_backend_unmark(f->b, &id[0]);
	sl_backend_unmark(f->b, &id[0]); /* once too often: nothing */
	assert_int_equal(sl_backend_mark(f->b, fd[3], &id[3]), 0);
	f->ids[0] = id[0];
	f->labels[0] = strdup("0");
	f->ids[1] = id[3];
	f->labels[1] = strdup("3");
	f->n_dirs = 2;
	ok(mkdirat(f->root, "0/x", 0755));
	ok(mkdirat(f->root, "3/x", 0755));
	if (limited)
		expect(f, "create,dir 3/x");
	else
		expect(f, "create,dir 0/x", "create,dir 3/x");
	/* A mark that goes with its directory. */
	ok(unlinkat(f->root, "1", AT_REMOVEDIR));
	close(fd[1]);
	settle(f);
	sl_backend_unmark(f->b, &id[1]);
	assert_int_equal(sl_backend_mark(f->b, fd[4], &id[4]), 0);
	for (int i = 0; i < 5; i++)
		if (i != 1)
			close(fd[i]);
}

/* Ending while changes come, and while somebody settles. */
static void test_close(void **state)
{
	struct fix *f = *state;
	ok(mkdirat(f->root, "d", 0755));
	struct maker m = {.f = f, .dir = "d"};
	assert_int_equal(pthread_create(&m.thread, NULL, make_names, &m), 0);
	for (int i = 0; i < 20 && !f->skip; i++) {
		start(f, 0, 0);
		if (f->skip)
			break;
		watch_dir(f, "d");
		unsigned n = atomic_load(&m.next);
		while (atomic_load(&m.next) < n + 10)
			sched_yield();
		sl_backend_close(f->b);
		f->b = NULL;
		clear(f);
	}
	atomic_store(&m.stop, true);
	pthread_join(m.thread, NULL);
	if (f->skip)
		skip();
}

/* ---- the model: a bare watcher in this process hears the same ---- */

#define MODEL_DIRS  4
#define MODEL_NAMES 6

struct step {
	int dir;
	uint64_t kind; /* one bit, and FAN_ONDIR */
	char name[8];
};

struct steps {
	struct step *v;
	size_t n, size;
};

static void add_step(struct steps *s, int dir, uint64_t kind, const char *name)
{
	if (s->n == s->size) {
		s->size = s->size ? 2 * s->size : 256;
		s->v = reallocarray(s->v, s->size, sizeof(*s->v));
	}
	struct step *t = &s->v[s->n++];
	*t = (struct step){.dir = dir, .kind = kind};
	snprintf(t->name, sizeof(t->name), "%s", name);
}

static void read_bare(int fd, const int *wds, struct steps *s)
{
	char buf[65536] __attribute__((aligned(8)));
	for (ssize_t n; (n = read(fd, buf, sizeof(buf))) > 0;)
		for (char *p = buf; p < buf + n;) {
			const struct inotify_event *e = (void *)p;
			p += sizeof(*e) + e->len;
			assert_false(e->mask & IN_Q_OVERFLOW);
			for (int k = 0; k < MODEL_DIRS; k++)
				if (wds[k] == e->wd && e->len)
					add_step(s, k, e->mask & ~(uint64_t)IN_IGNORED, e->name);
		}
}

static void read_backend(struct fix *f, const unsigned *d, struct steps *s)
{
	static const uint64_t order[] = {FAN_CREATE, FAN_MOVED_FROM,  FAN_MOVED_TO, FAN_MODIFY,
					 FAN_ATTRIB, FAN_CLOSE_WRITE, FAN_DELETE};
	settle(f);
	pthread_mutex_lock(&f->lock);
	for (size_t i = 0; i < f->n; i++) {
		const struct rec *r = &f->v[i];
		assert_true(r->mask != FAN_Q_OVERFLOW);
		for (int k = 0; k < MODEL_DIRS; k++) {
			uint64_t dir = r->mask & FAN_ONDIR;
			const struct sl_evid *id = &f->ids[d[k]];
			if (r->mask & FAN_RENAME && same(&r->dir, id))
				add_step(s, k, FAN_MOVED_FROM | dir, r->name);
			if (r->mask & FAN_RENAME && same(&r->newdir, id))
				add_step(s, k, FAN_MOVED_TO | dir, r->newname);
			for (size_t o = 0; o < SL_ARRAY_SIZE(order); o++)
				if (r->mask & order[o] && same(&r->dir, id) && r->name)
					add_step(s, k, order[o] | dir, r->name);
		}
	}
	pthread_mutex_unlock(&f->lock);
	clear(f);
}

static uint32_t rnd(uint64_t *s)
{
	*s ^= *s << 13;
	*s ^= *s >> 7;
	*s ^= *s << 17;
	return (uint32_t)(*s >> 32);
}

static void random_step(struct fix *f, uint64_t *s)
{
	char a[16], b[16];
	snprintf(a, sizeof(a), "%c/%c", 'a' + (int)(rnd(s) % MODEL_DIRS), 'p' + (int)(rnd(s) % MODEL_NAMES));
	snprintf(b, sizeof(b), "%c/%c", 'a' + (int)(rnd(s) % MODEL_DIRS), 'p' + (int)(rnd(s) % MODEL_NAMES));
	int fd;
	switch (rnd(s) % 9) {
	case 0:
	case 1:
		fd = openat(f->root, a, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
		if (fd >= 0)
			close(fd);
		break;
	case 2:
		if ((fd = openat(f->root, a, O_WRONLY | O_CLOEXEC)) >= 0) {
			assert_int_equal(write(fd, "y", 1), 1);
			close(fd);
		}
		break;
	case 3:
		mkdirat(f->root, a, 0755);
		break;
	case 4:
		if (unlinkat(f->root, a, 0) < 0)
			unlinkat(f->root, a, AT_REMOVEDIR);
		break;
	case 5:
		linkat(f->root, a, f->root, b, 0);
		break;
	case 6:
		rename2(f, a, b, 0);
		break;
	case 7:
		rename2(f, a, b, 2);
		break;
	case 8:
		if ((fd = openat(f->root, a, O_WRONLY | O_CLOEXEC)) >= 0) { /* not of a directory */
			fchmod(fd, (mode_t)(0600 | (rnd(s) & 077)));
			close(fd);
		}
		break;
	}
}

/* The order within each directory is that of the bare watcher. */
static void compare_order(const struct steps *want, const struct steps *got)
{
	for (int k = 0; k < MODEL_DIRS; k++) {
		size_t i = 0, j = 0, at = 0;
		for (;; i++, j++, at++) {
			while (i < want->n && want->v[i].dir != k)
				i++;
			while (j < got->n && got->v[j].dir != k)
				j++;
			if (i >= want->n || j >= got->n)
				break;
			if (want->v[i].kind != got->v[j].kind || strcmp(want->v[i].name, got->v[j].name) != 0)
				fail_msg("directory %d, event %zu: %llx '%s' instead of %llx '%s'", k, at,
					 (unsigned long long)got->v[j].kind, got->v[j].name,
					 (unsigned long long)want->v[i].kind, want->v[i].name);
		}
		if (i < want->n || j < got->n)
			fail_msg("directory %d: %s after event %zu", k, i < want->n ? "missing" : "more", at);
	}
}

/* Whatever the bare watcher heard was heard here, and nothing else. */
static bool includes(const struct steps *a, const struct steps *b)
{
	for (size_t i = 0; i < b->n; i++) {
		bool found = false;
		for (size_t j = 0; j < a->n && !found; j++)
			found = a->v[j].dir == b->v[i].dir && a->v[j].kind == b->v[i].kind &&
				strcmp(a->v[j].name, b->v[i].name) == 0;
		if (!found)
			return false;
	}
	return true;
}

static void test_model(void **state)
{
	BEGIN(f, state);
	const char *given = getenv("NOTIFY_SEED");
	uint64_t seed = given ? strtoull(given, NULL, 10) : sl_now() / 1000 % 1000000007, s = seed * 2 + 1;
	print_message("# seed %llu\n", (unsigned long long)seed);
	int bare = inotify_init1(IN_NONBLOCK | IN_CLOEXEC), wds[MODEL_DIRS];
	unsigned d[MODEL_DIRS];
	ok(bare);
	for (int k = 0; k < MODEL_DIRS; k++) {
		char name[4] = {(char)('a' + k)}, path[64];
		d[k] = make_dir(f, name);
		snprintf(path, sizeof(path), "/proc/self/fd/%d/%s", f->root, name);
		wds[k] = inotify_add_watch(
		    bare, path, IN_CREATE | IN_DELETE | IN_MOVE | IN_MODIFY | IN_ATTRIB | IN_CLOSE_WRITE);
		ok(wds[k]);
	}
	settle(f);
	clear(f);
	struct steps want = {0}, got = {0};
	/* Heard one by one nothing is merged; inotify merges nothing that differs anyway. */
	for (int i = 0; i < 3000; i++) {
		random_step(f, &s);
		if (f->kind == SL_BACKEND_FANOTIFY || i % 200 == 0)
			settle(f);
		read_bare(bare, wds, &want);
	}
	read_backend(f, d, &got);
	assert_true(want.n > 1000);
	compare_order(&want, &got);
	for (int round = 0; round < 20; round++) {
		want.n = got.n = 0;
		for (int i = 0; i < 300; i++)
			random_step(f, &s);
		read_bare(bare, wds, &want);
		read_backend(f, d, &got);
		assert_true(includes(&want, &got) && includes(&got, &want));
	}
	free(want.v);
	free(got.v);
	close(bare);
}

/* What cannot be had is said, and AUTO takes what can. */
static void test_choice(void **state)
{
	struct fix *f = *state;
	struct sl_backend_config cfg = {.root_fd = f->root, .changes = on_changes, .arg = f};
	_cleanup_free_ char *why = NULL;
	assert_int_equal(sl_backend_open(&cfg, &f->b, &why), 0);
	if (own_fs)
		assert_int_equal(sl_backend_kind(f->b), SL_BACKEND_FANOTIFY);
	sl_backend_close(f->b);
	f->b = NULL;
	/* /proc has neither an id nor handles. */
	_cleanup_close_ int proc = open("/proc/self", O_PATH | O_DIRECTORY | O_CLOEXEC);
	cfg.root_fd = proc;
	cfg.kind = SL_BACKEND_FANOTIFY;
	int r = sl_backend_open(&cfg, &f->b, &why);
	assert_true(r == -EOPNOTSUPP || r == -EPERM);
	assert_non_null(why);
	cfg.kind = SL_BACKEND_AUTO;
	free(sl_steal_ptr(&why));
	assert_int_equal(sl_backend_open(&cfg, &f->b, &why), 0);
	assert_int_equal(sl_backend_kind(f->b), SL_BACKEND_INOTIFY);
}

#define BOTH(t)                                                                                              \
	{"fanotify: " #t, test_##t, setup_fanotify, teardown, NULL},                                         \
	{                                                                                                    \
		"inotify: " #t, test_##t, setup_inotify, teardown, NULL                                      \
	}

/* A filesystem of our own, that vanishes with us. */
static void prepare(void)
{
	const char *tmp = getenv("TMPDIR");
	snprintf(top, sizeof(top), "%s/sluice-notify.XXXXXX", tmp && strlen(tmp) < 200 ? tmp : "/tmp");
	if (!mkdtemp(top)) {
		perror(top);
		exit(1);
	}
	root_user = geteuid() == 0;
	own_fs = unshare(CLONE_NEWNS) == 0 && mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0 &&
		 mount("notify", top, "tmpfs", 0, "mode=755") == 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    BOTH(create),      BOTH(delete),   BOTH(content),
	    BOTH(attributes),  BOTH(rename),   BOTH(rename_directory),
	    BOTH(unlink_open), BOTH(root),     BOTH(root_unmarked),
	    BOTH(names),       BOTH(identity), BOTH(merged),
	    BOTH(order),       BOTH(overflow), BOTH(mark_race),
	    BOTH(settle),      BOTH(actors),   BOTH(idle),
	    BOTH(use),	       BOTH(limit),    BOTH(close),
	    BOTH(model),       BOTH(choice),   cmocka_unit_test(test_identity_here),
	};
	prepare();
	int r = cmocka_run_group_tests(tests, NULL, NULL);
	if (own_fs)
		umount2(top, MNT_DETACH);
	rmdir(top);
	return r;
}
