/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "store/zone.h"

#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fiemap.h>
#include <linux/fs.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include "base/fd.h"
#include "base/why.h"
#include "store/image.h"
#include "store/internal.h"
#include "store/xfs.h"

#define BLOCK	      4096u /* as sl_image_create() makes them */
#define DIR	      "zone"
#define MIB	      (1ull << 20)
#define TRIES	      65536 /* directories until one is in the last allocation group */
#define GROUP_EXTENTS 512   /* a group is at most 1 TiB, an extent at most 8 GiB */

/* A file's extents that lie in [from, to) of the device, at most @max. Returns their number or -errno. */
struct extent {
	uint64_t logical, physical, length;
	bool shared;
};

static int extents(int fd, uint64_t from, uint64_t to, struct extent *ret, unsigned max)
{
	union {
		struct fiemap m;
		char room[sizeof(struct fiemap) + 128 * sizeof(struct fiemap_extent)];
	} u;
	uint64_t at = 0;
	unsigned n = 0;
	for (bool last = false; !last;) {
		memset(&u.m, 0, sizeof(u.m));
		u.m.fm_start = at;
		u.m.fm_length = FIEMAP_MAX_OFFSET - at;
		u.m.fm_flags = FIEMAP_FLAG_SYNC;
		u.m.fm_extent_count = 128;
		if (ioctl(fd, FS_IOC_FIEMAP, &u.m) < 0)
			return -errno;
		last = u.m.fm_mapped_extents == 0;
		for (unsigned i = 0; i < u.m.fm_mapped_extents; i++) {
			const struct fiemap_extent *e = &u.m.fm_extents[i];
			at = e->fe_logical + e->fe_length;
			last |= (e->fe_flags & FIEMAP_EXTENT_LAST) != 0;
			if (e->fe_physical >= to || e->fe_physical + e->fe_length <= from)
				continue;
			if (n == max)
				return -E2BIG;
			ret[n++] = (struct extent){e->fe_logical, e->fe_physical, e->fe_length,
						   (e->fe_flags & FIEMAP_EXTENT_SHARED) != 0};
		}
	}
	return (int)n;
}

/* True if the whole of @fd, @size bytes, lies in [from, to), in one piece per @from. */
static bool lies_in(int fd, uint64_t size, uint64_t from, uint64_t to)
{
	struct extent e[16];
	struct stat st;
	uint64_t sum = 0;
	int n = extents(fd, 0, UINT64_MAX, e, SL_ARRAY_SIZE(e));
	for (int i = 0; i < n; i++) {
		if (e[i].physical < from || e[i].physical + e[i].length > to || e[i].shared)
			return false;
		sum += e[i].length;
	}
	return n > 0 && sum == SL_ALIGN_UP(size, (uint64_t)BLOCK) && fstat(fd, &st) == 0 &&
	       (uint64_t)st.st_size == size;
}

struct maker {
	int store, dir, filler, cold, tails;
	struct xfs_geometry g;
	uint64_t start, end; /* of the zone, on the device */
	uint64_t at;	     /* of the zone in the filler */
};

static unsigned log2_up(uint64_t n)
{
	unsigned r = 0;
	while (1ull << r < n)
		r++;
	return r;
}

/* XFS puts new directories into its allocation groups in turn, and a file near its directory. */
static int enter_last_group(struct maker *m)
{
	unsigned shift = log2_up(m->g.agblocks) + log2_up(m->g.blocksize / m->g.inodesize);
	for (unsigned i = 0; i < TRIES; i++) {
		struct stat st;
		if (mkdirat(m->store, DIR, 0700) < 0 || fstatat(m->store, DIR, &st, AT_SYMLINK_NOFOLLOW) < 0)
			return -errno;
		if (st.st_ino >> shift == m->g.agcount - 1) {
			m->dir = openat(m->store, DIR, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
			return m->dir < 0 ? -errno : 0;
		}
		if (unlinkat(m->store, DIR, AT_REMOVEDIR) < 0)
			return -errno;
	}
	return -ENOSPC;
}

static int give_back(int fd, uint64_t off, uint64_t length)
{
	if (length == 0)
		return 0;
	return fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)off, (off_t)length) < 0
		   ? -errno
		   : 0;
}

