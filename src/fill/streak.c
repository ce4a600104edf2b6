/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Streaks. Who reads the small files of a directory one after the other (tar, grep -r, git status), or enters
 * its subdirectories one after the other (find), will want the next ones as well: they are fetched ahead,
 * more of them the longer it goes on, so that N files cost their bytes and a few round trips, not N round
 * trips. Walkers come in the order of inode numbers, which is the order in which the placeholders were made,
 * or in some other: a growing window serves both.
 */
#include <dirent.h>

#include "fill/internal.h"
#include "store/walk.h"

#define STREAK_BEGIN   3		   /* this many in a row */
#define STREAK_GAP_NS  (3 * SL_NS_PER_SEC) /* a longer pause ends it */
#define WINDOW_FIRST   16u
#define WINDOW_MAX     512u
#define SMALL_FILE     (1ull << 20) /* larger ones have readahead of their own */
#define CANDIDATES_MAX 65536

/* Under the directory's lock. One for files, one for subdirectories. */
struct sl_streak {
	uint64_t last;	  /* when */
	uint64_t seen[4]; /* inode numbers of the last few: the same one again does not count */
	unsigned count;
	unsigned window;
	uint64_t upto; /* the inode number where the last look stopped */
	bool running;  /* a worker is looking ahead */
	bool done; /* the last look came to the end, or found everything here: look again only when something
		      is not */
	unsigned left; /* fetched ahead, and not opened yet, as far as we know */
};

struct look {
	struct sl_work work;
	struct sl_fill *f;
	struct sl_object *dir;
	bool dirs;
	uint64_t from; /* inode number of the last one that was used */
	unsigned window;
};

static int by_ino(const void *a, const void *b)
{
	const struct sl_name *x = a, *y = b;
	return x->ino < y->ino ? -1 : x->ino > y->ino;
}

static void ignore_done(struct sl_want *w, int err)
{
	(void)err;
	sl_object_put(w->o);
	free(w);
}

/* Begin to fetch one sibling. Returns true if that asks the origin for something. */
static bool fetch_ahead(struct sl_fill *f, struct sl_object *dir, const char *name, bool dirs)
{
	_cleanup_object_ struct sl_object *o = NULL;
	if (sl_object_lookup(dir, name, &o) < 0 || (dirs ? !sl_object_is_dir(o) : !sl_object_is_reg(o)))
		return false;
	if (!dirs) {
		struct sl_list todo;
		sl_list_init(&todo);
		pthread_mutex_lock(&o->lock);
		if (!sl_chunkmap_full(&o->map) && o->map.have == 0 && o->map.size <= SMALL_FILE &&
		    !o->evicting && !o->flight)
			(void)sl_fetch_plan(f, o, 0, o->map.size, &todo);
		sl_flight_trim(o);
		pthread_mutex_unlock(&o->lock);
		bool some = !sl_list_empty(&todo);
		sl_fetch_start(f, &todo, true);
		return some;
	}
	struct sl_want *w = calloc(1, sizeof(*w));
	if (!w)
		return false;
	w->o = sl_object_ref(o);
	w->done = ignore_done;
	int r = sl_fill_want(f, SL_WANT_NAMES, w);
	if (r != 0)
		ignore_done(w, 0);
	else
		sl_fill_add_stat(f, &f->stats.prefetched, 1);
	return r == 0;
}

static void look_run(struct sl_work *work)
{
	struct look *l = sl_container_of(work, struct look, work);
	struct sl_object *dir = l->dir;
	struct sl_name *v = NULL;
	size_t n = 0;
	uint64_t upto = l->from;
	unsigned asked = 0;
	bool end = false;
	if (sl_names_read(dir, &v, &n) == 0 && n <= CANDIDATES_MAX) {
		if (n)
			qsort(v, n, sizeof(*v), by_ino);
		/* After the last one, and round to what lies before it: inode numbers wrap. */
		size_t first = 0, k = 0;
		while (first < n && v[first].ino <= l->from)
			first++;
		for (unsigned left = l->window; k < n && left && sl_fill_idle_enough(l->f); k++) {
			const struct sl_name *e = &v[(first + k) % n];
			if (e->type != (l->dirs ? DT_DIR : DT_REG) && e->type != DT_UNKNOWN)
				continue;
			if (fetch_ahead(l->f, dir, e->name, l->dirs)) {
				asked++;
				left--;
			}
			upto = e->ino;
		}
		end = k == n;
	}
	sl_names_free(v, n);
	pthread_mutex_lock(&dir->lock);
	struct sl_streak *s = dir->streak[l->dirs];
	s->upto = upto;
	s->left += asked;
	s->done = end || !asked;
	s->running = false;
	pthread_mutex_unlock(&dir->lock);
	struct sl_fill *f = l->f;
	free(l);
	sl_object_put(dir);
	pthread_mutex_lock(&f->lock);
	if (--f->requests == 0)
		pthread_cond_broadcast(&f->cond);
	pthread_mutex_unlock(&f->lock);
}

