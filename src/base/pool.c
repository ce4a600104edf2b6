/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "base/pool.h"

#include <pthread.h>
#include <stdio.h>

struct sl_pool {
	pthread_mutex_t lock; /* protects all below */
	pthread_cond_t cond;
	struct sl_list queue;
	unsigned busy; /* threads that run work now: it may still queue more */
	bool stop;
	unsigned n;
	pthread_t threads[];
};

static void *pool_thread(void *arg)
{
	struct sl_pool *p = arg;
	pthread_mutex_lock(&p->lock);
	for (;;) {
		while (sl_list_empty(&p->queue) && !(p->stop && p->busy == 0))
			pthread_cond_wait(&p->cond, &p->lock);
		if (sl_list_empty(&p->queue))
			break;
		struct sl_work *w = sl_list_entry(p->queue.next, struct sl_work, link);
		sl_list_del(&w->link);
		p->busy++;
		pthread_mutex_unlock(&p->lock);
		w->run(w);
		pthread_mutex_lock(&p->lock);
		p->busy--;
		if (p->stop)
			pthread_cond_broadcast(&p->cond);
	}
	pthread_mutex_unlock(&p->lock);
	return NULL;
}

int sl_pool_new(unsigned threads, const char *name, struct sl_pool **ret)
{
	struct sl_pool *p = calloc(1, sizeof(*p) + threads * sizeof(p->threads[0]));
	if (!p)
		return -ENOMEM;
	pthread_mutex_init(&p->lock, NULL);
	pthread_cond_init(&p->cond, NULL);
	sl_list_init(&p->queue);
	for (p->n = 0; p->n < threads; p->n++) {
		int r = pthread_create(&p->threads[p->n], NULL, pool_thread, p);
		if (r != 0) {
			sl_pool_free(p);
			return -r;
		}
		char tn[16];
		snprintf(tn, sizeof(tn), "%.11s-%u", name, p->n);
		pthread_setname_np(p->threads[p->n], tn);
	}
	*ret = p;
	return 0;
}

void sl_pool_push(struct sl_pool *p, struct sl_work *w)
{
	pthread_mutex_lock(&p->lock);
	sl_list_add_tail(&p->queue, &w->link);
	pthread_cond_signal(&p->cond);
	pthread_mutex_unlock(&p->lock);
}

void sl_pool_free(struct sl_pool *p)
{
	if (!p)
		return;
	pthread_mutex_lock(&p->lock);
	p->stop = true;
	pthread_cond_broadcast(&p->cond);
	pthread_mutex_unlock(&p->lock);
	for (unsigned i = 0; i < p->n; i++)
		pthread_join(p->threads[i], NULL);
	pthread_cond_destroy(&p->cond);
	pthread_mutex_destroy(&p->lock);
	free(p);
}
