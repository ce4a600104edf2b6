/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What waits to be done, and the thread that does it. */
#include "replay/replay.h"

#include "base/time.h"
#include "replay/internal.h"

#define QUEUE_MAX  (256u << 10)
#define BYTES_MAX  (64u << 20)
#define BUSY_NS	   (250 * SL_NS_PER_MS)
#define STEP_EVERY 1024 /* events, if there are so many */
#define PAUSE_NS   (5 * SL_NS_PER_SEC)

/* ---- the queue ---- */

static void item_free(struct item *i)
{
	sl_object_put(i->dir);
	free(i);
}

static size_t text_size(const char *s)
{
	return s ? strlen(s) + 1 : 0;
}

static const char *text_copy(char **at, const char *s)
{
	size_t n = text_size(s);
	char *p = n ? memcpy(*at, s, n) : NULL;
	*at += n;
	return p;
}

static struct item *item_new(const struct sl_oevent *e)
{
	size_t n = sizeof(struct item) + text_size(e->place) + text_size(e->newplace) +
		   text_size(e->state.target) + text_size(e->newstate.target);
	struct item *i = malloc(n);
	if (!i)
		return NULL;
	char *at = (char *)(i + 1);
	*i = (struct item){.e = *e, .bytes = n};
	i->e.place = text_copy(&at, e->place);
	i->e.newplace = text_copy(&at, e->newplace);
	i->e.state.target = text_copy(&at, e->state.target);
	i->e.newstate.target = text_copy(&at, e->newstate.target);
	return i;
}

/* With the lock held. What is compared need not be told. */
static void drop_queue(struct sl_replay *p)
{
	sl_list_for_each_safe (l, &p->queue) {
		struct item *i = sl_list_entry(l, struct item, link);
		sl_list_del(&i->link);
		item_free(i);
	}
	p->nqueue = p->bytes = 0;
	p->lost = true;
}

void sl_replay_event(struct sl_replay *p, const struct sl_oevent *e)
{
	struct item *i = e->lost ? NULL : item_new(e);
	size_t max = p->cfg.queue ? p->cfg.queue : QUEUE_MAX;
	pthread_mutex_lock(&p->lock);
	p->stats.events += !e->lost && !e->ignored;
	p->heard = sl_now();
	if (e->lost && !p->stop) {
		p->stats.lost++;
		drop_queue(p);
	} else if (p->stop) {
		if (i)
			item_free(i);
	} else if (!i || p->nqueue >= max || p->bytes + i->bytes > BYTES_MAX) {
		if (i)
			item_free(i);
		p->stats.overflows++;
		drop_queue(p);
	} else {
		sl_list_add_tail(&p->queue, &i->link);
		p->nqueue++;
		p->bytes += i->bytes;
	}
	pthread_cond_broadcast(&p->cond);
	pthread_mutex_unlock(&p->lock);
}

void sl_replay_look(struct sl_replay *p, struct sl_object *o)
{
	_cleanup_object_ struct sl_object *dir = sl_object_parent(o);
	if (dir)
		sl_replay_look_into(p, dir);
}

void sl_replay_look_into(struct sl_replay *p, struct sl_object *dir)
{
	struct item *i = calloc(1, sizeof(*i));
	pthread_mutex_lock(&p->lock);
	if (!i) {
		p->lost = true;
	} else if (!p->stop) {
		*i = (struct item){.dir = sl_object_ref(dir), .look = true};
		sl_list_add_tail(&p->queue, &i->link);
		p->nqueue++;
		i = NULL;
	}
	pthread_cond_broadcast(&p->cond);
	pthread_mutex_unlock(&p->lock);
	free(i);
}

void replay_count(struct sl_replay *p, uint64_t *counter, uint64_t n)
{
	pthread_mutex_lock(&p->lock);
	*counter += n;
	pthread_mutex_unlock(&p->lock);
}

/* Takes @i over. */
static void run_item(struct sl_replay *p, struct item *i)
{
	if (i->look) {
		replay_unsure(p, i->dir);
	} else if (i->dir) {
		/* No event: names changed it, and they had theirs. */
		const struct sl_attr *a = &i->e.state.attr;
		/* Another one may have taken its place since it was asked for. */
		if (replay_is(i->dir, a->ino, a->generation) && !replay_is_later(i->dir, &i->e.state))
			(void)p->cfg.acts.update(p->cfg.acts.arg, NULL, NULL, i->dir, &i->e.state, 0,
						 SL_UPDATE_KEEP);
	} else if (i->e.ignored) {
		/* Usually the directory is gone, and so it is here. */
		_cleanup_object_ struct sl_object *dir = NULL;
		if (p->cfg.find(p->cfg.store, i->e.place, &dir) == 0 && replay_populated(dir))
			replay_unsure(p, dir);
	} else {
		event_do(p, &i->e);
	}
	item_free(i);
}

/* ---- the thread ---- */

static struct item *take(struct sl_replay *p) /* lock held */
{
	if (sl_list_empty(&p->queue))
		return NULL;
	struct item *i = sl_list_entry(p->queue.next, struct item, link);
	sl_list_del(&i->link);
	p->nqueue--;
	p->bytes -= i->bytes;
	return i;
}

