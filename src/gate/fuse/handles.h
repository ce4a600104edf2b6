/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Open files and directories: what the kernel's handle numbers mean.
 *
 * Each has a slot in the area that outlives the service, so that the next one knows them, and a struct handle
 * in this one's memory. The area may be in the middle of any change when the service is killed; the order of
 * writes below is what makes that harmless:
 *
 *   FREE ── reserved ──► HALF ── descriptor, backing id, … written ──► OPEN      and the same way back
 *
 * A descriptor that only a half slot knows is closed by the keeper, and its backing id by the next service.
 */
#pragma once

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

#include "base/list.h"
#include "store/object.h"
#include "wire/server.h"

struct sl_gate;

enum slot_state { SLOT_FREE, SLOT_HALF, SLOT_OPEN };
enum slot_kind {
	SLOT_FILE,
	SLOT_DIR,
	SLOT_ORPHAN /* no handle: an object without name that the kernel knows */
};

struct slot {
	_Atomic uint32_t state;
	uint32_t generation; /* upper half of the handle's number: a number is never given twice in a row */
	int32_t fd;
	int32_t backing_id; /* passthrough; 0: none */
	uint32_t kind;
	uint32_t flags;	 /* of the open */
	uint64_t ino;	 /* in the store */
	uint64_t unique; /* the request that opened it: if that comes again its answer was lost */
};

#define CHANGES	  1024
#define ECHO_PIDS 16

struct gate_area {
	_Atomic uint32_t agreed_known; /* INIT was agreed on: */
	uint32_t resend;
	uint64_t flags;
	uint32_t max_data;
	_Atomic uint32_t no_passthrough; /* was tried in vain */
	/* Of the replay's helper, and of those of services that died which may still wait for an answer. */
	_Atomic uint32_t echo_pids[ECHO_PIDS];
	_Atomic int32_t last_backing; /* the last backing id that was noted; at most one more was given out */
	_Atomic uint32_t top;	      /* slots that were ever used */
	_Atomic uint32_t changes_lost;
	struct {
		_Atomic uint64_t ino; /* 0: none */
		uint64_t size;	      /* the size the kernel believes in */
	} changes[CHANGES]; /* objects that the kernel has old content of, until it has been told; and
			       may believe to be larger than they are, until it cannot any more */
	/* The rename under way on each thread: what its source was, to see afterwards whether it was done. */
	struct {
		_Atomic uint64_t unique;
		uint64_t ino;
	} renames[64];
	struct slot slots[];
};

struct handle {
	struct sl_list link;	 /* in the gate's list */
	struct sl_hnode by_open; /* key: slot->unique; only of those that were taken over */
	bool taken_over;
	struct slot *slot;
	struct sl_object *o;
	int fd;
	int flags;
	bool passthrough, direct;
	/* directories */
	pthread_mutex_t lock;
	char *buf;
	size_t len, pos;
	uint64_t next; /* the offset that buf + pos continues at */
};

#define HANDLE_CHUNK 4096

struct handles {
	struct gate_area *area;
	void *own;	 /* the area, if nobody gave us one */
	uint32_t max;	 /* slots in the area */
	uint32_t *spare; /* free slots below area->top */
	size_t nspare, cap;
	_Atomic(struct handle *_Atomic *) *chunks; /* by slot; never moved: read without a lock */
	struct sl_htab by_open;
	pthread_mutex_t backing_lock; /* one backing id is on its way at a time */
};

/** @area: zeros at first, or what the last service left; NULL: keep nothing. */
int gate_handles_init(struct handles *t, void *area, size_t size);
void gate_handles_fini(struct handles *t);

/** A half slot with a handle for it, not yet findable; NULL when there is no more room. Takes the gate's
 * lock. */
struct handle *gate_handle_new(struct sl_gate *g, enum slot_kind kind, struct sl_object *o, int fd,
			       uint64_t unique);
/** Show it: its number may be given to the kernel. */
uint64_t gate_handle_open(struct sl_gate *g, struct handle *h);
/** Take it off the list, close and free it. */
void gate_handle_free(struct sl_gate *g, struct handle *h);
/** The handle of a number, or NULL (and the request is answered) where there is none. */
struct handle *gate_handle(struct sl_gate *g, struct sl_req *rq, uint64_t fh);
/** The handle that this request had opened already before its answer was lost, or NULL. */
struct handle *gate_handle_opened(struct sl_gate *g, const struct sl_req *rq);
uint64_t gate_handle_number(const struct sl_gate *g, const struct handle *h);

/** @s is free: it may be used for what is opened next. */
void gate_slot_spare(struct handles *t, struct slot *s);

/** Passthrough: give the kernel the file behind @h->fd. Returns the backing id or -errno. */
int gate_backing_open(struct sl_gate *g, struct handle *h);
void gate_backing_close(struct sl_gate *g, int id);

/** The kernel's cache of @o is about to be out of date / the kernel knows all of it. The object's lock held.
 */
void gate_note_change(struct sl_gate *g, struct sl_object *o, uint64_t old_size);
void gate_note_changed(struct sl_gate *g, uint64_t ino);
