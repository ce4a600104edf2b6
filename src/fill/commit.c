/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The committer. The rule that makes a crash harmless: data, then fdatasync, then the map. What is in memory
 * at the time of the snapshot is made durable, for many files in one go, and only then the snapshot is
 * written into record and map.
 *
 * Native: that moves the file's time of change, by which programs that read it tell whether it is changed
 * under their hands (tar). So a file that is still arriving waits while anybody has it open, for HELD_NS at
 * most: what is not committed is fetched again after a crash. What is complete does not wait: nobody is asked
 * any more before it is written to, and a service that follows one that was killed must know that all of it
 * was here.
 */
#include <fcntl.h>

#include "base/log.h"
#include "fill/internal.h"

#define INTERVAL_NS (2 * SL_NS_PER_SEC)
#define HELD_NS	    (600 * SL_NS_PER_SEC)
#define SPARED_NS   (2 * SL_NS_PER_SEC)
#define DIRTY_SOON  4096 /* objects: commit at once */
#define FEW	    16	 /* up to this many files are synced one by one, more by the filesystem */

struct snapshot {
	struct sl_object *o;
	uint32_t epoch;
	bool full;
	size_t len; /* of the map, when not full; 0: no chunk is complete */
	uint8_t *map;
};

void sl_commit_mark(struct sl_fill *f, struct sl_object *o)
{
	if (o->dirty)
		return;
	o->dirty = true;
	sl_object_ref(o);
	pthread_mutex_lock(&f->lock);
	sl_list_add_tail(&f->dirty, &o->dirty_link);
	if (++f->ndirty >= DIRTY_SOON)
		pthread_cond_broadcast(&f->commit_cond);
	pthread_mutex_unlock(&f->lock);
}

static void snap(struct sl_object *o, struct snapshot *s)
{
	uint8_t buf[SL_MAP_MAX_BYTES];
	*s = (struct snapshot){.o = o};
	pthread_mutex_lock(&o->lock);
	s->epoch = o->epoch;
	s->full = sl_chunkmap_full(&o->map);
	if (!s->full) {
		size_t n = sl_chunkmap_save(&o->map, buf);
		bool any = false;
		for (size_t i = 0; i < n && !any; i++)
			any = buf[i];
		s->map = any ? malloc(n) : NULL;
		if (s->map) {
			memcpy(s->map, buf, n);
			s->len = n;
		}
	}
	pthread_mutex_unlock(&o->lock);
}

/* With the commit lock held. Watchers of a file that nobody opens must not hear that somebody has. */
static int open_unheard(struct sl_fill *f, struct sl_object *o)
{
	int fd = f->cfg.open_unheard ? f->cfg.open_unheard(f->cfg.arg, o) : -EOPNOTSUPP;
	return fd < 0 ? sl_object_open(o, O_RDONLY) : fd;
}

static int sync_one(struct sl_fill *f, struct sl_object *o)
{
	_cleanup_close_ int fd = open_unheard(f, o);
	return fd < 0 ? fd : fdatasync(fd) < 0 ? -errno : 0;
}

static int write_down(struct sl_fill *f, struct snapshot *s)
{
	struct sl_object *o = s->o;
	bool full = false;
	int r = 0;
	pthread_mutex_lock(&o->lock);
	/* What was reset, evicted or changed by the user meanwhile is not ours to describe any more. */
	if (o->epoch == s->epoch && !o->evicting && !(o->rec.flags & (SL_MODIFIED | SL_LOCAL)) &&
	    (s->full || s->len)) {
		enum sl_state was = o->rec.state;
		if (!s->full)
			r = sl_object_put_map(o, s->map, s->len);
		if (r == 0) {
			if (s->full && o->rec.flags & SL_WRITTEN)
				o->rec.flags = (uint16_t)((o->rec.flags | SL_MODIFIED) & ~SL_WRITTEN);
			o->rec.state = s->full ? SL_FULL : SL_PARTIAL;
			o->rec.chunk_shift = o->map.chunk_shift;
			r = sl_object_save(o);
			if (r < 0)
				o->rec.state = was;
		}
		if (r == 0 && s->full && was == SL_PARTIAL)
			(void)sl_object_save_map(o, true);
		if (r == 0 && !sl_store_native(o->store))
			(void)sl_object_restore_mtime(o, NULL);
		full = r == 0 && s->full && was != SL_FULL;
	}
	/* The gate may have waited for the record: see fan_sure(). */
	full = full && !sl_object_tells_apart(o);
	pthread_mutex_unlock(&o->lock);
	if (full && f->cfg.complete)
		f->cfg.complete(f->cfg.arg, o);
	return r;
}

