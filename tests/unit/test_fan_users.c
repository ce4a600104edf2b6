/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Who uses what, where it cannot be found out: calls of the C library are made to fail by definitions of our
 * own. If this fails, what nobody knows is taken for what nobody uses, and names that are in use are evicted.
 * Needs root, for processes of its own, all of which it may look at.
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
#include <sched.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>

#include "alone.h"
#include "gate/fanotify/internal.h"
#include "gate/fanotify/users.h"
#include "store/internal.h"

/* ---- the C library ---- */

static struct {
	const char *name; /* whatever is done with this one fails ... */
	int err;
	time_t hurry; /* so many seconds pass whenever the clock is looked at */
	time_t passed;
} lib;

static bool fails(const char *name)
{
	bool it = lib.name && !strcmp(name, lib.name);
	if (it)
		errno = lib.err;
	return it;
}

int openat(int fd, const char *name, int flags, ...)
{
	va_list ap;
	va_start(ap, flags);
	mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(ap, mode_t) : 0;
	va_end(ap);
	return fails(name) ? -1 : (int)syscall(SYS_openat, fd, name, flags, mode);
}

int fstatat(int fd, const char *restrict name, struct stat *restrict st, int flags)
{
	return fails(name) ? -1 : (int)syscall(SYS_newfstatat, fd, name, st, flags);
}

int statx(int fd, const char *restrict name, int flags, unsigned mask, struct statx *restrict sx)
{
	return fails(name) ? -1 : (int)syscall(SYS_statx, fd, name, flags, mask, sx);
}

int clock_gettime(clockid_t clock, struct timespec *t)
{
	int r = (int)syscall(SYS_clock_gettime, clock, t);
	t->tv_sec += lib.passed += lib.hurry;
	return r;
}

/* ---- a gate, as far as it is looked at ---- */

#define SLOTS 1024

struct fx {
	char dir[48];
	uint64_t ino;
	struct sl_store s;
	struct sl_fan g;
	int asked[2]; /* for the group: what can be read has not been */
	pid_t child;  /* has the directory open, as ... */
	char fd[16];
	char task[32], thread[16]; /* of the child, as names in procfs */
};

