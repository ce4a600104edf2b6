/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "keeper/manager.h"

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "base/macros.h"

/* The bell is of no use without the processes that it calls. Nor is the control socket: whoever connected
 * would wait for a service that the manager may never start again. */
static const char *const names[SL_KEPT_MAX] = {
    [SL_KEPT_STATE] = "state", [SL_KEPT_LOCK] = "lock",	    [SL_KEPT_FUSE] = "fuse",
    [SL_KEPT_GROUP] = "group", [SL_KEPT_NOTIFY] = "notify", [SL_KEPT_WORK] = "work",
    [SL_KEPT_IMAGE] = "image", [SL_KEPT_MOUNT] = "mount",
};

static void tell(const char *text, int fd)
{
	const char *path = getenv("NOTIFY_SOCKET");
	struct sockaddr_un sa = {.sun_family = AF_UNIX};
	size_t n = path ? strlen(path) : 0;
	if (n == 0 || n >= sizeof(sa.sun_path))
		return;
	memcpy(sa.sun_path, path, n);
	if (*path == '@')
		sa.sun_path[0] = '\0';
	_cleanup_close_ int s = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (s < 0)
		return;
	union {
		char buf[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} ctl = {0};
	struct iovec iov = {(void *)text, strlen(text)};
	struct msghdr mh = {.msg_name = &sa,
			    .msg_namelen = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + n),
			    .msg_iov = &iov,
			    .msg_iovlen = 1};
	if (fd >= 0) {
		mh.msg_control = ctl.buf;
		mh.msg_controllen = sizeof(ctl.buf);
		struct cmsghdr *c = CMSG_FIRSTHDR(&mh);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(c), &fd, sizeof(fd));
	}
	(void)!sendmsg(s, &mh, MSG_NOSIGNAL);
}

void sl_manager_tell(const char *text)
{
	tell(text, -1);
}

void sl_manager_store(const struct sl_state *st)
{
	for (size_t i = 0; i < SL_KEPT_MAX; i++) {
		char text[64] = "FDSTORE=1\nFDPOLL=0\nFDNAME=";
		int fd = st->fds[i] - 1;
		if (!names[i] || fd < 0)
			continue;
		strcat(text, names[i]);
		tell(text, fd);
	}
}

void sl_manager_unstore(void)
{
	for (size_t i = 0; i < SL_KEPT_MAX; i++) {
		char text[64] = "FDSTOREREMOVE=1\nFDNAME=";
		if (names[i])
			tell(strcat(text, names[i]), -1);
	}
}

int sl_manager_restore(int fds[SL_KEPT_MAX])
{
	const char *pid = getenv("LISTEN_PID"), *count = getenv("LISTEN_FDS"),
		   *list = getenv("LISTEN_FDNAMES");
	for (size_t i = 0; i < SL_KEPT_MAX; i++)
		fds[i] = -1;
	int n = pid && count && list && atoi(pid) == getpid() ? atoi(count) : 0;
	for (int fd = 3; fd < 3 + n; fd++) {
		size_t len = strcspn(list, ":"), i = 0;
		while (i < SL_KEPT_MAX &&
		       !(names[i] && strlen(names[i]) == len && !memcmp(names[i], list, len)))
			i++;
		if (i < SL_KEPT_MAX && fds[i] < 0) {
			fcntl(fd, F_SETFD, FD_CLOEXEC);
			fds[i] = fd;
		} else {
			close(fd);
		}
		list += len + (list[len] == ':');
	}
	unsetenv("LISTEN_PID");
	unsetenv("LISTEN_FDS");
	unsetenv("LISTEN_FDNAMES");
	return fds[SL_KEPT_STATE] >= 0 ? fds[SL_KEPT_STATE] : -ENOENT;
}
