// SPDX-License-Identifier: GPL-2.0-only
// Ways that look at names, open, list, or change what a name denotes.

#include "ways.h"

#include <linux/openat2.h>
#include <sys/inotify.h>
#include <sys/quota.h>
#include <sys/statvfs.h>
#include <sys/swap.h>
#include <sys/sysmacros.h>

static int w_stat(const char *d)
{
	struct stat st;
	EXPECT(!stat(P("f"), &st) && st.st_size == 8);
	return 0;
}

static int w_lstat(const char *d)
{
	struct stat st;
	EXPECT(!lstat(P("l"), &st) && S_ISLNK(st.st_mode));
	return 0;
}

static int w_stat_missing(const char *d)
{
	struct stat st;
	FAILS(stat(P("none"), &st), ENOENT);
	EXPECT(!stat(P("f"), &st));
	return 0;
}

static int w_stat_deep(const char *d)
{
	struct stat st;
	EXPECT(!stat(P("s/g"), &st));
	return 0;
}

static int w_statx(const char *d)
{
	struct statx st;
	EXPECT(!statx(AT_FDCWD, P("f"), AT_STATX_DONT_SYNC, STATX_SIZE, &st));
	return 0;
}

static int w_statfs(const char *d)
{
	struct statvfs st;
	EXPECT(!statvfs(P("f"), &st));
	return 0;
}

static int w_access(const char *d)
{
	EXPECT(!access(P("x"), X_OK));
	return 0;
}

static int w_faccessat2(const char *d)
{
	EXPECT(!syscall(SYS_faccessat2, AT_FDCWD, P("x"), X_OK, AT_EACCESS));
	return 0;
}

static int w_readlink(const char *d)
{
	char b[8];
	EXPECT(readlink(P("l"), b, sizeof(b)) == 1 && b[0] == 'f');
	return 0;
}

struct fh {
	struct file_handle h;
	unsigned char b[128];
};
static int w_name_to_handle(const char *d)
{
	struct fh h = {.h.handle_bytes = 128};
	int id;
	EXPECT(!name_to_handle_at(AT_FDCWD, P("f"), &h.h, &id, 0));
	return 0;
}

static int w_inotify(const char *d)
{
	int i = inotify_init();
	EXPECT(inotify_add_watch(i, P("f"), IN_MODIFY) >= 0);
	return 0;
}

static int w_fanotify(const char *d)
{
	int g = fan_init(FAN_CLASS_NOTIF, O_RDONLY);
	EXPECT(g >= 0 && !fan_mark(g, FAN_MARK_ADD, FAN_MODIFY, AT_FDCWD, P("f")));
	return 0;
}

static int w_quota(const char *d)
{
	// The file of the quotas is found by a path; it is none, and the filesystem has none.
	struct stat st;
	char dev[64];
	EXPECT(!stat(".", &st));
	snprintf(dev, sizeof(dev), "/dev/loop%u", minor(st.st_dev));
	FAILS(quotactl(QCMD(Q_QUOTAON, USRQUOTA), dev, 4, P("none")), ENOENT);
	FAILS(quotactl(QCMD(Q_QUOTAON, USRQUOTA), dev, 4, P("f")), EINVAL);
	return 0;
}

static int w_quota_dev(const char *d)
{
	FAILS(quotactl(QCMD(Q_SYNC, USRQUOTA), P("f"), 0, NULL), ENOTBLK);
	return 0;
}

static int w_swap(const char *d)
{
	FAILS(swapon(P("f"), 0), EINVAL);
	FAILS(swapoff(P("none")), ENOENT);
	return 0;
}

static int w_unpriv(const char *d)
{
	EXPECT(!setgid(65534) && !setuid(65534));
	return reads_content(open(P("f"), O_RDONLY));
}

static int w_thread_pool(const char *d)
{
	// Many at once, among them some for a missing name.
	int bad = 0;
	pid_t p[12];
	for (int i = 0; i < 12; i++) {
		p[i] = fork();
		if (p[i] == 0)
			_exit(i % 3 == 0   ? lists(open(d, O_RDONLY | O_DIRECTORY))
			      : i % 3 == 1 ? w_stat(d)
					   : w_stat_missing(d));
	}
	for (int i = 0; i < 12; i++) {
		int st;
		bad |= waitpid(p[i], &st, 0) != p[i] || st != 0;
	}
	return bad;
}

static int w_open(const char *d)
{
	return reads_content(open(P("f"), O_RDONLY));
}

static int w_open_slash(const char *d)
{
	FAILS(open(P("f/"), O_RDONLY), ENOTDIR);
	return 0;
}

static int w_open_rdwr(const char *d)
{
	return reads_content(open(P("f"), O_RDWR));
}

static int w_open_trunc(const char *d)
{
	int fd = open(P("x"), O_WRONLY | O_TRUNC);
	EXPECT(fd >= 0);
	close(fd);
	return 0;
}

static int w_open_path(const char *d)
{
	int fd = open(P("f"), O_PATH);
	EXPECT(fd >= 0);
	close(fd);
	return 0;
}

static int w_openat2(const char *d)
{
	struct open_how how = {.flags = O_RDONLY, .resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS};
	return reads_content((int)syscall(SYS_openat2, AT_FDCWD, P("f"), &how, sizeof(how)));
}

