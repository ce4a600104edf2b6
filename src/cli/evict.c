/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <stdio.h>
#include <string.h>

#include "base/human.h"
#include "cli/bulk.h"

static int option(const struct sl_command *cmd, int c, json_t *request)
{
	uint64_t v;
	if (c == 'n') {
		json_object_set_new(request, "names", json_true());
	} else if (c == 'o') {
		if (sl_parse_duration(optarg, &v) < 0)
			return sl_cli_usage(cmd, "--older-than: '%s' is not a duration (like 12h or 7d)",
					    optarg);
		json_object_set_new(request, "older_than", json_integer((json_int_t)v));
	} else {
		if (sl_parse_size(optarg, &v) < 0 || v == 0)
			return sl_cli_usage(cmd, "--to-free: '%s' is not a size (like 10G)", optarg);
		json_object_set_new(request, "to_free", json_integer((json_int_t)v));
	}
	return 0;
}

static void show(json_t *a)
{
	char b[16];
	printf("%llu files evicted, %s given back", (unsigned long long)sl_json_u64(a, "files"),
	       sl_format_size(b, sl_json_u64(a, "bytes")));
	if (sl_json_u64(a, "busy"))
		printf("; %llu are in use", (unsigned long long)sl_json_u64(a, "busy"));
	if (sl_json_u64(a, "kept"))
		printf("; %llu are pinned, or were changed here", (unsigned long long)sl_json_u64(a, "kept"));
	if (json_object_get(a, "names"))
		printf("; %llu names of %llu directories, %llu directories stay",
		       (unsigned long long)sl_json_u64(a, "names"),
		       (unsigned long long)sl_json_u64(a, "directories"),
		       (unsigned long long)sl_json_u64(a, "directories_kept"));
	putchar('\n');
}

static int run_evict(const struct sl_command *cmd, int argc, char **argv)
{
	static const struct option more[] = {{"names", no_argument, NULL, 'n'},
					     {"older-than", required_argument, NULL, 'o'},
					     {"to-free", required_argument, NULL, 'f'},
					     {0}};
	return sl_bulk_run(cmd, argc, argv, more, option, NULL, show);
}

const struct sl_command sl_cmd_evict = {
    .name = "evict",
    .summary = "Give the space of content back; names stay, and content comes again when it is read",
    .usage = "[OPTION…] PATH…",
    .help =
	"Files that are pinned, were changed here, or are open stay.\n\n"
	"      --names             names as well, where the kernel asks for them again when they are\n"
	"                          wanted: of directories that are as the origin has them, and not in use\n"
	"      --older-than TIME   only files that were not opened for that long\n"
	"      --to-free SIZE      stop when so much was given back; the longest unused go first\n"
	"  -j, --json              print the result as JSON\n"
	"  -h, --help              this text\n\n"
	"Example:\n  sluice evict --older-than 7d ~/data\n",
    .run = run_evict,
};
