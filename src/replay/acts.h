/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * How a gate performs a change of the origin on the clone, so that local watchers hear of it from the kernel:
 * the fuse gate as an echo (the request that the kernel makes of the replay's system call is answered from
 * the event), the fanotify gate as a real operation through the visible mount.
 *
 * All are called on the one replay thread, which holds no lock. The tree's state changes exactly when the
 * kernel raises the event. Content is never fetched: what appears or is updated is a placeholder. What was
 * changed here is never touched: acts return -EEXIST for it, and the replay notes a conflict.
 *
 * All return 0; -EEXIST: a local change is in the way; -ENOENT: the clone does not have it (any more);
 * -errno. @dir is populated.
 */
#pragma once

#include <stdint.h>

#include "origin/origin.h"
#include "store/object.h"

enum sl_appear {
	SL_APPEAR_MADE,	  /* as FAN_CREATE */
	SL_APPEAR_MOVED,  /* as FAN_MOVED_TO */
	SL_APPEAR_SWAPPED /* as FAN_MOVED_FROM of what is there, and FAN_MOVED_TO */
};

enum sl_rename {
	SL_RENAME_OVER,	    /* what is there goes */
	SL_RENAME_EXCHANGE, /* both at once */
	SL_RENAME_SWAP	    /* the same, because what is there is of another type; it is to go, so it must not
			       have been changed here */
};

struct sl_acts {
	/**
	 * @name appears in @dir: @s says what. Moved or swapped over what is there, whatever that is, it
	 * takes its place at once: nobody finds nothing. A directory that appears is unpopulated where
	 * directories are lazy; where they are not, and it was not made, it appears with all that is in it.
	 * Where the clone has another name of that very object (hard links), it is a link. 1: a directory,
	 * where they are not lazy, that was shown empty and has to be listed.
	 */
	int (*appear)(void *arg, struct sl_object *dir, const char *name, const struct sl_ostate *s,
		      enum sl_appear how);
	/** @name goes from @dir, as FAN_DELETE or (with @moved) FAN_MOVED_FROM. A directory goes with all
	 * that is below it, unless something was changed there. */
	int (*vanish)(void *arg, struct sl_object *dir, const char *name, bool moved);
	/** Renamed, over what @newname denotes if that is there, a directory only over a directory. */
	int (*rename)(void *arg, struct sl_object *dir, const char *name, struct sl_object *newdir,
		      const char *newname, enum sl_rename how);
	/**
	 * @o, known here as @name in @dir (both NULL for the root), is as @s says: content of another version
	 * is dropped, attributes are set. @mask: which of FAN_MODIFY, FAN_ATTRIB, FAN_CLOSE_WRITE,
	 * FAN_OPEN, FAN_ACCESS, FAN_CLOSE_NOWRITE to raise; 0: silently. @s may be unknown: then nothing
	 * changes but the event is raised. @how: enum sl_update_how in fill/fill.h. -EBUSY: it is open in a
	 * way in which its content cannot be taken away now; nothing was done, and nothing raised.
	 */
	int (*update)(void *arg, struct sl_object *dir, const char *name, struct sl_object *o,
		      const struct sl_ostate *s, uint64_t mask, unsigned how);
	/** NULL where the store knows (sl_remote_join()): is another object here the file of which @a says
	 * that it has several names? Then the name of @o is to be one of that. *@more (if not NULL): NULL, or
	 * another one whose names are to be, as a new reference. */
	bool (*twin)(void *arg, struct sl_object *o, const struct sl_attr *a, struct sl_object **more);
	/** Nothing more for the moment: let go of the mount, so that it can be taken away. May be NULL. */
	void (*rest)(void *arg);
	void *arg;
};
