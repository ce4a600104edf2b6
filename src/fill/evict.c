/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Evict: take the bytes of files away again. The order is what makes it safe: nobody has the file open or
 * mapped (a write lease says so, and it or the gate keeps it so), the record on disk says that nothing is
 * here, durably, and only then the bytes go.
 */
#include <fcntl.h>
#include <linux/falloc.h>
#include <stdlib.h>

#include "base/log.h"
#include "fill/internal.h"
#include "store/walk.h"

#define BATCH		 512
#define SPACE_TRIES	 8
#define SPACE_WAIT_US	 50000
#define SPACE_CHECK_NS	 SL_NS_PER_SEC
#define LOW_WATER(limit) ((limit) - (limit) / 8) /* evicting goes on down to here */

/* Under way between the two steps. */
struct victim {
	struct sl_object *o;
	int fd;	   /* holds the lease, if it is kept */
	bool held; /* o->evicting is ours */
	int result;
	uint64_t blocks;
};

/*
 * Has anybody else got the file open? Filesystems without leases are left to our own count of who has.
 *
 * Native: the lease is not kept. To tell us of an access the kernel opens the file for us, and would wait for
 * the lease in our own read(2) of events, with all other accesses behind; and who is killed there has the
 * access denied. It is not needed either: the guard is up, so whoever opens the file from now on has to ask.
 */
static int lease(struct sl_fill *f, int fd)
{
	if (fcntl(fd, F_SETLEASE, F_WRLCK) < 0)
		return errno == EAGAIN ? -EBUSY : 0;
	if (sl_store_native(f->store))
		(void)fcntl(fd, F_SETLEASE, F_UNLCK);
	return 0;
}

static int begin(struct sl_fill *f, struct victim *x)
{
	struct sl_object *o = x->o;
	bool native = sl_store_native(f->store), invisible;
	x->fd = -EBADF;
	if (!sl_object_is_reg(o) || o->damaged)
		return -EINVAL;
	pthread_mutex_lock(&o->lock);
	int r = 0;
	if (o->rec.flags & (SL_MODIFIED | SL_LOCAL | SL_WRITTEN))
		r = -EEXIST;
	else if (o->rec.flags & SL_PINNED)
		r = -EPERM;
	else if (o->opens || o->flight || o->evicting || sl_now() < o->spared)
		r = -EBUSY;
	else if (o->map.have == 0 && !o->unclaimed)
		r = 1; /* nothing is here */
	if (r == 0)
		o->evicting = x->held = true;
	pthread_mutex_unlock(&o->lock);
	if (r != 0)
		return r;
	if (f->cfg.guard)
		f->cfg.guard(f->cfg.arg, o);
	x->fd = sl_object_open_fill(o, &invisible);
	struct stat st;
	r = x->fd < 0 ? x->fd : lease(f, x->fd);
	if (r == 0 && fstat(x->fd, &st) < 0)
		r = -errno;
	/* Nobody has it open: these tell it of most changes; of the others, the gate will. */
	if (r == 0 && native &&
	    ((uint64_t)st.st_size != o->rec.origin.size || st.st_mtim.tv_sec != o->rec.origin.mtime.tv_sec ||
	     st.st_mtim.tv_nsec != o->rec.origin.mtime.tv_nsec)) {
		sl_fill_written(f, o);
		r = -EEXIST;
	}
	if (r == 0)
		x->blocks = (uint64_t)st.st_blocks * 512;
	return r;
}

/* Nobody has it open: the record says that nothing is here. */
static int disclaim(struct victim *x)
{
	struct sl_object *o = x->o;
	pthread_mutex_lock(&o->lock);
	enum sl_state was = o->rec.state;
	int r = o->rec.flags & (SL_MODIFIED | SL_WRITTEN) ? -EEXIST : 0;
	if (r == 0) {
		o->rec.state = SL_COLD;
		r = sl_object_save(o);
		if (r < 0)
			o->rec.state = was;
	}
	pthread_mutex_unlock(&o->lock);
	return r;
}

