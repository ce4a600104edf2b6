/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The service's side: what is kept, and looking after the keeper. */
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "base/fd.h"
#include "base/log.h"
#include "base/why.h"
#include "keeper/internal.h"

/* ---- what is kept ---- */

int sl_kept_get(struct sl_keeper *k, enum sl_kept_fd which)
{
	int fd = k ? k->st->fds[which] - 1 : -1;
	return fd < 0 ? -EBADF : fd;
}

static void ring(struct sl_keeper *k)
{
	uint64_t one = 1;
	(void)!write(sl_kept_get(k, SL_KEPT_BELL), &one, sizeof(one));
}

void sl_kept_put(struct sl_keeper *k, enum sl_kept_fd which, int fd)
{
	if (!k)
		return;
	k->st->fds[which] = fd < 0 ? 0 : fd + 1;
	if (k->st->phase == SL_PHASE_READY)
		ring(k);
}

void *sl_kept_area(struct sl_keeper *k, size_t *size)
{
	*size = k ? k->area_size : 0;
	return k ? k->area : NULL;
}

bool sl_keeper_successor(const struct sl_keeper *k)
{
	return k && k->st->successor;
}

bool sl_keeper_numbers_lost(const struct sl_keeper *k)
{
	return k && k->st->numbers_lost;
}

void sl_keeper_numbers_known(struct sl_keeper *k)
{
	if (k)
		k->st->numbers_lost = 0;
}

unsigned sl_keeper_restarts(const struct sl_keeper *k)
{
	return k ? k->st->restarts : 0;
}

pid_t sl_keeper_pid(const struct sl_keeper *k)
{
	return k ? k->st->keeper_pid : 0;
}

void sl_keeper_ready(struct sl_keeper *k)
{
	if (!k)
		return;
	k->st->was_ready = 1;
	k->st->numbers_lost = 0;
	k->st->phase = SL_PHASE_READY;
	ring(k);
}

void sl_keeper_ending(struct sl_keeper *k)
{
	if (!k)
		return;
	k->st->phase = SL_PHASE_ENDING;
	ring(k);
}

void sl_keeper_fail(struct sl_keeper *k)
{
	k->st->phase = SL_PHASE_FAILED;
	_exit(1);
}

/* ---- upgrade ---- */

/* What @program says of itself when it is run with --state-version. */
static int ask_version(const char *program, char *text, size_t cap)
{
	extern char **environ;
	int p[2];
	pid_t pid;
	if (pipe2(p, O_CLOEXEC) < 0)
		return -errno;
	posix_spawn_file_actions_t fa;
	posix_spawn_file_actions_init(&fa);
	posix_spawn_file_actions_adddup2(&fa, p[1], STDOUT_FILENO);
	char *argv[] = {(char *)"sluice", (char *)"--state-version", NULL};
	int r = -posix_spawn(&pid, program, &fa, NULL, argv, environ);
	posix_spawn_file_actions_destroy(&fa);
	close(p[1]);
	size_t n = 0;
	if (r == 0) {
		ssize_t got;
		while (n < cap - 1 &&
		       ((got = read(p[0], text + n, cap - 1 - n)) > 0 || (got < 0 && errno == EINTR)))
			n += got > 0 ? (size_t)got : 0;
		int status;
		while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
			;
		if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
			r = -ENOEXEC;
	}
	text[n] = '\0';
	text[strcspn(text, "\n")] = '\0';
	close(p[0]);
	return r;
}