/* The filler's extents in the last group; the sum of their lengths in *@sum. */
static int in_group(struct maker *m, struct extent *e, unsigned max, uint64_t *sum)
{
	int n = extents(m->filler, (uint64_t)(m->g.agcount - 1) * m->g.agblocks * BLOCK, m->end, e, max);
	*sum = 0;
	for (int i = 0; i < n; i++)
		*sum += e[i].length;
	return n;
}

/* Take all of the last group, but for a rest of less than a MiB and XFS's reserve. What does not fit goes
 * into other groups: then less at a time. */
static int take_group(struct maker *m, uint64_t *ret_size)
{
	struct extent e[GROUP_EXTENTS];
	uint64_t size = 0, sum;
	uint64_t step = m->end - (uint64_t)(m->g.agcount - 1) * m->g.agblocks * BLOCK;
	for (step = SL_ALIGN_DOWN(step / 8, MIB); step >= MIB; step = SL_ALIGN_DOWN(step / 2, MIB)) {
		int r = 0;
		while (r == 0) {
			r = fallocate(m->filler, 0, (off_t)size, (off_t)step) < 0 ? -errno : 0;
			if (r == 0)
				r = SL_MIN(in_group(m, e, SL_ARRAY_SIZE(e), &sum), 0);
			if (r == 0 && sum == size + step)
				size += step;
			else if (r == 0)
				r = give_back(m->filler, size, step) < 0 ? -EIO : -ENOSPC;
		}
		if (r != -ENOSPC)
			return r;
	}
	*ret_size = size;
	return 0;
}

/*
 * A file that has the zone's blocks. First it takes the whole group. Because of the reserve some blocks stay
 * free, at the group's end; they are had by giving others back, further in front, and then asking for what
 * follows the file's last block.
 */