/* With the lock held: sleep until there is something to do. */
static void rest(struct sl_replay *p)
{
	bool work = !sl_list_empty(&p->touched) || !sl_list_empty(&p->unlisted);
	if (p->cfg.acts.rest || work) {
		p->resting = false;
		pthread_mutex_unlock(&p->lock);
		if (p->cfg.acts.rest)
			p->cfg.acts.rest(p->cfg.acts.arg);
		touch_ask(p);
		unlisted_again(p);
		pthread_mutex_lock(&p->lock);
	}
	p->resting = true;
	pthread_cond_broadcast(&p->cond);
	if (p->stop || (!p->paused && (!sl_list_empty(&p->queue) || p->lost)))
		return;
	uint64_t due = unsure_due(p);
	if ((p->nbusy || due || !sl_list_empty(&p->unlisted)) && !p->paused) {
		uint64_t busy = sl_now() + BUSY_NS;
		struct timespec ts = sl_ns_to_timespec(due ? SL_MIN(due, busy) : busy);
		if (pthread_cond_timedwait(&p->cond, &p->lock, &ts) == ETIMEDOUT) {
			p->resting = false;
			pthread_mutex_unlock(&p->lock);
			busy_retry(p);
			pthread_mutex_lock(&p->lock);
		}
	} else {
		pthread_cond_wait(&p->cond, &p->lock);
	}
}

static void *replay_thread(void *arg)
{
	struct sl_replay *p = arg;
	unsigned row = 0; /* of events, since the last step of a comparison */
	pthread_mutex_lock(&p->lock);
	while (!p->stop) {
		bool lost = p->lost && !p->paused;
		bool turn = p->compare && ++row % STEP_EVERY == 0;
		struct item *i = p->paused || lost || turn ? NULL : take(p);
		if (lost) { /* all is compared */
			p->lost = false;
			p->stats.comparisons++;
			p->stats.comparing = true;
		}
		p->resting = false;
		pthread_mutex_unlock(&p->lock);
		bool more = false;
		if (!i && !lost && !p->paused)
			unsure_look(p);
		if (lost && compare_begin(p) < 0) {
			usleep(10000);
			pthread_mutex_lock(&p->lock);
			p->lost = true;
			pthread_mutex_unlock(&p->lock);
		}
		if (i) {
			run_item(p, i);
			sl_fill_retry(p->cfg.fill);
		} else if (p->compare && !lost && !p->paused) {
			more = compare_step(p);
			sl_fill_retry(p->cfg.fill);
			if (!more)
				compare_end(p);
		}
		if (p->ntouched > TOUCH_MAX)
			touch_ask(p);
		pthread_mutex_lock(&p->lock);
		if (!p->compare)
			p->stats.comparing = false;
		if (!i && !more && !lost)
			rest(p);
	}
	pthread_mutex_unlock(&p->lock);
	if (p->cfg.acts.rest)
		p->cfg.acts.rest(p->cfg.acts.arg);
	return NULL;
}

int sl_replay_new(const struct sl_replay_config *cfg, struct sl_replay **ret)
{
	struct sl_replay *p = calloc(1, sizeof(*p));
	if (!p)
		return -ENOMEM;
	p->cfg = *cfg;
	p->lost = cfg->compare;
	sl_list_init(&p->queue);
	sl_list_init(&p->touched);
	sl_list_init(&p->busy);
	sl_list_init(&p->unlisted);
	sl_list_init(&p->unsure);
	sl_list_init(&p->strays);
	pthread_mutex_init(&p->lock, NULL);
	pthread_condattr_t ca;
	pthread_condattr_init(&ca);
	pthread_condattr_setclock(&ca, CLOCK_MONOTONIC);
	pthread_cond_init(&p->cond, &ca);
	pthread_condattr_destroy(&ca);
	int r = -pthread_create(&p->thread, NULL, replay_thread, p);
	if (r < 0) {
		pthread_mutex_destroy(&p->lock);
		pthread_cond_destroy(&p->cond);
		free(p);
		return r;
	}
	pthread_setname_np(p->thread, "replay");
	*ret = p;
	return 0;
}

void sl_replay_stop(struct sl_replay *p)
{
	pthread_mutex_lock(&p->lock);
	p->stop = true;
	pthread_cond_broadcast(&p->cond);
	pthread_mutex_unlock(&p->lock);
	pthread_join(p->thread, NULL);
	pthread_mutex_lock(&p->lock);
	while (p->asked)
		pthread_cond_wait(&p->cond, &p->lock);
	drop_queue(p);
	pthread_mutex_unlock(&p->lock);
	if (p->compare)
		compare_end(p);
	unsure_free(p);
	touch_free(p);
	busy_free(p);
	unlisted_free(p);
	for (unsigned i = 0; i < CARRIED_MAX; i++)
		sl_object_put(p->carried[i]);
	free(p->leaving);
	free(p->swapped[0]);
	free(p->swapped[1]);
}

void sl_replay_free(struct sl_replay *p)
{
	if (!p)
		return;
	drop_queue(p);
	pthread_mutex_destroy(&p->lock);
	pthread_cond_destroy(&p->cond);
	free(p);
}

bool sl_replay_pause(struct sl_replay *p)
{
	struct timespec ts = sl_ns_to_timespec(sl_now() + PAUSE_NS);
	pthread_mutex_lock(&p->lock);
	p->paused = true;
	pthread_cond_broadcast(&p->cond);
	int r = 0;
	p->resting = false;
	while (!p->resting && r == 0)
		r = pthread_cond_timedwait(&p->cond, &p->lock, &ts);
	bool ok = p->resting;
	pthread_mutex_unlock(&p->lock);
	return ok;
}

void sl_replay_resume(struct sl_replay *p)
{
	pthread_mutex_lock(&p->lock);
	p->paused = false;
	pthread_cond_broadcast(&p->cond);
	pthread_mutex_unlock(&p->lock);
}

void sl_replay_get_stats(struct sl_replay *p, struct sl_replay_stats *st)
{
	pthread_mutex_lock(&p->lock);
	*st = p->stats;
	st->queued = p->nqueue + p->nunsure;
	st->comparing |= p->lost; /* it is about to begin */
	pthread_mutex_unlock(&p->lock);
}
