/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <stdio.h>
#include <string.h>

#include "base/fd.h"
#include "cli/call.h"
#include "cli/registry.h"
#include "cli/start.h"
#include "cli/stop.h"
#include "service/native.h"
#include "store/walk.h"

/* What exists nowhere else: made or changed here. */
struct ours {
	uint64_t n;
	char *first;
};

static int count_ours(void *arg, const char *path, struct sl_object *o, int err)
{
	struct ours *x = arg;
	(void)err;
	/* In a native store all that came from the origin has a record; in others symlinks and special files
	 * may go without. */
	if (!o || (o->has_record ? !(o->rec.flags & (SL_MODIFIED | SL_LOCAL | SL_WRITTEN))
				 : !sl_store_native(o->store)))
		return 0;
	if (x->n++ == 0)
		x->first = strdup(path);
	return 0;
}

static int check_ours(const char *store, const struct sl_store_config *cfg, char **why)
{
	struct sl_store *s;
	struct ours x = {0};
	/* Programs that have something open, and other mount namespaces, keep its filesystem a while. */
	int r = cfg->native ? sl_native_clear(store, cfg, why) : 0;
	if (r == 0)
		r = sl_store_open(store, &s, why);
	if (r < 0)
		return r;
	r = sl_walk(sl_object_root(s), count_ours, &x);
	sl_store_close(s);
	if (r == 0 && x.n)
		r = sl_fail(why, -ENOTEMPTY,
			    "what was made or changed in the clone is nowhere else (%llu object%s, the first "
			    "is '%s'): save it, or use --discard",
			    (unsigned long long)x.n, x.n == 1 ? "" : "s", x.first ? x.first : "?");
	free(x.first);
	return r;
}

static int run_remove(const struct sl_command *cmd, int argc, char **argv)
{
	static const struct option opts[] = {{"discard", no_argument, NULL, 'd'},
					     {"force", no_argument, NULL, 'f'},
					     {"json", no_argument, NULL, 'j'},
					     {"help", no_argument, NULL, 'h'},
					     {0}};
	bool discard = false, force = false, json = false;
	int c;
	while ((c = getopt_long(argc, argv, "fjh", opts, NULL)) != -1)
		switch (c) {
		case 'd':
			discard = true;
			break;
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
	_cleanup_free_ char *store = NULL, *why = NULL, *below = NULL;
	struct sl_store_config cfg = {0};
	int r = sl_registry_find(argv[optind], &store, &below, &why);
	if (r == 0 && *below)
		r = sl_fail(&why, -EINVAL, "%s is inside a clone: name the clone's own directory",
			    argv[optind]);
	if (r == 0)
		r = sl_store_config_load(store, &cfg, &why);
	bool was_running = r == 0 && sl_call_alive(store);
	if (r == 0)
		r = sl_service_stop(store, force, &why);
	if (r == 0 && !discard) {
		r = check_ours(store, &cfg, &why);
		if (r < 0 && was_running)
			(void)sl_service_start(store, false, false, NULL); /* nothing has changed */
	}
	if (r == 0)
		r = sl_store_remove(store, &why);
	if (r == 0) {
		sl_registry_remove(cfg.id);
		(void)rmdir(cfg.dir); /* as it was before: gone, if nothing else is in it */
	}
	sl_store_config_fini(&cfg);
	if (r < 0)
		return sl_cli_fail("%s", why ? why : strerror(-r));
	if (json)
		puts("{\"ok\":true}");
	return SL_EXIT_OK;
}

const struct sl_command sl_cmd_remove = {
    .name = "remove",
    .summary = "Stop a clone and remove it, with all that is kept of it here",
    .usage = "[OPTION…] DIR|STORE",
    .help = "The origin is not touched. Refuses while something exists only in the clone.\n\n"
	    "      --discard   also remove what was made or changed in the clone\n"
	    "  -f, --force     also while something in it is in use\n"
	    "  -j, --json      print the result as JSON\n"
	    "  -h, --help      this text\n\n"
	    "Example:\n  sluice remove ~/data\n",
    .run = run_remove,
};
