/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What an object is said to be, on disk: its record, map and times; a new version of it; nothing of it. */
#include <assert.h>
#include <fcntl.h>
#include <linux/falloc.h>

#include "base/time.h"
#include "store/fs.h"
#include "store/internal.h"

/* An attribute of the store's, NULL to remove it; on XFS without a word to who watches the object. */
static int put_attr(struct sl_object *o, const char *name, const void *buf, size_t n)
{
	struct sl_store *s = o->store;
	_Alignas(struct file_handle) char room[SL_HANDLE_ROOM];
	if (s->invisible)
		return sl_xfs_set_attr(s->base_fd, sl_handle_raw(&o->handle, room), strchr(name, '.') + 1,
				       buf, n);
	struct sl_at at;
	int r = sl_at_begin(o, &at);
	if (r < 0)
		return r;
	r = buf ? sl_at_setxattr(&at, name, buf, n) : sl_at_removexattr(&at, name);
	sl_at_end(&at);
	return r;
}

static int save_native(struct sl_object *o)
{
	_cleanup_free_ char *place = NULL;
	uint32_t moves;
	uint8_t b[SL_PLACED_MAX];
	int r = sl_place_get(o, &place, &moves);
	if (r == -ENOENT) {
		/* Made here: it needs none, and must not look like an object of the origin. */
		uint64_t self = sl_handle_hash(&o->handle);
		return o->rec.flags & SL_CONFLICT ? put_attr(o, SL_XATTR_CONFLICT, &self, sizeof(self)) : 0;
	}
	if (r < 0 && !place)
		return r;
	if (o->rec.flags & SL_OURS)
		o->rec.flags &= (uint16_t)~SL_RENEWED;
	size_t n = sl_record_encode_placed(&o->rec, sl_handle_hash(&o->handle), place, moves, b);
	r = n ? put_attr(o, o->store->xattr_record, b, n) : -ENAMETOOLONG;
	if (r == 0 && !o->has_record) /* most look at it without the lock */
		o->has_record = true;
	return r;
}

int sl_object_save(struct sl_object *o)
{
	struct sl_at at;
	if (o->damaged)
		return -EIO;
	if (o->store->native)
		return save_native(o);
	int r = sl_at_begin(o, &at);
	if (r < 0)
		return r;
	r = sl_record_save_at(o->store, at.fd, at.name, &o->rec, NULL, 0);
	if (r == 0 && !o->has_record) /* most look at it without the lock */
		o->has_record = true;
	else if ((r == -EPERM || r == -EOPNOTSUPP) && !S_ISREG(o->type) && !S_ISDIR(o->type))
		r = 0; /* symlinks and special files of an unprivileged store go without */
	sl_at_end(&at);
	return r;
}

int sl_object_save_map(struct sl_object *o, bool drop)
{
	uint8_t b[SL_MAP_MAX_BYTES];
	size_t n = drop ? 0 : sl_chunkmap_save(&o->map, b);
	return put_attr(o, o->store->xattr_map, drop ? NULL : b, n);
}

int sl_object_put_map(struct sl_object *o, const void *map, size_t len)
{
	return put_attr(o, o->store->xattr_map, map, len);
}

static int set_mtime(struct sl_object *o, struct timespec mtime)
{
	struct sl_at at;
	int r = sl_at_begin(o, &at);
	if (r < 0)
		return r;
	struct timespec ts[2] = {{.tv_nsec = UTIME_OMIT}, mtime};
	if (utimensat(at.fd, at.name, ts, AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH) < 0)
		r = -errno;
	sl_at_end(&at);
	return r;
}

int sl_object_restore_mtime(struct sl_object *o, const struct timespec *own)
{
	bool ours = o->rec.flags & (SL_META | SL_MODIFIED | SL_LOCAL);
	return !ours ? set_mtime(o, o->rec.origin.mtime) : own ? set_mtime(o, *own) : 0;
}