static int fill_group(struct maker *m)
{
	struct extent e[GROUP_EXTENTS];
	uint64_t size = 0, sum, top = 0, top_logical = 0;
	m->filler = openat(m->dir, "filler", O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	int r = m->filler < 0 ? -errno : take_group(m, &size);
	int n = r < 0 ? r : in_group(m, e, SL_ARRAY_SIZE(e), &sum);
	for (int i = 0; i < n; i++)
		if (e[i].physical + e[i].length > top) {
			top = e[i].physical + e[i].length;
			top_logical = e[i].logical + e[i].length;
		}
	if (n <= 0 || top_logical < SL_ZONE_SIZE)
		return n < 0 ? n : -ENOSPC;
	uint64_t missing = m->end - top, back = SL_ALIGN_UP(2 * missing + 4 * MIB, MIB);
	r = give_back(m->filler, top_logical, size - top_logical);
	if (r == 0)
		r = give_back(m->filler, 0, SL_MIN(back, top_logical - SL_ZONE_SIZE));
	/* What was given back can be had again once the log says so. */
	if (r == 0 && (syncfs(m->store) < 0 ||
		       (missing && fallocate(m->filler, 0, (off_t)top_logical, (off_t)missing) < 0)))
		r = -errno;
	if (r < 0)
		return r;
	m->at = top_logical + missing - SL_ZONE_SIZE;
	n = extents(m->filler, m->start, m->end, e, SL_ARRAY_SIZE(e));
	sum = 0;
	for (int i = 0; i < n; i++) {
		/* The first one may begin in front of the zone. */
		uint64_t skip = SL_MAX(e[i].physical, m->start) - e[i].physical;
		if (e[i].logical + skip - m->at != e[i].physical + skip - m->start)
			return -ENOSPC;
		sum += e[i].length - skip;
	}
	return sum == SL_ZONE_SIZE ? 0 : -ENOSPC;
}

static int take(struct maker *m, int fd, uint64_t from, uint64_t length)
{
	struct file_clone_range c = {.src_fd = m->filler, .src_offset = m->at + from, .src_length = length};
	return ioctl(fd, FICLONERANGE, &c) < 0 ? -errno : 0;
}

/* Hand the filler's blocks to those files that keep them. */
static int hand_over(struct maker *m, int *fds)
{
	static const char zeros[BLOCK];
	const uint64_t cold_size = SL_ZONE_SIZE - (BLOCK - 1) * (uint64_t)BLOCK;
	_cleanup_free_ char *z = calloc(1, MIB);
	if (!z)
		return -ENOMEM;
	int r = 0;
	for (uint64_t off = 0; r == 0 && off < SL_ZONE_SIZE; off += MIB)
		r = sl_pwrite_full(m->filler, z, MIB, (off_t)(m->at + off));
	if (r < 0 || fdatasync(m->filler) < 0)
		return r < 0 ? r : -errno;
	m->cold = openat(m->store, "cold", O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0400);
	if (m->cold < 0 || mkdirat(m->store, SL_TAILS, 0700) < 0)
		return -errno;
	m->tails = openat(m->store, SL_TAILS, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (m->tails < 0)
		return -errno;
	r = take(m, m->cold, 0, cold_size);
	for (unsigned k = 1; r == 0 && k < BLOCK; k++) {
		char name[16];
		snprintf(name, sizeof(name), "%u", k);
		fds[k] = openat(m->tails, name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0400);
		r = fds[k] < 0 ? -errno : take(m, fds[k], cold_size + (k - 1) * (uint64_t)BLOCK, BLOCK);
	}
	/* From here on nothing is shared, so that what is written stays where it is. That spares the
	 * truncation reading the block, too. */
	if (r == 0 && ftruncate(m->filler, 0) < 0)
		r = -errno;
	for (unsigned k = 1; r == 0 && k < BLOCK; k++) {
		r = sl_pwrite_full(fds[k], zeros, BLOCK, 0);
		if (r == 0 && ftruncate(fds[k], k) < 0)
			r = -errno;
	}
	if (r == 0 && syncfs(m->store) < 0)
		r = -errno;
	/* Trust nothing: each block of the zone has one owner, and we know it. */
	if (r == 0 && !lies_in(m->cold, cold_size, m->start, m->end))
		r = -ENOSPC;
	for (unsigned k = 1; r == 0 && k < BLOCK; k++)
		if (!lies_in(fds[k], k, m->start, m->end))
			r = -ENOSPC;
	return r;
}

static int remove_old(int store_fd)
{
	if (unlinkat(store_fd, "cold", 0) < 0 && errno != ENOENT)
		return -errno;
	int r = sl_remove_tree(store_fd, DIR);
	return r < 0 ? r : sl_remove_tree(store_fd, SL_TAILS);
}

static int geometry(int fd, struct xfs_geometry *g)
{
	struct statfs sf;
	if (fstatfs(fd, &sf) < 0)
		return -errno;
	if (sf.f_type != XFS_SUPER_MAGIC)
		return -EOPNOTSUPP;
	if (ioctl(fd, XFS_IOC_FSGEOMETRY_V1, g) < 0)
		return -errno;
	return g->blocksize == BLOCK ? 0 : -EOPNOTSUPP;
}

int sl_zone_make(int store_fd, char **why)
{
	struct maker m = {.store = store_fd, .dir = -1, .filler = -1, .cold = -1, .tails = -1};
	int r = geometry(store_fd, &m.g);
	if (r < 0)
		return sl_fail(why, r, "a cold zone needs an XFS with blocks of %u bytes: %s", BLOCK,
			       strerror(-r));
	_cleanup_free_ int *fds = malloc(BLOCK * sizeof(*fds));
	if (!fds)
		return -ENOMEM;
	memset(fds, 0xff, BLOCK * sizeof(*fds));
	m.end = m.g.datablocks * BLOCK;
	m.start = m.end - SL_ZONE_SIZE;
	sl_raise_nofile();
	r = remove_old(store_fd);
	if (r == 0)
		r = enter_last_group(&m);
	if (r == 0)
		r = fill_group(&m);
	if (r == 0)
		r = hand_over(&m, fds);
	for (unsigned k = 1; k < BLOCK; k++)
		if (fds[k] >= 0)
			close(fds[k]);
	int own[] = {m.dir, m.filler, m.cold, m.tails};
	for (size_t i = 0; i < SL_ARRAY_SIZE(own); i++)
		if (own[i] >= 0)
			close(own[i]);
	if (r < 0)
		(void)remove_old(store_fd);
	else
		r = sl_remove_tree(store_fd, DIR);
	return r < 0 ? sl_fail(why, r, "the end of the filesystem cannot be had for a cold zone: %s",
			       strerror(-r))
		     : 0;
}

int sl_zone_seal(const char *path, int store_fd, char **why)
{
	struct xfs_geometry g;
	struct extent e[16];
	char b;
	int r = geometry(store_fd, &g);
	if (r < 0)
		return sl_fail(why, r, "%s: %s", path, strerror(-r));
	_cleanup_close_ int cold = openat(store_fd, "cold", O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	_cleanup_close_ int image = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
	if (image < 0)
		return sl_fail(why, -errno, "%s: %s", path, strerror(errno));
	uint64_t end = g.datablocks * g.blocksize, start = end - SL_ZONE_SIZE;
	int n = cold < 0 ? 0 : extents(cold, start, end, e, SL_ARRAY_SIZE(e));
	struct stat st;
	uint64_t sum = 0;
	for (int i = 0; i < n; i++)
		sum += e[i].physical < start ? 0 : e[i].length;
	if (n <= 0 || fstat(cold, &st) < 0 || (uint64_t)st.st_size != sum)
		return sl_fail(why, -ENXIO, "%s has no cold zone at its end", path);
	if (ftruncate(image, (off_t)start) < 0)
		return sl_fail(why, -errno, "%s cannot be cut off: %s", path, strerror(errno));
	posix_fadvise(cold, 0, 0, POSIX_FADV_DONTNEED);
	if (pread(cold, &b, 1, 0) >= 0 || errno != EIO)
		return sl_fail(why, -EOPNOTSUPP, "this kernel reads beyond the end of %s without an error",
			       path);
	return 0;
}

int64_t sl_zone_cold(int fd, uint64_t *off, uint64_t end)
{
	union {
		struct fiemap m;
		char room[sizeof(struct fiemap) + 32 * sizeof(struct fiemap_extent)];
	} u;
	struct xfs_geometry g;
	int r = geometry(fd, &g);
	if (r < 0)
		return r;
	uint64_t zone = g.datablocks * g.blocksize - SL_ZONE_SIZE, at = *off;
	do {
		memset(&u.m, 0, sizeof(u.m));
		u.m.fm_start = at;
		u.m.fm_length = end - at;
		u.m.fm_flags = FIEMAP_FLAG_SYNC;
		u.m.fm_extent_count = 32;
		if (ioctl(fd, FS_IOC_FIEMAP, &u.m) < 0)
			return -errno;
		for (unsigned i = 0; i < u.m.fm_mapped_extents; i++) {
			const struct fiemap_extent *e = &u.m.fm_extents[i];
			uint64_t from = SL_MAX(e->fe_logical, *off);
			at = e->fe_logical + e->fe_length;
			if (e->fe_physical >= zone) {
				*off = from;
				return (int64_t)(SL_MIN(at, end) - from);
			}
		}
	} while (u.m.fm_mapped_extents == 32 && at < end);
	uint64_t last = SL_ALIGN_DOWN(end, (uint64_t)BLOCK);
	if (at > last || last == end || last < *off)
		return 0;
	*off = last;
	return (int64_t)(end - last);
}
