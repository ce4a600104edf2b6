/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * For tests of the backends for changes: a tree in a directory of its own, a backend of either kind on it,
 * and what was heard. Included once, first, by each of the programs.
 *
 * With privilege the tree is on a filesystem of its own, so that nobody else fills the queue; with
 * NOTIFY_HERE=1 on that of TMPDIR.
 */
#pragma once

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include <fcntl.h>
#include <limits.h>
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
	uint64_t when;
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
	bool pass; /* one call, although the others are held */
	size_t largest;
};

static char *dup_or_null(const char *s)
{
	return s ? strdup(s) : NULL;
}

static inline void on_changes(void *arg, const struct sl_change *v, unsigned n, bool idle)
{
	struct fix *f = arg;
	pthread_mutex_lock(&f->lock);
	f->in_callback++;
	pthread_cond_broadcast(&f->cond);
	while (f->hold && !f->pass)
		pthread_cond_wait(&f->cond, &f->lock);
	f->pass = false;
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
					    .when = v[i].when,
					    .name = dup_or_null(v[i].name),
					    .newname = dup_or_null(v[i].newname)};
	}
	pthread_cond_broadcast(&f->cond);
	pthread_mutex_unlock(&f->lock);
}

static inline void clear(struct fix *f)
{
	pthread_mutex_lock(&f->lock);
	for (size_t i = 0; i < f->n; i++) {
		free(f->v[i].name);
		free(f->v[i].newname);
	}
	f->n = f->seen = 0;
	pthread_mutex_unlock(&f->lock);
}

static inline struct sl_evid id_of(int dirfd, const char *name)
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
static inline unsigned watch_dir(struct fix *f, const char *path)
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

static inline unsigned make_dir(struct fix *f, const char *path)
{
	assert_int_equal(mkdirat(f->root, path, 0755), 0);
	return watch_dir(f, path);
}

static inline const char *label(const struct fix *f, const struct sl_evid *id)
{
	for (unsigned i = 0; i < f->n_dirs; i++)
		if (same(&f->ids[i], id))
			return f->labels[i];
	return NULL;
}

static inline void start(struct fix *f, uint64_t use, unsigned max_marks)
{
	struct sl_backend_config cfg = {
	    .kind = f->kind, .root_fd = f->root, .max_marks = max_marks, .changes = on_changes, .arg = f};
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
	assert_int_equal(sl_backend_use(f->b, use), 0);
}

static inline int setup(void **state, enum sl_backend_kind kind)
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

static inline int setup_fanotify(void **state)
{
	return setup(state, SL_BACKEND_FANOTIFY);
}

static inline int setup_inotify(void **state)
{
	return setup(state, SL_BACKEND_INOTIFY);
}

static inline int teardown(void **state)
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

static inline void settle(struct fix *f)
{
	assert_int_equal(sl_backend_settle(f->b), 0);
}

/* Keep the listener busy from the next change on. */
static inline void hold(struct fix *f)
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

static inline void let_go(struct fix *f)
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

static inline void put_place(char *buf, size_t size, const char *dir, const char *name)
{
	size_t n = strlen(buf);
	snprintf(buf + n, size - n, " %s%s%s", dir, *dir && name ? "/" : "", name ? name : *dir ? "" : ".");
}

/* The next change of a known directory, "" if there is none. */
static inline const char *line(struct fix *f)
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
static inline void expect_at(struct fix *f, int where, const char *first, ...)
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

static inline void make_file(struct fix *f, const char *path)
{
	int fd = openat(f->root, path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
	ok(fd);
	settle(f); /* its closing is an event of its own */
	close(fd);
	settle(f);
}

/* A file that is there before anybody listens to its directory's next change. */
static inline void have_file(struct fix *f, const char *path)
{
	make_file(f, path);
	clear(f);
}

static inline int rename2(struct fix *f, const char *a, const char *b, unsigned flags)
{
	return (int)syscall(SYS_renameat2, f->root, a, f->root, b, flags);
}

/* A test over both kinds. */
#define BOTH(t)                                                                                              \
	{"fanotify: " #t, test_##t, setup_fanotify, teardown, NULL},                                         \
	{                                                                                                    \
		"inotify: " #t, test_##t, setup_inotify, teardown, NULL                                      \
	}

/* A filesystem of our own, that vanishes with us. */
static inline void prepare(void)
{
	const char *tmp = getenv("TMPDIR");
	snprintf(top, sizeof(top), "%s/sluice-notify.XXXXXX", tmp && strlen(tmp) < 200 ? tmp : "/tmp");
	if (!mkdtemp(top)) {
		perror(top);
		exit(1);
	}
	root_user = geteuid() == 0;
	own_fs = !getenv("NOTIFY_HERE") && unshare(CLONE_NEWNS) == 0 &&
		 mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0 &&
		 mount("notify", top, "tmpfs", 0, "mode=755") == 0;
}

static inline int notify_run(const struct CMUnitTest *tests, size_t n)
{
	prepare();
	int r = _cmocka_run_group_tests("tests", tests, n, NULL, NULL);
	if (own_fs)
		umount2(top, MNT_DETACH);
	rmdir(top);
	return r;
}
#define run_notify_tests(t) notify_run(t, SL_ARRAY_SIZE(t))
