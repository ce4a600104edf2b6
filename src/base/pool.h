/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A fixed number of threads that run queued work in order of arrival. Work is embedded in what it works on,
 * so queueing never fails. A work item may free itself and may queue further work; it should not wait for
 * other work of the same pool.
 */
#pragma once

#include "base/list.h"

struct sl_pool;

struct sl_work {
	struct sl_list link;
	void (*run)(struct sl_work *w);
};

int sl_pool_new(unsigned threads, const char *name, struct sl_pool **ret);
void sl_pool_push(struct sl_pool *p, struct sl_work *w);
/** Run everything that is queued, including what that queues, then end the threads. NULL is fine. */
void sl_pool_free(struct sl_pool *p);
