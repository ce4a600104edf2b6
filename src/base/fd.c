/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "base/fd.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>

int sl_read_full(int fd, void *buf, size_t n)
{
	size_t got = 0;
	while (got < n) {
		ssize_t r = read(fd, (char *)buf + got, n - got);
		if (r < 0 && errno == EINTR)
			continue;
		if (r < 0)
			return -errno;
		if (r == 0)
			return got ? -EPIPE : -ENODATA;
		got += (size_t)r;
	}
	return 0;
}

int sl_writev_full(int fd, struct iovec *iov, int cnt)
{
	while (cnt > 0) {
		ssize_t r = writev(fd, iov, cnt);
		if (r < 0 && errno == EINTR)
			continue;
		if (r < 0)
			return -errno;
		while (cnt > 0 && (size_t)r >= iov->iov_len) {
			r -= (ssize_t)iov->iov_len;
			iov++;
			cnt--;
		}
		if (cnt > 0) {
			iov->iov_base = (char *)iov->iov_base + r;
			iov->iov_len -= (size_t)r;
		}
	}
	return 0;
}

int sl_write_full(int fd, const void *buf, size_t n)
{
	struct iovec iov = {.iov_base = (void *)buf, .iov_len = n};
	return sl_writev_full(fd, &iov, 1);
}

int sl_pwrite_full(int fd, const void *buf, size_t n, off_t off)
{
	while (n > 0) {
		ssize_t r = pwrite(fd, buf, n, off);
		if (r < 0 && errno == EINTR)
			continue;
		if (r < 0)
			return -errno;
		if (r == 0)
			return -EIO;
		buf = (const char *)buf + r;
		n -= (size_t)r;
		off += r;
	}
	return 0;
}

ssize_t sl_pread_full(int fd, void *buf, size_t n, off_t off)
{
	size_t got = 0;
	while (got < n) {
		ssize_t r = pread(fd, (char *)buf + got, n - got, off + (off_t)got);
		if (r < 0 && errno == EINTR)
			continue;
		if (r < 0)
			return -errno;
		if (r == 0)
			break;
		got += (size_t)r;
	}
	return (ssize_t)got;
}

char *sl_proc_fd_path(char buf[SL_PROC_FD_MAX], int fd, const char *name)
{
	snprintf(buf, SL_PROC_FD_MAX, "/proc/self/fd/%d%s%s", fd, name ? "/" : "", name ? name : "");
	return buf;
}

int sl_link_fd(int fd, int dirfd, const char *name)
{
	char p[SL_PROC_FD_MAX];
	if (linkat(fd, "", dirfd, name, AT_EMPTY_PATH) == 0)
		return 0;
	/* Without privilege, before Linux 6.10. */
	if (errno != ENOENT)
		return -errno;
	return linkat(AT_FDCWD, sl_proc_fd_path(p, fd, NULL), dirfd, name, AT_SYMLINK_FOLLOW) < 0 ? -errno
												  : 0;
}

int sl_only_opener(int fd)
{
	if (fcntl(fd, F_SETLEASE, F_WRLCK) < 0)
		return errno == EAGAIN ? -EBUSY : -errno;
	(void)fcntl(fd, F_SETLEASE, F_UNLCK);
	return 0;
}

int sl_reopen(int fd, int flags)
{
	char p[SL_PROC_FD_MAX];
	int r = open(sl_proc_fd_path(p, fd, NULL), (flags & ~O_NOFOLLOW) | O_CLOEXEC);
	return r < 0 ? -errno : r;
}

