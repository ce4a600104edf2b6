/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The sessions of an export by their tokens: which connection goes on with which, and for how long one is
 * kept whose connection broke. Bounded: of those without a connection the oldest is given up when there are
 * too many. A token is 128 random bits: who has it is the client that got it.
 *
 * Locks: one, in front of those of events and sessions. Any thread may call.
 */
#pragma once

#include "serve/events.h"

struct sl_sessions;

#define SL_SESSIONS_MAX 64 /* without a connection */

/** @grace: for how long a session is kept, in seconds; 0: no session outlives its connection. */
int sl_sessions_new(struct sl_events *ev, unsigned grace, struct sl_sessions **ret);
/** Ends those that are kept; no connection may be there any more. */
void sl_sessions_free(struct sl_sessions *ss);

/**
 * A connection over @t begins, with @flags in force; *@s is a session of its own that nobody knows. Goes on
 * with the one that @in asks for, which then is in *@s: a connection that still has it is shut down. Else *@s
 * can be resumed later. What the client has to know goes into @out; the number to go on from is returned.
 */
uint64_t sl_sessions_begin(struct sl_sessions *ss, struct sl_session **s, struct sl_transport *t,
			   uint64_t flags, const struct fuse_init_in *in, struct fuse_init_out *out);
/** The connection over @t has ended, and its reference to @s with it. @for_good: the client will not come
 * back. */
void sl_sessions_end(struct sl_sessions *ss, struct sl_session *s, struct sl_transport *t, bool for_good);
/** How many are kept without a connection. */
unsigned sl_sessions_kept(struct sl_sessions *ss);
