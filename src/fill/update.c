/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* An object as the origin says that it is now, without fetching anything. */
#include <fcntl.h>

#include "base/log.h"
#include "fill/internal.h"
#include "store/internal.h"
#include "store/xattr.h"

#define ENDING_TRIES 4

/* Attributes that follow the origin until they are changed here (lock held). */
static int follow(struct sl_object *o, const struct sl_attr *a, bool has_xattrs)
{
	struct sl_store *s = o->store;
	struct sl_at at;
	char p[SL_PROC_FD_MAX];
	if (o->rec.flags & SL_META)
		return 0;
	bool owner = s->privileged, mode = owner && a->mode != o->rec.mode && !S_ISLNK(a->mode);
	int r = 0;
	if (owner) {
		r = sl_at_begin(o, &at);
		if (r < 0)
			return r;
		if (fchownat(at.fd, at.name, a->uid, a->gid, AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH) < 0 ||
		    (mode && chmod(sl_at_path(&at, p), a->mode & 07777) < 0))
			r = -errno;
		sl_at_end(&at);
	}
	o->rec.mode = a->mode;
	if (has_xattrs && (sl_object_is_reg(o) || sl_object_is_dir(o)))
		o->rec.flags |= SL_XATTRS;
	if (sl_object_is_reg(o))
		o->rec.flags =
		    (uint16_t)((o->rec.flags & ~SL_SPARSE) | (a->blocks < a->size / 512 ? SL_SPARSE : 0));
	if (o->rec.flags & SL_LINKED)
		o->rec.nlink = a->nlink;
	return r;
}

/* With its locks held. */
static int take_up(struct sl_fill *f, struct sl_object *o, const struct sl_attr *a, bool keep,
		   bool has_xattrs)
{
	struct sl_version v = sl_attr_version(a);
	struct sl_record old = o->rec;
	bool reg = sl_object_is_reg(o);
	int r = follow(o, a, has_xattrs);
	if (r == 0 && (!reg || keep)) {
		o->rec.origin = v;
		if (reg && o->rec.state != SL_COLD && !sl_chunkmap_full(&o->map))
			sl_commit_mark(f, o);
		r = sl_object_save(o);
		if (r == 0 && (!reg || !(o->rec.flags & SL_META)))
			r = sl_object_restore_mtime(o, NULL);
	} else if (r == 0) {
		bool invisible;
		_cleanup_close_ int fd = sl_object_open_fill(o, &invisible);
		sl_space_add(f, -(int64_t)sl_chunkmap_bytes(&o->map));
		if (f->cfg.changing)
			f->cfg.changing(f->cfg.arg, o, o->map.size);
		r = fd < 0 ? fd : 0;
		if (r == 0 && o->map.have == 0 && !o->flight) {
			/* There is nothing that a crash could take for the new version. */
			o->rec.state = SL_COLD;
			o->rec.origin = v;
			r = sl_object_save(o);
			if (r == 0)
				r = sl_object_drop(o, fd);
		} else if (r == 0) {
			r = sl_object_reset(o, fd, &v, NULL, NULL);
		}
	}
	if (r < 0)
		o->rec = old;
	return r;
}

