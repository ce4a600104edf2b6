/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Finding objects by inode number alone, for a service that takes over from one that died: the kernel knows
 * nodes by numbers that nobody told this service. The index is made by reading the names of the whole tree
 * (and nothing but the names), once, when it is first needed; what it says is checked when it is used, and a
 * miss makes it be made anew, at most once a second. Any thread may call; the first waits for the index.
 */
#pragma once

#include "store/object.h"

struct sl_index;

int sl_index_new(struct sl_store *s, struct sl_index **ret);
void sl_index_free(struct sl_index *x);
/** The object with inode number @ino, as a new reference. -ENOENT where the tree has none. */
int sl_index_find(struct sl_index *x, uint64_t ino, struct sl_object **ret);
/** The object will be forgotten here, and may be asked for again: note the name we know. */
void sl_index_note(struct sl_index *x, struct sl_object *o);

/**
 * The object that is open as @fd, as a new reference: under a name where it has one, else held by a
 * descriptor of its own.
 */
int sl_index_find_fd(struct sl_index *x, int fd, struct sl_object **ret);