static int setup(void **state)
{
	struct fx *x = calloc(1, sizeof(*x));
	struct stat st;
	int ready[2];
	strcpy(x->dir, "/tmp/sluice-users.XXXXXX");
	assert_non_null(mkdtemp(x->dir));
	assert_int_equal(pipe2(x->asked, O_CLOEXEC) | pipe2(ready, O_CLOEXEC), 0);
	x->s.tree_fd = open(x->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	x->s.base_fd = open("/", O_PATH | O_CLOEXEC);
	assert_int_equal(fstat(x->s.tree_fd, &st), 0);
	x->ino = st.st_ino;
	x->g.store = &x->s;
	x->g.group = x->asked[0];
	x->g.stop_fd = eventfd(0, EFD_CLOEXEC);
	size_t size = SL_ALIGN_UP(sizeof(struct area) + SLOTS * sizeof(struct slot), _Alignof(struct area));
	x->g.area = aligned_alloc(_Alignof(struct area), size);
	assert_non_null(x->g.area);
	memset(x->g.area, 0, size);
	x->g.area->nslots = SLOTS;
	x->child = fork();
	if (x->child == 0) {
		int fd = dup(x->s.tree_fd);
		close(x->s.tree_fd);
		(void)!write(ready[1], &fd, sizeof(fd));
		for (;;)
			pause();
	}
	int fd = -1;
	assert_int_equal(read(ready[0], &fd, sizeof(fd)), sizeof(fd));
	close(ready[0]);
	close(ready[1]);
	snprintf(x->fd, sizeof(x->fd), "%d", fd);
	snprintf(x->thread, sizeof(x->thread), "%d", x->child);
	snprintf(x->task, sizeof(x->task), "%d/task", x->child);
	*state = x;
	return 0;
}

static int teardown(void **state)
{
	struct fx *x = *state;
	memset(&lib, 0, sizeof(lib));
	kill(x->child, SIGKILL);
	waitpid(x->child, NULL, 0);
	close(x->s.tree_fd);
	close(x->s.base_fd);
	close(x->g.stop_fd);
	close(x->asked[0]);
	close(x->asked[1]);
	rmdir(x->dir);
	free(x->g.area);
	free(x);
	return 0;
}

/* 1: the directory is used; 0: it is not; or -errno. */
static int used(struct fx *x)
{
	struct sl_fan_users u;
	int r = sl_fan_users_get(&x->g, &u);
	if (r == 0) {
		r = sl_fan_users_has(&u, x->ino);
		sl_fan_users_fini(&u);
	}
	return r;
}

static int with(struct fx *x, const char *name, int err)
{
	lib.name = name;
	lib.err = err;
	int r = used(x);
	lib.name = NULL;
	return r;
}

static void test_errors(void **state)
{
	struct fx *x = *state;
	assert_int_equal(used(x), 1);
	const char *names[] = {
	    "/proc", "/proc/self/mountinfo", x->task, x->thread, "fd", "mountinfo", "ns/mnt", "cwd", "root",
	    x->fd};
	for (size_t i = 0; i < SL_ARRAY_SIZE(names); i++) {
		assert_int_equal(with(x, names[i], EACCES), -EACCES);
		assert_int_equal(with(x, names[i], ENOMEM), -ENOMEM);
	}
	assert_int_equal(with(x, "/proc", ENOENT), -ENOENT);
	/* What has gone uses nothing, and the rest is looked at. */
	assert_int_equal(with(x, "fd", ENOENT), 0);
	assert_int_equal(with(x, x->task, ESRCH), 0);
	assert_int_equal(with(x, "cwd", ENOENT), 1);
	assert_int_equal(with(x, "mountinfo", EINVAL), 1);
	/* Another filesystem is broken. */
	assert_int_equal(with(x, "cwd", ESTALE), 1);
}

/* Whether a thread runs is not known: nothing says that it has. */
static void test_runners(void **state)
{
	struct fx *x = *state;
	char tasks[32], text[64];
	snprintf(tasks, sizeof(tasks), "/proc/%d/task", (int)x->child);
	snprintf(text, sizeof(text), "%s/%s/stat", tasks, x->thread);
	assert_int_equal(sl_fan_let_run(0), 0);
	const char *names[] = {"/proc", tasks, text};
	for (size_t i = 0; i < SL_ARRAY_SIZE(names); i++) {
		lib.name = names[i];
		lib.err = EMFILE;
		assert_int_equal(sl_fan_let_run(0), -EMFILE);
		lib.err = ESRCH; /* that one is gone */
		assert_int_equal(sl_fan_let_run(0), i ? 0 : -ESRCH);
		lib.name = NULL;
	}
}

/* An access that the gate has not read, or has not looked at, is about nobody knows what. */
static void test_unread(void **state)
{
	struct fx *x = *state;
	lib.hurry = 1;
	assert_int_equal(write(x->asked[1], "x", 1), 1);
	assert_int_equal(used(x), -EBUSY);
	char c;
	assert_int_equal(read(x->asked[0], &c, 1), 1);
	x->g.reads = 1;
	assert_int_equal(used(x), -EBUSY);
	x->g.reads = 2;
	assert_int_equal(used(x), 1);
}

static void test_waiting(void **state)
{
	struct fx *x = *state;
	kill(x->child, SIGKILL);
	waitpid(x->child, NULL, 0);
	assert_int_equal(used(x), 0);
	int fd = x->s.tree_fd;
	assert_in_range(fd, 0, SLOTS - 1);
	x->g.area->top = (uint32_t)fd + 1;
	x->g.area->slot[fd].mask = FAN_PRE_DIR_ACCESS;
	assert_int_equal(used(x), 1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test_setup_teardown(test_errors, setup, teardown),
	    cmocka_unit_test_setup_teardown(test_runners, setup, teardown),
	    cmocka_unit_test_setup_teardown(test_unread, setup, teardown),
	    cmocka_unit_test_setup_teardown(test_waiting, setup, teardown),
	};
	if (alone() < 0) {
		puts("1..0 # SKIP needs root");
		return 0;
	}
	int failed = cmocka_run_group_tests_name("fan_users", tests, NULL, NULL);
	fflush(NULL);
	_exit(failed); /* LeakSanitizer cannot look at the first process of a namespace */
}