int sl_keeper_check(struct sl_keeper *k, const char *program, char **why)
{
	char theirs[64], ours[64];
	if (!k)
		return sl_fail(why, -EOPNOTSUPP, "this service has no keeper");
	if (program[0] != '/' || strlen(program) >= sizeof(k->st->program))
		return sl_fail(why, -EINVAL, "%s: not an absolute path of a program", program);
	int r = ask_version(program, theirs, sizeof(theirs));
	if (r < 0)
		return sl_fail(why, r, "%s cannot be run: %s", program, strerror(-r));
	if (!*theirs)
		return sl_fail(why, -ENOEXEC, "%s is no version of sluice that can take over", program);
	snprintf(ours, sizeof(ours), "%d.%zu", SL_STATE_VERSION, sizeof(struct sl_state));
	if (strcmp(ours, theirs))
		return sl_fail(why, -EPROTONOSUPPORT,
			       "%s has another layout of what is taken over (%.32s, this one has %s): stop "
			       "the clone and "
			       "start it with that program",
			       program, theirs, ours);
	return 0;
}

void sl_keeper_upgrade(struct sl_keeper *k, const char *program)
{
	sl_notice("upgrade: %s takes over", program);
	snprintf(k->st->program, sizeof(k->st->program), "%s", program);
	k->st->upgrade = 1;
	ring(k);
}

void sl_keeper_print_version(void)
{
	printf("%d.%zu\n", SL_STATE_VERSION, sizeof(struct sl_state));
}

/* ---- the keeper's keeper ---- */

static int pidfd_open_(pid_t pid)
{
	return (int)syscall(SYS_pidfd_open, pid, 0);
}

/* The keeper of this process, as a pidfd; -1 when there is none any more. */
static int find_keeper(struct sl_keeper *k)
{
	int fd = pidfd_open_(k->st->keeper_pid);
	if (fd >= 0 && getppid() != k->st->keeper_pid) {
		close(fd); /* it died at once, and somebody else has its number */
		fd = -1;
	}
	return fd;
}

/* Returns the new one's pidfd, or -1. */
static int make_keeper(struct sl_keeper *k)
{
	/* The new one finds us by a descriptor from before it began: it cannot mistake another process for
	 * us. */
	int self = pidfd_open_(getpid());
	pid_t pid = self < 0 ? -errno : sl_keeper_clone(CLONE_PARENT);
	if (pid == -EINVAL) /* whose parent is init of its namespace */
		pid = sl_keeper_clone(0);
	if (pid == 0)
		_exit(sl_keeper_wait(k, self));
	if (pid < 0) {
		sl_err("the keeper died, and no new one can be made (%s): should this service be killed as "
		       "well, what is "
		       "open in the clone gets errors",
		       strerror(-pid));
		return -1;
	}
	k->st->keeper_pid = pid;
	sl_warn("the keeper died: there is a new one, pid %d", (int)pid);
	return pidfd_open_(pid);
}

static void *watch(void *arg)
{
	struct sl_keeper *k = arg;
	int fd = find_keeper(k);
	for (;;) {
		if (fd < 0)
			fd = make_keeper(k);
		struct pollfd p[2] = {{.fd = k->watch_stop, .events = POLLIN}, {.fd = fd, .events = POLLIN}};
		int r = poll(p, 2, fd < 0 ? 1000 : -1);
		if (p[0].revents)
			break;
		if (r > 0 && p[1].revents & POLLIN) {
			waitpid(k->st->keeper_pid, NULL, WNOHANG);
			close(fd);
			fd = -1;
		}
	}
	if (fd >= 0)
		close(fd);
	return NULL;
}

int sl_keeper_watch_start(struct sl_keeper *k)
{
	k->watch_stop = eventfd(0, EFD_CLOEXEC);
	if (k->watch_stop < 0)
		return -errno;
	int r = -pthread_create(&k->watcher, NULL, watch, k);
	if (r < 0) {
		close(k->watch_stop);
		return r;
	}
	pthread_setname_np(k->watcher, "keeper-watch");
	k->watching = true;
	return 0;
}

void sl_keeper_watch_stop(struct sl_keeper *k)
{
	uint64_t one = 1;
	if (!k->watching)
		return;
	(void)!write(k->watch_stop, &one, sizeof(one));
	pthread_join(k->watcher, NULL);
	close(k->watch_stop);
	k->watching = false;
}
