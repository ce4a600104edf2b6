/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The fanotify gate: users work on the store's own files, on a filesystem of its own, and the kernel asks us
 * before anybody gets at content that may not be here (FAN_PRE_ACCESS, Linux 6.14).
 *
 *   reader -- read(2) ---> FAN_PRE_ACCESS ---> events.c -- it is here ----------> allow
 *                                                    `--- a want ... done() ---> allow, or an errno
 *   writer -- write(2) --> FAN_MODIFY -------> changes.c -- "changed here" goes into the record
 *
 * Two groups mark the whole filesystem, so that every mount of it is covered, in every namespace. The mount
 * that the store works through is exempt. A file that is completely here, or nobody's but the user's, gets an
 * ignore mark that the kernel may drop with the inode: it is read at the filesystem's own speed.
 *
 * With the project's kernel series the group also asks before a directory is listed, searched or changed
 * (FAN_PRE_DIR_ACCESS): names then come when they are wanted, as bytes do, and DIR can be shown at once
 * (dirs.c). And where the filesystem is the clone's alone, whoever would be asked gets EIO once nobody is
 * left to ask (FAN_MARK_FAIL_CLOSED).
 *
 * An event is answered by the number of its descriptor, whoever writes it. What was read and not answered
 * stands in the memory that outlives the service (internal.h): the next one answers it.
 */
#pragma once

#include "fill/fill.h"

struct sl_fan;

struct sl_fan_config {
	struct sl_store *store;
	struct sl_fill *fill;
	int group, notify; /* from an earlier service, or negative; the gate does not close them */
	void
	    *area; /* shared with that service and the next, zero at first; NULL: nothing outlives this one */
	size_t area_size;
	bool own;  /* the filesystem is the clone's alone: it may stay closed when all of us were killed */
	bool lazy; /* names may be missing: ask before directories are used, if the kernel can */
	bool numbers_lost; /* descriptors of accesses that waited for the earlier service are not ours any
			      more: they are refused by sl_fan_new(), and those of later ones are */
	int keeper; /* its process: what it closes of a service that died is no change by a user; 0: none */
};

/** Make or take over the groups and marks. From now on nobody gets at content unasked, and who tries waits
 * until sl_fan_start(). */
int sl_fan_new(const struct sl_fan_config *cfg, struct sl_fan **ret, char **why);
/** Nobody gets at names that are not here: the kernel asks for them. */
bool sl_fan_lazy(const struct sl_fan *g);
int sl_fan_group(const struct sl_fan *g);
int sl_fan_notify(const struct sl_fan *g);
/** The mount that users see, so that accesses through others can be told from them. Before sl_fan_start(). */
int sl_fan_set_mount(struct sl_fan *g, int mount_fd);
/** It was put where users see it; and so it had been by this or an earlier service. */
void sl_fan_set_shown(struct sl_fan *g);
bool sl_fan_was_shown(const struct sl_fan *g);
/** True once that mount is no more: unmounted, and nobody has anything open through it. Reads procfs. */
bool sl_fan_mount_gone(struct sl_fan *g);
/** Begin to answer: first what an earlier service left. */
int sl_fan_start(struct sl_fan *g);
/** From now on everything that is not here is refused with EIO, also what waits, once the origin has been
 * stopped. */
void sl_fan_refuse(struct sl_fan *g);
/** No event is read any more. Every want must be done. Uses SIGUSR1 to wake who reads. */
void sl_fan_stop(struct sl_fan *g);
/** Leaves the groups open. NULL is fine. */
void sl_fan_free(struct sl_fan *g);

/** Accesses of the thread @tid are let through at once: it replays what happened at the origin. */
void sl_fan_set_replay(struct sl_fan *g, int tid);
/** The names of the directory @o are not all there any more: who wants them is asked about again.
 * -errno: maybe not. */
int sl_fan_unlisted(struct sl_fan *g, struct sl_object *o);
/** A directory may be in the tree that is the origin's, and has no record yet: who looks into one without
 * waits until that is over. */
void sl_fan_making(struct sl_fan *g, bool on);
/** Nothing that comes through the mount of the directory @fd is asked about or told. */
int sl_fan_exempt(struct sl_fan *g, int fd);

/* For struct sl_fill_config. */
void sl_fan_changed(struct sl_fan *g, struct sl_object *o);
void sl_fan_guard(struct sl_fan *g, struct sl_object *o);
void sl_fan_complete(struct sl_fan *g, struct sl_object *o);
int sl_fan_settle(struct sl_fan *g);

/** Accesses that wait. */
size_t sl_fan_waiting(struct sl_fan *g);
/** True if it is a fanotify gate that uses @area. */
bool sl_fan_area(const void *area);
/** For the keeper: call @fn for each descriptor in @area that an answer still goes by. */
void sl_fan_each_fd(const void *area, size_t size, void (*fn)(void *arg, int fd), void *arg);
