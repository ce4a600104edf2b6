/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Fetches: ranges asked of the origin, and written when they come, if they are of the version that the record
 * names. */
#include <fcntl.h>
#include <linux/falloc.h>

#include "base/log.h"
#include "fill/internal.h"
#include "store/zone.h"

static void fetch_run(struct sl_work *w);

int sl_fetch_plan(struct sl_fill *f, struct sl_object *o, uint64_t off, uint64_t end, struct sl_list *list)
{
	struct sl_flight *fl = sl_flight_get(o);
	uint64_t s, e;
	if (!fl)
		return -ENOMEM;
	while (off < end && sl_chunkmap_missing(&o->map, off, end, &s, &e)) {
		/* Step over what is on its way. */
		bool moved = false;
		uint64_t stop = e;
		sl_list_for_each (l, &fl->fetches) {
			struct fetch *x = sl_list_entry(l, struct fetch, link);
			if (x->epoch != o->epoch)
				continue;
			if (x->off <= s && s < x->off + x->len) {
				off = s = x->off + x->len;
				moved = true;
				break;
			}
			if (x->off > s)
				stop = SL_MIN(stop, x->off);
		}
		if (moved)
			continue;
		uint64_t most = SL_MAX(FETCH_MAX, 1ull << o->map.block_shift); /* whole blocks */
		stop = SL_MIN(stop, s + most);
		struct fetch *x = calloc(1, sizeof(*x));
		if (!x)
			return -ENOMEM;
		*x = (struct fetch){.work.run = fetch_run,
				    .f = f,
				    .o = sl_object_ref(o),
				    .off = s,
				    .len = stop - s,
				    .epoch = o->epoch};
		sl_list_init(&x->qlink);
		sl_list_add_tail(&fl->fetches, &x->link);
		sl_list_add_tail(list, &x->qlink);
		off = stop;
	}
	return 0;
}

static void fetch_done(struct sl_oreq *r)
{
	struct fetch *x = sl_container_of(r, struct fetch, req);
	x->err = r->err;
	sl_pool_push(x->f->workers, &x->work);
}

/* @fresh: what is remembered of its place may be wrong. */
static void fetch_ask(struct fetch *x, bool fresh)
{
	x->req = (struct sl_oreq){.op = SL_OREQ_READ,
				  .place = x->place,
				  .off = x->off,
				  .len = x->len,
				  .fresh = fresh,
				  .done = fetch_done};
	sl_origin_submit(x->f->origin, &x->req);
}

static void fetch_submit(struct fetch *x)
{
	int r = sl_object_place(x->o, &x->place);
	if (r < 0) {
		x->err = r;
		sl_pool_push(x->f->workers, &x->work);
		return;
	}
	fetch_ask(x, false);
}

/* Not to be started after all. Who began to wait for it meanwhile asks for it by himself. */
static void fetch_drop(struct fetch *x)
{
	struct sl_object *o = x->o;
	struct sl_fill *f = x->f;
	pthread_mutex_lock(&o->lock);
	sl_list_del(&x->link);
	sl_flight_trim(o);
	pthread_mutex_unlock(&o->lock);
	free(x);
	sl_fill_kick(f, o);
	sl_object_put(o);
}

void sl_fetch_start(struct sl_fill *f, struct sl_list *list, bool speculative)
{
	while (!sl_list_empty(list)) {
		struct fetch *x = sl_list_entry(list->next, struct fetch, qlink);
		sl_list_del(&x->qlink);
		if (speculative && !(x->admitted = sl_space_try(f, x->len))) {
			fetch_drop(x);
			continue;
		}
		pthread_mutex_lock(&f->lock);
		f->requests++;
		f->stats.fetches++;
		if (speculative)
			f->stats.prefetched++;
		bool now = f->in_flight == 0 || f->in_flight + x->len <= IN_FLIGHT_MAX;
		if (now)
			f->in_flight += x->len;
		else
			sl_list_add_tail(&f->queue, &x->qlink);
		pthread_mutex_unlock(&f->lock);
		if (now)
			fetch_submit(x);
	}
}

bool sl_fill_idle_enough(struct sl_fill *f)
{
	pthread_mutex_lock(&f->lock);
	bool ok = f->in_flight < SPECULATION_MAX && f->requests < 512;
	pthread_mutex_unlock(&f->lock);
	return ok;
}

