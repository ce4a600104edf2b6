/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "keeper/keeper.h"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>

#include "base/fd.h"
#include "base/log.h"
#include "base/time.h"
#include "base/why.h"
#include "keeper/internal.h"
#include "keeper/manager.h"

/* What <sanitizer/linux_syscall_hooks.h> declares, which not every compiler brings along: without it TSan
 * takes the child's threads for the parent's. */
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
void __sanitizer_syscall_pre_impl_fork(void);
void __sanitizer_syscall_post_impl_fork(long res);
#else
#define __sanitizer_syscall_pre_impl_fork()
#define __sanitizer_syscall_post_impl_fork(res)
#endif

#define QUICK_NS                                                                                             \
	(250 * SL_NS_PER_MS) /* who dies sooner than that after its start will be started more slowly */
#define BACKOFF_MIN (50 * SL_NS_PER_MS)
#define BACKOFF_MAX (5 * SL_NS_PER_SEC)
#define TRIES_MAX   24 /* services in a row that did not even come to be ready: some 80 seconds */

/* ---- processes that share the table of descriptors ---- */

/* As fork(), except for that. In the child the C library's idea of the thread's id is the parent's: it must
 * only use system calls, or make a new thread for everything else. */
pid_t sl_keeper_clone(unsigned long flags)
{
	__sanitizer_syscall_pre_impl_fork();
	long pid = syscall(SYS_clone, flags | CLONE_FILES | SIGCHLD, NULL, NULL, NULL, 0);
	__sanitizer_syscall_post_impl_fork(pid);
	return pid < 0 ? -errno : (pid_t)pid;
}

static int pidfd_of(pid_t pid)
{
	int fd = (int)syscall(SYS_pidfd_open, pid, 0);
	return fd < 0 ? -errno : fd;
}

static int oom_score(int score) /* returns the old one, where a new one was set */
{
	char text[16] = "";
	int fd = open("/proc/self/oom_score_adj", O_RDWR | O_CLOEXEC), old = score;
	if (fd < 0)
		return old;
	if (read(fd, text, sizeof(text) - 1) > 0)
		old = atoi(text);
	int n = snprintf(text, sizeof(text), "%d", score);
	(void)!pwrite(fd, text, (size_t)n, 0);
	close(fd);
	return old;
}

/* ---- the keeper, waiting ---- */

static void keep_fd(void *arg, int fd)
{
	(void)arg;
	fcntl(fd, F_SETFD, 0);
}

/* Become a new keeper with what is kept, and nothing else. Returns only when the program cannot be executed.
 */
static void start_over(struct sl_keeper *k, const char *program)
{
	extern char **environ;
	char fd[16];
	struct sl_state *st = k->st;
	snprintf(fd, sizeof(fd), "%d", sl_kept_get(k, SL_KEPT_STATE));
	char *argv[] = {(char *)"sluice", (char *)"keeper", fd, NULL};
	for (unsigned i = 0; i < SL_KEPT_MAX; i++)
		if (sl_kept_get(k, i) >= 0)
			keep_fd(NULL, sl_kept_get(k, i));
	k->cfg.each_fd(k->area, k->area_size, keep_fd, NULL);
	execve(program, argv, environ);
	st->upgrade = 0;
}

/* The service is gone. Returns the keeper's exit status, if that ends it as well. */
static int service_gone(struct sl_keeper *k)
{
	struct sl_state *st = k->st;
	uint32_t phase = st->phase;
	bool asked = st->upgrade;
	if (phase == SL_PHASE_ENDED || phase == SL_PHASE_ENDING) {
		sl_manager_unstore();
		return phase == SL_PHASE_ENDED ? 0 : 1;
	}
	if (!st->was_ready)
		return 1;
	if (phase == SL_PHASE_READY)
		st->tries = 0;
	else if (++st->tries >= TRIES_MAX)
		return 1;
	bool quick = phase != SL_PHASE_READY || sl_now() - st->started < QUICK_NS;
	st->quick = quick && !asked ? st->quick + 1 : 0;
	if (st->quick > 1) {
		unsigned doublings = SL_MIN(st->quick - 2, 10u);
		uint64_t ns = SL_MIN(BACKOFF_MIN << doublings, BACKOFF_MAX);
		struct timespec ts = {.tv_sec = (time_t)(ns / SL_NS_PER_SEC),
				      .tv_nsec = (long)(ns % SL_NS_PER_SEC)};
		nanosleep(&ts, NULL);
	}
	*(asked ? &st->upgrades : &st->restarts) += 1;
	if (asked)
		start_over(k, st->program);
	for (;;) {
		start_over(k, "/proc/self/exe");
		struct timespec ts = {.tv_sec = 1}; /* no memory for it, perhaps */
		nanosleep(&ts, NULL);
	}
}

