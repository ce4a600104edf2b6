/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Wants: what somebody waits for. Each is one of the ranges, names or attributes of its object's flight until
 * it is done. */

#include "fill/internal.h"

void sl_fill_add_stat(struct sl_fill *f, uint64_t *counter, uint64_t n)
{
	pthread_mutex_lock(&f->lock);
	*counter += n;
	pthread_mutex_unlock(&f->lock);
}

int sl_fill_map_error(int err)
{
	switch (err) {
	case -ENOENT:
	case -ENOTDIR:
	case -ESTALE:
		return -ESTALE;
	case -EACCES:
	case -EPERM:
		return -EACCES;
	case -ENOMEM:
	case -ENOSPC:
	case -EDQUOT:
	case -ENAMETOOLONG:
		return err;
	default:
		return -EIO;
	}
}

void sl_wants_done(struct sl_fill *f, struct sl_list *wants, int err)
{
	uint64_t n = 0;
	sl_list_for_each (l, wants)
		n++;
	/* First: who is told that it is done does not find it waiting. */
	if (n)
		sl_fill_add_stat(f, &f->stats.waiting, -n);
	while (!sl_list_empty(wants)) {
		struct sl_want *w = sl_list_entry(wants->next, struct sl_want, link);
		sl_list_del(&w->link);
		w->done(w, err);
	}
}

struct sl_flight *sl_flight_get(struct sl_object *o)
{
	if (!o->flight) {
		o->flight = calloc(1, sizeof(*o->flight));
		if (!o->flight)
			return NULL;
		sl_list_init(&o->flight->ranges);
		sl_list_init(&o->flight->names);
		sl_list_init(&o->flight->xattrs);
		sl_list_init(&o->flight->fetches);
	}
	return o->flight;
}

void sl_flight_trim(struct sl_object *o)
{
	struct sl_flight *fl = o->flight;
	if (fl && sl_list_empty(&fl->ranges) && sl_list_empty(&fl->names) && sl_list_empty(&fl->xattrs) &&
	    sl_list_empty(&fl->fetches) && !fl->listing && !fl->xattring) {
		free(fl);
		o->flight = NULL;
	}
}

static bool range_here(struct sl_object *o, const struct sl_want *w)
{
	return sl_chunkmap_test(&o->map, w->off, w->len);
}

/*
 * How far to fetch for a read of [off, off+len): beyond its end when it goes on where the last ones stopped.
 * A streak doubles the window; the next one is asked for when the reader has come half through the last, so
 * that the link never runs dry. A jump ends it.
 */
static uint64_t fetch_end_of(struct sl_object *o, uint64_t off, uint64_t len)
{
	uint64_t end = off + len, upto = SL_MAX(o->ra_upto, o->ra_next);
	/* Several readers of the same place make no streak. */
	if (end <= o->ra_next && end + FETCH_MAX >= o->ra_next)
		return end;
	/* The kernel's own readahead comes from several threads, slightly out of order. */
	bool streak = off + FETCH_MAX >= o->ra_next && off <= upto + FETCH_MAX;
	if (!streak) {
		o->ra_window = off == 0 ? READAHEAD_MIN : 0;
		o->ra_next = end;
		o->ra_upto = end + o->ra_window;
		return o->ra_upto;
	}
	o->ra_next = SL_MAX(o->ra_next, end);
	if (upto > o->ra_next + o->ra_window / 2)
		return end;
	o->ra_window = o->ra_window ? (uint32_t)SL_MIN(o->ra_window * 2ull, READAHEAD_MAX) : READAHEAD_MIN;
	o->ra_upto = o->ra_next + o->ra_window;
	return o->ra_upto;
}

void sl_fill_note_read(struct sl_fill *f, struct sl_object *o, uint64_t off, uint64_t len)
{
	struct sl_list todo;
	sl_list_init(&todo);
	pthread_mutex_lock(&o->lock);
	uint64_t size = o->map.size;
	if (!sl_chunkmap_full(&o->map) && !o->evicting && off < size) {
		uint64_t from = off + SL_MIN(len, size - off),
			 to = SL_MIN(fetch_end_of(o, off, from - off), size);
		if (to > from && sl_space_roomy(f, to - from))
			(void)sl_fetch_plan(f, o, from, to, &todo);
		sl_flight_trim(o);
	}
	pthread_mutex_unlock(&o->lock);
	sl_fetch_start(f, &todo, false);
}

static int want_range(struct sl_fill *f, struct sl_want *w)
{
	struct sl_object *o = w->o;
	struct sl_list todo;
	sl_list_init(&todo);
	if (!sl_object_is_reg(o))
		return -EINVAL;
	pthread_mutex_lock(&o->lock);
	if (range_here(o, w)) {
		pthread_mutex_unlock(&o->lock);
		return 1;
	}
	if (o->map.block_shift > BLOCK_SHIFT_MAX) {
		pthread_mutex_unlock(&o->lock);
		return -EFBIG;
	}
	uint64_t size = o->map.size;
	w->len = SL_MIN(w->len, size - w->off);
	struct sl_flight *fl = sl_flight_get(o);
	int r = fl ? 0 : -ENOMEM;
	if (r == 0 && !o->evicting) {
		uint64_t end = SL_MIN(fetch_end_of(o, w->off, w->len), size);
		/* Ahead only where there is room for it: who asked for something comes first. */
		if (end > w->off + w->len && !sl_space_roomy(f, end - w->off))
			end = w->off + w->len;
		r = sl_fetch_plan(f, o, w->off, end, &todo);
	}
	if (r == 0) {
		sl_list_add_tail(&fl->ranges, &w->link);
		sl_fill_add_stat(f, &f->stats.waiting, 1);
	}
	sl_flight_trim(o);
	pthread_mutex_unlock(&o->lock);
	sl_fetch_start(f, &todo, false);
	return r;
}

