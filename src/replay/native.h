/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The acts of the fanotify gate: real operations on the very files that users see, by way of the mount that
 * is exempt from the gate. What appears is made where nobody sees it, and shown by the one system call that
 * raises the event.
 *
 * Every change of names is noted before it is made (store/pending.h), and ended when the acts are made anew:
 * whatever moment a service dies in, an object is where its record says.
 */
#pragma once

#include "gate/fanotify/gate.h"
#include "replay/acts.h"

struct sl_native_acts;

struct sl_native_acts_config {
	struct sl_store *store;
	struct sl_fill *fill;
	struct sl_fan *fan;
	bool lazy; /* a directory that appears is listed when somebody looks into it */
};

/** Ends what the last service left unfinished. @acts are called on one thread. */
int sl_native_acts_new(const struct sl_native_acts_config *cfg, struct sl_native_acts **ret,
		       struct sl_acts *acts);
/** The names of a directory have come, or a file stands for another one than before: other names of files are
 * found by that. Any thread. */
void sl_native_acts_note(struct sl_native_acts *a, struct sl_object *o);
void sl_native_acts_free(struct sl_native_acts *a); /* NULL is fine */
