/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The attributes of an object as every layer above the wire passes them on, and the version that content
 * belongs to. */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <time.h>

struct fuse_attr;

struct sl_attr {
	uint64_t ino;
	uint64_t generation; /* tells two uses of one inode number apart; 0: not known */
	uint64_t size;
	uint64_t blocks; /* of 512 bytes */
	struct timespec atime, mtime, ctime;
	uint32_t mode; /* type and permissions */
	uint32_t nlink;
	uint32_t uid, gid;
	dev_t rdev;
	bool no_xattrs; /* known to have neither user xattrs nor an ACL */
};

/*
 * Which content of which object: two equal versions have equal bytes. The identity (inode, generation)
 * survives a change of the content, the rest does not.
 */
struct sl_version {
	uint64_t ino;
	uint32_t generation; /* the low half of the attribute */
	uint64_t size;
	struct timespec mtime, ctime;
};

static inline bool sl_time_eq(struct timespec a, struct timespec b)
{
	return a.tv_sec == b.tv_sec && a.tv_nsec == b.tv_nsec;
}

static inline bool sl_time_after(struct timespec a, struct timespec b)
{
	return a.tv_sec != b.tv_sec ? a.tv_sec > b.tv_sec : a.tv_nsec > b.tv_nsec;
}

static inline struct sl_version sl_attr_version(const struct sl_attr *a)
{
	return (struct sl_version){.ino = a->ino,
				   .generation = (uint32_t)a->generation,
				   .size = S_ISREG(a->mode) ? a->size : 0,
				   .mtime = a->mtime,
				   .ctime = a->ctime};
}

static inline bool sl_version_same_object(const struct sl_version *a, const struct sl_version *b)
{
	return a->ino == b->ino && a->generation == b->generation;
}

/* Nothing but the time of its last change differs: that came from a name or an attribute. */
static inline bool sl_version_same_content(const struct sl_version *a, const struct sl_version *b)
{
	return sl_version_same_object(a, b) && a->size == b->size && sl_time_eq(a->mtime, b->mtime);
}

static inline bool sl_version_eq(const struct sl_version *a, const struct sl_version *b)
{
	return sl_version_same_content(a, b) && sl_time_eq(a->ctime, b->ctime);
}

/** From a wire attribute. Returns 0, or -EPROTO for what no filesystem says (an unknown type, times out of
 * range, a negative size). */
int sl_attr_from_fuse(const struct fuse_attr *f, uint64_t generation, bool xattr_hint, struct sl_attr *a);
void sl_attr_to_fuse(const struct sl_attr *a, struct fuse_attr *f);
void sl_attr_from_stat(const struct stat *st, uint64_t generation, struct sl_attr *a);
