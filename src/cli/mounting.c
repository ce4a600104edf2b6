/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "cli/mounting.h"

#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "base/fd.h"
#include "base/human.h"
#include "base/log.h"
#include "cli/call.h"
#include "cli/registry.h"
#include "gate/fuse/mount.h"

bool sl_mounting_option(struct sl_mounting *m, int c)
{
	switch (c) {
	case 'a':
		return m->allow_other = true;
	case 'b':
		return m->background = true;
	case 'r':
		return m->read_only = true;
	case 'j':
		return m->json = true;
	case 'e':
		return sl_cli_events(optarg, &m->uses);
	default:
		return false;
	}
}

static bool inside(const char *path, const char *dir)
{
	size_t n = strlen(dir);
	return !strncmp(path, dir, n) && (!path[n] || path[n] == '/' || n == 1);
}

static int check_dir(struct sl_mounting *m, const char *avoid, char **why)
{
	m->path = sl_absolute(m->dir);
	if (!m->path)
		return -ENOMEM;
	if (mkdir(m->path, 0755) == 0)
		m->made = true;
	else if (errno != EEXIST)
		return sl_fail(why, -errno, "cannot make %s: %s", m->dir, strerror(errno));
	if (sl_fuse_mounted(m->path) != SL_NOT_MOUNTED)
		return sl_fail(why, -EBUSY, "something is mounted on %s already", m->dir);
	char *real = realpath(m->path, NULL); /* as mountinfo will name it */
	if (!real)
		return sl_fail(why, -errno, "%s: %s", m->dir, strerror(errno));
	free(m->path);
	m->path = real;
	if (avoid && (inside(m->path, avoid) || inside(avoid, m->path)))
		return sl_fail(why, -EINVAL, "%s and %s lie one inside the other", m->dir, avoid);
	DIR *d = opendir(m->path);
	if (!d)
		return sl_fail(why, -errno, "%s: %s", m->dir, strerror(errno));
	int n = 0;
	struct dirent *e;
	while ((e = readdir(d)))
		n += strcmp(e->d_name, ".") && strcmp(e->d_name, "..");
	closedir(d);
	return n ? sl_fail(why, -ENOTEMPTY, "%s is not empty, and a mount would hide what is in it", m->dir)
		 : 0;
}

/* The process that stays: its child says on @fd what there is to say, and ends it with a byte for the status.
 */
static int wait_ready(int fd, pid_t child)
{
	char b[4096];
	size_t n = 0;
	ssize_t k;
	while (n < sizeof(b) && (k = read(fd, b + n, sizeof(b) - n)) != 0) {
		if (k < 0 && errno != EINTR)
			break;
		if (k > 0)
			n += (size_t)k;
	}
	if (n == 0) {
		int st;
		while (waitpid(child, &st, 0) < 0 && errno == EINTR)
			;
		return sl_cli_fail("the process in the background has died");
	}
	fwrite(b, 1, n - 1, b[n - 1] ? stderr : stdout);
	return b[n - 1];
}

static int go_background(struct sl_mounting *m, int *status)
{
	int p[2];
	if (pipe2(p, O_CLOEXEC) < 0)
		return -errno;
	pid_t pid = fork();
	if (pid != 0) {
		int r = pid < 0 ? -errno : 1;
		close(p[1]);
		if (pid > 0)
			*status = wait_ready(p[0], pid);
		close(p[0]);
		return r;
	}
	close(p[0]);
	setsid();
	m->tell_fd = p[1];
	return 0;
}

/* To whom waits for us, or to our own output. */
static void tell(struct sl_mounting *m, int status, const char *text)
{
	if (m->tell_fd < 0) {
		fputs(text, status ? stderr : stdout);
		fflush(stdout);
		return;
	}
	char byte = (char)status;
	struct iovec iov[2] = {{(void *)text, strlen(text)}, {&byte, 1}};
	(void)!sl_writev_full(m->tell_fd, iov, 2);
	sl_closep(&m->tell_fd);
	m->tell_fd = -EBADF;
	if (status == 0) { /* from here on nobody is there to read */
		_cleanup_close_ int null = open("/dev/null", O_RDWR | O_CLOEXEC);
		for (int i = 0; i < 3 && null >= 0; i++)
			dup2(null, i);
		(void)!chdir("/");
	}
}