/* A fetch is over: its room goes to the next in the queue. */
static void fetch_end(struct sl_fill *f, uint64_t len)
{
	struct sl_list go;
	sl_list_init(&go);
	pthread_mutex_lock(&f->lock);
	f->in_flight -= len;
	while (!sl_list_empty(&f->queue)) {
		struct fetch *x = sl_list_entry(f->queue.next, struct fetch, qlink);
		if (f->in_flight && f->in_flight + x->len > IN_FLIGHT_MAX)
			break;
		f->in_flight += x->len;
		sl_list_del(&x->qlink);
		sl_list_add_tail(&go, &x->qlink);
	}
	pthread_mutex_unlock(&f->lock);
	while (!sl_list_empty(&go)) {
		struct fetch *x = sl_list_entry(go.next, struct fetch, qlink);
		sl_list_del(&x->qlink);
		fetch_submit(x);
	}
	/* Only now: who waits for the last request must not see zero while a submit is still to come. */
	pthread_mutex_lock(&f->lock);
	if (--f->requests == 0)
		pthread_cond_broadcast(&f->cond);
	pthread_mutex_unlock(&f->lock);
}

enum landing { LANDED = 0, STALE = 1, OTHER_VERSION = 2, CUT_OFF = 3 };

static bool all_zero(const char *p, size_t n)
{
	return n == 0 || (p[0] == 0 && !memcmp(p, p + 1, n - 1));
}

/* What is zero needs no room: a hole, where the filesystem can make one, whatever was there before. */
static int write_sparse(struct sl_object *o, int fd, const char *data, uint64_t len, uint64_t off)
{
	for (uint64_t at = 0, n; at < len; at += n) {
		n = SL_MIN(4096u, len - at);
		bool zero = all_zero(data + at, (size_t)n);
		while (at + n < len && all_zero(data + at + n, (size_t)SL_MIN(4096u, len - at - n)) == zero)
			n += SL_MIN(4096u, len - at - n);
		if (zero && fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)(off + at),
				      (off_t)n) == 0)
			continue;
		int r = sl_object_write_fill(o, fd, data + at, (size_t)n, off + at);
		if (r < 0)
			return r;
	}
	return 0;
}

static int write_piece(struct fetch *x, int fd, bool sparse, uint64_t off, uint64_t len)
{
	char *data = x->req.data + (off - x->off);
	return sparse ? write_sparse(x->o, fd, data, len, off)
		      : sl_object_write_fill(x->o, fd, data, len, off);
}

/*
 * Somebody may have written to the file while neither service nor keeper was there, and nobody had all of it
 * fetched before. In an image what he has written can be told from what a placeholder is made of, and stays.
 */
static int write_around(struct fetch *x, int fd, bool sparse)
{
	uint64_t at = x->off, end = x->off + x->len;
	while (at < end) {
		uint64_t from = at;
		int64_t n = sl_zone_cold(fd, &from, end);
		if (n < 0)
			return (int)n;
		x->kept |= n == 0 || from > at;
		if (n == 0)
			return 0;
		int r = write_piece(x, fd, sparse, from, (uint64_t)n);
		if (r < 0)
			return r;
		at = from + (uint64_t)n;
	}
	return 0;
}

/* Write what arrived. The io lock is held shared: nobody resets the file meanwhile. */
static int fetch_write(struct fetch *x, bool sparse, bool keep_times)
{
	bool native = sl_store_native(x->f->store), invisible;
	_cleanup_close_ int fd = sl_object_open_fill(x->o, &invisible);
	if (fd < 0)
		return fd;
	struct stat st = {0};
	keep_times = !invisible && (keep_times || native);
	if (fstat(fd, &st) < 0)
		return -errno;
	if (native && (uint64_t)st.st_size < x->o->map.size)
		return CUT_OFF;
	/* A service that died while it took content away has left a file of another length, or old bytes. */
	if (!native && (uint64_t)st.st_size != x->o->map.size && ftruncate(fd, (off_t)x->o->map.size) < 0)
		return -errno;
	bool around = sl_object_tells_apart(x->o) && sl_looks_changed(x->o, &st);
	int r = around ? write_around(x, fd, sparse) : write_piece(x, fd, sparse, x->off, x->len);
	if (keep_times) {
		struct timespec ts[2] = {{.tv_nsec = UTIME_OMIT}, st.st_mtim};
		(void)futimens(fd, ts);
	}
	return r;
}

/* Native: it may have moved at the origin since it was asked for, and what answered is another. */
static bool same_place(struct fetch *x)
{
	_cleanup_free_ char *now = NULL;
	return !sl_store_native(x->f->store) || (sl_object_place(x->o, &now) == 0 && !strcmp(now, x->place));
}

/*
 * The origin has another version than the one that was being filled. Take that up, unless somebody did
 * already. Returns 0 when filling can go on, or what to tell who waits.
 */
