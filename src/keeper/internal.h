/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the files of the keeper share among themselves. */
#pragma once

#include <pthread.h>

#include "keeper/state.h"

/* One per process. In a keeper of one thread everything may be used; one that a service made only waits and
 * starts over. */
struct sl_keeper {
	struct sl_keeper_config cfg;
	struct sl_state *st;
	void *area;
	size_t area_size;

	/* in the service: who looks after the keeper */
	pthread_t watcher;
	int watch_stop; /* eventfd */
	bool watching;
};

/** As fork(), with the table of descriptors shared; @flags: more of clone(2)'s. A pid, or -errno. */
pid_t sl_keeper_clone(unsigned long flags);
/** Wait for the service behind @pidfd, then start over. Returns the exit status where that is no longer
 * needed. Only system calls. */
int sl_keeper_wait(struct sl_keeper *k, int pidfd);
void sl_keeper_unmap(struct sl_keeper *k);

/** In the service: a thread that makes a new keeper when the present one dies. */
int sl_keeper_watch_start(struct sl_keeper *k);
void sl_keeper_watch_stop(struct sl_keeper *k);
