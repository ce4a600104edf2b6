/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <stdio.h>
#include <string.h>

#include "base/human.h"
#include "cli/call.h"
#include "cli/registry.h"
#include "gate/fuse/mount.h"
#include "service/native.h"

static int one(void *arg, const char *store, const struct sl_store_config *c)
{
	json_t *list = arg;
	/* A service that was killed leaves a mount behind of which every use fails. */
	const char *state = sl_call_alive(store) ? "running"
			    : sl_fuse_mounted(c->dir) == SL_MOUNTED_OURS || sl_native_left(store, c)
				? "dead"
				: "stopped";
	json_array_append_new(list, json_pack("{ss ss ss ss ss}", "dir", c->dir, "origin", c->origin, "state",
					      state, "store", store, "id", c->id));
	return 0;
}

static int run_list(const struct sl_command *cmd, int argc, char **argv)
{
	static const struct option opts[] = {
	    {"json", no_argument, NULL, 'j'}, {"help", no_argument, NULL, 'h'}, {0}};
	bool json = false;
	int c;
	while ((c = getopt_long(argc, argv, "jh", opts, NULL)) != -1) {
		if (c == 'h')
			return sl_cli_help(cmd);
		if (c != 'j')
			return sl_cli_usage(cmd, "see above");
		json = true;
	}
	if (optind != argc)
		return sl_cli_usage(cmd, "takes no arguments");
	_cleanup_free_ char *why = NULL;
	json_t *list = json_array(), *v;
	int r = sl_registry_each(one, list, &why);
	size_t i;
	if (r < 0) {
		json_decref(list);
		return sl_cli_fail("%s", why ? why : strerror(-r));
	}
	if (json) {
		sl_print_json(list);
	} else {
		if (json_array_size(list))
			printf("%-8s  %-32s  %s\n", "STATE", "DIRECTORY", "ORIGIN");
		json_array_foreach(list, i, v)
		    printf("%-8s  %-32s  %s\n", json_string_value(json_object_get(v, "state")),
			   json_string_value(json_object_get(v, "dir")),
			   json_string_value(json_object_get(v, "origin")));
	}
	json_decref(list);
	return SL_EXIT_OK;
}

const struct sl_command sl_cmd_list = {
    .name = "list",
    .summary = "List this user's clones",
    .usage = "[OPTION…]",
    .help = "  -j, --json   print the list as JSON\n"
	    "  -h, --help   this text\n\n"
	    "A clone is running, stopped, or dead: its service was killed, and every use of its directory "
	    "fails until\n"
	    "'sluice start' brings it back.\n\n"
	    "Example:\n  sluice list\n",
    .run = run_list,
};
