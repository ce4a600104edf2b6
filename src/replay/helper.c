/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "replay/helper.h"

#include <fcntl.h>
#include <linux/openat2.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "base/fd.h"

#define HELPER_COMM "sluice-replay" /* as SL_ECHO_COMM; at most 15 bytes */
#define FD_SOCKET   3
#define FD_ROOT	    4
#define FD_STAGING  5

struct sl_helper {
	int sock;
	pid_t pid;
};

/* A command on the socket: this, then the strings that are there, each with its NUL. */
struct message {
	uint32_t op, mode, flags;
	uint8_t has[4];
	uint64_t rdev;
	struct timespec atime, mtime;
	char text[3 * SL_HELPER_PATH + 4 * 256];
};

/* ---- the helper's side: system calls only ---- */

/*
 * Directories that were used last, of which storms use one or two. What is done in one that another has taken
 * the place of the gate refuses, as it would any other; then it is looked for again.
 */
static struct {
	char path[SL_HELPER_PATH];
	int fd; /* 0: none */
} kept[2];
static unsigned kept_next;

static void forget_dirs(void)
{
	for (unsigned i = 0; i < 2; i++) {
		if (kept[i].fd)
			close(kept[i].fd);
		kept[i].fd = 0;
	}
}

/* A descriptor that stays ours. Users change names meanwhile: never through a symlink, and never out of the
 * mount. */
static int open_dir(const char *path)
{
	struct open_how how = {.flags = O_PATH | O_DIRECTORY | O_CLOEXEC,
			       .resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV |
					  RESOLVE_NO_MAGICLINKS};
	if (!path)
		return FD_STAGING;
	for (unsigned i = 0; i < 2; i++)
		if (kept[i].fd && !strcmp(kept[i].path, path))
			return kept[i].fd;
	if (strlen(path) >= sizeof(kept[0].path)) {
		errno = ENAMETOOLONG;
		return -1;
	}
	int fd = (int)syscall(SYS_openat2, FD_ROOT, *path ? path : ".", &how, sizeof(how));
	if (fd < 0)
		return -1;
	unsigned i = kept_next++ % 2;
	if (kept[i].fd)
		close(kept[i].fd);
	kept[i].fd = fd;
	strcpy(kept[i].path, path);
	return fd;
}

