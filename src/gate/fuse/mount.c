/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "gate/fuse/mount.h"

#include <fcntl.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "base/fd.h"

#define HELPER "fusermount3"
#define FSTYPE "fuse.sluice"

static bool privileged(void)
{
	return geteuid() == 0;
}

int sl_fuse_available(char **why)
{
	struct stat st;
	if (stat("/dev/fuse", &st) < 0)
		return sl_fail(why, -errno,
			       "there is no /dev/fuse: load the kernel module (modprobe fuse), or give the "
			       "container that device");
	if (privileged()) {
		_cleanup_close_ int fd = open("/dev/fuse", O_RDWR | O_CLOEXEC);
		return fd < 0 ? sl_fail(why, -errno, "/dev/fuse cannot be opened: %s", strerror(errno)) : 0;
	}
	if (access("/dev/fuse", R_OK | W_OK) < 0)
		return sl_fail(why, -errno,
			       "/dev/fuse is not open to this user, as it usually is: 'chmod 666 /dev/fuse' "
			       "as root makes it so");
	const char *path = getenv("PATH");
	_cleanup_free_ char *copy = strdup(path && *path ? path : "/usr/bin:/bin");
	if (!copy)
		return -ENOMEM;
	char *save = NULL;
	for (char *d = strtok_r(copy, ":", &save); d; d = strtok_r(NULL, ":", &save)) {
		_cleanup_free_ char *p = sl_path_join(d, HELPER);
		if (p && access(p, X_OK) == 0)
			return 0;
	}
	return sl_fail(
	    why, -ENOENT,
	    HELPER
	    " is not installed, which users other than root need to mount (Debian: apt install fuse3)");
}

/* Run the helper; its messages come to @why. @commfd: passed on, or -1. */
static int run_helper(const char *const *argv, int commfd, char **why)
{
	int p[2];
	if (pipe2(p, O_CLOEXEC) < 0)
		return -errno;
	posix_spawn_file_actions_t fa;
	posix_spawn_file_actions_init(&fa);
	posix_spawn_file_actions_adddup2(&fa, p[1], STDERR_FILENO);
	char env[32];
	snprintf(env, sizeof(env), "_FUSE_COMMFD=%d", commfd);
	size_t n = 0;
	extern char **environ;
	while (environ[n])
		n++;
	_cleanup_free_ const char **envp = calloc(n + 2, sizeof(*envp));
	if (!envp)
		return -ENOMEM;
	memcpy(envp, environ, n * sizeof(*envp));
	if (commfd >= 0) {
		envp[n] = env;
		fcntl(commfd, F_SETFD, 0);
	}
	pid_t pid;
	int r = posix_spawnp(&pid, HELPER, &fa, NULL, (char *const *)argv, (char *const *)envp);
	posix_spawn_file_actions_destroy(&fa);
	close(p[1]);
	if (r) {
		close(p[0]);
		return sl_fail(why, -r, "cannot run " HELPER ": %s (Debian: apt install fuse3)", strerror(r));
	}
	char msg[512];
	ssize_t got = 0, k;
	while ((k = read(p[0], msg + got, sizeof(msg) - 1 - (size_t)got)) > 0)
		got += k;
	close(p[0]);
	msg[got] = '\0';
	msg[strcspn(msg, "\n")] = '\0';
	int status;
	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
		return sl_fail(why, strstr(msg, "busy") ? -EBUSY : -EPERM, "%s",
			       *msg ? msg : HELPER " failed");
	return 0;
}

static int recv_fd(int sock)
{
	char byte, ctl[CMSG_SPACE(sizeof(int))];
	struct iovec iov = {&byte, 1};
	struct msghdr mh = {
	    .msg_iov = &iov, .msg_iovlen = 1, .msg_control = ctl, .msg_controllen = sizeof(ctl)};
	ssize_t n;
	do
		n = recvmsg(sock, &mh, MSG_CMSG_CLOEXEC);
	while (n < 0 && errno == EINTR);
	struct cmsghdr *c = n > 0 ? CMSG_FIRSTHDR(&mh) : NULL;
	if (!c || c->cmsg_type != SCM_RIGHTS)
		return n < 0 ? -errno : -EPROTO;
	int fd;
	memcpy(&fd, CMSG_DATA(c), sizeof(fd));
	return fd;
}

