/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the files of the fanotify gate share among themselves. */
#pragma once

#include <pthread.h>
#include <stdatomic.h>

#include "base/pool.h"
#include "gate/fanotify/abi.h"
#include "gate/fanotify/gate.h"

#define FAN_ASKED (FAN_PRE_ACCESS | FAN_OPEN_PERM)
#define FAN_TOLD                                                                                             \
	(FAN_MODIFY | FAN_CLOSE_WRITE) /* a shared mapping is written to without a word, until it is closed  \
					*/
#define RECENT                                                                                               \
	1024 /* objects that are kept in memory after their use, with what is known of their readers         \
	      */
#define MOUNTS 64

/*
 * The memory that outlives the service. An event is in `read` from the moment the kernel hands it out, until
 * it is answered or stands in `slot`, under the number of its descriptor, until it is answered.
 */
#define READ_BYTES 32768
struct slot {
	/* 0: free; FAN_OPEN_PERM, FAN_PRE_ACCESS or FAN_PRE_DIR_ACCESS. Evictions look at it from elsewhere.
	 */
	_Atomic uint32_t mask;
	int32_t pid;
	uint64_t off, len; /* len 0: all of the file */
};
#define AREA_MAGIC 0x4e414653
struct area {
	uint32_t magic;
	_Atomic int32_t
	    pids[16]; /* of services and keepers, newest last: what they did is no change by a user */
	_Atomic uint64_t
	    mount; /* that users see, as mountinfo has it: what is gone may have been unmounted */
	_Atomic uint32_t shown; /* it was put where they see it */
	uint32_t nslots;
	_Atomic uint32_t top; /* no slot from here on was ever used: memory that is only looked at costs
				 something as well */
	_Alignas(4096) char read[READ_BYTES];
	char changes[READ_BYTES]; /* the same of changes; to hear of one twice does no harm */
	struct slot slot[];
};

/* An access that waits. */
struct waiter {
	struct sl_work work;
	struct sl_want want;
	struct sl_fan *g;
	int fd;
	bool placed;  /* by the name that it came by */
	bool as_said; /* it needs what it said, and nothing else */
	struct slot s;
};

/* Somebody goes through a directory's files, all of which are here. */
struct fan_walk {
	struct sl_handle dir;
	uint64_t when;
	unsigned count, window;
};

struct sl_fan {
	struct sl_fan_config cfg;
	struct sl_store *store;
	struct sl_fill *fill;
	struct area *area;
	bool own_area;
	/*
	 * Descriptors of accesses are on the store's own mount, whichever they came by, so that those can be
	 * told that come by none (overlayfs). This kernel asks for mappings also where the file is open by
	 * another's private mount.
	 */
	bool own_mount;
	uint64_t asked; /* FAN_ASKED, and with lazy directories FAN_PRE_DIR_ACCESS */
	atomic_bool making;
	int group, notify, stop_fd;
	size_t nofile; /* so many descriptors this process may have */
	/*
	 * Where what a placeholder is made of can be read, it would be by what raises no events: a mapping
	 * that grows, a loop device, the descriptor of another listener. So such files are filled when they
	 * are opened.
	 */
	bool whole_on_open;
	pthread_t events, changes;
	bool started;
	atomic_bool stop, stopped; /* of the events thread */
	_Atomic uint64_t reads;	   /* odd while what was read is looked at */
	_Atomic int replay;	   /* thread id, or 0 */
	atomic_bool refusing;
	atomic_size_t waiting;
	struct sl_pool *pool; /* for what cannot be answered without waiting for a lock */

	pthread_mutex_t caller_lock;
	int caller_tid, caller_fd; /* the thread that asked last, and its /proc/TID/syscall */

	pthread_mutex_t lock; /* all below */
	pthread_cond_t cond;
	struct sl_object *recent[RECENT];
	unsigned next_recent;
	uint64_t mounts[MOUNTS]; /* unique ids of mounts that are known to be in somebody's namespace */
	unsigned nmounts;
	struct fan_walk walks[4];
	bool sweeping;
	struct sl_list ready; /* of struct waiter: what they want is here */
	struct sl_work answers;
	bool answering;		/* that work is queued, or at work */
	uint64_t told, handled; /* change events that were read, and dealt with: bytes of their headers */
};

