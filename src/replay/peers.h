/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Native: which object stands for an object of the origin, so that another name of a file there becomes
 * another name of the same file here. Made by reading the records of the whole tree once, when it is first
 * asked for: a few microseconds for each file. What it says is checked when it is used. Any thread.
 */
#pragma once

#include "store/object.h"

struct sl_peers;

int sl_peers_new(struct sl_store *s, struct sl_peers **ret);
void sl_peers_free(struct sl_peers *p); /* NULL is fine */
/** What there is has been read: to ask takes no time. */
bool sl_peers_made(struct sl_peers *p);
/**
 * The file that is a version of the same object as @v, as a new reference; NULL where there is none. Of
 * several, which must become one, always the same; *@more (if not NULL) is another of them then, a new
 * reference, else NULL.
 */
struct sl_object *sl_peers_find(struct sl_peers *p, const struct sl_version *v, struct sl_object **more);
/** @o was made, or stands for another object now. */
void sl_peers_note(struct sl_peers *p, struct sl_object *o);
/** The names of @dir have come here. */
void sl_peers_note_names(struct sl_peers *p, struct sl_object *dir);