int sl_mounting_begin(struct sl_mounting *m, const char *avoid, int *status, char **why)
{
	sigset_t set;
	m->stop_fd = m->tell_fd = -EBADF;
	int r = sl_fuse_available(why);
	if (r == 0)
		r = check_dir(m, avoid, why);
	if (r == 0 && m->background)
		r = go_background(m, status);
	if (r == 1) {
		free(m->path);
		m->path = NULL;
	}
	if (r != 0)
		return r;
	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGHUP);
	sigprocmask(SIG_BLOCK, &set, NULL);
	m->stop_fd = signalfd(-1, &set, SFD_CLOEXEC);
	(void)sl_raise_nofile();
	return m->stop_fd < 0 ? -errno : 0;
}

struct loop {
	struct sl_mounting *m;
	struct sl_transport *t;
	int ended_fd, result;
};

static void *loop_thread(void *arg)
{
	struct loop *l = arg;
	l->result = l->m->serve(l->m->arg, l->t);
	uint64_t one = 1;
	(void)!write(l->ended_fd, &one, sizeof(one));
	return NULL;
}

static void say_ready(struct sl_mounting *m)
{
	_cleanup_free_ char *text = NULL, *dir = sl_printable(m->path, strlen(m->path)),
			    *what = sl_printable(m->what, strlen(m->what));
	if (m->json) {
		json_t *j =
		    json_pack("{sb ss ss si}", "ready", 1, "dir", dir, "what", what, "pid", (int)getpid());
		_cleanup_free_ char *s = j ? json_dumps(j, JSON_COMPACT | JSON_PRESERVE_ORDER) : NULL;
		json_decref(j);
		if (asprintf(&text, "%s\n", s ? s : "{\"ready\":true}") < 0)
			text = NULL;
	} else if (asprintf(&text, "%s shows %s\n", dir, what) < 0) {
		text = NULL;
	}
	tell(m, 0, text ? text : "\n");
}

/* Until somebody unmounts it, or wants us to. */
static void wait_end(struct sl_mounting *m, struct loop *l)
{
	struct pollfd p[2] = {{.fd = m->stop_fd, .events = POLLIN}, {.fd = l->ended_fd, .events = POLLIN}};
	while (poll(p, 2, -1) < 0 && errno == EINTR)
		;
	if (p[1].revents)
		return;
	if (sl_fuse_unmount(m->path, false, NULL) == 0) {
		p[0].fd = -1;
		if (poll(p, 2, 10000) > 0)
			return;
	} else {
		sl_warn("%s was in use: what is open there gets errors", m->path);
		(void)sl_fuse_unmount(m->path, true, NULL);
	}
	/* The threads wait for requests that others hold up; they end with the process, and the mount with
	 * it. */
	if (m->made)
		rmdir(m->path);
	_exit(SL_EXIT_OK);
}

int sl_mounting_run(struct sl_mounting *m, char **why)
{
	/* Not read-only: on such a mount no event can be raised. Who answers refuses all changes. */
	const struct sl_mount_options o = {.allow_other = m->allow_other};
	struct loop l = {.m = m, .ended_fd = eventfd(0, EFD_CLOEXEC)};
	pthread_t th;
	int fd = sl_fuse_mount(m->path, &o, why);
	if (fd < 0)
		return fd;
	int r = sl_transport_new(SL_TRANSPORT_DEV, fd, fd, &l.t);
	if (r == 0)
		r = -pthread_create(&th, NULL, loop_thread, &l);
	if (r < 0) {
		(void)sl_fuse_unmount(m->path, true, NULL);
		sl_transport_free(l.t);
		close(l.ended_fd);
		return r;
	}
	if (m->mounted)
		r = m->mounted(m->arg, m->path, why);
	if (r == 0) {
		say_ready(m);
		wait_end(m, &l);
	} else {
		(void)sl_fuse_unmount(m->path, true, NULL);
	}
	pthread_join(th, NULL);
	if (sl_fuse_mounted(m->path) == SL_MOUNTED_OURS) /* the loop ended with the mount still there */
		(void)sl_fuse_unmount(m->path, true, NULL);
	sl_transport_free(l.t);
	close(l.ended_fd);
	return r < 0 ? r : l.result < 0 ? sl_fail(why, l.result, "%s: %s", m->dir, strerror(-l.result)) : 0;
}

int sl_mounting_end(struct sl_mounting *m, int r, const char *why)
{
	_cleanup_free_ char *text = NULL;
	if (m->made)
		rmdir(m->path);
	if (r < 0 && asprintf(&text, "sluice: %s\n", why ? why : strerror(-r)) >= 0)
		tell(m, SL_EXIT_FAIL, text);
	sl_closep(&m->stop_fd);
	sl_closep(&m->tell_fd);
	free(m->path);
	return r < 0 ? SL_EXIT_FAIL : SL_EXIT_OK;
}
