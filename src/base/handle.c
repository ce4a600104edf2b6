/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "base/handle.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <xxhash.h>

#ifndef AT_HANDLE_CONNECTABLE
#define AT_HANDLE_CONNECTABLE 0x002 /* Linux 6.13, include/uapi/linux/fcntl.h */
#endif

/* Types of handles, after include/linux/exportfs.h. Those with a parent hold both handles one after the
 * other. */
enum {
	INO32_GEN = 1,
	INO32_GEN_PARENT = 2,
	BTRFS_WITHOUT_PARENT = 0x4d,
	BTRFS_WITH_PARENT = 0x4e,
	INO64_GEN = 0x81,
	INO64_GEN_PARENT = 0x82,
};

union room {
	struct file_handle h;
	char bytes[sizeof(struct file_handle) + MAX_HANDLE_SZ];
};

int sl_handle_get(int dirfd, const char *name, struct sl_handle *ret)
{
	union room u = {.h.handle_bytes = SL_HANDLE_MAX};
	int mount_id;
	*ret = (struct sl_handle){0};
	if (name_to_handle_at(dirfd, name, &u.h, &mount_id, *name ? 0 : AT_EMPTY_PATH) < 0)
		return errno == EOVERFLOW ? -EOPNOTSUPP : -errno;
	ret->type = u.h.handle_type;
	ret->len = u.h.handle_bytes;
	memcpy(ret->b, u.h.f_handle, ret->len);
	return 0;
}

int sl_handle_open(int mount_fd, const struct sl_handle *h, int flags)
{
	_Alignas(struct file_handle) char room[SL_HANDLE_ROOM];
	int fd = open_by_handle_at(mount_fd, sl_handle_raw(h, room), flags | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

struct file_handle *sl_handle_raw(const struct sl_handle *h, char room[SL_HANDLE_ROOM])
{
	struct file_handle *raw = (struct file_handle *)(void *)room;
	raw->handle_bytes = h->len;
	raw->handle_type = h->type;
	memcpy(raw->f_handle, h->b, h->len);
	return raw;
}

static int half(struct sl_handle *ret, int type, size_t len, const unsigned char *a, size_t na,
		const unsigned char *b, size_t nb)
{
	*ret = (struct sl_handle){.type = type, .len = (uint32_t)len};
	memcpy(ret->b, a, na);
	memcpy(ret->b + na, b, nb);
	return 0;
}

int sl_handle_parent(int fd, struct sl_handle *ret)
{
	union room u = {.h.handle_bytes = MAX_HANDLE_SZ};
	int mount_id;
	char path[32];
	/* By way of its link: of an empty path the kernel would not say. */
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	if (name_to_handle_at(AT_FDCWD, path, &u.h, &mount_id, AT_SYMLINK_FOLLOW | AT_HANDLE_CONNECTABLE) < 0)
		return -ENOENT;
	const unsigned char *b = u.h.f_handle;
	switch (u.h.handle_type & 0xff) { /* what is above says that it is connectable */
	case INO32_GEN_PARENT:		  /* u32 ino, gen, parent ino, parent gen */
		return u.h.handle_bytes < 16 ? -ENOENT : half(ret, INO32_GEN, 8, b + 8, 8, b, 0);
	case INO64_GEN_PARENT: /* u64 ino, u32 gen, u64 parent ino, u32 parent gen; packed */
		return u.h.handle_bytes < 24 ? -ENOENT : half(ret, INO64_GEN, 12, b + 12, 12, b, 0);
	case BTRFS_WITH_PARENT: /* u64 ino, u64 root, u32 gen, u64 parent ino, u32 parent gen; packed; the
				   parent's root is the same */
		return u.h.handle_bytes < 32 ? -ENOENT
					     : (half(ret, BTRFS_WITHOUT_PARENT, 20, b + 20, 8, b + 8, 8),
						memcpy(ret->b + 16, b + 28, 4), 0);
	default:
		return -ENOENT;
	}
}

bool sl_handle_ino(const struct sl_handle *h, uint64_t *ino)
{
	uint32_t ino32;
	switch (h->type) {
	case INO32_GEN: /* u32 ino, gen */
		if (h->len != 8)
			return false;
		memcpy(&ino32, h->b, sizeof(ino32));
		*ino = ino32;
		return true;
	case INO64_GEN:		   /* u64 ino, u32 gen */
	case BTRFS_WITHOUT_PARENT: /* u64 ino, root, u32 gen */
		if (h->len < 12)
			return false;
		memcpy(ino, h->b, sizeof(*ino));
		return true;
	default:
		return false;
	}
}

uint64_t sl_handle_hash(const struct sl_handle *h)
{
	return XXH3_64bits_withSeed(h->b, h->len, (uint64_t)h->type);
}
