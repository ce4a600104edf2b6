/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The fill as a whole. */
#include "fill/internal.h"

int sl_fill_new(const struct sl_fill_config *cfg, struct sl_fill **ret)
{
	struct sl_fill *f = calloc(1, sizeof(*f));
	if (!f)
		return -ENOMEM;
	f->cfg = *cfg;
	f->store = cfg->store;
	f->origin = cfg->origin;
	pthread_mutex_init(&f->lock, NULL);
	pthread_mutex_init(&f->commit_lock, NULL);
	pthread_mutex_init(&f->space_lock, NULL);
	pthread_mutex_init(&f->count_lock, NULL);
	pthread_condattr_t ca;
	pthread_condattr_init(&ca);
	pthread_condattr_setclock(&ca, CLOCK_MONOTONIC);
	pthread_cond_init(&f->cond, &ca);
	pthread_cond_init(&f->commit_cond, &ca);
	pthread_cond_init(&f->names_cond, &ca);
	pthread_condattr_destroy(&ca);
	sl_list_init(&f->queue);
	sl_list_init(&f->strays);
	sl_list_init(&f->dirty);
	sl_list_init(&f->held);
	int r = sl_pool_new(WORKERS, "fill", &f->workers);
	if (r == 0)
		r = sl_commit_init(f);
	if (r < 0) {
		sl_pool_free(f->workers);
		free(f);
		return r;
	}
	*ret = f;
	return 0;
}

void sl_fill_free(struct sl_fill *f)
{
	if (!f)
		return;
	pthread_mutex_lock(&f->lock);
	while (f->requests)
		pthread_cond_wait(&f->cond, &f->lock);
	pthread_mutex_unlock(&f->lock);
	sl_pool_free(f->workers);
	sl_commit_fini(f);
	sl_stranger_fini(f);
	pthread_cond_destroy(&f->cond);
	pthread_cond_destroy(&f->commit_cond);
	pthread_cond_destroy(&f->names_cond);
	pthread_mutex_destroy(&f->lock);
	pthread_mutex_destroy(&f->commit_lock);
	pthread_mutex_destroy(&f->space_lock);
	pthread_mutex_destroy(&f->count_lock);
	free(f);
}

void sl_fill_get_stats(struct sl_fill *f, struct sl_fill_stats *st)
{
	pthread_mutex_lock(&f->lock);
	*st = f->stats;
	st->requests = f->requests;
	pthread_mutex_unlock(&f->lock);
}
