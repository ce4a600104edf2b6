/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Reading and writing a file without a word to who watches it (inotify, fanotify).
 *
 * The descriptors of fanotify events are such: nothing that is done through them is told to anybody. To get
 * one for a given file there must be an event for it that nobody else hears of: a truncate(2) by path asks
 * listeners before it does anything, so one is begun, on a mount of our own that only we listen to, and
 * refused.
 *
 * ftruncate() and futimens() are told all the same: the kernel tells of those by name. They change times,
 * unlike the descriptors of sl_xfs_open_invisible(), which are heard of.
 */
#pragma once

#include "gate/fanotify/gate.h"

struct sl_silent;

/** @mode: O_RDWR or O_RDONLY. -EOPNOTSUPP and others where the kernel cannot (Linux 6.15 can). */
int sl_silent_new(struct sl_fan *g, struct sl_store *s, int mode, struct sl_silent **ret);
void sl_silent_free(struct sl_silent *x); /* NULL is fine */
/** A descriptor of that mode; -errno. One thread at a time. */
int sl_silent_open(struct sl_silent *x, struct sl_object *o);
