/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * From changes of the exported tree to notifications: which client has marked the directory, under which
 * nodes, and what is at the name now. One backend for all clients of an export, opened at the first mark.
 *
 * The state that a notification carries was looked up after the change was read from the kernel, once for
 * each name of what was read together: it may be newer than the change, and then a later change explains it.
 * Because the kernel merges changes that nobody has read yet, that need not be so: names whose last change
 * implies another state than was seen are doubts. When the kernel's queue is empty they are looked at again,
 * and what still differs is told as a notification without an event.
 *
 * Opening, reading and closing (SL_CHANGE_USE) are heard of only while there is a client that has asked.
 *
 * Locks: one, in front of the sessions'. The backend's functions are called without it.
 */
#pragma once

#include "notify/backend.h"
#include "serve/session.h"

struct sl_events;

/* What a mark can ask for. Children are told of only with FAN_EVENT_ON_CHILD, directories only with
 * FAN_ONDIR. */
#define SL_EVENTS_MASK (SL_CHANGE_MASK | SL_CHANGE_USE | FAN_ONDIR | FAN_EVENT_ON_CHILD)

int sl_events_new(struct sl_tree *tree, enum sl_backend_kind kind, struct sl_events **ret);
/** All sessions must be gone. */
void sl_events_free(struct sl_events *ev);

/**
 * Set the mark of the node @id of @s, which @fd (O_PATH) has open, to @mask; 0 takes it away and needs no
 * @fd.
 * @max: marks of this session. Fills @out. Returns 0; -ESTALE; -ENOTDIR; -EINVAL for a mask of nothing that
 * can be told; -ENOSPC beyond @max, or where the system watches no more; -EOPNOTSUPP where changes cannot be
 * heard of.
 */
int sl_events_mark(struct sl_events *ev, struct sl_session *s, uint64_t id, int fd, uint64_t mask,
		   uint64_t max, struct fuse_fsnotify_out *out);
/** The node of @obj was forgotten with its mark. */
void sl_events_unmarked(struct sl_events *ev, const struct sl_evid *obj);
/** For struct sl_session_config. */
void sl_events_overflowed(void *ev, struct sl_session *s);
/** Whether those who change the tree are not known: then what clients change has to be noted (own.h). */
bool sl_events_blind(struct sl_events *ev);
/**
 * Opens and reads by the exporter itself are nobody's: no client is told of them, or what is raised for one
 * could make another one ask, without end. Where it is not known who reads (blind), and somebody wants to be
 * told of it, what the exporter is about to do is noted here; NULL: nothing has to be.
 */
struct sl_own *sl_events_uses(struct sl_events *ev);
/** @s ends: its marks are gone, and it is not told of anything. */
void sl_events_leave(struct sl_events *ev, struct sl_session *s);
/** Everything that was changed before this call has been told when it returns. */
void sl_events_settle(struct sl_events *ev);