int sl_fill_update(struct sl_fill *f, struct sl_object *o, const struct sl_attr *a, unsigned how)
{
	struct sl_version v = sl_attr_version(a);
	bool reg = sl_object_is_reg(o), told = false;
	if ((a->mode & S_IFMT) != o->type)
		return -ESTALE;
	/* What is gone at the origin must go here as well. */
	bool has_xattrs = !a->no_xattrs || sl_xattr_list(o, NULL, 0) > 0;
	pthread_rwlock_wrlock(&o->io);
	pthread_mutex_lock(&o->lock);
	uint64_t size = o->map.size;
	/* A listing of a directory tells its times, and not its mode. */
	bool same = sl_version_eq(&o->rec.origin, &v) && !(how & SL_UPDATE_CONTENT) &&
		    (reg || o->rec.mode == a->mode || o->rec.flags & SL_META);
	bool keep = sl_version_same_content(&o->rec.origin, &v) && how & SL_UPDATE_KEEP;
	int r = 0;
	if (o->damaged || o->rec.flags & SL_LOCAL) {
		r = -EEXIST;
	} else if (same && (o->has_record || reg)) {
		r = 0;
	} else if (o->rec.flags & (SL_MODIFIED | SL_WRITTEN)) {
		if (!keep && !(o->rec.flags & SL_CONFLICT)) {
			o->rec.flags |= SL_CONFLICT;
			r = sl_object_save(o);
		}
		r = r < 0 ? r : keep ? 0 : -EEXIST;
	} else if (reg && !keep && o->open_passthrough) {
		r = -EBUSY; /* they read the store's file without us */
		o->follows = true;
	} else {
		r = take_up(f, o, a, keep, has_xattrs);
		o->follows |= reg && !keep && o->opens;
		told = f->cfg.changed;
		if (reg && !keep)
			sl_object_telling(o, size);
		if (told)
			o->invalidating++;
		r = r < 0 ? r : 1;
	}
	pthread_mutex_unlock(&o->lock);
	pthread_rwlock_unlock(&o->io);
	if (told)
		f->cfg.changed(f->cfg.arg, o);
	if (r == 1 && reg && !keep)
		sl_fill_kick(f, o);
	return r;
}

bool sl_renew(struct sl_fill *f, struct sl_object *o, int fd, const struct sl_attr *a,
	      const struct timespec *atime, const struct sl_ending *ending, int *r)
{
	struct sl_version v = sl_attr_version(a);
	uint64_t old_size = o->map.size;
	/* Nobody may read past the gate what is about to go: with the lock, which who lets readers past
	 * takes. */
	if (f->cfg.guard)
		f->cfg.guard(f->cfg.arg, o);
	int64_t bytes = (int64_t)sl_chunkmap_bytes(&o->map);
	sl_space_add(f, -bytes);
	/* In a native store nobody tells whether the user has changed these. */
	bool follow = !(o->rec.flags & SL_META) && !sl_store_native(o->store);
	if (follow)
		o->rec.mode = a->mode;
	if (follow && sl_store_privileged(o->store) &&
	    (fchown(fd, a->uid, a->gid) < 0 || fchmod(fd, a->mode & 07777) < 0))
		*r = -errno;
	if (f->cfg.changing)
		f->cfg.changing(f->cfg.arg, o, old_size);
	if (*r == 0)
		*r = sl_object_reset(o, fd, &v, atime, ending);
	if (*r == -EEXIST)
		sl_space_add(f, bytes);
	if (!a->no_xattrs && *r == 0)
		o->rec.flags |= SL_XATTRS;
	/* In the same moment: nobody may take the new size for what the kernel knows. */
	sl_object_telling(o, old_size);
	if (f->cfg.changed)
		o->invalidating++;
	return f->cfg.changed;
}

void sl_fetch_ending(struct sl_fill *f, struct sl_object *o, int fd, struct sl_attr *a, struct sl_oreq *q,
		     struct sl_ending *ending)
{
	*q = (struct sl_oreq){0};
	*ending = (struct sl_ending){0};
	for (int i = 0; i < ENDING_TRIES; i++) {
		_cleanup_free_ char *place = NULL;
		struct sl_version v = sl_attr_version(a), now;
		sl_oreq_fini(q);
		*q = (struct sl_oreq){.op = SL_OREQ_READ};
		q->len = sl_object_ending(o, fd, a->size, &q->off);
		if (!q->len || sl_object_place(o, &place) < 0)
			return;
		q->place = place;
		int r = sl_origin_call(f->cfg.origin, q);
		q->place = NULL;
		now = sl_attr_version(&q->attr);
		if (r < 0 || !S_ISREG(q->attr.mode) || !sl_version_same_object(&v, &now))
			return;
		sl_fill_add_stat(f, &f->stats.fetched_bytes, q->nread);
		if (sl_version_eq(&v, &now) && q->nread == SL_MIN(q->len, a->size - q->off)) {
			*ending = (struct sl_ending){.off = q->off, .len = q->nread, .data = q->data};
			return;
		}
		*a = q->attr; /* it has moved on: what was read may be of before that */
	}
}