static void end(struct sl_fill *f, struct victim *x, int sync_err, uint64_t *freed)
{
	struct sl_object *o = x->o;
	if (x->result == 0 && sync_err)
		x->result = sync_err;
	if (x->result == 0) {
		struct stat st;
		pthread_rwlock_wrlock(&o->io);
		pthread_mutex_lock(&o->lock);
		if (o->opens || (sl_store_native(f->store) && lease(f, x->fd) < 0)) {
			/* Opened since: the bytes are still good, the record catches up. */
			x->result = -EBUSY;
			sl_commit_mark(f, o);
		} else {
			uint64_t had = sl_chunkmap_bytes(&o->map);
			sl_space_add(f, -(int64_t)had);
			x->result = sl_object_drop(o, x->fd);
			had = o->unclaimed ? o->map.size : had;
			o->unclaimed = x->result != 0; /* then they go the next time */
			if (x->result == 0)
				sl_store_owe(f->store, had);
			if (sl_store_native(f->store))
				*freed +=
				    x->result == 0 ? had : 0; /* what it is made of now counts as well */
			else if (fstat(x->fd, &st) == 0 && (uint64_t)st.st_blocks * 512 < x->blocks)
				*freed += x->blocks - (uint64_t)st.st_blocks * 512;
		}
		pthread_mutex_unlock(&o->lock);
		pthread_rwlock_unlock(&o->io);
	} else if (x->held) {
		/* Nothing was taken away: let the record say again what is here. */
		pthread_mutex_lock(&o->lock);
		sl_commit_mark(f, o);
		pthread_mutex_unlock(&o->lock);
	}
	if (x->fd >= 0)
		close(x->fd);
	if (x->held) {
		pthread_mutex_lock(&o->lock);
		o->evicting = false;
		pthread_mutex_unlock(&o->lock);
		sl_fill_kick(f, o); /* for who came meanwhile */
	}
	if (x->result == 1)
		x->result = 0; /* it was cold */
}

int sl_fill_evict(struct sl_fill *f, struct sl_object **o, int *results, size_t n, uint64_t *freed)
{
	struct victim *v = calloc(SL_MIN(n, (size_t)BATCH), sizeof(*v));
	if (!v)
		return -ENOMEM;
	for (size_t at = 0; at < n; at += BATCH) {
		size_t k = SL_MIN(n - at, (size_t)BATCH);
		bool any = false;
		for (size_t i = 0; i < k; i++) {
			v[i] = (struct victim){.o = o[at + i]};
			v[i].result = begin(f, &v[i]);
			any |= v[i].result == 0;
		}
		int r = any && f->cfg.settle ? f->cfg.settle(f->cfg.arg) : 0;
		for (size_t i = 0; i < k && r == 0; i++)
			if (v[i].result == 0)
				v[i].result = disclaim(&v[i]);
		if (any && r == 0)
			r = sl_store_sync(f->store);
		sl_store_unlock_room(f->store);
		for (size_t i = 0; i < k; i++) {
			end(f, &v[i], r, freed);
			results[at + i] = v[i].result;
		}
	}
	free(v);
	return 0;
}

/* ---- by age and size ---- */

struct candidate {
	struct sl_object *o;
	struct timespec used;
	uint64_t bytes;
};

struct collect {
	struct candidate *v;
	size_t n, cap;
	struct sl_fill_reclaim *r;
	time_t before; /* used last before this, if not 0 */
};

