/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Changes of the origin as events of the kernel's: a helper process makes the system call, the gate
 * recognises its requests by their process, and answers them from what is being echoed instead of from what
 * a user would get. The store changes while the request is answered; the kernel raises the event right after.
 *
 *   origin: "x" was made        replay: act, helper: mknod("DIR/x")
 *   kernel: LOOKUP x            gate: there is none
 *   kernel: MKNOD x             gate: makes the placeholder that the act says, answers with its attributes
 *   kernel: IN_CREATE x
 *
 * A helper, and not a thread of the service: who waits for a FUSE request cannot be killed, and the keeper
 * would wait for such a thread for ever before it starts the next service.
 */
#pragma once

#include "gate/fuse/gate.h"

/* The name by which the helper, and nobody else, finds the staging directory in the root: with the clone's
 * id behind it. */
#define SL_ECHO_STAGING ".sluice-staging-"
#define SL_ECHO_COMM	"sluice-replay"

enum sl_echo_op { SL_ECHO_APPEAR, SL_ECHO_VANISH, SL_ECHO_RENAME, SL_ECHO_UPDATE, SL_ECHO_CLOSE };

/* What the helper is about to do. The caller's, who keeps all of it until sl_gate_echo_end(). */
struct sl_echo {
	enum sl_echo_op op;
	struct sl_object *dir, *newdir;
	const char *name, *newname;
	const struct sl_ostate *state; /* APPEAR; UPDATE: NULL when nothing changes */
	unsigned how;		       /* UPDATE: enum sl_update_how */
	struct sl_object *o;	       /* UPDATE, CLOSE */
	bool exchange;

	_Atomic bool done; /* the store was changed */
	_Atomic bool told; /* UPDATE: the kernel has the new attributes, with this size */
	_Atomic uint64_t size;
	_Atomic int err; /* if it could not be */
};

/** The helper is process @pid. @staging: the directory it finds as SL_ECHO_STAGING; a reference is taken. */
void sl_gate_echo_from(struct sl_gate *g, uint32_t pid, struct sl_object *staging);
void sl_gate_echo_begin(struct sl_gate *g, struct sl_echo *e);
/** The helper has returned: nothing of @e is used any more. */
void sl_gate_echo_end(struct sl_gate *g);
/** Do it without an event, where the helper could not; the kernel forgets what it knew. Not on a thread of
 * the gate. */
int sl_gate_echo_silently(struct sl_gate *g, struct sl_echo *e);
/** @o lost its last name: nobody will ask by it. */
void sl_gate_echo_gone(struct sl_gate *g, struct sl_object *o);