/*
 * The disk failed, or has no room after all: what was written may be gone, and then what is there instead is
 * what a placeholder is made of. The record did not claim it; from now on nobody else does.
 */
static void forget(struct sl_fill *f, struct snapshot *s)
{
	struct sl_object *o = s->o;
	pthread_rwlock_wrlock(&o->io);
	pthread_mutex_lock(&o->lock);
	bool lost = o->epoch == s->epoch && !o->evicting &&
		    !(o->rec.flags & (SL_MODIFIED | SL_LOCAL | SL_WRITTEN)) && o->map.have;
	if (lost) {
		sl_space_add(f, -(int64_t)sl_chunkmap_bytes(&o->map));
		o->epoch++;
		sl_chunkmap_fini(&o->map);
		sl_chunkmap_init(&o->map, o->rec.origin.size, false);
		o->unclaimed = true;
		o->rec.flags |= SL_MIXED;
		(void)sl_object_save(o);
	}
	pthread_mutex_unlock(&o->lock);
	pthread_rwlock_unlock(&o->io);
	if (lost && f->cfg.guard)
		f->cfg.guard(f->cfg.arg, o);
	/* It takes room for nothing. While it is in use this fails, and is done when there is no other room.
	 */
	uint64_t freed = 0;
	int r;
	if (lost)
		(void)sl_fill_evict(f, &o, &r, 1, &freed);
	sl_fill_kick(f, o);
}

/* It is still arriving, and somebody has it open, and not for too long. */
static bool is_held(struct sl_fill *f, struct sl_object *o, uint64_t now)
{
	pthread_mutex_lock(&o->lock);
	bool arriving = !sl_chunkmap_full(&o->map) && !(o->rec.flags & (SL_MODIFIED | SL_LOCAL | SL_WRITTEN));
	pthread_mutex_unlock(&o->lock);
	_cleanup_close_ int fd = arriving ? open_unheard(f, o) : -EBADF;
	if (fd < 0 || sl_only_opener(fd) != -EBUSY)
		return false;
	if (!o->held)
		o->held = now;
	return now - o->held < HELD_NS;
}

/* @all: also what is in use. */
static int commit(struct sl_fill *f, bool all)
{
	struct sl_list list, held;
	size_t n, k = 0, nheld = 0;
	int ret = 0;
	uint64_t now = sl_now();
	all = all || !sl_store_native(f->store);
	sl_list_init(&list);
	sl_list_init(&held);
	pthread_mutex_lock(&f->commit_lock);
	pthread_mutex_lock(&f->lock);
	sl_list_splice(&list, &f->dirty);
	sl_list_splice(&list, &f->held);
	n = f->ndirty + f->nheld;
	f->ndirty = f->nheld = 0;
	pthread_mutex_unlock(&f->lock);
	struct snapshot *v = n ? reallocarray(NULL, n, sizeof(*v)) : NULL;
	while (!sl_list_empty(&list)) {
		struct sl_object *o = sl_list_entry(list.next, struct sl_object, dirty_link);
		sl_list_del(&o->dirty_link);
		if (v && !all && is_held(f, o, now)) {
			sl_list_add_tail(&held, &o->dirty_link);
			nheld++;
			continue;
		}
		o->held = 0;
		pthread_mutex_lock(&o->lock);
		o->dirty = false; /* what comes from now on is marked again */
		pthread_mutex_unlock(&o->lock);
		/* Without memory nothing is claimed, and what is here now is fetched again after a restart.
		 */
		if (v)
			snap(o, &v[k++]);
		else
			sl_object_put(o);
	}
	int synced = k > FEW ? sl_store_sync(f->store) : 0;
	for (size_t i = 0; i < k; i++) {
		int r = k > FEW ? synced : sync_one(f, v[i].o);
		if (r == 0)
			r = write_down(f, &v[i]);
		else
			forget(f, &v[i]);
		if (r < 0 && r != -ENOENT && r != -ESTALE) { /* those are gone */
			ret = r;
			sl_warn("cannot commit what was filled: %s; it will be fetched again", strerror(-r));
		}
		free(v[i].map);
		sl_object_put(v[i].o);
	}
	free(v);
	pthread_mutex_lock(&f->lock);
	sl_list_splice(&f->held, &held);
	f->nheld = nheld;
	pthread_mutex_unlock(&f->lock);
	pthread_mutex_unlock(&f->commit_lock);
	return ret;
}

