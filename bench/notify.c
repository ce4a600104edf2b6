/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * How fast changes of a local tree are heard of, by our backends and by the barest loops on the same kernel
 * interfaces.
 *
 * notify WAY drain DIR ROUNDS: 12,000 changes wait in the kernel's queue; how long until all are read. Prints
 *   changes per second, the median of the rounds.
 * notify WAY stream DIR N: another process changes N times, never more than 8,000 ahead. Prints changes per
 *   second and the reader's processor time per change in seconds.
 * notify WAY latency DIR N: one change at a time, from the beginning of the system call until it was read by
 *   another thread. Prints p50 and p99 in seconds.
 * notify WAY marks DIR N: DIR has N directories; prints the seconds to open the backend, those to mark all,
 *   bytes of memory per mark in this process.
 *
 * WAY: fanotify, inotify, bare-fanotify, bare-inotify. The changes are modes of files: nothing is cheaper to
 * make. DIR is empty but for marks.
 */
#include <err.h>
#include <fcntl.h>
#include <malloc.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/fanotify.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/beneath.h"
#include "base/time.h"
#include "notify/backend.h"

#define WAITING 12000
#define AHEAD	8000
#define BUFFER	(256 << 10)
/* FAN_REPORT_DFID_NAME_TARGET, which headers may not know. */
#define TARGET 0x1e00

/* A reader of either sort. @seen counts changes of files in the tree; it is shared with the changing process.
 */
struct reader {
	bool bare, fanotify;
	int root, fd;
	struct sl_backend *b;
	struct sl_evid id;
	atomic_ulong *seen;
	pthread_mutex_t lock;
	pthread_cond_t cond;
	atomic_bool hold, held;
	pthread_t thread;
	char buf[BUFFER] __attribute__((aligned(8)));
};

static void wait_while_held(struct reader *r)
{
	if (!atomic_load(&r->hold))
		return;
	pthread_mutex_lock(&r->lock);
	atomic_store(&r->held, true);
	pthread_cond_broadcast(&r->cond);
	while (atomic_load(&r->hold))
		pthread_cond_wait(&r->cond, &r->lock);
	atomic_store(&r->held, false);
	pthread_mutex_unlock(&r->lock);
}

static void on_changes(void *arg, const struct sl_change *v, unsigned n, bool idle)
{
	struct reader *r = arg;
	unsigned long k = 0;
	(void)idle;
	for (unsigned i = 0; i < n; i++) {
		if (v[i].mask & FAN_Q_OVERFLOW)
			errx(1, "overflow");
		k += v[i].mask & FAN_ATTRIB && v[i].name && v[i].dir.generation == r->id.generation;
	}
	atomic_fetch_add(r->seen, k);
	wait_while_held(r);
}

static unsigned long count_fanotify(struct reader *r, ssize_t n)
{
	unsigned long k = 0;
	struct fanotify_event_metadata *m = (void *)r->buf;
	for (; FAN_EVENT_OK(m, n); m = FAN_EVENT_NEXT(m, n)) {
		if (m->mask & FAN_Q_OVERFLOW)
			errx(1, "overflow");
		k += (m->mask & FAN_ATTRIB) != 0;
	}
	return k;
}

static unsigned long count_inotify(struct reader *r, ssize_t n)
{
	unsigned long k = 0;
	for (ssize_t at = 0; at < n;) {
		struct inotify_event *e = (void *)(r->buf + at);
		if (e->mask & IN_Q_OVERFLOW)
			errx(1, "overflow");
		k += (e->mask & IN_ATTRIB) != 0;
		at += (ssize_t)(sizeof(*e) + e->len);
	}
	return k;
}

static void *bare_loop(void *arg)
{
	struct reader *r = arg;
	for (ssize_t n; (n = read(r->fd, r->buf, sizeof(r->buf))) > 0;) {
		atomic_fetch_add(r->seen, r->fanotify ? count_fanotify(r, n) : count_inotify(r, n));
		wait_while_held(r);
	}
	return NULL;
}