static int w_openat2_cached(const char *d)
{
	// The caller cannot wait: EAGAIN is an answer, ENOENT would be a lie. Then it can.
	struct open_how how = {.flags = O_RDONLY, .resolve = RESOLVE_CACHED};
	int fd = (int)syscall(SYS_openat2, AT_FDCWD, P("f"), &how, sizeof(how));
	if (fd < 0) {
		EXPECT(errno == EAGAIN);
		refused(EAGAIN);
		fd = open(P("f"), O_RDONLY);
	}
	return reads_content(fd);
}
static int w_by_handle(const char *d)
{
	struct fh h = {.h.handle_bytes = 128};
	int id, top = open(".", O_RDONLY | O_DIRECTORY);
	EXPECT(!name_to_handle_at(AT_FDCWD, d, &h.h, &id, 0));
	int fd = open_by_handle_at(top, &h.h, O_RDONLY | O_DIRECTORY);
	EXPECT(fd >= 0);
	int r = reads_content(openat(fd, "f", O_RDONLY));
	return r ? r : lists(fd);
}

static int w_exec(const char *d)
{
	pid_t pid = fork();
	if (pid == 0) {
		execl(P("x"), "x", (char *)NULL);
		_exit(1);
	}
	int st;
	EXPECT(waitpid(pid, &st, 0) == pid && WIFEXITED(st) && WEXITSTATUS(st) == 7);
	return 0;
}

static int w_execveat(const char *d)
{
	int fd = open(d, O_PATH | O_DIRECTORY);
	pid_t pid = fork();
	if (pid == 0) {
		char *const argv[] = {"x", NULL}, *const env[] = {NULL};
		syscall(SYS_execveat, fd, "x", argv, env, 0);
		_exit(1);
	}
	int st;
	EXPECT(waitpid(pid, &st, 0) == pid && WIFEXITED(st) && WEXITSTATUS(st) == 7);
	return 0;
}

static int w_list(const char *d)
{
	return lists(open(d, O_RDONLY | O_DIRECTORY));
}

static int w_list_proc(const char *d)
{
	char b[64];
	int fd = open(d, O_PATH | O_DIRECTORY);
	EXPECT(fd >= 0);
	snprintf(b, sizeof(b), "/proc/self/fd/%d", fd);
	return lists(open(b, O_RDONLY | O_DIRECTORY));
}

static int w_truncate(const char *d)
{
	EXPECT(!truncate(P("f"), 8));
	return 0;
}

static int w_chmod(const char *d)
{
	EXPECT(!chmod(P("f"), 0640));
	return 0;
}

static int w_chown(const char *d)
{
	EXPECT(!lchown(P("l"), 0, 0));
	return 0;
}

static int w_utimes(const char *d)
{
	EXPECT(!utimensat(AT_FDCWD, P("f"), NULL, 0));
	return 0;
}

static int w_xattr(const char *d)
{
	EXPECT(!setxattr(P("f"), "user.a", "b", 1, 0));
	EXPECT(listxattr(P("f"), NULL, 0) > 0);
	return 0;
}

// clang-format off
const struct way ways_names[] = {
    WAY(stat, "stat", .group = "Looking at a name"),
    WAY(lstat, "lstat"),
    WAY(stat_missing, "stat of a name that does not exist, then of one that does"),
    WAY(stat_deep, "stat two levels down"),
    WAY(statx, "statx with AT_STATX_DONT_SYNC"),
    WAY(statfs, "statfs"),
    WAY(access, "access"),
    WAY(faccessat2, "faccessat2"),
    WAY(readlink, "readlink"),
    WAY(name_to_handle, "name_to_handle_at"),
    WAY(inotify, "inotify_add_watch"),
    WAY(fanotify, "fanotify_mark"),
    WAY(quota, "quotactl(Q_QUOTAON): path of a quota file"),
    WAY(quota_dev, "quotactl: path of a device"),
    WAY(swap, "swapon, swapoff"),
    WAY(unpriv, "open by a user without privilege"),
    WAY(thread_pool, "twelve processes at once, listing, stat, stat of a missing name"),
    WAY(open, "open", .group = "Opening"),
    WAY(open_slash, "open with a slash after the name of a file"),
    WAY(open_rdwr, "open for writing"),
    WAY(open_trunc, "open with O_TRUNC"),
    WAY(open_path, "open with O_PATH"),
    WAY(openat2, "openat2 with RESOLVE_IN_ROOT", .by_fd = true),
    WAY(openat2_cached, "openat2 with RESOLVE_CACHED: cannot wait; then open"),
    WAY(by_handle, "open_by_handle_at of the directory, then openat and a listing", .by_fd = true),
    WAY(exec, "exec"),
    WAY(execveat, "execveat at a descriptor of the directory", .by_fd = true),
    WAY(list, "open and getdents", .group = "Listing"),
    WAY(list_proc, "open of /proc/self/fd/N and getdents", .ref = true),
    WAY(truncate, "truncate", .group = "Changing what a name denotes"),
    WAY(chmod, "chmod"),
    WAY(chown, "lchown"),
    WAY(utimes, "utimensat"),
    WAY(xattr, "setxattr, listxattr"),
    {0},
};
// clang-format on
