/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <stdio.h>
#include <string.h>

#include "base/human.h"
#include "cli/bulk.h"

static void show_pin(json_t *a)
{
	char b[16];
	printf("%llu files, %s here; %llu newly pinned\n", (unsigned long long)sl_json_u64(a, "files"),
	       sl_format_size(b, sl_json_u64(a, "bytes")), (unsigned long long)sl_json_u64(a, "pinned"));
}

static void show_unpin(json_t *a)
{
	printf("%llu files unpinned\n", (unsigned long long)sl_json_u64(a, "unpinned"));
}

static int run_pin(const struct sl_command *cmd, int argc, char **argv)
{
	return sl_bulk_run(cmd, argc, argv, NULL, NULL, NULL, show_pin);
}

static int run_unpin(const struct sl_command *cmd, int argc, char **argv)
{
	return sl_bulk_run(cmd, argc, argv, NULL, NULL, NULL, show_unpin);
}

const struct sl_command sl_cmd_pin = {
    .name = "pin",
    .summary = "Fetch everything below the paths and keep it: pinned files are never evicted",
    .usage = "[OPTION…] PATH…",
    .help = "  -j, --json   print the result as JSON\n"
	    "  -h, --help   this text\n\n"
	    "Example:\n  sluice pin ~/data/reference\n",
    .run = run_pin,
};

const struct sl_command sl_cmd_unpin = {
    .name = "unpin",
    .summary = "Let files below the paths be evicted again",
    .usage = "[OPTION…] PATH…",
    .help = "  -j, --json   print the result as JSON\n"
	    "  -h, --help   this text\n\n"
	    "Example:\n  sluice unpin ~/data/reference\n",
    .run = run_unpin,
};