int sl_read_file(int dirfd, const char *name, size_t max, char **ret, size_t *ret_len)
{
	_cleanup_close_ int fd = openat(dirfd, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	if (fd < 0)
		return -errno;
	_cleanup_free_ char *b = malloc(max + 2);
	if (!b)
		return -ENOMEM;
	ssize_t n = sl_pread_full(fd, b, max + 1, 0);
	if (n < 0)
		return (int)n;
	if ((size_t)n > max)
		return -EFBIG;
	b[n] = '\0';
	if (ret_len)
		*ret_len = (size_t)n;
	*ret = sl_steal_ptr(&b);
	return 0;
}

int sl_write_file(int dirfd, const char *name, const void *buf, size_t n, mode_t mode)
{
	char tmp[300];
	if (strchr(name, '/'))
		return -EINVAL;
	if (snprintf(tmp, sizeof(tmp), ".%s.%d.tmp", name, (int)getpid()) >= (int)sizeof(tmp))
		return -ENAMETOOLONG;
	_cleanup_close_ int fd =
	    openat(dirfd, tmp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, mode);
	if (fd < 0)
		return -errno;
	int r = sl_write_full(fd, buf, n);
	if (r == 0 && fsync(fd) < 0)
		r = -errno;
	if (r == 0 && renameat(dirfd, tmp, dirfd, name) < 0)
		r = -errno;
	if (r < 0) {
		unlinkat(dirfd, tmp, 0);
		return r;
	}
	_cleanup_close_ int d = openat(dirfd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (d >= 0 && fsync(d) < 0)
		return -errno;
	return 0;
}

int sl_mkdirs(const char *path, mode_t mode)
{
	_cleanup_free_ char *p = strdup(path);
	if (!p)
		return -ENOMEM;
	for (char *s = p + 1;; s++) {
		if (*s && *s != '/')
			continue;
		char c = *s;
		*s = '\0';
		if (mkdir(p, mode) < 0 && errno != EEXIST) {
			/* A parent that may not be written but is there is fine; the last component must be a
			 * directory. */
			int e = errno;
			struct stat st;
			if (stat(p, &st) < 0 || !S_ISDIR(st.st_mode))
				return -e;
		}
		if (!c)
			break;
		*s = c;
	}
	struct stat st;
	if (stat(path, &st) < 0)
		return -errno;
	return S_ISDIR(st.st_mode) ? 0 : -ENOTDIR;
}

/* A directory on the way down. */
struct level {
	struct level *up;
	ino_t ino;
	char name[];
};

/* Open the directory @name, make it ours to change if its mode forbids that, and put it on the stack. */
static int descend(int dirfd, const char *name, dev_t dev, struct level **top)
{
	struct stat st;
	if (fstatat(dirfd, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
		return -errno;
	if (st.st_dev != dev)
		return -EXDEV;
	_cleanup_close_ int fd = openat(dirfd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0 && errno == EACCES && fchmodat(dirfd, name, 0700, 0) == 0)
		fd = openat(dirfd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	if ((st.st_mode & 0700) != 0700)
		(void)!fchmod(fd, 0700);
	if (fstat(fd, &st) < 0)
		return -errno;
	struct level *l = malloc(sizeof(*l) + strlen(name) + 1);
	if (!l)
		return -ENOMEM;
	l->up = *top;
	l->ino = st.st_ino;
	strcpy(l->name, name);
	*top = l;
	return sl_steal_fd(&fd);
}

/* Remove from @fd until it is empty (0) or a directory that is not is met (1, its name in @sub). */
static int remove_entries(int fd, char sub[256])
{
	DIR *d = fdopendir(dup(fd));
	if (!d)
		return -ENOMEM;
	rewinddir(d);
	int r = 0;
	struct dirent *e;
	while (r == 0 && (e = readdir(d))) {
		if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, ".."))
			continue;
		if (unlinkat(fd, e->d_name, 0) == 0 || errno == ENOENT)
			continue;
		if (errno != EISDIR && errno != EPERM)
			r = -errno;
		else if (unlinkat(fd, e->d_name, AT_REMOVEDIR) < 0 && errno != ENOENT) {
			/* EBUSY is a mount point; ENOTDIR a file whose unlink() was refused. */
			r = errno == ENOTEMPTY || errno == EEXIST ? 1 : errno == ENOTDIR ? -EPERM : -errno;
			snprintf(sub, 256, "%s", e->d_name);
		}
	}
	closedir(d);
	return r;
}

/* One descriptor at a time, whatever the depth: up again goes through "..", which must be where we came from.
 */
static int remove_tree_dev(int dirfd, const char *name, dev_t dev)
{
	struct level *top = NULL;
	char sub[256];
	int r;
	_cleanup_close_ int fd = descend(dirfd, name, dev, &top);
	if (fd < 0)
		return fd == -ENOENT ? 0 : fd;
	for (;;) {
		r = remove_entries(fd, sub);
		if (r < 0)
			break;
		int next;
		if (r == 1) {
			next = descend(fd, sub, dev, &top);
			if (next == -ENOENT)
				continue;
		} else if (!top->up) {
			break;
		} else {
			struct stat st;
			next = openat(fd, "..", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
			if (next >= 0 &&
			    (fstat(next, &st) < 0 || st.st_dev != dev || st.st_ino != top->up->ino)) {
				close(next);
				errno = EBUSY; /* somebody moves directories out of the tree */
				next = -1;
			}
			if (next < 0)
				next = -errno;
			else if (unlinkat(next, top->name, AT_REMOVEDIR) < 0 && errno != ENOENT &&
				 errno != ENOTEMPTY) {
				r = -errno;
				close(next);
				next = r;
			}
			struct level *l = top;
			top = l->up;
			free(l);
		}
		if (next < 0) {
			r = next;
			break;
		}
		close(fd);
		fd = next;
	}
	for (struct level *l; (l = top); free(l))
		top = l->up;
	if (r == 0 && unlinkat(dirfd, name, AT_REMOVEDIR) < 0 && errno != ENOENT)
		r = -errno;
	return r;
}

int sl_remove_tree(int dirfd, const char *name)
{
	struct stat st;
	if (fstatat(dirfd, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
		return errno == ENOENT ? 0 : -errno;
	if (!S_ISDIR(st.st_mode))
		return unlinkat(dirfd, name, 0) < 0 && errno != ENOENT ? -errno : 0;
	return remove_tree_dev(dirfd, name, st.st_dev);
}

bool sl_name_valid(const char *name, size_t len)
{
	if (len == 0 || len > 255 || memchr(name, '/', len) || memchr(name, '\0', len))
		return false;
	return !(name[0] == '.' && (len == 1 || (len == 2 && name[1] == '.')));
}

char *sl_path_join(const char *a, const char *b)
{
	char *r;
	if (!*a)
		return strdup(b);
	return asprintf(&r, "%s/%s", a, b) < 0 ? NULL : r;
}

/* A unix socket address holds 108 bytes. Longer paths go through a descriptor of their directory. */
static int unix_addr(const char *path, struct sockaddr_un *sa, int *dirfd)
{
	memset(sa, 0, sizeof(*sa));
	sa->sun_family = AF_UNIX;
	*dirfd = -EBADF;
	if (strlen(path) < sizeof(sa->sun_path)) {
		strcpy(sa->sun_path, path);
		return 0;
	}
	const char *base = strrchr(path, '/');
	if (!base)
		return -ENAMETOOLONG;
	_cleanup_free_ char *dir = strndup(path, (size_t)(base - path));
	if (!dir)
		return -ENOMEM;
	*dirfd = open(*dir ? dir : "/", O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (*dirfd < 0)
		return -errno;
	int n = snprintf(sa->sun_path, sizeof(sa->sun_path), "/proc/self/fd/%d/%s", *dirfd, base + 1);
	return n < (int)sizeof(sa->sun_path) ? 0 : -ENAMETOOLONG;
}

int sl_unix_listen(const char *path, mode_t mode)
{
	struct sockaddr_un sa;
	_cleanup_close_ int dirfd = -EBADF;
	int r = unix_addr(path, &sa, &dirfd);
	if (r < 0)
		return r;
	_cleanup_close_ int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	/* The mode of the descriptor before bind() is the mode of the socket file: no moment in which others
	 * may connect. */
	if (fchmod(fd, mode) < 0)
		return -errno;
	if (bind(fd, (struct sockaddr *)&sa, sizeof(sa)) < 0) {
		if (errno != EADDRINUSE)
			return -errno;
		/* A socket that nobody listens on is what a killed process left behind; anything else is not
		 * ours to remove. */
		struct stat st;
		if (lstat(path, &st) < 0 || !S_ISSOCK(st.st_mode))
			return -EADDRINUSE;
		int c = sl_unix_connect(path);
		if (c >= 0)
			close(c);
		if (c != -ECONNREFUSED)
			return -EADDRINUSE;
		if (unlink(path) < 0 || bind(fd, (struct sockaddr *)&sa, sizeof(sa)) < 0)
			return -errno;
	}
	if (listen(fd, 64) < 0)
		return -errno;
	return sl_steal_fd(&fd);
}

int sl_unix_connect(const char *path)
{
	struct sockaddr_un sa;
	_cleanup_close_ int dirfd = -EBADF;
	int r = unix_addr(path, &sa, &dirfd);
	if (r < 0)
		return r;
	_cleanup_close_ int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	if (connect(fd, (struct sockaddr *)&sa, sizeof(sa)) < 0)
		return -errno;
	return sl_steal_fd(&fd);
}

size_t sl_raise_nofile(void)
{
	struct rlimit rl;
	if (getrlimit(RLIMIT_NOFILE, &rl) < 0)
		return 256;
	rl.rlim_cur = rl.rlim_max;
	(void)setrlimit(RLIMIT_NOFILE, &rl);
	getrlimit(RLIMIT_NOFILE, &rl);
	return rl.rlim_cur == RLIM_INFINITY ? 1u << 20 : (size_t)rl.rlim_cur;
}