static int collect(void *arg, const char *path, struct sl_object *o, int err)
{
	struct collect *c = arg;
	(void)path;
	(void)err;
	if (!o || !sl_object_is_reg(o))
		return 0;
	pthread_mutex_lock(&o->lock);
	uint64_t bytes = sl_chunkmap_bytes(&o->map);
	bool kept = o->rec.flags & (SL_MODIFIED | SL_LOCAL | SL_PINNED);
	bool none = (o->map.have == 0 && !o->unclaimed) || o->map.nblocks == 0;
	if (o->unclaimed)
		bytes = o->map.size;
	pthread_mutex_unlock(&o->lock);
	if (kept)
		c->r->kept++;
	if (kept || none)
		return 0;
	struct sl_attr a;
	int r = sl_object_attr(o, &a);
	if (r < 0)
		return r == -ENOENT ? 0 : r;
	if (c->before && a.atime.tv_sec >= c->before)
		return 0;
	if (c->n == c->cap) {
		c->cap = c->cap ? c->cap * 2 : 256;
		struct candidate *v = reallocarray(c->v, c->cap, sizeof(*v));
		if (!v)
			return -ENOMEM;
		c->v = v;
	}
	c->v[c->n++] = (struct candidate){.o = sl_object_ref(o), .used = a.atime, .bytes = bytes};
	return 0;
}

static int by_use(const void *a, const void *b)
{
	const struct candidate *x = a, *y = b;
	if (x->used.tv_sec != y->used.tv_sec)
		return x->used.tv_sec < y->used.tv_sec ? -1 : 1;
	return x->used.tv_nsec < y->used.tv_nsec ? -1 : x->used.tv_nsec > y->used.tv_nsec;
}

int sl_fill_reclaim(struct sl_fill *f, struct sl_object *dir, struct sl_fill_reclaim *rc)
{
	struct collect c = {.r = rc, .before = rc->older_than ? time(NULL) - (time_t)rc->older_than : 0};
	rc->files = rc->bytes = rc->busy = rc->kept = 0;
	int r = sl_walk(dir, collect, &c);
	if (r == 0) {
		if (c.n)
			qsort(c.v, c.n, sizeof(*c.v), by_use);
		size_t at = 0;
		while (at < c.n && r == 0 && (!rc->to_free || rc->bytes < rc->to_free)) {
			struct sl_object *o[BATCH];
			int results[BATCH];
			uint64_t planned = rc->bytes;
			size_t k = 0;
			while (at + k < c.n && k < BATCH && (!rc->to_free || planned < rc->to_free)) {
				o[k] = c.v[at + k].o;
				planned += c.v[at + k].bytes;
				k++;
			}
			r = sl_fill_evict(f, o, results, k, &rc->bytes);
			for (size_t i = 0; i < k && r == 0; i++) {
				if (results[i] == 0)
					rc->files++;
				else
					rc->busy++;
			}
			at += k;
		}
	}
	for (size_t i = 0; i < c.n; i++)
		sl_object_put(c.v[i].o);
	free(c.v);
	if (rc->bytes)
		sl_store_trim(f->store);
	return r;
}

/* ---- watermarks ---- */

void sl_space_add(struct sl_fill *f, int64_t bytes)
{
	pthread_mutex_lock(&f->space_lock);
	f->content = bytes < 0 && (uint64_t)-bytes > f->content ? 0 : f->content + (uint64_t)bytes;
	pthread_mutex_unlock(&f->space_lock);
}

static int count_content(void *arg, const char *path, struct sl_object *o, int err)
{
	(void)path;
	(void)err;
	if (o && sl_object_is_reg(o)) {
		pthread_mutex_lock(&o->lock);
		*(uint64_t *)arg += sl_chunkmap_bytes(&o->map);
		pthread_mutex_unlock(&o->lock);
	}
	return 0;
}

/* What is in the store already counts against a limit: looked up once, when the first bytes are to be
 * admitted. */
static void count_once(struct sl_fill *f)
{
	if (!sl_store_config(f->store)->limit || atomic_load(&f->content_known))
		return;
	pthread_mutex_lock(&f->count_lock);
	if (!atomic_load(&f->content_known)) {
		uint64_t n = 0;
		(void)sl_walk(sl_object_root(f->store), count_content, &n);
		pthread_mutex_lock(&f->space_lock);
		f->content = n;
		pthread_mutex_unlock(&f->space_lock);
		atomic_store(&f->content_known, true);
	}
	pthread_mutex_unlock(&f->count_lock);
}