int sl_fill_renew(struct sl_fill *f, struct sl_object *o, int fd, const struct sl_attr *a,
		  const struct timespec *atime)
{
	bool changed = false;
	struct sl_attr now = *a;
	struct sl_oreq q;
	struct sl_ending ending;
	sl_fetch_ending(f, o, fd, &now, &q, &ending);
	int r = f->cfg.settle ? f->cfg.settle(f->cfg.arg) : 0;
	if (r < 0) {
		sl_oreq_fini(&q);
		return r;
	}
	pthread_rwlock_wrlock(&o->io);
	pthread_mutex_lock(&o->lock);
	if (o->rec.flags & (SL_MODIFIED | SL_LOCAL) || sl_changed_here(o, fd))
		r = -EEXIST;
	else if (o->evicting)
		r = -EBUSY;
	else
		changed = sl_renew(f, o, fd, &now, atime, &ending, &r);
	pthread_mutex_unlock(&o->lock);
	pthread_rwlock_unlock(&o->io);
	sl_oreq_fini(&q);
	if (changed)
		f->cfg.changed(f->cfg.arg, o);
	sl_fill_kick(f, o);
	return r;
}

/* With its locks held. */
static int put_in_place(struct sl_fill *f, struct sl_object *o, const struct sl_attr *a, int from)
{
	struct sl_record old = o->rec;
	bool invisible;
	_cleanup_close_ int fd = sl_object_open_fill(o, &invisible);
	int r = fd < 0 ? fd : follow(o, a, !a->no_xattrs);
	o->rec.state = SL_COLD;
	o->rec.origin = sl_attr_version(a);
	if (r == 0)
		r = sl_object_save(o);
	if (r == 0 && fdatasync(fd) < 0)
		r = -errno;
	if (r < 0) {
		o->rec = old;
		return r;
	}
	(void)sl_object_save_map(o, true);
	sl_space_add(f, -(int64_t)sl_chunkmap_bytes(&o->map));
	o->epoch++;
	sl_chunkmap_fini(&o->map);
	sl_chunkmap_init(&o->map, a->size, false);
	loff_t at = 0, to = 0;
	while (r == 0 && (uint64_t)at < a->size) {
		ssize_t n = copy_file_range(from, &at, fd, &to, a->size - (uint64_t)at, 0);
		r = n < 0 ? -errno : n == 0 ? -EIO : 0;
	}
	if (r == 0 && ftruncate(fd, (off_t)a->size) < 0)
		r = -errno;
	if (r == 0)
		r = sl_chunkmap_set(&o->map, 0, a->size);
	sl_space_add(f, (int64_t)sl_chunkmap_bytes(&o->map));
	if (r == 0 && a->size)
		sl_commit_mark(f, o);
	(void)sl_object_restore_mtime(o, NULL);
	return r;
}

int sl_fill_replace(struct sl_fill *f, struct sl_object *o, const struct sl_attr *a, int from)
{
	int r = 0;
	bool told = false;
	pthread_rwlock_wrlock(&o->io);
	pthread_mutex_lock(&o->lock);
	if (o->damaged || o->rec.flags & (SL_MODIFIED | SL_LOCAL | SL_WRITTEN)) {
		r = -EEXIST;
	} else {
		uint64_t size = o->map.size;
		if (f->cfg.changing)
			f->cfg.changing(f->cfg.arg, o, size);
		r = put_in_place(f, o, a, from);
		sl_object_telling(o, size);
		told = f->cfg.changed;
		if (told)
			o->invalidating++;
	}
	pthread_mutex_unlock(&o->lock);
	pthread_rwlock_unlock(&o->io);
	if (told)
		f->cfg.changed(f->cfg.arg, o);
	return r;
}
