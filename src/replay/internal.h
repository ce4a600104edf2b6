/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the files of the replay share among themselves. */
#pragma once

#include <pthread.h>
#include <stdatomic.h>

#include "base/list.h"
#include "replay/replay.h"
#include "replay/uses.h"

struct sl_compare;

/* What waits to be done: an event, or attributes of a directory that were asked for. */
struct item {
	struct sl_list link;
	struct sl_oevent e;
	size_t bytes;
	struct sl_object *dir; /* a reference: its attributes are in e.state */
	bool look;	       /* with dir: compare it, that is all */
};

#define CARRIED_MAX 1024
#define TOUCH_MAX   256
#define QUIET_NS    (60 * SL_NS_PER_MS)	 /* nothing was heard for a moment */
#define LATEST_NS   (10 * SL_NS_PER_SEC) /* if it is never quiet */

struct sl_replay {
	struct sl_replay_config cfg;
	pthread_t thread;
	pthread_mutex_t lock; /* protects all below */
	pthread_cond_t cond;
	struct sl_list queue; /* of struct item */
	size_t nqueue, bytes;
	uint64_t heard; /* sl_now() of the last event */
	unsigned asked; /* attributes that are on their way */
	size_t nunsure; /* directories that will be compared */
	bool lost, stop, paused, resting;
	struct sl_replay_stats stats;

	/* the thread's own */
	struct sl_compare *compare; /* or NULL */
	struct sl_list unlisted;    /* of struct unlisted: directories that were shown and not listed yet */
	struct sl_list touched;	    /* of struct touch: directories whose times changed */
	size_t ntouched;
	char *swapped[2];      /* names that were exchanged, and of which the second half is told next */
	struct sl_list unsure; /* of struct unsure */
	struct sl_list strays; /* of struct stray */
	bool unsure_links;     /* see unsure_of_links() */
	uint64_t links_since, links_after, links_pause;
	unsigned tries;	     /* of the comparison under way of one directory */
	struct sl_list busy; /* of struct busy: updates that have to wait */
	size_t nbusy;
	/* Files whose bytes were kept although a later time of change was taken up. An event about their
	 * content may still come, with just that time. */
	struct sl_object *carried[CARRIED_MAX];
	unsigned ncarried;
	struct sl_uses uses;
	bool as_said; /* the event under way left its name as its state has it: no need to look */
};

void replay_count(struct sl_replay *p, uint64_t *counter, uint64_t n);
/**
 * Make @name of the populated directory @dir what @s says, with the events that takes. Returns 1; 0 if it
 * was so; -errno. @doubted: events have told of it already, as far as they could; that a link to it came or
 * went they do not tell.
 */
int replay_settle(struct sl_replay *p, struct sl_object *dir, const char *name, const struct sl_ostate *s,
		  bool doubted);
/** All that is in @dir by the listing @q has come. */
void replay_listed(struct sl_object *dir, const struct sl_oreq *q);
/** The acts, with what goes with each: directories touched, conflicts noted. */
int replay_appear(struct sl_replay *p, struct sl_object *dir, const char *name, const struct sl_ostate *s,
		  bool moved);
int replay_vanish(struct sl_replay *p, struct sl_object *dir, const char *name, bool moved);
int replay_rename(struct sl_replay *p, struct sl_object *dir, const char *name, struct sl_object *newdir,
		  const char *newname, bool exchange);
int replay_update(struct sl_replay *p, struct sl_object *dir, const char *name, struct sl_object *o,
		  const struct sl_ostate *s, uint64_t mask);
/** The whole content of @o, a small file, as it is at the origin now: see sl_fill_replace(). -EFBIG, or what
 * went wrong. */
int replay_refresh(struct sl_replay *p, struct sl_object *o, const struct sl_attr *a);
/** The same object of the origin? What has no record cannot tell, and is by its type. */
bool replay_is(struct sl_object *o, uint64_t ino, uint64_t generation);
/** @dir is known to be another directory than @which. */
bool replay_is_other(struct sl_object *dir, const struct sl_odir *which);
/** It came here from elsewhere or was made here: the origin's name is not this one. */
bool replay_foreign(struct sl_object *dir, const char *name, struct sl_object *o);
/** @name, which is not in @dir and is as @s says at the origin, was deleted or moved away here. */
bool replay_deleted(struct sl_object *dir, const char *name, const struct sl_ostate *s);
/** The clone has heard of a later change of it than @s. */
bool replay_is_later(struct sl_object *o, const struct sl_ostate *s);
bool replay_populated(struct sl_object *dir);

/** Of two times, of which 0 is never. */
static inline uint64_t sl_earlier(uint64_t a, uint64_t b)
{
	return a && b ? SL_MIN(a, b) : a + b;
}

/* touch.c; all on the replay's thread */
/** @dir is one whose names came and go: its own times are asked for, later. */
void replay_touch(struct sl_replay *p, struct sl_object *dir);
/** Ask for what was touched: in the background, and the answer comes through the queue. */
void touch_ask(struct sl_replay *p);
void touch_free(struct sl_replay *p);

/* unsure.c */
bool replay_is_unsure(struct sl_replay *p, struct sl_object *dir);
/** What events have left of @dir (NULL is fine) may not be what the origin has: it will be compared. */
void replay_unsure(struct sl_replay *p, struct sl_object *dir);
/** Something changed in the directory @which, and that is not here where it was said to be: it is looked for
 * and compared. */
void replay_stray(struct sl_replay *p, const struct sl_odir *which);
/** A file may be here twice, by two of its names. */
void unsure_of_links(struct sl_replay *p);
/** When there is something to do, by sl_now(); 0: never. Lock held. */
uint64_t unsure_due(struct sl_replay *p);
/** Have those compared whose time has come. */
void unsure_look(struct sl_replay *p);
void unsure_free(struct sl_replay *p);

/* compare.c */
/** Everything. */
int compare_begin(struct sl_replay *p);
/** Only @dir, of which events have told already, for the time @tries. */
int compare_add(struct sl_replay *p, struct sl_object *dir, unsigned tries);
/** One step. False when all is compared. */
bool compare_step(struct sl_replay *p);
void compare_end(struct sl_replay *p);
