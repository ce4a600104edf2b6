/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "base/beneath.h"

#include <fcntl.h>
#include <limits.h>
#include <linux/openat2.h>
#include <string.h>
#include <sys/syscall.h>
#include <xxhash.h>

static int open_piece(int dirfd, const char *path, int flags)
{
	struct open_how how = {.flags = (uint64_t)(flags | O_NOFOLLOW | O_CLOEXEC),
			       .resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS |
					  RESOLVE_NO_XDEV};
	long fd = syscall(SYS_openat2, dirfd, *path ? path : ".", &how, sizeof(how));
	return fd < 0 ? -errno : (int)fd;
}

int sl_open_beneath(int root, const char *path, int flags)
{
	_cleanup_close_ int dir = -EBADF;
	size_t left = strlen(path);
	char piece[PATH_MAX];

	while (left >= PATH_MAX) {
		size_t n = PATH_MAX - 1;
		while (n > 0 && path[n] != '/')
			n--;
		if (n == 0)
			return -ENAMETOOLONG;
		memcpy(piece, path, n);
		piece[n] = '\0';
		int fd = open_piece(dir >= 0 ? dir : root, piece, O_PATH | O_DIRECTORY);
		if (fd < 0)
			return fd;
		sl_closep(&dir);
		dir = fd;
		path += n + 1;
		left -= n + 1;
	}
	return open_piece(dir >= 0 ? dir : root, path, flags);
}

uint64_t sl_handle_number(int type, const void *bytes, size_t len)
{
	return XXH64(bytes, len, (unsigned)type);
}

uint64_t sl_handle_generation(int dirfd, const char *name)
{
	union {
		struct file_handle h;
		char room[sizeof(struct file_handle) + MAX_HANDLE_SZ];
	} u = {.h.handle_bytes = MAX_HANDLE_SZ};
	int mount_id;
	if (name_to_handle_at(dirfd, name, &u.h, &mount_id, *name ? 0 : AT_EMPTY_PATH) < 0)
		return 0;
	return sl_handle_number(u.h.handle_type, u.h.f_handle, u.h.handle_bytes);
}