static void answer_bell(struct sl_keeper *k, int pidfd, bool *told)
{
	struct sl_state *st = k->st;
	uint64_t n;
	(void)!read(sl_kept_get(k, SL_KEPT_BELL), &n, sizeof(n));
	if (st->upgrade)
		syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, NULL, 0);
	else if (st->phase == SL_PHASE_ENDING)
		sl_manager_tell("STOPPING=1");
	else if (st->phase == SL_PHASE_READY) {
		sl_manager_store(st);
		if (!*told)
			sl_manager_tell("READY=1");
		*told = true;
	}
}

int sl_keeper_wait(struct sl_keeper *k, int pidfd)
{
	sigset_t set;
	bool told = false;
	prctl(PR_SET_NAME, "sl-keeper");
	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGHUP);
	int sig_fd = signalfd(-1, &set, SFD_CLOEXEC);
	struct pollfd p[3] = {{.fd = pidfd, .events = POLLIN},
			      {.fd = sig_fd, .events = POLLIN},
			      {.fd = sl_kept_get(k, SL_KEPT_BELL), .events = POLLIN}};
	for (;;) {
		if (poll(p, 3, -1) < 0 && errno != EINTR)
			return 1;
		struct signalfd_siginfo si;
		if (p[1].revents && read(sig_fd, &si, sizeof(si)) == sizeof(si))
			syscall(SYS_pidfd_send_signal, pidfd, si.ssi_signo, NULL, 0);
		if (p[2].revents)
			answer_bell(k, pidfd, &told);
		if (p[0].revents & POLLIN)
			break;
	}
	if (waitpid(k->st->service_pid, &k->st->died_of, WNOHANG) <= 0)
		k->st->died_of = -1;
	return service_gone(k);
}

/* ---- starting a service ---- */

static void *serve_thread(void *arg)
{
	struct sl_keeper *k = arg;
	char *why = NULL;
	int r = sl_keeper_watch_start(k);
	if (r == 0)
		r = k->cfg.serve(k, k->st->store, k->cfg.ready_fd, k->cfg.need_origin, &why);
	sl_keeper_watch_stop(k);
	if (r < 0)
		sl_err("%s", why ? why : strerror(-r));
	free(why);
	k->st->phase = r < 0 ? SL_PHASE_FAILED : SL_PHASE_ENDED;
	return NULL;
}

static _Noreturn void serve(struct sl_keeper *k)
{
	pthread_t t;
	prctl(PR_SET_NAME, "sluice");
	oom_score(k->st->oom_score);
	k->st->service_pid = (int32_t)syscall(SYS_getpid);
	int r = pthread_create(&t, NULL, serve_thread, k);
	if (r == 0)
		pthread_join(t, NULL);
	uint32_t phase = r ? SL_PHASE_FAILED : k->st->phase;
	k->st->phase = phase;
	sl_keeper_unmap(k);
	exit(phase == SL_PHASE_ENDED ? 0 : 1);
}

static int start(struct sl_keeper *k)
{
	struct sl_state *st = k->st;
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGHUP);
	pthread_sigmask(SIG_BLOCK, &set, NULL);
	fflush(NULL);
	int score = oom_score(-1000);
	if (!st->successor) /* or it is a keeper's already */
		st->oom_score = score;
	prctl(PR_SET_NAME, "sl-keeper");
	st->keeper_pid = (int32_t)getpid();
	st->phase = SL_PHASE_STARTING;
	st->started = sl_now();
	st->upgrade = 0;
	pid_t pid = sl_keeper_clone(0);
	if (pid == 0)
		serve(k);
	if (pid < 0) {
		sl_err("cannot start the service: %s", strerror(-pid));
		return 1;
	}
	st->service_pid = pid;
	int pidfd = pidfd_of(pid);
	if (pidfd < 0) {
		sl_err("cannot watch the service (pid %d): %s", (int)pid, strerror(-pidfd));
		kill(pid, SIGKILL);
		return 1;
	}
	return sl_keeper_wait(k, pidfd);
}

/* ---- state ---- */

