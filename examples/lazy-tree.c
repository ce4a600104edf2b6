// SPDX-License-Identifier: LGPL-2.1-or-later
// A small HSM: TARGET, a mounted ext4, XFS or btrfs, shows the tree below SOURCE. Directories and files are
// filled when they are used.
//
//     lazy-tree [--new] SOURCE TARGET
//
// What is not filled yet has the extended attribute "user.lazy" with its path below SOURCE; --new gives one
// to the root of TARGET. docs/kernel-interface.md explains each step. Left out, for shortness: owners and
// times, ranges of files, more than one thread.

#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fanotify.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/xattr.h>
#include <unistd.h>

#define LAZY "user.lazy"

static int group, source;

static void die(const char *what)
{
	fprintf(stderr, "lazy-tree: %s: %s\n", what, strerror(errno));
	exit(1);
}

static int mark(unsigned int flags, uint64_t mask, int fd)
{
	return (int)syscall(SYS_fanotify_mark, group, FAN_MARK_ADD | flags, mask, fd, ".");
}

// No more events for this one. Evictable: a mark that is lost with the inode's memory costs one event more,
// and nothing else.
static int filled(int fd, uint64_t mask)
{
	if (fremovexattr(fd, LAZY) < 0)
		return -errno;
	return syscall(SYS_fanotify_mark, group, FAN_MARK_ADD | FAN_MARK_IGNORE_SURV | FAN_MARK_EVICTABLE,
		       mask, fd, NULL) < 0
		   ? -errno
		   : 0;
}