int sl_fill_commit_one(struct sl_fill *f, struct sl_object *o)
{
	struct snapshot s;
	pthread_mutex_lock(&f->commit_lock);
	snap(o, &s);
	int r = sync_one(f, o);
	if (r == 0)
		r = write_down(f, &s);
	free(s.map);
	pthread_mutex_unlock(&f->commit_lock);
	return r;
}

int sl_fill_commit(struct sl_fill *f)
{
	return commit(f, true);
}

static void *committer(void *arg)
{
	struct sl_fill *f = arg;
	pthread_mutex_lock(&f->lock);
	while (!f->stop) {
		pthread_mutex_unlock(&f->lock);
		uint64_t pause = SL_MIN(sl_store_fit(f->store), INTERVAL_NS);
		sl_fill_retry(f);
		pthread_mutex_lock(&f->lock);
		if (f->stop)
			break;
		if (f->ndirty + f->nheld == 0) {
			/* Woken by stop only; the first mark of a batch is noticed at the next tick. */
			struct timespec ts = sl_ns_to_timespec(sl_now() + pause);
			pthread_cond_timedwait(&f->commit_cond, &f->lock, &ts);
			continue;
		}
		uint64_t until = sl_now() + pause;
		struct timespec ts = sl_ns_to_timespec(until);
		while (!f->stop && f->ndirty < DIRTY_SOON && sl_now() < until)
			pthread_cond_timedwait(&f->commit_cond, &f->lock, &ts);
		pthread_mutex_unlock(&f->lock);
		(void)commit(f, false);
		pthread_mutex_lock(&f->lock);
	}
	pthread_mutex_unlock(&f->lock);
	return NULL;
}

int sl_commit_init(struct sl_fill *f)
{
	int r = -pthread_create(&f->committer, NULL, committer, f);
	if (r == 0)
		pthread_setname_np(f->committer, "committer");
	return r;
}

void sl_commit_fini(struct sl_fill *f)
{
	pthread_mutex_lock(&f->lock);
	f->stop = true;
	pthread_cond_broadcast(&f->commit_cond);
	pthread_mutex_unlock(&f->lock);
	pthread_join(f->committer, NULL);
	(void)sl_fill_commit(f);
}

int sl_fill_modify(struct sl_fill *f, struct sl_object *o, bool truncate)
{
	int r = 0;
	/* Exclusively: what is just being written of the origin's content must not land on the user's. */
	pthread_rwlock_wrlock(&o->io);
	pthread_mutex_lock(&o->lock);
	bool ours = o->rec.flags & (SL_MODIFIED | SL_LOCAL);
	if (!ours && (o->evicting || (!truncate && !sl_chunkmap_full(&o->map))))
		r = -EAGAIN; /* it was evicted, or changed at the origin, since it was filled: fill it again
			      */
	if (r < 0)
		o->spared = sl_now() + SPARED_NS; /* or evictions could win for ever */
	if (ours || r < 0) {
		pthread_mutex_unlock(&o->lock);
		pthread_rwlock_unlock(&o->io);
		return r;
	}
	_cleanup_close_ int fd = sl_object_open(o, O_RDWR);
	if (fd < 0)
		r = fd;
	/* The record will say that all content is here and ours: so it must be, durably, first. */
	if (r == 0 && !truncate && o->rec.state != SL_FULL && fdatasync(fd) < 0)
		r = -errno;
	if (r == 0)
		r = sl_object_set_meta(o);
	if (r == 0) {
		struct sl_record old = o->rec;
		o->rec.flags |= SL_MODIFIED;
		o->rec.state = SL_FULL;
		r = sl_object_save(o);
		if (r == 0 && fsync(fd) < 0)
			r = -errno;
		if (r < 0) {
			o->rec = old;
			(void)sl_object_save(o);
		} else {
			if (old.state == SL_PARTIAL)
				(void)sl_object_save_map(o, true);
			sl_space_add(f, -(int64_t)sl_chunkmap_bytes(&o->map));
			o->epoch++; /* fetches that are still under way no longer count */
			sl_chunkmap_fini(&o->map);
			sl_chunkmap_init(&o->map, 0, true);
		}
	}
	pthread_mutex_unlock(&o->lock);
	pthread_rwlock_unlock(&o->io);
	if (r == 0)
		sl_fill_kick(f, o); /* who waited for content that is cut off now reads what there is */
	return r;
}
