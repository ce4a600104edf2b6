/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Armour: a placeholder without holes. Its range is cloned, again and again, from one file of written zeros,
 * so that a program that probes for holes finds data and reads it, and that read is what the gate is asked
 * about.
 */
#include <linux/fs.h>
#include <sys/ioctl.h>

#include "base/fd.h"
#include "store/internal.h"

#define COLD_FIRST (1ull << 20)
#define COLD_MAX   (64ull << 20)

/* The cold file must hold written blocks: preallocated ones look like holes. It grows once, for the first
 * large file. */
static int cold_grow(struct sl_store *s, uint64_t want)
{
	int r = 0;
	pthread_mutex_lock(&s->cold_lock);
	if (s->cold_size == 0) {
		struct stat st;
		if (fstat(s->cold_fd, &st) == 0)
			s->cold_size = SL_ALIGN_DOWN((uint64_t)st.st_size, COLD_FIRST);
	}
	want = SL_MIN(SL_ALIGN_UP(want, COLD_FIRST), COLD_MAX);
	if (s->cold_size < want) {
		_cleanup_free_ char *z = calloc(1, COLD_FIRST);
		r = z ? 0 : -ENOMEM;
		while (r == 0 && s->cold_size < want) {
			r = sl_pwrite_full(s->cold_fd, z, COLD_FIRST, (off_t)s->cold_size);
			if (r == 0)
				s->cold_size += COLD_FIRST;
		}
	}
	pthread_mutex_unlock(&s->cold_lock);
	return r;
}

int sl_armour(struct sl_store *s, int fd, uint64_t size)
{
	if (!s->reflinks)
		return -EOPNOTSUPP;
	int r = size > COLD_FIRST || s->cold_size == 0 ? cold_grow(s, size) : 0;
	if (r < 0)
		return r;
	for (uint64_t off = 0; off < size;) {
		uint64_t n = SL_MIN(SL_ALIGN_UP(size - off, (uint64_t)s->block), s->cold_size);
		struct file_clone_range c = {.src_fd = s->cold_fd, .src_length = n, .dest_offset = off};
		if (ioctl(fd, FICLONERANGE, &c) < 0)
			return -errno;
		off += n;
	}
	/* Whole blocks were cloned; the file ends where the origin's does. */
	return ftruncate(fd, (off_t)size) < 0 ? -errno : 0;
}