/* With space_lock held: how many bytes too many @bytes more would be; 0 if there is room. */
static uint64_t excess(struct sl_fill *f, uint64_t bytes, uint64_t limit)
{
	const struct sl_store_config *cfg = sl_store_config(f->store);
	uint64_t over = 0, low = 0;
	if (sl_now() - f->space_checked > SPACE_CHECK_NS || f->space_free < cfg->reserve + bytes) {
		f->space_free = sl_store_free_bytes(f->store);
		f->space_checked = sl_now();
	}
	if (limit && f->content + f->admitted + bytes > limit)
		over = f->content + f->admitted + bytes - limit;
	if (f->space_free < cfg->reserve + bytes)
		low = cfg->reserve + bytes - f->space_free + sl_store_beyond(f->store);
	return SL_MAX(over, low);
}

static void admit(struct sl_fill *f, uint64_t bytes)
{
	f->space_free -= SL_MIN(bytes, f->space_free);
	f->admitted += bytes;
}

bool sl_space_roomy(struct sl_fill *f, uint64_t bytes)
{
	uint64_t limit = sl_store_config(f->store)->limit;
	if (limit && !atomic_load(&f->content_known))
		return false;
	pthread_mutex_lock(&f->space_lock);
	bool room = excess(f, bytes, limit ? LOW_WATER(limit) : 0) == 0;
	pthread_mutex_unlock(&f->space_lock);
	return room;
}

bool sl_space_try(struct sl_fill *f, uint64_t bytes)
{
	uint64_t limit = sl_store_config(f->store)->limit;
	if (limit && !atomic_load(&f->content_known))
		return false;
	pthread_mutex_lock(&f->space_lock);
	bool room = excess(f, bytes, limit ? LOW_WATER(limit) : 0) == 0;
	if (room)
		admit(f, bytes);
	pthread_mutex_unlock(&f->space_lock);
	return room;
}

int sl_space_admit(struct sl_fill *f, uint64_t bytes)
{
	const struct sl_store_config *cfg = sl_store_config(f->store);
	count_once(f);
	for (int tries = 0;; tries++) {
		struct sl_fill_reclaim rc = {0};
		pthread_mutex_lock(&f->space_lock);
		uint64_t too_much = excess(f, bytes, cfg->limit);
		if (too_much == 0)
			admit(f, bytes);
		else
			rc.to_free =
			    too_much + (cfg->limit ? cfg->limit - LOW_WATER(cfg->limit) : cfg->reserve / 8);
		pthread_mutex_unlock(&f->space_lock);
		if (too_much == 0)
			return 0;
		/* What is just on its way to others cannot be evicted now, and soon can: wait a little before
		 * giving up. */
		if (tries == SPACE_TRIES)
			return -ENOSPC;
		if (tries)
			usleep(SPACE_WAIT_US);
		sl_store_fit(f->store);
		int r = sl_fill_reclaim(f, sl_object_root(f->store), &rc);
		if (r < 0)
			return r;
		if (rc.files)
			sl_info("out of room: evicted %llu files (%llu bytes), the longest unused first",
				(unsigned long long)rc.files, (unsigned long long)rc.bytes);
		pthread_mutex_lock(&f->space_lock);
		f->space_checked = 0;
		pthread_mutex_unlock(&f->space_lock);
	}
}

int sl_fill_make_room(struct sl_fill *f)
{
	const struct sl_store_config *cfg = sl_store_config(f->store);
	struct sl_fill_reclaim rc;
	count_once(f);
	do {
		pthread_mutex_lock(&f->space_lock);
		f->space_checked = 0; /* what the limits are may just have changed */
		rc = (struct sl_fill_reclaim){.to_free = excess(f, 0, cfg->limit)};
		pthread_mutex_unlock(&f->space_lock);
		int r = rc.to_free ? sl_fill_reclaim(f, sl_object_root(f->store), &rc) : 0;
		if (r < 0 || !rc.to_free)
			return r;
	} while (rc.files);
	return -ENOSPC;
}

void sl_space_settle(struct sl_fill *f, uint64_t bytes)
{
	pthread_mutex_lock(&f->space_lock);
	f->admitted -= bytes;
	pthread_mutex_unlock(&f->space_lock);
}
