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

static int clone_cold(struct sl_store *s, int fd, uint64_t from, uint64_t to)
{
	uint64_t most = s->cold_size;
	for (uint64_t off = from; off < to;) {
		uint64_t n = SL_MIN(to - off, most);
		struct file_clone_range c = {.src_fd = s->cold_fd, .src_length = n, .dest_offset = off};
		if (ioctl(fd, FICLONERANGE, &c) < 0)
			return -errno;
		off += n;
	}
	return 0;
}

static int prepare(struct sl_store *s, uint64_t size)
{
	if (!s->reflinks)
		return -EOPNOTSUPP;
	return size > COLD_FIRST || s->cold_size == 0 ? cold_grow(s, size) : 0;
}

int sl_armour(struct sl_store *s, int fd, uint64_t size)
{
	int r = prepare(s, size);
	if (r == 0)
		r = clone_cold(s, fd, 0, SL_ALIGN_UP(size, (uint64_t)s->block));
	/* Whole blocks were cloned; the file ends where the origin's does. */
	return r < 0 ? r : ftruncate(fd, (off_t)size) < 0 ? -errno : 0;
}

int sl_armour_range(struct sl_store *s, int fd, uint64_t from, uint64_t size)
{
	uint64_t whole = SL_ALIGN_DOWN(size, (uint64_t)s->block), tail = size - whole;
	int r = prepare(s, size - from);
	if (r == 0 && from < whole)
		r = clone_cold(s, fd, from, whole);
	if (r < 0 || tail == 0)
		return r;
	/* Less than a block can be cloned where both files end in it. */
	struct file_clone_range c = {.src_fd = s->tail_fd, .src_length = tail, .dest_offset = whole};
	pthread_mutex_lock(&s->cold_lock);
	if (ftruncate(s->tail_fd, (off_t)tail) < 0 || ioctl(fd, FICLONERANGE, &c) < 0)
		r = -errno;
	pthread_mutex_unlock(&s->cold_lock);
	return r;
}

/* A block of written zeros under any tail: extending a file over its end would show a hole there. */
int sl_armour_init_tail(struct sl_store *s)
{
	_cleanup_free_ char *z = calloc(1, s->block);
	return !z ? -ENOMEM : sl_pwrite_full(s->tail_fd, z, s->block, 0);
}
