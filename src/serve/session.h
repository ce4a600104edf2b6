/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What an export keeps for one client: its nodes and marks, and the notifications that it has not
 * acknowledged. A session outlives the connection that began it for a time, so that a client whose connection
 * broke goes on where it was (sessions.h).
 *
 * Notifications are queued by whoever has one and sent by a thread of the session's own, so that a client
 * that does not read harms nobody else. What was sent is kept until it is acknowledged, where the session can
 * be resumed. The queue is bounded; when it is full what was not sent is dropped, the marks are gone, and one
 * OVERFLOW says so.
 *
 * Locks: the session's own, in front of that of its nodes. Any thread may call.
 */
#pragma once

#include "base/list.h"
#include "serve/nodes.h"
#include "serve/own.h"
#include "wire/fsnotify.h"
#include "wire/transport.h"

struct sl_session;

struct sl_session_config {
	unsigned max_events; /* notifications that are queued or not acknowledged: 64 Ki */
	size_t max_bytes;    /* of those: 16 MiB */
	uint64_t max_nodes;
	/** The queue ran over, on the thread that pushed: the marks are to be taken away. */
	void (*overflow)(void *arg, struct sl_session *s);
	void *arg;
};

int sl_session_new(const struct sl_session_config *cfg, const struct sl_found *root, struct sl_session **ret);
struct sl_session *sl_session_ref(struct sl_session *s);
/** Freed with the last reference. */
void sl_session_unref(struct sl_session *s);
struct sl_nodes *sl_session_nodes(struct sl_session *s);
struct sl_own *sl_session_own(struct sl_session *s);

/** Whether notifications carry states. */
void sl_session_want_states(struct sl_session *s, bool want);
bool sl_session_wants_states(const struct sl_session *s);
/** Start the thread that sends, if it does not run yet. Returns 0 or -errno. */
int sl_session_start(struct sl_session *s);
/** Whether that was ever done: something was marked. */
bool sl_session_started(struct sl_session *s);
/** From now on notifications go to @t, beginning with number @seq; unacknowledged ones are kept if @keep. The
 * transport must live until sl_session_detach(). */
void sl_session_attach(struct sl_session *s, struct sl_transport *t, uint64_t seq, bool keep);
/** No notification is being sent any more when this returns; shut @t down first, or this waits for it. What
 * was attached by another one stays. */
void sl_session_detach(struct sl_session *s, struct sl_transport *t);
/** Whether a client that expects @seq can go on here. */
bool sl_session_has(struct sl_session *s, uint64_t seq);
/** The client has everything before @seq. -EINVAL: it cannot. */
int sl_session_ack(struct sl_session *s, uint64_t seq);
/** The number that the next notification will get. */
uint64_t sl_session_seq(struct sl_session *s);
/** Number @m and queue it; it is sent with the next sl_session_flush(), or when many are queued. State nodes
 * in it have been counted as lookups; they are given back if it is dropped. */
void sl_session_push(struct sl_session *s, struct sl_fsnotify_msg *m);
void sl_session_flush(struct sl_session *s);
/** Drop what was not sent and say that changes were lost. The caller takes the marks away. */
void sl_session_overflow(struct sl_session *s);

/* The threads that work for this client: what they change it is not told of. @conn tells those of one
 * connection. True if the thread was not known. */
bool sl_session_own_thread(struct sl_session *s, uint32_t tid, const void *conn);
bool sl_session_owns(struct sl_session *s, uint32_t tid);
bool sl_session_owns_any(struct sl_session *s, const void *conn);
void sl_session_disown(struct sl_session *s, const void *conn);

struct sl_session_stats {
	uint64_t pushed, sent, overflows;
	size_t queued, bytes;
};
void sl_session_get_stats(struct sl_session *s, struct sl_session_stats *st);

/* For sl_events (serve/events.h), under its lock: its list of sessions, */
struct sl_list *sl_session_link(struct sl_session *s);
uint64_t *sl_session_uses(struct sl_session *s); /* what its marks have ever asked for of SL_CHANGE_USE */
struct sl_session *sl_session_of(struct sl_list *link);