static int attach(const char *dir, const char *staging)
{
	int fd = open(dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	if (dup3(fd, FD_ROOT, O_CLOEXEC) < 0)
		return -errno;
	close(fd);
	/* Only the gate of this very clone shows it. */
	fd = openat(FD_ROOT, staging, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0) {
		int e = errno;
		(void)dup3(0, FD_ROOT, O_CLOEXEC);
		return -e;
	}
	(void)dup3(fd, FD_STAGING, O_CLOEXEC);
	close(fd);
	return 0;
}

static int act(const struct message *m, const char *const s[4])
{
	struct timespec ts[2] = {m->atime, m->mtime};
	int d = open_dir(s[0]), d2 = -1, r = -1, fd;
	if (d < 0)
		return -errno;
	switch (m->op) {
	case SL_HELPER_MKNOD:
		r = mknodat(d, s[1], m->mode, m->rdev);
		break;
	case SL_HELPER_MKDIR:
		r = mkdirat(d, s[1], m->mode & 07777);
		break;
	case SL_HELPER_SYMLINK:
		r = symlinkat(s[3], d, s[1]);
		break;
	case SL_HELPER_UNLINK:
	case SL_HELPER_RMDIR:
		r = unlinkat(d, s[1], m->op == SL_HELPER_RMDIR ? AT_REMOVEDIR : 0);
		break;
	case SL_HELPER_RENAME:
		d2 = open_dir(s[2]);
		r = d2 < 0 ? -1 : renameat2(d, s[1], d2, s[3], m->flags);
		break;
	case SL_HELPER_TIMES:
		r = utimensat(d, s[1], ts, AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH);
		break;
	case SL_HELPER_CLOSE:
		fd = openat(d, *s[1] ? s[1] : ".",
			    (int)m->flags | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
		r = fd < 0 ? -1 : close(fd);
		break;
	default:
		errno = ENOSYS;
	}
	return r < 0 ? -errno : 0;
}

static int run(const struct message *m, const char *const s[4])
{
	if (m->op == SL_HELPER_ATTACH || m->op == SL_HELPER_DETACH)
		forget_dirs();
	if (m->op == SL_HELPER_ATTACH)
		return attach(s[1], s[3]);
	if (m->op == SL_HELPER_DETACH) {
		/* The numbers stay taken. */
		(void)dup3(0, FD_STAGING, O_CLOEXEC);
		(void)dup3(0, FD_ROOT, O_CLOEXEC);
		return 0;
	}
	bool had = kept[0].fd || kept[1].fd;
	int r = act(m, s);
	if (r < 0 && had) {
		forget_dirs();
		r = act(m, s);
	}
	if (m->op == SL_HELPER_RENAME || m->op == SL_HELPER_RMDIR)
		forget_dirs();
	return r;
}

static void serve(void)
{
	static struct message m;
	for (;;) {
		const char *s[4] = {NULL};
		ssize_t n = recv(FD_SOCKET, &m, sizeof(m), 0);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < (ssize_t)offsetof(struct message, text))
			_exit(0); /* the service is gone */
		char *p = m.text;
		for (int i = 0; i < 4; i++)
			if (m.has[i]) {
				s[i] = p;
				p += strlen(p) + 1;
			}
		int r = run(&m, s);
		if (send(FD_SOCKET, &r, sizeof(r), MSG_NOSIGNAL) != sizeof(r))
			_exit(0);
	}
}

static void become_helper(int sock)
{
	sigset_t none;
	sigemptyset(&none);
	prctl(PR_SET_NAME, HELPER_COMM);
	setsid(); /* what is sent to the terminal's processes is not for it */
	signal(SIGTERM, SIG_IGN);
	signal(SIGINT, SIG_IGN);
	signal(SIGHUP, SIG_IGN);
	sigprocmask(SIG_SETMASK, &none, NULL);
	if (chdir("/") < 0 || dup2(sock, FD_SOCKET) < 0)
		_exit(1);
	syscall(SYS_close_range, FD_SOCKET + 1, ~0u, 0);
	for (int fd = 0; fd < FD_SOCKET; fd++)
		close(fd);
	int null = open("/dev/null", O_RDWR);
	for (int fd = null + 1; fd <= FD_STAGING; fd++)
		if (fd != FD_SOCKET && dup2(null, fd) < 0)
			_exit(1);
	umask(0);
	serve();
}

/* ---- the service's ---- */

int sl_helper_start(struct sl_helper **ret)
{
	int sv[2];
	struct sl_helper *h = calloc(1, sizeof(*h));
	if (!h)
		return -ENOMEM;
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sv) < 0) {
		int e = errno;
		free(h);
		return -e;
	}
	h->pid = fork();
	if (h->pid == 0)
		become_helper(sv[1]);
	int e = errno;
	close(sv[1]);
	h->sock = sv[0];
	if (h->pid < 0) {
		close(h->sock);
		free(h);
		return -e;
	}
	*ret = h;
	return 0;
}

void sl_helper_stop(struct sl_helper *h)
{
	if (!h)
		return;
	close(h->sock);
	while (waitpid(h->pid, NULL, 0) < 0 && errno == EINTR)
		;
	free(h);
}

pid_t sl_helper_pid(const struct sl_helper *h)
{
	return h->pid;
}

static bool add(struct message *m, size_t *at, int i, const char *s)
{
	size_t n = s ? strlen(s) + 1 : 0;
	if (*at + n > sizeof(m->text))
		return false;
	m->has[i] = s != NULL;
	if (s)
		memcpy(m->text + *at, s, n);
	*at += n;
	return true;
}

int sl_helper_call(struct sl_helper *h, const struct sl_helper_call *c)
{
	struct message m;
	size_t n = 0;
	memset(&m, 0, offsetof(struct message, text));
	m.op = c->op;
	m.mode = c->mode;
	m.flags = c->flags;
	m.rdev = c->rdev;
	m.atime = c->atime;
	m.mtime = c->mtime;
	if (!add(&m, &n, 0, c->dir) || !add(&m, &n, 1, c->name) || !add(&m, &n, 2, c->dir2) ||
	    !add(&m, &n, 3, c->name2))
		return -ENAMETOOLONG;
	int r;
	ssize_t k;
	do
		k = send(h->sock, &m, offsetof(struct message, text) + n, MSG_NOSIGNAL);
	while (k < 0 && errno == EINTR);
	if (k < 0)
		return -EPIPE;
	do
		k = recv(h->sock, &r, sizeof(r), 0);
	while (k < 0 && errno == EINTR);
	return k == sizeof(r) ? r : -EPIPE;
}
