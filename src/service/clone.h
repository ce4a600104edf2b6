/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A running clone: its store, its origin, its fill and its gate, and the socket by which it is controlled. */
#pragma once

#include "fill/fill.h"
#include "gate/fanotify/gate.h"
#include "gate/fanotify/silent.h"
#include "gate/fuse/gate.h"
#include "keeper/keeper.h"
#include "replay/echo.h"
#include "replay/native.h"
#include "replay/replay.h"
#include "service/watch.h"

struct sl_clone {
	struct sl_keeper *keeper; /* or NULL */
	struct sl_store *store;
	struct sl_origin *origin;
	struct sl_watchers *watchers; /* who is told of its events */
	struct sl_fill *fill;
	struct sl_gate *gate;	  /* the fuse gate, or NULL */
	struct sl_fan *fan;	  /* the fanotify gate, or NULL */
	struct sl_helper *helper; /* the replay's, behind the fuse gate */
	struct sl_echo_acts *echo;
	struct sl_native_acts *_Atomic acts; /* behind the fanotify gate */
	struct sl_silent *_Atomic silent;    /* for the fill, behind that gate; or NULL */
	bool listed;			     /* all names that are here were listed by this service */
	struct sl_replay *_Atomic replay;    /* or NULL: none yet, and none any more */
	_Atomic bool missed;		     /* events came while there was none */
	_Atomic dev_t dev;		     /* of its filesystem; 0: not looked up yet */
	uint64_t started;		     /* seconds since the epoch */
	int stop_fd;			     /* an eventfd; written to when the service shall end */
	/* what the last crash made us forget; counted in the background after an unclean start */
	bool unclean;
	_Atomic uint64_t forgotten_files, forgotten_bytes;
	_Atomic bool forgotten_known;
	_Atomic bool ending; /* commands that take long stop early */
};

/** Take the clone's mount away, if it is there. -EBUSY while it is in use; with @force it goes all the same.
 */
int sl_clone_hide(struct sl_clone *c, bool force, char **why);

/**
 * Run the service of the clone whose store is at @path, until it is told to stop, gets SIGTERM or SIGINT, or
 * its mount is unmounted. Call with one thread only. When the clone is up, "ready\n" is written to @ready_fd
 * (if not negative), otherwise the reason why not; then it is closed. Before that, lines "names OBJECTS
 * DIRECTORIES LEFT\n" may come. @need_origin: fail when the origin cannot be reached. With @keeper: what must
 * outlive this service is kept there, and what the last one left is taken over.
 */
int sl_clone_run(struct sl_keeper *keeper, const char *path, int ready_fd, bool need_origin, char **why);
/** For struct sl_keeper_config.each_fd. */
void sl_clone_each_fd(const void *area, size_t size, void (*fn)(void *arg, int fd), void *arg);
