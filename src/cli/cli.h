/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The command line: one file per command, each with one entry in the table in main.c.
 *
 * Exit status: 0 done; 1 it failed, nothing was lost; 2 the command line was wrong; 3 done, but what was
 * looked at is not as it should be (verify found a difference, doctor found something missing).
 */
#pragma once

#include <getopt.h>
#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/macros.h"

enum { SL_EXIT_OK = 0, SL_EXIT_FAIL = 1, SL_EXIT_USAGE = 2, SL_EXIT_DIFFERS = 3 };

struct sl_command {
	const char *name;
	const char *summary; /* one line, for `sluice --help` */
	const char *usage;   /* what follows the name, e.g. "[OPTION…] TREE" */
	const char *help;    /* options and an example; printed after the usage line by --help */
	int (*run)(const struct sl_command *cmd, int argc,
		   char **argv); /* argv[0] is the command's name; getopt state is fresh */
	bool hidden;
};

extern const struct sl_command sl_cmd_clone, sl_cmd_serve, sl_cmd_share, sl_cmd_mount, sl_cmd_start,
    sl_cmd_stop, sl_cmd_remove, sl_cmd_list, sl_cmd_status, sl_cmd_hydrate, sl_cmd_evict, sl_cmd_pin,
    sl_cmd_unpin, sl_cmd_verify, sl_cmd_doctor, sl_cmd_upgrade, sl_cmd_watch, sl_cmd_keeper;

/** Print the help of @cmd to standard output; returns SL_EXIT_OK. Every command offers -h and --help. */
int sl_cli_help(const struct sl_command *cmd);
/** Print "sluice COMMAND: message" and where to find help to standard error; returns SL_EXIT_USAGE. */
int sl_cli_usage(const struct sl_command *cmd, const char *fmt, ...) SL_PRINTF(2, 3);
/** Print "sluice: message" to standard error; returns SL_EXIT_FAIL. */
int sl_cli_fail(const char *fmt, ...) SL_PRINTF(1, 2);

/** The argument of --events: kinds that watchers hear of only when somebody asks for them. False: it is none.
 */
bool sl_cli_events(const char *list, uint64_t *uses);
#define SL_CLI_EVENTS "open,access,close"