/* The parent is being walked: whoever enters is likely to go on in here. */
static bool parent_in_streak(struct sl_object *dir)
{
	struct sl_object *p = sl_object_parent(dir);
	if (!p)
		return false;
	pthread_mutex_lock(&p->lock);
	struct sl_streak *s = p->streak[1];
	bool yes = s && s->count >= STREAK_BEGIN && sl_now() - s->last < STREAK_GAP_NS;
	pthread_mutex_unlock(&p->lock);
	sl_object_put(p);
	return yes;
}

void sl_fill_note_open(struct sl_fill *f, struct sl_object *o)
{
	bool dirs = sl_object_is_dir(o);
	if (!dirs && (!sl_object_is_reg(o)))
		return;
	pthread_mutex_lock(&o->lock);
	bool small = dirs || o->map.size <= SMALL_FILE;
	bool here = dirs ? o->rec.state == SL_FULL : sl_chunkmap_full(&o->map);
	pthread_mutex_unlock(&o->lock);
	if (!small)
		return;
	_cleanup_object_ struct sl_object *dir = sl_object_parent(o);
	/* What is here counts only where a streak is under way. */
	if (!dir || (here && !__atomic_load_n(&dir->streak[dirs], __ATOMIC_ACQUIRE)))
		return;

	uint64_t now = sl_now(), ino = sl_object_ino(o);
	struct look *l = NULL;
	bool inherited = !__atomic_load_n(&dir->streak[dirs], __ATOMIC_ACQUIRE) && parent_in_streak(dir);
	pthread_mutex_lock(&dir->lock);
	struct sl_streak *s = dir->streak[dirs];
	if (!s) {
		s = calloc(1, sizeof(*s));
		if (s && inherited)
			*s = (struct sl_streak){.count = STREAK_BEGIN - 1, .last = now};
		__atomic_store_n(&dir->streak[dirs], s, __ATOMIC_RELEASE);
	}
	if (s) {
		if (now - s->last > STREAK_GAP_NS)
			*s = (struct sl_streak){.running = s->running};
		s->last = now;
		bool again = false;
		for (size_t i = 0; i < SL_ARRAY_SIZE(s->seen); i++)
			again |= s->seen[i] == ino;
		if (!again)
			s->seen[s->count++ % SL_ARRAY_SIZE(s->seen)] = ino;
		if (here && s->left && !again)
			s->left--;
		/* Look further when half of what was fetched ahead is used up, or the reader is elsewhere. */
		bool near = !here || (!s->done && s->left <= s->window / 2);
		if (!again && s->count >= STREAK_BEGIN && !s->running && near &&
		    (l = calloc(1, sizeof(*l)))) {
			s->window = s->window ? SL_MIN(s->window * 2, WINDOW_MAX) : WINDOW_FIRST;
			s->running = true;
			/* Go on where it was left, unless the reader is elsewhere. */
			uint64_t from = !here || s->upto < ino ? ino : s->upto;
			*l = (struct look){.work.run = look_run,
					   .f = f,
					   .dir = sl_object_ref(dir),
					   .dirs = dirs,
					   .from = from,
					   .window = s->window};
		}
	}
	pthread_mutex_unlock(&dir->lock);
	if (l) {
		pthread_mutex_lock(&f->lock);
		f->requests++;
		pthread_mutex_unlock(&f->lock);
		sl_pool_push(f->workers, &l->work);
	}
}
