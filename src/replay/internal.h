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
	char *leaving;	  /* a name that is said to have left, and to which its next event brings another */
	const char *left; /* the same, and this is that event */
	char *swapped[2]; /* names that were exchanged, and of which the second half is told next */
	struct sl_list unsure;	/* of struct unsure */
	struct sl_list strays;	/* of struct stray */
	bool unsure_links;	/* see unsure_of_links() */
	struct sl_htab changed; /* of struct changed: see unsure_of_file() */
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

/* here.c: what the clone has. Any thread that may take the objects' locks. */
/** Listed, and not made here. */
bool replay_populated(struct sl_object *dir);
/** It came here from elsewhere or was made here: the origin's name is not this one. */
bool replay_foreign(struct sl_object *dir, const char *name, struct sl_object *o);
/** @name, which is not in @dir and is as @s says at the origin, was deleted or moved away here. */
bool replay_deleted(struct sl_object *dir, const char *name, const struct sl_ostate *s);
/** One object of the origin? Not every backend knows both halves of an identity. */
bool replay_same(uint64_t ino, uint32_t generation, uint64_t ino2, uint32_t generation2);
/** The same object of the origin? What has no record cannot tell, and is by its type. */
bool replay_is(struct sl_object *o, uint64_t ino, uint64_t generation);
/** The same, and of the same type. */
bool replay_is_state(struct sl_object *o, const struct sl_ostate *s);
/** Nobody could say which object of the origin it is. */
bool replay_is_unknown(struct sl_object *o);
/** @dir is known to be another directory than @which. */
bool replay_is_other(struct sl_object *dir, const struct sl_odir *which);
/** The clone has heard of a later change of it than @s. */
bool replay_is_later(struct sl_object *o, const struct sl_ostate *s);
/** Native: another object here is that file, and @o must not become a second one. */
bool replay_is_twin(struct sl_replay *p, struct sl_object *o, const struct sl_ostate *s);
/** One of several names of a file: do the others that are here denote the same object? */
bool replay_is_joined(struct sl_replay *p, struct sl_object *o, const struct sl_ostate *s);
/** A symlink, to what @s says. */
bool replay_same_target(struct sl_object *o, const struct sl_ostate *s);
/**
 * The name @place: the directory it is in, which is @which, as a new reference, and its last component.
 * Places say where directories are by the events that were told; we have not come to all of these, and one
 * that was listed meanwhile may have been told of already. -ENOENT; -ESTALE where another one is here;
 * -ENODATA where it is not listed; waits while it is. The thread's.
 */
int replay_find(struct sl_replay *p, const char *place, const struct sl_odir *which, struct sl_object **dir,
		const char **name);

/* acts.c: the gate's acts, with what goes with each: directories touched, conflicts noted. Return 1; 0 if
 * there was nothing to do; -errno. These and all below are for the thread. */
int replay_appear(struct sl_replay *p, struct sl_object *dir, const char *name, const struct sl_ostate *s,
		  enum sl_appear how);
int replay_vanish(struct sl_replay *p, struct sl_object *dir, const char *name, bool moved);
int replay_rename(struct sl_replay *p, struct sl_object *dir, const char *name, struct sl_object *newdir,
		  const char *newname, enum sl_rename how);
int replay_update(struct sl_replay *p, struct sl_object *dir, const char *name, struct sl_object *o,
		  const struct sl_ostate *s, uint64_t mask);
/**
 * The content of @o changed, and nobody says into what: its place is not its any more. Until more is known a
 * reader has to ask the origin; what is here must not be taken for its content, nor must an empty file.
 * @now: what its name denotes now.
 */
void replay_uncertain(struct sl_replay *p, struct sl_object *dir, const char *name, struct sl_object *o,
		      const struct sl_ostate *now);
/** What is @name in @dir was changed here and at the origin: counted, said, and noted in its record. */
void replay_conflict(struct sl_replay *p, struct sl_object *dir, const char *name);
/** Behind the fanotify gate nobody tells of names that users take away: what has come and is missing was. */
void replay_came(struct sl_object *dir, const char *name, const struct sl_attr *a);

/* event.c */
/** What @e says is done here, as far as it is not so already, and what that leaves is looked at. */
void event_do(struct sl_replay *p, const struct sl_oevent *e);

/* settle.c */
/**
 * Make @name of the populated directory @dir what @s says, with the events that takes. Returns 1; 0 if it
 * was so; -errno. @doubted: events have told of it already, as far as they could; that a link to it came or
 * went they do not tell.
 */
int replay_settle(struct sl_replay *p, struct sl_object *dir, const char *name, const struct sl_ostate *s,
		  bool doubted);

/* unlisted.c */
/** @name in @up is a directory that was shown before what is in it: that is listed, now or later. */
int unlisted_new(struct sl_replay *p, struct sl_object *up, const char *name);
/** Names have changed, or nothing is left to do. */
void unlisted_again(struct sl_replay *p);
bool unlisted_has(struct sl_replay *p, struct sl_object *dir);
void unlisted_free(struct sl_replay *p);
/** All that is in @dir by the listing @q has come. */
void replay_listed(struct sl_object *dir, const struct sl_oreq *q);

/* busy.c */
/** Its readers are in the way of an update of @o, which is @name in @dir (both NULL: not known any more):
 * later. */
void busy_put_off(struct sl_replay *p, struct sl_object *dir, const char *name, struct sl_object *o);
/** Is the way free now? */
void busy_retry(struct sl_replay *p);
void busy_free(struct sl_replay *p);

/* refresh.c */
/** The whole content of @o, a small file, as it is at the origin now: see sl_fill_replace(). -EFBIG, or what
 * went wrong. */
int replay_refresh(struct sl_replay *p, struct sl_object *o, const struct sl_attr *a);

/** Of two times, of which 0 is never. */
static inline uint64_t sl_earlier(uint64_t a, uint64_t b)
{
	return a && b ? SL_MIN(a, b) : a + b;
}

/* touch.c */
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
/** @o was changed, and nobody says into what: not by that name. It has others, and they are looked for. */
void unsure_of_file(struct sl_replay *p, struct sl_object *o);
/** When there is something to do, by sl_now(); 0: never. Lock held. */
uint64_t unsure_due(struct sl_replay *p);
/** Have those compared whose time has come. */
void unsure_look(struct sl_replay *p);
/** @dir was to be compared for the time @tries, and something has happened since that goes first. @since:
 * what compare_add() was told. */
void unsure_again(struct sl_replay *p, struct sl_object *dir, unsigned tries, uint64_t since);
/** It is time, whatever happens meanwhile. */
bool unsure_late(uint64_t since);
/**
 * Has everything that has happened at the origin been told and done? That nothing was heard for a moment does
 * not say so: whoever tells may not have had a processor. Asks the origin, and waits for the answer.
 */
bool unsure_told(struct sl_replay *p);
void unsure_free(struct sl_replay *p);

/* compare.c */
/** Everything. */
int compare_begin(struct sl_replay *p);
/** Only @dir, of which events have told already, for the time @tries. @since: the sl_now() time of the doubt.
 */
int compare_add(struct sl_replay *p, struct sl_object *dir, unsigned tries, uint64_t since);
/** One step. False when all is compared. */
bool compare_step(struct sl_replay *p);
void compare_end(struct sl_replay *p);
