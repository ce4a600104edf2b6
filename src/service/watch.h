/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Who listens to the events of a running clone ('sluice watch'): each event is put into a bounded queue of
 * each listener, whose own thread sends it on. A listener that does not keep up is told that it missed some.
 */
#pragma once

#include <jansson.h>

#include "origin/origin.h"

struct sl_watchers;
struct sl_watcher;

int sl_watchers_new(struct sl_watchers **ret);
/** No listener may be left. NULL is fine. */
void sl_watchers_free(struct sl_watchers *w);
/** Hand an event on to all who listen. Never blocks for long; any thread. */
void sl_watchers_event(struct sl_watchers *w, const struct sl_oevent *e);

int sl_watcher_new(struct sl_watchers *w, struct sl_watcher **ret);
void sl_watcher_free(struct sl_watcher *l);
/** The text of the next event's sl_event_json(), to be freed; NULL when there was none for @ms milliseconds.
 */
char *sl_watcher_next(struct sl_watcher *l, int ms);

/** The bits of a list of such kinds, as "events" below, separated by commas. -EINVAL: there is another word
 * in it. */
int sl_event_bits(const char *list, uint64_t *mask);

/**
 * {"seq": N, "side": "origin", "events": ["create"], "dir": false, "place": "a/b", "newplace": …, "state":
 * {…}}: "events" are create, delete, moved_from, moved_to, rename, modify, attrib, close_write, open, access,
 * close; state (what is there now is said without an event), ignored (the directory of a mark is gone), lost
 * (everything has to be compared). Places are as sl_printable() writes them. NULL without memory.
 */
json_t *sl_event_json(const struct sl_oevent *e);
