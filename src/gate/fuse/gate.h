/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The fuse gate: shows a store as a mounted filesystem, and turns an access to what is not here into a want.
 *
 * A request that needs something is kept, and dispatched again when it is there; no thread waits. Names and
 * attributes are given to the kernel to keep for ever: every change comes through here, and what changes at
 * the origin is taken back by a notification. A file that is completely here is opened in passthrough mode
 * where the kernel allows it.
 */
#pragma once

#include "fill/fill.h"

struct sl_gate;

struct sl_gate_config {
	struct sl_store *store;
	struct sl_fill *fill;
	struct sl_origin *origin; /* for holes of sparse files that are not here */
	int fuse_fd;		  /* mounted; the gate owns it from now on */
	unsigned threads;	  /* 0: by the number of processors */
	/* Memory that outlives the service, zeros at first: what is open. NULL: nothing outlives it. */
	void *area;
	size_t area_size;
	bool takeover;	   /* the connection and the area are those of a service that died */
	bool numbers_lost; /* and descriptor numbers in the area mean nothing */
};

int sl_gate_new(const struct sl_gate_config *cfg, struct sl_gate **ret);
/** Serve until the filesystem is unmounted. 0, or what ended it. */
int sl_gate_run(struct sl_gate *g);
/** Make sl_gate_run() return although the filesystem is still mounted or in use. */
void sl_gate_stop(struct sl_gate *g);
/** After the run, and after every want is done: let go of all objects. */
void sl_gate_free(struct sl_gate *g);

/** For the keeper: each descriptor that the area says must stay open. See struct sl_keeper_config. */
void sl_gate_each_fd(const void *area, size_t size, void (*fn)(void *arg, int fd), void *arg);
/** Can the connection that @area describes be taken over? */
bool sl_gate_can_take_over(const void *area);
/** How many bytes of it were ever written to. */
size_t sl_gate_area_used(const void *area);

/** For struct sl_fill_config.changing and changed. */
void sl_gate_changing(struct sl_gate *g, struct sl_object *o, uint64_t old_size);
void sl_gate_changed(struct sl_gate *g, struct sl_object *o);
bool sl_gate_passthrough(const struct sl_gate *g);
/** Requests that wait for something to arrive. */
size_t sl_gate_waiting(struct sl_gate *g);
