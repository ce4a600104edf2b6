/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the files of the fanotify gate's acts share among themselves. All is for the replay's thread, and
 * returns 0 or -errno where nothing else is said. */
#pragma once

#include "gate/fanotify/silent.h"
#include "replay/native.h"
#include "replay/peers.h"

struct sl_native_acts {
	struct sl_native_acts_config cfg;
	struct sl_silent *silent; /* or NULL */
	struct sl_peers *peers;
	int stage;     /* where nobody sees it */
	uint64_t next; /* names there */
	int tid;
};

/* native.c: what is there */

enum standing {
	OURS,	 /* of the origin, at its place */
	CHANGED, /* the same, with content that was changed here */
	FOREIGN, /* made here, or brought here from elsewhere */
};

/** The gate is told which thread acts. */
void native_on_thread(struct sl_native_acts *a);
bool native_content_changed(struct sl_native_acts *a, struct sl_object *o);
/** @place: where it must be at the origin. */
enum standing native_standing(struct sl_native_acts *a, struct sl_object *o, const char *place);
/** Where @name in @dir is at the origin, to be freed; or NULL. */
char *native_place_below(struct sl_object *dir, const char *name);
/** What @name in @dir is, as a new reference. -ENOENT. */
int native_look(struct sl_native_acts *a, struct sl_object *dir, const char *name, struct sl_object **ret,
		enum standing *st);
/** -EEXIST where something of @o, or below it, was changed here or is not the origin's. */
int native_kept(struct sl_native_acts *a, struct sl_object *o);
bool native_is_at(int dirfd, const char *name, const struct sl_handle *h);

/* native_stage.c: where nobody sees it */

/** A new name there: "in-N" comes into the tree, "out-N" has left it. */
const char *stage_name(struct sl_native_acts *a, const char *kind, char name[32]);
int stage_object(struct sl_native_acts *a, const char *name, struct sl_object **ret);
/** One more name of the file @o. */
int stage_link(struct sl_object *o, int dirfd, const char *name);
/** Everything that a name in the stage needs before it is shown: attributes of ours, and of a directory all
 * that is in it, if @whole. */
int stage_complete(struct sl_native_acts *a, const char *name, const struct sl_attr *at, bool whole);
void stage_discard(struct sl_native_acts *a, const char *name);
/** What the last service left there. */
int stage_purge(struct sl_native_acts *a);

/* native_names.c: see struct sl_acts */

int native_vanish(void *arg, struct sl_object *dir, const char *name, bool moved);
int native_appear(void *arg, struct sl_object *dir, const char *name, const struct sl_ostate *s,
		  enum sl_appear how);
int native_rename(void *arg, struct sl_object *dir, const char *name, struct sl_object *newdir,
		  const char *newname, enum sl_rename how);
bool native_twin(void *arg, struct sl_object *o, const struct sl_attr *at, struct sl_object **more);
/** The places of what is renamed, on disk before the names are: @o from @from to @to, and @t where they
 * change places, or NULL. */
int native_move_places(struct sl_native_acts *a, struct sl_object *o, struct sl_object *t, const char *from,
		       const char *to, bool exchange);
/** The directory @name was just made: it gets its record. One without is a user's, and empty: it must not
 * stay. */
int native_adopt_dir(struct sl_native_acts *a, struct sl_object *dir, int dirfd, const char *name,
		     const struct sl_attr *at);

/* native_update.c: see struct sl_acts */

int native_update(void *arg, struct sl_object *dir, const char *name, struct sl_object *o,
		  const struct sl_ostate *s, uint64_t mask, unsigned how);
