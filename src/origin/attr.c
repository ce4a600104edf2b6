/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "origin/attr.h"

#include <errno.h>
#include <sys/sysmacros.h>

#include "wire/proto.h"

/* FUSE carries device numbers as the kernel's new_encode_dev() lays them out. */
static dev_t dev_decode(uint32_t d)
{
	return makedev((d & 0xfff00) >> 8, (d & 0xff) | ((d >> 12) & 0xfff00));
}

static uint32_t dev_encode(dev_t d)
{
	return (minor(d) & 0xff) | (major(d) << 8) | ((minor(d) & ~0xffu) << 12);
}

static bool time_from(uint64_t sec, uint32_t nsec, struct timespec *ts)
{
	*ts = (struct timespec){.tv_sec = (int64_t)sec, .tv_nsec = (long)nsec};
	/* Far enough for every filesystem (XFS ends in 2486), near enough that no arithmetic on it overflows.
	 */
	return nsec < 1000000000u && (int64_t)sec >= -(1ll << 40) && (int64_t)sec <= (1ll << 40);
}

int sl_attr_from_fuse(const struct fuse_attr *f, uint64_t generation, bool xattr_hint, struct sl_attr *a)
{
	*a = (struct sl_attr){.ino = f->ino,
			      .generation = generation,
			      .size = f->size,
			      .blocks = f->blocks,
			      .mode = f->mode,
			      .nlink = f->nlink,
			      .uid = f->uid,
			      .gid = f->gid,
			      .rdev = dev_decode(f->rdev),
			      .no_xattrs = xattr_hint && !(f->flags & SL_ATTR_XATTR)};
	if (!time_from(f->atime, f->atimensec, &a->atime) || !time_from(f->mtime, f->mtimensec, &a->mtime) ||
	    !time_from(f->ctime, f->ctimensec, &a->ctime) || a->size > INT64_MAX ||
	    (f->mode & ~(uint32_t)(S_IFMT | 07777)))
		return -EPROTO;
	switch (a->mode & S_IFMT) {
	case S_IFREG:
	case S_IFDIR:
	case S_IFLNK:
	case S_IFIFO:
	case S_IFSOCK:
	case S_IFCHR:
	case S_IFBLK:
		return 0;
	default:
		return -EPROTO;
	}
}

void sl_attr_to_fuse(const struct sl_attr *a, struct fuse_attr *f)
{
	*f = (struct fuse_attr){.ino = a->ino,
				.size = a->size,
				.blocks = a->blocks,
				.atime = (uint64_t)a->atime.tv_sec,
				.mtime = (uint64_t)a->mtime.tv_sec,
				.ctime = (uint64_t)a->ctime.tv_sec,
				.atimensec = (uint32_t)a->atime.tv_nsec,
				.mtimensec = (uint32_t)a->mtime.tv_nsec,
				.ctimensec = (uint32_t)a->ctime.tv_nsec,
				.mode = a->mode,
				.nlink = a->nlink,
				.uid = a->uid,
				.gid = a->gid,
				.rdev = dev_encode(a->rdev),
				.blksize = 4096};
}

void sl_attr_from_stat(const struct stat *st, uint64_t generation, struct sl_attr *a)
{
	*a = (struct sl_attr){.ino = st->st_ino,
			      .generation = generation,
			      .size = (uint64_t)st->st_size,
			      .blocks = (uint64_t)st->st_blocks,
			      .atime = st->st_atim,
			      .mtime = st->st_mtim,
			      .ctime = st->st_ctim,
			      .mode = st->st_mode,
			      .nlink = (uint32_t)st->st_nlink,
			      .uid = st->st_uid,
			      .gid = st->st_gid,
			      .rdev = st->st_rdev};
}