/* How looking at an access ends. */
enum { FAN_ANSWERED = 0, FAN_WANTS = 1, FAN_LATER = 2 };
#define FAN_LATER_US 1000 /* of a thread that may wait, before it looks again */

/** As fanotify(7) has it; @response is FAN_ALLOW or a refusal. */
void fan_respond(struct sl_fan *g, int fd, uint32_t response);
/**
 * Answer an access to the names of the directory @fd if they are here: FAN_ANSWERED. FAN_WANTS: not before
 * the names of *@ret are here. FAN_LATER: it is just being made. Or -errno, to be told to who waits.
 */
int fan_look_dir(struct sl_fan *g, int fd, bool may_wait, struct sl_object **ret);
/** The directory @fd is no more: it has no names, and never will; or *@err is what its users are to be told.
 */
bool fan_dir_gone(struct sl_fan *g, int fd, int *err);
/** Before anybody can come: does the kernel ask before names are looked up? It is tried. */
bool fan_asks_for_names(struct sl_fan *g);
/** @o, one of whose names is open as @fd, lost its place at the origin: that name is its place now, or it has
 * got another one meanwhile. False if nobody knows, or it has one name only. */
bool fan_find_place(struct sl_fan *g, int fd, struct sl_object *o);
/** Accesses that waited for a service whose descriptors are gone are refused. */
void fan_refuse_lost(struct sl_fan *g);
/** Look at an access again, and answer it or keep it. Takes over @w. */
void fan_dispatch(struct waiter *w);
/** What @w wants has come: it is answered soon, with others. w->want.o is a reference, taken over with @w. */
void fan_ready(struct waiter *w);
bool fan_answering(struct sl_fan *g);
/** It was answered; or with an error, it is refused. */
void fan_waiter_end(struct waiter *w, int err);
/** True if the file was opened through a mount that programs see; false for private ones, as overlayfs has.
 */
bool fan_mount_known(struct sl_fan *g, int fd, int pid);
/** @fd, of an event, is on the store's own mount. */
bool fan_own_mount(struct sl_fan *g, int fd);
/**
 * How much the thread @tid, which waits for an answer about the file @st, needs of it; with @st NULL it may
 * be less than is said. What changes a file needs all: what is cut off or moved must not be brought back
 * later, and of what was written nothing may depend on the origin any more. What writes behind the end needs
 * the block in which the file ends.
 */
enum fan_need { FAN_RANGE, FAN_MAPPED, FAN_RANGE_AND_END, FAN_WHOLE };
enum fan_need fan_need(struct sl_fan *g, int tid, const struct stat *st);
void fan_keep_recent(struct sl_fan *g, struct sl_object *o);
/** Never ask about @o again, until the mark goes. */
void fan_ignore(struct sl_fan *g, int fd);
/** The file @ino, open as @fd, is completely here, and was asked about: mark what may come next. */
void fan_mark_ahead(struct sl_fan *g, int fd, uint64_t ino);
/* Somebody cut off the file @o, which has now @st, by open(O_TRUNC), and that was not noted yet. Lock held.
 */
static inline bool fan_cut(const struct sl_object *o, const struct stat *st)
{
	return !(o->rec.flags & (SL_MODIFIED | SL_LOCAL)) && (uint64_t)st->st_size < o->map.size;
}
/*
 * If the service is killed, the next one knows that the file is here (its record says so), or can tell what a
 * user has written to it from what has not come. Lock held.
 */
static inline bool fan_sure(const struct sl_object *o)
{
	return o->rec.state == SL_FULL || !o->map.size || o->rec.flags & (SL_MODIFIED | SL_LOCAL) ||
	       sl_object_tells_apart(o);
}
/* Completely here, for as long as the lock is held, and nobody need be asked about it any more. */
static inline bool fan_full(struct sl_object *o, const struct stat *st)
{
	return sl_chunkmap_full(&o->map) && !o->evicting && !fan_cut(o, st) && fan_sure(o);
}
void *fan_changes(void *arg);
