/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the files of the fill share among themselves. */
#pragma once

#include <pthread.h>
#include <stdatomic.h>

#include "base/pool.h"
#include "base/time.h"
#include "fill/fill.h"

#define FETCH_MAX	(1ull << 20) /* bytes of one request to the origin */
#define READAHEAD_MIN	(128ull << 10)
#define READAHEAD_MAX	(8ull << 20)
#define IN_FLIGHT_MAX	(64ull << 20) /* bytes asked for at once; wants beyond wait in a queue */
#define SPECULATION_MAX (32ull << 20) /* what was not asked for stops here */
#define BLOCK_SHIFT_MAX 23	      /* files beyond 128 TiB are not filled */
#define ENOSPC_TRIES	4
#define RESTARTS_MAX	16 /* of a want whose file keeps changing */
#define WORKERS		4

struct sl_fill {
	struct sl_fill_config cfg;
	struct sl_store *store;
	struct sl_origin *origin;
	struct sl_pool *workers;

	pthread_mutex_t lock; /* protects all below; taken after an object's lock */
	pthread_cond_t cond;  /* no request is left */
	pthread_cond_t commit_cond;
	uint64_t in_flight;   /* bytes */
	unsigned requests;    /* to the origin, under way or queued */
	struct sl_list queue; /* of struct fetch: demanded, but too much is in flight */
	struct sl_list
	    strays; /* of struct stray: files that are elsewhere at the origin, and are waited for */
	struct sl_fill_stats stats;

	struct sl_list dirty; /* of objects by dirty_link: the map in memory says more than the one on disk */
	size_t ndirty;
	struct sl_list held; /* the same, but they are still arriving, and wait until nobody has them open */
	size_t nheld;
	bool stop;
	uint64_t names_came, names_turn; /* who wants sl_fill_lock_names(), by number, and who has it */
	pthread_cond_t names_cond;
	pthread_t committer;
	bool committing;
	pthread_mutex_t commit_lock; /* one commit at a time */

	/* space */
	pthread_mutex_t space_lock;
	uint64_t space_checked; /* when */
	uint64_t space_free;	/* bytes on the filesystem at that time, less what was admitted since */
	uint64_t admitted;	/* bytes that may come in, and are not counted in content yet */
	uint64_t content;	/* bytes of content in the store: exact with a limit, else 0 */
	atomic_bool content_known;
	pthread_mutex_t count_lock; /* counting once */
};

/* What is on its way for one object, under its lock; exists while any list is not empty. */
struct sl_flight {
	struct sl_list ranges, names, xattrs; /* of struct sl_want */
	struct sl_list fetches;		      /* of struct fetch */
	bool listing, xattring;
};

/* A request for a range. */
struct fetch {
	struct sl_work work;
	struct sl_list link;  /* in the flight */
	struct sl_list qlink; /* in the queue */
	struct sl_fill *f;
	struct sl_object *o;
	struct sl_oreq req;
	uint64_t off, len;
	uint32_t epoch;
	bool admitted; /* room was made for it already */
	bool kept;     /* some of it was not written, because the user had */
	char *place;
	int err;
	struct sl_oreq ask; /* of the directory in which it should be, once up is set */
	char *up;
};

struct sl_flight *sl_flight_get(struct sl_object *o); /* lock held; NULL without memory */
void sl_flight_trim(struct sl_object *o);	      /* lock held: free it if nothing is on its way */
void sl_wants_done(struct sl_fill *f, struct sl_list *wants, int err);
void sl_fill_add_stat(struct sl_fill *f, uint64_t *counter, uint64_t n);
/** Another version than that of the record has answered @x. True: it is of another object, and the work comes
 * again when it is known whether that has taken its place. */
bool sl_stranger_ask(struct fetch *x);
/** It did: 0. -EAGAIN: it did not, see sl_stranger_wait(). -ESTALE: it has not for too long. Or -errno. */
int sl_stranger_judge(struct fetch *x);
/** Who waits for the object of @x, which is over, waits for sl_fill_retry(). */
void sl_stranger_wait(struct fetch *x);
void sl_stranger_fini(struct sl_fill *f);
/** What the reader is told for an error of the origin. */
int sl_fill_map_error(int err);

/** Fetch [off, end) of @o as far as it is missing and not on its way. Lock held on entry and exit. @list gets
 * what is to be started. */
int sl_fetch_plan(struct sl_fill *f, struct sl_object *o, uint64_t off, uint64_t end, struct sl_list *list);
/** Start what was planned. No lock held. */
void sl_fetch_start(struct sl_fill *f, struct sl_list *list, bool speculative);
/** Whether there is room for speculation. */
bool sl_fill_idle_enough(struct sl_fill *f);
/** What answers at the place of @o, @a, is another object than it. */
bool sl_fill_met_other(struct sl_object *o, const struct sl_attr *a);
int sl_populate_start(struct sl_fill *f,
		      struct sl_object *dir); /* flight->listing was just set; no lock held */
int sl_xattrs_start(struct sl_fill *f, struct sl_object *o);

/** Take @w out of its flight, and to the end of @done (lock held); sl_fill_cancel() no longer finds it. */
void sl_want_take(struct sl_want *w, struct sl_list *done);

/**
 * Before sl_renew(), without a lock: fetch what sl_object_ending() asks for. *@a becomes what the origin has
 * by then. Without an answer, or if that changes too fast, there is no ending. The caller ends @q, which that
 * is in.
 */
void sl_fetch_ending(struct sl_fill *f, struct sl_object *o, int fd, struct sl_attr *a, struct sl_oreq *q,
		     struct sl_ending *ending);
/** Forget what is here for the version @a. Locks held. True if changed() must be called afterwards. */
bool sl_renew(struct sl_fill *f, struct sl_object *o, int fd, const struct sl_attr *a,
	      const struct timespec *atime, const struct sl_ending *ending, int *r);

/* written.c */
/** The file does not have the time that its version has. */
static inline bool sl_looks_changed(const struct sl_object *o, const struct stat *st)
{
	return st->st_mtim.tv_sec != o->rec.origin.mtime.tv_sec ||
	       st->st_mtim.tv_nsec != o->rec.origin.mtime.tv_nsec;
}
/** The origin moved on: the file here, open as @fd, may not follow. Locks held. */
bool sl_changed_here(struct sl_object *o, int fd);
/** Before something is written to @o: see there. The io lock is held shared, and given up meanwhile. */
void sl_settle_opens(struct sl_object *o);
/** Native: all of @o is here or nobody's, and was changed here (lock held). */
void sl_own(struct sl_fill *f, struct sl_object *o);

/** The object's map grew in memory (lock held): have it committed. */
void sl_commit_mark(struct sl_fill *f, struct sl_object *o);
int sl_commit_init(struct sl_fill *f);
void sl_commit_fini(struct sl_fill *f);

/** May @bytes more come into the store? Evicts if that helps. 0 or -ENOSPC. Blocks. No lock held. */
int sl_space_admit(struct sl_fill *f, uint64_t bytes);
/** As sl_space_admit(), for what nobody has asked for yet: takes what is free, and evicts nothing. */
bool sl_space_try(struct sl_fill *f, uint64_t bytes);
/** Would sl_space_try() succeed? */
bool sl_space_roomy(struct sl_fill *f, uint64_t bytes);
/** What was admitted has come, and was counted by sl_space_add(), or will not. */
void sl_space_settle(struct sl_fill *f, uint64_t bytes);
void sl_space_add(struct sl_fill *f, int64_t bytes);