static int moved_on(struct fetch *x)
{
	struct sl_object *o = x->o;
	struct sl_oreq q;
	struct sl_ending ending;
	int r = 0;
	bool changed = false, other = sl_fill_met_other(o, &x->req.attr), invisible;
	_cleanup_close_ int fd = sl_object_open_fill(o, &invisible);
	if (fd < 0)
		return fd;
	struct sl_attr a = x->req.attr;
	sl_fetch_ending(x->f, o, fd, &a, &q, &ending);
	struct sl_version v = sl_attr_version(&a);
	/* Changes that were made here, and not noted yet, must be. */
	if (x->f->cfg.settle && (r = x->f->cfg.settle(x->f->cfg.arg)) < 0) {
		sl_oreq_fini(&q);
		return r;
	}
	pthread_rwlock_wrlock(&o->io);
	pthread_mutex_lock(&o->lock);
	if (o->epoch == x->epoch && same_place(x) && !(o->rec.flags & (SL_MODIFIED | SL_LOCAL)) &&
	    !sl_version_eq(&o->rec.origin, &v)) {
		if (!S_ISREG(a.mode)) {
			r = -ESTALE;
		} else if (o->rec.flags & SL_LINKED && !sl_version_same_object(&o->rec.origin, &v)) {
			/* One of several names was replaced at the origin: the others here must not get that
			 * content. */
			r = -ESTALE;
		} else if (sl_changed_here(o, fd)) {
			r = -EEXIST;
		} else {
			/* The replay may come to that later, and find that it is so already. Where the
			 * version was not known what is not known of it has been told. */
			if (x->f->cfg.mark && (o->rec.origin.ctime.tv_sec || o->rec.origin.ctime.tv_nsec))
				o->rec.flags |= SL_UNTOLD;
			changed = sl_renew(x->f, o, fd, &a, NULL, &ending, &r);
		}
		if (r == -EEXIST) {
			/* What is missing of it here is nowhere any more. */
			o->rec.flags |= SL_WRITTEN | SL_CONFLICT;
			(void)sl_object_save(o);
			r = -ESTALE;
		}
	}
	struct sl_list lost;
	sl_list_init(&lost);
	if (r == 0 && o->flight)
		sl_list_for_each_safe (l, &o->flight->ranges) {
			struct sl_want *w = sl_list_entry(l, struct sl_want, link);
			if (++w->tries > RESTARTS_MAX)
				sl_want_take(w, &lost);
		}
	pthread_mutex_unlock(&o->lock);
	pthread_rwlock_unlock(&o->io);
	sl_oreq_fini(&q);
	sl_fill_add_stat(x->f, &x->f->stats.restarts, 1);
	if (!sl_list_empty(&lost)) {
		_cleanup_free_ char *path = sl_object_path(o);
		sl_notice("%s changes faster at the origin than it can be fetched", path ? path : "");
	}
	if (changed && other && x->f->cfg.other)
		x->f->cfg.other(x->f->cfg.arg, o);
	if (changed)
		x->f->cfg.changed(x->f->cfg.arg, o);
	sl_wants_done(x->f, &lost, -EIO);
	return r;
}

/* Put what arrived into the store, if the object is still what it was asked for. Returns a landing, or
 * -errno. */
static int land(struct fetch *x)
{
	struct sl_fill *f = x->f;
	struct sl_object *o = x->o;
	int r = 0;
	/* Who was let through to the version before must not read half of this one. */
	for (uint64_t quiet; (quiet = o->quiet) > sl_now();)
		usleep((useconds_t)SL_MIN((quiet - sl_now()) / 1000 + 1, 10000u));
	pthread_rwlock_rdlock(&o->io);
	/* Others that are just landing have seen to it, and none was let through since: the lock was not
	 * free. */
	if (sl_store_native(f->store) && o->landing++ == 0)
		sl_settle_opens(o);
	pthread_mutex_lock(&o->lock);
	struct sl_version v = sl_attr_version(&x->req.attr);
	bool stale = o->epoch != x->epoch || o->rec.flags & (SL_MODIFIED | SL_LOCAL);
	bool same = sl_version_eq(&v, &o->rec.origin);
	bool sparse = o->rec.flags & SL_SPARSE, meta = o->rec.flags & SL_META;
	/* Times that the user has set, and in a native store all, are kept over the write: one at a time, or
	 * one would keep what another has made. */
	bool alone = meta || (sl_store_native(f->store) && !sl_store_invisible(f->store));
	if (!alone)
		pthread_mutex_unlock(&o->lock);
	if (!stale && same)
		/* With fewer bytes the origin says that there is more, and does not give it. */
		r = x->req.nread == x->len ? fetch_write(x, sparse, meta) : -EIO;
	if (alone)
		pthread_mutex_unlock(&o->lock);
	if (!stale && same && r == 0) {
		pthread_mutex_lock(&o->lock);
		uint64_t before = sl_chunkmap_bytes(&o->map);
		r = sl_chunkmap_set(&o->map, x->off, x->len);
		sl_space_add(f, (int64_t)(sl_chunkmap_bytes(&o->map) - before));
		sl_commit_mark(f, o);
		pthread_mutex_unlock(&o->lock);
	}
	if (sl_store_native(f->store))
		o->landing--;
	pthread_rwlock_unlock(&o->io);
	return stale ? STALE : !same ? OTHER_VERSION : r;
}

