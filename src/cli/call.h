/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Talking to a clone's service, and showing what it says. */
#pragma once

#include "cli/cli.h"

/**
 * Send @request (taken over) to the service of the store @store and wait for the last line of its answer,
 * which is returned in @ret also when it says that it failed. Lines before it: {"progress"} to @progress,
 * {"item"} to @item, either may be NULL. -ENOTCONN with a sentence where no service runs.
 */
int sl_call(const char *store, json_t *request, void (*progress)(void *arg, json_t *p),
	    void (*item)(void *arg, json_t *i), void *arg, json_t **ret, char **why);
/** Is a service running for this store? */
bool sl_call_alive(const char *store);

/* The commands that take paths of one clone, and send them to its service. */
struct sl_paths {
	char *store;
	json_t *paths; /* relative to the clone's root, as sl_printable() writes them */
};
/** All of argv[0..n) must belong to one clone; with n == 0 and a current directory inside a clone, that
 * directory. */
int sl_paths_collect(int n, char **argv, struct sl_paths *p, char **why);
void sl_paths_fini(struct sl_paths *p);

/** A progress line on standard error, if that is a terminal: printf-like. */
void sl_progress(const char *fmt, ...) SL_PRINTF(1, 2);
void sl_progress_end(void);
/** Print a JSON value to standard output, one line. */
void sl_print_json(json_t *j);
/** The error of a failed answer, or NULL if it was no failure. */
const char *sl_answer_error(json_t *answer);
/** Integer member, 0 where it is missing. */
uint64_t sl_json_u64(json_t *j, const char *key);