static void open_bare(struct reader *r, const char *dir)
{
	if (r->fanotify) {
		r->fd = fanotify_init(FAN_CLASS_NOTIF | FAN_CLOEXEC | TARGET | FAN_REPORT_TID, O_RDONLY);
		if (r->fd < 0 || fanotify_mark(r->fd, FAN_MARK_ADD | FAN_MARK_FILESYSTEM,
					       FAN_CREATE | FAN_DELETE | FAN_RENAME | FAN_MODIFY |
						   FAN_ATTRIB | FAN_CLOSE_WRITE | FAN_ONDIR,
					       AT_FDCWD, dir) < 0)
			err(1, "fanotify");
	} else {
		r->fd = inotify_init1(IN_CLOEXEC);
		if (r->fd < 0 || inotify_add_watch(r->fd, dir,
						   IN_CREATE | IN_DELETE | IN_MOVE | IN_MODIFY | IN_ATTRIB |
						       IN_CLOSE_WRITE) < 0)
			err(1, "inotify");
	}
	if (pthread_create(&r->thread, NULL, bare_loop, r))
		errx(1, "no thread");
}

static void open_reader(struct reader *r, const char *way, const char *dir)
{
	char *why = NULL;
	r->bare = strncmp(way, "bare-", 5) == 0;
	r->fanotify = strcmp(way + (r->bare ? 5 : 0), "fanotify") == 0;
	r->root = open(dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
	struct stat st;
	if (r->root < 0 || fstat(r->root, &st) < 0)
		err(1, "%s", dir);
	r->id = (struct sl_evid){.generation = sl_handle_generation(r->root, ""), .ino = st.st_ino};
	r->seen = mmap(NULL, sizeof(*r->seen), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (r->seen == MAP_FAILED)
		err(1, "mmap");
	if (r->bare) {
		open_bare(r, dir);
		return;
	}
	struct sl_backend_config cfg = {.kind = r->fanotify ? SL_BACKEND_FANOTIFY : SL_BACKEND_INOTIFY,
					.root_fd = r->root,
					.changes = on_changes,
					.arg = r};
	int e = sl_backend_open(&cfg, &r->b, &why);
	if (e < 0)
		errx(1, "%s", why);
}

static void make_files(const char *dir, unsigned n)
{
	char name[32];
	int root = open(dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
	for (unsigned i = 0; i < n; i++) {
		snprintf(name, sizeof(name), "f%u", i);
		int fd = openat(root, name, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
		if (fd < 0)
			err(1, "%s", name);
		close(fd);
	}
	close(root);
}

static void change(int root, unsigned i)
{
	char name[32];
	snprintf(name, sizeof(name), "f%u", i);
	if (fchmodat(root, name, 0600, 0) < 0)
		err(1, "%s", name);
}

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;
	return (x > y) - (x < y);
}

static void drain(struct reader *r, unsigned rounds)
{
	double *v = calloc(rounds, sizeof(*v));
	for (unsigned k = 0; k < rounds; k++) {
		unsigned long before = atomic_load(r->seen);
		atomic_store(&r->hold, true);
		change(r->root, 0);
		pthread_mutex_lock(&r->lock);
		while (!atomic_load(&r->held))
			pthread_cond_wait(&r->cond, &r->lock);
		pthread_mutex_unlock(&r->lock);
		for (unsigned i = 1; i < WAITING; i++)
			change(r->root, i);
		uint64_t t = sl_now();
		pthread_mutex_lock(&r->lock);
		atomic_store(&r->hold, false);
		pthread_cond_broadcast(&r->cond);
		pthread_mutex_unlock(&r->lock);
		while (atomic_load(r->seen) < before + WAITING)
			usleep(50);
		v[k] = (WAITING - 1) / ((double)(sl_now() - t) / 1e9);
	}
	qsort(v, rounds, sizeof(*v), by_value);
	printf("%.0f\n", v[rounds / 2]);
	free(v);
}

static double cpu_time(void)
{
	struct rusage u;
	getrusage(RUSAGE_SELF, &u);
	return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
	       (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
}

static void change_many(struct reader *r, unsigned long n)
{
	for (unsigned long i = 0; i < n; i++) {
		change(r->root, (unsigned)(i % WAITING));
		while (i > atomic_load(r->seen) + AHEAD)
			sched_yield();
	}
}

static void stream(struct reader *r, unsigned long n)
{
	int go[2];
	if (pipe(go) < 0)
		err(1, "pipe");
	pid_t pid = fork();
	if (pid == 0) {
		char c;
		close(go[1]);
		if (read(go[0], &c, 1) == 1)
			change_many(r, n);
		_exit(0);
	}
	double cpu = cpu_time();
	uint64_t t = sl_now();
	if (pid < 0 || write(go[1], "", 1) != 1)
		err(1, "fork");
	while (atomic_load(r->seen) < n)
		usleep(1000); /* this thread's time counts as the reader's */
	double s = (double)(sl_now() - t) / 1e9;
	printf("%.0f %.9f\n", (double)n / s, (cpu_time() - cpu) / (double)n);
	waitpid(pid, NULL, 0);
}

static void latency(struct reader *r, unsigned n)
{
	double *v = calloc(n, sizeof(*v));
	for (unsigned i = 0; i < n; i++) {
		unsigned long before = atomic_load(r->seen);
		uint64_t t = sl_now();
		change(r->root, i % WAITING);
		while (atomic_load(r->seen) == before)
			;
		v[i] = (double)(sl_now() - t) / 1e9;
		usleep(100); /* the reader sleeps again */
	}
	qsort(v, n, sizeof(*v), by_value);
	printf("%.9f %.9f\n", v[n / 2], v[(size_t)n * 99 / 100]);
	free(v);
}

static size_t memory(void)
{
	struct mallinfo2 m = mallinfo2();
	return m.uordblks + m.hblkhd;
}

/* Directories d0/0 …: 1000 in each. */
static void marks(struct reader *r, double open_s, unsigned n)
{
	char name[64];
	size_t before = memory();
	uint64_t t = sl_now();
	for (unsigned i = 0; i < n; i++) {
		snprintf(name, sizeof(name), "d%u/%u", i / 1000, i % 1000);
		int fd = openat(r->root, name, O_PATH | O_DIRECTORY | O_CLOEXEC);
		struct stat st;
		if (fd < 0 || fstat(fd, &st) < 0)
			err(1, "%s", name);
		struct sl_evid id = {.generation = sl_handle_generation(fd, ""), .ino = st.st_ino};
		int e = sl_backend_mark(r->b, fd, &id);
		if (e < 0)
			errx(1, "%s: %s", name, strerror(-e));
		close(fd);
	}
	printf("%.6f %.6f %.1f\n", open_s, (double)(sl_now() - t) / 1e9, (double)(memory() - before) / n);
}

int main(int argc, char **argv)
{
	static struct reader r = {.lock = PTHREAD_MUTEX_INITIALIZER, .cond = PTHREAD_COND_INITIALIZER};
	if (argc != 5)
		errx(2, "usage: notify WAY drain|stream|latency|marks DIR N");
	const char *what = argv[2], *dir = argv[3];
	unsigned n = (unsigned)strtoul(argv[4], NULL, 10);
	bool rate = strcmp(what, "marks") != 0;
	if (rate)
		make_files(dir, WAITING);
	uint64_t t = sl_now();
	open_reader(&r, argv[1], dir);
	double open_s = (double)(sl_now() - t) / 1e9;
	if (!r.bare && rate) {
		int e = sl_backend_mark(r.b, r.root, &r.id);
		if (e < 0)
			errx(1, "mark: %s", strerror(-e));
	}
	if (strcmp(what, "drain") == 0)
		drain(&r, n);
	else if (strcmp(what, "stream") == 0)
		stream(&r, n);
	else if (strcmp(what, "latency") == 0)
		latency(&r, n);
	else
		marks(&r, open_s, n);
	return 0;
}