/* It has another place than was asked for, or has one by now. */
static bool moved_since(struct fetch *x)
{
	_cleanup_free_ char *place = NULL;
	return sl_object_place(x->o, &place) == 0 && (!x->place || strcmp(place, x->place) != 0);
}

/* It ended with @r. Native: another of several names may still be there; who comes by that will say so. */
static void lose_place(struct fetch *x, int r)
{
	struct sl_object *o = x->o;
	if (!sl_store_native(o->store) || (r != -ENOENT && r != -ESTALE && r != -ENOTDIR))
		return;
	/* It had none when this was asked for, or it has another. */
	if (!x->place || moved_since(x))
		return;
	pthread_mutex_lock(&o->lock);
	bool lose = o->rec.flags & SL_LINKED && !(o->rec.flags & SL_GONE);
	pthread_mutex_unlock(&o->lock);
	if (lose)
		(void)sl_object_lose_place(o);
}

/* On a worker, with what the origin answered. */
static void fetch_run(struct sl_work *work)
{
	struct fetch *x = sl_container_of(work, struct fetch, work);
	struct sl_fill *f = x->f;
	struct sl_object *o = x->o;
	int r = x->err;
	bool again = false, wait = false;

	if (r == 0 && !x->admitted) {
		r = sl_space_admit(f, x->len);
		x->admitted = r == 0;
	}
	if (r == 0) {
		r = land(x);
		/* The filesystem needs room for more than our bytes, and gives back what was evicted only
		 * with its next commit. */
		for (int tries = 0; (r == -ENOSPC || r == -EDQUOT) && tries < ENOSPC_TRIES; tries++) {
			struct sl_fill_reclaim rc = {.to_free = x->len * 8};
			if (sl_fill_reclaim(f, sl_object_root(f->store), &rc) < 0)
				break;
			(void)sl_store_sync(f->store);
			r = land(x);
		}
		if (r == OTHER_VERSION && !x->req.fresh && sl_fill_met_other(o, &x->req.attr)) {
			sl_oreq_fini(&x->req);
			fetch_ask(x, true);
			return;
		}
		again = r == STALE || r == CUT_OFF;
		if (r == CUT_OFF || x->kept)
			sl_fill_written(f, o);
		if (r == OTHER_VERSION && sl_stranger_ask(x))
			return;
		if (r == OTHER_VERSION && (r = sl_stranger_judge(x)) == 0)
			r = moved_on(x);
		wait = r == -EAGAIN;
		r = SL_MIN(r, 0);
	} else if ((r == -ENOENT || r == -ESTALE || r == -ENOTDIR) && moved_since(x)) {
		again = true; /* it was renamed at the origin */
	} else if (r == -ENOENT || r == -ESTALE || r == -ENOTDIR) {
		_cleanup_free_ char *path = sl_object_path(o);
		sl_notice("%s is no longer at the origin (%s)", path, strerror(-r));
	}

	if (x->admitted)
		sl_space_settle(f, x->len);
	if (!again && !wait)
		lose_place(x, r);
	if (r < 0 && !again && !wait) {
		_cleanup_free_ char *path = sl_object_path(o);
		sl_debug("%s: bytes %llu to %llu cannot be had: %s", path ? path : "",
			 (unsigned long long)x->off, (unsigned long long)(x->off + x->len), strerror(-r));
	}

	struct sl_list lost;
	sl_list_init(&lost);
	pthread_mutex_lock(&o->lock);
	sl_list_del(&x->link);
	if (r < 0 && !again && !wait)
		sl_list_for_each_safe (l, &o->flight->ranges) {
			struct sl_want *w = sl_list_entry(l, struct sl_want, link);
			if (w->off < x->off + x->len && x->off < w->off + w->len)
				sl_want_take(w, &lost);
		}
	sl_flight_trim(o);
	bool complete = r == 0 && !again && sl_chunkmap_full(&o->map);
	pthread_mutex_unlock(&o->lock);
	sl_wants_done(f, &lost, sl_fill_map_error(r));
	if (wait)
		sl_stranger_wait(x);
	else
		sl_fill_kick(f, o);
	if (complete && f->cfg.complete)
		f->cfg.complete(f->cfg.arg, o);
	uint64_t len = x->len;
	if (x->err == 0)
		sl_fill_add_stat(f, &f->stats.fetched_bytes, x->req.nread);
	sl_oreq_fini(&x->req);
	sl_oreq_fini(&x->ask);
	free(x->place);
	free(x->up);
	free(x);
	sl_object_put(o);
	fetch_end(f, len);
}