int sl_fuse_mount(const char *dir, const struct sl_mount_options *o, char **why)
{
	char opts[256];
	int r = sl_fuse_available(why);
	if (r < 0)
		return r;
	if (privileged()) {
		_cleanup_close_ int fd = open("/dev/fuse", O_RDWR | O_CLOEXEC);
		if (fd < 0)
			return sl_fail(why, -errno, "/dev/fuse: %s", strerror(errno));
		snprintf(opts, sizeof(opts),
			 "fd=%d,rootmode=40000,user_id=%u,group_id=%u,default_permissions%s", fd,
			 (unsigned)getuid(), (unsigned)getgid(), o->allow_other ? ",allow_other" : "");
		if (mount("sluice", dir, FSTYPE, MS_NOSUID | MS_NODEV | (o->read_only ? MS_RDONLY : 0),
			  opts) < 0)
			return sl_fail(why, -errno, "cannot mount on %s: %s", dir, strerror(errno));
		return sl_steal_fd(&fd);
	}
	int sv[2];
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv) < 0)
		return -errno;
	snprintf(opts, sizeof(opts), "fsname=sluice,subtype=sluice,default_permissions,nosuid,nodev%s%s",
		 o->allow_other ? ",allow_other" : "", o->read_only ? ",ro" : "");
	const char *argv[] = {HELPER, "-o", opts, "--", dir, NULL};
	r = run_helper(argv, sv[1], why);
	close(sv[1]);
	if (r == 0)
		r = recv_fd(sv[0]);
	close(sv[0]);
	if (r < 0)
		return sl_fail(why, r, "cannot mount on %s: %s", dir, strerror(-r));
	return r;
}

int sl_fuse_unmount(const char *dir, bool lazy, char **why)
{
	if (privileged()) {
		if (umount2(dir, (lazy ? MNT_DETACH : 0) | UMOUNT_NOFOLLOW) < 0)
			return sl_fail(why, -errno, "cannot unmount %s: %s", dir, strerror(errno));
		return 0;
	}
	const char *argv[] = {HELPER, "-u", lazy ? "-z" : "-q", "--", dir, NULL};
	return run_helper(argv, -1, why);
}

/* mountinfo writes space, tab, newline and backslash as octal. */
static void unescape(char *s)
{
	char *o = s;
	for (; *s; s++) {
		if (s[0] == '\\' && s[1] >= '0' && s[1] <= '3' && s[2] >= '0' && s[2] <= '7' && s[3] >= '0' &&
		    s[3] <= '7') {
			*o++ = (char)((s[1] - '0') * 64 + (s[2] - '0') * 8 + (s[3] - '0'));
			s += 3;
		} else {
			*o++ = *s;
		}
	}
	*o = '\0';
}

enum sl_mounted sl_fuse_mounted(const char *dir)
{
	FILE *f = fopen("/proc/self/mountinfo", "re");
	char *line = NULL;
	size_t cap = 0;
	enum sl_mounted r = SL_NOT_MOUNTED;
	while (f && getline(&line, &cap, f) > 0) {
		/* 36 35 98:0 /mnt1 /mnt/parent rw,noatime master:1 - ext3 /dev/root rw */
		char *save = NULL, *tok = strtok_r(line, " ", &save), *point = NULL;
		for (int i = 0; tok && i < 4; i++)
			point = tok = strtok_r(NULL, " ", &save);
		while (tok && strcmp(tok, "-"))
			tok = strtok_r(NULL, " ", &save);
		char *type = tok ? strtok_r(NULL, " ", &save) : NULL;
		if (!point || !type)
			continue;
		unescape(point);
		if (!strcmp(point, dir)) /* the last one is on top */
			r = !strcmp(type, FSTYPE) ? SL_MOUNTED_OURS : SL_MOUNTED_OTHER;
	}
	free(line);
	if (f)
		fclose(f);
	return r;
}
