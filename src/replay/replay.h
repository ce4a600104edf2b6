/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What changes at the origin is done on the clone, in order, by one thread: it decides what an event means
 * against what the clone has, and calls the gate's acts. Where events were lost, what the clone has is
 * compared with the origin instead, and the difference is done.
 *
 * The thread holds no lock while it acts, and neither the gate nor the fill ever waits for it.
 */
#pragma once

#include "fill/fill.h"
#include "replay/acts.h"

struct sl_replay;

struct sl_replay_config {
	struct sl_store *store;
	struct sl_fill *fill;
	struct sl_origin *origin;
	struct sl_acts acts;
	/** The object that stands for @place, as a new reference: see sl_remote_find(). */
	int (*find)(struct sl_store *s, const char *place, struct sl_object **ret);
	bool compare; /* at once, what is populated: changes may have been missed */
	size_t queue; /* events that may wait; 0: a good number */
};

int sl_replay_new(const struct sl_replay_config *cfg, struct sl_replay **ret);
/** Ends soon, without doing what is queued. Events may still come, and are not done. Once. */
void sl_replay_stop(struct sl_replay *p);
/** After sl_replay_stop(), when no event can come and no request is under way. NULL is fine. */
void sl_replay_free(struct sl_replay *p);
/** For struct sl_origin_config.event: copies, never blocks. */
void sl_replay_event(struct sl_replay *p, const struct sl_oevent *e);
/** Somebody found something else at the place of @o than what it was: its directory is compared. Any thread.
 */
void sl_replay_look(struct sl_replay *p, struct sl_object *o);
/** Events in the directory @dir may have passed it by: it is compared. Any thread. */
void sl_replay_look_into(struct sl_replay *p, struct sl_object *dir);
/** The thread lets go of the mount, and does nothing until sl_replay_resume(). False when it is in the middle
 * of something that takes long. */
bool sl_replay_pause(struct sl_replay *p);
void sl_replay_resume(struct sl_replay *p);

struct sl_replay_stats {
	uint64_t events;      /* that came */
	uint64_t applied;     /* of them, done */
	uint64_t skipped;     /* were so already, or are about what is not here */
	uint64_t queued;      /* wait now */
	uint64_t overflows;   /* of our queue */
	uint64_t lost;	      /* times that somebody lost events */
	uint64_t comparisons; /* begun */
	uint64_t compared;    /* directories */
	uint64_t differences; /* found by comparing */
	uint64_t unmarked;    /* directories whose changes the origin cannot tell */
	uint64_t conflicts, failed;
	uint64_t seq; /* of the last event done */
	bool comparing;
};
void sl_replay_get_stats(struct sl_replay *p, struct sl_replay_stats *st);
