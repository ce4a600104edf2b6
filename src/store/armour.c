/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Armour: a placeholder without holes. Its range is cloned, again and again, from one file of written zeros,
 * so that a program that probes for holes finds data and reads it, and that read is what the gate is asked
 * about.
 */
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/ioctl.h>

#include "base/fd.h"
#include "base/time.h"
#include "store/internal.h"

#define COLD_FIRST (1ull << 20)
#define COLD_MAX   (64ull << 20)

/* The cold file must hold written blocks: preallocated ones look like holes. It grows once, for the first
 * large file; not when it is a zone's (store/zone.h), which nobody may write to. */
static int cold_grow(struct sl_store *s, uint64_t want)
{
	int r = 0;
	pthread_mutex_lock(&s->cold_lock);
	if (s->cold_size == 0) {
		struct stat st;
		if (fstat(s->cold_fd, &st) == 0) {
			s->cold_size = SL_ALIGN_DOWN((uint64_t)st.st_size, COLD_FIRST);
			s->cold_fixed = !(st.st_mode & S_IWUSR);
		}
	}
	want = s->cold_fixed ? 0 : SL_MIN(SL_ALIGN_UP(want, COLD_FIRST), COLD_MAX);
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

static bool keep_tails(const struct sl_store *s)
{
	return s->fd_max >= SL_TAIL_MAX;
}

/*
 * The last block of a file is cloned from a file of zeros that ends at the same byte of its block. To clone a
 * whole block and truncate the file afterwards would be simpler, but the filesystem then zeroes the rest of
 * the block: a private block for each placeholder, and a truncation that waits until it is written (XFS: ten
 * times the cost of the placeholder itself).
 *
 * Returns a descriptor, which is kept for the next time where there is room for that many; else the caller
 * closes it. The lock is for making the file.
 */
static int open_tail(struct sl_store *s, unsigned len)
{
	static const char zeros[SL_TAIL_MAX];
	char name[16];
	struct stat st;
	snprintf(name, sizeof(name), SL_TAILS "/%u", len);
	/* A zone's files are there, have their size, and are not written to. */
	int zone = s->sealed ? openat(s->base_fd, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW) : -EBADF;
	if (zone >= 0)
		return zone;
	_cleanup_close_ int f = openat(s->base_fd, name, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (f < 0 || fstat(f, &st) < 0)
		return -errno;
	if (st.st_size == len)
		return sl_steal_fd(&f);
	/* A block of its own, also where small files lie in the inode. The size comes with the data. */
	if (ftruncate(f, 0) < 0 || fallocate(f, FALLOC_FL_KEEP_SIZE, 0, s->block) < 0)
		return -errno;
	int r = sl_pwrite_full(f, zeros, len, 0);
	return r < 0 ? r : sl_steal_fd(&f);
}

static int tail_fd(struct sl_store *s, unsigned len)
{
	int fd = atomic_load(&s->tail_fds[len]) - 1;
	if (fd >= 0)
		return fd;
	pthread_mutex_lock(&s->cold_lock);
	fd = atomic_load(&s->tail_fds[len]) - 1;
	if (fd < 0) {
		fd = open_tail(s, len);
		if (fd >= 0 && keep_tails(s))
			atomic_store(&s->tail_fds[len], fd + 1);
	}
	pthread_mutex_unlock(&s->cold_lock);
	return fd;
}

int sl_armour_open(struct sl_store *s)
{
	if (s->block > SL_TAIL_MAX)
		return -EOPNOTSUPP;
	s->tail_fds = calloc(s->block, sizeof(*s->tail_fds));
	if (!s->tail_fds)
		return -ENOMEM;
	if (mkdirat(s->base_fd, SL_TAILS, 0700) < 0 && errno != EEXIST)
		return -errno;
	s->cold_fd = openat(s->base_fd, "cold", O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	return s->cold_fd < 0 ? -errno : 0;
}

void sl_armour_close(struct sl_store *s)
{
	for (unsigned i = 0; s->tail_fds && i < s->block; i++)
		if (s->tail_fds[i])
			close(s->tail_fds[i] - 1);
	free(s->tail_fds);
	s->tail_fds = NULL;
	if (s->cold_fd >= 0)
		close(s->cold_fd);
	s->cold_fd = -EBADF;
}

int sl_armour(struct sl_store *s, int fd, uint64_t from, uint64_t size)
{
	if (!s->reflinks)
		return -EOPNOTSUPP;
	int r = size > COLD_FIRST || s->cold_size == 0 ? cold_grow(s, size) : 0;
	if (r < 0)
		return r;
	uint64_t whole = SL_ALIGN_DOWN(size, (uint64_t)s->block);
	for (uint64_t off = from; off < whole;) {
		uint64_t n = SL_MIN(whole - off, s->cold_size);
		struct file_clone_range c = {.src_fd = s->cold_fd, .src_length = n, .dest_offset = off};
		if (ioctl(fd, FICLONERANGE, &c) < 0)
			return -errno;
		off += n;
	}
	if (whole == size || from > whole)
		return 0;
	r = tail_fd(s, (unsigned)(size - whole));
	_cleanup_close_ int own = keep_tails(s) ? -EBADF : r;
	struct file_clone_range c = {.src_fd = r, .src_length = size - whole, .dest_offset = whole};
	if (r >= 0)
		r = ioctl(fd, FICLONERANGE, &c) < 0 ? -errno : 0;
	return r;
}

/* ---- giving way to the origin's bytes ---- */

bool sl_nobody_has_open(const struct sl_object *o, int fd)
{
	if (o->opened && sl_now() - o->opened < SL_OPENING_NS)
		return false;
	return sl_only_opener(fd) == 0;
}

/* The last @n bytes, from @off on, come from a file of their own: a clone of its block replaces the cold one
 * in one step. It waits for the disk. */
static int clone_tail(struct sl_store *s, int fd, const void *buf, size_t n, uint64_t off)
{
	_cleanup_close_ int from = openat(s->base_fd, ".", O_RDWR | O_TMPFILE | O_CLOEXEC, 0600);
	if (from < 0)
		return -errno;
	struct file_clone_range c = {.src_fd = from, .src_length = n, .dest_offset = off};
	int r = sl_pwrite_full(from, buf, n, 0);
	return r < 0 ? r : ioctl(fd, FICLONERANGE, &c) < 0 ? -errno : 0;
}

int sl_disarm_last(struct sl_store *s, int fd, uint64_t size)
{
	uint64_t tail = SL_ALIGN_DOWN(size, (uint64_t)s->block);
	struct stat st;
	_cleanup_free_ char *zeros = calloc(1, s->block);
	if (!zeros)
		return -ENOMEM;
	int r = fstat(fd, &st) < 0 ? -errno : 0;
	if (r == 0 && s->reflinks)
		r = clone_tail(s, fd, zeros, SL_MIN(s->block, (uint64_t)st.st_size - tail), tail);
	return r < 0 ? r : ftruncate(fd, (off_t)size) < 0 ? -errno : 0;
}

int sl_object_mend_tail(struct sl_object *o, int fd)
{
	struct sl_store *s = o->store;
	struct stat st;
	if (!s->sealed || fstat(fd, &st) < 0)
		return 0;
	uint64_t size = (uint64_t)st.st_size, tail = SL_ALIGN_DOWN(size, (uint64_t)s->block);
	pthread_mutex_lock(&o->lock);
	bool missing = o->has_record && !(o->rec.flags & (SL_MODIFIED | SL_LOCAL | SL_WRITTEN)) &&
		       size == o->map.size && tail < size && !sl_chunkmap_test(&o->map, tail, size - tail);
	pthread_mutex_unlock(&o->lock);
	if (!missing || lseek(fd, (off_t)tail, SEEK_HOLE) != (off_t)tail)
		return 0;
	bool invisible;
	_cleanup_close_ int own = sl_object_open_fill(o, &invisible);
	return own < 0 ? own : sl_armour(s, own, tail, size);
}

int sl_object_write_fill(struct sl_object *o, int fd, const void *buf, size_t n, uint64_t off)
{
	uint64_t block = o->store->block, tail = SL_ALIGN_DOWN(off + n, block);
	bool part = o->store->sealed && tail < off + n;
	/* Of another version the last block may hold what somebody was let through to. It is kept, if it can
	 * be read. */
	int r = part && !o->rewritten ? -EIO : sl_pwrite_full(fd, buf, n, (off_t)off);
	if (r != -EIO || !part)
		return r;
	/*
	 * Part of a block that cannot be read cannot be written either. Punched out first, it would be a hole
	 * until it is written: nobody asks us before he looks for holes (SEEK_HOLE), and takes them for
	 * zeros. Where nobody has it open nobody can look; and if we end just then, see
	 * sl_object_mend_tail().
	 */
	size_t whole = tail > off ? (size_t)(tail - off) : 0;
	const char *rest = (const char *)buf + whole;
	r = whole ? sl_pwrite_full(fd, buf, whole, (off_t)off) : 0;
	if (r < 0)
		return r;
	if (!sl_nobody_has_open(o, fd))
		r = clone_tail(o->store, fd, rest, n - whole, off + whole);
	else if (fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)tail, (off_t)block) < 0)
		r = -errno;
	else
		r = sl_pwrite_full(fd, rest, n - whole, (off_t)(off + whole));
	return r;
}
