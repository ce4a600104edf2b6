/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The keeper: the small process that owns what must outlive the service, and starts the service again when it
 * dies.
 *
 *   sl-keeper ──────── waits ────────►│ restarts itself │── waits ──►
 *      │ one table of descriptors     ▲
 *   service ──────── serves ──── kill -9      next service ── serves ──►
 *
 * Keeper and service share **one table of descriptors** (clone(2) with CLONE_FILES). When the service is
 * killed all its descriptors are still open in the keeper, under the same numbers: nothing is lost between a
 * system call that returns a descriptor and a note of it. What is noted as kept, by name or in the gate's
 * area, stays; everything else is closed, and the next service is started.
 *
 * Beside the descriptors there is one piece of memory (a memfd) that all successive services and keepers map:
 * a header with names, numbers and pids, and an **area** that belongs to the gate, for "what is open and what
 * is outstanding". It starts as zeros. Whoever writes to it may be killed between any two instructions.
 *
 * The keeper starts over by executing its own program again ("sluice keeper FD"), so that each service begins
 * in a process of one thread and without a past; an upgrade is the same with another program. If the keeper
 * dies, the service makes a new one. Only when both die at the same moment something is lost, unless a
 * service manager holds the named descriptors as well (keeper/manager.h).
 *
 * All functions take NULL for "there is no keeper": nothing is kept then.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct sl_keeper;

/** The layout of the header and of the gates' areas: a program takes over from another one only if both have
 * the same. Grows with every change of either. */
#define SL_STATE_VERSION 4

/* Descriptors kept by name. Their order is part of the layout. */
enum sl_kept_fd {
	SL_KEPT_STATE,	 /* the memory itself; the keeper's */
	SL_KEPT_BELL,	 /* an eventfd by which the service calls the keeper; the keeper's */
	SL_KEPT_LOCK,	 /* the store's lock: between two services nobody else may take the store */
	SL_KEPT_CONTROL, /* the listening control socket: who connects meanwhile waits */
	SL_KEPT_FUSE,	 /* /dev/fuse of the mount */
	SL_KEPT_GROUP,	 /* fanotify group of the gate */
	SL_KEPT_NOTIFY,	 /* fanotify group or inotify of whoever watches changes */
	SL_KEPT_WORK,	 /* the mount that work is done through */
	SL_KEPT_IMAGE,	 /* the image's loop device */
	SL_KEPT_MOUNT,	 /* the mount that users see */
	SL_KEPT_MAX = 32
};

struct sl_keeper_config {
	const char *store;
	/**
	 * The service: runs on a thread of its own in a process of its own, and returns when it has ended in
	 * good order (0) or could not start. @ready_fd: as sl_clone_run() takes it.
	 */
	int (*serve)(struct sl_keeper *k, const char *store, int ready_fd, bool need_origin, char **why);
	/**
	 * Call @fn for each further descriptor that the area says must stay open. Only looks at the area;
	 * called while no service runs, also in a process that was cut off from its threads: no locks, no
	 * allocation.
	 */
	void (*each_fd)(const void *area, size_t size, void (*fn)(void *arg, int fd), void *arg);
	int ready_fd;	  /* for the first service; else -1 */
	bool need_origin; /* of the first service */
};

/** Become the keeper of a service that is to be started. Call with one thread only. Returns the exit status
 * of the process. */
int sl_keeper_run(const struct sl_keeper_config *cfg);
/** "sluice keeper FD": go on as a keeper whose service has died; of @cfg only the functions count. */
int sl_keeper_resume(int state_fd, const struct sl_keeper_config *cfg);

/* For the service. */

/** A kept descriptor, or -EBADF. It stays the keeper's: who closes it puts -1 first. */
int sl_kept_get(struct sl_keeper *k, enum sl_kept_fd which);
/** Keep @fd under this name from now on, or nothing (@fd negative; the old one is not closed). */
void sl_kept_put(struct sl_keeper *k, enum sl_kept_fd which, int fd);
/** The gate's memory, page-aligned, and its size in bytes (much; only what is touched costs anything). NULL
 * without keeper. */
void *sl_kept_area(struct sl_keeper *k, size_t *size);
/** True in a service that follows one which died: what is kept is to be taken over. */
bool sl_keeper_successor(const struct sl_keeper *k);
/** In a successor: the named descriptors came back from a service manager; the numbers in the area mean
 * nothing. */
bool sl_keeper_numbers_lost(const struct sl_keeper *k);
/** Nothing in the area is by such a number any more. */
void sl_keeper_numbers_known(struct sl_keeper *k);
unsigned sl_keeper_restarts(const struct sl_keeper *k);
pid_t sl_keeper_pid(const struct sl_keeper *k);
/** The clone can be used. */
void sl_keeper_ready(struct sl_keeper *k);
/** The service is ending; what happens from now on is no reason to start it again. */
void sl_keeper_ending(struct sl_keeper *k);
/** A successor cannot start: leave everything as it is, for the next one. Ends the process. */
_Noreturn void sl_keeper_fail(struct sl_keeper *k);
/** Can @program take over? 0, or -errno with a sentence: it cannot be run, or has another layout. */
int sl_keeper_check(struct sl_keeper *k, const char *program, char **why);
/** Have the keeper end this service and execute @program, which was checked, in its place. */
void sl_keeper_upgrade(struct sl_keeper *k, const char *program);
/** For --state-version. */
void sl_keeper_print_version(void);
