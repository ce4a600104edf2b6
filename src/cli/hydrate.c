/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <stdio.h>
#include <string.h>

#include "base/human.h"
#include "cli/bulk.h"

static void show(json_t *a)
{
	char b[16];
	printf("%llu files, %s here\n", (unsigned long long)sl_json_u64(a, "files"),
	       sl_format_size(b, sl_json_u64(a, "bytes")));
}

static int run_hydrate(const struct sl_command *cmd, int argc, char **argv)
{
	return sl_bulk_run(cmd, argc, argv, NULL, NULL, NULL, show);
}

const struct sl_command sl_cmd_hydrate = {
    .name = "hydrate",
    .summary = "Fetch everything below the paths now",
    .usage = "[OPTION…] PATH…",
    .help = "  -j, --json   print the result as JSON\n"
	    "  -h, --help   this text\n\n"
	    "Example:\n  sluice hydrate ~/data/2026\n",
    .run = run_hydrate,
};
