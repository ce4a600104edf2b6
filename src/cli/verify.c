/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <stdio.h>
#include <string.h>

#include "base/human.h"
#include "cli/bulk.h"

static void item(json_t *i)
{
	printf("%-8s %s: %s\n", json_string_value(json_object_get(i, "kind")),
	       json_string_value(json_object_get(i, "path")), json_string_value(json_object_get(i, "what")));
}

static void show(json_t *a)
{
	char b[16];
	printf(
	    "%llu directories, %llu files, %s compared: ", (unsigned long long)sl_json_u64(a, "directories"),
	    (unsigned long long)sl_json_u64(a, "files"), sl_format_size(b, sl_json_u64(a, "bytes")));
	if (sl_json_u64(a, "wrong") || sl_json_u64(a, "failed") || sl_json_u64(a, "changed"))
		printf("%llu wrong, %llu changed at the origin, %llu could not be compared\n",
		       (unsigned long long)sl_json_u64(a, "wrong"),
		       (unsigned long long)sl_json_u64(a, "changed"),
		       (unsigned long long)sl_json_u64(a, "failed"));
	else
		printf("all equal\n");
}

static int run_verify(const struct sl_command *cmd, int argc, char **argv)
{
	return sl_bulk_run(cmd, argc, argv, NULL, NULL, item, show);
}

const struct sl_command sl_cmd_verify = {
    .name = "verify",
    .summary = "Compare what is here with the origin: names, and every byte",
    .usage = "[OPTION…] PATH…",
    .help = "Nothing is fetched into the clone and nothing is changed. What differs is listed as\n"
	    "  changed   the origin has another version now than when it was fetched\n"
	    "  wrong     the same version, but other names or bytes: this must not happen\n"
	    "  failed    it could not be compared\n"
	    "Exit status 3 if anything is listed.\n\n"
	    "  -j, --json   print differences and result as JSON lines\n"
	    "  -h, --help   this text\n\n"
	    "Example:\n  sluice verify ~/data\n",
    .run = run_verify,
};
