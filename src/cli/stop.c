/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <stdio.h>
#include <string.h>

#include "cli/call.h"
#include "cli/registry.h"
#include "cli/start.h"
#include "cli/stop.h"
#include "gate/fuse/mount.h"
#include "service/native.h"

int sl_service_stop(const char *store, bool force, char **why)
{
	struct sl_store_config cfg;
	int r = sl_store_config_load(store, &cfg, why);
	if (r < 0)
		return r;
	if (sl_call_alive(store)) {
		json_t *answer = NULL;
		r = sl_call(store, json_pack("{ss sb}", "cmd", "stop", "force", force), NULL, NULL, NULL,
			    &answer, why);
		if (r == 0 && sl_answer_error(answer))
			r = sl_fail(why, -EBUSY, "%s", sl_answer_error(answer));
		json_decref(answer);
		if (r == -EPIPE) /* it was faster than its answer */
			r = 0;
		if (r == 0 && !sl_service_gone(store, 120))
			r = sl_fail(why, -ETIMEDOUT, "the service of %s does not end", store);
	} else if (cfg.native) {
		r = sl_native_clear(store, &cfg, why);
	} else if (sl_fuse_mounted(cfg.dir) == SL_MOUNTED_OURS) {
		r = sl_fuse_unmount(cfg.dir, true, why); /* a dead mount */
	}
	sl_store_config_fini(&cfg);
	return r;
}

static int run_stop(const struct sl_command *cmd, int argc, char **argv)
{
	static const struct option opts[] = {{"force", no_argument, NULL, 'f'},
					     {"json", no_argument, NULL, 'j'},
					     {"help", no_argument, NULL, 'h'},
					     {0}};
	bool force = false, json = false;
	int c;
	while ((c = getopt_long(argc, argv, "fjh", opts, NULL)) != -1)
		switch (c) {
		case 'f':
			force = true;
			break;
		case 'j':
			json = true;
			break;
		case 'h':
			return sl_cli_help(cmd);
		default:
			return sl_cli_usage(cmd, "see above");
		}
	if (optind + 1 != argc)
		return sl_cli_usage(cmd, "needs one clone: its directory or its store");
	_cleanup_free_ char *store = NULL, *why = NULL;
	int r = sl_registry_find(argv[optind], &store, NULL, &why);
	if (r == 0)
		r = sl_service_stop(store, force, &why);
	if (r < 0)
		return sl_cli_fail("%s", why ? why : strerror(-r));
	if (json)
		puts("{\"ok\":true}");
	return SL_EXIT_OK;
}

const struct sl_command sl_cmd_stop = {
    .name = "stop",
    .summary = "Stop the service of a clone",
    .usage = "[OPTION…] DIR|STORE",
    .help = "The directory is empty until 'sluice start'; nothing that is here is lost. Fails while "
	    "something in it is in use.\n\n"
	    "  -f, --force   also while it is in use: what is open there gets errors\n"
	    "  -j, --json    print the result as JSON\n"
	    "  -h, --help    this text\n\n"
	    "Example:\n  sluice stop ~/data\n",
    .run = run_stop,
};
