/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Names as the origin changes them, in stores that are not native: without whiteouts, places of their own and
 * local marks. The caller has made sure that nothing is in the way; the fuse gate does it in the moment in
 * which the kernel raises the event.
 */
#pragma once

#include "origin/origin.h"
#include "store/object.h"

/**
 * The new placeholder @name in @dir. Another name of an object that is here already becomes a link to it,
 * where that is in memory or nearby; see sl_remote_alone(). -EEXIST: there is such a name.
 */
int sl_remote_make(struct sl_object *dir, const char *name, const struct sl_attr *a, const char *target,
		   struct sl_object **ret);
/** The file @o is as @a says, which has several names: the next ones are links to it. -EEXIST: another object
 * here is that file already. */
int sl_remote_join(struct sl_object *o, const struct sl_attr *a);
/** @o has one name here, and several at the origin. */
bool sl_remote_alone(struct sl_object *o);
/** Another object here is the same file of the origin: see sl_remote_join(). */
bool sl_remote_twin(struct sl_object *o);
/** As sl_object_unlink(). -ENOTEMPTY for a directory with names. */
int sl_remote_unlink(struct sl_object *dir, const char *name, bool rmdir);
/** As sl_object_rename(): everything below has its place where it is afterwards. */
int sl_remote_rename(struct sl_object *dir, const char *name, struct sl_object *newdir, const char *newname,
		     unsigned flags);
/**
 * Remove all names below the directory @o. @gone is called for each object that loses its name. The origin
 * may still have that directory, elsewhere and whole: whoever has it open must not take what is left for all
 * of it. So it is `leaving` from before its first name goes, and cannot be listed.
 */
int sl_remote_clear(struct sl_object *o, void (*gone)(void *arg, struct sl_object *o), void *arg);
/** Something of @o, or of what is below it, exists here only, or came here from elsewhere. */
bool sl_remote_kept(struct sl_object *o);
/**
 * The object that stands for @place of the origin, as a new reference. -ENOENT: there is none, or it was
 * deleted or moved away here; -ENODATA: the names of a directory above it are not here.
 */
int sl_remote_find(struct sl_store *s, const char *place, struct sl_object **ret);
/** A directory outside of the tree, empty at first, for what comes into it or leaves it whole: a new
 * reference. */
int sl_remote_staging(struct sl_store *s, struct sl_object **ret);