// Make one name in an unfilled directory. What an interrupted attempt has left is used again.
static int make(int dir, int from, const char *path, const char *name)
{
	char lazy[PATH_MAX], link[PATH_MAX];
	struct stat st;
	int fd, err = 0;
	if (snprintf(lazy, sizeof(lazy), "%s/%s", path, name) >= (int)sizeof(lazy))
		return -ENAMETOOLONG;
	if (fstatat(from, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
		return -errno;
	if (S_ISLNK(st.st_mode)) {
		ssize_t n = readlinkat(from, name, link, sizeof(link) - 1);
		if (n < 0)
			return -errno;
		link[n] = 0;
		return symlinkat(link, dir, name) < 0 && errno != EEXIST ? -errno : 0;
	}
	if (S_ISDIR(st.st_mode)) {
		if (mkdirat(dir, name, st.st_mode & 07777) < 0 && errno != EEXIST)
			return -errno;
		fd = openat(dir, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	} else if (S_ISREG(st.st_mode)) {
		fd = openat(dir, name, O_WRONLY | O_CREAT | O_NOFOLLOW | O_CLOEXEC, st.st_mode & 07777);
		if (fd >= 0 && ftruncate(fd, st.st_size) < 0)
			err = -errno;
	} else {
		return 0; // devices and the like are not part of this
	}
	if (fd < 0)
		return -errno;
	if (!err && fsetxattr(fd, LAZY, lazy, strlen(lazy), 0) < 0)
		err = -errno;
	close(fd);
	return err;
}

static int fill_dir(int fd, const char *path)
{
	int from = openat(source, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC), err = 0;
	DIR *d = from < 0 ? NULL : fdopendir(from);
	if (!d)
		return -errno;
	errno = 0;
	for (struct dirent *e; !err && (e = readdir(d)); errno = 0)
		if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0)
			err = make(fd, from, path, e->d_name);
	if (!err)
		err = -errno; // of readdir(): a short listing must not look complete
	closedir(d);
	return err;
}

static int fill_file(int fd, const char *path)
{
	char self[64];
	ssize_t n;
	snprintf(self, sizeof(self), "/proc/self/fd/%d", fd);
	// The event's descriptor is read-only; opened anew it is still on the work mount, which raises no
	// events.
	int to = open(self, O_WRONLY | O_CLOEXEC), from = openat(source, path, O_RDONLY | O_CLOEXEC);
	int err = to < 0 || from < 0 ? -errno : 0;
	while (!err && (n = sendfile(to, from, NULL, 1 << 20)) != 0)
		err = n < 0 ? -errno : 0;
	if (!err && fsync(to) < 0) // the content is there before the attribute says so
		err = -errno;
	close(to);
	close(from);
	return err;
}

static int fill(int fd, uint64_t mask)
{
	char path[PATH_MAX];
	ssize_t n = fgetxattr(fd, LAZY, path, sizeof(path) - 1);
	if (n < 0)
		return errno == ENODATA ? 0 : -errno; // filled already, or a file that users made
	path[n] = 0;
	int err = mask & FAN_PRE_DIR_ACCESS ? fill_dir(fd, path) : fill_file(fd, path);
	return err ? err : filled(fd, mask & (FAN_PRE_DIR_ACCESS | FAN_PRE_ACCESS));
}

static uint64_t response_id(const struct fanotify_event_metadata *m)
{
	for (const char *at = (const char *)m + m->metadata_len; at < (const char *)m + m->event_len;) {
		const struct fanotify_event_info_response_id *r = (const void *)at;
		if (r->hdr.info_type == FAN_EVENT_INFO_TYPE_RESPONSE_ID)
			return r->id;
		at += r->hdr.len;
	}
	return 0;
}

static void answer(uint64_t id, int err)
{
	struct {
		struct fanotify_response r;
		struct fanotify_response_info_id id;
	} a = {
	    .r = {.fd = FAN_NOFD, .response = (err ? FAN_DENY_ERRNO(EIO) : FAN_ALLOW) | FAN_INFO},
	    .id = {.hdr = {.type = FAN_RESPONSE_INFO_ID, .len = sizeof(a.id)}, .id = id},
	};
	if (write(group, &a, sizeof(a)) < 0 && errno != ENOENT) // ENOENT: who waited was killed
		die("answer");
}

int main(int argc, char **argv)
{
	int fresh = argc == 4 && !strcmp(argv[1], "--new");
	if (argc - fresh != 3) {
		fprintf(stderr, "usage: lazy-tree [--new] SOURCE TARGET\n");
		return 2;
	}
	if ((source = open(argv[argc - 2], O_RDONLY | O_DIRECTORY | O_CLOEXEC)) < 0)
		die(argv[argc - 2]);
	// The work mount: the same filesystem once more, attached nowhere.
	int tree = (int)syscall(SYS_open_tree, AT_FDCWD, argv[argc - 1], OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
	int work = openat(tree, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (work < 0)
		die(argv[argc - 1]);
	group =
	    (int)syscall(SYS_fanotify_init,
			 FAN_CLASS_PRE_CONTENT | FAN_UNLIMITED_QUEUE | FAN_UNLIMITED_MARKS |
			     FAN_REPORT_RESPONSE_ID | FAN_REPORT_DIR_FD | FAN_REPORT_FD_ERROR | FAN_CLOEXEC,
			 O_RDONLY | O_LARGEFILE | O_CLOEXEC);
	if (group < 0)
		die("fanotify_init (EINVAL: the kernel does not have the series)");
	const uint64_t mask = FAN_PRE_DIR_ACCESS | FAN_PRE_ACCESS;
	if (mark(FAN_MARK_MOUNT | FAN_MARK_IGNORE_SURV, mask, work) < 0)
		die("mark of the work mount");
	if (fresh && fsetxattr(work, LAZY, ".", 1, XATTR_CREATE) < 0 && errno != EEXIST)
		die("attribute of the root");
	if (mark(FAN_MARK_FILESYSTEM | FAN_MARK_FAIL_CLOSED, mask, work) < 0)
		die("mark of the filesystem");
	dprintf(1, "ready\n");

	static _Alignas(8) char buf[1 << 16];
	for (ssize_t n; (n = read(group, buf, sizeof(buf))) > 0 || (n < 0 && errno == EINTR);) {
		struct fanotify_event_metadata *m = (void *)buf;
		for (; FAN_EVENT_OK(m, n); m = FAN_EVENT_NEXT(m, n)) {
			answer(response_id(m), m->fd < 0 ? m->fd : fill(m->fd, m->mask));
			if (m->fd >= 0)
				close(m->fd);
		}
	}
	die("read of the group");
}