int sl_object_set_meta(struct sl_object *o)
{
	if (o->rec.flags & (SL_META | SL_MODIFIED | SL_LOCAL) || !o->has_record)
		return 0;
	int r = set_mtime(o, o->rec.origin.mtime);
	if (r == 0) {
		o->rec.flags |= SL_META;
		r = sl_object_save(o);
		if (r < 0)
			o->rec.flags &= (uint16_t)~SL_META;
	}
	return r;
}

/* Between the permission to read and the end of read(2), generously. */
#define LET_NS (200 * SL_NS_PER_MS)

static void empty_map(struct sl_object *o)
{
	(void)sl_object_save_map(o, true);
	o->epoch++;
	sl_chunkmap_fini(&o->map);
	sl_chunkmap_init(&o->map, o->rec.origin.size, false);
}

/*
 * Native: nothing is here of the new version, and others may have the file open. What it held stays until it
 * is overwritten: who was let through to it a moment ago reads that, and not what a placeholder is made of.
 */
static int renew(struct sl_object *o, int fd, const struct timespec *atime, const struct sl_ending *ending)
{
	uint64_t size = o->rec.origin.size, block = o->store->block;
	struct stat st;
	if (fstat(fd, &st) < 0)
		return -errno;
	int r = 0;
	uint64_t had = (uint64_t)st.st_size, from = SL_ALIGN_UP(had, block);
	bool within = size > had && had % block, full = sl_chunkmap_full(&o->map);
	bool cold = within && !sl_chunkmap_test(&o->map, had - 1, 1);
	bool alone = (full || within) && sl_nobody_has_open(o, fd);
	empty_map(o);
	o->rewritten = true;
	/* Of a file that is all here nobody is asked: its readers may have come to it just now. */
	o->quiet = alone ? 0 : (full ? sl_now() : o->allowed) + LET_NS;
	if (size < had && ftruncate(fd, (off_t)size) < 0) {
		/* A file cannot be cut off inside a block that cannot be read: that block is given anew. */
		r = errno == EIO ? sl_disarm_last(o->store, fd, size) : -errno;
		from = SL_ALIGN_DOWN(size, block);
	} else if (cold) {
		from = SL_ALIGN_DOWN(had, block); /* nor made longer, from inside one */
	} else if (within && !alone) {
		/*
		 * Who was let through to the old end, or has it mapped, finds zeros behind it in its page as
		 * soon as the file is longer: what is to be there comes with the size. Behind that page is
		 * the zone, which cannot be read, if there is one.
		 */
		if (ending && ending->off == had && ending->len) {
			r = sl_pwrite_full(fd, ending->data, ending->len, (off_t)had);
			from = SL_ALIGN_UP(had + ending->len, block);
		} else if (o->store->sealed) {
			from = SL_ALIGN_DOWN(had, block);
		}
	}
	if (r == 0 && size > from)
		r = sl_armour(o->store, fd, from, size);
	if (r == -EOPNOTSUPP)
		r = 0;
	/* Armour has given it its size; to cut it off there once more would read the last block. */
	if (r == 0 &&
	    (fstat(fd, &st) < 0 || ((uint64_t)st.st_size != size && ftruncate(fd, (off_t)size) < 0)))
		r = -errno;
	struct timespec ts[2] = {{.tv_nsec = UTIME_OMIT}, o->rec.origin.mtime};
	if (atime)
		ts[0] = *atime;
	return r < 0 ? r : futimens(fd, ts) < 0 ? -errno : 0;
}

/* Native: give the bytes back, under a lease; the file keeps its size at every moment, and its times. */
static int disarm(struct sl_object *o, int fd)
{
	uint64_t size = o->rec.origin.size;
	struct timespec ts[2] = {{.tv_nsec = UTIME_OMIT}, o->rec.origin.mtime};
	empty_map(o);
	o->rewritten = false;
	int r = sl_armour(o->store, fd, 0, size);
	if (r == -EOPNOTSUPP)
		r = fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, (off_t)size) < 0 ? -errno
												  : 0;
	if (r == 0)
		o->rec.flags &= (uint16_t)~SL_MIXED; /* saved with what comes next */
	if (!o->store->invisible)
		(void)futimens(fd, ts);
	return r;
}

