/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The control socket: STORE/control, mode 0600 in a directory of mode 0700; only the owner of the service, or
 * root, is heard. One request per connection: a line of JSON, {"cmd": …}. The answer is lines of JSON: any
 * number of {"progress": {…}} or
 * {"item": {…}}, then one {"ok": true, …} or {"ok": false, "error": "…"}.
 */
#pragma once

#include <jansson.h>

#include "service/clone.h"

struct sl_control;

int sl_control_start(struct sl_clone *c, struct sl_control **ret, char **why);
/** Waits for the commands that are under way. */
void sl_control_stop(struct sl_control *k);

/* One command under way, for commands.c. */
struct sl_command_call {
	struct sl_clone *clone;
	json_t *request;
	int fd;
	bool gone; /* who asked hung up */
};
/** Send a line. Takes over @line. */
void sl_control_send(struct sl_command_call *c, json_t *line);
/** Send {"item": @json}, at once; NULL sends nothing. False when nobody listens any more, or the service
 * ends. */
bool sl_control_item(struct sl_command_call *c, const char *json);
/** Send {"progress": …} at most every 100 ms; takes over @what. Returns false when nobody listens any more,
 * or the service ends. */
bool sl_control_progress(struct sl_command_call *c, uint64_t *last, json_t *what);
/** Run the command of a request: returns the final line, or NULL where it was sent. */
json_t *sl_command_run(struct sl_command_call *c);