static int map(struct sl_keeper *k, int fd)
{
	k->st = mmap(NULL, SL_STATE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (k->st == MAP_FAILED)
		return -errno;
	k->area = (char *)k->st + SL_STATE_HEADER;
	k->area_size = SL_STATE_SIZE - SL_STATE_HEADER;
	return 0;
}

void sl_keeper_unmap(struct sl_keeper *k)
{
	munmap(k->st, SL_STATE_SIZE);
	k->st = NULL;
}

static int make_state(struct sl_keeper *k)
{
	int fd = memfd_create("sluice-state", MFD_CLOEXEC);
	if (fd < 0)
		return -errno;
	int r = ftruncate(fd, SL_STATE_SIZE) < 0 ? -errno : map(k, fd);
	if (r < 0) {
		close(fd);
		return r;
	}
	struct sl_state *st = k->st;
	st->magic = SL_STATE_MAGIC;
	st->version = SL_STATE_VERSION;
	st->size = sizeof(*st);
	sl_kept_put(k, SL_KEPT_STATE, fd);
	if (snprintf(st->store, sizeof(st->store), "%s", k->cfg.store) >= (int)sizeof(st->store))
		return -ENAMETOOLONG;
	return 0;
}

static int take_state(struct sl_keeper *k, int fd)
{
	struct stat sb;
	if (fstat(fd, &sb) < 0 || sb.st_size != (off_t)SL_STATE_SIZE)
		return -EBADMSG;
	int r = map(k, fd);
	if (r < 0)
		return r;
	struct sl_state *st = k->st;
	if (st->magic != SL_STATE_MAGIC || st->version != SL_STATE_VERSION || st->size != sizeof(*st) ||
	    !memchr(st->store, '\0', sizeof(st->store)))
		return -EPROTONOSUPPORT;
	return 0;
}

struct keep_set {
	unsigned char *bits;
	int max;
};

static void mark_fd(void *arg, int fd)
{
	struct keep_set *s = arg;
	if (fd >= 0 && fd < s->max) {
		s->bits[fd / 8] |= (unsigned char)(1 << fd % 8);
		fcntl(fd, F_SETFD, FD_CLOEXEC);
	}
}

/* Everything that is not kept was closed by execve(), as long as it was marked so: now for certain. */
static int close_others(struct sl_keeper *k)
{
	struct keep_set s = {.max = 1 << 24};
	s.bits = calloc(1, (size_t)s.max / 8);
	if (!s.bits)
		return -ENOMEM;
	for (unsigned i = 0; i < SL_KEPT_MAX; i++)
		mark_fd(&s, sl_kept_get(k, i));
	k->cfg.each_fd(k->area, k->area_size, mark_fd, &s);
	int from = 3;
	for (int fd = 3; fd <= s.max; fd++) {
		if (fd % 8 == 0 && fd < s.max && s.bits[fd / 8] == 0) {
			fd += 7;
			continue;
		}
		if (fd == s.max || s.bits[fd / 8] & 1 << fd % 8) {
			if (fd > from)
				close_range((unsigned)from, fd == s.max ? ~0u : (unsigned)fd - 1, 0);
			from = fd + 1;
		}
	}
	free(s.bits);
	return 0;
}

static int finish(struct sl_keeper *k, int status)
{
	sl_keeper_unmap(k);
	return status;
}

/* A service manager kept the descriptors of a keeper and a service that both died. */
static int resume_stored(struct sl_keeper *k, int fds[SL_KEPT_MAX])
{
	int r = take_state(k, fds[SL_KEPT_STATE]);
	if (r == 0 && strcmp(k->st->store, k->cfg.store))
		r = -EXDEV;
	if (r == 0 && !k->st->was_ready)
		r = -ENOENT;
	if (r < 0) {
		sl_warn("what the service manager kept is of no use (%s): starting anew", strerror(-r));
		for (unsigned i = 0; i < SL_KEPT_MAX; i++)
			if (fds[i] >= 0)
				close(fds[i]);
		sl_manager_unstore();
		return r;
	}
	struct sl_state *st = k->st;
	for (unsigned i = 0; i < SL_KEPT_MAX; i++)
		sl_kept_put(k, i, fds[i]);
	st->successor = st->numbers_lost = 1;
	st->restarts++;
	st->quick = st->tries = 0;
	return 0;
}

int sl_keeper_run(const struct sl_keeper_config *cfg)
{
	struct sl_keeper k = {.cfg = *cfg};
	int fds[SL_KEPT_MAX];
	int r = sl_manager_restore(fds);
	if (r >= 0)
		r = resume_stored(&k, fds);
	if (r < 0)
		r = make_state(&k);
	if (r == 0) {
		int bell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
		if (bell < 0)
			r = -errno;
		else
			sl_kept_put(&k, SL_KEPT_BELL, bell);
	}
	if (r < 0) {
		sl_err("the keeper cannot start: %s", strerror(-r));
		return 1;
	}
	return finish(&k, start(&k));
}

static void say_why(const struct sl_state *st)
{
	int s = st->died_of;
	if (s >= 0 && WIFSIGNALED(s))
		sl_warn("the service (pid %d) was killed by signal %d (%s): starting the next one",
			st->service_pid, WTERMSIG(s), strsignal(WTERMSIG(s)));
	else
		sl_warn("the service (pid %d) ended without notice: starting the next one", st->service_pid);
}

int sl_keeper_resume(int state_fd, const struct sl_keeper_config *cfg)
{
	struct sl_keeper k = {.cfg = *cfg};
	k.cfg.ready_fd = -1;
	k.cfg.need_origin = false;
	int r = take_state(&k, state_fd);
	if (r < 0 || sl_kept_get(&k, SL_KEPT_STATE) != state_fd) {
		sl_err("the keeper cannot go on: %s", strerror(r < 0 ? -r : EBADF));
		return 1;
	}
	if (k.st->upgrade)
		sl_notice("upgrade: this program takes over");
	else
		say_why(k.st);
	r = close_others(&k);
	if (r < 0)
		sl_warn("cannot close what the last service had open: %s", strerror(-r));
	k.st->successor = 1;
	k.cfg.store = k.st->store;
	return finish(&k, start(&k));
}