size_t sl_object_ending(struct sl_object *o, int fd, uint64_t size, uint64_t *off)
{
	struct stat st;
	uint64_t page = SL_MAX(o->store->block, (uint64_t)sysconf(_SC_PAGESIZE));
	if (!o->store->native || fstat(fd, &st) < 0)
		return 0;
	uint64_t had = *off = (uint64_t)st.st_size;
	pthread_mutex_lock(&o->lock);
	bool within = size > had && had % o->store->block && had == o->map.size &&
		      sl_chunkmap_test(&o->map, had - 1, 1) && !sl_nobody_has_open(o, fd);
	pthread_mutex_unlock(&o->lock);
	return within ? (size_t)(SL_ALIGN_UP(had, page) - had) : 0;
}

int sl_object_reset(struct sl_object *o, int fd, const struct sl_version *v, const struct timespec *atime,
		    const struct sl_ending *ending)
{
	struct sl_record old = o->rec;
	bool native = o->store->native;
	assert(!(o->rec.flags & (SL_MODIFIED | SL_LOCAL)));
	o->rec.state = SL_COLD;
	if (native)
		o->rec.flags |= SL_MIXED | SL_RENEWED;
	else
		o->rec.origin = *v;
	int r = sl_object_save(o);
	/* Where the record on disk claimed nothing there is nothing to be disclaimed. */
	if (r == 0 && old.state != SL_COLD && fdatasync(fd) < 0)
		r = -errno;
	if (r < 0) {
		o->rec = old;
		return r;
	}
	if (!native)
		return sl_object_drop(o, fd);
	struct stat st;
	/* That has taken its time, and nobody is asked before he writes to what is all here. */
	if (old.state != SL_COLD && fstat(fd, &st) == 0 && (uint64_t)st.st_size != o->map.size) {
		o->rec = old;
		r = sl_object_save(o);
		return r < 0 ? r : -EEXIST;
	}
	o->rec.origin = *v;
	r = renew(o, fd, atime, ending);
	if (r < 0) { /* nothing is here of either */
		o->rec.origin = old.origin;
		empty_map(o);
		return r;
	}
	o->rec.flags &= (uint16_t)~SL_RENEWED;
	return sl_object_save(o);
}

/* A service that died had begun: the version that the record has is as good as any. */
int sl_object_end_renewal(struct sl_object *o)
{
	bool invisible;
	struct sl_version v = o->rec.origin;
	_cleanup_close_ int fd = sl_object_open_fill(o, &invisible);
	return fd < 0 ? fd : sl_object_reset(o, fd, &v, NULL, NULL);
}

int sl_object_drop(struct sl_object *o, int fd)
{
	uint64_t size = o->rec.origin.size;
	assert(o->rec.state == SL_COLD);
	if (o->store->native)
		return disarm(o, fd);
	struct stat st;
	struct timespec own = {.tv_nsec = UTIME_OMIT}; /* where the user has set it */
	if (o->rec.flags & SL_META && fstat(fd, &st) == 0)
		own = st.st_mtim;
	(void)sl_object_save_map(o, true);
	o->epoch++;
	sl_chunkmap_fini(&o->map);
	sl_chunkmap_init(&o->map, size, false);
	if (ftruncate(fd, 0) < 0)
		return -errno;
	int r = sl_armour(o->store, fd, 0, size);
	if (r == -EOPNOTSUPP)
		r = ftruncate(fd, (off_t)size) < 0 ? -errno : 0;
	struct timespec ts[2] = {{.tv_nsec = UTIME_OMIT}, o->rec.flags & SL_META ? own : o->rec.origin.mtime};
	(void)futimens(fd, ts);
	return r;
}