/* Names and xattrs: one request brings all there is. */
static int want_whole(struct sl_fill *f, struct sl_want *w, bool names)
{
	struct sl_object *o = w->o;
	pthread_mutex_lock(&o->lock);
	bool held = names && o->evicting; /* sl_fill_release_names() goes on */
	if (!held && (names ? o->rec.state == SL_FULL : !(o->rec.flags & SL_XATTRS))) {
		pthread_mutex_unlock(&o->lock);
		return 1;
	}
	struct sl_flight *fl = sl_flight_get(o);
	if (!fl) {
		pthread_mutex_unlock(&o->lock);
		return -ENOMEM;
	}
	bool *busy = names ? &fl->listing : &fl->xattring;
	bool start = !*busy && !held;
	*busy |= start;
	sl_list_add_tail(names ? &fl->names : &fl->xattrs, &w->link);
	pthread_mutex_unlock(&o->lock);
	sl_fill_add_stat(f, &f->stats.waiting, 1);
	if (start)
		return names ? sl_populate_start(f, o) : sl_xattrs_start(f, o);
	return 0;
}

int sl_fill_want(struct sl_fill *f, enum sl_want_kind kind, struct sl_want *w)
{
	sl_list_init(&w->link);
	w->tries = 0;
	if (w->o->damaged)
		return -EIO;
	if (kind == SL_WANT_RANGE)
		return want_range(f, w);
	if (kind == SL_WANT_NAMES && !sl_object_is_dir(w->o))
		return -ENOTDIR;
	return want_whole(f, w, kind == SL_WANT_NAMES);
}

bool sl_fill_cancel(struct sl_fill *f, struct sl_want *w)
{
	struct sl_object *o = w->o;
	pthread_mutex_lock(&o->lock);
	/* One that is being finished is out of the flight, and its link is no longer this lock's. */
	bool was = w->tries != UINT32_MAX && !sl_list_empty(&w->link);
	if (was) {
		sl_list_del(&w->link);
		sl_flight_trim(o);
	}
	pthread_mutex_unlock(&o->lock);
	if (was)
		sl_fill_add_stat(f, &f->stats.waiting, (uint64_t)-1);
	return was;
}

struct waiting {
	struct sl_want w;
	pthread_mutex_t lock;
	pthread_cond_t cond;
	bool done;
	int err;
};

static void wait_done(struct sl_want *w, int err)
{
	struct waiting *x = sl_container_of(w, struct waiting, w);
	pthread_mutex_lock(&x->lock);
	x->err = err;
	x->done = true;
	pthread_cond_signal(&x->cond);
	pthread_mutex_unlock(&x->lock);
}

int sl_fill_wait(struct sl_fill *f, enum sl_want_kind kind, struct sl_object *o, uint64_t off, uint64_t len)
{
	struct waiting x = {.w = {.o = o, .off = off, .len = len, .done = wait_done}};
	pthread_mutex_init(&x.lock, NULL);
	pthread_cond_init(&x.cond, NULL);
	int r = sl_fill_want(f, kind, &x.w);
	if (r == 0) {
		pthread_mutex_lock(&x.lock);
		while (!x.done)
			pthread_cond_wait(&x.cond, &x.lock);
		pthread_mutex_unlock(&x.lock);
		r = x.err;
	}
	pthread_cond_destroy(&x.cond);
	pthread_mutex_destroy(&x.lock);
	return r < 0 ? r : 0;
}

void sl_want_take(struct sl_want *w, struct sl_list *done)
{
	sl_list_del(&w->link);
	w->tries = UINT32_MAX;
	sl_list_add_tail(done, &w->link);
}

void sl_fill_kick(struct sl_fill *f, struct sl_object *o)
{
	struct sl_list done, lost, todo;
	int r = 0;
	sl_list_init(&done);
	sl_list_init(&lost);
	sl_list_init(&todo);
	pthread_mutex_lock(&o->lock);
	if (o->flight && !o->evicting) {
		sl_list_for_each_safe (l, &o->flight->ranges) {
			struct sl_want *w = sl_list_entry(l, struct sl_want, link);
			if (range_here(o, w)) {
				sl_want_take(w, &done);
				continue;
			}
			uint64_t end = w->off + SL_MIN(w->len, o->map.size - w->off);
			r = sl_fetch_plan(f, o, w->off, end, &todo);
			if (r < 0)
				sl_want_take(w, &lost);
		}
		sl_flight_trim(o);
	}
	pthread_mutex_unlock(&o->lock);
	sl_fetch_start(f, &todo, false);
	sl_wants_done(f, &done, 0);
	sl_wants_done(f, &lost, r);
}

int sl_fill_complete(struct sl_fill *f, struct sl_object *o)
{
	int r = 0;
	pthread_mutex_lock(&o->lock);
	if (!(o->rec.flags & (SL_MODIFIED | SL_LOCAL)) && !sl_chunkmap_full(&o->map)) {
		uint64_t had = sl_chunkmap_bytes(&o->map);
		r = sl_chunkmap_set(&o->map, 0, o->map.size);
		if (r == 0) {
			sl_space_add(f, (int64_t)(sl_chunkmap_bytes(&o->map) - had));
			sl_commit_mark(f, o);
		}
	}
	pthread_mutex_unlock(&o->lock);
	return r;
}
